"""A dump read back into a Program, each line checked on the way; see `graphopt.ir.printer`."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec, treespec_loads

from graphopt.errors import GraphoptError, UsageError, nearest
from graphopt.ir.layout import has_symbols
from graphopt.ir.notation import ROOTS, close, describe, is_tensor, read, sizes, target, tensor
from graphopt.ir.program import ROLES, Input, Program, fake_mode, infer
from graphopt.ir.relations import RELATIONS, Relation
from graphopt.ir.remarks import Comments
from graphopt.ir.source import Source
from graphopt.ir.verify import steps


def parse_inputs(source: str, filename: str = "<program>") -> Program:
    """The Program of a dump without its lines: inputs with their roles and values, and no results."""
    program = _inputs(Source.of(source, filename))
    program.graph.output(())
    return program


def _inputs(source: Source) -> Program:
    title = (ast.get_docstring(source.tree) or "").partition("\n")[0].removeprefix("graphopt program ")
    graph, inputs = fx.Graph(), list[Input]()
    with source.reading(source.assigned.get("SIZES", source.tree)):
        env, known = sizes(source.literal("SIZES", {}))
    mode = fake_mode(graph)
    mode.shape_env, mode.static_shapes = env, env is None
    for place, name, entry in source.table("INPUTS"):
        with source.reading(place):
            inputs.append(_input(name, entry))
            node = graph.create_node("placeholder", name, name=name)
            if node.name != name:
                what = "stands twice" if any(name == other.name for other in inputs[:-1]) else "cannot be called so"
                raise ValueError(f"the input '{name}' {what}")
            with mode:
                node.meta["val"] = tensor(entry[2], known)
    with source.reading(source.assigned.get("RELATIONS", source.tree)):
        relations = tuple(map(relation_of, source.literal("RELATIONS", [])))
    with source.reading(source.assigned.get("RESULT", source.tree)):
        spec = spec_of(source.literal("RESULT", ""))
    return Program(graph, tuple(inputs), name=title or source.filename, relations=relations, out_spec=spec)


def _input(name: Any, entry: Any) -> Input:
    fits = isinstance(entry, tuple) and len(entry) == 3 and all(isinstance(part, str) for part in (name, *entry))
    if not fits:
        raise ValueError("an input must read: 'name': ('role', 'path', 'value')")
    if entry[0] not in ROLES:
        raise UsageError(f"there is no role '{entry[0]}'", hint=nearest(entry[0], ROLES))
    return Input(name, entry[0], entry[1])


def relation_of(entry: Any) -> Relation:
    """The relation of a line of ``RELATIONS``: its kind and its values. Raises ValueError for anything else."""
    kind, *values = entry if isinstance(entry, tuple) and entry else (entry,)
    if kind not in tuple(RELATIONS):
        raise ValueError(f"there is no relation {kind!r} ({', '.join(RELATIONS)})")
    names = [found.name for found in dataclasses.fields(RELATIONS[kind])]
    kinds = [str if name == "path" else int for name in names]
    if list(map(type, values)) != kinds or any(value < (name in ("times", "calls")) for name, value in
                                              zip(names, values, strict=True) if name != "path"):  # fmt: skip
        raise ValueError(f"a relation must read: ({', '.join((repr(kind), *names))}), its numbers counting from 0")
    made: Relation = RELATIONS[kind](*values)
    return made


def spec_of(text: str) -> TreeSpec | None:
    """How results are put together; what is no such text is refused, whatever torch makes of it."""
    if not text:
        return None
    try:
        for kind in _kinds(json.loads(text)[1]):
            root, _, _ = kind.partition(".")
            if root in ("diffusers", "transformers"):  # whose classes are known to torch once they are imported
                importlib.import_module(kind.rpartition(".")[0])
        return treespec_loads(text)
    except Exception as error:
        raise UsageError(f"RESULT does not say how results are put together ({type(error).__name__}: {error})",
                         hint="leave it as it was written: results are the model's own") from error  # fmt: skip


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
    parts = Source.of(source, filename)
    function, program = parts.function("program"), _inputs(parts)
    with parts.reading(function):
        parameters = _parameters(function)
        if parameters != [entry.name for entry in program.inputs]:
            wrong = sorted({*parameters} ^ {entry.name for entry in program.inputs})
            what = f"the parameters of 'program' are not those of INPUTS: {', '.join(wrong) or 'their order differs'}"
            raise UsageError(what, hint="inputs cannot be edited: they are those of the model")
    names = {node.name: node for node in program.placeholders}
    _read_lines(parts, function, program.graph, program.root, names, ())
    with parts.reading(function.body[-1]):
        _check_results(program)
    return program


def _parameters(function: ast.FunctionDef) -> list[str]:
    found = [entry.arg for entry in function.args.args]
    if ast.unparse(function.args) != ", ".join(found):
        raise ValueError(f"the parameters of '{function.name}' must be names and nothing else")
    return found


def _check_results(program: Program) -> None:
    (values,) = program.output.args
    plain = fx.Node | int | float | str | None
    if not isinstance(values, tuple | list) or not all(isinstance(entry, plain) for entry in values):
        raise ValueError("results must be a tuple of names: return (name,)")
    if program.out_spec is not None and program.out_spec.num_leaves != len(values):
        what = f"{len(values)} results are returned, and the model puts together {program.out_spec.num_leaves}"
        raise UsageError(what, hint="results are the model's own: an edit may change only how they are computed")


def _read_lines(
    parts: Source, function: ast.FunctionDef, graph: fx.Graph, root: torch.nn.Module, names: dict[str, fx.Node],
    inside: tuple[str, ...],
) -> None:  # fmt: skip
    """The lines of a function as nodes; values are inferred in those of the Program itself.

    `inside` are the functions that call this one, which it cannot call.
    """
    done = False
    for statement in function.body:
        with parts.reading(statement):
            match statement:
                case _ if done:
                    raise ValueError("nothing can follow the return")
                case ast.Return():
                    graph.output(read(statement.value, names))
                    done = True
                case ast.Assign(targets=[ast.Name(id=name)]) if name in ROOTS:
                    raise ValueError(f"operators are called by '{name}', which can be nothing else")
                case ast.Assign(
                    targets=[ast.Name(id=name)],
                    value=ast.Subscript(value=ast.Name(id="GRAPHS"), slice=ast.Constant(value=str() as called)),
                ):
                    names[name] = _subgraph(name, called, parts, graph, root, (*inside, function.name))
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                    if any(entry.arg is None for entry in call.keywords):
                        raise ValueError("arguments must be written out, without **")
                    kwargs = {str(entry.arg): read(entry.value, names) for entry in call.keywords}
                    args = tuple(read(entry, names) for entry in call.args)
                    names[name] = graph.create_node("call_function", target(call.func), args, kwargs, name)
                    if not inside:
                        _annotate(names[name], parts.comments, function, statement)
                case _:
                    raise UsageError("a line must read: name = operator(arguments)", hint=_in_place_of(statement))
    if not done:
        what = f"'{function.name}' returns nothing"
        raise parts.at(function, UsageError(what, hint="end it with its results: return (name,)"))


def _in_place_of(statement: ast.stmt) -> str:
    """What to do about a line that is no call of an operator."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
            return "take it out: print is for running the file itself, with python"
        case _:
            return "take the line out, or write what it computes with operators: y = ops.aten.mul.Tensor(x, 2)"


