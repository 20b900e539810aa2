"""Programs for Google's Model Explorer, which draws graphs of tens of thousands of nodes.

The format is that of its Python package ``ai-edge-model-explorer`` (``model_explorer.graph_builder`` and
``node_data_builder``): a collection of graphs, one per pass, submodules as namespaces; and node data, numbers by node
that it lays over a graph as colours. Everything is plain data for JSON; nothing of the package is needed to make it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from graphopt.debug.figures import scaled
from graphopt.debug.history import Compilation, Snapshot
from graphopt.debug.viz.fold import chosen, cost_of, levels, operator_name, stage_of
from graphopt.debug.viz.palette import COLOURS, tint
from graphopt.errors import UsageError
from graphopt.ir.printer import describe
from graphopt.ir.program import Input, Program, bind

_GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": COLOURS["step"]}]


def collection(compilation: Compilation, passes: Sequence[str | int] = (0, -1)) -> dict[str, Any]:
    """A graph collection: the Programs after some passes.

    Parameters
    ----------
    passes : names or numbers of passes, 0 for the captured Program, -1 for the last.

    Raises
    ------
    UsageError : there is no such pass.
    """
    graphs = [_graph(snapshot) for snapshot in _snapshots(compilation, passes)]
    return {"label": compilation.name, "graphs": graphs, "graphSorting": "name_asc"}


def node_data(compilation: Compilation, figure: str, passes: Sequence[str | int] = (0, -1)) -> dict[str, Any]:
    """The FLOPs or bytes moved of every node that has some, as node data for the same graphs.

    Parameters
    ----------
    figure : ``flops`` or ``bytes``. Symbolic figures are left out.
    """
    found = {}
    for snapshot in _snapshots(compilation, passes):
        costs = {node.name: getattr(cost_of([node]), figure) for node in snapshot.program.calls()}
        found[snapshot.slug] = {name: value for name, value in costs.items() if isinstance(value, int) and value}
    return overlay(found)


def overlay(values: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Node data from numbers by graph (``018_hoist``) and node: such as measured seconds."""
    return {
        graph: {"results": {name: {"value": value} for name, value in some.items()}, "gradient": _GRADIENT}
        for graph, some in values.items()
    }


def write(compilation: Compilation, path: Path, passes: Sequence[str | int] = (0, -1)) -> list[Path]:
    """Write a collection to `path`, and beside it node data: ``.flops.json`` and ``.bytes.json``.

    Returns
    -------
    The paths written, the collection first.
    """
    written = {path: collection(compilation, passes)}
    for figure in ("flops", "bytes"):
        written[path.with_suffix(f".{figure}.json")] = node_data(compilation, figure, passes)
    for file, content in written.items():
        file.write_text(json.dumps(content), encoding="utf-8")
    return list(written)


def open_explorer(path: Path, overlays: Sequence[Path] = ()) -> None:
    """Start Model Explorer on a written collection, with node data; returns when the user stops its server.

    Raises
    ------
    UsageError : it is not installed; or there is no such file.
    """
    for file in (path, *overlays):
        if not file.is_file():
            raise UsageError("there is no such file", where=str(file))
    if importlib.util.find_spec("model_explorer") is None:
        hint = f"pip install 'graphopt[explorer]' (ai-edge-model-explorer), then model-explorer {path}"
        raise UsageError("Model Explorer is not installed", where="--open-explorer", hint=hint)
    explorer = importlib.import_module("model_explorer")
    shown = explorer.config().add_model_from_path(str(path))
    for file in overlays:
        shown.add_node_data_from_path(str(file))
    explorer.visualize_from_config(shown)


def _snapshots(compilation: Compilation, passes: Sequence[str | int]) -> list[Snapshot]:
    """Those of some passes, each once, in the order in which they ran."""
    found = [compilation.snapshots[-1] if entry == -1 else chosen(compilation, entry) for entry in passes]
    return sorted({snapshot.number: snapshot for snapshot in found}.values(), key=lambda snapshot: snapshot.number)


