"""``y: bf16 = f(x: bf16)  →  y: bf16 = cast(f(cast(x): f32): f32)``: compute in float32, round at the ends alone.

where: float16 on a CPU without fast instructions for it, or bfloat16, whose products stay those of rounded factors
    where it has; sizes known; nothing is placed in a stage yet, or reads the bits of a value; no result is an integer
    or a truth value. All that depends on an input or weight of such a type is widened, or nothing; what is rounded
    without one (a timestep) stays rounded.
because: such a CPU converts every operand of every operation and rounds every result, in software; between the
    operations of a step nobody sees them. Weights are widened once, in the weights stage. What rounding in between
    would have lost stays: results are nearer to exact ones.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     linear = ops.aten.linear.default(x, w)
...     wide = ops.aten._to_copy.default(linear, dtype=torch.float32)
...     norm = ops.aten.layer_norm.default(wide, [4])
...     back = ops.aten._to_copy.default(norm, dtype=torch.bfloat16)
...     return (back,)
... ''', x="bf16[2, 3]", w="weight bf16[4, 3]")
>>> print(before.rewritten(Upcast(always=True)).body)
x_wide = ops.aten._to_copy.default(x, dtype=torch.float32)  # f32[2, 3]
w_wide = ops.aten._to_copy.default(w, dtype=torch.float32)  # f32[4, 3]
linear = ops.aten.linear.default(x_wide, w_wide)  # f32[2, 4]
wide = ops.aten._to_copy.default(linear, dtype=torch.float32)  # f32[2, 4]
norm = ops.aten.layer_norm.default(wide, [4])  # f32[2, 4]
back = ops.aten._to_copy.default(norm, dtype=torch.float32)  # f32[2, 4]
narrow = ops.aten._to_copy.default(back, dtype=torch.bfloat16)  # bf16[2, 4]
return (narrow,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map

from ..ir import products
from ..ir.effects import has_effect
from ..ir.layout import STRIDE_READERS, has_symbols
from ..ir.program import Program, infer, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal

aten = torch.ops.aten


_HALVES = {torch.bfloat16: products.in_torch, torch.float16: products.of_float16_in_torch}


@dataclass(frozen=True)
class Upcast(Pass):
    """Compute in float32 what was asked for in a half as wide type; rounding.

    Attributes
    ----------
    always : also where the CPU has fast instructions for the type.
    products : whether factors of products that were asked for in bfloat16 are rounded to it, so that the pass
        `narrow_products` finds them; None: where the CPU at hand multiplies them faster than float32.
    """

    always: bool = False
    products: bool | None = None

    accuracy: ClassVar[Accuracy] = "rounding"
    repeat: ClassVar[bool] = False  # nothing narrow is left but casts at both ends

    def find(self, program: Program) -> Iterable[Match]:
        within = _within(program)
        narrow = [
            node
            for node in program.calls()
            if node in within and _is_half(node) and not _at_an_end(program, node) and not products.rounds(node)
        ]
        if narrow:
            yield Match(narrow[0])

    def legal(self, program: Program, match: Match) -> Refusal | None:
        within = _within(program)
        for node in program.nodes:
            if node.op == "output":
                continue
            kind, reason = _dtype(node), None
            if has_symbols(val(node)):
                reason = "a size is known only when the program runs"
            elif isinstance(val(node), torch.Tensor) and val(node).device.type != "cpu":
                reason = f"it runs on {val(node).device.type}"
            elif kind in _HALVES and not self.always and _HALVES[kind]() and not self._rounds(kind):
                reason = f"this CPU has fast instructions for {kind}"
            elif "placement" in node.meta:
                reason = "it is placed in a stage already, which what it reads would have to be, too"
            elif kind == torch.complex32:
                reason = "complex numbers of halves are not widened"
            elif node.op == "call_function" and kind in _HALVES and has_effect(node):
                reason = f"{node.target} does more than compute a value"
            elif node.target in STRIDE_READERS and any(map(_is_half, (node, *node.all_input_nodes))):
                reason = f"{node.target} reads how its argument lies in memory"
            elif node in within and program.output in node.users and not _is_dense(val(node)):
                reason = "a result is part of a larger value, and its cast would lie otherwise"
            elif node in within and program.output in node.users and not getattr(kind, "is_floating_point", False):
                reason = f"a result is of {kind}: what rounding decides would be decided otherwise"
            if reason:
                return Refusal(reason, node)
        return None

    def _rounds(self, kind: torch.dtype) -> bool:
        """Whether products of a type are those of factors of that type."""
        return kind == torch.bfloat16 and (products.supported() if self.products is None else self.products)

    def rewrite(self, program: Program, match: Match) -> None:
        within, calls = _within(program), list(program.calls())
        multiplied = [
            node for node in products.outside_attention(program) if node in within and self._rounds(_dtype(node))
        ]
        results = {node: _dtype(node) for node in program.results if node is not None and node in within}
        for source in list(program.nodes):
            readers = [user for user in source.users if user in within]
            if _is_half(source) and readers and (source.op != "call_function" or source not in within):
                after = calls[0] if source.op != "call_function" else source.next
                wide = program.call(aten._to_copy.default, source, before=after, dtype=torch.float32)
                wide._rename(f"{source.name}_wide")
                for reader in readers:
                    reader.replace_input_with(source, wide)
        for node, kind in results.items():
            if kind in _HALVES and node.op == "call_function":
                narrow = program.call(aten._to_copy.default, node, before=program.output, like=node, dtype=kind)
                narrow._rename("narrow")
                program.output.replace_input_with(node, narrow)
        for node in calls:
            if node in within:
                node.args, node.kwargs = tree_map(_widened, node.args), tree_map(_widened, node.kwargs)
                node.meta["val"] = infer(node)
                program.touch(node)
        for node in multiplied:
            products.round_factors(program, node)


def _within(program: Program) -> set[fx.Node]:
    """Half inputs, and all that is computed from one. What else is rounded is so on purpose: a timestep, a number."""
    found: set[fx.Node] = set()
    for node in program.nodes:
        begins = node.op in ("placeholder", "get_attr") and _is_half(node)
        if begins or (node.op == "call_function" and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _is_half(node: fx.Node) -> bool:
    return _dtype(node) in _HALVES


def _is_dense(value: Any) -> bool:
    """Whether a copy of a (fake) tensor has its strides."""
    return not isinstance(value, torch.Tensor) or torch.empty_like(value).stride() == value.stride()


def _dtype(node: fx.Node) -> Any:
    """The dtype of a node's value; of several values, a narrow one if there is one."""
    kinds = [value.dtype for value in tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]
    return next((kind for kind in kinds if kind in _HALVES), kinds[0] if kinds else None)


def _at_an_end(program: Program, node: fx.Node) -> bool:
    """Whether a node is the cast of a result that nothing else reads."""
    return node.target is aten._to_copy.default and set(node.users) == {program.output}


def _widened(argument: Any) -> Any:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in _HALVES else argument
