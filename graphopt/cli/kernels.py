"""``graphopt kernels``: the code that the TVM target generated for a step, kernel by kernel, with times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, note, out, phase
from graphopt.cli._history import ModuleName, check_module
from graphopt.cli._recorded import recorded
from graphopt.cli._request import (
    PROMPT,
    SEED,
    STEPS,
    Arguments,
    Name,
    OnePass,
    PassPipeline,
    Pixels,
    Prompt,
    Request,
    Seed,
    Session,
    Steps,
)  # fmt: skip
from graphopt.errors import UsageError, nearest

if TYPE_CHECKING:
    from graphopt.targets.tvm.timing import KernelTime

# Bytes that each thread reads to measure a memory.
MEMORIES = {"first cache": 16 << 10, "second cache": 256 << 10, "main memory": 128 << 20}

Repeats = Annotated[int, typer.Option(min=1, help="How often each kernel is timed.")]
Kernel = Annotated[str | None, typer.Option(metavar="NAME", help="One kernel, and with --source its code.")]
Roofline = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the kernels against this machine's limits: svg, png or pdf.")
]
Source = Annotated[str | None, typer.Option(metavar="tir|ll|asm", help="Print code: TensorIR, LLVM's or assembly.")]


def kernels(
    pipeline: Name,
    module: ModuleName = None,
    kernel: Kernel = None,
    source: Source = None,
    repeats: Repeats = 10,
    roofline: Roofline = None,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    seed: Seed = SEED,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the kernels that the TVM target generates for a step: time, FLOP/s, share of this machine's peak, bytes/s.

    Compiles the pipeline for the target tvm, samples, and times each kernel on what it is given in a step.

    For example:

        graphopt kernels emoji-dit

        graphopt kernels emoji-unet --module vae.decoder --json | jq '.kernels[0]'

        graphopt kernels emoji-dit --kernel linear_5 --source tir

        graphopt kernels emoji-dit --roofline step.svg
    """
    if source not in (None, "tir", "ll", "asm"):
        raise UsageError(f"there is no source '{source}'", where="--source", hint="tir, ll or asm")
    if roofline is not None:
        from graphopt.debug.roofline import check_file

        check_file(roofline)
    request = Request(pipeline, prompt, steps, seed, height, width, tuple(arg or ()), None,
                      "tvm", pass_pipeline, tuple(one_pass or ()))  # fmt: skip
    session = request.open()
    check_module(session, module)
    session.compile()
    with phase("compiling and sampling"):
        session.sample()
    name, others, stages = recorded(session, module)
    from graphopt.targets.tvm.running import Code
    from graphopt.targets.tvm.timing import measure, peak

    step = stages[-1]
    if not isinstance(step.kernel, Code):
        raise UsageError(f"the step of {name} runs on {step.target}", where="--module",
                         hint="graphopt report PIPELINE --target tvm says why")  # fmt: skip
    if source is not None:
        typer.echo(step.kernel.source(source, _named(step.kernel, kernel) if kernel else None))
        return
    with phase(f"timing the kernels of {name}"):
        found = [entry for entry in measure(step.kernel, step.arguments, repeats) if kernel in (None, entry.name)]
        reached = peak()
    if kernel is not None and not found:
        _named(step.kernel, kernel)
    if roofline is not None:
        _draw(session, name, found, reached, roofline)
    left = [str(node.target) for node in step.kernel.builder.plan.left]
    if as_json:
        rows = [entry.to_dict(reached) for entry in found]
        typer.echo(
            json.dumps({"module": name, "peak_flops_per_second": reached, "torch": left, "kernels": rows}, indent=2)
        )
        return
    _show(session, name, found, reached, left)
    if others and module is None:
        note(f"--module takes the others, too: {', '.join(others)}")


def _named(code: Any, name: str) -> str:
    known = code.names()
    if name not in known:
        raise UsageError(f"there is no kernel '{name}'", where="--kernel", hint=nearest(name, known))
    return name


def _draw(session: Session, name: str, found: Sequence[KernelTime], reached: float, file: Path) -> None:
    from graphopt.debug.roofline import roofline
    from graphopt.targets.tvm.timing import bandwidth

    with phase("measuring how fast memory is"):
        memories = {what: bandwidth(size) for what, size in MEMORIES.items()}
    roofline(found, reached, memories, file, f"{session.title}: {name}")
    note(f"wrote {file}")


def _show(session: Session, name: str, found: Sequence[KernelTime], reached: float, left: Sequence[str]) -> None:
    from collections import Counter

    from rich.text import Text

    from graphopt.cli._show import duration, remark, table
    from graphopt.debug.figures import scaled

    console, total = out(), sum(entry.seconds for entry in found)
    console.rule(Text(f"{session.title}: {name}", style="bold"), align="left")
    remark(console, Text(f"Peak of this machine, products and sums in registers alone: {scaled(reached, 'FLOP/s')}."))
    rows = table(f"Kernels of the step, {duration(total)}", "kernel", "calls", "time", "share", "FLOP/s", "of peak",
                 "B/s", "computes", left=("computes",))  # fmt: skip
    for entry in found:
        speed = entry.flops / entry.seconds
        rows.add_row(
            entry.name,
            str(entry.calls),
            duration(entry.seconds),
            f"{entry.seconds / total:.1%}",
            scaled(speed) if entry.flops else "·",
            f"{speed / reached:.0%}" if entry.flops else "·",
            scaled(entry.bytes / entry.seconds) if entry.computes else "·",
            entry.computes or "(lays out what the next kernel reads)",
        )
    console.print(rows)
    if left:
        some = ", ".join(f"{target} × {count}" for target, count in Counter(left).most_common())
        remark(console, Text(f"Left to torch: {some}."))
