"""What it costs to keep a value, what that saves, and the choice of what to place in an earlier stage.

Work is counted in bytes, so that it compares with memory: the bytes a node reads, its FLOPs divided by
`flops_per_byte`, and `dispatch_bytes` for calling it at all. The bytes it writes do not count: where recomputing is
fused into the reader nothing is written, and where it is not, reading the kept value costs as much. Views are free.

A set of nodes that can be placed together is *closed*: everything they read is available there. Dropping a node from it
drops what depends on it, frees the values that nobody keeps any more, and keeps the values that the dropped nodes read.
A node stays when the work lost by dropping it is at least the bytes that would be freed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from graphopt.ir.alias import owner
from graphopt.ir.cost import nbytes, node_cost
from graphopt.ir.effects import is_view
from graphopt.ir.program import Program, val
from graphopt.ir.stages import WEIGHTS, Stage, placement, stages


@dataclass(frozen=True)
class Price:
    """Limits and exchange rates.

    Attributes
    ----------
    max_bytes : bytes that all kept values of the stage together may take, all rows of a table included.
    rows : values kept of each node: the timesteps of a schedule, else 1.
    flops_per_byte : FLOPs done in the time of moving one byte.
    dispatch_bytes : bytes moved in the time it takes to call one operation.
    max_growth : bytes of one kept value over the bytes of the weights it is computed from, at most; None: any.
    small_bytes : values of up to this many bytes may grow as they like.
    """

    max_bytes: int = 256 << 20
    rows: int = 1
    flops_per_byte: float = 10.0
    dispatch_bytes: int = 32 << 10
    max_growth: float | None = None
    small_bytes: int = 1 << 20


@dataclass
class Plan:
    """What to place in a stage, and why other candidates stay where they are."""

    stage: Stage
    placed: list[fx.Node] = field(default_factory=list)
    refused: dict[fx.Node, str] = field(default_factory=dict)

    def decisions(self) -> Iterator[tuple[fx.Node, str | None]]:
        """Every candidate in graph order, with the reason against placing it or None."""
        for node in sorted({*self.placed, *self.refused}):
            yield node, self.refused.get(node)


def plan(program: Program, stage: Stage, price: Price, before: Iterable[Plan] = ()) -> Plan:
    """Choose the nodes to place in `stage`, given what earlier plans of the same pass place."""
    chosen = _Choice(program, stage, price, {node: entry.stage for entry in before for node in entry.placed})
    chosen.drop_idle()
    chosen.drop_grown()
    chosen.drop_unpaid()
    chosen.drop_over_limit()
    return Plan(stage, [node for node in chosen.candidates if node in chosen.inside], chosen.refused)


class _Choice:
    """The closed set `inside`, which shrinks."""

    def __init__(self, program: Program, stage: Stage, price: Price, assumed: Mapping[fx.Node, Stage]) -> None:
        self.stage, self.price, self.known = stage, price, stages(program)
        self.hints = _hints(program)
        self.roles = {node: frozenset({program.role(node)} - {"weight"}) for node in program.placeholders}
        self.inside: set[fx.Node] = set()
        self.candidates: list[fx.Node] = []
        self.refused: dict[fx.Node, str] = {}
        self.earlier = set(program.graph.find_nodes(op="get_attr"))
        self.earlier |= {node for node, role in self.roles.items() if role <= stage}
        for node in program.calls():
            placed = assumed.get(node, placement(node))
            if placed < stage:
                self.earlier.add(node)
            elif placed == stage:
                self.inside.add(node)
            elif self.known[node] <= stage and all(s in self.inside or s in self.earlier for s in node.all_input_nodes):
                self.inside.add(node)
                self.candidates.append(node)

    # -- what keeping costs and saves ----------------------------------------------------------------------------------

    def bytes(self, node: fx.Node) -> int:
        """Bytes of the memory that keeping `node` keeps; a weight's own memory is there anyway."""
        source = owner(node)
        return 0 if self.roles.get(source) == WEIGHTS else _number(nbytes(val(source)), self.hints)

    def work(self, node: fx.Node) -> float:
        """What computing `node` costs, in bytes."""
        if is_view(node) or node.target is operator.getitem or not isinstance(val(node), torch.Tensor | list | tuple):
            return 0.0
        read = sum(_number(nbytes(val(owner(source))), self.hints) for source in node.all_input_nodes)
        return read + _number(node_cost(node).flops, self.hints) / self.price.flops_per_byte + self.price.dispatch_bytes

    def kept(self, inside: set[fx.Node]) -> dict[fx.Node, int]:
        """Owner of each memory kept → its bytes, all rows: what is read outside of `inside`."""
        leaving = (node for node in inside if any(user not in inside for user in node.users))
        return {owner(node): self.bytes(node) * self.price.rows for node in leaving}

    def above(self, node: fx.Node) -> set[fx.Node]:
        """`node` and the nodes inside that need it."""
        found, open_ = {node}, [node]
        while open_:
            for user in open_.pop().users:
                if user in self.inside and user not in found:
                    found.add(user)
                    open_.append(user)
        return found

    def drop(self, node: fx.Node, reason: str) -> None:
        for each in self.above(node) & set(self.candidates):
            self.inside.discard(each)
            self.refused[each] = reason

    def options(self) -> Iterator[tuple[float, int, fx.Node]]:
        """Droppable nodes, each with the work lost and the bytes freed by dropping it."""
        fixed = self.inside - set(self.candidates)
        total = self.kept(self.inside)
        for node in self.candidates:
            gone = self.above(node) if node in self.inside else set()
            if gone and not gone & fixed:
                after = self.kept(self.inside - gone)
                yield sum(map(self.work, gone)), sum(total.values()) - sum(after.values()), node

    # -- reasons against -----------------------------------------------------------------------------------------------

    def drop_idle(self) -> None:
        """Nodes of an earlier stage that nothing here needs, and views of inputs that nothing here reads."""
        for node in reversed(self.candidates):
            if any(user in self.inside for user in node.users):
                continue
            source = owner(node)
            if self.known[node] != self.stage:
                self.inside.discard(node)
            elif self.roles.get(source):
                self.drop(node, "it is a view of an input: keeping it saves no work")

    def drop_grown(self) -> None:
        limit = self.price.max_growth
        for source, size in self.kept(self.inside).items() if limit is not None else ():
            read = sum(_number(nbytes(val(w)), self.hints) for w in _below(source) if w in self.roles)
            if source in self.inside and size > max(self.price.small_bytes, (limit or 0.0) * read):
                self.drop(source, f"keeping it takes {size} bytes, computed from {read} bytes of weights")

    def drop_unpaid(self) -> None:
        while True:
            rows = self.price.rows
            unpaid = [(lost, freed, node) for lost, freed, node in self.options() if lost < freed / rows]
            if not unpaid:
                return
            lost, freed, node = min(unpaid, key=lambda entry: (entry[0] / entry[1], entry[2].name))
            self.drop(node, f"keeping it takes {freed // rows} bytes and saves the work of moving {lost:.0f}")

    def drop_over_limit(self) -> None:
        while (total := sum(self.kept(self.inside).values())) > self.price.max_bytes:
            options = [entry for entry in self.options() if entry[1] > 0]
            if not options:
                return
            lost, freed, node = min(options, key=lambda entry: (entry[0] / entry[1], entry[2].name))
            self.drop(
                node,
                f"the stage would keep {total} bytes, more than max_bytes={self.price.max_bytes}, and this saves least: "
                f"work of moving {lost:.0f} bytes for {freed} bytes kept",
            )


def _below(node: fx.Node) -> set[fx.Node]:
    """`node` and everything it is computed from."""
    found, open_ = {node}, [node]
    while open_:
        for source in open_.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                open_.append(source)
    return found


def _hints(program: Program) -> dict[Any, int]:
    """Symbolic sizes → the sizes of the example inputs."""
    found: dict[Any, int] = {}
    for node in program.placeholders:
        value = val(node)
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt) and size.node.hint is not None:
                found[size.node.expr] = size.node.hint
    return found


def _number(amount: Any, hints: Mapping[Any, int]) -> int:
    if isinstance(amount, sympy.Basic):
        amount = amount.xreplace(dict(hints))
        amount = amount.xreplace({symbol: sympy.Integer(1) for symbol in amount.free_symbols})
    return int(amount)
