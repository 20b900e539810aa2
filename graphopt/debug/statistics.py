"""What each pass did: an observer that counts rewrites, refusals by reason, and the work that is left."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from graphopt.errors import PassError
from graphopt.ir.cost import foldable, stage_costs
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Observer, Pass, Refusal, spell


@dataclass
class PassRecord:
    """One pass of one compilation.

    Attributes
    ----------
    name, accuracy : of the pass, its options included where they differ from the defaults.
    fired : places rewritten.
    refusals : how often each reason kept it from firing.
    nodes, flops, bytes : of the step, before → after (FLOPs and bytes moved per call).
    once_flops, once_bytes : what of these depends on weights alone, and `fold_constants` has computed once.
    seconds : time the pass took, verification included.
    error : why it was rolled back, or None.
    """

    name: str
    accuracy: str
    fired: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    nodes: tuple[int, int] = (0, 0)
    flops: tuple[Any, Any] = (0, 0)
    bytes: tuple[Any, Any] = (0, 0)
    once_flops: tuple[Any, Any] = (0, 0)
    once_bytes: tuple[Any, Any] = (0, 0)
    seconds: float = 0.0
    error: str | None = None


class Statistics(Observer):
    """Makes a `PassRecord` per pass, in order, in `records`."""

    def __init__(self) -> None:
        self.records: list[PassRecord] = []
        self._start = 0.0
        self._once: tuple[Any, Any] | None = None  # of the Program as it is now; None before its first pass

    def program_begins(self, program: Program) -> None:
        self._once = None

    def pass_begins(self, pass_: Pass, program: Program) -> None:
        if self._once is None:
            self._once = _once(program)
        self.records.append(PassRecord(spell(pass_), pass_.accuracy))
        self._start = time.perf_counter()

    def refuses(self, pass_: Pass, refusal: Refusal) -> None:
        self.records[-1].refusals[refusal.reason] += 1

    def rewrites(self, pass_: Pass, match: Match) -> None:
        self.records[-1].fired += 1

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None:
        record = self.records[-1]
        record.seconds = time.perf_counter() - self._start
        was, now = stage_costs(before)["step"], stage_costs(after)["step"]
        record.nodes = (was.nodes, now.nodes)
        record.flops = (was.cost.flops, now.cost.flops)
        record.bytes = (was.cost.bytes, now.cost.bytes)
        was_once = self._once
        assert was_once is not None  # since pass_begins
        self._once = _once(after) if fired else was_once
        record.once_flops, record.once_bytes = zip(was_once, self._once, strict=True)

    def pass_fails(self, pass_: Pass, program: Program, error: PassError) -> None:
        record = self.records[-1]
        record.seconds, record.error, record.fired = time.perf_counter() - self._start, str(error), 0


def _once(program: Program) -> tuple[Any, Any]:
    cost = foldable(program).cost
    return cost.flops, cost.bytes
