"""Samples of tiny pipelines, for bisections: with some passes, or as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import graphopt
from graphopt.capture.kept import Captures
from graphopt.debug.metrics import METRICS, Result
from graphopt.ir.rewrite import Observer, Pass
from tests.soundness import tiny


class Rig:
    """A pipeline that is compiled, sampled and restored; `runs` counts compiled runs."""

    def __init__(self, make: Callable[[], Any], **call: Any) -> None:
        self.pipe, self.call, self.runs = make(), call, 0
        self.options: dict[str, Any] = {"target": "eager", "check": False, "captures": Captures()}

    def __call__(self, passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        if passes is None:
            return self._sample()
        self.runs += 1
        try:
            graphopt.compile(self.pipe, pipeline=tuple(passes), observers=observers, **self.options)
            return self._sample()
        finally:
            graphopt.restore(self.pipe)

    def _sample(self) -> Result:
        found: Result = tiny.generate(self.pipe, **self.call).float().numpy()
        return found


def relative(original: Result, other: Result) -> float:
    """How far two results are apart, as the metric ``latent`` has it."""
    return METRICS["latent"].measure(original, other)
