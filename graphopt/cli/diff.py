"""``graphopt diff``: what differs between two dumps, or from pass to pass."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, note, out
from graphopt.debug.numbered import near_dump
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.debug.diff import Change, Difference
    from graphopt.debug.fold import Group

DIFFERENT = 1
_MOST_LINES = 12

Side = Annotated[Path, typer.Argument(metavar="A", help="A dump, or a folder of graphopt trace.")]
Other = Annotated[Path | None, typer.Argument(metavar="B", help="Another one; left out: A pass by pass.")]


def diff(
    a: Side,
    b: Other = None,
    everything: Annotated[bool, typer.Option("--all", help="All lines, of long groups too.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what differs between two dumps: nodes removed, added, given other arguments or moved, and the work they do.

    Of two folders, dumps of one name are compared in short; of a single folder, each dump with the one before.

    Names alone make no difference: nodes that compute the same are the same.

    Exit code, as of diff(1): 0 nothing differs, 1 something does, 2 trouble.

    For example:

        graphopt diff dumps/000_captured.py dumps/004_merge_common.py

        graphopt diff dumps

        graphopt diff before after

        graphopt diff dumps/017_fold_constants.py dumps/018_hoist.py --json | jq .counts
    """
    for path in (a, *([b] if b else [])):
        if not path.exists():
            raise UsageError("there is no such file or folder", where=str(path), hint=near_dump(path))
    if b is not None and a.is_dir() != b.is_dir():
        a, b = (a / b.name, b) if a.is_dir() else (a, b / a.name)
    if b is None and not a.is_dir():
        raise UsageError("one dump has nothing to be compared with", where=str(a), hint="graphopt diff A B")
    if b is None or a.is_dir():
        differs = _folders(a, b, as_json)
    else:
        found = _between(a, b)
        differs = bool(found.changes)
        if as_json:
            from graphopt.debug.fold import as_json as plain

            typer.echo(json.dumps({"a": str(a), "b": str(b), **plain(found)}, indent=2))
        else:
            show(out(), found, None if everything else _MOST_LINES)
    raise typer.Exit(DIFFERENT if differs else 0)


def _between(a: Path, b: Path) -> Difference:
    from graphopt.debug.diff import difference
    from graphopt.debug.dumps import load_constants, read

    before, after = read(a), read(b)
    if a.parent.resolve() != b.parent.resolve():  # those of one folder share the file
        try:
            before.constants, after.constants = load_constants(before, a), load_constants(after, b)
        except UsageError as error:
            note(f"values of constants are not compared: {error.what} ({error.where})")
    return difference(before, after)


def _folders(a: Path, b: Path | None, as_json: bool) -> bool:
    """Dumps of one name in two folders, or each dump of one folder with the one before; whether any differ."""
    from graphopt.debug.diff import difference
    from graphopt.debug.dumps import read
    from graphopt.debug.journal import dumps_in

    mine = {path.name: path for path in dumps_in(a)}
    only: dict[str, list[str]] = {}
    found: list[tuple[str, Difference]] = []
    if b is None:
        programs = ((name, read(path)) for name, path in mine.items())
        found = [(later, difference(before, after)) for (_, before), (later, after) in pairwise(programs)]
    else:
        theirs = {path.name: path for path in dumps_in(b)}
        only = {str(a): sorted(mine.keys() - theirs.keys()), str(b): sorted(theirs.keys() - mine.keys())}
        found = [(name, _between(mine[name], theirs[name])) for name in mine if name in theirs]
    if as_json:
        from graphopt.debug.fold import as_json as plain

        rows = [{"dump": name, **plain(entry)} for name, entry in found]
        typer.echo(json.dumps({"a": str(a), "b": str(b) if b else None, "only": only, "dumps": rows}, indent=2))
    else:
        _show_folders(out(), found, only)
    return any(entry.changes for _, entry in found) or any(only.values())


def _show_folders(console: Console, found: list[tuple[str, Difference]], only: dict[str, list[str]]) -> None:
    from rich.text import Text

    from graphopt.cli._show import remark, table, work_after
    from graphopt.debug.diff import MARKS
    from graphopt.debug.figures import weights_alone

    made = table("The step, before → after", "dump", "−", "+", "~", "moved", "nodes", "FLOPs", "bytes")
    for name, entry in found:
        was, now = entry.costs["step"]
        counts = [entry.counts[kind] for kind in MARKS]
        made.add_row(
            name.removesuffix(".py"),
            *(str(count) if count else "·" for count in counts),
            *work_after((was.nodes, now.nodes), (was.cost.flops, now.cost.flops), (was.cost.bytes, now.cost.bytes)),
        )
    console.print(made)
    for name, entry in found:
        before, after = (once.cost for once in entry.once)
        if what := weights_alone((before.flops, after.flops), (before.bytes, after.bytes)):
            remark(console, Text.assemble(f"{name.removesuffix('.py')}: ", (what, "dim")))
    for folder, names in only.items():
        for name in names:
            remark(console, Text(f"only in {folder}: {name}", style="yellow"))
    remark(console, "[dim]− removed, + added, ~ given other arguments, moved to another stage[/]")


def show(console: Console, found: Difference, most: int | None = _MOST_LINES) -> None:
    """Changes by kind and submodule, at most `most` lines of each, then the work per stage."""
    from rich.text import Text

    from graphopt.cli._show import stage_changes
    from graphopt.debug.diff import MARKS
    from graphopt.debug.fold import fold

    if not found.changes:
        console.print(Text("the programs do not differ" + (", but in names" * bool(found.renamed))))
        return
    groups, titles = fold(found.changes), {"changed": "given other arguments", "moved": "moved to another stage"}
    for kind in MARKS:
        if not found.counts[kind]:
            continue
        console.print(Text(f"{found.counts[kind]} {titles.get(kind, kind)}", style="bold"))
        for group in groups:
            if group.kind == kind:
                _show_group(console, group, most)
        console.print()
    console.print(stage_changes(found.costs))


def _show_group(console: Console, group: Group, most: int | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    times = f" ×{len(group.modules)} blocks" if len(group.modules) > 1 else ""
    console.print(Padding(Text.assemble((group.module or "(model)", "cyan"), (times, "bold")), (0, 0, 0, 2)))
    shown = group.changes[:most]
    for change in shown:
        for text in _lines(change):
            text.overflow = "fold"
            console.print(Padding(text, (0, 0, 0, 4)))
    if len(shown) < len(group.changes):
        more = f"… {len(group.changes) - len(shown)} more; --all shows them"
        console.print(Padding(Text(more, style="dim"), (0, 0, 0, 4)))


def _lines(change: Change) -> list[Any]:
    from rich.text import Text

    before, after = (_short(line, change.module) for line in (change.before, change.after))
    if change.kind == "moved":
        return [Text.assemble("  ", after, (f"  {' → '.join(change.stages)}", "magenta"))]
    found = [Text(f"− {before}", style="red")] * bool(before) + [Text(f"+ {after}", style="green")] * bool(after)
    if before == after:
        found = [Text(f"~ {after}")]
    if change.kind == "changed":
        for pair, style in ((change.values, "yellow"), (change.stages, "magenta")):
            if pair[0] != pair[1]:
                found[-1].append(f"  {' → '.join(pair)}", style=style)
    return found


def _short(line: str | None, module: str) -> str:
    """A line without ``ops.``, and with weights of the submodule it stands under by what they are called there."""
    prefix = f"p_{re.sub(r'[^0-9A-Za-z_]', '_', module)}_"
    return (line or "").replace("ops.", "").replace(prefix, "…" if module else prefix)
