"""Captioned emoji without a download: Noto's colour glyphs, named and grouped by Unicode's own table.

Both files are Debian packages. `emoji-test.txt` gives every fully-qualified emoji its name (the caption) and its
subgroup (the class); Pillow with libraqm draws the glyph, sequences joined by a zero-width joiner included.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

APT_GET = "apt-get install fonts-noto-color-emoji unicode-data libraqm0"
GLYPH_SIZE = 109  # the one size at which Noto Color Emoji holds its bitmaps
CANVAS = 136  # pixels: the bitmap's width
WIDEST = 140  # pixels: a wider text is a sequence for which this font has no single glyph
ROW = re.compile(r"^([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.*)$")


class MissingData(RuntimeError):
    """A Debian package that the pictures come from is not installed."""


@dataclass(frozen=True)
class Emoji:
    """The rendered data set: `pictures[i]` shows `captions[i]`, of the class `subgroups[labels[i]]`.

    `pictures` is float32 [n, 3, size, size] in [-1, 1] on white; `labels` is int64 [n]; `names` lists the classes.
    """

    pictures: torch.Tensor
    captions: list[str]
    labels: torch.Tensor
    names: list[str]


def packaged(package: str, name: str) -> Path:
    """The file called `name` that the Debian package `package` installed; `MissingData` says how to get it."""
    try:
        listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True).stdout
        return next(Path(f) for f in listing.split() if Path(f).name == name)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        message = f"{name} comes from the Debian package {package}, which is not installed: {APT_GET}"
        raise MissingData(message) from error


def render(size: int = 64, shift: tuple[int, int] = (0, 0)) -> Emoji:
    """Draw every emoji at `size` × `size` pixels, moved by `shift` pixels of the 136-pixel glyph canvas."""
    if not features.check("raqm"):
        raise MissingData(f"Pillow cannot find libraqm, without which joined emoji fall apart: {APT_GET}")
    font = ImageFont.truetype(str(packaged("fonts-noto-color-emoji", "NotoColorEmoji.ttf")), GLYPH_SIZE)
    pictures: list[np.ndarray] = []
    captions: list[str] = []
    subgroups: list[str] = []
    subgroup = ""
    for line in packaged("unicode-data", "emoji-test.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.split(":")[1].strip()
        row = ROW.match(line)
        if row is None:
            continue
        text = "".join(chr(int(code, 16)) for code in row[1].split())
        if font.getlength(text) > WIDEST:
            continue
        canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
        ImageDraw.Draw(canvas).text((shift[0], 4 + shift[1]), text, font=font, embedded_color=True)
        pictures.append(np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS)))
        captions.append(row[2])
        subgroups.append(subgroup)
    names = sorted(set(subgroups))
    labels = torch.tensor([names.index(s) for s in subgroups])
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Emoji(stacked, captions, labels, names)


if __name__ == "__main__":
    data = render()
    print(f"{len(data.captions)} pictures in {len(data.names)} subgroups, e.g. {data.captions[0]!r}")
