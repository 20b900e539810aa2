"""``linear(cat(x, c), w, b)  →  linear(c, w_c, b) + linear(x, w_x)``, and the same for convolutions.

where: the parts lie along what the layer sums over, in one group; some are known in an earlier stage than others;
    weight and bias depend on weights alone, so that slicing happens once.
because: inpainting and image-to-video models concatenate the latents with a mask or an image that stays the same for
    the whole request. Its product is hoisted; an addition remains. `graphopt.ir.price` says what either is worth.

>>> from graphopt.testing import sketch
>>> before = sketch('''
...     cat = ops.aten.cat.default([x, c], -1)
...     linear = ops.aten.linear.default(cat, w, b)
...     return (linear,)
... ''', x="f32[512, 64]", c="condition f32[512, 192]", w="weight f32[64, 256]", b="weight f32[64]")
>>> print(before.rewritten(SplitConcat()).body)
slice_tensor = ops.aten.slice.Tensor(w, 1, 64, 256)  # f32[64, 192] strides (256, 1)
clone_default = ops.aten.clone.default(slice_tensor, memory_format=torch.contiguous_format)  # f32[64, 192]
linear_default = ops.aten.linear.default(c, clone_default, b)  # f32[512, 64]
slice_tensor_1 = ops.aten.slice.Tensor(w, 1, 0, 64)  # f32[64, 64] strides (256, 1)
clone_default_1 = ops.aten.clone.default(slice_tensor_1, memory_format=torch.contiguous_format)  # f32[64, 64]
linear_default_1 = ops.aten.linear.default(x, clone_default_1)  # f32[512, 64]
linear = ops.aten.add.Tensor(linear_default, linear_default_1)  # f32[512, 64]
return (linear,)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import fx

from ..ir.cost import nbytes, node_cost
from ..ir.layout import has_symbols, refresh
from ..ir.program import Program, bind, dtype, shape, val
from ..ir.relations import Constant
from ..ir.rewrite import Accuracy, Match, Pass, Refusal
from ..ir.stages import STAGES, WEIGHTS, Stage, kept_as, stages

aten = torch.ops.aten
_CONVOLUTIONS = tuple(op for conv in (aten.conv1d, aten.conv2d, aten.conv3d) for op in (conv.default, conv.padding))


# A part of a concatenation, and its first and last channel in the whole, the last exclusive.
_Piece: TypeAlias = tuple[fx.Node, int, int]


@dataclass(frozen=True)
class SplitConcat(Pass):
    """Apply a layer to the parts of its input that are known earlier on their own; rounding.

    Attributes
    ----------
    flops_per_byte, dispatch_bytes : exchange rates between work and memory, see `graphopt.ir.price`.
    """

    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10

    accuracy: ClassVar[Accuracy] = "rounding"
    exploits: ClassVar[tuple[type, ...]] = (Constant,)

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(aten.linear.default, *_CONVOLUTIONS):
            source = bind(node)["input"]
            if source.target is aten.cat.default:
                yield Match(node, (source,), {"source": source, "stages": known})

    def legal(self, program: Program, match: Match) -> Refusal | None:
        node, source, known = match.root, match["source"], match["stages"]
        bound = bind(node)
        weights = [value for value in (bound["weight"], bound["bias"]) if value is not None]
        reason = None
        if any(has_symbols(val(value)) for value in (node, source, *weights)):
            reason = "a size is known only when the program runs"
        elif len(shape(weights[0])) < 2:
            reason = "the weight is a vector"
        elif bound.get("groups", 1) != 1:
            reason = f"the convolution has {bound['groups']} groups"
        elif _dim(source) != _summed(node):
            reason = f"the parts lie along dimension {_dim(source)}, the layer sums over dimension {_summed(node)}"
        elif any(dtype(part) != dtype(source) for part in bind(source)["tensors"]):
            reason = "the concatenation casts some of its parts"
        elif any(known[value] != WEIGHTS for value in weights):
            reason = "the weight is computed from inputs of the call: it would be sliced at every step"
        elif len(groups := _groups(source, known)) < 2:
            reason = "all parts belong to one stage"
        else:
            saved, spent = self._saved(node, source, groups), 2 * nbytes(val(node)) + self.dispatch_bytes
            if saved <= spent:
                reason = f"the step would be spared the work of moving {saved} bytes, and an addition costs {spent}"
        return Refusal(reason, node) if reason else None

    def _saved(self, node: fx.Node, source: fx.Node, groups: list[list[_Piece]]) -> int:
        """Work that the last stage is spared, in bytes: the earlier parts' share of the layer and of its input."""
        share = sum(stop - start for group in groups[:-1] for _, start, stop in group) / shape(source)[_dim(source)]
        read = nbytes(val(source)) + nbytes(val(bind(node)["weight"]))
        work = share * (node_cost(node).flops / self.flops_per_byte + read)
        if len(source.users) == 1:  # the concatenation is shorter, or gone
            work += self.dispatch_bytes + nbytes(val(source)) if len(groups[-1]) == 1 else nbytes(val(source)) * share
        return int(work)

    def rewrite(self, program: Program, match: Match) -> None:
        node, source = match.root, match["source"]
        groups = _groups(source, match["stages"])
        # The bias goes with what is known first: it is added once, outside the last stage.
        biases = [bind(node)["bias"], *[None] * (len(groups) - 1)]
        total, *later = (_product(program, node, *entry) for entry in zip(groups, biases, strict=True))
        for product in later[:-1]:
            total = program.call(aten.add.Tensor, total, product, before=node)
        node.target, node.args, node.kwargs = aten.add.Tensor, (total, later[-1]), {}
        program.touch(node)
        _erase_unread(program, source)
        refresh(program, [node])


