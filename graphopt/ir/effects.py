"""What an operation does besides computing its result from the values of its arguments.

Three questions decide every move a pass may make:

- `has_effect`: random, mutating and unknown operations are never folded, merged, hoisted or reordered. ``aten.rand``
  has no inputs and would otherwise look like a constant.
- `value_inputs`: which arguments' *values* are read. ``zeros_like(x)`` reads only the shape of ``x``.
- `is_view`: whether the result may share memory with an argument, which decides what storing it costs.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten

# Operations that read only the shape, dtype and device of these arguments (position 0), never their values.
_SHAPE_READERS = frozenset(
    {
        aten.sym_size.int,
        aten.sym_numel.default,
        aten.sym_stride.int,
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.empty_like.default,
        aten.full_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_empty.default,
        aten.new_full.default,
    }
)

# Checks of shape and dtype that the guards of a captured call repeat before the Program runs.
METADATA_CHECKS = frozenset({aten._assert_tensor_metadata.default, aten.sym_constrain_range_for_size.default})

# Operators whose schemas and tags say what they do.
_KNOWN = frozenset({"aten", "prims", "mkldnn", "graphopt"})

# Operations that may give back their argument itself, although their schema does not say so.
_UNDECLARED_VIEWS = frozenset({aten.type_as.default, aten.dropout.default})

PURE_PYTHON = frozenset(
    {
        operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
        operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, torch.sym_float,
        torch.sym_int, torch.sym_max, torch.sym_min, torch.sym_not,
    }
)  # fmt: skip


def has_effect(node: fx.Node) -> bool:
    """Whether `node` does more than compute a value from its arguments (randomness, mutation, assertion, unknown)."""
    if node.op != "call_function":
        return False
    target = node.target
    if isinstance(target, OpOverload):
        if target.namespace not in _KNOWN:
            return True  # somebody's custom operator: its schema does not say that it draws random numbers
        if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
            return not _inactive_dropout(node)
        return not target._schema.returns or target.name().startswith("aten::_assert")
    return target not in PURE_PYTHON


def _inactive_dropout(node: fx.Node) -> bool:
    """Attention and dropout are tagged random because of their dropout; with probability 0 they are not."""
    if node.target is aten.scaled_dot_product_attention.default:
        probability = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
        return bool(probability == 0.0)
    if node.target is aten.dropout.default:
        return len(node.args) > 2 and bool(node.args[2] is False or node.args[1] == 0.0)
    return False


def value_inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The argument nodes whose values `node` reads; arguments read only for their shape are left out."""
    if node.target in _SHAPE_READERS:
        reads = [value for value in (*node.args[1:], *node.kwargs.values()) if isinstance(value, fx.Node)]
        yield from reads
        return
    yield from node.all_input_nodes


def is_view(node: fx.Node) -> bool:
    """Whether the result of `node` may share memory with one of its arguments."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and is_view(source)
    if not isinstance(node.target, OpOverload):
        return False
    if node.target in _UNDECLARED_VIEWS:
        return True
    return any(out.alias_info is not None and not out.alias_info.is_write for out in node.target._schema.returns)
