"""A compilation as a page, a document, or a picture."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from graphopt.debug.history import Compilation
    from graphopt.debug.viz.model import View

Writer: TypeAlias = "Callable[[Compilation, View], bytes]"


def _late(module: str, name: str) -> Writer:
    """A function of a module that is imported, and torch with it, when it is called."""

    def write(compilation: Compilation, view: View) -> bytes:
        made: bytes = getattr(importlib.import_module(f"{__name__}.{module}"), name)(compilation, view)
        return made

    return write


FORMATS: dict[str, Writer] = {
    "html": _late("html", "page"),
    "json": _late("model", "document_json"),
}