def _annotate(node: fx.Node, comments: Comments, function: ast.FunctionDef, statement: ast.stmt) -> None:
    """The value of a node, inferred, and what a dump says about it.

    Operators do not agree on the strides of dimensions of size 1, which say nothing: those of the dump hold.
    """
    node.meta["val"] = value = _inferred(node)
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    remark = comments.remark(first, last, value)
    text = remark.pop("val", "")
    if isinstance(value, torch.Tensor) and not has_symbols(value) and text != describe(value) and is_tensor(text):
        with fake_mode(node.graph), contextlib.suppress(ValueError):  # of symbols: the line was edited since
            noted = tensor(text, {})
            if (noted.shape, noted.dtype, noted.device) == (value.shape, value.dtype, value.device):
                node.meta["val"] = noted if steps(noted) == steps(value) else value
    node.meta |= comments.origin(function.lineno, first) | remark


def _inferred(node: fx.Node) -> Any:
    """The value of a node. Raises UsageError with what torch says of its arguments, and with their shapes."""
    try:
        with _unlogged("torch._subclasses.fake_tensor"):
            return infer(node)
    except GraphoptError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        given = ", ".join(f"{entry.name} is {describe(entry.meta['val'])}" for entry in node.all_input_nodes)
        hint = "change the arguments so that the operator takes them" + f": {given}" * bool(given)
        raise UsageError(said, hint=hint) from error


@contextlib.contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Inside, a logger says nothing of this thread: torch logs the traceback of what it then raises."""
    here, logger = threading.get_ident(), logging.getLogger(name)

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger.addFilter(elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(elsewhere)


def _subgraph(
    here: str, name: str, parts: Source, graph: fx.Graph, root: torch.nn.Module, inside: tuple[str, ...]
) -> fx.Node:
    """``here = GRAPHS['name']`` as a node, its graph made a part of `root`."""
    if name not in parts.functions:
        raise UsageError(f"there is no function '{name}'", hint=close(name, parts.functions))
    if name in inside:
        raise ValueError(f"the function '{name}' would call itself")
    function, inner, module = parts.functions[name], fx.Graph(), torch.nn.Module()
    with parts.reading(function):
        names = {arg: inner.create_node("placeholder", arg, name=arg) for arg in _parameters(function)}
    _read_lines(parts, function, inner, module, names, inside)
    made = fx.GraphModule(module, inner)
    root.add_module(name, made)
    node = graph.create_node("get_attr", name, name=here)
    node.meta["val"] = made  # what the operator is inferred with
    return node
