"""Measure a pipeline: draw 500 captions of the data, generate, and let the judge answer.

    python evaluate.py ../../graphopt/models/emoji-unet --grid ../../docs/images/emoji-unet.png
    python evaluate.py ../../graphopt/models/emoji-unet --sweep 2 3 4 5     # the guidance scale, on other captions

Prints subgroup accuracy, caption retrieval and the Fréchet distance; writes them to FOLDER/evaluation.json. Every
picture has a generator of its own, so that the batch size changes nothing but rounding.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from tqdm import tqdm

import build
from data import Emoji, render
from judge import Judge, embed, frechet, load, verdict

SEED = 0
COUNT = 500
GUIDANCE = 3.0  # of 3, 4 and 5 the lowest Fréchet distance on 100 other captions, for both pipelines
STEPS = 50
GAP = 2  # white pixels around each picture of a grid


def chosen_rows(n: int, count: int, other: bool = False) -> torch.Tensor:
    """The rows of the captions to draw; `other` ones are never among the first `COUNT`, which are reported."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    return order[COUNT : COUNT + count] if other else order[:count]


@torch.no_grad()
def generate(
    pipeline: DiffusionPipeline, captions: list[str], guidance: float, steps: int, batch: int, bf16: bool
) -> torch.Tensor:
    """Pictures [n, 3, 64, 64] in [-1, 1] of the captions, rounded to 8 bits; picture i has the seed `SEED + i`."""
    options: dict[str, Any] = {}
    if isinstance(pipeline, PixArtAlphaPipeline):
        options["use_resolution_binning"] = False  # its tables start at 256 pixels: 64 would be refused
        options["max_sequence_length"] = build.MAX_TOKENS  # the default, 120, adds masked padding only
    pictures = []
    for i in tqdm(range(0, len(captions), batch), unit="batch"):
        prompts = captions[i : i + batch]
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            result = pipeline(
                prompts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(SEED + i + j) for j in range(len(prompts))],
                output_type="pt",
                **options,
            )
        pictures.append((result.images.float() * 255).round() / 127.5 - 1)
    return torch.cat(pictures)


def figures(judge: Judge, data: Emoji, pictures: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
    """What the judge says about pictures generated for the captions of `rows`."""
    features, real = embed(judge, pictures), embed(judge, data.pictures)
    result = asdict(verdict(judge, features, rows, data.labels[rows], data.captions))
    result["frechet_distance"] = frechet(features, real)
    result["frechet_distance_of_the_real_pictures"] = frechet(real[rows], real)  # what so few pictures cost by chance
    return {key: round(value, 4) for key, value in result.items()}


def save_grid(pictures: torch.Tensor, captions: list[str], path: Path, columns: int = 8) -> None:
    """Save the pictures row by row as a PNG and the captions, one a line, as a text file beside it."""
    rows = len(pictures) // columns
    cells = torch.nn.functional.pad(pictures[: rows * columns], (GAP,) * 4, value=1.0)
    side = cells.shape[-1]
    grid = cells.view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((grid + 1) * 127.5).round().byte().numpy()).save(path, optimize=True)
    path.with_suffix(".txt").write_text("\n".join(captions[: rows * columns]) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line, generate and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT, help="captions; evaluation.json is written for all 500")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, help="default: the value that a sweep chose")
    parser.add_argument("--sweep", type=float, nargs="+", help="guidance scales to compare on other captions")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--bf16", action="store_true", help="autocast: faster, for a look during training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grid", type=Path, help="where the PNG of the first 64 pictures goes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    diffusers_logging.disable_progress_bar()
    pipeline = DiffusionPipeline.from_pretrained(arguments.folder)
    pipeline.set_progress_bar_config(disable=True)
    data, judge, name = render(), load(), type(pipeline).__name__
    rows = chosen_rows(len(data.captions), arguments.count, other=bool(arguments.sweep))
    captions = [data.captions[i] for i in rows.tolist()]
    for guidance in arguments.sweep or [arguments.guidance or GUIDANCE]:
        start = time.monotonic()
        pictures = generate(pipeline, captions, guidance, arguments.steps, arguments.batch, arguments.bf16)
        result: dict[str, Any] = {
            "pipeline": name,
            "captions": len(captions),
            "guidance_scale": guidance,
            "scheduler": f"{type(pipeline.scheduler).__name__}, {arguments.steps} steps",
            "precision": "bfloat16 autocast" if arguments.bf16 else "float32",
            **figures(judge, data, pictures, rows),
            "seconds": round(time.monotonic() - start),
        }
        print(json.dumps(result, indent=2), flush=True)
        if arguments.grid:
            save_grid(pictures[:64], captions[:64], arguments.grid)
        if not arguments.sweep and not arguments.bf16 and arguments.count == COUNT:
            (arguments.folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
