"""The reference target: the FX graph as generated Python, one torch operator after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from ..ir.stages import Part
from .base import Kernel, Target


class Eager(Target):
    """Runs the stage's graph on torch's own kernels. Builds anything, at once, on every device."""

    name: ClassVar[str] = "eager"

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        # The bound method, not the module: a module call costs more than most of the operators it would call.
        return cast(Kernel, part.module().forward)
