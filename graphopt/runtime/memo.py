"""Values kept under a key of exactly what they depend on: memos of stages, and the identity of tensors they use as keys.

On the CPU the contents of a tensor decide, by a 128-bit digest, so that no way of writing into a tensor (in place,
``.data``, ``.numpy()``) can leave a stale value behind. On other devices reading contents would stop the device; there a
tensor is the same when it is the same memory with the same version counter, and the key holds that memory alive so that
no other tensor can come to lie there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
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
    """The key of these tensors (other values must be hashable), plus anything given in `extra`."""
    parts: list[Hashable] = [*extra]
    held: list[torch.Tensor] = []
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            parts.append((type(tensor), tensor))
        elif tensor.device.type == "cpu":
            parts.append((tensor.shape, tensor.dtype, digest(tensor)))
        else:
            held.append(tensor.detach())
            version = -1 if tensor.is_inference() else tensor._version
            contents = digest(tensor) if version < 0 else b""  # inference tensors have no version: contents decide
            place = (tensor.device, tensor.data_ptr(), tensor.stride(), version, contents)
            parts.append((tensor.shape, tensor.dtype, place))
    return Key(tuple(parts), tuple(held))


def digest(tensor: torch.Tensor) -> bytes:
    """128 bits of the contents: every bit of every element, in logical order."""
    data = tensor.detach().contiguous().reshape(-1)
    if data.numel() == 0:
        return b""
    if data.device.type == "cpu":
        return xxhash.xxh3_128_digest(data.view(torch.uint8).numpy())
    return xxhash.xxh3_128_digest(checksum(data).cpu().numpy())


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Three int64 sums over a tensor's words, weighted by position; computed on its device without waiting for it."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words = (data.view(torch.int32) if len(data) % 4 == 0 and data.data_ptr() % 4 == 0 else data).to(torch.int64)
    ramp = torch.arange(1, len(words) + 1, device=words.device)
    return torch.stack([words.sum(), (words * ramp).sum(), (words * ramp * ramp).sum()])


class Memo:
    """Least-recently-used values by `Key`, bounded in bytes; the newest entry is kept whatever its size.

    Safe to use from several threads. Counts hits and misses.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._entries: OrderedDict[Hashable, tuple[Key, tuple[Any, ...], int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> tuple[Any, ...] | None:
        """The values kept under `key`, or None."""
        with self._lock:
            entry = self._entries.get(key.parts)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key.parts)
            return entry[1]

    def put(self, key: Key, values: tuple[Any, ...]) -> None:
        """Keep `values`; the entries used least recently go when there are too many bytes."""
        size = sum(_stored_bytes(value) for value in values)
        with self._lock:
            self._drop(key.parts)
            self._entries[key.parts] = (key, values, size)
            self.bytes += size
            while self.bytes > self.max_bytes and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything; the counts stay."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, parts: Hashable) -> None:
        entry = self._entries.pop(parts, None)
        self.bytes -= entry[2] if entry else 0


def _stored_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage().nbytes()
    return int(nbytes(value))
