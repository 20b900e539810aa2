"""Where the time of a compiled call goes: measured per stage and per node, next to what its cost model predicts.

`recording` keeps what the stages of a compiled call are given while a pipeline runs; `measure` times them on just that.
A stage is timed as its target built it. Nodes are timed one by one on torch's own kernels, as the eager target calls
them. What is predicted is the roofline of `graphopt.debug.machine`: a node takes as long as its FLOPs at the speed of a
large matrix product, or its bytes at the speed of a large copy, whichever is longer.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from graphopt.debug.machine import Machine, synchronise
from graphopt.ir.accuracy import relative_error
from graphopt.ir.cost import Cost, node_cost
from graphopt.ir.effects import is_view
from graphopt.ir.price import number
from graphopt.ir.printer import describe, target_name
from graphopt.ir.program import val
from graphopt.ir.stages import Part
from graphopt.targets import Kernel
from graphopt.targets.eager import lowered


@dataclass(frozen=True)
class Recorded:
    """One stage of a compiled call: how it was built, what it was given first, and how often it ran."""

    part: Part
    kernel: Kernel
    target: str
    arguments: tuple[Any, ...]
    calls: int


@dataclass(frozen=True)
class NodeTime:
    """One node.

    Attributes
    ----------
    operator : as a dump writes it, without what goes without saying: ``linear``, ``add.Tensor``.
    shape : of its result: ``f32[2, 4, 16, 16]``.
    seconds : median of its times on the eager target, the clock's own time subtracted.
    predicted : seconds, 0 for views.
    """

    node: str
    operator: str
    module: str
    source: str
    shape: str
    view: bool
    seconds: float
    flops: int
    bytes: int
    predicted: float

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None where nothing is predicted."""
        return self.seconds / self.predicted if self.predicted else None


@dataclass(frozen=True)
class StageTime:
    """One stage.

    Attributes
    ----------
    calls : how often it ran in the recorded run.
    seconds : median of its kernel's times, as the target built it.
    nodes : in the order of computation, on the eager target.
    off : largest difference between the results of both, relative to the largest value; 0.0 where every bit agrees.
    """

    name: str
    target: str
    calls: int
    seconds: float
    nodes: tuple[NodeTime, ...]
    off: float

    @property
    def node_seconds(self) -> float:
        return sum(node.seconds for node in self.nodes)

    @property
    def predicted(self) -> float:
        return sum(node.predicted for node in self.nodes)


@dataclass(frozen=True)
class Group:
    """Nodes that have something in common."""

    name: str
    nodes: tuple[NodeTime, ...]

    @property
    def seconds(self) -> float:
        return sum(node.seconds for node in self.nodes)

    @property
    def predicted(self) -> float:
        return sum(node.predicted for node in self.nodes)

    @property
    def flops(self) -> int:
        return sum(node.flops for node in self.nodes)

    @property
    def bytes(self) -> int:
        return sum(node.bytes for node in self.nodes)


@contextmanager
def recording(parts: Sequence[Part], kernels: list[Kernel], targets: Sequence[str]) -> Iterator[list[Recorded]]:
    """Keep what each kernel of a compiled call is given first, and count its calls, as long as the context lasts.

    The list `kernels` is changed and put back; the list that is given out is filled when the context ends, in the order
    of `parts`, with the stages that ran.
    """
    originals, first, calls = list(kernels), dict[int, tuple[Any, ...]](), Counter[int]()

    def watched(place: int) -> Kernel:
        def kernel(*arguments: Any) -> tuple[Any, ...]:
            first.setdefault(place, arguments)
            calls[place] += 1
            return originals[place](*arguments)

        return kernel

    found: list[Recorded] = []
    kernels[:] = [watched(place) for place in range(len(originals))]
    try:
        yield found
    finally:
        kernels[:] = originals
    for place in sorted(first):
        found.append(Recorded(parts[place], originals[place], targets[place], first[place], calls[place]))


def measure(stages: Sequence[Recorded], machine: Machine, repeats: int = 20) -> list[StageTime]:
    """Time stages and their nodes: in every round each stage once as a whole, then once node by node.

    Parameters
    ----------
    repeats : rounds; one more warms up. Figures are medians.
    """
    if repeats < 1:
        raise ValueError("at least one round is needed")
    clock = _clock_seconds()
    whole: list[list[float]] = [[] for _ in stages]
    split: list[list[list[float]]] = [[] for _ in stages]
    off = [0.0] * len(stages)
    clocked = [_Clocked(stage) for stage in stages]
    with torch.no_grad():
        for number in range(repeats + 1):
            for place, stage in enumerate(stages):
                start = time.perf_counter()
                expected = stage.kernel(*stage.arguments)
                synchronise(expected)
                seconds = time.perf_counter() - start
                result = clocked[place].run(*stage.arguments)
                if number:
                    whole[place].append(seconds)
                    split[place].append(clocked[place].spent)
                else:
                    off[place] = relative_error(expected, result)
    found = []
    for place, stage in enumerate(stages):
        times = [max(0.0, statistics.median(some) - clock) for some in zip(*split[place], strict=True)]
        nodes = tuple(_node_times(stage, clocked[place].nodes, times, machine))
        seconds = statistics.median(whole[place])
        found.append(StageTime(stage.part.name, stage.target, stage.calls, seconds, nodes, off[place]))
    return found


