"""The passes, one file each, in no order: the order in which they run is that of a pipeline (`graphopt.pipelines`)."""

from .fold_constants import FoldConstants
from .hoist import Hoist
from .merge_common import MergeCommon
from .remove_dead import RemoveDead
from .simplify_identities import SimplifyIdentities
from .simplify_views import SimplifyViews
from .tabulate import Tabulate

PASSES = (
    FoldConstants,
    Hoist,
    MergeCommon,
    RemoveDead,
    SimplifyIdentities,
    SimplifyViews,
    Tabulate,
)

__all__ = [
    "PASSES",
    "FoldConstants",
    "Hoist",
    "MergeCommon",
    "RemoveDead",
    "SimplifyIdentities",
    "SimplifyViews",
    "Tabulate",
]
