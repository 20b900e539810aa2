"""What one pass did to one Program: where it fired, what that saved, and why it did not fire elsewhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from graphopt.debug.alike import together, without_numbers
from graphopt.debug.history import Compilation, Place, Snapshot
from graphopt.debug.journal import cost_of, number
from graphopt.energy import WorkEstimate
from graphopt.ir.cost import Cost, StageCost, foldable, node_cost, stage_costs
from graphopt.ir.price import Price, hints_of
from graphopt.ir.price import number as sized
from graphopt.ir.program import Program, val
from graphopt.ir.rewrite import Pass
from graphopt.ir.stages import STAGES, placement, stage_name


@dataclass(frozen=True)
class Line:
    """A source line of the user's model, and the places there: all of them, in order."""

    source: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Missed:
    """Places where a pass did not fire, for one reason.

    Attributes
    ----------
    reason : with ranges for numbers in which the places differ, or that of most of them.
    lines : the most expensive first.
    cost : of all their nodes together.
    """

    reason: str
    lines: tuple[Line, ...]
    cost: Cost

    @property
    def count(self) -> int:
        return sum(len(line.places) for line in self.lines)


@dataclass(frozen=True)
class Explanation:
    """One occurrence of a pass in a pipeline.

    Attributes
    ----------
    position, passes : which of how many passes it is.
    fired : the lines with the most places first.
    missed : the most work first: FLOPs and bytes in the units of `graphopt.ir.price`.
    stages : the work of each stage before and after.
    once : what of the step's depends on weights alone, before and after: `fold_constants` has it computed once.
    captured : places of the form that it looks for in the Program as captured, where it found none later.
    joules : of each stage, before and after, estimated (`graphopt.energy.WorkEstimate`); empty where not on a CPU.
    """

    snapshot: Snapshot
    position: int
    passes: int
    fired: tuple[Line, ...]
    missed: tuple[Missed, ...]
    stages: dict[str, tuple[StageCost, StageCost]]
    once: tuple[StageCost, StageCost]
    joules: dict[str, tuple[float, float]]
    captured: int = 0

    @property
    def count(self) -> int:
        return sum(len(line.places) for line in self.fired)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        used = {name: pair for name, pair in self.stages.items() if pair[0].nodes or pair[1].nodes}
        return {
            "name": self.snapshot.name,
            "accuracy": self.snapshot.accuracy,
            "position": self.position,
            "passes": self.passes,
            "fired": [_line_dict(line) for line in self.fired],
            "stages": {name: {"before": cost_of(was), "after": cost_of(now)} for name, (was, now) in used.items()},
            "weights_alone": {"before": cost_of(self.once[0]), "after": cost_of(self.once[1])},
            "estimated_joules": {
                name: dict(zip(("before", "after"), self.joules[name], strict=True))
                for name in used
                if name in self.joules
            },
            "refused": [
                {
                    "reason": entry.reason,
                    "count": entry.count,
                    "flops": number(entry.cost.flops),
                    "bytes": number(entry.cost.bytes),
                    "lines": [_line_dict(line) for line in entry.lines],
                }
                for entry in self.missed
            ],
            "found_as_captured": self.captured,
            "error": self.snapshot.error,
        }


def _line_dict(line: Line) -> dict[str, Any]:
    return {"source": line.source, "count": len(line.places), "places": [vars(place) for place in line.places]}


def explain(compilation: Compilation, name: str) -> list[Explanation]:
    """Each occurrence of the pass called `name` in the pipeline, in order; none where it is not in it."""
    shots = compilation.snapshots
    return [
        _explained(before, after, len(shots) - 1, compilation.captured)
        for before, after in pairwise(shots)
        if after.pass_ is not None and after.pass_.name == name
    ]


def _explained(before: Snapshot, after: Snapshot, passes: int, captured: Program) -> Explanation:
    costs = _costs((before.program, after.program))
    reasons: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for held in after.held:
        reasons[without_numbers(held.reason)].append((held.reason, held.place))
    missed = []
    for found in reasons.values():
        reason = together(Counter(reason for reason, _ in found))
        places = [place for _, place in found]
        total = sum((costs.get(place.node, Cost()) for place in places), Cost())
        missed.append(Missed(reason, _lines(places, costs), total))
    missed.sort(key=lambda entry: -_work(entry.cost))
    was, now = stage_costs(before.program), stage_costs(after.program)
    fired = _lines((entry.place for entry in after.fired), {})
    spent = [joules_of(shot.program) for shot in (before, after)]
    return Explanation(
        after,
        after.number,
        passes,
        fired,
        tuple(missed),
        {key: (was[key], now[key]) for key in was},
        (foldable(before.program), foldable(after.program)),
        {key: (spent[0][key], spent[1][key]) for key in spent[0]},
        0 if after.fired or after.held or after.error else _places(after.pass_, captured),
    )


def _places(pass_: Pass | None, program: Program) -> int:
    """Places that a pass finds in a Program; 0 where it raises: it was not written for this one."""
    try:
        return sum(1 for _ in pass_.find(program)) if pass_ else 0
    except Exception:
        return 0


def joules_of(program: Program) -> dict[str, float]:
    """Estimated joules of one evaluation of each stage, operation by operation; empty where it runs on no CPU."""
    devices = {value.device.type for node in program.placeholders if isinstance(value := val(node), torch.Tensor)}
    if devices - {"cpu"}:
        return {}
    price, hints, found = WorkEstimate(), hints_of(program), dict.fromkeys(STAGES, 0.0)
    for node in program.calls():
        cost = node_cost(node)
        found[stage_name(placement(node))] += price.joules(sized(cost.flops, hints), sized(cost.bytes, hints))
    return found


def _costs(programs: Iterable[Program]) -> dict[str, Cost]:
    """The cost of every node by name, as the first Program has it that has it at all."""
    found: dict[str, Cost] = {}
    for program in programs:
        for node in program.calls():
            if node.name not in found:
                found[node.name] = node_cost(node)
    return found


def _lines(places: Iterable[Place], costs: dict[str, Cost]) -> tuple[Line, ...]:
    """Places by source line, the most work first, then the most places."""
    grouped: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        grouped[place.source].append(place)

    def worth(found: list[Place]) -> tuple[float, int]:
        return -sum(_work(costs.get(place.node, Cost())) for place in found), -len(found)

    return tuple(
        Line(source, tuple(found)) for source, found in sorted(grouped.items(), key=lambda item: worth(item[1]))
    )


def _work(cost: Cost) -> float:
    """FLOPs and bytes as one number, in bytes; of symbolic sizes nothing is known."""
    flops, moved = number(cost.flops), number(cost.bytes)
    return (moved if isinstance(moved, int) else 0) + (flops if isinstance(flops, int) else 0) / Price().flops_per_byte
