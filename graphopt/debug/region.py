"""The few nodes that one rewrite changed, and what feeds them, as two small Programs with the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from graphopt.debug.diff import Difference
from graphopt.ir.layout import strides
from graphopt.ir.program import Input, Program, Role, val
from graphopt.ir.stages import stages


@dataclass(frozen=True)
class Region:
    """Before and after a rewrite: Programs that take the same values and whose results would have to be equal.

    Attributes
    ----------
    before, after : their inputs are values that are the same on both sides; each result of one stands for that of the
        other in the same place.
    """

    before: Program
    after: Program


def region(before: Program, after: Program, difference: Difference) -> Region | str:
    """What is different between two Programs, cut where values are the same again; or why there is nothing to cut out.

    Where a reader of a changed value is the same operation as before, the cut goes in front of it. A value that cannot
    be handed over (a packed weight, a tuple) is not cut at: what computes it comes with it, on both sides.
    """
    same, changed = _counterparts(before, after, difference)
    results = list[tuple[fx.Node, fx.Node]]()
    for old, new in changed:
        pairs = _arguments(old, new, {**same, **dict(changed)})
        if pairs is None and old.op == "output":
            return "it changes the number or the kind of the results of the whole"
        if pairs == []:
            same[old] = new  # other strides alone, which follow from what it reads
        results += [(old, new)] if pairs is None else pairs
    if not results:
        return "it changes no value, only the stage that computes it"
    return _cut(before, after, same, list(dict.fromkeys(results)))


def narrowed(found: Region, positions: Sequence[int]) -> Region | str:
    """The region with some of its results alone, and what they need."""
    same = dict(zip(found.before.placeholders, found.after.placeholders, strict=True))
    pairs = list(zip(found.before.results, found.after.results, strict=True))
    return _cut(found.before, found.after, same, [pairs[k] for k in positions])  # type: ignore[misc]


def _counterparts(
    before: Program, after: Program, difference: Difference
) -> tuple[dict[fx.Node, fx.Node], list[tuple[fx.Node, fx.Node]]]:
    """Nodes that compute the same from the same on both sides, and pairs of those that readers take for each other."""
    named = {node.name: node for node in after.graph.nodes}
    gone, new = ({change.node for change in difference.of(kind)} for kind in ("removed", "added"))
    other = {change.node for change in difference.of("changed")} | (gone & new)  # another operation of the same name
    same, changed = dict[fx.Node, fx.Node](), list[tuple[fx.Node, fx.Node]]()
    for node in before.graph.nodes:
        counterpart = named.get(difference.renamed.get(node.name, node.name))
        if node.op == "output":
            counterpart = after.output
        if counterpart is None or node.name in gone - new:
            continue
        if node.name in other and node.op != "placeholder":
            changed.append((node, counterpart))
        elif node.op != "output":
            same[node] = counterpart
    return same, changed


def _arguments(old: fx.Node, new: fx.Node, counterpart: dict[fx.Node, fx.Node]) -> list[tuple[fx.Node, fx.Node]] | None:
    """The arguments that differ, in pairs; None where something else differs as well."""
    if old.target != new.target and old.op != "output":
        return None
    mine, theirs = (tree_leaves((node.args, node.kwargs)) for node in (old, new))
    if len(mine) != len(theirs):
        return None
    pairs = []
    for one, two in zip(mine, theirs, strict=True):
        if isinstance(one, fx.Node) and isinstance(two, fx.Node):
            if counterpart.get(one) is not two:
                if not isinstance(val(one), torch.Tensor) or strides(val(one))[::2] != strides(val(two))[::2]:
                    return None
                pairs.append((one, two))
        elif type(one) is not type(two) or one != two:
            return None
    return pairs


def _cut(
    before: Program, after: Program, same: dict[fx.Node, fx.Node], results: list[tuple[fx.Node, fx.Node]]
) -> Region | str:
    back = {new: old for old, new in same.items()}
    sides = [_needed((old for old, _ in results), set(same)), _needed((new for _, new in results), set(back))]
    if any(node.op == "get_attr" for side in sides for node in side):
        return "it has a part that is a graph of its own, which is not printed as code"
    taken = {node for node in sides[0] if node in same} | {back[node] for node in sides[1] if node in back}
    cuts = [node for node in before.graph.nodes if node in taken and _cuttable(node)]
    inputs = _inputs(before, cuts)
    olds = _cut_out(before, inputs, {node: node for node in cuts}, sides[0], [old for old, _ in results])
    news = _cut_out(after, inputs, {same[node]: node for node in cuts}, sides[1], [new for _, new in results])
    return Region(olds, news)


def _cuttable(node: fx.Node) -> bool:
    """Whether a value can be handed over: a tensor or number, in an order in memory that torch knows."""
    packed = getattr(node.target, "namespace", "") == "mkldnn" and "reorder" in str(node.target)
    return isinstance(val(node), torch.Tensor | int | float | bool) and not packed


def _needed(results: Iterable[fx.Node], same: set[fx.Node]) -> set[fx.Node]:
    """`results` and all that they read, as far as nodes that are the same on both sides and can be cut at."""
    found, waiting = set[fx.Node](), list(results)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if not (node in same and _cuttable(node)):
                waiting += node.all_input_nodes
    return found


def _inputs(program: Program, cuts: list[fx.Node]) -> dict[fx.Node, Input]:
    """What each value is to the loop: the role of a placeholder, or that of what a value depends on."""
    known = dict(zip(program.placeholders, program.inputs, strict=True))
    stage = stages(program)
    kinds: tuple[Role, ...] = ("state", "condition", "time")
    found = {}
    for node in cuts:
        role: Role = next((kind for kind in kinds if kind in stage[node]), "weight")
        found[node] = known.get(node, Input(node.name, role, node.name))
    return found


def _cut_out(
    program: Program, inputs: dict[fx.Node, Input], origin: dict[fx.Node, fx.Node], needed: set[fx.Node],
    results: list[fx.Node],
) -> Program:  # fmt: skip
    """A Program of the needed nodes. `origin` says which of `inputs` stands for a node."""
    graph, copies, given = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    for node in inputs:
        given[node] = graph.placeholder(node.name)
        given[node].meta = {"val": node.meta["val"]}
    for node in program.graph.nodes:
        if node in origin:
            copies[node] = given[origin[node]]
        elif node in needed:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
            copies[node].meta = dict(node.meta)
    graph.output(tuple(copies[node] for node in results))
    entries = tuple(replace(entry, name=given[node].name) for node, entry in inputs.items())
    held = {given[node].name: program.constants[node.name] for node in inputs if node.name in program.constants}
    return Program(graph, entries, held, None, program.name, program.root)
