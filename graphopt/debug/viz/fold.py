"""What a picture shows of a Program: operators folded into boxes by submodule, views and weights into edges.

Submodules count in levels. The index in a list belongs to the list's name, so that ``down_blocks.0.resnets.1.conv1`` is
three levels deep. At depth 2 all of ``down_blocks.0 / resnets.1`` is one box, and an operator of ``down_blocks.0``
itself has one of its own.
"""

from __future__ import annotations

import operator
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import fx

from graphopt.debug.history import Compilation, Snapshot
from graphopt.debug.viz.palette import STAGE_OF_ROLE
from graphopt.errors import UsageError, nearest
from graphopt.ir.cost import Cost, node_cost
from graphopt.ir.effects import METADATA_CHECKS, is_view
from graphopt.ir.program import Program
from graphopt.ir.stages import STAGES, placement, stage_name

Path: TypeAlias = tuple[str, ...]


@dataclass
class Box:
    """One box of a picture.

    Attributes
    ----------
    name : of its first node; no two boxes share one.
    kind : ``node`` for a single operator, input or output; ``module`` for all of a submodule; ``stage`` for what a
        picture of one stage takes from another.
    path : the submodules it lies in, outermost first; the last one is the box itself where that is a module.
    nodes : in graph order.
    """

    name: str
    kind: Literal["node", "module", "stage"]
    path: Path
    nodes: list[fx.Node]

    @property
    def inside(self) -> Path:
        """The submodules around the box."""
        return self.path[:-1] if self.kind == "module" else self.path


@dataclass
class Picture:
    """Boxes in graph order, and edges between them: the views on the way, and how many values go there."""

    boxes: list[Box] = field(default_factory=list)
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict)


@dataclass
class Edge:
    """What goes from one box to another."""

    views: tuple[str, ...] = ()
    values: int = 0


def levels(module: str) -> Path:
    """``down_blocks.0.resnets.1`` → (``down_blocks.0``, ``resnets.1``)."""
    found = list[str]()
    for part in filter(None, module.split(".")):
        if part.isdigit() and found:
            found[-1] += f".{part}"
        else:
            found.append(part)
    return tuple(found)


def stage_of(program: Program, node: fx.Node) -> str:
    """The stage that computes a node, or from which on an input is known."""
    if node.op == "placeholder":
        return STAGE_OF_ROLE[program.role(node)]
    return "step" if node.op == "output" else "weights" if node.op == "get_attr" else stage_name(placement(node))


