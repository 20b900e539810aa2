"""Named tuples of passes, each line with the reason for its place."""

from __future__ import annotations

from graphopt.ir.rewrite import Pass
from graphopt.passes import (
    ComposeLinears,
    FoldConstants,
    FoldScales,
    FoldUpdates,
    FuseAttention,
    FusePointwise,
    Hoist,
    MergeCommon,
    MergeLinears,
    NarrowProducts,
    PackWeights,
    ReassociateSums,
    RejoinParts,
    RemoveDead,
    ShareCalls,
    ShareRepeats,
    SimplifyIdentities,
    SimplifyViews,
    SplitConcat,
    Tabulate,
    Upcast,
    Winograd,
)

_clean: tuple[Pass, ...] = (
    RemoveDead(),  # first: nothing that follows should spend time on what nobody reads
    SimplifyViews(),  # before identities: a copy of a view that is gone is a copy of a fresh value
    SimplifyIdentities(),  # before merging: two ways of writing nothing must not keep equal values apart
    MergeCommon(),  # before everything that moves work: a value that two places share is one value
    RejoinParts(),  # after views and merging: parts are cut from one value only where equal values are one
)
_shorten: tuple[Pass, ...] = (
    FuseAttention(),  # on cleaned programs: copies and casts that are none hide the softmax from the products
    ReassociateSums(),  # after attention, which adds masks to each other; before packing, which fuses additions
    FoldScales(),  # before composing: layers with only a scale in between are next to each other without it
    ComposeLinears(),  # before merging: merged layers are read as slices, which compose with nothing
    ShareRepeats(),  # after merging values: halves are equal only once equal inputs are one
    SplitConcat(),  # after sharing, which takes the repetition away from around a concatenation
    ShareRepeats(),  # again: a layer split from its condition may be left with a repeated state alone
)
_place: tuple[Pass, ...] = (
    RemoveDead(),  # what the passes above left behind must not be kept
    FoldConstants(),  # first of the placements: later stages read weights-stage values
    Hoist(),  # before the schedule: values of both time and condition read what the request keeps
    Tabulate(),  # before what is common to branches, which reads the schedule's tables
    ShareCalls(),  # last: it places what is left in the step
)

# No bit of any result changes.
bitwise: tuple[Pass, ...] = (*_clean, *_place)

# Rounding only; for targets that generate their own kernels, layouts and fusions.
generated: tuple[Pass, ...] = (
    Upcast(),  # before cleaning: casts between what were two types are identities
    *_clean,
    *_shorten,  # before merging: layers are joined at the size that they will have
    MergeLinears(),  # after merging values: linears share an input only once equal inputs are one
    NarrowProducts(),  # after merging, which joins layers of float32; before Winograd, which would add up pixels
    Winograd(),
    RemoveDead(),  # from here on as in other pipelines
    FoldConstants(max_bytes=4 << 30),  # with room for all weights, widened by `upcast`
    *_place[2:],
)

# Rounding only, within twice the original's own error; for torch's own kernels.
exact: tuple[Pass, ...] = (
    *_clean,
    *_shorten,  # before packing, which hides weights and depends on the size of the batch
    MergeLinears(),  # before packing, which hides the weights it would join
    PackWeights(max_terms=0),  # linear layers: packed convolutions are faster but less exact, see `packed`
    FusePointwise(),  # after packing: only packed kernels take an epilogue
    *_place,
)

# As `exact`, with convolutions packed too: faster on U-Nets, at two to three times the original's rounding error.
packed: tuple[Pass, ...] = tuple(PackWeights() if isinstance(entry, PackWeights) else entry for entry in exact)

# What a sampler does around its modules; nothing is placed, since a replay has evaluated what does not change.
loop: tuple[Pass, ...] = (
    *_clean,
    FoldUpdates(min_saved=1),  # after merging, which leaves one chain of two equal ones; any operation is worth saving
    MergeCommon(),  # updates that turned out equal
    RemoveDead(),  # last: what folding left without readers
)

PIPELINES: dict[str, tuple[Pass, ...]] = {
    "bitwise": bitwise,
    "exact": exact,
    "generated": generated,
    "loop": loop,
    "packed": packed,
    "none": (),
}
