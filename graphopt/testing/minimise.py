"""The smallest Program on which something still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import fx

from graphopt.ir.effects import has_effect
from graphopt.ir.program import Input, Program, Role, val
from graphopt.ir.stages import stages
from graphopt.testing.growing import hint, sizes

T = TypeVar("T")


def minimise(program: Program, fails: Callable[[Program], bool], attempts: int = 400) -> Program:
    """Leave out what a failure does not need: results, operations, inputs; greedily, until nothing is left to try.

    Parameters
    ----------
    fails : whether a Program still fails in the way that matters. It may be handed Programs of fewer results, with
        operations left out (their argument takes their place) or turned into inputs of the same shape and role.
    attempts : Programs to try at most.

    >>> from graphopt.testing import sketch
    >>> before = sketch('''
    ...     add = ops.aten.add.Tensor(x, 1)
    ...     sin = ops.aten.sin.default(add)
    ...     cos = ops.aten.cos.default(sin)
    ...     return (cos, add)
    ... ''', x="f32[3]")
    >>> has_sine = lambda program: any("sin" in str(node.target) for node in program.calls())
    >>> [node.name for node in minimise(before.program, has_sine).calls()]
    ['sin']
    """
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(program):
            attempts -= 1
            if attempts < 0:
                return program
            if fails(candidate):
                program, smaller = candidate, True
                break
    return program


def shortest(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Leave out items of a list that a failure does not need, greedily from the end.

    >>> shortest([1, 2, 3, 4], lambda numbers: {2, 4} <= set(numbers))
    [2, 4]
    """
    kept = list(items)
    for position in range(len(kept) - 1, -1, -1):
        fewer = kept[:position] + kept[position + 1 :]
        if fails(fewer):
            kept = fewer
    return kept


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with less in them, those that leave out most first."""
    results = [node for node in program.results if node is not None]
    if len(results) > 1:
        for node in dict.fromkeys(results):
            yield _clean(_with_results(program, [node]))
    calls = list(program.calls())
    for node in reversed(calls):
        if isinstance(val(node), torch.Tensor) and not any(entry is node for entry in results):
            yield from _instead(program, node)
    for node in reversed(calls):  # what a result is computed from, in its place
        if any(entry is node for entry in results):
            tensors = [source for source in node.all_input_nodes if isinstance(val(source), torch.Tensor)]
            for source in tensors:
                yield _clean(_with_results(program, [source if entry is node else entry for entry in results]))


def _with_results(program: Program, results: Sequence[fx.Node]) -> Program:
    copy = program.copy()
    named = {node.name: node for node in copy.graph.nodes}
    copy.output.args = (tuple(named[node.name] for node in results),)
    copy.out_spec = None
    return copy


def _instead(program: Program, node: fx.Node) -> Iterator[Program]:
    """Without `node`: an input in its place, or one of its arguments."""
    for source in (None, *node.all_input_nodes):
        if source is not None and not _alike(source, node):
            continue
        copy = program.copy()
        named = {entry.name: entry for entry in copy.graph.nodes}
        old = named[node.name]
        if source is None:
            if has_effect(node) or any(isinstance(size, torch.SymInt) for size in val(node).shape):
                continue
            known = stages(program)[node]
            role: Role = next((r for r in ("state", "time", "condition") if r in known), "weight")
            with copy.graph.inserting_before(copy.placeholders[0] if copy.placeholders else old):
                new = copy.graph.placeholder(f"in_{node.name}")
            new.meta["val"] = val(node)
            copy.inputs = (Input(new.name, role, new.name), *copy.inputs)
        else:
            new = named[source.name]
        copy.replace(old, new)
        yield _clean(copy)


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = val(one), val(other)
    return (
        isinstance(a, torch.Tensor)
        and (a.dtype, sizes(a)) == (b.dtype, sizes(b))
        and [hint(n) for n in a.stride()] == [hint(n) for n in b.stride()]
    )


def _clean(program: Program) -> Program:
    """Without what nobody reads, inputs included."""
    program.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    for node in program.placeholders:
        if not node.users:
            program.inputs = tuple(entry for entry in program.inputs if entry.name != node.name)
            program.constants.pop(node.name, None)
            program.graph.erase_node(node)
    return program
