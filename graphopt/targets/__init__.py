"""Targets turn a stage's graph into code. Third parties add theirs by the entry-point group ``graphopt.targets``."""

from .base import Kernel, Target
from .eager import Eager
from .inductor import Inductor

TARGETS: dict[str, Target] = {target.name: target for target in (Eager(), Inductor())}

__all__ = ["TARGETS", "Eager", "Inductor", "Kernel", "Target"]
