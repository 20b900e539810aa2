"""Results of a stage that are views of what its kernels wrote: made at once from sizes, strides and offsets.

Torch would make them one after the other: what was split, its parts, and views of these. Imports no TVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from ...ir.effects import is_view
from ...ir.program import val
from .steps import Kernels, Steps, Torch


@dataclass(frozen=True)
class Window:
    """A node's value: where it lies in that of another, of the same dtype."""

    node: fx.Node
    source: fx.Node
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, source: torch.Tensor) -> torch.Tensor:
        """The view."""
        return source.as_strided(self.size, self.stride, self.offset)


def with_windows(plan: Steps, results: Sequence[fx.Node]) -> list[Kernels | Torch | Window]:
    """The steps of a plan, with windows in the place of what torch would do after the last kernels to make them.

    Parameters
    ----------
    results : nodes whose values the stage gives.
    """
    last = max((place for place, step in enumerate(plan.steps) if isinstance(step, Kernels)), default=-1) + 1
    after = [step for step in plan.steps[last:] if isinstance(step, Torch)]
    with _disable_current_modes():
        empty = {
            node: torch.empty_strided(val(node).shape, plan.strides[node], dtype=val(node).dtype, device="meta")
            for step in plan.kernels
            for node in step.fresh
        }
        owners = {_storage(value): node for node, value in empty.items()}
        known: dict[fx.Node, Any] = dict(empty)
        looks = {step.node for step in after if _looks(step.node, known, empty, owners)}
    read = {*results, *(source for step in after if step.node not in looks for source in step.node.all_input_nodes)}
    shown = looks & read
    if not all(isinstance(known[node], torch.Tensor) for node in shown):
        return list(plan.steps)  # a list of parts is read as such
    windows = list[Window]()
    for step in after:
        if step.node in shown:
            value = known[step.node]
            place = value.shape, value.stride(), int(value.storage_offset())
            windows.append(Window(step.node, owners[_storage(value)], *place))
    # Windows come first: torch's operations let go of what they read.
    return [*plan.steps[:last], *windows, *(step for step in after if step.node not in looks)]


def _looks(
    node: fx.Node,
    known: dict[fx.Node, Any],
    empty: Mapping[fx.Node, torch.Tensor],
    owners: Mapping[int, fx.Node],
) -> bool:
    """Whether an operation only looks at what kernels wrote, as the numbers they are; what it gives is known then."""
    if not is_view(node) or not node.all_input_nodes or not all(source in known for source in node.all_input_nodes):
        return False
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    given = node.target(*args, **kwargs)  # type: ignore[operator]
    for value in given if isinstance(given, tuple | list) else [given]:
        owner = owners.get(_storage(value)) if isinstance(value, torch.Tensor) else None
        if owner is None or value.dtype != empty[owner].dtype or value.is_neg() or value.is_conj():
            return False
    known[node] = given
    return True


def _storage(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)
