"""The passes, one file each, in no order: the order in which they run is that of a pipeline (`graphopt.pipelines`)."""

from .remove_dead import RemoveDead

PASSES = (RemoveDead,)

__all__ = ["PASSES", "RemoveDead"]
