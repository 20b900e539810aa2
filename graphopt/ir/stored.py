"""A Program as bytes and back, everything as it was: what a later process reads in a tenth of a second.

Unlike a dump (`graphopt.ir.printer`), which people edit and of which each line is checked, values of nodes are taken
for what was written, nothing is inferred, and constants are part of it. The bytes are a line of JSON and the numbers of
the constants; nothing in them is executed, and operators are looked up as those of a dump are.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import treespec_dumps

from graphopt.errors import UsageError
from graphopt.ir import notation
from graphopt.ir.program import ROLES, Input, Program
from graphopt.ir.reader import relation_of, spec_of
from graphopt.ir.stages import STAGES, stage_name

_PLAIN = (bool, int, float, str, type(None))
_NOTED = ("source", "module", "rules")  # of what is known about a node, as it is


def write(program: Program) -> bytes:
    """The bytes of a Program; equal Programs have equal ones.

    Raises
    ------
    UsageError : it holds what has no such form: symbolic sizes, subgraphs, constants elsewhere than in memory.
    """
    at = {node: place for place, node in enumerate(program.graph.nodes)}
    kinds: dict[Any, int] = {}

    def kind(value: torch.Tensor) -> int:
        known = (
            _short(value.dtype), tuple(value.shape), tuple(value.stride()), value.storage_offset(), str(value.device),
        )  # fmt: skip
        if value.layout != torch.strided or not all(type(size) is int for size in (*known[1], *known[2], known[3])):
            raise UsageError(f"a tensor of {notation.describe(value)} has no form as bytes")
        return kinds.setdefault(known, len(kinds))

    nodes = []
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise UsageError(f"a node of kind '{node.op}' has no form as bytes", where=node.name)
        name = "" if node.op != "call_function" else notation.target_name(node.target)
        if name and _operator(name) is not node.target:
            raise UsageError(f"the operator {name} cannot be found by its name", where=node.name)
        known = {key: node.meta[key] for key in _NOTED if node.meta.get(key)}
        if "placement" in node.meta:
            known["placement"] = stage_name(node.meta["placement"])
        arguments = None if node.op == "placeholder" else _written((node.args, node.kwargs), at)
        nodes.append([node.name, name, arguments, _value_written(node.meta.get("val"), kind), known])
    constants, numbers = _constants_written(program)
    header = {
        "name": program.name,
        "inputs": [dataclasses.astuple(entry) for entry in program.inputs],
        "relations": [(type(known).__name__, *dataclasses.astuple(known)) for known in program.relations],
        "result": "" if program.out_spec is None else treespec_dumps(program.out_spec),
        "constants": constants,
        "nodes": nodes,
        "kinds": list(kinds),
    }
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + numbers


def read(content: bytes) -> Program:
    """The Program that `write` has written.

    Raises
    ------
    UsageError, ValueError, KeyError, TypeError : the bytes are not such a Program's.
    """
    line, _, numbers = content.partition(b"\n")
    header = json.loads(line)
    graph, mode, nodes = fx.Graph(), FakeTensorMode(allow_non_fake_inputs=True), list[fx.Node]()

    @functools.cache  # nodes of one kind share a value: it is neither written to nor compared by identity
    def value(kind: int) -> torch.Tensor:
        dtype, size, stride, offset, device = header["kinds"][kind]
        # As a fake tensor is made, without the operator's way through the mode.
        inside = torch.empty_strided(size, stride, dtype=_dtype(dtype), device="meta")
        if offset:
            reach = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
            inside = torch.empty(max(reach, 0), dtype=_dtype(dtype), device="meta").as_strided(size, stride, offset)
        return FakeTensor(mode, inside, torch.device(device))

    with torch.no_grad():
        for name, operator, arguments, val, known in header["nodes"]:
            if arguments is None:
                node = graph.create_node("placeholder", name, name=name)
            else:
                called = _operator(operator) if operator else "output"
                node = graph.create_node("call_function" if operator else "output", called, name=name)
                node.args, node.kwargs = _read(arguments, nodes)  # create_node would look for symbolic numbers
            if node.name != name:
                raise ValueError(f"the node '{name}' cannot be called so")
            nodes.append(node)
            if val is not None:
                node.meta["val"] = _value_read(val, value)
            if "placement" in known:
                node.meta["placement"] = STAGES[known.pop("placement")]
            if "rules" in known:
                known["rules"] = tuple(known["rules"])
            if operator:
                known = {"source": "", "module": "", **known}
            node.meta.update(known)
    inputs = tuple(Input(*map(str, entry)) for entry in header["inputs"])  # type: ignore[arg-type]
    if any(entry.role not in ROLES for entry in inputs):
        raise ValueError("an input has no role that there is")
    relations = tuple(relation_of(tuple(entry)) for entry in header["relations"])
    constants = _constants_read(header["constants"], numbers)
    spec = spec_of(header["result"])
    return Program(graph, inputs, constants, spec, header["name"], relations=relations)


# -- arguments -------------------------------------------------------------------------------------------------------


def _written(value: Any, at: Mapping[fx.Node, int]) -> Any:
    """An argument as JSON: plain values and lists as they are, all else as an object with one entry."""
    match value:
        case fx.Node():
            return {"node": at[value]}
        case tuple():
            return {"tuple": [_written(entry, at) for entry in value]}
        case list():
            return [_written(entry, at) for entry in value]
        case dict():
            return {"dict": [[key, _written(entry, at)] for key, entry in value.items()]}
        case slice():
            return {"slice": [_written(entry, at) for entry in (value.start, value.stop, value.step)]}
        case complex():
            return {"complex": [value.real, value.imag]}
        case torch.dtype() | torch.layout() | torch.memory_format():
            return {"torch": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": str(value)}
    if type(value) not in _PLAIN:
        raise UsageError(f"an argument is a {type(value).__name__}, which has no form as bytes")
    return value


def _read(value: Any, nodes: Sequence[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(entry, nodes) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "node":
            return nodes[inner]
        case "tuple":
            return tuple(_read(entry, nodes) for entry in inner)
        case "dict":
            return {key: _read(entry, nodes) for key, entry in inner}
        case "slice":
            return slice(*(_read(entry, nodes) for entry in inner))
        case "complex":
            return complex(*inner)
        case "device":
            return torch.device(inner)
    found = getattr(torch, inner)
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        raise ValueError(f"torch.{inner} is no value of an argument")
    return found


@functools.cache
def _operator(name: str) -> Any:
    """The operator of a name as dumps write it."""
    return notation.target(ast.parse(name, mode="eval").body)


# -- values ----------------------------------------------------------------------------------------------------------


def _value_written(value: Any, kind: Callable[[torch.Tensor], int]) -> Any:
    """What is known of a node's value: a number for a tensor of this kind; several values, or one that is a scalar."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return kind(value)
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_value_written(entry, kind) for entry in value]}
    if type(value) not in _PLAIN:
        raise UsageError(f"a value is a {type(value).__name__}, which has no form as bytes")
    return {"scalar": value}


