"""A dump read back into a Program, each line checked on the way; see `graphopt.ir.printer`."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec, treespec_loads

from graphopt.errors import GraphoptError, UsageError
from graphopt.ir.layout import has_symbols
from graphopt.ir.notation import close, describe, is_tensor, read, sizes, target, tensor
from graphopt.ir.program import Input, Program, fake_mode, infer
from graphopt.ir.relations import RELATIONS, Relation
from graphopt.ir.stages import STAGES
from graphopt.ir.verify import steps


@dataclass
class _Source:
    """A dump, taken apart."""

    filename: str
    lines: list[str]
    tree: ast.Module
    assigned: dict[str, ast.expr]
    functions: dict[str, ast.FunctionDef]

    def literal(self, name: str, default: Any = None) -> Any:
        if name not in self.assigned and default is not None:
            return default
        try:
            return ast.literal_eval(self.assigned[name])
        except (ValueError, KeyError) as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> UsageError:
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        return UsageError(f"not a readable dump: {what}", where=self.filename,
                          hint="dumps are written by graphopt.ir.printer.dump, and by graphopt trace")  # fmt: skip

    def at(self, statement: ast.AST, error: Exception) -> UsageError:
        number = getattr(statement, "lineno", 1)
        known = isinstance(error, GraphoptError)
        what = error.what if isinstance(error, GraphoptError) else str(error).strip().partition("\n")[0]
        kind = "" if known or isinstance(error, ValueError) else f"{type(error).__name__}: "
        return UsageError(
            f"cannot read a line of the dump: {kind}{what}",
            where=f"{self.filename}:{number}: {self.lines[number - 1].strip()}",
            hint=error.hint if isinstance(error, GraphoptError) else "",
        )


def _source(text: str, filename: str) -> _Source:
    found = _Source(filename, text.splitlines(), ast.Module([], []), {}, {})
    try:
        found.tree = ast.parse(text)
    except SyntaxError as error:
        what = f"{error.msg}: {(error.text or '').strip()}"
        raise UsageError(f"not a readable dump: {what}", where=f"{filename}:{error.lineno}",
                         hint="a line must read: name = operator(arguments)") from error  # fmt: skip
    for node in found.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.FunctionDef):
            found.functions[node.name] = node
    return found


def parse_inputs(source: str, filename: str = "<program>") -> Program:
    """The Program of a dump without its lines: inputs with their roles and values, and no results."""
    program = _inputs(_source(source, filename))
    program.graph.output(())
    return program


def _inputs(source: _Source) -> Program:
    title = (ast.get_docstring(source.tree) or "").removeprefix("graphopt program ")
    table, graph = source.literal("INPUTS"), fx.Graph()
    try:
        inputs = tuple(Input(name, role, path) for name, (role, path, _) in table.items())
        relations = tuple(_relation(*entry) for entry in source.literal("RELATIONS", []))
        env, known = sizes(source.literal("SIZES", {}))
        mode = fake_mode(graph)
        mode.shape_env, mode.static_shapes = env, env is None
        for name, (_, _, text) in table.items():
            node = graph.create_node("placeholder", name, name=name)
            with mode:
                node.meta["val"] = tensor(text, known)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise source.unreadable(error) from error
    return Program(graph, inputs, name=title or source.filename, relations=relations,
                   out_spec=_spec(source.literal("RESULT", "")))  # fmt: skip


def _relation(kind: str, *values: Any) -> Relation:
    if kind not in RELATIONS:
        raise ValueError(f"there is no relation '{kind}' ({', '.join(RELATIONS)})")
    made: Relation = RELATIONS[kind](*values)
    return made


def _spec(text: str) -> TreeSpec | None:
    if not text:
        return None
    for kind in _kinds(json.loads(text)[1]):
        root, _, _ = kind.partition(".")
        if root in ("diffusers", "transformers"):  # whose classes are known to torch once they are imported
            importlib.import_module(kind.rpartition(".")[0])
    return treespec_loads(text)


def _kinds(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec["type"]:
        yield spec["type"]
    for child in spec["children_spec"]:
        yield from _kinds(child)


def parse(source: str, filename: str = "<program>") -> Program:
    """Read a dump back into a Program, shapes inferred anew, so that an edited dump is checked line by line.

    The text is never executed: each line must be ``name = operator(arguments)``. Values of constants are not in it.

    Raises
    ------
    UsageError : what is wrong, with the line at fault: an operator that does not exist, a name that is not defined,
        shapes that an operator does not take, parameters that are not those of ``INPUTS``.
    """
    parts = _source(source, filename)
    if "program" not in parts.functions:
        raise parts.unreadable(KeyError("function 'program'"))
    program, function = _inputs(parts), parts.functions["program"]
    parameters = [entry.arg for entry in function.args.args]
    if parameters != [entry.name for entry in program.inputs]:
        wrong = sorted({*parameters} ^ {entry.name for entry in program.inputs})
        what = f"the parameters of 'program' are not those of INPUTS: {', '.join(wrong) or 'their order differs'}"
        raise parts.at(function, UsageError(what, hint="inputs cannot be edited: they are those of the model"))
    remarks = _read_remarks(source)
    names = {node.name: node for node in program.placeholders}
    _read_lines(parts, function, program.graph, program.root, names, remarks)
    return program


def _read_lines(
    parts: _Source, function: ast.FunctionDef, graph: fx.Graph, root: torch.nn.Module, names: dict[str, fx.Node],
    remarks: Mapping[str, dict[str, Any]] | None,
) -> None:  # fmt: skip
    """The lines of a function as nodes; with `remarks`, those of the Program itself, values are inferred."""
    done = False
    for statement in function.body:
        try:
            match statement:
                case _ if done:
                    raise ValueError("nothing can follow the return")
                case ast.Return():
                    graph.output(read(statement.value, names))
                    done = True
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() as found):
                    names[name] = _subgraph(name, parts, found, graph, root)
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                    kwargs = {str(entry.arg): read(entry.value, names) for entry in call.keywords}
                    args = tuple(read(entry, names) for entry in call.args)
                    names[name] = graph.create_node("call_function", target(call.func), args, kwargs, name)
                    if remarks is not None:
                        _annotate(names[name], remarks.get(name, {}))
                case _:
                    raise ValueError("a line must read: name = operator(arguments)")
        except Exception as error:
            raise parts.at(statement, error) from error
    if not done:
        raise parts.at(function, ValueError(f"'{function.name}' returns nothing"))


def _annotate(node: fx.Node, remark: Mapping[str, Any]) -> None:
    """The value of a node, inferred, and what a dump says about it.

    Operators do not agree on the strides of dimensions of size 1, which say nothing: those of the dump hold.
    """
    node.meta["val"] = value = infer(node)
    text = remark.get("val", "")
    if isinstance(value, torch.Tensor) and not has_symbols(value) and text != describe(value) and is_tensor(text):
        with fake_mode(node.graph):
            noted = tensor(text, {})
        if (noted.shape, noted.dtype, noted.device) == (value.shape, value.dtype, value.device):
            node.meta["val"] = noted if steps(noted) == steps(value) else value
    node.meta.update((key, entry) for key, entry in remark.items() if key != "val")


def _subgraph(here: str, parts: _Source, found: ast.Subscript, graph: fx.Graph, root: torch.nn.Module) -> fx.Node:
    """``here = GRAPHS['name']`` as a node, its graph made a part of `root`."""
    name = ast.literal_eval(found.slice)
    if name not in parts.functions:
        raise UsageError(f"there is no function '{name}'", hint=close(name, parts.functions))
    function, inner, inside = parts.functions[name], fx.Graph(), torch.nn.Module()
    names = {e.arg: inner.create_node("placeholder", e.arg, name=e.arg) for e in function.args.args}
    _read_lines(parts, function, inner, inside, names, None)
    module = fx.GraphModule(inside, inner)
    root.add_module(name, module)
    node = graph.create_node("get_attr", name, name=here)
    node.meta["val"] = module  # what the operator is inferred with
    return node


def _read_remarks(source: str) -> dict[str, dict[str, Any]]:
    """What the comments of a dump say about nodes: value, submodule, source line, placement, rules."""
    found: dict[str, dict[str, Any]] = {}
    origin: dict[str, Any] = {}
    for line in map(str.strip, source.splitlines()):
        name, mark, rest = line.partition(" = ")
        if line.startswith("# "):
            module, _, where = line.removeprefix("# ").partition("  ")
            origin = {"module": "" if module == "(model)" else module, "source": where}
        elif mark and name.isidentifier():
            known = found[name] = dict(origin)
            known["val"], *remarks = rest.rpartition("  # ")[2].split("; ")
            for remark in remarks:
                if remark.startswith("@"):
                    known["placement"] = STAGES[remark[1:]]
                elif remark.startswith("by "):
                    known["rules"] = tuple(remark[3:].split(", "))
    return found
