"""Tracing replaces methods of ``torch.nn.Module`` for the whole process; here it does so for the tracing thread alone.

Other threads go on calling modules meanwhile, compiled ones among them: every call of a module passes by the method
that is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.fx._symbolic_trace import _Patcher

METHODS = threading.RLock()  # whoever replaces methods of torch's classes, or puts them back, holds this
_patch_method = _Patcher.patch_method


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """While the calling thread traces. One thread at a time; a thread that traces may enter again."""
    with METHODS:
        before = _Patcher.patch_method
        _Patcher.patch_method = _patch_for_this_thread  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            _Patcher.patch_method = before  # type: ignore[method-assign]


def _patch_for_this_thread(
    patcher: Any, cls: type, name: str, replacement: Callable[..., Any], deduplicate: bool = True
) -> None:
    me, before = threading.get_ident(), getattr(cls, name)

    @functools.wraps(replacement)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (replacement if threading.get_ident() == me else before)(*args, **kwargs)

    _patch_method(patcher, cls, name, method, deduplicate)
