"""Names beside points, none over another."""

from __future__ import annotations

import importlib
import random
from itertools import combinations

import pytest

from graphopt.debug.labels import Box, label, place

INSIDE = Box(0, 0, 900, 600)


def test_the_nearest_free_place() -> None:
    assert place((40, 10), (100, 100), [], INSIDE) == Box(112, 95, 152, 105)
    taken = [Box(112, 0, 900, 600)]
    found = place((40, 10), (100, 100), taken, INSIDE)
    assert not found.overlap(taken[0]) and found.overlap(Box(0, 0, 112, 600)) == found.area


def test_a_corner_is_not_left() -> None:
    for point in ((0, 0), (900, 0), (0, 600), (900, 600)):
        found = place((80, 10), point, [], INSIDE)
        assert found.overlap(INSIDE) == found.area


def test_eight_names_at_one_point_are_apart() -> None:
    found = list[Box]()
    for _ in range(8):
        found.append(place((80, 10), (450, 300), found, INSIDE))
    assert not any(one.overlap(other) for one, other in combinations(found, 2))


def test_names_in_a_picture_are_apart() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    rng = random.Random(0)
    figure = figures.Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    points = [(10 ** rng.uniform(0, 0.2), 10 ** rng.uniform(10, 10.1)) for _ in range(8)]
    axes.scatter(*zip(*points, strict=True))
    axes.set(xlim=(0.1, 100), ylim=(1e9, 1e11))
    label(figure, axes, [f"convolution_{k}" for k in range(8)], points, [(point, 20.0) for point in points])
    figure.draw_without_rendering()
    plain = importlib.import_module("matplotlib.text").Text  # without the line to the point
    boxes = [plain.get_window_extent(text) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [f"convolution_{k}" for k in range(8)]
    found = [Box(box.x0, box.y0, box.x1, box.y1) for box in boxes]
    assert not any(one.overlap(other) for one, other in combinations(found, 2))
