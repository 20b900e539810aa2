"""What `graphopt bisect` does, once torch may be imported."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import nn

from graphopt.cli._app import errors, phase
from graphopt.cli._grid import Column, grid
from graphopt.cli._options import asked_for
from graphopt.cli._pictures import apart, factor, sampler
from graphopt.cli._request import Session
from graphopt.debug.bisect import Bisection, Fault, Run, bisect
from graphopt.debug.diff import MARKS, Change, difference
from graphopt.debug.metrics import Metric, Result, levels
from graphopt.debug.reproduce import Calls, Reproduction, recorded, reproduce, write
from graphopt.ir.rewrite import spell

_SHOWN = 12  # changed lines
_PICTURES = 4


def search(session: Session, metric: Metric, threshold: float) -> Bisection:
    """Bisect, saying on stderr what each run gave."""
    passes = session.passes
    errors().print(Text(f"{session.title}: {metric.relation(threshold)}, {len(passes)} passes"))

    def say(number: int, about: int, run: Run) -> None:
        verdict = "good" if run.good else "off"
        errors().print(Text(f"run {number} of about {about}: {run.what}: {run.text(metric)}, {verdict}"))

    return bisect(sampler(session, "latent" if metric.latent else "np"), passes, metric, threshold, on_run=say)


# -- files -----------------------------------------------------------------------------------------------------------


def save(session: Session, found: Bisection, folder: Path) -> dict[str, str]:
    """The pictures and the reproduction: what it is → its path; ``no_pictures`` and ``no_reproduction`` → why
    there are none.
    """
    fault = found.fault
    assert fault is not None
    files: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = _pictures(session, found, fault)
        if pictures is not None:
            _sheet(session, found, fault, *pictures).save(folder / "side_by_side.png")
            files["pictures"] = str(folder / "side_by_side.png")
    except Exception as error:  # what was found must not be lost over what illustrates it
        files["no_pictures"] = _reason(error)
    try:
        made = _reproduction(session, fault)
        if isinstance(made, str):
            files["no_reproduction"] = made
        else:
            written = write(made, folder / "reproduction.py", about(fault))
            files |= dict(zip(("reproduction", "reproduction_inputs"), map(str, written), strict=False))
    except Exception as error:
        files["no_reproduction"] = _reason(error)
    return files


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def about(fault: Fault) -> str:
    """``What rewrite 3 of fold_scales does to unet at mul_3 (file.py:12).``"""
    if fault.rewrite is None or fault.attempt is None:
        return f"What {spell(fault.pass_)} does."
    place = fault.rewrite.place
    where = f" ({place.source})" if place.source else ""
    return f"What rewrite {fault.number} of {spell(fault.pass_)} does to {fault.attempt.name} at {place.node}{where}."


def _pictures(session: Session, found: Bisection, fault: Fault) -> tuple[Result, Result, Result] | None:
    """Images of the original, and of the runs on both sides of the boundary; None where there are none."""
    before, after = fault.without.result, fault.with_.result
    if not found.metric.latent:
        return None if before is None or after is None else (found.original, before, after)
    if not fault.sides:
        return None
    sample, passes = sampler(session), found.passes[: fault.position + 1]
    with phase("sampling images for the pictures"):
        try:
            without, with_ = (sample(passes, [side]) for side in fault.sides)
        except (RuntimeError, ValueError, IndexError):
            return None
        return sample(None, ()), without, with_


def _sheet(session: Session, found: Bisection, fault: Fault, original: Result, without: Result, with_: Result) -> Any:
    shown = [images[:_PICTURES] for images in (original, without, with_)]
    off, exponent = apart(shown[1], shown[2])
    columns = [
        Column(levels(images), label) for images, label in zip(shown, ("original", "without", "with"), strict=True)
    ]
    columns.append(Column(off, f"difference x {factor(exponent)}", smooth=False))
    prompt = str(session.arguments.get("prompt", ""))
    captions = [prompt] if len(off) == 1 else [f"image {k + 1}" for k in range(len(off))]
    what = about(fault).removeprefix("What ").rstrip(".").replace(" does to", " in")
    title = f"without and with {what}; |with - without| shown {factor(exponent)} times as bright"
    return grid(columns, captions, f"{session.request.pipeline}, {title}")


def _reproduction(session: Session, fault: Fault) -> Reproduction | str:
    attempt = fault.attempt
    if attempt is None or attempt.before is None or attempt.after is None:
        return "the pass rewrote nothing"
    return reproduce(attempt.before, attempt.after, fault.pass_, partial(_calls, session, attempt.name))


def _calls(session: Session, name: str) -> tuple[nn.Module, Calls]:
    """A module of the pipeline, and calls of it by the original."""
    module = attrgetter(name)(session.pipe)
    with phase("recording the inputs of the run"), recorded(module) as calls:
        session.sample()
    return module, calls


# -- text ------------------------------------------------------------------------------------------------------------


def show(console: Console, session: Session, found: Bisection) -> None:
    """What was found, in the words of the command line."""
    metric, threshold = found.metric, found.threshold
    verdict = "within" if found.within else "not within"
    console.print(Text.assemble(
        (session.title, "bold"), f": with all {len(found.passes)} passes {found.all.text(found.metric)}, ",
        (f"{verdict} the threshold", "green" if found.within else "red"), f" ({metric.relation(threshold)})",
    ))  # fmt: skip
    for name, module, why in found.rolled_back:
        reason = f" was rolled back in {module}: {why.splitlines()[0]}"
        console.print(Padding(Text.assemble((name, "bold"), reason), (0, 2)))
    own = asked_for(session.request.passes)
    for name in [entry for entry in found.still if entry in own]:
        hint = f" never fired; graphopt explain {session.request.pipeline} … says where it looked"
        console.print(Padding(Text.assemble((name, "bold"), hint), (0, 2)))
    for note in found.notes:
        console.print(Padding(Text(note.splitlines()[0], style="dim"), (0, 2)))
    for doubt in found.doubts:
        console.print(Padding(Text(doubt), (0, 2)))
    if found.fault:
        _show_fault(console, found, found.fault)


def _show_fault(console: Console, found: Bisection, fault: Fault) -> None:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("pass", Text.assemble((spell(fault.pass_), "bold"),
                                       f", number {fault.position + 1} of {len(found.passes)}"))  # fmt: skip
    if fault.rewrite and fault.attempt:
        place, attempt = fault.rewrite.place, fault.attempt
        again = f", compilation {attempt.number} of it" if attempt.number > 1 else ""
        rows.add_row("rewrite", f"{fault.number} of {fault.of}, in {attempt.name}{again}")
        rows.add_row("node", Text(place.node, style="bold"))
        rows.add_row("submodule", place.module or "(model)")
        rows.add_row("source", place.source or "unknown")
    rows.add_row("without it", fault.without.text(found.metric))
    rows.add_row("with it", fault.with_.text(found.metric))
    if fault.alone:
        rows.add_row("all but it", fault.alone.text(found.metric))
    console.print(Padding(rows, (1, 0, 0, 2)))
    lines = list(_lines(fault))
    if lines:
        console.print()
    for text, style in lines[:_SHOWN]:
        console.print(Padding(Text(text, style=style), (0, 0, 0, 2)))
    if len(lines) > _SHOWN:
        console.print(Padding(Text(f"… and {len(lines) - _SHOWN} more changed lines", style="dim"), (0, 0, 0, 2)))
    for doubt in fault.doubts:
        console.print(Padding(Text(f"But {doubt}.", style="yellow"), (1, 0, 0, 2)))


def show_files(console: Console, files: dict[str, str]) -> None:
    """Where pictures and reproduction are, or why there are none."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    for label in ("pictures", "reproduction"):
        if label in files:
            rows.add_row(label, Text(files[label]))
        elif reason := files.get(f"no_{label}"):
            rows.add_row(label, Text(f"none: {reason}"))
    if files:
        console.print(Padding(rows, (1, 0, 0, 2)))