class _Clocked(fx.Interpreter):
    """Runs a stage node by node as the eager target would; `spent` are the seconds of its calls in the last run."""

    def __init__(self, stage: Recorded) -> None:
        super().__init__(stage.part.root, graph=lowered(stage.part.graph))
        self.nodes = _calls(stage)
        self.spent: list[float] = []

    def run(self, *arguments: Any) -> Any:  # type: ignore[override]
        self.spent = []
        return super().run(*arguments)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = time.perf_counter()
        result = target(*args, **kwargs)
        synchronise(result)
        self.spent.append(time.perf_counter() - start)
        return result


def _calls(stage: Recorded) -> list[fx.Node]:
    return [node for node in stage.part.graph.nodes if node.op == "call_function"]


def _node_times(
    stage: Recorded, nodes: Sequence[fx.Node], times: Sequence[float], machine: Machine
) -> Iterator[NodeTime]:
    sizes = _sizes(stage)
    for node, seconds in zip(nodes, times, strict=True):
        cost = node_cost(node)
        cost = Cost(number(cost.flops, sizes), number(cost.bytes, sizes))
        name = target_name(node.target).removeprefix("ops.").removeprefix("aten.").removesuffix(".default")
        place = (node.meta.get("module", ""), node.meta.get("source", ""))
        predicted = machine.seconds(cost)
        view = not cost.bytes or is_view(node)
        yield NodeTime(node.name, name, *place, describe(val(node)), view, seconds, cost.flops, cost.bytes, predicted)


def _sizes(stage: Recorded) -> dict[Any, sympy.Integer]:
    """Symbolic sizes of a stage → those of what it was given."""
    found = {}
    for node, value in zip(stage.part.graph.find_nodes(op="placeholder"), stage.arguments, strict=True):
        if isinstance(value, torch.Tensor):
            for size, given in zip(val(node).shape, value.shape, strict=True):
                if isinstance(size, torch.SymInt):
                    found[size.node.expr] = sympy.Integer(given)
    return found


# -- what is made of it ------------------------------------------------------------------------------------------------


def grouped(nodes: Iterable[NodeTime], key: Callable[[NodeTime], str]) -> list[Group]:
    """Nodes by what `key` says of them, the slowest group first."""
    found: dict[str, list[NodeTime]] = {}
    for node in nodes:
        found.setdefault(key(node), []).append(node)
    groups = [Group(name, tuple(some)) for name, some in found.items()]
    return sorted(groups, key=lambda group: -group.seconds)


def misjudged(nodes: Iterable[NodeTime]) -> list[Group]:
    """Operators by how far measured and predicted time lie apart in all, the farthest first; views left out."""
    groups = grouped((node for node in nodes if node.predicted), lambda node: node.operator)
    return sorted(groups, key=lambda group: -abs(group.seconds - group.predicted))


def rank_correlation(nodes: Sequence[NodeTime]) -> float | None:
    """Spearman's, between measured and predicted times of nodes that are no views; None where it is not defined."""
    pairs = [(node.seconds, node.predicted) for node in nodes if node.predicted]
    measured, predicted = (_ranks(list(column)) for column in zip(*pairs, strict=True)) if pairs else ([], [])
    if len(set(measured)) < 2 or len(set(predicted)) < 2:
        return None
    return statistics.correlation(measured, predicted)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(values)
    first, count = {value: place for place, value in reversed(list(enumerate(order)))}, Counter(order)
    return [first[value] + (count[value] - 1) / 2 for value in values]


def main_dtype(stages: Iterable[Recorded]) -> torch.dtype:
    """The floating-point dtype of most of the FLOPs."""
    found: Counter[torch.dtype] = Counter()
    for stage in stages:
        sizes = _sizes(stage)
        for node in _calls(stage):
            value = val(node)
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                found[value.dtype] += number(node_cost(node).flops, sizes)
    return found.most_common(1)[0][0] if found else torch.float32


def _clock_seconds() -> float:
    """What reading the clock twice takes."""
    times = []
    for _ in range(200):
        start = time.perf_counter()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
