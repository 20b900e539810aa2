"""What ``--target`` and ``--pass-pipeline`` name."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, UsageError, nearest

if TYPE_CHECKING:
    from graphopt.ir.rewrite import Pass
    from graphopt.targets import Target


# Of graphopt.pipelines, whose import takes torch's.
_PIPELINES = ("bitwise", "exact", "generated", "loop", "none", "packed")

# Options that are amounts, by the unit that ends their names.
_AMOUNT = re.compile(r"(^|_)(bytes?|flops|terms|calls|steps|saved|growth)$")


def check_names(target: str, passes: str | None, extra: Sequence[str] = ()) -> None:
    """Refuse unknown names at once, before torch is imported; with plug-ins installed, only they know theirs.

    A pass has the name of its file, and a target that of its file or folder.
    """
    if not entry_points(group="graphopt.targets"):
        known = [name for name in _files("targets") if name != "base"]
        for name in [] if target == "auto" else target.split(","):
            if name not in known:
                raise _unknown_target(name, known)
    if not entry_points(group="graphopt.passes"):
        known = _files("passes")
        for entry in [] if passes is None else _entries(passes):
            if (name := _split(entry)[0]) not in (*known, *_PIPELINES) and not _is_imported(name):
                raise _unknown_pass(name, (*known, *_PIPELINES))
        for entry in extra:
            if (name := _split(entry)[0]) not in known and not _is_imported(name):
                raise _unknown_pass(name, known, "--pass")


def _files(folder: str) -> list[str]:
    """What stands in a folder of graphopt, by the names of files and of packages."""
    root = Path(__file__).parents[1] / folder
    return sorted(path.stem for path in root.glob("[!_]*") if path.suffix == ".py" or (path / "__init__.py").exists())


def _unknown_target(name: str, known: Iterable[str]) -> UsageError:
    return UsageError(f"unknown target '{name}'", where="--target", hint=nearest(name, (*known, "auto")))


def _unknown_pass(name: str, known: Iterable[str], where: str = "--pass-pipeline") -> UsageError:
    what = "pass or pipeline" if where == "--pass-pipeline" else "pass"
    return UsageError(f"unknown {what} '{name}'", where=where, hint=near_pass(name, known))


def near_pass(name: str, known: Iterable[str]) -> str:
    """What may be meant by an unknown pass: one of the user's own, where a module of that name lies here."""
    if name.isidentifier() and Path(f"{name}.py").is_file():
        return f"a pass in {name}.py is named by module and class, {name}:MyPass; else {nearest(name, known)}"
    return nearest(name, known)


def _entries(text: str) -> list[str]:
    """The parts between commas, but for those inside brackets and quotes."""
    found, depth, quote = [""], 0, ""
    for before, sign in zip(" " + text, text, strict=False):
        if quote:
            quote = "" if sign == quote and before != "\\" else quote
        elif sign in "'\"":
            quote = sign
        else:
            depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not quote and depth <= 0:
            found.append("")
        else:
            found[-1] += sign
    return found


def asked_for(entries: Iterable[str]) -> set[str]:
    """Names of the passes of ``--pass``."""
    from graphopt import plugins
    from graphopt.ir.rewrite import pass_name

    return {pass_name(known_pass(_split(entry)[0], plugins.passes(), "--pass")) for entry in entries}


def _split(entry: str) -> tuple[str, str | None]:
    """Name and options of ``name{options}``."""
    match = re.fullmatch(r"\s*([\w.:]+)\s*(?:\{(.*)\})?\s*", entry)
    return (match[1], match[2]) if match else (entry, None)


def _is_imported(name: str) -> bool:
    """Whether a pass is named as ``module:Class``."""
    return bool(re.fullmatch(r"[\w.]+:[\w.]+", name))


def known_pass(name: str, known: dict[str, type[Pass]], where: str, others: Iterable[str] = ()) -> type[Pass]:
    """The class of a pass by its name, or by the place that it is imported from."""
    if not _is_imported(name):
        if name not in known:
            raise _unknown_pass(name, (*known, *others), where)
        return known[name]
    from graphopt.cli._load import imported
    from graphopt.ir.rewrite import Pass

    def is_pass(found: Any) -> bool:
        return isinstance(found, type) and issubclass(found, Pass) and hasattr(found, "__dataclass_fields__")

    found = imported(name, lambda found: is_pass(found) and found.__module__ != Pass.__module__)
    if is_pass(found):
        return found  # type: ignore[no-any-return]
    hint = "@dataclass(frozen=True) above class MyPass(graphopt.Pass)"
    raise UsageError(f"'{name.partition(':')[2]}' is not a pass", where=f"{where} {name}", hint=hint)


