"""Kernels of a stage as a callable: memory planned once, and a call that fills in pointers and enters machine code.

What only kernels read lies in an arena, in which values that do not live at the same time share memory. Calls that run
at the same time have an arena each.
"""

from __future__ import annotations

import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg

from ...ir.program import val
from .build import Call, Library
from .emit import Kernel
from .isa import Isa
from .plan import Group
from .stage import Builder, Launch, Panels, Place, Scratch

_ALIGN = 64  # bytes


@dataclass
class Kernels:
    """Launches in a row: one entry into machine code.

    Attributes
    ----------
    sequence : of the library.
    slots : places of the table, by what they show to.
    fresh : results that torch or the caller gets, and that are therefore allocated at every call.
    last : values that nothing after this reads.
    """

    sequence: int
    launches: list[Launch] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    slots: dict[Place, list[int]] = field(default_factory=dict)
    fresh: list[fx.Node] = field(default_factory=list)
    last: list[fx.Node] = field(default_factory=list)


@dataclass
class Torch:
    """An operation that torch performs."""

    node: fx.Node
    last: list[fx.Node] = field(default_factory=list)


class Frame:
    """What one call at a time uses: an arena, and the table of pointers, of which `address` is the address."""

    def __init__(self, width: int, size: int, offsets: Mapping[int, int]) -> None:
        self.arena = torch.empty(size + _ALIGN, dtype=torch.uint8)
        self.table = np.zeros(max(width, 1), dtype=np.int64)
        start = -(-self.arena.data_ptr() // _ALIGN) * _ALIGN
        for slot, offset in offsets.items():
            self.table[slot] = start + offset
        self.address = self.table.ctypes.data


class Packed:
    """A weight in panels, and what it was packed from.

    Attributes
    ----------
    made : the panels.
    """

    def __init__(self, weight: torch.Tensor, panels: Panels) -> None:
        self._weight, self._state = weakref.ref(weight), _state(weight)
        self._memory = weight.detach()  # held: at its address there can be no other then
        with torch.no_grad():
            self.made = panels.pack(weight)

    def holds(self, weight: torch.Tensor, watched: bool) -> bool:
        """Whether the panels are still those of this weight, as far as torch knows.

        Parameters
        ----------
        watched : whether someone tells when weights change behind torch's back, or have no version that counts writes.
        """
        return self._weight() is weight and self._state == _state(weight) and (watched or self._state[1] is not None)


class Code:
    """A stage's kernels and what stays with torch, as one function of the stage's inputs.

    Attributes
    ----------
    steps : in order.
    size : bytes of an arena.
    """

    def __init__(self, isa: Isa, graph: fx.Graph, examples: Sequence[Any], root: torch.nn.Module) -> None:
        self.isa, self.graph, self.root = isa, graph, root
        self.builder = builder = Builder(isa, graph, examples)
        self.inputs, self.constants = graph.find_nodes(op="placeholder"), graph.find_nodes(op="get_attr")
        self.results: Any = graph.output_node().args[0]
        steps = builder.plan.steps
        tensors = set(graph.output_node().all_input_nodes)
        tensors |= {source for step in steps if isinstance(step, fx.Node) for source in step.all_input_nodes}
        self.steps: list[Kernels | Torch] = []
        self.width = 0
        for step in steps:
            if isinstance(step, fx.Node):
                self.steps.append(Torch(step))
            else:
                self._add(step, step.result in tensors)
        self.size, self._offsets = self._arena()
        self._plan_drops()
        self.library = Library(isa, [step.calls for step in self.steps if isinstance(step, Kernels)])
        self._frames: list[Frame] = []
        self._packed: dict[Panels, Packed] = {}
        self._epoch: object = None

    # -- planning ----------------------------------------------------------------------------------------------------

    def _add(self, group: Group, leaves: bool) -> None:
        if not self.steps or isinstance(self.steps[-1], Torch):
            self.steps.append(Kernels(sum(isinstance(step, Kernels) for step in self.steps)))
        kernels = self.steps[-1]
        assert isinstance(kernels, Kernels)
        for launch in self.builder.group(group):
            kernels.launches.append(launch)
            kernels.calls.append(Call(launch.kernel, self.width))
            for place in launch.pointers:
                kernels.slots.setdefault(place, []).append(self.width)
                self.width += 1
        if leaves:
            kernels.fresh.append(group.result)

    def _arena(self) -> tuple[int, dict[int, int]]:
        """The bytes of an arena, and by place of the table the offset there: the largest first, each as low as fits."""
        given = {step.node for step in self.steps if isinstance(step, Torch)} | set(self.inputs)
        given |= {node for step in self.steps if isinstance(step, Kernels) for node in step.fresh}
        given |= set(self.constants)
        slots: dict[Place, list[int]] = {}
        for step in self.steps:
            for place, found in step.slots.items() if isinstance(step, Kernels) else ():
                if isinstance(place, Scratch) or (isinstance(place, fx.Node) and place not in given):
                    slots.setdefault(place, []).extend(found)
        starts = sorted(call.offset for step in self.steps if isinstance(step, Kernels) for call in step.calls)
        launch = np.searchsorted(np.array(starts), np.arange(self.width), side="right") if starts else np.zeros(0)
        laid: list[tuple[int, int, int, int]] = []  # first and last launch, first byte and the one after the last
        offsets: dict[int, int] = {}
        for place in sorted(slots, key=lambda place: -_bytes(place)):
            first, last = int(launch[min(slots[place])]), int(launch[max(slots[place])])
            size, offset = -(-_bytes(place) // _ALIGN) * _ALIGN, 0
            for _, _, begin, end in sorted((o for o in laid if o[0] <= last and first <= o[1]), key=lambda o: o[2]):
                if offset + size <= begin:
                    break
                offset = max(offset, end)
            laid.append((first, last, offset, offset + size))
            offsets.update(dict.fromkeys(slots[place], offset))
        return max((end for *_, end in laid), default=0), offsets

    def _plan_drops(self) -> None:
        """Note with each step the values that it is the last to read, so that they can go."""
        seen = set(self.graph.output_node().all_input_nodes)
        for step in reversed(self.steps):
            if isinstance(step, Torch):
                reads: set[Any] = {*step.node.all_input_nodes, step.node}
            else:
                reads = {place.weight if isinstance(place, Panels) else place for place in step.slots}
            step.last = [node for node in reads if isinstance(node, fx.Node) and node not in seen]
            seen.update(step.last)

    # -- running -----------------------------------------------------------------------------------------------------

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = Frame(self.width, self.size, self._offsets)
        try:
            return self._run(frame, values, lambda step: self.library.run(step.sequence, frame.address))
        finally:
            self._frames.append(frame)

    def timed(self, values: Sequence[Any], rounds: int) -> list[tuple[Launch, float]]:
        """Each launch with the median of its times, in seconds, on what it is given in a call."""
        steps = [step for step in self.steps if isinstance(step, Kernels)]
        library = Library(self.isa, [[call] for step in steps for call in step.calls])
        firsts = list(itertools.accumulate((len(step.calls) for step in steps), initial=0))
        frame, found = Frame(self.width, self.size, self._offsets), []

        def each(step: Kernels) -> None:
            for number, launch in enumerate(step.launches, firsts[step.sequence]):
                times = []
                for _ in range(rounds):
                    start = time.perf_counter()
                    library.run(number, frame.address)
                    times.append(time.perf_counter() - start)
                found.append((launch, statistics.median(times)))

        self._run(frame, values, each)
        return found

    def weights_are(self, epoch: object) -> None:
        """See `KeepsWeights`."""
        if epoch != self._epoch:
            self._packed, self._epoch = {}, epoch

    def names(self) -> list[str]:
        """Of the kernels."""
        found = (plain(call.kernel) for step in self.steps if isinstance(step, Kernels) for call in step.calls)
        return list(dict.fromkeys(found))

    def source(self, kind: str, name: str | None = None) -> str:
        """The code of all kernels, or of one: TensorIR (tir), LLVM's (ll) or assembly (asm)."""
        calls = [call for step in self.steps if isinstance(step, Kernels) for call in step.calls]
        chosen = {call.kernel.name: call for call in calls if name in (None, plain(call.kernel))}
        if kind == "tir":
            return "\n".join(str(call.kernel.function) for call in chosen.values())
        library = self.library if name is None else Library(self.isa, [list(chosen.values())])
        return str(library.module.inspect_source(kind))

    def size_of(self, place: Place) -> int:
        """Bytes of what a pointer shows to."""
        if isinstance(place, Panels):
            return 4 * int(val(place.weight).numel())
        return _bytes(place)

    def _run(self, frame: Frame, values: Sequence[Any], run: Callable[[Kernels], None]) -> tuple[Any, ...]:
        known: dict[fx.Node, Any] = dict(zip(self.inputs, values, strict=True))
        for node in self.constants:
            known[node] = getattr(self.root, str(node.target))
        for step in self.steps:
            if isinstance(step, Torch):
                args, kwargs = map_arg((step.node.args, step.node.kwargs), known.__getitem__)
                known[step.node] = step.node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                keep = self._fill(frame, step, known)
                run(step)
                del keep
            for node in step.last:
                known.pop(node, None)
        return tuple(map_arg(self.results, known.__getitem__))

    def _fill(self, frame: Frame, step: Kernels, known: dict[fx.Node, Any]) -> list[torch.Tensor]:
        """Point the table at tensors; those that only the table knows are given back, to be held while it is used."""
        strides, held = self.builder.strides, []
        for node in step.fresh:
            known[node] = torch.empty_strided(val(node).shape, strides[node], dtype=val(node).dtype)
        for place, slots in step.slots.items():
            if isinstance(place, fx.Node):
                if place not in known:
                    continue
                tensor = known[place]
                if tensor.stride() != strides[place] or tensor.is_neg():
                    tensor = torch.empty_strided(tensor.shape, strides[place], dtype=tensor.dtype).copy_(tensor)
                    held.append(tensor)
            elif isinstance(place, Panels):
                tensor = self._panels(place, known[place.weight])
                held.append(tensor)
            else:
                continue
            pointer = tensor.data_ptr()
            for slot in slots:
                frame.table[slot] = pointer
        return held

    def _panels(self, panels: Panels, weight: torch.Tensor) -> torch.Tensor:
        """The packed weight; packed again when it is another tensor, lies elsewhere, or was written to."""
        found = self._packed.get(panels)
        if found is None or not found.holds(weight, self._epoch is not None):
            found = self._packed[panels] = Packed(weight, panels)
        return found.made


def _state(weight: torch.Tensor) -> tuple[int, int | None]:
    """What changes when a weight does: its address, and its version; None where versions are not counted."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _bytes(place: Place) -> int:
    if isinstance(place, Scratch):
        return 4 * place.floats
    assert isinstance(place, fx.Node)
    value = val(place)
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return int(value.element_size() * span)


def plain(kernel: Kernel) -> str:
    """A kernel's name as users see it."""
    return kernel.name.removeprefix("graphopt_")
