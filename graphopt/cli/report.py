"""``graphopt report``: what the compiler does to a pipeline."""

from __future__ import annotations

import json

import typer

from graphopt.cli._app import AsJson, Debug, out
from graphopt.cli._request import (
    PROMPT,
    STEPS,
    TARGET,
    Arguments,
    Dtype,
    Evict,
    Name,
    OnePass,
    PassPipeline,
    Pixels,
    Prompt,
    Request,
    Steps,
    TargetName,
)  # fmt: skip


def report(
    pipeline: Name,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    dtype: Dtype = None,
    target: TargetName = TARGET,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    evict: Evict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what the compiler does to a pipeline: the loop, stages, passes, refusals, weights, memory.

    Compiles the pipeline and runs one short sampling.

    For example:

        graphopt report emoji-unet

        graphopt report path/to/folder --steps 8 --height 512 --width 512

        graphopt report emoji-dit --json | jq '.modules[0].variants[0].passes'
    """
    request = Request(pipeline, prompt, steps, height=height, width=width, arg=tuple(arg or ()), dtype=dtype,
                      target=target, pass_pipeline=pass_pipeline, passes=tuple(one_pass or ()))  # fmt: skip
    session = request.open()
    session.run(evict="file" if evict else None)
    import graphopt

    found = graphopt.report(session.pipe)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from rich.text import Text

    from graphopt.cli._show import show_inputs, show_loops, show_modules, show_weights

    out().rule(Text(session.title, style="bold"), align="left")
    show_loops(out(), found)
    show_modules(out(), found, full=True)
    show_weights(out(), found)
    show_inputs(out(), found)
