"""Kernels of a stage as a callable: a call fills in pointers and enters machine code.

Code that was generated once on this machine is read from a folder (`artifacts`); then neither TVM nor LLVM is loaded.
Calls that run at the same time have an arena each.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg
from torch.multiprocessing.reductions import StorageWeakRef

from ... import artifacts
from ...ir.program import val
from ...ir.verify import Examples, outline
from . import entry, tuned
from .image import MachineCode
from .isa import Isa, detect
from .places import Launch, Panels, Place, spanned
from .schedule import Choice
from .steps import ALIGN, Kernels, Torch
from .windows import Window, with_windows

if TYPE_CHECKING:
    from .generate import Generated
    from .stage import Builder


class Frame:
    """What one call at a time uses: an arena, and the table of pointers, of which `address` is the address.

    Attributes
    ----------
    told : of the call.
    pointed : by sequence of kernels, what the pointers to weights were taken from.
    """

    told: Told

    def __init__(self, width: int, size: int, offsets: Mapping[int, int]) -> None:
        self.arena = torch.empty(size + ALIGN, dtype=torch.uint8)
        self.table = np.zeros(max(width, 1), dtype=np.int64)
        start = -(-self.arena.data_ptr() // ALIGN) * ALIGN
        for slot, offset in offsets.items():
            self.table[slot] = start + offset
        self.address = self.table.ctypes.data
        self.pointed: dict[int, Pointed] = {}


@dataclass(frozen=True)
class Packings:
    """Weights in panels, of one epoch of their contents: see `KeepsWeights`."""

    epoch: object = None
    made: dict[Panels, Packed] = field(default_factory=dict)


class Told(NamedTuple):
    """What a call was told of weights: see `KeepsWeights`."""

    packings: Packings
    places: object = None


class Pointed:
    """What the pointers of a table to weights were taken from: as long as nothing of it changes, they hold.

    Attributes
    ----------
    held : what only the table knows.
    """

    def __init__(self, places: object, computed: Sequence[torch.Tensor], held: list[torch.Tensor]) -> None:
        self._places, self.held = places, held
        self._computed = [(weakref.ref(tensor), tensor.data_ptr()) for tensor in computed]

    def holds(self, places: object, computed: Sequence[torch.Tensor]) -> bool:
        """Whether weights are where they were (`KeepsWeights`), and what was computed from them."""
        pairs = zip(self._computed, computed, strict=True)
        return self._places == places and all(
            ref() is tensor and tensor.data_ptr() == place for (ref, place), tensor in pairs
        )


class Packed:
    """A weight in panels, and what it was packed from.

    Attributes
    ----------
    made : the panels.
    """

    def __init__(self, weight: torch.Tensor, panels: Panels) -> None:
        self._weight, self._state = weakref.ref(weight), _state(weight)
        self._memory = StorageWeakRef(weight.untyped_storage())  # once it is gone, other memory may lie at its address
        with torch.no_grad():
            self.made = panels.pack(weight)

    def holds(self, weight: torch.Tensor, watched: bool) -> bool:
        """Whether the panels are still those of this weight, as far as torch knows.

        Parameters
        ----------
        watched : whether someone tells when the contents of this one change: then one that merely lies elsewhere, where
            it was moved out of memory, is still the same, and so is one without a version that counts writes.
        """
        (before, version), (now, latest) = self._state, _state(weight)
        if self._weight() is not weight or version != latest:
            return False
        return watched or (before == now and version is not None and not self._memory.expired())


class Code:
    """A stage's kernels and what stays with torch, as one function of the stage's inputs.

    Parameters
    ----------
    choices : of schedules, by kernel (`Builder.identity`); None for what was measured on this machine to be fastest.

    Attributes
    ----------
    kept : whether it was read from the folder of `artifacts`: nothing was generated and compiled.
    """

    def __init__(
        self,
        isa: Isa | None,
        graph: fx.Graph,
        examples: Sequence[Any],
        root: torch.nn.Module,
        choices: Mapping[str, Choice] | None = None,
    ) -> None:
        self.graph, self.root = graph, root
        self.inputs, self.constants = graph.find_nodes(op="placeholder"), graph.find_nodes(op="get_attr")
        self.results: Any = graph.output_node().args[0]
        self._isa = isa
        self.examples = examples.outlines if isinstance(examples, Examples) else list(map(outline, examples))
        if choices is None:
            choices = tuned.choices(torch.get_num_threads()) if isa is None else {}
        self._choices = choices
        key = self._key(entry.key(isa, graph, self.examples))
        found = artifacts.read(key, artifacts.CODE) if key else None
        self.kept = found is not None
        if found is not None:
            self.plan, image = entry.read(found, graph)
        else:
            self.plan, image = self.generated.steps, self.generated.image()
            if key:
                artifacts.write(key, artifacts.CODE, entry.written(self.plan, image, graph))
        self._machine_code = MachineCode(image)
        self._runs = [self._machine_code.function(f"graphopt_run_{step.sequence}") for step in self.plan.kernels]
        self._frames: list[Frame] = []
        self._packings = Packings()
        self._here = threading.local()  # its `told`: an epoch and places, for the thread's next call
        self._reads = [_reads(step) for step in self.plan.kernels]
        self._steps = with_windows(self.plan, graph.output_node().all_input_nodes)

    def _key(self, stage: str | None) -> str | None:
        """The key of the code; where nothing was chosen for its kernels, it is the stage's."""
        if stage is None or not self._choices:
            return stage
        kernels = tuned.kernels_of(stage)
        if kernels is None:
            kernels = list(self.generated.builder.spaces)
            tuned.remember(stage, kernels)
        return entry.tuned(stage, {name: self._choices[name] for name in kernels if name in self._choices})

    @cached_property
    def generated(self) -> Generated:
        """The kernels as they are generated; done now where the machine code was kept."""
        from .generate import Generated

        return Generated(self._isa or detect(), self.graph, self.examples, self._choices)

    def again(self, choices: Mapping[str, Choice] | None) -> Code:
        """The same with other choices."""
        return Code(self._isa, self.graph, self.examples, self.root, choices)

    @property
    def builder(self) -> Builder:
        return self.generated.builder

    @property
    def steps(self) -> list[Kernels | Torch]:
        """What a call does, in order."""
        return self.plan.steps

    # -- running -----------------------------------------------------------------------------------------------------

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = self._frame()
        frame.told, threads = self._heard(), torch.get_num_threads()
        try:
            return self._run(frame, values, lambda step, _: self._runs[step.sequence](frame.address, threads))
        finally:
            if frame.told.packings is not self._packings:
                frame.pointed = {}  # or it would keep what was made of old weights
            del frame.told
            self._frames.append(frame)

    def timed(self, values: Sequence[Any], rounds: int) -> list[tuple[Launch, float]]:
        """Each launch with the median of its times, in seconds, on what it is given in a call."""
        found = list[tuple[Launch, float]]()

        def each(launch: Launch, run: Callable[[], None], held: Callable[[fx.Node], torch.Tensor]) -> None:
            times = []
            for _ in range(rounds):
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
            found.append((launch, statistics.median(times)))

        self.walk(values, each)
        return found

    def walk(
        self,
        values: Sequence[Any],
        do: Callable[[Launch, Callable[[], None], Callable[[fx.Node], torch.Tensor]], None],
    ) -> None:
        """A call, launch by launch.

        Parameters
        ----------
        do : takes a launch, what runs it, which has to be done once at least, and what copies the value of a node that
            the launches around it read from memory; weights are not copied.
        """
        frame = self._frame()
        frame.told = Told(self._packings)

        def each(step: Kernels, known: Mapping[fx.Node, Any]) -> None:
            for launch, start in zip(step.launches, step.starts, strict=True):
                run = functools.partial(self._machine_code.kernel(launch.kernel), frame.address + 8 * start)
                do(launch, run, functools.partial(self._held, frame, step, known))

        self._run(frame, values, each)

    def _held(self, frame: Frame, step: Kernels, known: Mapping[fx.Node, Any], node: fx.Node) -> torch.Tensor:
        """See `walk`."""
        if node not in step.slots:
            weight: torch.Tensor = known[node]
            return weight
        strides, shape = self.plan.strides[node], val(node).shape
        made = torch.empty(spanned(shape, strides), dtype=val(node).dtype)
        ctypes.memmove(made.data_ptr(), int(frame.table[step.slots[node][0]]), made.numel() * made.element_size())
        return made.as_strided(shape, strides)

    def weights_are(self, epoch: object, places: object = None) -> None:
        """See `KeepsWeights`."""
        if epoch != self._packings.epoch:
            self._packings = Packings(epoch)
            for frame in list(self._frames):  # those in use let go of it when they come back
                frame.pointed = {}
        self._here.told = epoch, places

    def _heard(self) -> Told:
        """What the calling thread was told, for one call: whoever calls without being told may have moved weights."""
        told, self._here.told, latest = getattr(self._here, "told", None), None, self._packings
        if told is None:
            return Told(latest)
        epoch, places = told
        packings = latest if epoch == latest.epoch else Packings(epoch)  # another thread was told of other weights
        return Told(packings, None if epoch is None or places is None else told)

    def packs(self) -> frozenset[int]:
        """See `PacksWeights`."""
        read, packed = set(self.graph.output_node().all_input_nodes), set[Any]()
        for step in self.steps:
            if isinstance(step, Torch):
                read.update(step.node.all_input_nodes)
            else:
                read.update(place for place in step.slots if isinstance(place, fx.Node))
                packed.update(place.weight for place in step.slots if isinstance(place, Panels))
        return frozenset(place for place, node in enumerate(self.inputs) if node in packed - read)

    def names(self) -> list[str]:
        """Of the kernels."""
        return list(dict.fromkeys(launch.name for step in self.plan.kernels for launch in step.launches))

    def source(self, kind: str, name: str | None = None) -> str:
        """The code of all kernels, or of one: TensorIR (tir), LLVM's (ll) or assembly (asm)."""
        return self.generated.source(kind, None if name is None else f"graphopt_{name}")

    def _frame(self) -> Frame:
        return Frame(self.plan.width, self.plan.size, self.plan.offsets)

    def _run(
        self, frame: Frame, values: Sequence[Any], run: Callable[[Kernels, Mapping[fx.Node, Any]], None]
    ) -> tuple[Any, ...]:
        known: dict[fx.Node, Any] = dict(zip(self.inputs, values, strict=True))
        for node in self.constants:
            known[node] = getattr(self.root, str(node.target))
        for step in self._steps:
            if isinstance(step, Window):
                known[step.node] = step.of(known[step.source])
                continue
            if isinstance(step, Torch):
                args, kwargs = map_arg((step.node.args, step.node.kwargs), known.__getitem__)
                known[step.node] = step.node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                keep = self._fill(frame, step, known)
                run(step, known)
                del keep
            for node in step.last:
                known.pop(node, None)
        return tuple(map_arg(self.results, known.__getitem__))

    def _fill(self, frame: Frame, step: Kernels, known: dict[fx.Node, Any]) -> tuple[list[torch.Tensor], ...]:
        """Point the table at tensors; those that only the table knows are given back, to be held while it is used."""
        for node in step.fresh:
            known[node] = torch.empty_strided(val(node).shape, self.plan.strides[node], dtype=val(node).dtype)
        reads, places = self._reads[step.sequence], frame.told.places
        held = self._point(frame, reads.passing, known)
        computed, pointed = [known[node] for node in reads.computed], frame.pointed.get(step.sequence)
        if pointed is None or places is None or not pointed.holds(places, computed):
            frame.pointed.pop(step.sequence, None)  # should this be interrupted, nothing vouches for the table
            pointed = Pointed(places, computed, self._point(frame, reads.steady, known))
            if places is not None:
                frame.pointed[step.sequence] = pointed
        return held, pointed.held

    def _point(
        self, frame: Frame, slots: Mapping[Place, Sequence[int]], known: Mapping[fx.Node, Any]
    ) -> list[torch.Tensor]:
        """Point some slots at tensors; those that only the table knows are given back."""
        strides, held = self.plan.strides, list[torch.Tensor]()
        for place, found in slots.items():
            if isinstance(place, fx.Node):
                if place not in known:
                    continue
                tensor = known[place]
                if tensor.stride() != strides[place] or tensor.is_neg():
                    tensor = torch.empty_strided(tensor.shape, strides[place], dtype=tensor.dtype).copy_(tensor)
                    held.append(tensor)
            elif isinstance(place, Panels):
                tensor = self._panels(frame.told.packings, place, known[place.weight])
                held.append(tensor)
            else:  # scratch has its place in the arena
                continue
            pointer = tensor.data_ptr()
            for slot in found:
                frame.table[slot] = pointer
        return held

    @staticmethod
    def _panels(packings: Packings, panels: Panels, weight: torch.Tensor) -> torch.Tensor:
        """The packed weight; packed again when it is another tensor, lies elsewhere, or was written to."""
        found = packings.made.get(panels)
        watched = packings.epoch is not None and not panels.weight.meta.get("given", True)
        if found is None or not found.holds(weight, watched):
            found = packings.made[panels] = Packed(weight, panels)
        return found.made


@dataclass(frozen=True)
class _Reads:
    """The slots of a sequence of kernels, by what they show to.

    Attributes
    ----------
    steady : weights, and what was computed from them and from conditions alone.
    computed : of these, the nodes that were computed.
    passing : all else that lies in tensors.
    """

    steady: Mapping[Place, Sequence[int]]
    computed: Sequence[fx.Node]
    passing: Mapping[Place, Sequence[int]]


def _reads(step: Kernels) -> _Reads:
    steady, passing, computed = dict[Place, Sequence[int]](), dict[Place, Sequence[int]](), dict[fx.Node, None]()
    for place, slots in step.slots.items():
        node = place.weight if isinstance(place, Panels) else place
        if not isinstance(node, fx.Node):
            continue
        if not (node.op == "placeholder" and node.meta.get("steady", False)):
            passing[place] = slots
            continue
        steady[place] = slots
        if "placement" in node.meta:
            computed[node] = None
    return _Reads(steady, list(computed), passing)


def _state(weight: torch.Tensor) -> tuple[int, int | None]:
    """What changes when a weight does: its address, and its version; None where versions are not counted."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version
