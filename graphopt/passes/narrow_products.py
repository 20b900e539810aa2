"""``linear(wide(x: bf16), wide(w: bf16)) → narrow_linear(x, w)``: multiply numbers of bfloat16, and sum up in float32.

where: linear layers, convolutions of images in one group, products of two matrices or of batches of them, in float32 on
    a CPU that is faster so (AVX512-BF16, measured), both of whose factors are of bfloat16 and widened, or moved about
    after that; a filter depends on weights alone; sizes known; on a target with kernels for it.
because: one instruction multiplies and adds twice as many numbers of half the bytes. No product is rounded: those of
    two numbers of bfloat16 are exact in float32. What `upcast` rounds is found, and where a model does so itself.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     narrow = ops.aten._to_copy.default(x, dtype=torch.bfloat16)
...     rounded = ops.aten._to_copy.default(narrow, dtype=torch.float32)
...     wide = ops.aten._to_copy.default(w, dtype=torch.float32)
...     linear = ops.aten.linear.default(rounded, wide, b)
...     return (linear,)
... ''', x="f32[2, 3]", w="weight bf16[4, 3]", b="weight f32[4]")
>>> print(before.rewritten(NarrowProducts(always=True)).body)
narrow = ops.aten._to_copy.default(x, dtype=torch.bfloat16)  # bf16[2, 3]
linear = ops.graphopt.narrow_linear.default(narrow, w, b)  # f32[2, 4]
return (linear,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from ..ir import products
from ..ir.effects import is_view
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, shape, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal, erase_unread
from ..ir.stages import WEIGHTS, stages

aten = torch.ops.aten

_MOVES = (aten.cat.default, aten.stack.default, aten.clone.default, aten.repeat.default)


@dataclass(frozen=True)
class NarrowProducts(Pass):
    """Multiply factors of bfloat16 as what they are; rounding.

    Attributes
    ----------
    always : also where the CPU at hand has no instructions for it, or slow ones.
    """

    always: bool = False

    accuracy: ClassVar[Accuracy] = "rounding"

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(*products.NARROW):
            if all(map(_is_widened, products.factors(node))):
                yield Match(node, captures={"stage": known[products.factors(node)[1]]})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, (source, weight), bound = match.root, products.factors(match.root), bind(match.root)
        values = [val(node), val(source), val(weight), *([val(bound["bias"])] if bound.get("bias") is not None else [])]
        reason = None
        if not self.always and not products.supported():
            reason = "products of bfloat16 are not faster on this CPU"
        elif any(has_symbols(value) for value in values):
            reason = "a size is known only when the program runs"
        elif val(node).device.type != "cpu":
            reason = f"it runs on {val(node).device.type}; kernels are generated for the CPU"
        elif not all(value.numel() for value in values):
            reason = "there is nothing to multiply"
        elif bound.get("groups", 1) != 1:
            reason = f"it has {bound['groups']} groups"
        elif node.target is aten.conv2d.default and match["stage"] != WEIGHTS:
            reason = "the filter is computed from inputs of the call"
        elif node.target is aten.conv2d.default and len(shape(source)) != 4:
            reason = "it is of one image without a batch"
        return Refusal(reason, node) if reason else None

    def rewrite(self, program: Program, match: Match) -> None:
        node, read = match.root, products.factors(match.root)
        bound = bind(node)
        bound.pop("groups", None)
        _, _, *options = bound.values()
        node.args, node.kwargs = (*(_narrow(program, factor, node) for factor in read), *options), {}
        node.target = products.NARROW[node.target]
        erase_unread(program, read)
        program.touch(node)
        refresh(program, [node])


def _is_widened(node: fx.Node) -> bool:
    """Whether a node's numbers are those of bfloat16, by what they were copied from."""
    kinds = {value.dtype for value in tree_leaves(val(node)) if isinstance(value, torch.Tensor)}
    if node.op != "call_function" or kinds != {torch.float32}:
        return False
    if node.target is aten._to_copy.default:  # strides apart: views of it would read other numbers
        return products.is_widened(node) and val(node.all_input_nodes[0]).stride() == val(node).stride()
    moves = (is_view(node) and node.target is not aten.view.dtype) or node.target in _MOVES
    return bool(moves and all(map(_is_widened, node.all_input_nodes)))


def _narrow(program: Program, node: fx.Node, before: fx.Node) -> fx.Node:
    """The numbers of such a node as bfloat16."""
    if node.target is aten._to_copy.default:
        return node.all_input_nodes[0]
    assert callable(node.target)
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _narrow(program, source, before))
    for user in _readers(args):
        if (user.target, user.args, user.kwargs) == (node.target, args, kwargs) and user < before:
            return user
    return program.call(node.target, *args, before=before, like=node, **kwargs)


def _readers(args: object) -> Iterable[fx.Node]:
    """What reads the first node among some arguments."""
    return next((list(leaf.users) for leaf in tree_leaves(args) if isinstance(leaf, fx.Node)), [])
