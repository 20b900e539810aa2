"""Changes grouped by submodule, with what repeats from block to block said once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.debug.diff import MARKS, Change, Difference, Kind
from graphopt.debug.journal import cost_of, number


@dataclass(frozen=True)
class Group:
    """The changes of one kind in one submodule, or in several alike.

    Attributes
    ----------
    module : dotted path, a star for each number that differs between the submodules; empty for the model itself.
    modules : all of them, in order.
    changes : those of the first.
    """

    kind: Kind
    module: str
    modules: tuple[str, ...]
    changes: tuple[Change, ...]


def fold(changes: Sequence[Change]) -> list[Group]:
    """Groups in the order of `MARKS`, then of the first change in them.

    Submodules are alike where their paths differ in numbers only, and their changes in the numbers of names only.
    """
    own: dict[tuple[Kind, str], list[Change]] = {}
    for change in changes:
        own.setdefault((change.kind, change.module), []).append(change)
    alike: dict[Any, list[str]] = {}
    for (kind, module), found in own.items():
        key = kind, _without_numbers(module), tuple(map(_signature, found))
        alike.setdefault(key, []).append(module)
    groups = [
        Group(key[0], _common(modules), tuple(modules), tuple(own[key[0], modules[0]]))
        for key, modules in alike.items()
    ]
    return sorted(groups, key=lambda group: list(MARKS).index(group.kind))


def _signature(change: Change) -> Any:
    return _nameless(change.before), _nameless(change.after), change.values, change.stages


def _without_numbers(module: str) -> str:
    return re.sub(r"\b\d+\b", "*", module)


def _nameless(line: str | None) -> str | None:
    """A line without the numbers in its names: ``linear_3(p_blocks_0_weight)`` → ``linear(p_blocks_weight)``."""
    if line is None:
        return None
    return re.sub(r"[A-Za-z_]\w*", lambda match: re.sub(r"_\d+(?=_|$)", "", match[0]), line)


def _common(modules: Sequence[str]) -> str:
    parts = [module.split(".") for module in modules]
    return ".".join(column[0] if len(set(column)) == 1 else "*" for column in zip(*parts, strict=True))


def as_json(found: Difference) -> dict[str, Any]:
    """A difference as JSON: counts, changes in order, and the work per stage before and after."""
    return {
        "equal": not found.changes,
        "counts": {kind: found.counts[kind] for kind in MARKS},
        "changes": [
            {
                "kind": change.kind, "node": change.node, "before": change.before, "after": change.after,
                "values": list(change.values), "stages": list(change.stages), "module": change.module,
                "source": change.source, "flops": number(change.cost.flops), "bytes": number(change.cost.bytes),
            }
            for change in found.changes
        ],
        "stages": {
            name: [cost_of(was), cost_of(now)] for name, (was, now) in found.costs.items() if was.nodes or now.nodes
        },
        "renamed": found.renamed,
    }  # fmt: skip
