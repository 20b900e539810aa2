"""The way of a Program through its passes as one plain document: what the page and the pictures are drawn from.

No graph is repeated: a node has *versions*, each of which lives from one pass to another. Nodes are followed through
renamings by `graphopt.debug.diff`. Everything in it is the same from run to run. docs/report.md describes the fields.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphopt.debug.diff import KINDS, Difference, difference
from graphopt.debug.history import Compilation, Held, Place, Snapshot
from graphopt.energy import WorkEstimate
from graphopt.ir.cost import node_cost, stage_costs
from graphopt.ir.price import hints_of, number
from graphopt.ir.printer import describe, line, target_name
from graphopt.ir.program import Input, Program, val
from graphopt.ir.stages import STAGES, placement, stage_name

SCHEMA = 1
_SUMMED = ("flops", "bytes", "joules")


@dataclass(frozen=True)
class View:
    """What is shown of a compilation beside itself.

    Attributes
    ----------
    pipeline : what was compiled, in words.
    steps, calls : steps of an image, and how often the module is called for it.
    stage : the only stage to show, or the one to begin with; None for all.
    after : the number of the pass to show, or to begin with; None for the last.
    depth, compare : of pictures, see `graphopt.debug.viz.dot`.
    errors : of values of the last Program, by the names of their nodes (`graphopt.debug.measured.errors`); None where
        they were not measured.
    """

    pipeline: str = ""
    steps: int = 1
    calls: int = 1
    stage: str | None = None
    after: int | None = None
    depth: int = 2
    compare: bool = False
    errors: Mapping[str, float] | None = None

    @property
    def runs(self) -> dict[str, dict[str, int]]:
        """How often each stage runs for the first image of all, and for one that comes later with the same schedule."""
        branches = -(-self.calls // self.steps)
        each = {"request": branches, "request_schedule": self.calls, "common": min(self.calls, self.steps)}
        later = {"weights": 0, "schedule": 0, **each, "step": self.calls}
        first = {**later, "weights": 1, "schedule": min(self.calls, self.steps)}
        return {"first": {name: first[name] for name in STAGES}, "later": {name: later[name] for name in STAGES}}


def document(compilation: Compilation, view: View | None = None) -> dict[str, Any]:
    """The document of one compilation: JSON types only."""
    view = view or View()
    device = _device(compilation.captured)
    prices = WorkEstimate() if device == "cpu" else None
    tracks, passes = _Tracks(prices), []
    before: Snapshot | None = None
    for snapshot in compilation.snapshots:
        found = difference(before.program, snapshot.program) if before else None
        tracks.follow(snapshot, found)
        passes.append(_pass(snapshot, found, tracks, view))
        before = snapshot
    for name, error in (view.errors or {}).items():
        tracks.nodes[tracks.alive[name]]["error"] = float(f"{error:.3g}") if math.isfinite(error) else "infinite"
    return {
        "schema": SCHEMA,
        "module": compilation.name,
        "pipeline": view.pipeline,
        "device": device,
        "steps": view.steps,
        "calls": view.calls,
        "runs": view.runs,
        "energy": prices.source if prices else "",
        "measured": view.errors is not None,
        "show": {"stage": view.stage, "after": view.after},
        "targets": dict(compilation.targets),
        "failed": dict(compilation.failed),
        "passes": passes,
        "nodes": tracks.nodes,
    }


def document_json(compilation: Compilation, view: View) -> bytes:
    """The document as UTF-8 JSON, one node or pass a line."""
    found = document(compilation, view)
    lines = [f"{_json(key)}: {_json(value)}" for key, value in found.items() if key not in ("passes", "nodes")]
    for key in ("passes", "nodes"):
        lines.append(f"{_json(key)}: [\n  " + ",\n  ".join(map(_json, found[key])) + "\n ]")
    return ("{\n " + ",\n ".join(lines) + "\n}\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class _Tracks:
    """Nodes and their versions, from snapshot to snapshot; a node is known by its place in `nodes`."""

    def __init__(self, prices: WorkEstimate | None) -> None:
        self.prices, self.nodes = prices, list[dict[str, Any]]()
        self.alive: dict[str, int] = {}  # name in the newest Program → node
        self.gone: dict[str, int] = {}  # the same of the Program before it
        self.hints: Mapping[Any, int] = {}
        self.stages: dict[str, dict[str, Any]] = {}  # of the newest Program

    def follow(self, snapshot: Snapshot, found: Difference | None) -> None:
        program, before = snapshot.program, self.alive
        self.hints = hints_of(program)
        named = {new: old for old, new in found.renamed.items()} if found else {}
        added = {change.node for change in found.of("added")} if found else set(before)
        entries = {entry.name: entry for entry in program.inputs}
        alive = dict[str, int]()
        for node in program.graph.nodes:
            known = before.get(named.get(node.name, "" if node.name in added else node.name))
            if known is None:
                known = len(self.nodes)
                self.nodes.append({**_kind(node, entries), "versions": []})
            alive[node.name] = known
        self.alive, self.gone = alive, before
        self.stages = {}
        for node in program.graph.nodes:
            self._version(node, snapshot.number)
        self._weigh(program)

    def _version(self, node: fx.Node, number_: int) -> None:
        """Prolong the last version of a node, or begin another."""
        now, versions = self._facts(node), self.nodes[self.alive[node.name]]["versions"]
        last = versions[-1] if versions else {}
        if last.get("to") == number_ - 1 and now == {key: last[key] for key in last if key not in ("from", "to")}:
            last["to"] = number_
        else:
            versions.append({"from": number_, "to": number_, **now})

    def _facts(self, node: fx.Node) -> dict[str, Any]:
        cost, calls = node_cost(node), node.op == "call_function"
        flops, moved = number(cost.flops, self.hints), number(cost.bytes, self.hints)
        facts = {
            "name": node.name,
            "op": target_name(node.target) if calls else "",
            "inputs": [self.alive[source.name] for source in node.all_input_nodes],
            "text": line(node),
            "value": "" if node.op == "output" else describe(node.meta.get("val")),
            "stage": stage_name(placement(node)) if calls else "",
            "flops": flops,
            "bytes": moved,
            "joules": float(f"{self.prices.joules(flops, moved):.4g}") if self.prices else None,
            "module": node.meta.get("module", ""),
            "source": node.meta.get("source", ""),
            "rules": list(node.meta.get("rules", ())),
        }
        return {key: value for key, value in facts.items() if value not in ("", 0, None) and value != []}

    def _weigh(self, program: Program) -> None:
        """The work of each stage for one evaluation, and the bytes of the weights that it reads."""
        joules = Counter[str]()
        for node in program.calls():
            facts = self.nodes[self.alive[node.name]]["versions"][-1]
            joules[facts["stage"]] += facts.get("joules", 0.0)
        self.stages = {
            name: {
                "nodes": cost.nodes,
                "flops": number(cost.cost.flops, self.hints),
                "bytes": number(cost.cost.bytes, self.hints),
                "joules": joules[name] if self.prices else None,
                "weight_bytes": number(cost.weight_bytes, self.hints),
            }
            for name, cost in stage_costs(program).items()
            if cost.nodes
        }

    def at(self, place: Place) -> int | str:
        """The node of a place; in words, where it was there only between two rewrites."""
        known = self.gone.get(place.node, self.alive.get(place.node))
        return str(place) if known is None else known


def _kind(node: fx.Node, entries: Mapping[str, Input]) -> dict[str, Any]:
    if node.op == "placeholder":
        entry = entries[node.name]
        return {"kind": "input", "role": entry.role, "path": entry.path}
    return {"kind": {"call_function": "call", "get_attr": "subgraph"}.get(node.op, node.op)}


def _pass(snapshot: Snapshot, found: Difference | None, tracks: _Tracks, view: View) -> dict[str, Any]:
    changes: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for change in found.changes if found else ():
        names = tracks.alive if change.kind == "added" else tracks.gone
        changes[change.kind].append(names[change.node])
    fired = [] if snapshot.error else snapshot.fired
    return {
        "number": snapshot.number,
        "name": snapshot.name,
        "slug": snapshot.slug,
        "accuracy": snapshot.accuracy,
        "error": snapshot.error,
        "fired": [tracks.at(entry.place) for entry in fired],
        "refusals": _refusals(snapshot.held, tracks),
        "changes": changes,
        "stages": tracks.stages,
        "image": {which: _image(tracks.stages, runs) for which, runs in view.runs.items()},
    }


def _refusals(held: Iterable[Held], tracks: _Tracks) -> list[dict[str, Any]]:
    """Reasons, the most frequent first, each with its places."""
    reasons = dict[str, list[int | str]]()
    for entry in held:
        reasons.setdefault(entry.reason, []).append(tracks.at(entry.place))
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"reason": reason, "places": places} for reason, places in ordered]


def _image(stages: Mapping[str, Mapping[str, Any]], runs: Mapping[str, int]) -> dict[str, Any]:
    """Work per image."""
    known = {key: [stage[key] for stage in stages.values()] for key in _SUMMED}
    return {
        key: None if None in values else sum(n * runs[name] for name, n in zip(stages, values, strict=True))
        for key, values in known.items()
    }


def _device(program: Program) -> str:
    values = (val(node) for node in program.placeholders)
    return next((value.device.type for value in values if isinstance(value, torch.Tensor)), "cpu")
