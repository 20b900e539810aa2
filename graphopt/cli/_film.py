"""What `graphopt filmstrip` does, once torch may be imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from graphopt.cli._app import errors
from graphopt.cli._grid import CELL, GAP, HEAD, INK, LINE, PALE, PAPER, picture, typeface, wrapped
from graphopt.cli._measure import Pictures
from graphopt.cli._pictures import apart, factor, sampler
from graphopt.cli._request import Session
from graphopt.cli._show import remark, table
from graphopt.debug.bisect import Run
from graphopt.debug.film import Film, Frame, film
from graphopt.debug.metrics import METRICS, levels

_LARGEST = 256  # pixels of a picture in the strip
_PSNR = METRICS["psnr"]
_ACROSS = 7  # frames side by side, at most


def shoot(session: Session) -> Film:
    """Sample once per pass, saying on stderr what each run gave."""
    passes = session.passes
    errors().print(Text(f"{session.title}: {len(passes)} passes"))

    def say(number: int, of: int, run: Run) -> None:
        errors().print(Text(f"run {number} of {of}: {run.what}: {run.text(_PSNR, named=False)}"))

    return film(sampler(session), passes, on_run=say)


# -- the picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A column of the strip: two lines of text, the image and its difference, None where there is none."""

    name: str
    text: str
    image: Pictures | None
    apart: Pictures | None


def strip(found: Film, title: str) -> Image.Image:
    """The original, then a column per frame: its image, and under it the difference, all amplified by one factor.

    Of several images that were sampled together, the first.
    """
    original = found.original[:1]
    shown = [None if (got := frame.run.result) is None or got.shape != found.original.shape else got[:1]
             for frame in found.frames]  # fmt: skip
    known = [image for image in shown if image is not None]
    off, exponent = apart(np.concatenate([original] * (1 + len(known))), np.concatenate([original, *known]))
    differences = iter(off[1:, None])
    cells = [_Cell("original", "", levels(original), None)]
    for frame, image in zip(found.frames, shown, strict=True):
        pair = (None, None) if image is None else (levels(image), next(differences))
        cells.append(_Cell(frame.name, frame.run.text(_PSNR, named=False), *pair))
    title = f"{title}: the image after each pass; below it |image - original| x {factor(exponent)}"
    return _sheet(cells, title, levels(original))


def _sheet(cells: list[_Cell], title: str, original: Pictures) -> Image.Image:
    """Cells in rows. Pictures are enlarged to `CELL` pixels, and reduced to `_LARGEST`."""
    tall, wide = original.shape[1:3]
    width = min(max(CELL, wide), _LARGEST)
    height, (name, small) = round(width * tall / wide), (typeface(13), typeface(12))
    rows = math.ceil(len(cells) / _ACROSS)
    across = math.ceil(len(cells) / rows)
    texts = [wrapped(cell.name, name, width) for cell in cells]
    head = LINE * max(map(len, texts)) + LINE + 6
    cell_height = head + 2 * height + 4 + GAP
    sheet_width = max(across * (width + GAP) + GAP, int(typeface(14).getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (sheet_width, HEAD + rows * cell_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 9), title, INK, typeface(14))
    for k, (cell, lines) in enumerate(zip(cells, texts, strict=True)):
        left, top = GAP + k % across * (width + GAP), HEAD + k // across * cell_height
        for number, line in enumerate([*lines, *wrapped(cell.text, small, width)[:1]]):
            ink, kind = (INK, name) if number < len(lines) else (PALE, small)
            draw.text((left + width / 2, top + 14 + number * LINE), line, ink, kind, anchor="ms")
        for part, (pictures, smooth) in enumerate(((cell.image, True), (cell.apart, False))):
            at = (left, top + head + part * (height + 4))
            if pictures is not None:
                enlarged = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
                how = enlarged if wide <= width else Image.Resampling.BOX
                sheet.paste(picture(pictures[0]).resize((width, height), how), at)
                draw.rectangle((at[0] - 1, at[1] - 1, at[0] + width, at[1] + height), outline=(225, 225, 225))
            elif part == 0:
                draw.rectangle((*at, at[0] + width - 1, at[1] + height - 1), outline=PALE)
                draw.text((at[0] + width / 2, at[1] + height / 2), "no image", PALE, small, anchor="mm")
    return sheet


# -- numbers ---------------------------------------------------------------------------------------------------------


def show(console: Console, session: Session, found: Film, file: Path) -> None:
    """A row per frame, and what has none."""
    console.print(Text(session.title, style="bold"))
    rows = table("", "pass", "fired", "psnr", "largest difference")
    for frame in found.frames:
        largest = "·" if frame.largest is None else f"{frame.largest} of 255" if frame.largest else "0"
        rows.add_row(
            frame.name, str(frame.fired) if frame.position else "·", frame.run.text(_PSNR, named=False), largest
        )
    console.print(rows)
    remark(console, "[dim]Fired: in all modules of the pipeline together.[/]")
    for name, module, why in found.rolled_back:
        remark(console, Text.assemble((name, "bold"), f" was rolled back in {module}: {why.splitlines()[0]}"))
    for note in found.notes:
        remark(console, Text(note.splitlines()[0], style="dim"))
    if found.still:
        remark(console, Text(f"Never fired, and left out: {', '.join(found.still)}.", style="dim"))
    console.print(Padding(Text(f"Picture: {file}"), (0, 0, 0, 2)))


def as_dict(session: Session, found: Film, file: Path) -> dict[str, Any]:
    """``--json``: psnr in dB, null where there is no image and where it equals the original's (then ``equal``)."""
    return {
        "pipeline": session.request.pipeline,
        "picture": str(file),
        "frames": [_frame(frame) for frame in found.frames],
        "never_fired": list(found.still),
        "rolled_back": [{"pass": name, "module": module, "error": why} for name, module, why in found.rolled_back],
        "notes": list(found.notes),
    }


def _frame(frame: Frame) -> dict[str, Any]:
    value = frame.run.value
    finite = value is not None and math.isfinite(value)
    return {"position": frame.position, "pass": frame.name if frame.position else None, "fired": frame.fired,
            "psnr": value if finite else None, "equal": value is not None and not finite,
            "largest_grey_levels": frame.largest, "trouble": frame.run.trouble}  # fmt: skip
