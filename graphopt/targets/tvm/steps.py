"""What a call of a stage does, one step after the other, and where in memory what it touches lies. Imports no TVM.

What only kernels read lies in an arena, planned once, in which values that do not live at the same time share memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from .places import Launch, Panels, Place, Scratch, size_of

ALIGN = 64  # bytes


@dataclass
class Kernels:
    """Launches in a row: one entry into machine code.

    Attributes
    ----------
    sequence : of the machine code.
    starts : of each launch, where its pointers begin in the table.
    slots : places of the table, by what they show to.
    fresh : results that torch or the caller gets, and that are therefore allocated at every call.
    last : values that nothing after this reads.
    """

    sequence: int
    launches: list[Launch] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    slots: dict[Place, list[int]] = field(default_factory=dict)
    fresh: list[fx.Node] = field(default_factory=list)
    last: list[fx.Node] = field(default_factory=list)


@dataclass
class Torch:
    """An operation that torch performs."""

    node: fx.Node
    last: list[fx.Node] = field(default_factory=list)


@dataclass
class Steps:
    """The steps of a stage.

    Attributes
    ----------
    steps : in order.
    strides : of nodes whose memory kernels touch, in elements.
    width : places of the table of pointers.
    size : bytes of an arena.
    offsets : in the arena, by place of the table.
    """

    steps: list[Kernels | Torch]
    strides: dict[fx.Node, tuple[int, ...]]
    width: int = 0
    size: int = 0
    offsets: dict[int, int] = field(default_factory=dict)

    @property
    def kernels(self) -> list[Kernels]:
        return [step for step in self.steps if isinstance(step, Kernels)]


def arranged(
    graph: fx.Graph,
    parts: Iterable[fx.Node | tuple[fx.Node, Sequence[Launch]]],
    strides: dict[fx.Node, tuple[int, ...]],
) -> Steps:
    """Steps, with memory planned.

    Parameters
    ----------
    parts : in order, nodes that torch computes, and results of groups with the launches that compute them.
    """
    parts = list(parts)
    made = Steps([], strides)
    tensors = set(graph.output_node().all_input_nodes)
    tensors |= {source for part in parts if isinstance(part, fx.Node) for source in part.all_input_nodes}
    for part in parts:
        if isinstance(part, fx.Node):
            made.steps.append(Torch(part))
        else:
            _add(made, *part, part[0] in tensors)
    made.size, made.offsets = _arena(made, graph)
    _plan_drops(made, graph)
    return made


def _add(made: Steps, result: fx.Node, launches: Sequence[Launch], leaves: bool) -> None:
    if not made.steps or isinstance(made.steps[-1], Torch):
        made.steps.append(Kernels(len(made.kernels)))
    kernels = made.steps[-1]
    assert isinstance(kernels, Kernels)
    for launch in launches:
        kernels.launches.append(launch)
        kernels.starts.append(made.width)
        for place in launch.pointers:
            kernels.slots.setdefault(place, []).append(made.width)
            made.width += 1
    if leaves:
        kernels.fresh.append(result)


def _arena(made: Steps, graph: fx.Graph) -> tuple[int, dict[int, int]]:
    """The bytes of an arena, and by place of the table the offset there: the largest first, each as low as fits."""
    given = {step.node for step in made.steps if isinstance(step, Torch)}
    given |= {node for step in made.kernels for node in step.fresh}
    given |= {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    slots: dict[Place, list[int]] = {}
    for step in made.kernels:
        for place, found in step.slots.items():
            if isinstance(place, Scratch) or (isinstance(place, fx.Node) and place not in given):
                slots.setdefault(place, []).extend(found)
    starts = sorted(start for step in made.kernels for start in step.starts)
    launch = np.searchsorted(np.array(starts), np.arange(made.width), side="right") if starts else np.zeros(0)
    laid: list[tuple[int, int, int, int]] = []  # first and last launch, first byte and the one after the last
    offsets: dict[int, int] = {}
    for place in sorted(slots, key=lambda place: -size_of(place)):
        first, last = int(launch[min(slots[place])]), int(launch[max(slots[place])])
        size, offset = -(-size_of(place) // ALIGN) * ALIGN, 0
        for _, _, begin, end in sorted((o for o in laid if o[0] <= last and first <= o[1]), key=lambda o: o[2]):
            if offset + size <= begin:
                break
            offset = max(offset, end)
        laid.append((first, last, offset, offset + size))
        offsets.update(dict.fromkeys(slots[place], offset))
    return max((end for *_, end in laid), default=0), offsets


def _plan_drops(made: Steps, graph: fx.Graph) -> None:
    """Note with each step the tensors that it is the last to read, so that they can go: not those that it is given."""
    computed = {step.node for step in made.steps if isinstance(step, Torch)}
    computed |= {node for step in made.kernels for node in step.fresh}
    seen = set(graph.output_node().all_input_nodes)
    for step in reversed(made.steps):
        if isinstance(step, Torch):
            reads: set[Any] = {*step.node.all_input_nodes, step.node}
        else:
            reads = {place.weight if isinstance(place, Panels) else place for place in step.slots}
        step.last = [node for node in reads if node in computed and node not in seen]
        seen.update(step.last)
