"""``graphopt graph``: the graph of a module, before and after every pass."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, out
from graphopt.cli._history import ModuleName, check_module, errors_of, newest
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
from graphopt.debug.viz import FORMATS
from graphopt.errors import GraphoptError, UsageError, nearest

if TYPE_CHECKING:
    from graphopt.debug.history import Compilation, History

_STAGES = ("weights", "request", "schedule", "request_schedule", "common", "step")  # ir.stages has them, with torch
_PICTURES = ("svg", "png", "dot")
_PRINTED = ("json", "dot", "explorer")  # to standard output, unless a file is named

Stage = Annotated[str | None, typer.Option(help=f"To show alone: {', '.join(_STAGES)}.")]
After = Annotated[str | None, typer.Option(metavar="PASS", help="To begin with: its name or number; 0 as captured.")]
Format = Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; else by the ending of FILE, or html.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Else graphopt-graph.html; without --json, text is printed."),
]
Depth = Annotated[int | None, typer.Option(min=0, help="Levels of submodules in a picture (svg, png, dot); else 2.")]
Compare = Annotated[bool, typer.Option("--compare", help="A picture of what the pass of --after did.")]
MeasureError = Annotated[
    bool,
    typer.Option("--measure-error", help="Sample once more; how far each value is off the original's (html, json)."),
]
OpenExplorer = Annotated[bool, typer.Option("--open-explorer", help="Start Model Explorer, where it is installed.")]


def graph(
    pipeline: Name,
    module: ModuleName = None,
    stage: Stage = None,
    after: After = None,
    format: Format = None,
    output: Output = None,
    depth: Depth = None,
    compare: Compare = False,
    measure_error: MeasureError = False,
    open_explorer: OpenExplorer = False,
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
    """Show the graph of a module before and after every pass: what changed, what it costs, and why not more.

    Compiles the pipeline, runs one short sampling, and writes one file: by default a page that works offline.

    Costs per image are counted for the steps of that run.

    For example:

        graphopt graph emoji-unet

        graphopt graph emoji-dit --after hoist --steps 20 -o dit.html

        graphopt graph emoji-unet --module vae.decoder --format json | jq '.passes[-1].stages'

        graphopt graph emoji-unet --after hoist --compare -o hoist.svg

        graphopt graph emoji-unet --measure-error -o unet.html
    """
    chosen = _format("explorer" if open_explorer else format, output)
    if stage is not None and stage not in _STAGES:
        raise UsageError(f"unknown stage '{stage}'", where="--stage", hint=nearest(stage, _STAGES))
    _check_options(chosen, {"--depth": depth is not None, "--compare": compare}, _PICTURES)
    _check_options(chosen, {"--measure-error": measure_error}, ("html", "json"))
    _check_options(chosen, {"--stage": stage is not None}, tuple(name for name in FORMATS if name != "explorer"))
    if open_explorer and format not in (None, "explorer"):
        raise UsageError(f"Model Explorer cannot open {format}", where="--format", hint="leave --format out")
    if output is not None and output.expanduser().is_dir():
        raise UsageError("this is a folder", where=str(output), hint=f"name a file: {output / f'graph.{chosen}'}")
    if chosen in ("svg", "png"):
        from graphopt.debug.viz.dot import available

        available(chosen)
    if open_explorer and importlib.util.find_spec("model_explorer") is None:
        hint = "pip install 'graphopt[explorer]', or --format explorer -o FILE"
        raise UsageError("Model Explorer is not installed", where="--open-explorer", hint=hint)
    request = Request(pipeline, prompt, steps, seed, height=height, width=width, arg=tuple(arg or ()), dtype=dtype,
                      target=watched(target), pass_pipeline=pass_pipeline, passes=tuple(one_pass or ()))  # fmt: skip
    session = request.open()
    check_module(session, module)
    number = None if after is None else _number(after, session)
    if compare and number == 0:
        raise UsageError("there is nothing before the captured program", where="--compare", hint="--after PASS")
    from graphopt.debug.history import History

    history = History()
    session.run(observers=[history])
    compilation = _chosen(module, session, history)
    from graphopt.debug.viz.model import View

    calls = _calls(session, compilation.name)
    off = errors_of(session, compilation) if measure_error else None
    view = View(session.title, steps, calls, stage, number, 2 if depth is None else depth, compare, off)
    file = (output or Path(f"graphopt-graph.{'json' if open_explorer else chosen}")).expanduser()
    if open_explorer:
        file.parent.mkdir(parents=True, exist_ok=True)
        _open_explorer(compilation, file, number, as_json=as_json)
        return
    made = FORMATS[chosen](compilation, view)
    if output is None and chosen in _PRINTED and not as_json:
        sys.stdout.buffer.write(made)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(made)
    about = _about(compilation, file, chosen)
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    from graphopt.debug.figures import scaled

    text = f"{file}: {about['module']}, {about['nodes']} nodes, {about['passes']} passes, {scaled(len(made), 'B')}"
    out().print(text, markup=False, soft_wrap=True)


def _about(compilation: Compilation, file: Path, format: str) -> dict[str, Any]:
    return {"file": str(file), "format": format, "bytes": file.stat().st_size, "module": compilation.name,
            "passes": len(compilation.snapshots) - 1, "nodes": len(compilation.result.nodes)}  # fmt: skip


def _open_explorer(compilation: Compilation, file: Path, number: int | None, *, as_json: bool) -> None:
    """Write the files of Model Explorer, and start it on them; what it has to say goes to stderr."""
    from graphopt.debug.viz.explorer import open_explorer, write

    written = write(compilation, file, (0, -1 if number is None else number))
    if as_json:
        typer.echo(json.dumps(_about(compilation, file, "explorer"), indent=2))
        sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        open_explorer(written[0], written[1:])


def _format(name: str | None, output: Path | None) -> str:
    """The format that was asked for, by name or by the ending of the file."""
    asked = name or (output.suffix.removeprefix(".").lower() if output and output.suffix else "html")
    if asked not in FORMATS:
        where = "--format" if name else str(output)
        raise UsageError(f"unknown format '{asked}'", where=where, hint=nearest(asked, FORMATS))
    return asked


def _check_options(chosen: str, given: dict[str, bool], formats: tuple[str, ...]) -> None:
    """Raise UsageError for an option that says nothing to the chosen format."""
    for name in (name for name, is_given in given.items() if is_given and chosen not in formats):
        raise UsageError(f"{name} says nothing to {chosen}", where=name, hint=f"--format {', '.join(formats)}")


def _number(after: str, session: Session) -> int:
    """Where in the pipeline the pass called `after` stands, counting from 1."""
    from graphopt.debug.viz.fold import position
    from graphopt.ir.rewrite import spell

    return position(after, [spell(pass_) for pass_ in session.passes], "--after")


def _chosen(module: str | None, session: Session, history: History) -> Compilation:
    """The newest compilation of the module that was asked for. Raises UsageError where there is no such module."""
    if not history.compilations:
        hint = f"graphopt report {session.request.pipeline} says why"
        raise GraphoptError("nothing was compiled", where=session.title, hint=hint)
    return newest(history, module, session)


def _calls(session: Session, name: str) -> int:
    """How often a module was called in the run."""
    import graphopt

    return max(1, sum(entry.calls for entry in graphopt.report(session.pipe).modules if entry.name == name))
