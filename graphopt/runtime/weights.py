"""The live weights of a module, read by reference at every call, and an epoch that changes whenever their values do."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch
import xxhash
from torch.multiprocessing.reductions import StorageWeakRef

from graphopt.ir.program import Input
from graphopt.runtime.mapped import Watch, mappings
from graphopt.runtime.memo import checksum, digest

_kind_of: list[Callable[[torch.Tensor], Any]] = [
    attrgetter("dtype"),
    attrgetter("device"),
    torch.Tensor.size,
    torch.Tensor.stride,
]
_version_of = attrgetter("_version")
_cdata_of = attrgetter("cdata")
_HEAD_BYTES = 64
_MOST_TIMES = 64  # elements of a time input that are compared by value


class Weights:
    """The tensors behind a Program's weight inputs.

    Parameters
    ----------
    module : owner of parameters and buffers; they are looked up in its tables at every read, so that a replaced
        parameter is seen.
    inputs : the Program's weight inputs, in order.
    constants : tensors by placeholder name that the module holds as plain attributes.
    """

    def __init__(self, module: torch.nn.Module, inputs: Sequence[Input], constants: Mapping[str, torch.Tensor]) -> None:
        self._slots: list[tuple[dict[str, Any], str]] = []
        for entry in inputs:
            if entry.name in constants:
                self._slots.append(({"": constants[entry.name]}, ""))
                continue
            owner, _, leaf = entry.path.rpartition(".")
            part = module.get_submodule(owner)
            self._slots.append((part._parameters if leaf in part._parameters else part._buffers, leaf))
        self._kinds = _kinds(self.read())

    def read(self) -> list[Any]:
        """The tensors as they are now, in order."""
        return [table[key] for table, key in self._slots]

    def fit(self) -> bool:
        """Whether the weights still have the shapes, strides, dtypes and devices they were captured with."""
        try:
            return _kinds(self.read()) == self._kinds
        except (KeyError, AttributeError, TypeError):
            return False  # a weight is gone, or None

    @staticmethod
    def versions(tensors: Sequence[torch.Tensor]) -> tuple[list[int], list[int]] | None:
        """Address and version of each tensor: cheap, and changed by every write that torch itself knows of.

        None where versions are not counted (weights made in inference mode).
        """
        try:
            return list(map(torch.Tensor.data_ptr, tensors)), list(map(_version_of, tensors))
        except RuntimeError:
            return None

    @staticmethod
    def epoch(tensors: Sequence[torch.Tensor], known: Mapping[int, bytes] = MappingProxyType({})) -> bytes:
        """A digest of all contents: changed by every write, those behind torch's back included.

        `known` are digests of tensors, by position, that need not be read.
        """
        total = xxhash.xxh3_128()
        elsewhere = []
        for position, tensor in enumerate(tensors):
            total.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            if tensor.device.type == "cpu":
                total.update(known[position] if position in known else digest(tensor))
            else:
                elsewhere.append(checksum(tensor))
        if elsewhere:
            total.update(torch.stack(elsewhere).cpu().numpy().tobytes())
        return total.digest()


def _kinds(tensors: Sequence[torch.Tensor]) -> list[list[Any]]:
    return [list(map(read, tensors)) for read in _kind_of]


class Trajectory:
    """One sampling run as a thread sees it, as far as the weights are concerned.

    The contents of all weights are digested at the start of a trajectory; between its steps their memory, addresses and
    versions are compared, and on the CPU their first bytes, so that a weight that is rewritten behind torch's back
    (``.data``, ``.numpy()``: how adapters are merged) is seen at once. (A write behind torch's back that leaves the
    first bytes of a weight as they are is seen from the next run on.) Evicted weights are neither read nor compared:
    the kernel knows of every write. A call continues the trajectory when it passes the very same condition objects as
    the call before (or, where a model has no conditions, times from the same schedule tensor) and its time is further
    along in the direction that the times went so far; anything else starts a new one.
    """

    def __init__(self) -> None:
        self._conditions: list[weakref.ref[torch.Tensor]] = []
        self._schedule: list[torch.Tensor] = []  # views held, so that no other schedule can come to lie there
        self._times: list[list[float]] | None = None
        self._places: set[bytes] = set()
        self._falling: bool | None = None
        self._versions: tuple[list[int], list[int]] | None = None
        self._storages: list[StorageWeakRef] = []
        self._heads: list[memoryview] = []
        self._head = b""
        self._watch = Watch(())
        self.epoch: bytes | None = None
        self.started = 0
        with _lock:
            _trajectories.add(self)

    def let_go(self) -> None:
        """Hold no memory of weights; the next step digests them anew. Another thread may be within `step`."""
        self._versions, self._heads, self._watch = None, [], Watch(())

    def step(self, weights: Sequence[torch.Tensor], conditions: list[torch.Tensor], times: list[torch.Tensor]) -> bytes:
        """The epoch of the weights for this call."""
        moves = self._further(times)
        continues = self.epoch is not None and moves and self._same_run(conditions, times)
        if not continues:
            self.epoch = None
            self._falling, self._places, self.started = None, set(map(_place, times)), self.started + 1
            self._conditions, self._schedule = [weakref.ref(tensor) for tensor in conditions], list(times)
            for mapping in mappings():
                mapping.trajectory_starts()
        if self.epoch is None or not self._untouched(weights):
            self.epoch = None  # a digest that is interrupted must not leave the old epoch behind
            watch = Watch(weights)
            self._versions = Weights.versions(weights)
            self._storages = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
            read = [weight for k, weight in enumerate(weights) if k not in watch.digests]
            heads = [_head(weight) for weight in read if weight.device.type == "cpu"]
            self._head = b"".join(heads)
            self._heads, self._watch = heads, watch
            self.epoch = Weights.epoch(weights, watch.digests)
        return self.epoch

    def _untouched(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether torch knows of no write since the last digest, and no other memory came to lie at an old address."""
        if self._versions is None or Weights.versions(weights) != self._versions:
            return False
        if any(map(torch.UntypedStorage._expired, map(_cdata_of, self._storages))):
            return False
        return b"".join(self._heads) == self._head and self._watch.same()

    def _further(self, times: list[torch.Tensor]) -> bool:
        """Whether the times moved on, in the direction of the moves before; remembers them."""
        if not times or any(time.device.type != "cpu" or time.numel() > _MOST_TIMES for time in times):
            # Reading a time would stop the device: a place in memory that this trajectory has not seen yet.
            self._times, places = None, list(map(_place, times))
            new = bool(places) and not self._places.issuperset(places)
            self._places.update(places)
            return new
        before, self._times = self._times, [time.reshape(-1).tolist() for time in times]
        if before is None or list(map(len, before)) != list(map(len, self._times)):
            return False
        pairs = [pair for old, new in zip(before, self._times, strict=True) for pair in zip(old, new, strict=True)]
        falls, rises = all(new <= old for old, new in pairs), all(new >= old for old, new in pairs)
        if falls == rises or (self._falling is not None and falls != self._falling):
            return False  # no move, a mixed one, or a turn
        self._falling = falls
        return True

    def _same_run(self, conditions: list[torch.Tensor], times: list[torch.Tensor]) -> bool:
        if conditions:
            return len(conditions) == len(self._conditions) and all(
                new is old() for new, old in zip(conditions, self._conditions, strict=True)
            )
        return bool(times) and all(
            _schedule(new) == _schedule(old) != 0 for new, old in zip(times, self._schedule, strict=True)
        )


_trajectories: weakref.WeakSet[Trajectory] = weakref.WeakSet()
_lock = threading.Lock()


def let_go() -> None:
    """Have all trajectories, of all threads, hold no memory of weights."""
    with _lock:
        for trajectory in list(_trajectories):
            trajectory.let_go()


def _head(weight: torch.Tensor) -> memoryview:
    """The first bytes of a weight, as they are whenever this is read, for as long as its memory lives."""
    storage, start = weight.untyped_storage(), weight.storage_offset() * weight.element_size()
    size = min(_HEAD_BYTES, storage.nbytes() - start)
    data = torch.empty(0, dtype=torch.uint8).set_(storage, start, (size,), (1,)).numpy().data
    assert isinstance(data, memoryview)
    return data


def _place(time: torch.Tensor) -> bytes:
    return str((time.data_ptr(), time.shape, 0 if time.is_inference() else time._version)).encode()


def _schedule(time: torch.Tensor) -> int:
    """The address of the table a timestep is an entry of; 0 for a tensor of its own."""
    storage = time.untyped_storage()
    return storage.data_ptr() if storage.nbytes() > time.element_size() else 0
