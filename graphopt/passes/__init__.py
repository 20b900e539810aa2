"""The passes, one file each, in no order: the order in which they run is that of a pipeline (`graphopt.pipelines`)."""

from .fold_constants import FoldConstants
from .fold_updates import FoldUpdates
from .fuse_pointwise import FusePointwise
from .hoist import Hoist
from .merge_common import MergeCommon
from .merge_linears import MergeLinears
from .pack_weights import PackWeights
from .remove_dead import RemoveDead
from .share_calls import ShareCalls
from .simplify_identities import SimplifyIdentities
from .simplify_views import SimplifyViews
from .tabulate import Tabulate

PASSES = (
    FoldConstants,
    FoldUpdates,
    FusePointwise,
    Hoist,
    MergeCommon,
    MergeLinears,
    PackWeights,
    RemoveDead,
    ShareCalls,
    SimplifyIdentities,
    SimplifyViews,
    Tabulate,
)

__all__ = [
    "PASSES",
    "FoldConstants",
    "FoldUpdates",
    "FusePointwise",
    "Hoist",
    "MergeCommon",
    "MergeLinears",
    "PackWeights",
    "RemoveDead",
    "ShareCalls",
    "SimplifyIdentities",
    "SimplifyViews",
    "Tabulate",
]
