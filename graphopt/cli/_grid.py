"""Pictures in a grid, with captions under them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from graphopt.cli._measure import Pictures

CELL = 128  # pixels: smaller pictures are enlarged to at least this
GAP, LINE, HEAD = 12, 17, 34
INK, PALE, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Column:
    """One picture per cell and what it is called above the grid's first row."""

    pictures: Pictures
    label: str = ""
    smooth: bool = True


def grid(columns: Sequence[Column], captions: Sequence[str], title: str) -> Image.Image:
    """A cell per caption, holding its picture from each of `columns` side by side."""
    count, side = len(captions), max(CELL, max(column.pictures.shape[2] for column in columns))
    height = side * columns[0].pictures.shape[1] // columns[0].pictures.shape[2]
    width, font, small = side * len(columns) + 4 * (len(columns) - 1), typeface(14), typeface(12)
    across = min(count, max(1, round(math.sqrt(count * (1 if len(columns) == 1 else 0.6)))))
    down = math.ceil(count / across)
    texts = [wrapped(caption, font, width) for caption in captions]
    foot = LINE * max(len(lines) for lines in texts) + 6
    labels = LINE + 2 if any(column.label for column in columns) else 0
    sheet_width = max(across * (width + GAP) + GAP, int(font.getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (sheet_width, HEAD + labels + down * (height + foot + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 9), title, INK, font)
    for k, lines in enumerate(texts):
        left, top = GAP + k % across * (width + GAP), HEAD + labels + k // across * (height + foot + GAP)
        for position, column in enumerate(columns):
            x = left + position * (side + 4)
            kind = Image.Resampling.LANCZOS if column.smooth else Image.Resampling.NEAREST
            sheet.paste(picture(column.pictures[k]).resize((side, height), kind), (x, top))
            if k < across and column.label:
                draw.text((x + side / 2, HEAD + labels - 5), column.label, PALE, small, anchor="ms")
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=(225, 225, 225))
        for number, line in enumerate(lines):
            draw.text((left + width / 2, top + height + 16 + number * LINE), line, INK, font, anchor="ms")
    return sheet


def amplified(original: Pictures, compiled: Pictures) -> tuple[Pictures, int]:
    """Absolute differences, black where equal, and the power of two they were multiplied by to become visible."""
    apart = np.abs(original.astype(np.int16) - compiled.astype(np.int16))
    largest = int(apart.max())
    factor = 2 ** int(math.log2(255 // largest)) if largest else 1
    return (apart * factor).clip(0, 255).astype(np.uint8), factor


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).convert("RGB")


def typeface(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in at most two lines of `width` pixels, cut with an ellipsis; names too long are broken behind ``_``."""
    lines = [""]
    for word in _plain(text).split() or [""]:
        space, pieces = " ", [word] if font.getlength(word) <= width else re.split(r"(?<=[_,])|(?={)", word)
        for piece in pieces:
            longer = f"{lines[-1]}{space}{piece}".strip()
            if font.getlength(longer) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(piece)
            space = ""
    if len(lines) > 2:
        lines = [lines[0], f"{lines[1]} ..."]
    return [_cut(line, font, width) for line in lines]


def _plain(text: str) -> str:
    """Without accents and curly quotes, which Pillow's own font lacks: ``piñata`` becomes ``pinata``."""
    letters = unicodedata.normalize("NFKD", text.translate(str.maketrans("‘’“”", "''\"\"")))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(line) > width and len(line) > 4:
        line = f"{line.removesuffix('...')[:-1]}..."
    return line
