"""``graphopt explain``: where a pass fired, what it saved, and why it did not fire elsewhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, out
from graphopt.cli._history import ModuleName
from graphopt.cli._request import (
    PROMPT,
    SEED,
    STEPS,
    WATCHED,
    Arguments,
    Dtype,
    Name,
    OnePass,
    PassPipeline,
    Pixels,
    Prompt,
    Request,
    Seed,
    Steps,
    Watched,
    watched,
)  # fmt: skip
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.debug.explain import Explanation, Line
    from graphopt.debug.history import Compilation

_MOST_LINES = 6


def explain(
    pipeline: Name,
    pass_name: Annotated[
        str, typer.Argument(metavar="PASS", help="A pass, as graphopt passes lists them, or module:Class.")
    ],
    module: ModuleName = None,
    everything: Annotated[bool, typer.Option("--all", help="All source lines and reasons.")] = False,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    seed: Seed = SEED,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    dtype: Dtype = None,
    target: Watched = WATCHED,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show where a pass fired in a model, what that saved, and for the places that it looked at in vain, why.

    Places are grouped by the model's source lines; refusals by reason, those first that concern the most work.

    For example:

        graphopt explain emoji-unet share_repeats

        graphopt explain emoji-dit hoist --all

        graphopt explain emoji-unet pack_weights --pass "pack_weights{min_flops=0}"

        graphopt explain emoji-unet merge_linears --module vae.decoder --json
    """
    from graphopt.cli._options import check_pass

    name, extra = check_pass(pass_name, pass_pipeline, one_pass or ()), tuple(one_pass or ())
    request = Request(
        pipeline, prompt, steps, seed, height, width, tuple(arg or ()), dtype, watched(target), pass_pipeline, extra
    )
    if name != pass_name and name not in {entry.name for entry in request.order()}:
        request = replace(request, passes=(*extra, pass_name))  # named by its place, and in no pipeline
    from graphopt.cli._history import compilation
    from graphopt.debug.explain import explain as explained

    found = compilation(request.open(), module)
    occurrences = explained(found, name)
    if not occurrences:
        order = [shot.name for shot in found.snapshots[1:]]
        raise UsageError(
            f"the pass '{name}' is not in the pipeline that ran",
            where=" → ".join(order) or "no passes",
            hint=f"add it at the end with --pass {name}, or name a pipeline with it: --pass-pipeline",
        )
    if as_json:
        entries = [entry.to_dict() for entry in occurrences]
        data = {"pipeline": pipeline, "module": found.name, "pass": name, "occurrences": entries}
        typer.echo(json.dumps(data, indent=2))
        return
    for entry in occurrences:
        show(out(), found, entry, None if everything else _MOST_LINES, behind=pass_pipeline or request.suited())


def show(
    console: Console, found: Compilation, entry: Explanation, most: int | None = _MOST_LINES, *, behind: str
) -> None:
    """One occurrence of a pass, at most `most` lines of each list; `behind` is the pipeline that it could precede."""
    from rich.text import Text

    from graphopt.debug.figures import counted
    from graphopt.plugins import spelled

    shot = entry.snapshot
    console.print(Text.assemble((shot.name, "bold"), f" on {found.name}: pass {entry.position} of {entry.passes}, "
                                                     f"{shot.accuracy}"))  # fmt: skip
    if shot.error:
        console.print(Text(f"  was rolled back: {shot.error.splitlines()[0]}", style="red"))
    if not entry.fired and not entry.missed:
        console.print(Text("  found nothing to look at: no place in this program has the form that it looks for"))
        if entry.captured and shot.pass_ is not None:
            were = f"{counted(entry.captured, 'place')} of this form {'was' if entry.captured == 1 else 'were'} there"
            first = f"--pass-pipeline {shlex.quote(f'{spelled(shot.pass_)},{behind}')}"
            console.print(Text(f"  {were} as captured; to run it first: {first}"), soft_wrap=True)
        console.print()
        return
    console.print(Text(f"  fired {counted(entry.count, 'time')}"))
    _show_lines(console, entry.fired, most, "    ")
    _show_saved(console, entry)
    refused = sum(missed.count for missed in entry.missed)
    if refused:
        console.print(Text(f"  did not fire at {counted(refused, 'place')}, the most work first:"))
    for missed in entry.missed[:most]:
        _show_missed(console, missed, most)
    if most is not None and len(entry.missed) > most:
        console.print(Text(f"    … {len(entry.missed) - most} more reasons; --all shows them", style="dim"))
    console.print()


def _show_missed(console: Console, missed: Any, most: int | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from graphopt.debug.figures import counted, scaled

    work = [f"{scaled(missed.cost.flops)} FLOPs"] * bool(missed.cost.flops)
    work += [f"{scaled(missed.cost.bytes, 'B')} moved"] * bool(missed.cost.bytes)
    places = f"{counted(missed.count, 'place')}, {', '.join(work) or 'no work'}"
    console.print(Padding(Text.assemble((missed.reason, "yellow"), f"  ({places})"), (0, 0, 0, 4)))
    _show_lines(console, missed.lines, most and max(1, most // 2), "      ")


def _show_lines(console: Console, lines: Sequence[Line], most: int | None, indent: str) -> None:
    """``6×  diffusers/models/attention.py:97  mid_block.attentions.0  linear_3``, the last two as an example."""
    from rich.padding import Padding
    from rich.text import Text

    for line in lines[:most]:
        place = line.places[0]
        example = ", ".join(filter(None, (place.node, place.module)))
        text = Text.assemble((f"{len(line.places)}× ", "bold"), (line.source or "(no source line)", "cyan"),
                             ("  e.g. " if len(line.places) > 1 else "  "), example)  # fmt: skip
        text.overflow = "fold"
        console.print(Padding(text, (0, 0, 0, len(indent))))
    if most is not None and len(lines) > most:
        console.print(Text(f"{indent}… {len(lines) - most} more source lines; --all shows them", style="dim"))


def _show_saved(console: Console, entry: Explanation) -> None:
    from rich.padding import Padding

    from graphopt.cli._show import stage_changes

    changed = {name: pair for name, pair in entry.stages.items() if pair[0] != pair[1]}
    if changed:
        console.print(Padding(stage_changes(changed, entry.joules), (0, 0, 0, 2)))
        _show_once(console, entry)
    elif entry.fired:
        console.print("  the work of no stage changed by it")


def _show_once(console: Console, entry: Explanation) -> None:
    """What of the step's work is not of every step in the end, and where joules come from."""
    from rich.padding import Padding
    from rich.text import Text

    from graphopt.debug.figures import weights_alone
    from graphopt.energy import WorkEstimate

    was, now = (once.cost for once in entry.once)
    if what := weights_alone((was.flops, now.flops), (was.bytes, now.bytes)):
        console.print(Padding(Text(f"the step: {what}"), (0, 0, 0, 4)))
    if entry.joules:
        console.print(Padding(Text(f"joules are an {WorkEstimate().source}", style="dim"), (0, 0, 0, 4)))
