"""From a stage's graph to kernels in TensorIR, and from those to machine code or to readable code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import fx

from . import build
from .build import Call
from .image import Image
from .isa import Isa
from .places import Launch
from .schedule import Choice
from .stage import Builder
from .steps import arranged

_NOTHING: Mapping[str, Choice] = MappingProxyType({})


class Generated:
    """Kernels of a stage, with what was chosen for them by measurement.

    Attributes
    ----------
    steps : what a call does with them.
    """

    def __init__(
        self, isa: Isa, graph: fx.Graph, examples: Sequence[Any], chosen: Mapping[str, Choice] = _NOTHING
    ) -> None:
        self.isa, self.builder = isa, Builder(isa, graph, examples, chosen)
        parts: dict[fx.Node, fx.Node | tuple[fx.Node, Sequence[Launch]]] = {}
        for step in self.builder.plan.steps:
            for part in self.builder.parts(step):
                parts.setdefault(part if isinstance(part, fx.Node) else part[0], part)
        self.steps = arranged(graph, parts.values(), self.builder.strides)
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
