"""``graphopt demo``: a bundled pipeline, original and compiled, in pictures, seconds and joules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli._app import AsJson, Debug, errors, out, phase
from graphopt.cli._options import check_names, passes_named, suits, target_named
from graphopt.cli._request import TARGET, OnePass, PassPipeline, TargetName
from graphopt.errors import UsageError, nearest

CAPTIONS = (  # as the data: mostly people, some flags, hands and faces, a few things
    "man mechanic: dark skin tone", "woman cook: medium-light skin tone",
    "flag: Costa Rica", "person biking: medium-dark skin tone",
    "woman with headscarf: medium skin tone", "man astronaut: medium-light skin tone",
    "couple with heart: woman, man, medium-dark skin tone, light skin tone",
    "woman playing water polo: light skin tone",
    "boy: medium-light skin tone", "rightwards hand: medium skin tone",
    "flag: El Salvador", "man firefighter: dark skin tone",
    "grinning face", "woman walking: light skin tone",
    "mx claus: light skin tone", "red heart",
)  # fmt: skip
BUNDLED = ("emoji-unet", "emoji-dit")


def demo(
    pipeline: Annotated[str, typer.Option(help="emoji-unet, emoji-dit or both.")] = "both",
    captions: Annotated[Path | None, typer.Option(help="Text file with one caption a line.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A caption; repeat for more.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale; above 1 the network sees each image twice.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the first image; the next ones count up.")] = 0,
    images: Annotated[int | None, typer.Option(min=1, help="How many; else one per caption given, or 16.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images generated together.")] = 4,
    target: TargetName = TARGET,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    watts_per_core: Annotated[float | None, typer.Option(help="For energy estimates, where no meter works.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures and report.json.")] = Path(
        "graphopt-demo"
    ),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare a trained pipeline with its compiled self: images, time, energy.

    Both sample the same captions with the same seeds, batch by batch in turns, so that they share
    whatever drifts.

    For each pipeline original.png, compiled.png, difference.png and side_by_side.png are saved, and all numbers in
    report.json.

    For example:

        graphopt demo

        graphopt demo --pipeline emoji-dit --prompt "red apple" --prompt "cat face" --steps 10

        graphopt demo --captions my_captions.txt --batch 8 --json
    """
    texts = _captions(captions, prompt, images)
    if pipeline != "both" and pipeline not in BUNDLED:
        hint = nearest(pipeline, (*BUNDLED, "both"))
        raise UsageError(f"there is no demonstration of '{pipeline}'", where="--pipeline", hint=hint)
    names = BUNDLED if pipeline == "both" else (pipeline,)
    settings = {"steps": steps, "guidance_scale": guidance, "seed": seed, "batch": batch, "target": target,
                "pass_pipeline": pass_pipeline, "pass": one_pass or [], "captions": texts}  # fmt: skip
    check_names(target, pass_pipeline, one_pass or ())
    chosen = target_named(target)
    passes = passes_named(pass_pipeline, one_pass or (), suits(chosen))
    with phase("loading torch"):
        from graphopt.cli import _demo

    results = []
    for name in names:
        result = _demo.compare(name, texts, output / name, settings, watts_per_core, chosen, passes)
        results.append(result)
        if not as_json:
            _demo.show(out(), result)
    path = output / "report.json"
    text = json.dumps(_demo.as_dict(settings, results), indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        errors().print(f"[dim]all numbers: {path}[/]")


def _captions(file: Path | None, prompts: list[str] | None, images: int | None) -> list[str]:
    """One caption per image."""
    if file and prompts:
        raise UsageError("give --captions or --prompt, not both")
    texts = list(prompts or CAPTIONS)
    if file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"the captions cannot be read: {reason}", where=str(file)) from error
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise UsageError("the file has no captions", where=str(file), hint="one caption a line")
    if any(not text.strip() for text in texts):
        raise UsageError("a prompt is empty", where="--prompt")
    count = images or (len(texts) if file or prompts else 16)
    if images and (file or prompts) and images < len(texts):
        raise UsageError(
            f"{len(texts)} captions, but only {images} images", where="--images", hint=f"--images {len(texts)} or more"
        )
    return [texts[k % len(texts)] for k in range(count)]
