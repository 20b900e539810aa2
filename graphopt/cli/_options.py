"""What ``--target`` and ``--pass-pipeline`` name."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError, nearest

if TYPE_CHECKING:
    from graphopt.ir.rewrite import Pass
    from graphopt.targets import Target


def target_named(name: str) -> str | Target:
    """``auto``, or a target of graphopt or of another package. Raises UsageError when there is none."""
    from graphopt import plugins

    known = plugins.targets()
    if name == "auto":
        return name
    if name not in known:
        raise UsageError(f"unknown target '{name}'", where="--target", hint=nearest(name, (*known, "auto")))
    import torch

    if reason := known[name].unavailable(torch.device("cpu")):
        raise UsageError(f"target '{name}' cannot run here: {reason}", where="--target", hint="--target auto")
    return known[name]


def passes_named(text: str | None) -> tuple[Pass, ...] | None:
    """Passes of a list such as ``exact,my_pass{limit=3}``: names of pipelines and of passes, with options.

    This reads what `graphopt.ir.rewrite.spell` writes. Raises UsageError for an unknown name, option or value.
    """
    if text is None:
        return None
    from graphopt import pipelines, plugins

    known, found = plugins.passes(), list[Any]()
    for entry in re.split(r",(?![^{]*\})", text):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\{(.*)\})?\s*", entry)
        name, options = (match[1], match[2]) if match else (entry, None)
        if name in pipelines.PIPELINES and options is None:
            found += pipelines.PIPELINES[name]
        elif name in known:
            found.append(_made(known[name], options, entry))
        else:
            hint = nearest(name, (*known, *pipelines.PIPELINES))
            raise UsageError(f"unknown pass or pipeline '{name}'", where="--pass-pipeline", hint=hint)
    return tuple(found)


def _made(cls: type[Pass], options: str | None, entry: str) -> Pass:
    try:
        call = ast.parse(f"f({options or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        return cls(**{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(
            f"these options cannot be used: {error}",
            where=f"--pass-pipeline {entry}",
            hint=f"graphopt passes {entry.split('{')[0]} lists its options",
        ) from error
