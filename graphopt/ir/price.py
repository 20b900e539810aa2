"""What it costs to keep a value, what that saves, and the choice of what to place in an earlier stage.

Work is counted in bytes, so that it compares with memory: the bytes a node reads, its FLOPs divided by
`flops_per_byte`, and `dispatch_bytes` for calling it at all. The bytes it writes do not count: where recomputing is
fused into the reader nothing is written, and where it is not, reading the kept value costs as much; those of a
layer's weight do, which is read in pieces, several times. Views are free.

A set of nodes that can be placed together is *closed*: everything they read is available there. Dropping a node from it
drops what depends on it, frees the values that nobody keeps any more, and keeps the values that the dropped nodes read.
A node stays when the work lost by dropping it is at least the bytes that would be freed.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx

from graphopt.ir import products, winograd
from graphopt.ir.alias import owner
from graphopt.ir.cost import nbytes, node_cost
from graphopt.ir.effects import is_view
from graphopt.ir.layers import LAYERS
from graphopt.ir.program import Program, bind, val
from graphopt.ir.stages import STAGES, WEIGHTS, Stage, placement, stages

_LAYERS = frozenset({*LAYERS, winograd.conv2d, products.linear, products.conv2d})

Victim: TypeAlias = tuple[fx.Node, str]


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
    while victim := chosen.grown() or chosen.unpaid() or chosen.over_limit():
        chosen.drop(*victim)
        chosen.drop_idle()
    return Plan(stage, [node for node in chosen.candidates if node in chosen.inside], chosen.refused)


class _Choice:
    """The closed set `inside`, which shrinks."""

    def __init__(self, program: Program, stage: Stage, price: Price, assumed: Mapping[fx.Node, Stage]) -> None:
        self.stage, self.price, self.known = stage, price, stages(program)
        self.owner, self.hints = cache(owner), hints_of(program)
        self.roles = {node: self.known[node] for node in program.placeholders}
        self.inside: set[fx.Node] = set()
        self.candidates: list[fx.Node] = []
        self.refused: dict[fx.Node, str] = {}
        self.order = list(program.calls())
        earlier = set(program.graph.find_nodes(op="get_attr")) | {n for n, role in self.roles.items() if role <= stage}
        for node in self.order:
            placed = assumed.get(node, placement(node))
            reads = node.all_input_nodes
            if placed < stage:
                earlier.add(node)
            elif placed == stage:
                self.inside.add(node)
            elif stage < placed and self.known[node] <= stage and all(n in self.inside or n in earlier for n in reads):
                self.inside.add(node)
                self.candidates.append(node)
        self.movable = set(self.candidates)

    # -- what keeping costs and saves ----------------------------------------------------------------------------------

    def bytes(self, node: fx.Node) -> int:
        """Bytes kept of an owner, all rows; the memory of an input is there anyway."""
        return 0 if node in self.roles else self.price.rows * number(nbytes(val(node)), self.hints)

    def work(self, node: fx.Node) -> float:
        """What computing `node` costs, in bytes."""
        if is_view(node) or node.target is operator.getitem or not isinstance(val(node), torch.Tensor | list | tuple):
            return 0.0
        moved = sum(number(nbytes(val(self.owner(source))), self.hints) for source in node.all_input_nodes)
        if any(_is_weight(node, user) for user in node.users):  # which no reader computes on the way
            moved += number(nbytes(val(node)), self.hints)
        return moved + number(node_cost(node).flops, self.hints) / self.price.flops_per_byte + self.price.dispatch_bytes

    def leaving(self) -> list[fx.Node]:
        """The nodes inside that are read outside."""
        return [n for n in self.order if n in self.inside and any(user not in self.inside for user in n.users)]

    def kept(self) -> dict[fx.Node, int]:
        """Owner of each memory kept → its bytes."""
        return {source: self.bytes(source) for source in map(self.owner, self.leaving())}

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
        for each in self.above(node):
            self.inside.discard(each)
            self.refused[each] = reason

    def options(self) -> Iterator[tuple[float, int, fx.Node]]:
        """Droppable nodes, the last first, each with the work lost and the bytes freed by dropping it."""
        leaving = set(self.leaving())
        before = Counter(map(self.owner, leaving))
        for node in reversed(self.candidates):
            gone = self.above(node) if node in self.inside else set()
            if not gone or not gone <= self.movable:
                continue
            ended = Counter(self.owner(n) for n in gone & leaving)
            begun = {self.owner(n) for entry in gone for n in entry.all_input_nodes if n in self.inside - gone}
            freed = sum(self.bytes(n) for n, count in ended.items() if before[n] == count and n not in begun)
            freed -= sum(self.bytes(n) for n in begun if before[n] == 0)
            yield sum(map(self.work, gone)), freed, node

    # -- reasons against -----------------------------------------------------------------------------------------------

    def drop_idle(self) -> None:
        """Nodes of an earlier stage that nothing here needs, and views of inputs that nothing here reads."""
        for node in reversed(self.candidates):
            if node not in self.inside or any(user in self.inside for user in node.users):
                continue
            if any(self.known[node] <= other < self.stage for other in STAGES.values()):
                self.inside.discard(node)
            elif self.roles.get(self.owner(node)):
                self.drop(node, "it is a view of an input: keeping it saves no work")

    def grown(self) -> Victim | None:
        """A kept value much larger than the weights it is computed from."""
        if self.price.max_growth is None:
            return None
        for source, size in self.kept().items():
            read = sum(number(nbytes(val(entry)), self.hints) for entry in _below(source) if entry in self.roles)
            # A layer's weight takes what the form takes in which it is read.
            weighs = any(_is_weight(source, user) for user in source.users)
            most = max(self.price.small_bytes, self.price.max_growth * read)
            if source in self.movable and size > most and not weighs:
                limits = f"small_bytes={self.price.small_bytes} and max_growth={self.price.max_growth:g}"
                return (
                    source,
                    f"keeping it takes {size} bytes, more than {limits} times the {read} of its weights allow",
                )
        return None

    def unpaid(self) -> Victim | None:
        """A node that is cheaper to recompute than what is kept for it."""
        rows = self.price.rows
        options = [entry for entry in self.options() if entry[0] < entry[1] / rows]
        if not options:
            return None
        lost, freed, node = min(options, key=_worth)
        return node, f"keeping it takes {freed // rows} bytes and saves the work of moving {lost:.0f}"

    def over_limit(self) -> Victim | None:
        """While the stage keeps too much: the node whose work is least worth its bytes."""
        kept = self.kept()
        total = sum(kept.values())
        if total <= self.price.max_bytes or not self.movable & self.inside:
            return None
        reason = f"the stage would keep {total} bytes, more than max_bytes={self.price.max_bytes}"
        options = [entry for entry in self.options() if entry[1] > 0]
        if options:
            lost, freed, node = min(options, key=_worth)
            return node, f"{reason}; this saves least: the work of moving {lost:.0f} bytes for {freed} kept"
        free = [node for node in self.candidates if node in self.inside and self.above(node) <= self.movable]
        return (free[0], reason) if free else None


def kept_weights(program: Program) -> int:
    """Bytes of what the weights stage computes and other stages read; views of weights take none."""
    known, hints = stages(program), hints_of(program)
    nodes = [node for node in program.calls() if known[node] == WEIGHTS]
    kept = {owner(node) for node in nodes if any(known[user] != WEIGHTS for user in node.users)}
    return sum(number(nbytes(val(node)), hints) for node in kept if node.op == "call_function")


def _is_weight(node: fx.Node, user: fx.Node) -> bool:
    """Whether a layer reads `node` as its weight."""
    return user.target in _LAYERS and bind(user)["weight"] is node


def _worth(option: tuple[float, int, fx.Node]) -> float:
    lost, freed, _ = option
    return lost / freed


def _below(node: fx.Node) -> set[fx.Node]:
    """`node` and everything it is computed from."""
    found, open_ = {node}, [node]
    while open_:
        for source in open_.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                open_.append(source)
    return found


def hints_of(program: Program) -> dict[Any, sympy.Integer]:
    """Symbolic sizes → the sizes of the example inputs."""
    found: dict[Any, sympy.Integer] = {}
    for node in program.placeholders:
        value = val(node)
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt) and size.node.hint is not None:
                found[size.node.expr] = sympy.Integer(size.node.hint)
    return found


def number(amount: Any, hints: Mapping[Any, sympy.Integer]) -> int:
    """An int of an amount that may be symbolic; a size that `hints` lacks counts as 1."""
    if isinstance(amount, sympy.Basic):
        amount = amount.xreplace(dict(hints))
        amount = amount.xreplace({symbol: sympy.Integer(1) for symbol in amount.free_symbols})
    return int(amount)
