"""A package whose names are imported when first asked for.

torch takes over a second to import; ``graphopt --help`` and ``--version`` need none of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def open_lazily(package: str, homes: Mapping[str, str]) -> None:
    """Make the names of `homes` attributes of `package`, each imported at first use from the submodule named there.

    A name may equal that of its submodule (``compile``): then the attribute is always the exported object, never the
    submodule, although the import system would put the submodule there.
    """

    class Door(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            home = importlib.import_module(f"{package}.{homes[name]}")
            value = home if homes[name] == name and not hasattr(home, name) else getattr(home, name)
            vars(self)[name] = value
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in homes and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*vars(self), *homes})

    sys.modules[package].__class__ = Door
