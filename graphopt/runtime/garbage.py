"""Building a call makes a hundred thousand objects that stay; Python's collector need not look at them again and again.

A full collection looks at every object of the process: a quarter of a second with torch loaded, which is more than
reading a call's programs and code takes.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_MANY = 400_000  # objects made meanwhile: a capture that was traced, whose frames and fake tensors are garbage now


@contextlib.contextmanager
def later() -> Iterator[None]:
    """While no garbage is collected; at the end it is, where much was made."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if gc.get_count()[0] > _MANY:
            gc.collect()
