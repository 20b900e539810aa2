"""The live weights of a module, read by reference at every call, and an epoch that changes whenever their values do."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, eq
from types import MappingProxyType
from typing import Any

import numpy as np
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
    torch.Tensor.is_neg,
]
_version_of = attrgetter("_version")
_cdata_of = attrgetter("cdata")
_HEAD_BYTES = 64


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
        parts = dict(module.named_modules(remove_duplicate=False))
        for entry in inputs:
            if entry.name in constants:
                self._slots.append(({"": constants[entry.name]}, ""))
                continue
            owner, _, leaf = entry.path.rpartition(".")
            part = parts[owner]
            self._slots.append((part._parameters if leaf in part._parameters else part._buffers, leaf))
        self._known: tuple[object, tuple[Any, ...]] | None = None
        self._kinds = _kinds(self.read())
        self._compared = _comparer(self.read())

    def read(self, generation: object = None) -> tuple[Any, ...]:
        """The tensors as they are now, in order.

        With a `generation` (`ModuleGuard.generation`) those that were read in it before: no table was written since.
        Raises KeyError where a weight is gone.
        """
        known = self._known  # once: other threads read as well
        if known is not None and known[0] is generation:
            return known[1]
        tensors = tuple([table[key] for table, key in self._slots])
        if generation is not None:
            self._known = generation, tensors
        return tensors

    def let_go(self) -> None:
        """Keep no weight alive that the module no longer has."""
        self._known = None

    def fit(self, generation: object = None) -> bool:
        """Whether the weights still have the shapes, strides, dtypes, devices and signs they were captured with."""
        try:
            tensors = self.read(generation)
            if self._compared is not None and self._compared(*tensors):
                return True
            if _kinds(tensors) != self._kinds:
                return False
        except (KeyError, AttributeError, TypeError):
            return False  # a weight is gone, or None
        if (
            self._compared is not None
        ):  # it compares more than is asked here, gradients for one: from now on as they are
            self._compared = _comparer(tensors)
        return True

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
    def contents(
        tensors: Sequence[torch.Tensor], known: Mapping[int, bytes | memoryview] = MappingProxyType({})
    ) -> bytes:
        """A digest of all contents: changed by every write, those behind torch's back included.

        Parameters
        ----------
        known : by position, digests of tensors that need not be read, or the memory that others fill.
        """
        total = xxhash.xxh3_128()
        elsewhere = []
        for position, tensor in enumerate(tensors):
            total.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            if tensor.device.type == "cpu":
                found = known.get(position)
                if isinstance(found, memoryview):
                    found = xxhash.xxh3_128_digest(found)
                total.update(digest(tensor) if found is None else found)
            else:
                elsewhere.append(checksum(tensor))
        if elsewhere:
            total.update(torch.stack(elsewhere).cpu().numpy().tobytes())
        return total.digest()


def _kinds(tensors: Sequence[torch.Tensor]) -> list[list[Any]]:
    return [list(map(read, tensors)) for read in _kind_of]


def _comparer(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """Whether tensors have the classes, shapes, strides, dtypes and devices that these have now: one call for all.

    True is certain; False may have other reasons. None where torch cannot compare them so (weights that are tied).
    """
    try:
        sizes, strides = (
            [list(read(tensor)) for tensor in tensors] for read in (torch.Tensor.size, torch.Tensor.stride)
        )
        sized: dict[str, Any] = {"dynamic_dims_sizes": sizes, "dynamic_dims_strides": strides}
        guards = torch._C._dynamo.guards.TensorGuards(*tensors, **sized)
        return guards.check if guards.check(*tensors) else None
    except (AttributeError, RuntimeError, TypeError):
        return None


class Epoch:
    """The digest of all weights, taken again when asked for, and whenever a weight may have been written to.

    Between digests the memory, addresses and versions of the weights are compared, and on the CPU their first bytes, so
    that a weight that is rewritten behind torch's back (``.data``, ``.numpy()``: how adapters are merged) is seen at
    once. A write behind torch's back that leaves the first bytes of a weight as they are is seen by the next digest.
    Evicted weights are neither read nor compared: the kernel knows of every write.

    Attributes
    ----------
    places : another object whenever weights may lie elsewhere or torch may know of a write; None where it cannot tell.
    """

    def __init__(self) -> None:
        self.places: object = None
        self._contents: bytes | None = None
        self._versions: tuple[list[int], list[int]] | None = None
        self._storages: list[StorageWeakRef] = []
        self._heads: list[memoryview] = []
        self._head = b""
        self._known: dict[int, bytes | memoryview] = {}
        self._watch = Watch(())
        with _lock:
            _epochs.add(self)

    def let_go(self) -> None:
        """Hold no memory of weights; the next call digests them anew. Another thread may be within `of`."""
        self._versions, self._heads, self._watch, self._known = None, [], Watch(()), {}
        self.places = None

    def of(self, weights: Sequence[torch.Tensor], *, fresh: bool) -> bytes:
        """The digest of these weights; `fresh`: a trajectory starts, take it whatever is known."""
        if fresh:
            for mapping in mappings():
                mapping.trajectory_starts()
        contents = self._contents
        there = contents is not None and self._untouched(weights)
        if contents is None or fresh or not there:
            self._contents = None  # a digest that is interrupted must not leave the old one behind
            known = self._known if there else self._look(weights)
            contents = Weights.contents(weights, known)
            if there and not self._untouched(weights):  # another thread moved one meanwhile
                contents = Weights.contents(weights, self._look(weights))
            self._contents = contents
        return contents

    def _look(self, weights: Sequence[torch.Tensor]) -> dict[int, bytes | memoryview]:
        """Note where the weights lie: the memory of those that fill theirs, and the digests of those evicted."""
        watch = Watch(weights)
        self._versions = Weights.versions(weights)
        shown = [k for k, w in enumerate(weights) if w.device.type == "cpu" and k not in watch.digests]
        memory = [_memory(weights[k]) for k in shown]  # they hold what they show
        elsewhere = (weights[k] for k in set(range(len(weights))).difference(shown))
        self._storages = [StorageWeakRef(weight.untyped_storage()) for weight in elsewhere]
        heads = [view[:_HEAD_BYTES] for view in memory]
        self._head = b"".join(heads)
        whole = {k: view for k, view in zip(shown, memory, strict=True) if _fills(weights[k], view)}
        known: dict[int, bytes | memoryview] = {**watch.digests, **whole}
        self._heads, self._watch, self._known = heads, watch, known
        self.places = object() if self._versions is not None else None
        return known

    def _untouched(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether torch knows of no write since the last digest, and no other memory came to lie at an old address."""
        versions, heads = self._versions, self._heads  # once: another thread may let go of them
        try:
            if versions is None or list(map(_version_of, weights)) != versions[1]:
                return False
        except RuntimeError:  # made in inference mode
            return False
        if any(map(torch.UntypedStorage._expired, map(_cdata_of, self._storages))):
            return False
        # One call, within which no other thread runs: once a weight lies elsewhere, the memory it had before is gone.
        places = map(eq, map(torch.Tensor.data_ptr, weights), versions[0])
        shown = map(eq, map(b"".join, (heads,)), (self._head,))
        return all(chain(places, shown)) and self._watch.same()


_epochs: weakref.WeakSet[Epoch] = weakref.WeakSet()
_lock = threading.Lock()


def let_go() -> None:
    """Have all digests, of all threads, hold no memory of weights."""
    with _lock:
        for epoch in list(_epochs):
            epoch.let_go()


def _memory(weight: torch.Tensor) -> memoryview:
    """The bytes of a weight's memory from its first element on: only as long as the weight lies there.

    By DLPack: after `torch.Tensor.numpy` a storage can no longer be resized.
    """
    storage, start = weight.untyped_storage(), weight.storage_offset() * weight.element_size()
    size = min(storage.nbytes() - start, max(_HEAD_BYTES, weight.numel() * weight.element_size()))
    data = np.from_dlpack(torch.empty(0, dtype=torch.uint8).set_(storage, start, (size,), (1,))).data
    assert isinstance(data, memoryview)
    return data


def _fills(weight: torch.Tensor, memory: memoryview) -> bool:
    """Whether memory is a weight's elements in logical order, and nothing else."""
    plain = weight.is_contiguous() and not weight.is_neg() and not weight.is_conj()
    return plain and 0 < len(memory) == weight.numel() * weight.element_size()
