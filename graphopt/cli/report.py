"""``graphopt report``: what the compiler does to a pipeline."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, out, phase
from graphopt.cli.run import Arguments, Evict, Name, call_values


def report(
    pipeline: Name,
    prompt: Annotated[str, typer.Option(help="The prompt of the sampling run.")] = "a red apple",
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of the run.")] = 4,
    height: Annotated[int | None, typer.Option(min=1, help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="In pixels.")] = None,
    arg: Arguments = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    target: Annotated[str, typer.Option(help="auto, eager, inductor, or a plug-in's.")] = "auto",
    pass_pipeline: Annotated[str | None, typer.Option(help="Passes, such as exact or none.")] = None,
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
    from graphopt.cli._load import call_arguments, check, load
    from graphopt.cli._options import check_names, passes_named, target_named

    values = call_values(arg)
    check_names(target, pass_pipeline)
    check(pipeline, dtype=dtype)
    chosen, passes = target_named(target), passes_named(pass_pipeline)
    pipe = load(pipeline, dtype=dtype)
    takes_prompt = "prompt" in _parameters(pipe)
    call = {"num_inference_steps": steps, "height": height, "width": width, **values}
    if takes_prompt:
        call.setdefault("prompt", prompt)
    arguments = call_arguments(pipe, call)
    import torch

    import graphopt

    graphopt.compile(pipe, target=chosen, pipeline=passes, evict="file" if evict else None)
    with phase("compiling and sampling"), torch.no_grad():
        pipe(**arguments, generator=torch.Generator().manual_seed(0))
    found = graphopt.report(pipe)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from graphopt.cli._show import show_inputs, show_loops, show_modules, show_weights

    out().rule(f"[bold]{pipeline}[/] ({type(pipe).__name__}, {steps} steps)", align="left")
    show_loops(out(), found)
    show_modules(out(), found, full=True)
    show_weights(out(), found)
    show_inputs(out(), found)


def _parameters(pipe: Any) -> Any:
    import inspect

    return inspect.signature(pipe.__call__).parameters
