"""``graphopt passes``: what the compiler knows to do."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, out
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.ir.rewrite import Pass


def passes(
    name: Annotated[str | None, typer.Argument(help="A pass, to read all about it: its name, or module:Class.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List passes, pipelines of passes and targets; with a name, one pass in full.

    Passes and targets of other packages (entry points graphopt.passes and graphopt.targets) are included.

    For example:

        graphopt passes

        graphopt passes hoist

        graphopt passes --json
    """
    from graphopt import pipelines, plugins
    from graphopt.cli._options import known_pass, near_pass
    from graphopt.ir.rewrite import pass_name, spell

    known = plugins.passes()
    if name is not None and ":" not in name and name not in known:
        raise UsageError(f"there is no pass '{name}'", hint=near_pass(name, known))
    if name is not None:
        cls = known_pass(name, known, "NAME")
        _show_one(pass_name(cls), cls, as_json)
        return
    orders = {key: [spell(pass_) for pass_ in order] for key, order in pipelines.PIPELINES.items()}
    targets = {key: inspect.getdoc(type(target)) or "" for key, target in plugins.targets().items()}
    if as_json:
        described = [describe(key, cls) for key, cls in known.items()]
        typer.echo(json.dumps({"passes": described, "pipelines": orders, "targets": targets}, indent=2))
        return
    from rich.text import Text

    from graphopt.cli._show import table

    rows = table("Passes", "pass", "accuracy", "before → after", left=("accuracy", "before → after"))
    for key, cls in sorted(known.items()):
        about = describe(key, cls)
        options = ", ".join(f"{option} = {default!r}" for option, default in about["options"].items())
        equation = Text.assemble(about["equation"], (f"\n{options}" if options else "", "dim"))
        rows.add_row(key, about["accuracy"], equation)
    out().print(rows)
    for key, order in orders.items():
        out().print(Text.assemble(("pipeline ", "dim"), (key, "bold"), ": ", " → ".join(order) or "no passes"))
    for key, text in targets.items():
        out().print(Text.assemble(("target ", "dim"), (key, "bold"), ": ", text.split("\n")[0]))
    out().print(Text("\ngraphopt passes NAME shows where a pass is legal, and why it pays.", style="dim"))


def _show_one(name: str, cls: type[Pass], as_json: bool) -> None:
    about = describe(name, cls)
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    from rich.text import Text

    out().print(Text.assemble((name, "bold"), f"  {about['accuracy']}, {about['module']}\n"))
    console = out()
    for line in _filled(about["documentation"], console.width):
        console.print(Text(line), soft_wrap=True)
    if about["options"]:
        out().print(Text("Options", style="bold"))
        for option, default in about["options"].items():
            out().print(f"  {option} = {default!r}", markup=False)


def _filled(text: str, width: int) -> Iterator[str]:
    """Lines of `text` that fit: items such as ``where:`` with their indentation, examples as they are."""
    for paragraph in text.split("\n\n"):
        if paragraph.lstrip().startswith(">>>"):
            yield from paragraph.splitlines()
        else:
            for item in re.split(r"\n(?=\S)", paragraph) if "\n    " in paragraph else [paragraph]:
                yield from textwrap.wrap(
                    " ".join(item.split()), width, subsequent_indent="    " if re.match(r"\w+:", item) else "",
                    break_on_hyphens=False,
                )  # fmt: skip
        yield ""


def describe(name: str, cls: type[Pass]) -> dict[str, Any]:
    """A pass as plain data. Its equation opens the docstring of its file, or of its class where the file holds more."""
    module = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    text = _plain(module if "→" in module.split("\n\n")[0] else inspect.getdoc(cls) or module)
    return {
        "name": name,
        "accuracy": cls.accuracy,
        "equation": " ".join(text.split("\n\n")[0].split()),
        "options": {entry.name: _default(entry) for entry in dataclasses.fields(cls)},  # type: ignore[arg-type]
        "requires": list(cls.requires),
        "ensures": list(cls.ensures),
        "module": cls.__module__,
        "documentation": text,
    }


def _plain(text: str) -> str:
    """Without the marks of code."""
    return text.replace("`", "")


def _default(entry: Any) -> Any:
    """The default of an option as JSON has it; what JSON has no form for as Python writes it; None where required."""
    value = entry.default
    if value is dataclasses.MISSING:
        value = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else None
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
