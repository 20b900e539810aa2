"""A LoopProgram: one recorded trajectory, with everything that lies around the denoiser.

The graph holds the operations of the sampler in the order in which they ran, straight on, and one node for each call of
a module. What surrounds the denoiser (guidance concatenation and combination, input scaling, masks, the scheduler's
update) is there to be read: which arguments of the calls are equal parts or stay the same (`relations`), how many calls
a step makes (`period`, `calls_per_timestep`), and what a step does to the state (`graphopt.ir.update`).

Node metadata: ``val`` (a meta tensor), ``source`` (the user's line), ``value`` (the number in a 0-dimensional result).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from graphopt.ir.effects import has_effect
from graphopt.ir.program import val
from graphopt.ir.relations import BRANCHES, Constant, Paired, Relation, Repeated, Unchanged
from graphopt.ir.update import Guidance, Update, fold, guidance

aten = torch.ops.aten


class ModuleCall:
    """The target of a node that stands for a call of a module.

    Attributes
    ----------
    module : name of the module.
    paths : key path of each tensor argument, in order.
    """

    def __init__(self, module: str, paths: tuple[str, ...]) -> None:
        self.module, self.paths = module, paths
        self.__name__ = self.__qualname__ = module.replace(".", "_")
        self.__module__ = "modules"

    def __call__(self, *tensors: Any) -> Any:
        raise TypeError(f"a recorded call of {self.module} is there to be read; it cannot be run")


def written_beside(before: Any, write: Any) -> Any:
    """The target of a node for a tensor whose memory was written to by way of another tensor."""
    raise TypeError("a recorded write is there to be read; it cannot be run")


@dataclass(frozen=True)
class LoopCall:
    """One call of a module in a trajectory.

    Attributes
    ----------
    node : in the graph of the LoopProgram; its users are the results, by `operator.getitem`.
    times : numbers in its small arguments, by key path, where they were on the CPU.
    """

    node: fx.Node
    times: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        assert isinstance(self.node.target, ModuleCall)
        return self.node.target.module

    @property
    def arguments(self) -> dict[str, fx.Node]:
        """The nodes of the tensor arguments by key path."""
        assert isinstance(self.node.target, ModuleCall)
        pairs = zip(self.node.target.paths, self.node.args, strict=True)
        return {path: node for path, node in pairs if isinstance(node, fx.Node)}


@dataclass(frozen=True)
class Finding:
    """A relation that the recorded operations prove for this trajectory, or what stands against it.

    Attributes
    ----------
    module : the module whose arguments it is about.
    what : the relation, or a sentence.
    source : the user's line that makes it so.
    against : why it does not hold; empty when it does.
    """

    module: str
    what: Relation | str
    source: str = ""
    against: str = ""


@dataclass
class LoopProgram:
    """One trajectory, recorded.

    Attributes
    ----------
    graph : placeholders are tensors that existed before the recording began; no output.
    calls : of modules, in order.
    name : of the sampler.
    """

    graph: fx.Graph
    calls: tuple[LoopCall, ...]
    name: str = "loop"

    @cached_property
    def step_calls(self) -> tuple[LoopCall, ...]:
        """The calls that repeat: those of modules that are called more than once."""
        often = Counter(call.module for call in self.calls)
        return tuple(call for call in self.calls if often[call.module] > 1)

    @cached_property
    def segments(self) -> tuple[tuple[fx.Node, ...], ...]:
        """The operations after each of the `step_calls`, up to the next one."""
        starts = {call.node for call in self.step_calls}
        found: list[list[fx.Node]] = []
        for node in self.graph.nodes:
            if node in starts:
                found.append([])
            elif found and node.op == "call_function":
                found[-1].append(node)
        return tuple(map(tuple, found))

    @cached_property
    def shapes(self) -> tuple[Any, ...]:
        """What tells one segment from another: the module called, and the operations that follow."""
        return tuple(
            (call.module, tuple(str(node.target) for node in segment if node.target not in _PLUMBING))
            for call, segment in zip(self.step_calls, self.segments, strict=True)
        )

    @cached_property
    def period(self) -> int:
        """After how many calls the operations repeat; 0 when they do not."""
        shapes, best, most = self.shapes[:-1], 0, 0.35  # after the last call comes what follows the loop
        for period in range(1, len(shapes) // 2 + 1):
            same = sum(a == b for a, b in zip(shapes, shapes[period:], strict=False)) / (len(shapes) - period)
            if same > most + 0.1:
                best, most = period, same
        return best

    @cached_property
    def irregular(self) -> tuple[int, ...]:
        """Calls after which other operations run than a period later or earlier (warm-up of multistep solvers)."""
        shapes, period = self.shapes[:-1], self.period
        if not period:
            return tuple(range(len(shapes)))
        usual = [Counter(shapes[phase::period]).most_common(1)[0][0] for phase in range(period)]
        return tuple(k for k, shape in enumerate(shapes) if shape != usual[k % period])

    @cached_property
    def moving(self) -> frozenset[fx.Node]:
        """Values that depend on what a repeated call returned, or on chance: those that make up the state."""
        repeated = {call.node for call in self.step_calls}
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            random = isinstance(node.target, OpOverload) and has_effect(node)
            if node in repeated or random or any(source in found for source in node.all_input_nodes):
                found.add(node)
        return frozenset(found)

    @cached_property
    def values(self) -> dict[fx.Node, int]:
        """A number for each value: what is computed again from the same values by the same operation has the same."""
        found: dict[fx.Node, int] = {}
        known: dict[Any, int] = {}
        for node in self.graph.nodes:
            again = (isinstance(node.target, OpOverload) and not has_effect(node)) or node.target is operator.getitem
            given = fx.map_arg((node.args, node.kwargs), lambda source: f"%{found[source]}") if again else None
            key = (node.target, repr(given)) if again else node
            found[node] = known.setdefault(key, len(known))
        return found

    def state(self, call: LoopCall) -> tuple[fx.Node, ...]:
        """The arguments of a call that make up its state."""
        return tuple(node for node in call.arguments.values() if node in self.moving)

    def _place(self, call: LoopCall) -> tuple[int, ...]:
        """The values of a call's state."""
        return tuple(self.values[node] for node in self.state(call))

    @cached_property
    def calls_per_timestep(self) -> int:
        """On how many states in a row one module is called at one timestep: more than 1 in solvers of higher order."""
        longest = 1
        for module in {call.module for call in self.step_calls}:
            calls = [call for call in self.step_calls if call.module == module and call.times]
            run = 1
            for call, following in pairwise(calls):
                same = call.times == following.times
                run = run + (self._place(call) != self._place(following)) if same else 1
                longest = max(longest, run)
        return longest

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Relations of the arguments of repeated calls, proved by the operations that made the arguments."""
        return tuple(self._find())

    def _find(self) -> Iterator[Finding]:
        for module in dict.fromkeys(call.module for call in self.step_calls):
            calls = [call for call in self.step_calls if call.module == module]
            yield from self._paired(module, calls)
            for path, node in calls[len(calls) // 2].arguments.items():
                source = str(node.meta.get("source", ""))
                if (times := repetitions(node)) > 1:
                    yield Finding(module, Repeated(path, times), source)
                given = [call.arguments.get(path) for call in calls]
                if all(other is not None and self.values[other] == self.values[node] for other in given):
                    yield Finding(module, Unchanged(path), source)
                else:
                    yield from self._constants(module, path, calls)

    def _paired(self, module: str, calls: list[LoopCall]) -> Iterator[Finding]:
        """Calls in a row on one state."""
        states = [self._place(call) for call in calls]
        for size in BRANCHES:
            groups = [states[k : k + size] for k in range(0, len(states) - size + 1, size)]
            if len(groups) > 1 and all(len(set(group)) == 1 for group in groups) and len({g[0] for g in groups}) > 1:
                yield Finding(module, Paired(size), str(calls[0].node.meta.get("source", "")))
                return

    def _constants(self, module: str, path: str, calls: list[LoopCall]) -> Iterator[Finding]:
        """Parts of a concatenation that are the very same values in every call."""
        nodes = [call.arguments[path] for call in calls if path in call.arguments]
        if repetitions(nodes[0]) > 1 and nodes[0].target is aten.cat.default and _dim(nodes[0]) == 0:
            nodes = [part for node in nodes if (part := _part(node, 0)) is not None]  # one of the equal parts
        if any(node.target is not aten.cat.default for node in nodes):
            return
        start, dim = 0, _dim(nodes[0])
        for position, part in enumerate(_parts(nodes[0])):
            stop = start + int(val(part).shape[dim])
            others = [_part(node, position) for node in nodes]
            if not self.moving.intersection(other for other in others if other is not None) and dim > 0:
                same = all(other is not None and self.values[other] == self.values[part] for other in others)
                against = "" if same else "it is another value in other calls"
                yield Finding(module, Constant(path, dim, start, stop), str(nodes[0].meta.get("source", "")), against)
            start = stop

    @cached_property
    def steps(self) -> tuple[range, ...]:
        """The positions of the calls that share one state, in order: guidance branches called one after the other."""
        starts = [0]
        for k, (before, call) in enumerate(pairwise(self.step_calls), start=1):
            if call.module == before.module and self._place(call) != self._place(before):
                starts.append(k)
        return tuple(range(a, b) for a, b in pairwise([*starts, len(self.step_calls)]))

    @cached_property
    def update(self) -> tuple[fx.Node, Update] | None:
        """What a regular step makes of the state: the argument of a later call, and its linear form."""
        steps = [step for step in self.steps[:-1] if not any(k in self.irregular for k in step)]
        if not self.period or not steps:
            return None
        step = steps[len(steps) // 2]
        inside = [node for k in step for node in self.segments[k]]
        for node in self.state(self.step_calls[step.stop]):
            target = _part_of(node)
            if target in inside:
                return target, fold(target, inside)
        return None

    @cached_property
    def guidance(self) -> dict[int, Guidance]:
        """How each call's guidance branches are combined, by the position of the call."""
        pairs = ((k, guidance(c.node, s)) for k, (c, s) in enumerate(zip(self.step_calls, self.segments, strict=True)))
        return {k: found for k, found in pairs if found is not None}

    def idle_branches(self, module: str) -> int:
        """Of how many branches the batch of a module consists, when some of them had no weight in some call; else 0."""
        found = [g.weights for k, g in self.guidance.items() if self.step_calls[k].module == module]
        return max((len(weights) for weights in found if 0.0 in weights), default=0)


