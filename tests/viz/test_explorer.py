"""Model Explorer's format: against its documented fields, and against its own package where that is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphopt.debug.viz.explorer import collection, node_data, open_explorer, overlay, write
from graphopt.errors import UsageError
from tests.viz import blocks

# Of model_explorer.graph_builder, with the types that JSON gives them.
NODE = {"id": str, "label": str, "namespace": str, "attrs": list, "incomingEdges": list, "outputsMetadata": list,
        "inputsMetadata": list, "style": dict}  # fmt: skip
EDGE = {"sourceNodeId": str, "sourceNodeOutputId": str, "targetNodeInputId": str}


def check(graph: dict[str, Any]) -> None:
    """What Model Explorer takes for granted."""
    assert set(graph) == {"id", "nodes", "groupNodeAttributes"}
    names = [node["id"] for node in graph["nodes"]]
    assert len(names) == len(set(names))
    for node in graph["nodes"]:
        assert {key: type(value) for key, value in node.items()} == NODE
        for entry in (*node["attrs"], *(a for item in node["outputsMetadata"] for a in item["attrs"])):
            assert set(entry) == {"key", "value"} and all(isinstance(value, str) for value in entry.values())
        for edge in node["incomingEdges"]:
            assert {key: type(value) for key, value in edge.items()} == EDGE
            source = next(other for other in graph["nodes"] if other["id"] == edge["sourceNodeId"])
            assert edge["sourceNodeOutputId"] in [item["id"] for item in source["outputsMetadata"]]
        assert not node["namespace"] or node["namespace"] in graph["groupNodeAttributes"] or node["label"] == node["id"]
    assert all(isinstance(value, str) for group in graph["groupNodeAttributes"].values() for value in group.values())


def test_a_graph_per_pass() -> None:
    made = collection(blocks.compilation(), ("captured", "merge_linears", -1))
    assert made["label"] == "network"
    assert [graph["id"] for graph in made["graphs"]] == ["000_captured", "001_merge_linears", "005_tabulate"]
    for graph in made["graphs"]:
        check(graph)
    assert json.loads(json.dumps(made)) == made


def test_nodes_know_their_submodule_stage_cost_and_source() -> None:
    (graph,) = collection(blocks.compilation(), [-1])["graphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    projected = nodes["projected"]
    assert (projected["label"], projected["namespace"]) == ("linear", "blocks.0/attn/to_out")
    about = {entry["key"]: entry["value"] for entry in projected["attrs"]}
    assert about["stage"] == "step" and about["source"] == "model.py:9" and about["FLOPs"] == str(2 * 2 * 10 * 8 * 8)
    assert projected["outputsMetadata"][0]["attrs"] == [{"key": "shape", "value": "f32[2, 10, 8]"}]
    assert [item["attrs"][0]["value"] for item in projected["inputsMetadata"]] == ["input", "weight"]
    assert "first" not in nodes
    assert [edge["sourceNodeOutputId"] for edge in nodes["gated"]["incomingEdges"]] == ["0", "1"]
    assert {entry["key"]: entry["value"] for entry in nodes["w_key"]["attrs"]}["role"] == "weight"
    assert graph["groupNodeAttributes"]["blocks.0"]["stages"] == "weights, request, step"
    assert nodes["projected"]["style"] != nodes["time"]["style"]


def test_node_data_counts_and_overlays() -> None:
    data = node_data(blocks.compilation(), "flops")
    assert set(data) == {"000_captured", "005_tabulate"}
    assert data["005_tabulate"]["results"]["projected"] == {"value": 2 * 2 * 10 * 8 * 8}
    assert "flat" not in data["005_tabulate"]["results"]
    assert overlay({"005_tabulate": {"silu": 1e-3}})["005_tabulate"]["results"] == {"silu": {"value": 1e-3}}


def test_files_are_written_beside_one_another(tmp_path: Path) -> None:
    written = write(blocks.compilation(), tmp_path / "network.json")
    names = ["network.json", "network.flops.json", "network.bytes.json"]
    assert [path.name for path in written] == names
    assert json.loads(written[0].read_text())["label"] == "network"
    assert list(json.loads(written[2].read_text())) == ["000_captured", "005_tabulate"]


def test_its_own_package_reads_it(tmp_path: Path) -> None:
    builder = pytest.importorskip("model_explorer.graph_builder")
    from dacite import Config, from_dict
    from model_explorer import node_data_builder

    graphs, *data = write(blocks.compilation(), tmp_path / "network.json")
    read = from_dict(builder.GraphCollection, json.loads(graphs.read_text()), config=Config(strict=True))
    assert len(read.graphs) == 2
    for path in data:
        for content in json.loads(path.read_text()).values():
            from_dict(node_data_builder.GraphNodeData, content, config=Config(strict=True))


def test_it_opens_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, *data = write(blocks.compilation(), tmp_path / "net,work.json")
    shown: list[Any] = []

    class Configuration:
        def __init__(self) -> None:
            self.paths: list[str] = []

        def add_model_from_path(self, path: str) -> Configuration:
            self.paths.append(path)
            return self

        add_node_data_from_path = add_model_from_path

    package = SimpleNamespace(config=Configuration, visualize_from_config=shown.append, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "model_explorer", package)
    open_explorer(path, data)
    assert shown[0].paths == [str(path), *map(str, data)]


def test_where_it_is_not_installed_it_says_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.json"
    with pytest.raises(UsageError, match="no such file"):
        open_explorer(path)
    path.touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        open_explorer(path)
    assert "graphopt[explorer]" in caught.value.hint and "ai-edge-model-explorer" in caught.value.hint
