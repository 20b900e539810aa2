"""From a stage's graph to kernels in TensorIR, and from those to machine code or to readable code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from . import build
from .build import Call
from .image import Image
from .isa import Isa
from .stage import Builder
from .steps import arranged


class Generated:
    """Kernels of a stage.

    Attributes
    ----------
    steps : what a call does with them.
    """

    def __init__(self, isa: Isa, graph: fx.Graph, examples: Sequence[Any]) -> None:
        self.isa, self.builder = isa, Builder(isa, graph, examples)
        parts = [
            step if isinstance(step, fx.Node) else (step.result, self.builder.group(step))
            for step in self.builder.plan.steps
        ]
        self.steps = arranged(graph, parts, self.builder.strides)
        self._calls = [
            [Call(self.builder.kernels[each.kernel], at) for each, at in zip(step.launches, step.starts, strict=True)]
            for step in self.steps.kernels
        ]

    def image(self) -> Image:
        """Machine code: a function ``graphopt_run_{i}`` per sequence of steps, and kernels by their names."""
        return build.image(self.isa, self._calls)

    def source(self, kind: str, kernel: str | None = None) -> str:
        """The code of all kernels, or of one: TensorIR (tir), LLVM's (ll) or assembly (asm)."""
        calls = [call for calls in self._calls for call in calls]
        chosen = {call.kernel.name: call for call in calls if kernel in (None, call.kernel.name)}
        if kind == "tir":
            return "\n".join(str(call.kernel.function) for call in chosen.values())
        sequences = self._calls if kernel is None else [list(chosen.values())]
        return str(build.compiled(self.isa, sequences).inspect_source(kind))
