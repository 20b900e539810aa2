"""Which inputs' *values* a node depends on, and the split of a Program by that.

A stage is a set of roles. ``{}`` depends on weights alone, ``{condition}`` changes once per request, ``{time}`` takes
one value per timestep of the schedule, anything with ``state`` changes every step; without ``condition`` it is common
to the guidance branches of a step. The *stage* of a node is a fact; its *placement*
(``node.meta["placement"]``) is a decision that passes take and price: a superset of the stage, and at least the union
of the placements of its arguments. `split` then cuts the graph by placement.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from graphopt.errors import VerificationError
from graphopt.ir.effects import has_effect, is_view, value_inputs
from graphopt.ir.program import Program

Stage: TypeAlias = frozenset[str]

WEIGHTS: Stage = frozenset()
REQUEST: Stage = frozenset({"condition"})
SCHEDULE: Stage = frozenset({"time"})
REQUEST_SCHEDULE: Stage = frozenset({"time", "condition"})
COMMON: Stage = frozenset({"time", "state"})
STEP: Stage = frozenset({"time", "condition", "state"})

# In the order in which they are computed.
STAGES: dict[str, Stage] = {
    "weights": WEIGHTS,
    "request": REQUEST,
    "schedule": SCHEDULE,
    "request_schedule": REQUEST_SCHEDULE,
    "common": COMMON,
    "step": STEP,
}
_NAMES = {stage: name for name, stage in STAGES.items()}


def stage_name(stage: Stage) -> str:
    """The name of a stage: weights, request, schedule, request_schedule, common or step."""
    return _NAMES.get(stage, "step")


def kept_as(stage: Stage) -> str:
    """The name of the stage that can keep a value of this stage in any sampler: what reads state is of the step."""
    return "step" if "state" in stage else _NAMES[stage]


def stages(program: Program) -> dict[fx.Node, Stage]:
    """The stage of every node: the roles of the inputs whose values it reads.

    Nodes with effects belong to every step, whatever they read.
    """
    found: dict[fx.Node, Stage] = {}
    roles = program.roles()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            role = roles[node.name]
            found[node] = WEIGHTS if role == "weight" else frozenset({role})
        elif node.op == "output" or has_effect(node):
            found[node] = STEP
        else:
            found[node] = frozenset().union(*(found[source] for source in value_inputs(node)))
    return found


def placement(node: fx.Node) -> Stage:
    """The stage that computes `node`; every step unless a pass decided otherwise."""
    placed: Stage = node.meta.get("placement", STEP)
    return placed


@dataclass
class Part:
    """The part of a Program that one stage computes.

    Attributes
    ----------
    stage : the placement its nodes share.
    graph : placeholders named after the nodes they stand for; returns a flat tuple. Those of the caller's own tensors,
        which nobody digests, have ``given`` in their meta.
    reads : names of the values it takes, in placeholder order: inputs of the Program or values of earlier parts.
    gives : names of the values it returns, in order: those that later parts read (for the step: the results).
    """

    stage: Stage
    graph: fx.Graph
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    root: torch.nn.Module

    @property
    def name(self) -> str:
        return stage_name(self.stage)

    def module(self) -> fx.GraphModule:
        """The part as a callable module: values in `reads` order → tuple in `gives` order."""
        return fx.GraphModule(self.root, self.graph, class_name=f"Stage_{self.name}")


def settle(program: Program) -> None:
    """Place nodes without a placement that are read in an earlier stage than the step: in the latest that will do.

    A pass that rewrites a node of an earlier stage makes new ones in front of it; they belong where that node is.
    """
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and "placement" not in node.meta:
            early = STEP.intersection(*(placement(user) for user in node.users if user.op == "call_function"))
            if early != STEP:
                node.meta["placement"] = early


def check_placements(program: Program) -> None:
    """Raise VerificationError where a node is placed earlier than a value it reads can be known."""
    known = stages(program)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        placed = placement(node)
        late = [source for source in node.all_input_nodes if not _available(known, source) <= placed]
        if not known[node] <= placed or (late and placed != STEP):
            depends = f"depends on '{stage_name(known[node])}'"
            if known[node] <= placed:
                depends = f"reads '{late[0].name}' of '{stage_name(_available(known, late[0]))}'"
            raise VerificationError(
                f"node is placed in stage '{stage_name(placed)}' but {depends}",
                where=f"{node.name} ({node.meta.get('source', 'unknown source')})",
                hint="a placement must contain the stage of the node and the placements of what it reads",
            )


def _available(known: Mapping[fx.Node, Stage], node: fx.Node) -> Stage:
    """The stage from which on the value of a node is there to be read."""
    return placement(node) if node.op == "call_function" else known[node]


def split(program: Program) -> list[Part]:
    """Cut a Program into one Part per placement, in the order of computation; empty parts are left out.

    The step always exists. A result that an earlier part computes passes through the step as a copy, so that a caller
    who writes into what the model returned cannot reach a value that is kept.
    """
    check_placements(program)
    home = {node: placement(node) for node in program.graph.nodes if node.op == "call_function"}
    parts: list[Part] = []
    for stage in STAGES.values():
        mine = [node for node, placed in home.items() if placed == stage]
        if mine or stage == STEP:
            parts.append(_part(program, stage, mine, home))
    return parts


def _part(program: Program, stage: Stage, mine: list[fx.Node], home: dict[fx.Node, Stage]) -> Part:
    graph, copies, inside = fx.Graph(), {}, set(mine)
    is_step = stage == STEP
    results = [node for node in program.results if node is not None] if is_step else []
    outside = {
        source for node in (*mine, program.output) if node in inside or is_step for source in node.all_input_nodes
    }
    outside -= inside
    reads = [node for node in program.graph.nodes if node in outside and node.op != "get_attr"]
    given = {entry.name for entry in program.inputs if entry.role != "weight"}
    for node in reads:
        copies[node] = graph.placeholder(node.name)
        steady = node.name not in given if node.op == "placeholder" else home[node] <= REQUEST
        copies[node].meta = {**node.meta, "given": node.name in given, "steady": steady}
    for node in program.graph.nodes:
        if node in inside or (node.op == "get_attr" and node in outside):
            copies[node] = graph.node_copy(node, lambda source: copies[source])
            copies[node].meta = dict(node.meta)
    if is_step:
        kept = {node: _protected(graph, node, copies, inside) for node in results}
        gives = [node.name for node in results]
        graph.output(tuple(kept[value] if isinstance(value, fx.Node) else value for value in program.output.args[0]))  # type: ignore[union-attr]
    else:
        leaving = [node for node in mine if any(home.get(user, STEP) != stage for user in node.users)]
        gives = [node.name for node in leaving]
        graph.output(tuple(copies[node] for node in leaving))
    graph.eliminate_dead_code(lambda node: has_effect(node) or node.op in ("placeholder", "output"))
    return Part(stage, graph, tuple(node.name for node in reads), tuple(gives), program.root)


def _protected(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node], inside: set[fx.Node]) -> fx.Node:
    """A result computed elsewhere (or a view of one) leaves as a copy; a fresh result leaves as it is."""
    base = node
    while base in inside and (is_view(base) or base.target is operator.getitem):
        base = base.all_input_nodes[0]
    if base in inside or base.op == "placeholder":
        return copies[node]
    return graph.call_function(torch.ops.aten.clone.default, (copies[node],))
