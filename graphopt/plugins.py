"""Passes and targets by name: graphopt's own, and those that other packages declare as entry points."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from graphopt.ir.rewrite import Pass, pass_name, spell
from graphopt.passes import PASSES
from graphopt.targets import TARGETS, Target


def passes() -> dict[str, type[Pass]]:
    """Every known pass by its name; an entry point cannot replace one of graphopt's own."""
    found: dict[str, type[Pass]] = {pass_name(cls): cls for cls in PASSES}
    for where, loaded in _loaded("graphopt.passes"):
        if isinstance(loaded, type) and issubclass(loaded, Pass):
            found.setdefault(pass_name(loaded), loaded)
        else:
            _warn(where, f"{loaded!r} is not a subclass of graphopt.Pass")
    return found


def spelled(pass_: Pass) -> str:
    """A pass as the command line finds it again: ``module:Class`` where it is not registered, then its options."""
    cls, text = type(pass_), spell(pass_)
    if passes().get(pass_.name) is cls:
        return text
    return f"{cls.__module__}:{cls.__qualname__}{text.removeprefix(pass_.name)}"


def targets() -> dict[str, Target]:
    """Every known target by its name; an entry point gives a Target or its class."""
    found = dict(TARGETS)
    for where, loaded in _loaded("graphopt.targets"):
        try:
            target = loaded() if isinstance(loaded, type) else loaded
        except Exception as error:
            _warn(where, f"it raised {type(error).__name__}: {error}")
            continue
        if isinstance(target, Target):
            found.setdefault(target.name, target)
        else:
            _warn(where, f"{loaded!r} is no graphopt.Target")
    return found


def _loaded(group: str) -> Iterator[tuple[str, Any]]:
    for entry in entry_points(group=group):
        where = f"{group}: {entry.name} = {entry.value}"
        try:
            yield where, entry.load()
        except Exception as error:  # another package's fault must not stop this one
            _warn(where, f"it raised {type(error).__name__}: {error}")


def _warn(where: str, what: str) -> None:
    warnings.warn(f"graphopt: the entry point '{where}' is left out: {what}", RuntimeWarning, stacklevel=3)
