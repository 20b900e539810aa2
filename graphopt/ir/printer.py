"""A Program as runnable Python: deterministic, editable, and readable back.

The text is one function whose parameters are the Program's inputs and whose lines call the operators by their full
names (`graphopt.ir.notation` says how). Comments say where lines came from (submodule, user source line, rules) and
what they give; nothing in it depends on time, ids or addresses, so that two dumps can be compared. `parse` reads a dump
back. Above the function stand, where a Program has them, what is assumed of its inputs (``RELATIONS``), example values
of symbolic sizes (``SIZES``), how results are put together (``RESULT``, else a tuple), and a function per subgraph that
operators of higher order call (``GRAPHS``). Values of constants are not in the text: `graphopt.debug.dumps` keeps them
beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import fx
from torch.utils._pytree import tree_structure, treespec_dumps

from graphopt.errors import UsageError
from graphopt.ir.notation import argument, describe, symbols, target_name
from graphopt.ir.program import Program
from graphopt.ir.reader import parse
from graphopt.ir.remarks import origin, remark

__all__ = ["describe", "dump", "line", "parse", "target_name"]


def dump(program: Program) -> str:
    """The Program as Python source: an ``INPUTS`` table, then the function ``program``.

    Raises
    ------
    UsageError : a part of it that Python has no text for: a tensor that is held by the graph itself.
    """
    lines = [
        f'"""graphopt program {program.name}"""',
        "",
        "import math",
        "import operator",
        "",
        "import torch",
        "from torch import device, inf, nan",
        "",
        "ops = torch.ops",
        "",
    ]
    lines.append("INPUTS = {  # name: (role, path, value)")
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        value = describe(node.meta.get("val"), exact=True)
        lines.append(f"    {entry.name!r}: ({entry.role!r}, {entry.path!r}, {value!r}),")
    lines.append("}")
    if program.relations:
        lines.append("RELATIONS = [")
        for known in program.relations:
            lines.append(f"    {(type(known).__name__, *dataclasses.astuple(known))!r},  # {known}")
        lines.append("]")
    if hints := {name: hint for node in program.placeholders for name, hint in symbols(node.meta.get("val"))}:
        lines.append(f"SIZES = {hints!r}  # symbol: its value in the example")
    if result := _result(program):
        lines.append(f"RESULT = {result!r}")
    graphs = list(_graphs(program.graph, program.root, ""))
    for name, graph, inside in graphs:
        lines += ["", "", f"def {name}("]
        lines += [f"    {node.name}," for node in graph.find_nodes(op="placeholder")]
        lines.append("):")
        lines += [f"    {line(node, inside)}" for node in graph.nodes if node.op != "placeholder"]
    if graphs:
        lines += ["", "", "GRAPHS = {"]
        lines += [f"    {name!r}: {name}," for name, _, _ in graphs]
        lines.append("}")
    lines += ["", "", "def program("]
    lines += [f"    {node.name}," for node in program.placeholders]
    lines.append("):")
    shown = ("", "")
    for node in program.graph.nodes:
        if node.op == "call_function":
            here = (node.meta.get("module", ""), node.meta.get("source", ""))
            if here != shown:
                lines.append(f"    {origin(node)}")
            shown = here
            lines.append(f"    {line(node)}  {remark(node)}")
        elif node.op != "placeholder":
            lines.append(f"    {line(node)}")
    return "\n".join(lines) + "\n"


def line(node: fx.Node, inside: str = "") -> str:
    """A node as a line of Python: ``linear = ops.aten.linear.default(x, w)``; a placeholder as its name.

    `inside` is the name of the subgraph that the node is in.
    """
    match node.op:
        case "call_function":
            return f"{node.name} = {_call(node)}"
        case "get_attr":
            return f"{node.name} = GRAPHS[{_graph_name(str(node.target), inside)!r}]"
        case "output":
            return f"return {argument(node.args[0])}"
    return node.name


def _call(node: fx.Node) -> str:
    args = [*map(argument, node.args), *(f"{key}={argument(value)}" for key, value in node.kwargs.items())]
    return f"{target_name(node.target)}({', '.join(args)})"


def _graph_name(name: str, inside: str) -> str:
    name = name.replace(".", "_")
    return name if not inside or name.startswith(f"{inside}_") else f"{inside}_{name}"


def _graphs(graph: fx.Graph, root: torch.nn.Module, inside: str) -> Iterator[tuple[str, fx.Graph, str]]:
    """Name and graph of every subgraph, inner ones first."""
    seen = set[str]()
    for node in graph.find_nodes(op="get_attr"):
        name, path = _graph_name(str(node.target), inside), str(node.target)
        found = root
        for part in path.split("."):
            found = getattr(found, part)
        if not isinstance(found, fx.GraphModule):
            raise UsageError(f"the graph holds a {type(found).__name__}, which a dump cannot", where=path)
        if name not in seen:
            seen.add(name)
            yield from _graphs(found.graph, found, name)
            yield name, found.graph, name


def _result(program: Program) -> str:
    """How results are put together, as JSON; empty for a flat tuple."""
    flat = tree_structure(tuple(range(len(program.results))))
    return "" if program.out_spec in (None, flat) else treespec_dumps(program.out_spec)
