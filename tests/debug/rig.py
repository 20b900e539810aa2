"""Samples of tiny pipelines, for bisections: with some passes, or as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import graphopt
from graphopt.debug.bisect import Sample
from graphopt.debug.metrics import Result
from graphopt.ir.rewrite import Observer, Pass
from tests.soundness import tiny


class Rig:
    """A pipeline that is compiled, sampled and restored; `runs` counts compiled runs."""

    def __init__(self, make: Callable[[], Any], **call: Any) -> None:
        self.pipe, self.call, self.runs = make(), call, 0

    def __call__(self, passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        if passes is None:
            return self._sample()
        self.runs += 1
        try:
            graphopt.compile(self.pipe, target="eager", pipeline=tuple(passes), observers=observers, check=False)
            return self._sample()
        finally:
            graphopt.restore(self.pipe)

    def _sample(self) -> Result:
        found: Result = tiny.generate(self.pipe, **self.call).float().numpy()
        return found


def latents(make: Callable[[], Any]) -> Sample:
    return Rig(make)
