"""The stage's graph through torch's own compiler (`torch._inductor`), without Dynamo and its per-call guards."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..errors import TargetError
from ..ir.stages import Part
from .base import Kernel, Target


class Inductor(Target):
    """C++ or Triton code by Inductor. Needs a C++ compiler on the CPU, Triton on a GPU; builds for tens of seconds.

    Shapes are static: graphopt's own guards choose the Program, so that Inductor's are not asked at every step.
    """

    name: ClassVar[str] = "inductor"
    pipeline: ClassVar[str] = "generated"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return "no C++ compiler (g++ or clang++) was found"
        return None

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        from torch._inductor import compile as compile_graph

        try:
            with torch.no_grad():
                compiled = compile_graph(part.module(), list(examples))
        except Exception as error:
            raise TargetError(
                f"inductor could not build stage '{part.name}': {type(error).__name__}: {str(error)[:300]}",
                where=f"{len(part.graph.nodes)} nodes",
                hint="the stage runs on the eager target",
            ) from error

        def kernel(*values: Any) -> tuple[Any, ...]:
            return tuple(compiled(*values))

        return kernel
