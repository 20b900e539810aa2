"""While one thread captures, no other thread may run a module or a compiled call.

Tracing replaces methods of ``torch.nn.Module`` and turns flags of torch (oneDNN's) for the whole process: a module that
another thread runs meanwhile would be drawn into the trace, and kernels would round otherwise.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

_PATIENCE = 30.0  # seconds that a capture waits for other threads: they may in turn wait for this one


class Gate:
    """Many threads may run modules, or one may capture. A thread that is inside may enter again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[int, int] = {}  # thread → how often it is inside
        self._capturing: int | None = None
        self._waiting = 0
        self._inside = _Inside(self)

    def running(self) -> AbstractContextManager[None]:
        """While the calling thread runs a module."""
        return self._inside

    def enter(self) -> None:
        """Begin to run a module, when no other thread captures or waits to."""
        me = threading.get_ident()
        with self._changed:
            while self._capturing not in (None, me) or (self._waiting and me not in self._running):
                self._changed.wait()
            self._running[me] = self._running.get(me, 0) + 1

    def leave(self) -> None:
        """End what `enter` began."""
        me = threading.get_ident()
        with self._changed:
            left = self._running.pop(me) - 1
            if left:
                self._running[me] = left
            elif self._waiting:
                self._changed.notify_all()

    @contextlib.contextmanager
    def capturing(self, patience: float = _PATIENCE) -> Iterator[bool]:
        """While the calling thread captures; yields False, and guards nothing, when others would not make room."""
        me = threading.get_ident()
        with self._changed:
            self._waiting += 1
            free = self._changed.wait_for(lambda: self._capturing is None and not self._others(me), patience)
            self._waiting -= 1
            if free:
                self._capturing = me
            else:
                self._changed.notify_all()
        try:
            yield free
        finally:
            if free:
                with self._changed:
                    self._capturing = None
                    self._changed.notify_all()

    def _others(self, me: int) -> bool:
        return any(thread != me for thread in self._running)


class _Inside(AbstractContextManager[None]):
    """While a thread is inside a gate: without the generator that `contextlib` would make for every call."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.enter()

    def __exit__(self, *error: object) -> None:
        self._gate.leave()


GATE = Gate()  # one for the process, as the methods that tracing replaces are