def check_pass(name: str, text: str | None = None, extra: Sequence[str] = ()) -> str:
    """The name of a pass, which may be in `text` (``--pass-pipeline``) or among `extra` (``--pass``).

    Raises UsageError where there is none.

    Without plug-ins this needs no torch.
    """
    known = _files("passes")
    if name not in known and entry_points(group="graphopt.passes"):
        from graphopt import plugins

        known = list(plugins.passes())
    entries = [*(_entries(text) if text is not None else ()), *extra]
    if _is_imported(name) or any(_is_imported(_split(entry)[0]) for entry in entries):
        classes = {known_pass(place, {}, "--pass") for e in (name, *entries) if _is_imported(place := _split(e)[0])}
        from graphopt.ir.rewrite import pass_name

        known += [pass_name(found) for found in classes]
        name = pass_name(known_pass(name, {}, "PASS")) if _is_imported(name) else name
    if name not in known:
        raise _unknown_pass(name, known, "PASS")
    return name


def suits(target: str | Target | tuple[Target, ...]) -> str:
    """The pipeline of passes that suits a target, or the first of several."""
    if isinstance(target, str):
        return "exact"
    return target[0].pipeline if isinstance(target, tuple) else target.pipeline


def target_named(name: str) -> str | Target | tuple[Target, ...]:
    """``auto``, or targets of graphopt or of other packages, with commas between several.

    Raises UsageError where one is not known or cannot run here.
    """
    if name == "auto":
        return name
    found = tuple(map(_target_named, name.split(",")))
    return found if len(found) > 1 else found[0]


def _target_named(name: str) -> Target:
    from graphopt import plugins

    known = plugins.targets()
    if name not in known:
        raise _unknown_target(name, known)
    import torch

    if reason := known[name].unavailable(torch.device("cpu")):
        raise UsageError(f"target '{name}' cannot run here: {reason}", where="--target", hint="--target auto")
    return known[name]


def passes_named(text: str | None, extra: Sequence[str] = (), base: str = "exact") -> tuple[Pass, ...] | None:
    """Passes of a list such as ``exact,my_pass{limit=3}``: names of pipelines and of passes, with options.

    A pass that is not registered is named by the place that it is imported from, ``my_module:MyPass{limit=3}``.

    This reads what `graphopt.ir.rewrite.spell` writes. Each of `extra` takes the place of the passes of its name, or
    goes to the end where there is none, with `fold_constants` once more behind it where the pipeline has that: what a
    pass makes of weights would be computed in every step otherwise. Without a `text` they go into the pipeline `base`.
    Raises UsageError for an unknown name, option or value, and PassError for an order that is not legal.
    """
    if text is None and not extra:
        return None
    from graphopt import pipelines, plugins
    from graphopt.ir.driver import check_order
    from graphopt.passes import FoldConstants

    known, found = plugins.passes(), list[Any]()
    for entry in _entries(text) if text is not None else [base]:
        name, options = _split(entry)
        if name in pipelines.PIPELINES and options is None:
            found += pipelines.PIPELINES[name]
        else:
            cls = known_pass(name, known, "--pass-pipeline", pipelines.PIPELINES)
            found.append(_made(cls, options, f"--pass-pipeline {entry.strip()}"))
    names = {other.name for other in found}
    for entry in extra:
        name, options = _split(entry)
        made = _made(known_pass(name, known, "--pass"), options, f"--pass {entry.strip()}")
        places = [place for place, other in enumerate(found) if other.name == made.name]
        for place in places or [len(found)]:
            found[place : place + 1] = [made]
    folds = [other for other in found if isinstance(other, FoldConstants) and other.name in names]
    if folds and found[-1].name not in names:
        found.append(folds[-1])
    check_order(found)
    return tuple(found)


def _value(node: ast.expr) -> Any:
    """A value as a dump writes it: literals, ``inf``, ``torch.float16``. Raises ValueError for anything else."""
    from graphopt.ir.notation import read

    try:
        return ast.literal_eval(node)
    except ValueError:
        try:
            return read(node, {})
        except (GraphoptError, ValueError, RuntimeError):
            raise ValueError(f"{ast.unparse(node)} is no value") from None


def _made(cls: type[Pass], options: str | None, where: str) -> Pass:
    from graphopt.ir.rewrite import pass_name

    name = pass_name(cls)
    known = {field.name: field.default for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    try:
        call = ast.parse(f"f({options or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args:
            raise ValueError("they are written option=value")
        given = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
        for key, value in given.items():
            if key not in known:
                raise UsageError(f"pass '{name}' has no option '{key}'", where=where, hint=nearest(key, known))
            if isinstance(known[key], int | float) and not isinstance(value, int | float):
                raise TypeError(f"{key} is a number, not {value!r}")
            if isinstance(value, int | float) and value < 0 and _AMOUNT.search(key):
                raise ValueError(f"{key} cannot be negative: {value}")
            if type(known[key]) is int and isinstance(value, float) and value.is_integer():
                given[key] = int(value)  # 1e8
        return cls(**given)
    except (SyntaxError, ValueError, TypeError) as error:
        hint = f"graphopt passes {name} lists its options"
        raise UsageError(f"these options cannot be used: {error}", where=where, hint=hint) from error