def _erase_unread(program: Program, source: fx.Node) -> None:
    if source.target is aten.cat.default and not source.users and not source._erased:
        inputs = source.all_input_nodes
        program.graph.erase_node(source)
        for part in inputs:
            _erase_unread(program, part)


def _product(program: Program, node: fx.Node, group: list[_Piece], bias: fx.Node | None) -> fx.Node:
    """The layer, applied to some parts of its input with the columns (input channels) of the weight that they meet."""
    bound, parts = bind(node), [part for part, _, _ in group]
    columns = [program.call(aten.slice.Tensor, bound["weight"], 1, low, high, before=node) for _, low, high in group]
    source = parts[0]
    if len(parts) > 1:
        source = program.call(aten.cat.default, parts, _dim(bound["input"]), before=node)
        weight = program.call(aten.cat.default, columns, 1, before=node)
    else:  # in memory of its own, for kernels that pack it
        weight = program.call(aten.clone.default, *columns, memory_format=torch.contiguous_format, before=node)
    args = (source, weight, *((bias, *node.args[3:]) if bias is not None or node.args[3:] else ()))
    options = {name: value for name, value in node.kwargs.items() if name not in ("input", "weight", "bias")}
    return program.call(node.target, *args, before=node, **options)  # type: ignore[arg-type]


def _dim(source: fx.Node) -> int:
    """The dimension, counted from the first, along which a concatenation lies."""
    return int(bind(source)["dim"] % len(shape(source)))


def _summed(node: fx.Node) -> int:
    """The dimension of its input that a layer sums over. A convolution's input may come without a batch."""
    return len(shape(bind(node)["input"])) + 1 - len(shape(bind(node)["weight"]))


def _pieces(source: fx.Node) -> Iterator[_Piece]:
    """The parts of a concatenation that have any channels, nested concatenations taken apart."""
    start, dim = 0, _dim(source)
    for part in bind(source)["tensors"]:
        size = shape(part)[dim] if len(shape(part)) > dim else 0  # an empty vector may stand among the parts
        if part.target is aten.cat.default and size and _dim(part) == dim and dtype(part) == dtype(source):
            yield from ((node, start + low, start + high) for node, low, high in _pieces(part))
        elif size:
            yield part, start, start + size
        start += size


def _groups(source: fx.Node, known: Mapping[fx.Node, Stage]) -> list[list[_Piece]]:
    """The parts by stage, in the order of computation."""
    pieces = list(_pieces(source))
    groups = ([piece for piece in pieces if kept_as(known[piece[0]]) == name] for name in STAGES)
    return [group for group in groups if group]
