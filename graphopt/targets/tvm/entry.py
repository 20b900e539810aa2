"""A stage's steps and machine code as bytes, and the key under which they are kept. Imports no TVM.

An entry is a line of JSON, in which nodes are positions in the graph, and the machine code. Its key is a digest of all
that it follows from: the graph with shapes, strides and dtypes, the CPU, graphopt's sources, torch, TVM and LLVM, and
what was chosen for its kernels by measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ... import artifacts
from ...ir.program import val
from . import host
from .image import Image
from .isa import Isa, cores
from .places import Launch, Panels, Place, Scratch, Taps, Turned
from .schedule import Choice
from .steps import Kernels, Steps, Torch


def key(isa: Isa | None, graph: fx.Graph, examples: Sequence[Any]) -> str | None:
    """The key of a stage's code; None where it cannot be told what the code would follow from.

    Parameters
    ----------
    isa : None for that of the CPU at hand.
    examples : values of the graph's placeholders, of the strides that they will be given with.
    """
    known = host.cpu(), host.compiler(), artifacts.sources("ir", "targets")
    if None in known:
        return None
    return hashlib.sha256(
        repr((isa, known, cores(), torch.__version__, _described(graph, examples))).encode()
    ).hexdigest()


def tuned(key: str, choices: Mapping[str, Choice]) -> str:
    """The key of a stage's code with these choices, by kernel: without any it is the stage's own."""
    return hashlib.sha256(repr((key, sorted(choices.items()))).encode()).hexdigest() if choices else key


@dataclass(frozen=True)
class _At:
    """A node by its position, in the description of arguments."""

    position: int


def _described(graph: fx.Graph, examples: Sequence[Any]) -> list[Any]:
    """A graph without the names in it: for each node what it does to which others, and what is known of its value."""
    positions = _positions(graph)
    given = [_value(example) for example in examples]

    def at(node: fx.Node) -> Any:
        return _At(positions[node])

    def described(node: fx.Node) -> Any:
        if node.op in ("placeholder", "get_attr"):
            return node.op, _value(val(node))
        target = node.target if hasattr(node.target, "_schema") else getattr(node.target, "__qualname__", node.target)
        arguments = map_arg((node.args, node.kwargs), at)
        return node.op, str(target), repr(arguments), _value(val(node))

    return [given, [described(node) for node in graph.nodes]]


def _value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        strides = tuple(value.stride()) if value.layout == torch.strided else None
        return str(value.dtype), str(value.device), str(value.layout), tuple(value.shape), strides
    if isinstance(value, list | tuple):
        return [_value(part) for part in value]
    return repr(value)


def _positions(graph: fx.Graph) -> dict[fx.Node, int]:
    return {node: position for position, node in enumerate(graph.nodes)}


# -- writing ---------------------------------------------------------------------------------------------------------


def written(steps: Steps, image: Image, graph: fx.Graph) -> bytes:
    """An entry."""
    at = _positions(graph)

    def place(value: Place) -> Any:
        if isinstance(value, Panels):
            taps = {"taps": [value.rows, value.columns]} if isinstance(value, Turned) else {}
            lanes = {"lanes": value.lanes} if isinstance(value, Taps) else {}
            return {"weight": at[value.weight], "size": value.size, "group": value.group, **taps, **lanes}
        return {"scratch": value.number, "floats": value.floats} if isinstance(value, Scratch) else at[value]

    def nodes(values: Sequence[fx.Node]) -> list[int]:
        return [at[node] for node in values]

    def step(value: Kernels | Torch) -> dict[str, Any]:
        if isinstance(value, Torch):
            return {"torch": at[value.node], "last": nodes(value.last)}
        launches = [
            [launch.kernel, [place(pointer) for pointer in launch.pointers], nodes(launch.computes), start]
            for launch, start in zip(value.launches, value.starts, strict=True)
        ]
        return {"launches": launches, "fresh": nodes(value.fresh), "last": nodes(value.last)}

    header = {
        "steps": [step(value) for value in steps.steps],
        "strides": [[at[node], strides] for node, strides in steps.strides.items()],
        "width": steps.width,
        "size": steps.size,
        "offsets": list(steps.offsets.items()),
        "writable": image.writable,
        "symbols": image.symbols,
        "slots": image.slots,
    }
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + image.content


# -- reading ---------------------------------------------------------------------------------------------------------


def read(entry: bytes, graph: fx.Graph) -> tuple[Steps, Image]:
    """What an entry was written from, for a graph of the same key."""
    line, _, content = entry.partition(b"\n")
    header, nodes = json.loads(line), list(graph.nodes)

    def place(value: Any) -> Place:
        if isinstance(value, int):
            found: fx.Node = nodes[value]
            return found
        if "taps" in value:
            rows, columns = map(tuple, value["taps"])
            return Turned(nodes[value["weight"]], value["size"], rows, columns, group=value["group"])
        if "lanes" in value:
            return Taps(nodes[value["weight"]], value["size"], value["lanes"], group=value["group"])
        if "weight" in value:
            return Panels(nodes[value["weight"]], value["size"], group=value["group"])
        return Scratch(value["scratch"], value["floats"])

    made = Steps(
        [],
        {nodes[position]: tuple(strides) for position, strides in header["strides"]},
        header["width"],
        header["size"],
        dict(header["offsets"]),
    )
    for value in header["steps"]:
        last = [nodes[position] for position in value["last"]]
        if "torch" in value:
            made.steps.append(Torch(nodes[value["torch"]], last))
            continue
        step = Kernels(len(made.kernels), last=last, fresh=[nodes[position] for position in value["fresh"]])
        for kernel, pointers, computes, start in value["launches"]:
            launch = Launch(kernel, tuple(place(pointer) for pointer in pointers), tuple(nodes[at] for at in computes))
            step.launches.append(launch)
            step.starts.append(start)
            for number, pointer in enumerate(launch.pointers, start):
                step.slots.setdefault(pointer, []).append(number)
        made.steps.append(step)
    slots = tuple((offset, target) for offset, target in header["slots"])
    return made, Image(content, header["writable"], header["symbols"], slots)