def _value_read(value: Any, tensor: Callable[[int], torch.Tensor]) -> Any:
    if value is None:
        return None
    if isinstance(value, int):
        return tensor(value)
    ((kind, inner),) = value.items()
    if kind == "scalar":
        return inner
    found = [_value_read(entry, tensor) for entry in inner]
    return tuple(found) if kind == "tuple" else found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch.{name} is no dtype")
    return found


# -- constants -------------------------------------------------------------------------------------------------------


def _constants_written(program: Program) -> tuple[list[Any], bytes]:
    """For each constant its name, dtype and shape; and the numbers of all, one after the other."""
    listed, numbers = list[Any](), list[bytes]()
    for name, value in program.constants.items():
        if value.device.type != "cpu" or value.layout != torch.strided or not value.is_contiguous():
            raise UsageError("a constant that is not contiguous in memory has no form as bytes", where=name)
        content = value.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().tobytes()
        listed.append([name, _short(value.dtype), list(value.shape), len(content)])
        numbers.append(content)
    return listed, b"".join(numbers)


def _constants_read(listed: Sequence[Any], numbers: bytes) -> dict[str, torch.Tensor]:
    found, start = {}, 0
    for name, dtype, size, length in listed:
        content = bytearray(numbers[start : start + length])
        flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        found[name] = flat.view(_dtype(dtype)).reshape(size)
        start += length
    return found