def _graph(snapshot: Snapshot) -> dict[str, Any]:
    program = snapshot.program
    entries = {entry.name: entry for entry in program.inputs}
    nodes = [
        _node(program, node, entries.get(node.name))
        for node in program.graph.nodes
        if node.target is not operator.getitem
    ]
    return {"id": snapshot.slug, "nodes": nodes, "groupNodeAttributes": _groups(program)}


def _node(program: Program, node: fx.Node, entry: Input | None) -> dict[str, Any]:
    stage = stage_of(program, node)
    return {
        "id": node.name,
        "label": node.name if node.op == "placeholder" else operator_name(node),
        "namespace": "/".join(_place(node, entry)),
        "attrs": [{"key": key, "value": value} for key, value in _attributes(node, entry, stage) if value],
        "incomingEdges": list(_incoming(node)),
        "outputsMetadata": [
            {"id": str(k), "attrs": [{"key": "shape", "value": describe(value)}]} for k, value in _outputs(node)
        ],
        "inputsMetadata": [
            {"id": str(k), "attrs": [{"key": "__tensor_tag", "value": name}]}
            for k, name in enumerate(_argument_names(node))
        ],
        "style": {"backgroundColor": tint(COLOURS[stage]), "borderColor": COLOURS[stage]},
    }


def _place(node: fx.Node, entry: Input | None) -> tuple[str, ...]:
    """The submodule of a node; that of a weight by its name in the model."""
    if entry is None:
        return levels(node.meta.get("module", ""))
    return levels(entry.path.rpartition(".")[0]) if entry.role == "weight" else ()


def _attributes(node: fx.Node, entry: Input | None, stage: str) -> Iterator[tuple[str, str]]:
    yield "stage", stage
    cost = cost_of([node])
    if entry is not None:
        yield "role", entry.role
        yield "path", entry.path
    yield "operator", str(node.target) if node.op == "call_function" else ""
    yield "FLOPs", str(cost.flops) if cost.flops else ""
    yield "bytes moved", str(cost.bytes) if cost.bytes else ""
    yield "source", node.meta.get("source", "")
    yield "passes", ", ".join(node.meta.get("rules", ()))
    for name, value in bind(node).items() if node.op == "call_function" else ():
        if isinstance(value, bool | int | float | str | torch.dtype) or (
            isinstance(value, list | tuple) and not any(isinstance(entry, fx.Node) for entry in value)
        ):
            yield str(name), str(value)


def _incoming(node: fx.Node) -> Iterator[dict[str, str]]:
    """Edges into a node; an entry of several results comes out of that place of the node that gave them."""
    for position, source in enumerate(node.all_input_nodes):
        place = "0"
        while source.target is operator.getitem and isinstance(source.args[0], fx.Node):
            source, place = source.args[0], str(source.args[1])
        yield {"sourceNodeId": source.name, "sourceNodeOutputId": place, "targetNodeInputId": str(position)}


def _argument_names(node: fx.Node) -> list[str]:
    """The name of the argument that each input of a node is given for."""
    names: dict[fx.Node, str] = {}
    for name, value in bind(node).items() if node.op == "call_function" else ():
        fx.map_arg(value, lambda source, name=name: names.setdefault(source, str(name)))  # type: ignore[misc]
    return [names.get(source, "") for source in node.all_input_nodes]


def _outputs(node: fx.Node) -> Iterator[tuple[int, Any]]:
    value = node.meta.get("val")
    if node.op == "output" or value is None:
        return
    yield from enumerate(value if isinstance(value, list | tuple) else [value])


def _groups(program: Program) -> dict[str, dict[str, str]]:
    """What each submodule holds; the empty name is the whole."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.calls():
        path = levels(node.meta.get("module", ""))
        for length in range(len(path) + 1):
            found.setdefault("/".join(path[:length]), []).append(node)
    groups = {}
    for name, nodes in found.items():
        cost = cost_of(nodes)
        groups[name] = {
            "operators": str(len(nodes)),
            "FLOPs": scaled(cost.flops),
            "bytes moved": scaled(cost.bytes, "B"),
            "stages": ", ".join(name for name in COLOURS if any(stage_of(program, node) == name for node in nodes)),
        }
    return groups
