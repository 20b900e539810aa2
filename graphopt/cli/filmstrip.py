"""``graphopt filmstrip``: the image after every pass beside the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli._app import AsJson, Debug, check_output, out
from graphopt.cli._request import (
    PROMPT,
    SEED,
    STEPS,
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
)
from graphopt.errors import UsageError


def filmstrip(
    pipeline: Name,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    seed: Seed = SEED,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    dtype: Dtype = None,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture, a .png.")] = Path("filmstrip.png"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw the image after every pass beside the original's, with the difference amplified.

    Samples once per pass that changes anything, compiled (target eager) with it and those before it.

    For example:

        graphopt filmstrip emoji-unet

        graphopt filmstrip emoji-dit --steps 10 --pass-pipeline packed -o packed.png

        graphopt filmstrip emoji-unet --json | jq '.frames[] | {pass, psnr}'
    """
    from graphopt.debug.metrics import METRICS, available

    if output.suffix.lower() != ".png":
        raise UsageError(f"'{output}' is no .png", where="--output", hint=f"-o {output.with_suffix('.png')}")
    available(METRICS["psnr"])
    request = Request(pipeline, prompt, steps, seed, height, width, tuple(arg or ()), dtype, "eager", pass_pipeline,
                      tuple(one_pass or ()))  # fmt: skip
    check_output(output)
    session = request.open()
    from graphopt.cli import _film

    found = _film.shoot(session)
    output.parent.mkdir(parents=True, exist_ok=True)
    _film.strip(found, session.title).save(output)
    if as_json:
        typer.echo(json.dumps(_film.as_dict(session, found, output), indent=2))
    else:
        _film.show(out(), session, found, output)
