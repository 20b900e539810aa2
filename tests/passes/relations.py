"""Relations between the inputs of a denoiser, put in front of its Program as a sampler's loop has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphopt.ir.program import Input, Program, Role, fake_mode, val

aten = torch.ops.aten


def repeated(program: Program, *names: str, count: int = 2) -> Program:
    """Each of these inputs becomes ``cat([part] * count)`` of a smaller input of the same name: guidance."""
    program = program.copy()
    for name in names:
        node = _input(program, name)
        sizes = [val(node).shape[0] // count, *val(node).shape[1:]]
        _instead(program, node, [_fake(program, node, sizes)] * count, 0, [node] * count)
    return program


def joined(program: Program, name: str, sizes: dict[Role, int], dim: int = 1) -> Program:
    """An input becomes ``cat`` of smaller ones, one per role, of these sizes in `dim`: inpainting."""
    program = program.copy()
    node, first = _input(program, name), next(program.calls())
    parts: list[fx.Node] = []
    values, entries = [], []
    for role, size in sizes.items():
        values.append(_fake(program, node, [size if d == dim else n for d, n in enumerate(val(node).shape)]))
        with program.graph.inserting_before(node):
            part = node if not parts else program.graph.placeholder(f"{name}_{role}")
        parts.append(part)
        part.meta["val"] = values[-1]
        entries.append(Input(part.name, role, f"{name}.{role}"))
    for part in parts[1:]:
        first.prepend(part)
    position = [entry.name for entry in program.inputs].index(name)
    rest = program.inputs[position + 1 :]
    program.inputs = (*program.inputs[:position], entries[0], *rest, *entries[1:])
    _instead(program, node, values, dim, parts)
    return program


def _input(program: Program, name: str) -> fx.Node:
    return next(node for node in program.placeholders if node.name == name)


def _fake(program: Program, node: fx.Node, sizes: list[int]) -> torch.Tensor:
    with fake_mode(program.graph):
        return torch.empty(sizes, dtype=val(node).dtype)


def _instead(program: Program, node: fx.Node, values: list[Any], dim: int, parts: list[fx.Node]) -> None:
    node.meta["val"] = values[0]
    whole = program.call(aten.cat.default, parts, dim, before=next(program.calls()))
    node.replace_all_uses_with(whole, lambda user: user is not whole)