def operator_name(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``."""
    if node.op != "call_function":
        return node.op
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def is_plumbing(node: fx.Node) -> bool:
    """Whether a call computes nothing: a view, an entry of several results, or a check of shapes."""
    if node.op != "call_function":
        return False
    return node.target is operator.getitem or node.target in METADATA_CHECKS or is_view(node)


def cost_of(nodes: Iterable[fx.Node]) -> Cost:
    """FLOPs and bytes of some nodes together."""
    total = Cost()
    for node in nodes:
        total += node_cost(node)
    return total


def by_stage(program: Program, nodes: Iterable[fx.Node]) -> dict[str, list[fx.Node]]:
    """Nodes by stage, in the order in which stages are computed; stages without nodes are left out."""
    found: dict[str, list[fx.Node]] = {name: [] for name in STAGES}
    for node in nodes:
        found[stage_of(program, node)].append(node)
    return {name: some for name, some in found.items() if some}


def chosen(compilation: Compilation, after: str | int | None) -> Snapshot:
    """The snapshot after a pass, see `position`; the last where none is named. Raises UsageError as that does."""
    order = [snapshot.name for snapshot in compilation.snapshots[1:]]
    return compilation.snapshots[-1 if after is None else position(after, order, "after")]


def position(after: str | int, order: Sequence[str], where: str) -> int:
    """Where a pass stands in a row of passes, counting from 1; 0 for ``captured``.

    Parameters
    ----------
    after : its number, its name (with or without options), or both as dumps are called, ``018_hoist``.
    order : the passes that run, as the command line spells them.
    where : what names the pass, for the message.

    Raises
    ------
    UsageError : there is no such pass, the number is another's, or the name alone says too little.
    """
    names = ["captured", *order]
    slugs = [f"{number:03}_{name.partition('{')[0]}" for number, name in enumerate(names)]
    text = str(after)
    if text in slugs or (text.isdecimal() and int(text) < len(names)):
        return int(text.partition("_")[0])
    wanted = re.sub(r"^\d+_", "", text)
    found = [number for number, name in enumerate(names) if wanted in (name, name.partition("{")[0])]
    if len(found) == 1 and wanted == text:
        return found[0]
    known = f"{nearest(wanted, {slug.partition('_')[2] for slug in slugs})}; or a number up to {len(order)}"
    numbered = " or ".join(slugs[number] for number in found)
    if len(found) > 1 and wanted == text:
        raise UsageError(f"'{text}' runs {len(found)} times", where=where, hint=f"with its number: {numbered}")
    raise UsageError(f"no pass '{text}' runs", where=where, hint=f"did you mean {numbered}?" if found else known)


def check_stage(stage: str | None) -> None:
    """Raise UsageError where `stage` is no stage's name."""
    if stage is not None and stage not in STAGES:
        raise UsageError(f"there is no stage '{stage}'", where="stage", hint=nearest(stage, STAGES))


def fold(
    program: Program, depth: int, *, stage: str | None = None, views: bool = False, shown: Collection[str] = (),
    marked: Collection[str] | None = None,
) -> Picture:  # fmt: skip
    """The picture of a Program.

    Parameters
    ----------
    depth : levels of submodules that are told apart.
    stage : the only stage to show; what it takes from others is shown as inputs.
    views : show views and checks as operators.
    shown : names of nodes that are shown even where they are views.
    marked : names of nodes; where given, a submodule without any of them is one box, however shallow.
    """
    kept = None if marked is None else set(_around(program, marked))
    homes: dict[str | Path, Box] = {}
    own = {node for node in program.graph.nodes if stage is None or stage_of(program, node) == stage}
    visible = {node for node in own if _shows(program, node) and (views or node.name in shown or not is_plumbing(node))}
    sources = dict(_sources(program, visible, own))
    taken = {source for found in sources.values() for source in found} - visible
    for node in program.graph.nodes:
        path = levels(node.meta.get("module", "")) if node.op == "call_function" else ()
        if node in taken:
            key: str | Path = stage_of(program, node)
            box = homes.setdefault(f"stage {key}", Box(node.name, "stage", (), []))
        elif node not in visible:
            continue
        elif cut := _cut(path, depth, kept):
            box = homes.setdefault(cut, Box(node.name, "module", cut, []))
        else:
            box = Box(node.name, "node", path, [])
        box.nodes.append(node)
        homes[node.name] = box
    picture = Picture(list({box.name: box for box in homes.values()}.values()))
    for node, found in sources.items():
        for source, way in found.items():
            ends = (homes[source.name].name, homes[node.name].name)
            if ends[0] != ends[1]:
                picture.edges.setdefault(ends, Edge(way)).values += 1
    return picture


def _around(program: Program, marked: Collection[str]) -> Iterator[Path]:
    """The submodules that hold a marked node, at every level."""
    for node in program.calls():
        if node.name in marked:
            path = levels(node.meta.get("module", ""))
            yield from (path[:length] for length in range(len(path) + 1))


def _cut(path: Path, depth: int, kept: Collection[Path] | None) -> Path | None:
    """The submodule that a node is folded into, None where it stands for itself."""
    for length in range(1, len(path) + 1):
        if length == depth or (kept is not None and path[:length] not in kept):
            return path[:length]
    return None


def _shows(program: Program, node: fx.Node) -> bool:
    """Whether a node can be a box at all: weights and inputs that nobody reads are none."""
    if node.op == "placeholder":
        return bool(node.users) and program.role(node) != "weight"
    return node.op in ("call_function", "output")


def _sources(
    program: Program, visible: set[fx.Node], own: set[fx.Node]
) -> Iterator[tuple[fx.Node, dict[fx.Node, Path]]]:
    """For each visible node what it reads, through all that is not shown, with the names of the views between."""
    ways: dict[fx.Node, dict[fx.Node, Path]] = {}
    for node in program.graph.nodes:
        found: dict[fx.Node, Path] = {}
        for source in node.all_input_nodes:
            if source in visible or (source not in own and stage_of(program, source) != "weights"):
                found.setdefault(source, ())
                continue
            for end, way in ways[source].items():
                step = () if source.target is operator.getitem else (operator_name(source),)
                found.setdefault(end, (*way, *step))
        ways[node] = found
        if node in visible:
            yield node, found


def columns(program: Program, boxes: Iterable[Box]) -> dict[str, list[Box]]:
    """Boxes by their outermost submodule, in the order in which most of each one is computed.

    Inputs come first and the output last; operators of no submodule are under the empty name.
    """
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    found: dict[str, list[Box]] = {}
    places: dict[str, list[int]] = {}
    for box in boxes:
        first = box.nodes[0]
        key = (
            " inputs" if box.kind == "stage" or first.op == "placeholder" else " output" if first.op == "output" else ""
        )
        key = box.path[0] if box.path else key
        found.setdefault(key, []).append(box)
        nodes = [node for node in box.nodes if stage_of(program, node) != "weights"]
        places.setdefault(key, []).extend(order[node] for node in nodes or box.nodes)
    ranks = {key: (key == " output", key != " inputs", statistics.median_low(some)) for key, some in places.items()}
    return {key: found[key] for key in sorted(found, key=lambda key: ranks[key])}
