"""Named tuples of passes, each line with the reason for its place."""

from __future__ import annotations

from graphopt.ir.rewrite import Pass
from graphopt.passes import (
    FoldConstants,
    Hoist,
    MergeCommon,
    RemoveDead,
    SimplifyIdentities,
    SimplifyViews,
    Tabulate,
)

exact: tuple[Pass, ...] = (
    RemoveDead(),  # first: nothing that follows should spend time on what nobody reads
    SimplifyViews(),  # before identities: a copy of a view that is gone is a copy of a fresh value
    SimplifyIdentities(),  # before merging: two ways of writing nothing must not keep equal values apart
    MergeCommon(),  # before placing: a value shared by two stages is kept once
    RemoveDead(),  # what the passes above left behind
    FoldConstants(),  # first of the placements: later stages read weights-stage values
    Hoist(),  # before the schedule: values of both time and condition read what the request keeps
    Tabulate(),  # last: it places what is left of the earlier stages
)

PIPELINES: dict[str, tuple[Pass, ...]] = {"exact": exact, "none": ()}
