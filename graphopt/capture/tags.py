"""Version tags of dicts: whether any of many dicts was written to, without a look at what they hold.

CPython gives a dict a tag that no other dict has, and another one whenever another value is written (PEP 509, Python
3.10 and 3.11); from 3.12 on torch has dicts watched and numbers what happens to each. Either way equal tags of one and
the same dict mean that it holds what it held. Objects *in* a dict are not looked at: a list that grows changes no tag.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any

import torch

_ENOUGH = 64  # repetitions after which an interpreter has specialised what is repeated


def tags(dicts: Iterable[dict[Any, Any]]) -> list[int]:
    """The tag of each dict, as it is now. Only where `kept`."""
    return list(map(torch._C._dynamo.guards.dict_version, dicts))


@functools.cache
def kept() -> bool:
    """Whether this Python and this torch keep tags truly: each way of writing is tried out once."""
    try:
        return all(map(_is_seen, _WRITES))
    except (AttributeError, RuntimeError, TypeError):
        return False  # another torch


def of_class(kind: type) -> dict[str, Any] | None:
    """The dict behind ``vars(kind)``, which is written when attributes of the class are; None where there is no one."""
    attributes = vars(kind)
    found = gc.get_referents(attributes) if isinstance(attributes, MappingProxyType) else []
    return found[0] if len(found) == 1 and type(found[0]) is dict and found[0] == attributes else None


class _Probe:
    """What is written to."""

    def __init__(self) -> None:
        self.value: object = None
        self.other: object = None


def _assign(probe: _Probe, value: object) -> None:
    probe.value = value


def _delete(probe: _Probe, value: object) -> None:
    del probe.other
    probe.other = value


def _add(probe: _Probe, value: object) -> None:
    probe.__dict__.pop("new", None)
    probe.new = value  # type: ignore[attr-defined]


_WRITES: tuple[Callable[[_Probe, object], object], ...] = (
    _assign,
    _delete,
    _add,
    lambda probe, value: setattr(probe, "value", value),
    lambda probe, value: probe.__dict__.__setitem__("value", value),
    lambda probe, value: probe.__dict__.update(value=value),
    lambda probe, value: probe.__dict__.__ior__({"value": value}),
    lambda probe, value: probe.__dict__.pop("value"),
    lambda probe, value: probe.__dict__.popitem(),
    lambda probe, value: probe.__dict__.clear(),
    lambda probe, value: probe.__dict__.setdefault("new", value),
    lambda probe, value: setattr(_Probe, "shared", value),
)


def _is_seen(write: Callable[[_Probe, object], object]) -> bool:
    """Whether a write changes the tags, of the object or of its class, and reading does not."""
    seen = True
    of_probes = of_class(_Probe)
    for _ in range(_ENOUGH):
        probe = _Probe()
        watched = [probe.__dict__, *([] if of_probes is None else [of_probes])]
        before = tags(watched)
        seen &= len(probe.__dict__) == 2 and probe.value is None and before == tags(watched)
        write(probe, object())
        seen &= before != tags(watched)
    return seen
