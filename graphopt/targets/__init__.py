"""Targets turn a stage's graph into code. Third parties add theirs by the entry-point group ``graphopt.targets``."""

from .base import KeepsWeights, Kernel, PacksWeights, Target
from .eager import Eager
from .inductor import Inductor
from .tvm.target import Tvm

TARGETS: dict[str, Target] = {target.name: target for target in (Eager(), Inductor(), Tvm())}

__all__ = ["TARGETS", "Eager", "Inductor", "KeepsWeights", "Kernel", "PacksWeights", "Target", "Tvm"]