def _changes(fault: Fault) -> tuple[Change, ...]:
    attempt = fault.attempt
    if attempt is None or attempt.before is None or attempt.after is None:
        return ()
    return difference(attempt.before, attempt.after).changes


def _lines(fault: Fault) -> Iterator[tuple[str, str]]:
    """Lines taken away, then lines put there, as dumps have them and in their order."""
    changes, attempt = _changes(fault), fault.attempt
    yield from (
        (f"{MARKS['removed']} {entry.before}", "red")
        for entry in changes
        if entry.kind != "moved" and entry.before is not None
    )
    if attempt is not None and attempt.after is not None:
        order = {node.name: place for place, node in enumerate(attempt.after.graph.nodes)}
        new = [entry for entry in changes if entry.kind != "moved" and entry.after is not None]
        new.sort(key=lambda entry: order.get(str(entry.after).partition(" = ")[0], len(order)))
        yield from ((f"{MARKS['added']} {entry.after}", "green") for entry in new)
    for entry in changes:
        if entry.kind == "moved":
            yield f"{MARKS['moved']} {entry.node}: {entry.stages[0]} → {entry.stages[1]}", "yellow"


def as_dict(session: Session, found: Bisection, files: dict[str, str]) -> dict[str, Any]:
    """``--json``: values are null where a run crashed, and where images are equal (then ``equal`` is true)."""
    return {
        "pipeline": session.request.pipeline,
        "metric": found.metric.name,
        "threshold": found.threshold,
        "within": found.within,
        "passes": [spell(entry) for entry in found.passes],
        "runs": [_run(run) for run in found.runs],
        "rolled_back": [{"pass": name, "module": module, "error": why} for name, module, why in found.rolled_back],
        "never_fired": list(found.still),
        "notes": list(found.notes),
        "doubts": list(found.doubts),
        "fault": _fault(found.fault) if found.fault else None,
        "files": files,
    }


def _run(run: Run) -> dict[str, Any]:
    value = run.value if run.value is not None and np.isfinite(run.value) else None
    equal = run.value is not None and value is None
    return {"what": run.what, "value": value, "equal": equal, "good": run.good, "trouble": run.trouble}


def _fault(fault: Fault) -> dict[str, Any]:
    place = fault.rewrite.place if fault.rewrite else None
    changes = [
        {"kind": entry.kind, "node": entry.node, "before": entry.before, "after": entry.after,
         "stages": list(entry.stages)}
        for entry in _changes(fault)
    ]  # fmt: skip
    return {
        "pass": spell(fault.pass_),
        "position": fault.position + 1,
        "rewrite": fault.number,
        "rewrites": fault.of,
        "module": fault.attempt.name if fault.attempt else None,
        "compilation": fault.attempt.number if fault.attempt else None,
        "node": place.node if place else None,
        "submodule": place.module if place else None,
        "source": place.source if place else None,
        "without": _run(fault.without),
        "with": _run(fault.with_),
        "all_but_it": _run(fault.alone) if fault.alone else None,
        "changes": changes,
        "doubts": list(fault.doubts),
    }
