"""Named tuples of passes, each line with the reason for its place."""

from __future__ import annotations

from graphopt.ir.rewrite import Pass
from graphopt.passes import RemoveDead

exact: tuple[Pass, ...] = (
    RemoveDead(),  # first: nothing that follows should spend time on what nobody reads
)

PIPELINES: dict[str, tuple[Pass, ...]] = {"exact": exact, "none": ()}
