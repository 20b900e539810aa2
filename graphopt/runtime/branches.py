"""Calls on a batch of guidance branches, held back where the sampler was seen to give some branches no weight.

Whether it does is known from the recorded trajectory. Only then does a compiled call return a `Guided` tensor
(`graphopt.runtime.guidance`); which branches it computes follows from what the sampler does with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_unflatten

from graphopt.capture.calls import Call
from graphopt.errors import GraphoptError
from graphopt.ir.branches import independent
from graphopt.ir.loop import LoopProgram
from graphopt.ir.program import Program
from graphopt.ir.relations import bits
from graphopt.runtime.guidance import GuidanceCounts, defer

_MOST_VIEWS = 16  # conditions of the last requests, by the branches computed


class Branches:
    """The held back calls of one module.

    Parameters
    ----------
    name : of the module, as recorded.

    Attributes
    ----------
    counts : calls held back, their branches, and how many of these were computed.
    """

    def __init__(self, name: str) -> None:
        self.name, self.counts = name, GuidanceCounts()
        self._times: tuple[LoopProgram | None, int] = (None, 0)
        self._paths: dict[int, tuple[Program, frozenset[str]]] = {}
        # Rows of conditions, the same objects at every step. A view holds what it is a view of: so they are few.
        self._views: OrderedDict[tuple[int, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def times(self, loop: LoopProgram) -> int:
        """Of how many branches the batch consists; 0 where all of them had weights in the recorded trajectory."""
        if self._times[0] is not loop:
            self._times = loop, loop.idle_branches(self.name)
        return self._times[1]

    def hold(
        self, captured: Program, call: Call, times: int, run: Callable[[Call, list[Any]], Any], same: Callable[[], bool]
    ) -> Any:
        """What the module returns, its tensor a `Guided`; None where the branches cannot be told apart.

        Parameters
        ----------
        captured : the Program of the call.
        run : runs the module on the call's leaves, or on others in their place.
        same : whether the module, its weights and torch's settings are still as they are now.
        """
        if torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() or len(captured.results) != 1:
            return None
        paths = self._independent(captured, times)
        if not paths:
            return None
        given = [entry for entry in captured.inputs if entry.role != "weight"]
        positions = [k for k, leaf in enumerate(call.leaves) if isinstance(leaf, torch.Tensor)]
        batched = {k: entry.role for k, entry in zip(positions, given, strict=True) if entry.path in paths}
        kept = {k: call.leaves[k].clone() for k in positions}  # the sampler may write to what it passed

        def compute(branches: tuple[int, ...]) -> torch.Tensor:
            if not same():
                raise GraphoptError(
                    f"{self.name}, or a setting of torch, was changed between a call and the first use of its result",
                    where="a call held back until its guidance is known",
                    hint="use the result before changing either, or compile with another sampler recorded",
                )
            leaves = list(call.leaves)
            for k in positions:
                leaf = leaves[k] if torch.equal(bits(leaves[k]), bits(kept[k])) else kept[k]
                if k in batched and len(branches) < times:
                    rows = _rows(leaf, branches, times)
                    leaf = self._known(leaf, rows, branches) if batched[k] == "condition" else rows
                leaves[k] = leaf
            (result,) = (leaf for leaf in tree_leaves(run(call, leaves)) if isinstance(leaf, torch.Tensor))
            return result

        assert captured.results[0] is not None
        value = captured.results[0].meta["val"]
        held = defer(
            compute, value.shape, value.dtype, value.device, branches=times, strides=value.stride(), counts=self.counts
        )
        return (held,) if captured.out_spec is None else tree_unflatten([held], captured.out_spec)

    def _independent(self, captured: Program, times: int) -> frozenset[str]:
        found = self._paths.get(id(captured))
        if found is None or found[0] is not captured:
            found = self._paths[id(captured)] = captured, independent(captured, times)
        return found[1]

    def _known(self, tensor: torch.Tensor, rows: torch.Tensor, branches: tuple[int, ...]) -> torch.Tensor:
        """`rows` of a condition, as the object that earlier calls got: by that a trajectory knows its conditions."""
        key = id(tensor), branches
        with self._lock:
            of, known = self._views.pop(key, (tensor, rows))
            # A tensor may be given other memory (`tensor.data = ...`).
            if of is not tensor or _place(known) != _place(rows):
                known = rows
            self._views[key] = tensor, known
            if len(self._views) > _MOST_VIEWS:
                self._views.popitem(last=False)
            return known


def _rows(tensor: torch.Tensor, branches: Sequence[int], times: int) -> torch.Tensor:
    """The rows of some branches: a view where they lie next to each other."""
    rows, first, last = tensor.shape[0] // times, branches[0], branches[-1]
    if list(branches) != list(range(first, last + 1)):
        return torch.cat([tensor[k * rows : (k + 1) * rows] for k in branches])
    return tensor[first * rows : (last + 1) * rows]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
