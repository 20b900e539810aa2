"""Values kept under a key of exactly what they depend on: memos of stages, and how tensors enter keys.

On the CPU the contents of a tensor decide, by a 128-bit digest, so that no way of writing into a tensor (in place,
``.data``, ``.numpy()``) can leave a stale value behind. On other devices reading contents would stop the device; there
a tensor is the same when it is the same memory with the same version counter, and the key holds that memory alive so
that no other tensor can come to lie there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import xxhash

from graphopt.ir.cost import nbytes


@dataclass(frozen=True)
class Key:
    """What a kept value depends on. `held` keeps device memory alive that the key names by address."""

    parts: Hashable
    held: tuple[torch.Tensor, ...] = ()


def key_of(tensors: Sequence[Any], *extra: Hashable) -> Key:
    """The key of these tensors (and numbers), plus anything hashable given in `extra`."""
    keys = list(map(key_part, tensors))
    return Key((*extra, *(part for part, _ in keys)), tuple(held for _, held in keys if held is not None))


def key_part(value: Any) -> tuple[Hashable, torch.Tensor | None]:
    """What a key says about one value, and the device memory it names by address."""
    if not isinstance(value, torch.Tensor):
        return (type(value), repr(value) if isinstance(value, float | complex) else value), None
    if value.is_cpu:
        return (value.shape, value.dtype, value.stride(), digest(value)), None
    version = -1 if value.is_inference() else value._version
    contents = digest(value) if version < 0 else b""  # inference tensors have no version: contents decide
    place = (value.device, value.data_ptr(), version, contents)
    return (value.shape, value.dtype, value.stride(), place), value.detach()


def digest(tensor: torch.Tensor) -> bytes:
    """128 bits of the contents: every bit of every element, in logical order."""
    # As below, without the operators, which cost more than a small tensor's contents.
    if tensor.dtype in _NUMPY and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() and not tensor.is_neg():
        return xxhash.xxh3_128_digest((tensor.detach() if tensor.requires_grad else tensor).numpy().data)
    data = _flat(tensor)
    if data.numel() == 0:
        return b""
    if data.device.type == "cpu":
        return xxhash.xxh3_128_digest(data.view(torch.uint8).numpy().data)
    return xxhash.xxh3_128_digest(checksum(data).cpu().numpy().data)


_cdata_of = attrgetter("_cdata")
_NUMPY = frozenset({torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.bool})


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Three int64 sums over a tensor's words, weighted by position; computed on its device without waiting for it."""
    data = _flat(tensor).view(torch.uint8)
    words = (data.view(torch.int32) if len(data) % 4 == 0 and data.data_ptr() % 4 == 0 else data).to(torch.int64)
    ramp = torch.arange(1, len(words) + 1, device=words.device)
    return torch.stack([words.sum(), (words * ramp).sum(), (words * ramp * ramp).sum()])


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in logical order, of stride 1: one that was expanded to a single element has stride 0."""
    data = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return data.as_strided(data.shape, (1,))


@dataclass(frozen=True)
class _Entry:
    key: Key
    values: tuple[Any, ...]
    size: int
    views: dict[int, int]  # position of a weight that a value shares memory with → that memory


class Memo:
    """Least-recently-used values by `Key`, bounded in bytes and in entries; the newest is kept whatever its size.

    Safe to use from several threads. Counts hits and misses.
    """

    def __init__(self, max_bytes: int, max_entries: int | None = None) -> None:
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.bytes, self.hits, self.misses = 0, 0, 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, weights: Sequence[torch.Tensor] = ()) -> tuple[Any, ...] | None:
        """The values kept under `key`, or None; views of weights serve only while the weights lie where they lay."""
        with self._lock:
            entry = self._entries.get(key.parts)
            if entry is None or any(_memory(weights[k]) != memory for k, memory in entry.views.items()):
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key.parts)
            return entry.values

    def put(self, key: Key, values: tuple[Any, ...], weights: Sequence[torch.Tensor] = ()) -> None:
        """Keep `values`; the entries used least recently go when there are too many bytes.

        A value that shares memory with one of `weights` is kept as the view it is, and takes no bytes. (That memory
        stays alive with the entry, so that its address names it.)
        """
        kept = {_memory(value) for value in values if isinstance(value, torch.Tensor)}
        views = {k: memory for k, memory in enumerate(_memories(weights)) if memory in kept}
        shared = set(views.values())
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        own = {_memory(tensor) or id(tensor): tensor for tensor in tensors if _memory(tensor) not in shared}
        size = sum(map(_stored_bytes, own.values()))
        with self._lock:
            self._drop(key.parts)
            self._entries[key.parts] = _Entry(key, values, size, views)
            self.bytes += size
            while len(self._entries) > 1 and self._full():
                self._drop(next(iter(self._entries)))

    def kept(self) -> list[tuple[Any, ...]]:
        """All that is kept, the values used last at the end."""
        with self._lock:
            return [entry.values for entry in self._entries.values()]

    def copy(self) -> Memo:
        """Another of the same values, which holds no memory of its own, and of the same counts."""
        other = Memo(self.max_bytes, self.max_entries)
        with self._lock:
            other.bytes, other.hits, other.misses = self.bytes, self.hits, self.misses
            other._entries = self._entries.copy()
        return other

    def clear(self) -> None:
        """Forget everything; the counts stay."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def _full(self) -> bool:
        return self.bytes > self.max_bytes or len(self._entries) > (self.max_entries or len(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, parts: Hashable) -> None:
        entry = self._entries.pop(parts, None)
        self.bytes -= entry.size if entry else 0


def private(values: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
    """`values`, those that share memory with one of `inputs` copied: a caller may write into what it passed.

    Copies have the strides of what they stand for.
    """
    theirs = {_memory(tensor) for tensor in inputs if isinstance(tensor, torch.Tensor)}
    return tuple(
        _copy(value) if isinstance(value, torch.Tensor) and _memory(value) in theirs else value for value in values
    )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage().clone()
    return tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _memory(tensor: torch.Tensor) -> int:
    """The memory of a tensor, as a number that names it as long as it is alive (0 for tensors that have none)."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0


def _memories(tensors: Sequence[torch.Tensor]) -> list[int]:
    """The memory of each tensor: of those of the usual layout in two calls for all."""
    try:
        return list(map(_cdata_of, map(torch.Tensor.untyped_storage, tensors)))
    except RuntimeError:  # one of them has none
        return list(map(_memory, tensors))


def _stored_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage().nbytes()
    return int(nbytes(value))
