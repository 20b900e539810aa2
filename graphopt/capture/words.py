"""Words of memory: fields of many live objects, and first bytes of many tensors, read in one go.

After a step little of a module is in any cache. Asking a thousand dicts one by one waits for memory a thousand times,
besides a call and a Python integer each (50 ns when all is in cache); in one gather the processor waits for many words
at a time (1.3 ns each when all is in cache). What is read is only compared with what was read before. Where the fields
lie is tried out, and objects that are laid out otherwise are asked instead.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.capture import tags

BYTES = 8
_BASE = BYTES  # no view begins at address 0: NumPy would take that for no memory


class Words:
    """Aligned words of 8 bytes at fixed addresses.

    Parameters
    ----------
    addresses : multiples of 8.
    holders : whatever keeps that memory alive and where it is; held as long as the words are.
    """

    def __init__(self, addresses: Iterable[int], holders: Sequence[Any]) -> None:
        self._places = (np.fromiter(addresses, dtype=np.int64) - _BASE) // BYTES
        self._holders = holders

    def read(self) -> bytes:
        """What they hold now."""
        return _memory().take(self._places).tobytes()


@functools.cache
def _memory() -> npt.NDArray[np.uint64]:
    """All addresses that a process on a 64-bit system can have, as one array; nothing is read yet."""
    whole = (ctypes.c_uint64 * ((1 << 47) // BYTES - 1)).from_address(_BASE)
    return np.frombuffer(whole, dtype=np.uint64)


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


class _Probe:
    """What is tried out on."""


@functools.cache
def place_of_tag() -> int | None:
    """At how many bytes from its start a dict has its tag; None where it lies elsewhere (Python 3.12 and later)."""
    if ctypes.sizeof(ctypes.c_void_p) != BYTES or not tags.kept():
        return None
    places = set(range(0, {}.__sizeof__() // BYTES * BYTES, BYTES))
    probe: dict[int, object] = {}
    for key in range(64):
        probe[key % 5] = object()
        (tag,) = tags.tags([probe])
        places = {place for place in places if _word(id(probe) + place) == tag}
    return places.pop() if len(places) == 1 else None


def places_of_shell(owner: Any) -> tuple[int, int] | None:
    """At how many bytes from its start an object refers to its class and to its ``__dict__``; None if not known."""
    kind = type(owner)
    of_dict = kind.__dictoffset__ if kind.__dictoffset__ > 0 else _place_of_managed()
    of_kind = object.__basicsize__ - BYTES
    if of_dict is None or _word(id(owner) + of_kind) != id(kind) or _word(id(owner) + of_dict) != id(owner.__dict__):
        return None
    return of_kind, of_dict


@functools.cache
def _place_of_managed() -> int | None:
    """Where an object refers to a ``__dict__`` that Python keeps before it (3.11); None where that is not so."""
    if _Probe.__dictoffset__ > 0:
        return None
    place = -3 * BYTES
    probe = _Probe()
    for key in range(64):
        if key % 2:
            probe.__dict__ = {"key": key}
        if _word(id(probe) + place) != id(probe.__dict__):
            return None
    return place