_PLUMBING = frozenset({aten.detach.default, aten.alias.default, aten.lift_fresh.default, written_beside})
_SAME_PARTS = (aten._to_copy.default, aten.clone.default, aten.detach.default, aten.mul.Tensor, aten.div.Tensor)


def repetitions(node: fx.Node) -> int:
    """Of how many equal parts along its first dimension a value consists, as the operations before it prove; or 1."""
    if node.op != "call_function":
        return 1
    if node.target is aten.cat.default:
        parts = _parts(node)
        if _dim(node) == 0:
            return len(parts) if len(set(parts)) == 1 else 1
        counts = {repetitions(part) for part in parts}
        return counts.pop() if len(counts) == 1 else 1
    if node.target is aten.expand.default:
        source, before = node.args[0], val(node.args[0])
        rows = val(node).shape[0] if val(node).ndim else 1
        return int(rows) if isinstance(source, fx.Node) and (before.ndim == 0 or before.shape[0] == 1) else 1
    if node.target is aten.repeat.default:
        sizes = node.args[1]
        assert isinstance(sizes, list | tuple)
        whole = val(node.args[0]).ndim == len(sizes) and isinstance(sizes[0], int)
        return max(1, int(sizes[0])) if whole else 1  # type: ignore[arg-type]
    if node.target in _SAME_PARTS:
        sources = [source for source in node.all_input_nodes if val(source).ndim]
        return repetitions(sources[0]) if len(sources) == 1 and val(sources[0]).shape == val(node).shape else 1
    return 1


def _part_of(node: fx.Node) -> fx.Node:
    """One of the equal parts that a value consists of; the value itself where it does not."""
    while repetitions(node) > 1:
        node = next(source for source in node.all_input_nodes if val(source).ndim)
    return node


def _parts(node: fx.Node) -> list[fx.Node]:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    return [part for part in parts if isinstance(part, fx.Node)]


def _part(node: fx.Node, position: int) -> fx.Node | None:
    """An operand of a concatenation."""
    return _parts(node)[position] if node.target is aten.cat.default and position < len(_parts(node)) else None


def _dim(node: fx.Node) -> int:
    dim = node.args[1] if len(node.args) > 1 else 0
    assert isinstance(dim, int)
    return dim % int(val(node).ndim)
