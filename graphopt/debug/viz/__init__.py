"""A compilation as a page, a document, or a picture."""

from __future__ import annotations

import importlib
import json
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


def _picture(format: str) -> Writer:
    def write(compilation: Compilation, view: View) -> bytes:
        from graphopt.debug.viz.dot import picture

        return picture(
            compilation, format=format, stage=view.stage, after=view.after, depth=view.depth, compare=view.compare
        )

    return write


def _explorer(compilation: Compilation, view: View) -> bytes:
    from graphopt.debug.viz.explorer import collection

    return json.dumps(collection(compilation, (0, -1 if view.after is None else view.after))).encode()


FORMATS: dict[str, Writer] = {
    "html": _late("html", "page"),
    "json": _late("model", "document_json"),
    "svg": _picture("svg"),
    "png": _picture("png"),
    "dot": _picture("dot"),
    "explorer": _explorer,
}
