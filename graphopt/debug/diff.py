"""What changed between two Programs: nodes removed, added, moved to another stage, or given other arguments.

What is no node (the order of inputs, relations, how results are put together) is a change of the table of that name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import fx
from torch.utils._pytree import tree_map_only

from graphopt.debug.boundary import body, constants, inputs, tables
from graphopt.ir.cost import Cost, StageCost, foldable, node_cost, stage_costs
from graphopt.ir.printer import describe, line
from graphopt.ir.program import Program
from graphopt.ir.stages import placement, stage_name

Kind: TypeAlias = Literal["removed", "added", "moved", "changed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MARKS: dict[Kind, str] = {"removed": "−", "added": "+", "changed": "~", "moved": "→"}


@dataclass(frozen=True)
class Change:
    """One node, or one table of a dump, that is not as it was.

    Attributes
    ----------
    kind : ``removed``, ``added``, ``moved`` (to another stage, with the same arguments), or ``changed`` (other
        arguments, of another operation, or of another shape).
    node : its name; ``INPUTS``, ``RELATIONS`` or ``RESULT`` for a table.
    before, after : the node's line in a dump, None where it does not exist. Of an input of another role or path its row
        in the table; of a constant the first value that differs; of a subgraph the lines that differ.
    values : what it gives, before and after: ``f32[2, 4]``; empty where it does not exist.
    stages : that compute it, before and after.
    module, source : where the user's model made it.
    cost : of the node: what its removal saves, or what it adds; after less before where it is in both.
    """

    kind: Kind
    node: str
    before: str | None
    after: str | None
    values: tuple[str, str]
    stages: tuple[str, str]
    module: str
    source: str
    cost: Cost


@dataclass(frozen=True)
class Difference:
    """All changes, those of the first Program in its order, then what is new; and the work per stage, before and after.

    `renamed` maps names of the first Program to those that the same computations have in the second, where they differ.
    `once` is what of the step's work depends on weights alone, before and after.
    """

    changes: tuple[Change, ...]
    costs: dict[str, tuple[StageCost, StageCost]]
    renamed: dict[str, str]
    once: tuple[StageCost, StageCost]

    def of(self, kind: Kind) -> list[Change]:
        return [change for change in self.changes if change.kind == kind]

    @property
    def counts(self) -> Counter[Kind]:
        return Counter(change.kind for change in self.changes)

    @property
    def step(self) -> tuple[Cost, Cost]:
        """The cost of a step, before and after."""
        before, after = self.costs["step"]
        return before.cost, after.cost


def difference(before: Program, after: Program) -> Difference:
    """Compare two Programs node by node.

    Nodes correspond by name where the operation is the same, else by operation and arguments: a Program that merely
    names its nodes otherwise does not differ.
    """
    pairs = _correspond(before, after)
    renamed = {old.name: new.name for old, new in pairs.items() if old.name != new.name}
    rows, values = (inputs(before), inputs(after)), constants(before, after)
    found = [
        Change("changed", name, was, now, ("", ""), ("", ""), "", "", Cost())
        for name, was, now in tables(before, after)
    ]
    for old in before.graph.nodes:
        if old.op == "output":
            continue
        if old not in pairs:
            found.append(_change("removed", old, None))
            continue
        new, texts = pairs[old], None
        if old.op == "placeholder" and rows[0][old.name] != rows[1][new.name]:
            texts = rows[0][old.name], rows[1][new.name]
        elif old.op == "placeholder":
            texts = values.get(old.name)
        elif old.op == "get_attr":
            texts = _bodies(old, body(before.root, old), body(after.root, new))
        kind: Kind | None = "changed" if texts else _kind(old, new, pairs)
        if kind:
            found.append(_change(kind, old, new, texts))
    known = set(pairs.values())
    for new in after.graph.nodes:
        if new.op != "output" and new not in known:
            found.append(_change("added", None, new))
    if _arguments(before.output, pairs) != after.output.args:
        found.append(_change("changed", before.output, after.output))
    was, now = stage_costs(before), stage_costs(after)
    return Difference(tuple(found), {name: (was[name], now[name]) for name in was}, renamed,
                      (foldable(before), foldable(after)))  # fmt: skip


def _bodies(node: fx.Node, was: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, str] | None:
    """The lines of a subgraph that the other does not have, all of them where only their order differs."""
    if was == now:
        return None
    only = [text for text in was if text not in now], [text for text in now if text not in was]
    shown = only if any(only) else (was, now)
    return f"{line(node)}: {'; '.join(shown[0])}", f"{line(node)}: {'; '.join(shown[1])}"


def _correspond(before: Program, after: Program) -> dict[fx.Node, fx.Node]:
    """Nodes of the first Program and their counterparts in the second."""
    named = {node.name: node for node in after.graph.nodes}
    pairs = {old: named[old.name] for old in before.graph.nodes if _alike(old, named.get(old.name))}
    left: dict[str, list[fx.Node]] = {}
    taken = set(pairs.values())
    for new in after.graph.nodes:
        if new not in taken and new.op == "call_function":
            left.setdefault(_text(new, {}), []).append(new)
    for old in before.graph.nodes:
        if old.op == "call_function" and old not in pairs and left.get(text := _text(old, pairs)):
            pairs[old] = left[text].pop(0)
    return pairs


def _alike(old: fx.Node, new: fx.Node | None) -> bool:
    return new is not None and (old.op, old.target) == (new.op, new.target)


def _text(node: fx.Node, pairs: dict[fx.Node, fx.Node]) -> str:
    args, kwargs = tree_map_only(fx.Node, lambda n: pairs.get(n, n), (node.args, node.kwargs))
    return f"{node.target} {args} {sorted(kwargs.items())} {describe(node.meta.get('val'))}"


def _arguments(node: fx.Node, pairs: dict[fx.Node, fx.Node]) -> object:
    return tree_map_only(fx.Node, lambda n: pairs.get(n), node.args)


def _kind(old: fx.Node, new: fx.Node, pairs: dict[fx.Node, fx.Node]) -> Kind | None:
    if _text(old, pairs) != _text(new, {}):
        return "changed"
    return "moved" if old.op == "call_function" and placement(old) != placement(new) else None


def _change(kind: Kind, old: fx.Node | None, new: fx.Node | None, texts: tuple[str, str] | None = None) -> Change:
    node = old if old is not None else new
    assert node is not None
    values = tuple(describe(entry.meta.get("val")) if entry is not None else "" for entry in (old, new))
    stages = tuple(stage_name(placement(entry)) if entry is not None else "" for entry in (old, new))
    costs = [node_cost(entry) if entry is not None else Cost() for entry in (old, new)]
    cost = Cost(costs[1].flops - costs[0].flops, costs[1].bytes - costs[0].bytes)
    was, now = texts or tuple(line(entry) if entry is not None else None for entry in (old, new))
    meta = (new if new is not None else node).meta
    return Change(
        kind, node.name, was, now, (values[0], values[1]), (stages[0], stages[1]), meta.get("module", ""),
        meta.get("source", ""), cost,
    )  # fmt: skip
