"""``graphopt bisect``: which pass, and which of its rewrites, spoils the image."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli._app import FAILURE, AsJson, Debug, check_output, out
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
from graphopt.errors import UsageError, nearest


def bisect(
    pipeline: Name,
    metric: Annotated[str, typer.Option(help="psnr, ssim, max (grey levels) or latent (relative).")] = "psnr",
    threshold: Annotated[float | None, typer.Option(help="What is good enough; else the metric's own.")] = None,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    seed: Seed = SEED,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    dtype: Dtype = None,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is found.")] = Path("graphopt-bisect"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the first pass, then the first of its rewrites, that takes the image away from the original's.

    The image of the compiled pipeline (target eager) is compared with the original's, then those of fewer passes, and
    of fewer rewrites, by halving. Writes the images side by side, and a file that reproduces the rewrite by itself.

    Exit code 0 when the image is within the threshold, 1 when it is not.

    For example:

        graphopt bisect emoji-unet

        graphopt bisect emoji-dit --metric max --threshold 1 --steps 10

        graphopt bisect my_module:make_pipeline --metric latent --pass-pipeline exact,my_pass --json
    """
    from graphopt.debug.metrics import METRICS, available

    if metric not in METRICS:
        raise UsageError(f"unknown metric '{metric}'", where="--metric", hint=nearest(metric, METRICS))
    measure = METRICS[metric]
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"the threshold is {threshold}", where="--threshold", hint=f"such as {measure.threshold:g}")
    available(measure)
    request = Request(pipeline, prompt, steps, seed, height, width, tuple(arg or ()), dtype, "eager", pass_pipeline,
                      tuple(one_pass or ()))  # fmt: skip
    check_output(output, folder=True)
    session = request.open()
    from graphopt.cli import _bisect

    found = _bisect.search(session, measure, measure.threshold if threshold is None else threshold)
    if not as_json:
        _bisect.show(out(), session, found)
    files = _bisect.save(session, found, output) if found.fault else {}
    if as_json:
        typer.echo(json.dumps(_bisect.as_dict(session, found, files), indent=2))
    else:
        _bisect.show_files(out(), files)
    if not found.within:
        raise typer.Exit(FAILURE)
