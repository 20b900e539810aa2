"""Names beside the points of a picture, each where it covers no other name, point or text."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RADII = (12, 20, 30, 42, 56, 72, 90, 110)  # distances that are tried, in typographic points
_ANGLES = 16
_SIZE = 7  # of letters


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


def place(
    size: tuple[float, float], point: tuple[float, float], taken: Sequence[Box], inside: Box, scale: float = 1.0
) -> Box:
    """Where a name of this size goes: the place nearest to its point, of those that overlap `taken` least.

    Parameters
    ----------
    inside : what it should not reach out of.
    scale : pixels of a typographic point.
    """
    width, height = size

    def cost(candidate: tuple[float, Box]) -> tuple[float, float]:
        distance, box = candidate
        return sum(box.overlap(other) for other in taken) + box.area - box.overlap(inside), distance

    candidates = []
    for radius in _RADII:
        for k in range(_ANGLES):
            x, y = math.cos(2 * math.pi * k / _ANGLES), math.sin(2 * math.pi * k / _ANGLES)
            # The middle of the name: as far from the point as its own half is long in that direction, and the radius.
            at = point[0] + x * (radius * scale + width / 2), point[1] + y * (radius * scale + height / 2)
            box = Box(at[0] - width / 2, at[1] - height / 2, at[0] + width / 2, at[1] + height / 2)
            candidates.append((radius, box))
    return min(candidates, key=cost)[1]


def label(
    figure: Any, axes: Any, names: Sequence[str], points: Sequence[tuple[float, float]],
    dots: Sequence[tuple[tuple[float, float], float]],
) -> None:  # fmt: skip
    """Write a name beside each point, with a line to it.

    Parameters
    ----------
    points : of the names, in the units of `axes`.
    dots : all that are drawn, with their areas in square points.
    """
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)  # which measures texts
    figure.draw_without_rendering()
    scale = figure.dpi / 72

    def pixels(point: tuple[float, float]) -> tuple[float, float]:
        x, y = axes.transData.transform(point)
        return float(x), float(y)

    def box(artist: Any) -> Box:
        found = artist.get_window_extent()
        return Box(found.x0, found.y0, found.x1, found.y1)

    taken = [box(artist) for artist in (*axes.texts, *[axes.get_legend()] * bool(axes.get_legend()))]
    for dot, area in dots:
        (x, y), half = pixels(dot), scale * math.sqrt(area / math.pi)
        taken.append(Box(x - half, y - half, x + half, y + half))
    inside = box(axes)
    for name, point in zip(names, points, strict=True):
        text = axes.annotate(
            name, point, (0, 0), textcoords="offset points", fontsize=_SIZE, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.3", "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip
        text.set_in_layout(False)
        extent = box(text)
        size, at = (extent.right - extent.left + 2 * scale, extent.top - extent.bottom + 2 * scale), pixels(point)
        found = place(size, at, taken, inside, scale)
        away = (found.left + found.right) / 2 - at[0], (found.bottom + found.top) / 2 - at[1]
        text.set_position((away[0] / scale, away[1] / scale))
        taken.append(found)
