"""``graphopt run``: images from any diffusers pipeline, compiled."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, errors, out, phase
from graphopt.cli._request import (
    TARGET,
    WHICH,
    Arguments,
    Dtype,
    Evict,
    OnePass,
    PassPipeline,
    Pixels,
    TargetName,
    call_values,
)
from graphopt.errors import GraphoptError, UsageError

if TYPE_CHECKING:
    from graphopt.cli._from import Start


def run(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help=f"{WHICH} With --from, else the journal's.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeat for more.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; else the pipeline's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; else the pipeline's own.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first image; the next ones count up. 0 if not given.")
    ] = None,
    height: Pixels = None,
    width: Pixels = None,
    count: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 1,
    arg: Arguments = None,
    dtype: Dtype = None,
    target: TargetName = TARGET,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the images.")] = Path("graphopt-run"),
    source: Annotated[
        Path | None, typer.Option("--from", help="A dump of graphopt trace to run in place of the passes up to it.")
    ] = None,
    then: Annotated[
        str | None, typer.Option("--then", help="Passes to go on with after the dump; rest: those of its journal.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Or run the pipeline as it is.")] = True,
    evict: Evict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Generate images with any diffusers pipeline, compiled.

    For example:

        graphopt run emoji-unet --prompt "red apple"

        graphopt run path/to/folder --prompt "a cabin" --count 4 --steps 30 --dtype bfloat16 -o cabins

        graphopt run facebook/DiT-XL-2-256 --arg "class_labels=[207]"

        graphopt run my_module:make_pipeline --prompt "a cabin" --pass my_module:MyPass

        graphopt run --from dumps/018_hoist.py --then rest

    With --from, what is not given is as the journal beside the dump says.
    """
    from graphopt.cli._load import call_arguments, check, load
    from graphopt.cli._options import check_names, passes_named, suits, target_named

    began = _begin(source, then, pipeline, {"--pass-pipeline": pass_pipeline, "--pass": one_pass}, compile=compile)
    if began is None and pipeline is None:
        raise UsageError(
            "there is no PIPELINE", where="graphopt run", hint="graphopt run emoji-unet --prompt 'a red apple'"
        )
    if began is not None:
        pipeline, asked = began.pipeline, began.request.get("prompt")
        prompt = prompt or ([asked] if asked is not None else None)
        steps, seed, dtype = (began.value(*pair) for pair in (("steps", steps), ("seed", seed), ("dtype", dtype)))
        height, width = began.value("height", height), began.value("width", width)
        arg, target = [*began.request.get("arg", ()), *(arg or ())], "eager" if target == "auto" else target
    seed = seed or 0
    wanted = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        **call_values(arg),
    }
    prompts: list[str | None] = [*prompt] if prompt else [None]
    assert pipeline is not None
    check_names(target, pass_pipeline, one_pass or ())
    check(pipeline, {"prompt": prompts[0], **wanted}, dtype=dtype)
    chosen = target_named(target)
    passes = began.passes if began else passes_named(pass_pipeline, one_pass or (), suits(chosen))
    pipe = load(pipeline, dtype=dtype)
    calls = [call_arguments(pipe, {"prompt": text, **wanted}) for text in prompts]
    import torch

    import graphopt

    if compile:
        graphopt.compile(pipe, target=chosen, pipeline=passes, evict="file" if evict else None,
                         observers=began.observers if began else ())  # fmt: skip
    if began and began.warms_up:
        with phase("a first run, which shows what the dump assumes"), torch.no_grad():
            pipe(**calls[0], generator=torch.Generator().manual_seed(seed))
    rows = []
    for k in range(len(calls) * count):
        call, start = calls[k // count], time.perf_counter()
        with phase(f"image {k + 1} of {len(calls) * count}"), torch.no_grad():
            result = pipe(**call, generator=torch.Generator().manual_seed(seed + k))
        seconds = time.perf_counter() - start
        if began:
            began.check()
        output.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(_images(result)):
            path = output / f"{k:04d}{f'_{number}' if number else ''}.png"
            image.save(path)
            rows.append({"file": str(path), "prompt": call.get("prompt"), "seed": seed + k, "seconds": seconds})
    summary = {
        "pipeline": type(pipe).__name__,
        "compiled": compile,
        "from": str(source) if source else None,
        "images": rows,
        "report": graphopt.report(pipe).to_dict() if compile else None,
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _show(rows, graphopt.report(pipe) if compile else None)
        if began:
            errors().print(began.served(), markup=False)


def _begin(
    source: Path | None, then: str | None, pipeline: str | None, passes: dict[str, Any], *, compile: bool
) -> Start | None:
    """The dump to start from, read; None where there is none."""
    if source is None:
        if then is not None:
            raise UsageError("there is no dump to go on from", where="--then", hint="--from DUMP, or --pass-pipeline")
        return None
    for option, named in passes.items():
        if named:
            what = "a dump stands in place of passes; those after it are named by --then"
            raise UsageError(what, where=option, hint=f"--then {named if isinstance(named, str) else ','.join(named)}")
    if not compile:
        raise UsageError("a dump runs compiled", where="--no-compile", hint="leave out --from or --no-compile")
    from graphopt.cli._from import start

    return start(source, then, pipeline)


def _show(rows: list[dict[str, Any]], report: Any) -> None:
    from rich.text import Text

    from graphopt.cli._show import fates
    from graphopt.debug.figures import duration

    for row in rows:
        prompt = f"  “{row['prompt']}”" if row["prompt"] else ""
        out().print(Text.assemble((row["file"], "bold"), f"  {duration(row['seconds'])}{prompt}, seed {row['seed']}"))
    if report:
        first = "the first image includes compiling; " if len(rows) > 1 else "the time includes compiling; "
        errors().print(Text(f"{first}graphopt report shows what the compiler did", style="dim"))
        errors().print(fates(report.modules))


def _images(result: Any) -> list[Any]:
    """PIL images of a pipeline's output; those of videos frame by frame."""
    found = getattr(result, "images", None)
    if found is None:
        found = getattr(result, "frames", None)
    flat = [image for entry in found or [] for image in (entry if isinstance(entry, list) else [entry])]
    if not flat or not all(hasattr(image, "save") for image in flat):
        raise GraphoptError(
            f"the pipeline returned a {type(result).__name__} without pictures",
            hint="graphopt run saves images; from Python, graphopt.compile works for this pipeline as well",
        )
    return flat
