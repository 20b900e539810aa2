"""Strides after a rewrite: what follows from a changed node is inferred anew, and stays legal.

A rewrite may give a tensor other strides (channels-last instead of contiguous) without changing a value. Everything
downstream then has other strides too, and a `view` may no longer be possible. `refresh` follows such a change to where
it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from graphopt.errors import PassError
from graphopt.ir.program import Program, infer

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)
STRIDE_READERS = frozenset(
    {aten.as_strided.default, aten.sym_stride.int, aten.view.dtype, aten.view_as_complex.default}
)


# Their kernel for channels-last inputs forms variances as E[x²] − E[x]², which cancels where the mean is not near 0.
_EXACT_ONLY_PLAIN = frozenset({aten.group_norm.default, aten.native_group_norm.default})


def strides(value: Any) -> Any:
    """Shape, strides and dtype of a (fake) tensor, of each tensor in a sequence; anything else as it is."""
    if isinstance(value, list | tuple):
        return tuple(strides(entry) for entry in value)
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, torch.Tensor) else value


def is_channels_last(value: torch.Tensor) -> bool:
    """Whether a four-dimensional tensor lies in memory with its channels innermost."""
    return value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)


def has_symbols(value: Any) -> bool:
    """Whether a size of a (fake) tensor is known only when the Program runs."""
    return isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


def refresh(program: Program, changed: Iterable[fx.Node]) -> None:
    """Infer the values of `changed` nodes and of all that follows, as far as strides differ from what was recorded.

    Where a `view` would need strides that are no longer there it becomes a `reshape`. A group norm reads a copy with
    the strides there were; a result of the Program whose strides changed is returned as such a copy.

    Raises
    ------
    PassError : an operation reads the strides that changed, or a result cannot be given its strides back because sizes
        are symbolic.
    """
    stale = set(changed)
    for node in program.nodes:
        if node not in stale or node.op != "call_function":
            continue
        if node.target in STRIDE_READERS:
            raise PassError(f"{node.target} reads the strides that the rewrite changes", where=node.name)
        before = node.meta["val"]
        if node.target in _EXACT_ONLY_PLAIN and _turned(node, before):
            source = node.all_input_nodes[0]
            copy = program.call(aten.clone.default, source, before=node, memory_format=torch.contiguous_format)
            node.replace_input_with(source, copy)
        after = _infer_layout(program, node)
        if strides(before) != strides(after):
            node.meta["val"] = after
            stale.update(node.users)
            if program.output in node.users:
                _restore(program, node, before)


def _turned(node: fx.Node, before: Any) -> bool:
    """Whether the first argument of a node is channels-last now; `before` says how results were laid out so far."""
    source = node.all_input_nodes[0].meta["val"]
    first = before[0] if isinstance(before, list | tuple) else before
    return is_channels_last(source) and source.stride() != first.stride() and first.is_contiguous()


def _infer_layout(program: Program, node: fx.Node) -> Any:
    try:
        return infer(node)
    except (RuntimeError, ValueError):
        if node.target not in _VIEWS:
            raise
        node.target = aten.reshape.default
        program.touch(node)
        return infer(node)


def _restore(program: Program, node: fx.Node, before: torch.Tensor) -> None:
    """Return a copy of `node` with the strides of `before`; its strides do not depend on those of `node` any more."""
    here: dict[str, Any] = {"before": program.output, "like": node}
    sizes, steps = list(before.shape), list(before.stride())
    formats = [torch.contiguous_format, *([torch.channels_last] if before.ndim == 4 else [])]
    fitting = [entry for entry in formats if before.is_contiguous(memory_format=entry)]
    if fitting:
        result = program.call(aten.clone.default, node, memory_format=fitting[0], **here)
    elif has_symbols(before):
        raise PassError("a result whose sizes are symbolic would have other strides", where=node.name)
    else:  # part of a larger tensor, or expanded: written into memory of its extent
        result, once = node, list(sizes)
        for dim, step in enumerate(steps):
            if step == 0 and sizes[dim] > 1:
                result, once[dim] = program.call(aten.slice.Tensor, result, dim, 0, 1, **here), 1
        extent = 1 + sum((size - 1) * step for size, step in zip(once, steps, strict=True))
        room = program.call(aten.zeros.default, [extent], dtype=before.dtype, device=before.device, **here)
        result = program.call(aten.as_strided_scatter.default, room, result, once, steps, 0, **here)
        result = program.call(aten.as_strided.default, result, sizes, steps, **here)
    if result.meta["val"].stride() != before.stride():  # dimensions of size 1, where any stride will do
        result = program.call(aten.as_strided.default, result, sizes, steps, **here)
    program.output.replace_input_with(node, result)
