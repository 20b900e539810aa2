"""``y: bf16 = f(x: bf16)  →  y: bf16 = cast(f(cast(x): f32): f32)``: compute in float32, round at the ends alone.

where: float16 or bfloat16 on a CPU that has no instructions for it; sizes known; nothing reads the bits of a value. All
    of a Program is widened, or nothing.
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

from ..ir.effects import has_effect
from ..ir.layout import STRIDE_READERS, has_symbols
from ..ir.program import Program, infer, val
from ..ir.rewrite import Accuracy, Match, Pass, Refusal

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn

_HALVES = {torch.bfloat16: mkldnn._is_mkldnn_bf16_supported, torch.float16: mkldnn._is_mkldnn_fp16_supported}


@dataclass(frozen=True)
class Upcast(Pass):
    """Compute in float32 what was asked for in a half as wide type; rounding.

    Attributes
    ----------
    always : also where the CPU has instructions for the type.
    """

    always: bool = False

    accuracy: ClassVar[Accuracy] = "rounding"
    repeat: ClassVar[bool] = False  # nothing narrow is left but casts at both ends

    def find(self, program: Program) -> Iterable[Match]:
        narrow = [node for node in program.calls() if _dtype(node) in _HALVES and not _at_an_end(program, node)]
        if narrow:
            yield Match(narrow[0])

    def legal(self, program: Program, match: Match) -> Refusal | None:
        for node in program.nodes:
            if node.op == "output":
                continue
            kind, reason = _dtype(node), None
            if has_symbols(val(node)):
                reason = "a size is known only when the program runs"
            elif isinstance(val(node), torch.Tensor) and val(node).device.type != "cpu":
                reason = f"it runs on {val(node).device.type}"
            elif kind in _HALVES and not self.always and _HALVES[kind]():
                reason = f"this CPU has instructions for {kind}"
            elif node.op == "call_function" and kind in _HALVES and has_effect(node):
                reason = f"{node.target} does more than compute a value"
            elif node.target in STRIDE_READERS and any(_dtype(source) in _HALVES for source in node.all_input_nodes):
                reason = f"{node.target} reads how its argument lies in memory"
            if reason:
                return Refusal(reason, node)
        return None

    def rewrite(self, program: Program, match: Match) -> None:
        calls = list(program.calls())
        kinds = [None if node is None else _dtype(node) for node in program.results]
        for source in program.nodes:
            if source.op in ("placeholder", "get_attr") and _dtype(source) in _HALVES and source.users:
                readers = list(source.users)
                wide = program.call(aten._to_copy.default, source, before=calls[0], dtype=torch.float32)
                wide._rename(f"{source.name}_wide")
                for reader in readers:
                    reader.replace_input_with(source, wide)
        for node, kind in dict(zip(program.results, kinds, strict=True)).items():
            if node is not None and kind in _HALVES:
                narrow = program.call(aten._to_copy.default, node, before=program.output, like=node, dtype=kind)
                narrow._rename("narrow")
                program.output.replace_input_with(node, narrow)
        for node in calls:
            node.args, node.kwargs = tree_map(_widened, node.args), tree_map(_widened, node.kwargs)
            node.meta["val"] = infer(node)
            program.touch(node)


def _dtype(node: fx.Node) -> Any:
    """The dtype of a node's value; of several values, a narrow one if there is one."""
    kinds = [value.dtype for value in tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]
    return next((kind for kind in kinds if kind in _HALVES), kinds[0] if kinds else None)


def _at_an_end(program: Program, node: fx.Node) -> bool:
    """Whether a node is the cast of a result that nothing else reads."""
    return node.target is aten._to_copy.default and set(node.users) == {program.output}


def _widened(argument: Any) -> Any:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in _HALVES else argument
