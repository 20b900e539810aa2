"""The passes, one file each, in no order: the order in which they run is that of a pipeline (`graphopt.pipelines`)."""

from .compose_linears import ComposeLinears
from .fold_constants import FoldConstants
from .fold_scales import FoldScales
from .fold_updates import FoldUpdates
from .fuse_attention import FuseAttention
from .fuse_pointwise import FusePointwise
from .hoist import Hoist
from .merge_common import MergeCommon
from .merge_linears import MergeLinears
from .narrow_products import NarrowProducts
from .pack_weights import PackWeights
from .reassociate_sums import ReassociateSums
from .rejoin_parts import RejoinParts
from .remove_dead import RemoveDead
from .share_calls import ShareCalls
from .share_repeats import ShareRepeats
from .simplify_identities import SimplifyIdentities
from .simplify_views import SimplifyViews
from .split_concat import SplitConcat
from .tabulate import Tabulate
from .upcast import Upcast
from .winograd import Winograd

PASSES = (
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

__all__ = [
    "PASSES",
    "ComposeLinears",
    "FoldConstants",
    "FoldScales",
    "FoldUpdates",
    "FuseAttention",
    "FusePointwise",
    "Hoist",
    "MergeCommon",
    "MergeLinears",
    "NarrowProducts",
    "PackWeights",
    "ReassociateSums",
    "RejoinParts",
    "RemoveDead",
    "ShareCalls",
    "ShareRepeats",
    "SimplifyIdentities",
    "SimplifyViews",
    "SplitConcat",
    "Tabulate",
    "Upcast",
    "Winograd",
]
