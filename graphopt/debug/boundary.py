"""What a Program is besides its calls, as text to compare: inputs, constants, relations, result, subgraphs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx
from torch.utils._pytree import TreeSpec, tree_map_only, tree_structure

from graphopt.ir.printer import describe, target_name
from graphopt.ir.program import Program


def tables(before: Program, after: Program) -> Iterator[tuple[str, str, str]]:
    """Name, before and after of each table of a dump that differs as a whole."""
    orders = [[entry.name for entry in program.inputs] for program in (before, after)]
    common = set(orders[0]) & set(orders[1])
    was, now = ([name for name in order if name in common] for order in orders)
    if was != now:
        yield "INPUTS", f"INPUTS in the order {', '.join(was)}", f"INPUTS in the order {', '.join(now)}"
    if set(before.relations) != set(after.relations):
        texts = [", ".join(map(str, program.relations)) or "nothing" for program in (before, after)]
        yield "RELATIONS", f"RELATIONS: {texts[0]}", f"RELATIONS: {texts[1]}"
    specs = _result(before), _result(after)
    if specs[0] != specs[1]:
        yield "RESULT", f"RESULT = {specs[0] or 'a tuple'}", f"RESULT = {specs[1] or 'a tuple'}"


def _result(program: Program) -> TreeSpec | None:
    flat = tree_structure(tuple(range(len(program.results))))
    return None if program.out_spec == flat else program.out_spec


def inputs(program: Program) -> dict[str, str]:
    """The row of each input: its name, role, path and value."""
    return {
        entry.name: f"{entry.name}: {entry.role} '{entry.path}', {describe(node.meta.get('val'))}"
        for entry, node in zip(program.inputs, program.placeholders, strict=True)
    }


def constants(before: Program, after: Program) -> dict[str, tuple[str, str]]:
    """The first value that differs of each constant that both Programs hold with other bits, before and after."""
    found = {}
    for name in before.constants.keys() & after.constants.keys():
        was, now = before.constants[name], after.constants[name]
        if was is now or (was.shape, was.dtype) != (now.shape, now.dtype):
            continue  # another shape or dtype is a difference of the input's value
        was, now = (value.detach().cpu().reshape(-1).contiguous() for value in (was, now))
        size = was.element_size()
        off = (was.view(torch.uint8) != now.view(torch.uint8)).reshape(-1, size).any(1).nonzero().flatten().tolist()
        if off:
            tail = f"  # {len(off)} of {was.numel()} values differ"
            texts = (f"{name}.flatten()[{off[0]}] = {value[off[0]].item()!r}{tail}" for value in (was, now))
            found[name] = (next(texts), next(texts))
    return found


def body(root: torch.nn.Module, node: fx.Node) -> tuple[str, ...]:
    """The lines of the subgraph that a ``get_attr`` node stands for, inner ones in place; values by their number."""
    module = root
    for part in str(node.target).split("."):
        module = getattr(module, part)
    if not isinstance(module, fx.GraphModule):
        return (type(module).__name__,)
    names: dict[fx.Node, _Name] = {}
    lines = []
    for number, inner in enumerate(module.graph.nodes):
        names[inner] = _Name(f"v{number}")
        args, kwargs = tree_map_only(fx.Node, names.__getitem__, (inner.args, inner.kwargs))
        if inner.op == "get_attr":
            lines.append(f"v{number} = {{{'; '.join(body(module, inner))}}}")
        elif inner.op == "output":
            lines.append(f"return {args[0]}")
        elif inner.op == "placeholder":
            lines.append(f"v{number}")
        else:
            given = [*map(repr, args), *(f"{key}={value!r}" for key, value in sorted(kwargs.items()))]
            lines.append(f"v{number} = {target_name(inner.target)}({', '.join(given)})")
    return tuple(lines)


class _Name(str):
    """A name that prints without quotes inside lists."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
