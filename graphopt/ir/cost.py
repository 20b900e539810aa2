"""What a node costs: floating-point operations and bytes moved; sympy expressions where sizes are symbolic.

A multiply-add counts as two FLOPs. Elementwise operations count one per result element. Views are free. Bytes are those
of tensor arguments read plus results written, as if nothing stayed in cache.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from graphopt.ir import products, winograd
from graphopt.ir.effects import METADATA_CHECKS, is_view
from graphopt.ir.program import Program, bind, val
from graphopt.ir.stages import STAGES, WEIGHTS, Stage, placement, stage_name, stages

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes; ints, or sympy expressions where sizes are symbolic."""

    flops: Any = 0
    bytes: Any = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def size(value: Any) -> Any:
    """A size as an int, or as a sympy expression when it is symbolic."""
    return value.node.expr if isinstance(value, torch.SymInt) else int(value)


def numel(value: Any) -> Any:
    """Number of elements of a (fake) tensor; 0 for anything else."""
    return prod((size(n) for n in value.shape), start=1) if isinstance(value, torch.Tensor) else 0


def nbytes(value: Any) -> Any:
    """Bytes of a (fake) tensor or of a sequence of them; 0 for anything else."""
    if isinstance(value, list | tuple):
        return sum(nbytes(entry) for entry in value)
    return numel(value) * value.element_size() if isinstance(value, torch.Tensor) else 0


def node_cost(node: fx.Node) -> Cost:
    """The cost of one node, from its recorded shapes."""
    if node.op != "call_function" or node.target in METADATA_CHECKS or node.target is operator.getitem or is_view(node):
        return Cost()
    result = val(node)
    moved = nbytes(result) + sum(nbytes(val(source)) for source in node.all_input_nodes)
    flops = _FLOPS.get(node.target, _elementwise)(bind(node), result)
    return Cost(flops, moved)


def _elementwise(bound: dict[str, Any], result: Any) -> Any:
    return sum(numel(entry) for entry in result) if isinstance(result, list | tuple) else numel(result)


def _times(operations: int) -> Any:
    """Of elementwise operators that stand for several."""
    return lambda bound, result: operations * _elementwise(bound, result)


def _linear(bound: dict[str, Any], result: Any) -> Any:
    source = val(bound.get("input", bound.get("X")))
    return 2 * numel(result) * size(source.shape[-1])


def _conv(bound: dict[str, Any], result: Any) -> Any:
    weight = val(bound.get("weight", bound.get("W")))
    return 2 * numel(result) * prod(size(n) for n in weight.shape[1:])


def _conv_transpose(bound: dict[str, Any], result: Any) -> Any:
    return 2 * numel(val(bound["input"])) * prod(size(n) for n in val(bound["weight"]).shape[1:])


def _winograd(bound: dict[str, Any], result: Any) -> Any:
    """Products alone, as for other convolutions: not the transforms."""
    batch, _, rows, columns = (size(n) for n in result.shape)
    tile, (outputs, channels, *_) = bound["tile"], map(size, val(bound["weight"]).shape)
    tiles = batch * -(-rows // tile) * -(-columns // tile)
    return 2 * winograd.transforms(tile).points ** 2 * outputs * channels * tiles


def _matmul(bound: dict[str, Any], result: Any) -> Any:
    left = val(bound.get("mat1", bound.get("batch1", bound.get("self"))))
    return 2 * numel(result) * size(left.shape[-1])


def _matmul_add(bound: dict[str, Any], result: Any) -> Any:
    left = val(bound["mat1"] if "mat1" in bound else bound["batch1"])
    return 2 * numel(result) * size(left.shape[-1]) + numel(result)


def _attention(bound: dict[str, Any], result: Any) -> Any:
    query, key, value = (val(bound[name]) for name in ("query", "key", "value"))
    pairs = prod(size(n) for n in query.shape[:-1]) * size(key.shape[-2])
    return 2 * pairs * (size(query.shape[-1]) + size(value.shape[-1]))


_FLOPS: dict[Any, Any] = {
    aten.linear.default: _linear,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.addmm.default: _matmul_add,
    aten.baddbmm.default: _matmul_add,
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv3d.default: _conv,
    aten.convolution.default: _conv,
    winograd.conv2d: _winograd,
    products.linear: _linear,
    products.matmul: _matmul,
    products.conv2d: _conv,
    aten.conv_transpose2d.input: _conv_transpose,
    aten.scaled_dot_product_attention.default: _attention,
    mkldnn._linear_pointwise.default: _linear,
    mkldnn._linear_pointwise.binary: _linear,
    mkldnn._convolution_pointwise.default: _conv,
    mkldnn._convolution_pointwise.binary: _conv,
    aten.addcmul.default: _times(2),
    aten.addcdiv.default: _times(2),
    aten.lerp.Scalar: _times(3),
    aten.lerp.Tensor: _times(3),
    aten.clone.default: lambda bound, result: 0,
    aten.cat.default: lambda bound, result: 0,
    aten._to_copy.default: lambda bound, result: 0,
    aten.embedding.default: lambda bound, result: 0,
}


@dataclass(frozen=True)
class StageCost:
    """What one stage holds: nodes, their cost, and the bytes of weights read there."""

    nodes: int = 0
    cost: Cost = Cost()
    weight_bytes: Any = 0


def stage_costs(program: Program) -> dict[str, StageCost]:
    """Cost of every stage by name, by the placement of the nodes (before any placement, all is in the step)."""
    nodes, costs = Counter[str](), dict.fromkeys(STAGES, Cost())
    weights: dict[str, dict[str, Any]] = {name: {} for name in STAGES}
    held = {entry.name for entry in program.inputs if entry.role == "weight"}
    for node in program.calls():
        stage = stage_name(placement(node))
        nodes[stage] += 1
        costs[stage] += node_cost(node)
        for source in node.all_input_nodes:
            if source.name in held or (stage != "weights" and placement_of(source) == WEIGHTS):
                weights[stage][source.name] = nbytes(val(source))
    return {name: StageCost(nodes[name], costs[name], sum(weights[name].values())) for name in STAGES}


def foldable(program: Program) -> StageCost:
    """What depends on weights alone and is placed later than the weights stage, where `fold_constants` places it."""
    known, cost, count = stages(program), Cost(), 0
    read: dict[str, Any] = {}
    for node in program.calls():
        if known[node] == WEIGHTS and placement(node) != WEIGHTS:
            count, cost = count + 1, cost + node_cost(node)
            read |= {source.name: nbytes(val(source)) for source in node.all_input_nodes if source.op == "placeholder"}
    return StageCost(count, cost, sum(read.values()))


def placement_of(node: fx.Node) -> Stage | None:
    """The placement of a call, None for inputs."""
    return placement(node) if node.op == "call_function" else None


def program_cost(program: Program) -> Cost:
    """The cost of all nodes together, wherever they are placed."""
    total = Cost()
    for node in program.calls():
        total += node_cost(node)
    return total
