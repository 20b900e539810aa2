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
    """A node's value: where it lies in that of another."""

    node: fx.Node
    source: fx.Node
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, source: torch.Tensor) -> torch.Tensor:
        """The view."""
        return source.as_strided(self.size, self.stride, self.offset)


def windows(plan: Steps, results: Sequence[fx.Node]) -> tuple[list[Kernels | Torch], list[Window]]:
    """The steps that are left to do, and the windows to make after them.

    Parameters
    ----------
    results : nodes whose values the stage gives.
    """
    steps = list(plan.steps)
    fresh = [node for step in plan.kernels for node in step.fresh]
    with _disable_current_modes():
        empty = {
            node: torch.empty_strided(val(node).shape, plan.strides[node], dtype=val(node).dtype, device="meta")
            for node in fresh
        }
        homes = {value.untyped_storage()._cdata: node for node, value in empty.items()}
        known: dict[fx.Node, Any] = dict(empty)
        while steps and isinstance(steps[-1], Torch):
            steps.pop()
        for step in plan.steps[len(steps) :]:
            assert isinstance(step, Torch)
            if known.keys().isdisjoint(step.node.all_input_nodes):
                steps.append(step)
            elif not _view(step.node, known, homes):
                return list(plan.steps), []
    made = [node for node in results if node in known and node not in empty]
    return steps, [_window(node, homes[known[node].untyped_storage()._cdata], known[node]) for node in made]


def _view(node: fx.Node, known: dict[fx.Node, Any], homes: Mapping[int, fx.Node]) -> bool:
    """Whether an operation only looks at memory that is at home; then what it gives is known, too."""
    if not is_view(node) or not all(source in known for source in node.all_input_nodes):
        return False
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    found = known[node] if isinstance(known[node], tuple | list) else [known[node]]
    return all(isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in homes for value in found)


def _window(node: fx.Node, source: fx.Node, value: torch.Tensor) -> Window:
    return Window(node, source, value.shape, value.stride(), int(value.storage_offset()))
