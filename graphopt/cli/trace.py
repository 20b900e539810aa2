"""``graphopt trace``: the program after each pass, as files that run, can be edited and fed back."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, out, phase
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
    Session,
    Steps,
    Watched,
    watched,
)  # fmt: skip

if TYPE_CHECKING:
    from graphopt.debug.history import Compilation


def trace(
    pipeline: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the dumps.")] = Path("graphopt-trace"),
    module: ModuleName = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds something else.")] = False,
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
    """Write the program as captured and after each pass, as Python that runs and can be edited.

    Samples once. 000_captured.py is the network as it was captured, each further file the same after one more pass.

    journal.json says what each pass did, where it did not fire and why, and how to make it all again.

    For example:

        graphopt trace emoji-unet -o dumps

        python dumps/000_captured.py

        graphopt diff dumps/003_simplify_identities.py dumps/004_merge_common.py

        graphopt run --from dumps/004_merge_common.py

        graphopt trace emoji-dit --module vae.decoder --pass-pipeline bitwise -o decoder
    """
    request = Request(pipeline, prompt, steps, seed, height, width, tuple(arg or ()), dtype, watched(target),
                      pass_pipeline, tuple(one_pass or ()))  # fmt: skip
    from graphopt.debug import journal as journals

    journals.check_folder(output, force=force)
    from graphopt.cli._history import compilation

    session = request.open()
    found = compilation(session, module)
    with phase("writing dumps"):
        journal = journals.write(found, output, about(session, found))
    if as_json:
        typer.echo(json.dumps({"folder": str(output), **journal}, indent=2))
        return
    _show(journal, output, request, module)


def about(session: Session, found: Compilation) -> dict[str, Any]:
    """How to make a trace again, without anything that differs between machines."""
    from importlib.metadata import version

    import graphopt
    from graphopt.plugins import spelled

    request = session.request
    asked = vars(request) | {"arg": list(request.arg), "prompt": session.arguments.get("prompt")}
    run = {name: asked[name] for name in ("prompt", "steps", "seed", "height", "width", "arg", "dtype")}
    return {
        "graphopt": graphopt.__version__,
        "torch": version("torch").partition("+")[0],
        "pipeline": request.pipeline,
        "request": run,
        "target": request.target,
        "passes": [spelled(shot.pass_) for shot in found.snapshots if shot.pass_ is not None],
    }


def _show(journal: dict[str, Any], folder: Path, request: Request, module: str | None) -> None:
    from rich.text import Text

    from graphopt.cli._options import asked_for
    from graphopt.cli._show import remark, table, work_after
    from graphopt.debug.diff import MARKS
    from graphopt.debug.figures import scaled, weights_alone
    from graphopt.debug.journal import step_of

    console, entries = out(), journal["dumps"]
    made = table(f"{journal['module']}: the step after each pass", "dump", "fired", "−", "+", "~", "moved",
                 "nodes", "FLOPs", "bytes")  # fmt: skip
    before = step_of(entries[0])
    for entry in entries:
        now, changes = step_of(entry), entry["changes"]
        row = [entry["file"].removesuffix(".py")]
        if changes is None:
            row += ["", "", "", "", "", str(now["nodes"]), scaled(now["flops"]), scaled(now["bytes"], "B")]
        else:
            row.append("[red]failed[/]" if entry["error"] else _dot(len(entry["fired"])))
            row += [_dot(changes[kind]) for kind in MARKS]
            row += work_after(*((before[key], now[key]) for key in ("nodes", "flops", "bytes")))
        made.add_row(*row)
        before = now
    console.print(made)
    for entry in entries:
        if entry["error"]:
            remark(console, Text(f"{entry['name']} was rolled back: {entry['error'].splitlines()[0]}", style="red"))
    for was, entry in pairwise(entry["weights_alone"] | {"name": entry["name"]} for entry in entries):
        if what := weights_alone((was["flops"], entry["flops"]), (was["bytes"], entry["bytes"])):
            remark(console, Text.assemble(f"{entry['name']}: ", (what, "dim")))
    for relation in journal["relations"]:
        remark(console, Text(f"assumed, and checked at every call: {relation}", style="dim"))
    remark(console, "[dim]− removed, + added, ~ given other arguments, moved to an earlier stage[/]")
    # The user's own pass where one was asked for, else the one that did most.
    asked = asked_for(request.passes)
    own = [entry for entry in entries[1:] if entry["name"].partition("{")[0] in asked]
    busiest = max(own or entries[1:], key=lambda entry: len(entry["fired"]), default=entries[0])
    first, last = folder / entries[0]["file"], folder / busiest["file"]
    again = [request.pipeline, busiest["name"].partition("{")[0], *(["--module", module] if module else [])]
    console.print()
    for command, what in (
        (["python", last], "runs it on seeded inputs"),
        (["graphopt", "diff", first, last], "what changed up to there"),
        (["graphopt", "run", "--from", last], "images with that program, edited or not"),
        (["graphopt", "explain", *again, *request.options()], "where it fired, and why not elsewhere"),
    )[: None if entries[1:] else 3]:
        text = shlex.join(map(str, command))
        console.print(Text.assemble("  ", (text, "bold"), (f"  # {what}", "dim")), soft_wrap=True)


def _dot(count: int) -> str:
    return str(count) if count else "·"
