"""While one thread captures, no other thread may run a module or a compiled call.

Tracing replaces methods of ``torch.nn.Module`` and turns flags of torch (oneDNN's) for the whole process: a module that
another thread runs meanwhile would be drawn into the trace, and kernels would round otherwise.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

_PATIENCE = 30.0  # seconds that a capture waits for other threads: they may in turn wait for this one


class Gate:
    """Many threads may run modules, or one may capture. A thread that is inside may enter again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: Counter[int] = Counter()
        self._capturing: int | None = None
        self._waiting = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the calling thread runs a module."""
        me = threading.get_ident()
        with self._changed:
            while self._capturing not in (None, me) or (self._waiting and me not in self._running):
                self._changed.wait()
            self._running[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._running[me] -= 1
                if not self._running[me]:
                    del self._running[me]
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


GATE = Gate()  # one for the process, as the methods that tracing replaces are
