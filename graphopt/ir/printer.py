"""A Program as runnable Python: deterministic, editable, and readable back.

The text is one function whose parameters are the Program's inputs and whose lines call the operators by their full
names. Comments say where lines came from (submodule, user source line, rules) and what they give; nothing in it depends
on time, ids or addresses, so that two dumps can be compared. `parse` reads a dump back.
"""

from __future__ import annotations

import ast
import math
import operator
from typing import Any

import torch
from torch import fx

from graphopt.errors import UsageError
from graphopt.ir.program import Input, Program, fake_mode, infer
from graphopt.ir.stages import STAGES, STEP, placement, stage_name

_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.complex64: "c64",
}  # fmt: skip
_LONG = {short: dtype for dtype, short in _SHORT.items()}


def describe(value: Any) -> str:
    """``f32[2, 4, 16, 16]`` for a tensor, with strides where it is not contiguous; a list of these for several."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(n) for n in value.shape)
        kind = _SHORT.get(value.dtype, str(value.dtype).removeprefix("torch."))
        strides = "" if value.is_contiguous() else f" strides {tuple(value.stride())}".replace("'", "")
        return f"{kind}[{sizes}]{strides}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(describe(entry) for entry in value) + ")"
    return type(value).__name__


def dump(program: Program) -> str:
    """The Program as Python source: an ``INPUTS`` table, then the function ``program``."""
    lines = [
        f'"""graphopt program {program.name}"""',
        "",
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
        lines.append(f"    {entry.name!r}: ({entry.role!r}, {entry.path!r}, {describe(node.meta.get('val'))!r}),")
    lines += ["}", "", "", "def program("]
    lines += [f"    {node.name}," for node in program.placeholders]
    lines.append("):")
    shown = ("", "")
    for node in program.graph.nodes:
        if node.op == "call_function":
            here = (node.meta.get("module", ""), node.meta.get("source", ""))
            if here != shown:
                lines.append(f"    # {here[0] or '(model)'}  {here[1]}".rstrip())
            shown = here
            lines.append(f"    {line(node)}  # {_remarks(node)}")
        elif node.op != "placeholder":
            lines.append(f"    {line(node)}")
    return "\n".join(lines) + "\n"


def line(node: fx.Node) -> str:
    """A node as a line of Python: ``linear = ops.aten.linear.default(x, w)``; a placeholder as its name."""
    match node.op:
        case "call_function":
            return f"{node.name} = {_call(node)}"
        case "get_attr":
            return f"{node.name} = GRAPHS[{node.target!r}]"
        case "output":
            return f"return {_text(node.args[0])}"
    return node.name


def _remarks(node: fx.Node) -> str:
    parts = [describe(node.meta.get("val"))]
    if placement(node) != STEP:
        parts.append(f"@{stage_name(placement(node))}")
    if node.meta.get("rules"):
        parts.append("by " + ", ".join(node.meta["rules"]))
    return "; ".join(parts)


def _call(node: fx.Node) -> str:
    args = [_text(value) for value in node.args] + [f"{key}={_text(value)}" for key, value in node.kwargs.items()]
    return f"{target_name(node.target)}({', '.join(args)})"


def target_name(target: Any) -> str:
    """How a call target is written in a dump: ``ops.aten.linear.default``, ``operator.getitem``."""
    if isinstance(target, torch._ops.OpOverload):
        return f"ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"ops.higher_order.{target.name()}"
    module = getattr(target, "__module__", "") or ""
    return f"{module.removeprefix('_')}.{getattr(target, '__name__', str(target))}"


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, tuple):
        return "(" + ", ".join(_text(entry) for entry in value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, list):
        return "[" + ", ".join(_text(entry) for entry in value) + "]"
    if isinstance(value, torch.device):
        return f"device({str(value)!r})"
    if isinstance(value, torch.memory_format | torch.dtype | torch.layout):
        return str(value)
    return repr(value)


def parse(source: str, filename: str = "<program>") -> Program:
    """Read a dump back into a Program, shapes inferred anew, so that an edited dump is checked line by line.

    The text is never executed: each line must be ``name = operator(arguments)``. Raises UsageError with the line at
    fault when it is not.
    """
    try:
        tree = ast.parse(source)
        assigned = {_name(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
        table = ast.literal_eval(assigned["INPUTS"])
    except (SyntaxError, ValueError, KeyError, StopIteration) as error:
        raise UsageError(f"not a readable dump: {error}", where=filename,
                         hint="dumps are written by graphopt.ir.printer.dump") from error  # fmt: skip
    graph = fx.Graph()
    title = (ast.get_docstring(tree) or "").removeprefix("graphopt program ")
    inputs = tuple(Input(name, role, path) for name, (role, path, _) in table.items())
    program = Program(graph, inputs, name=title or filename)
    remarks, lines = _read_remarks(source), source.splitlines()
    names: dict[str, fx.Node] = {}
    mode = fake_mode(graph)
    for name, (_, _, text) in table.items():
        names[name] = graph.placeholder(name)
        with mode:
            names[name].meta["val"] = _value(text)
    for statement in function.body:
        try:
            if isinstance(statement, ast.Return):
                graph.output(_read(statement.value, names))
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                name, call = _name(statement.targets[0]), statement.value
                kwargs = {str(entry.arg): _read(entry.value, names) for entry in call.keywords}
                node = graph.call_function(_target(call.func), tuple(_read(arg, names) for arg in call.args), kwargs)
                node._rename(name)
                node.meta["val"] = infer(node)
                node.meta.update(remarks.get(name, {}))
                names[name] = node
            else:
                raise ValueError("a line must read: name = operator(arguments)")
        except Exception as error:
            raise UsageError(
                f"cannot read a line of the dump: {type(error).__name__}: {error}",
                where=f"{filename}:{statement.lineno}: {lines[statement.lineno - 1].strip()}",
            ) from error
    return program


def _name(node: ast.expr) -> str:
    if not isinstance(node, ast.Name):
        raise ValueError("only plain names can be assigned to")
    return node.id


def _target(node: ast.expr) -> Any:
    """The operator a dotted name such as ``ops.aten.linear.default`` stands for."""
    if isinstance(node, ast.Attribute):
        return getattr(_target(node.value), node.attr)
    roots = {"ops": torch.ops, "operator": operator, "torch": torch, "math": math}
    name = _name(node)
    if name not in roots:
        raise ValueError(f"'{name}' is none of {', '.join(sorted(roots))}")
    return roots[name]


def _read(node: ast.expr | None, names: dict[str, fx.Node]) -> Any:
    """An argument: a node's name, a literal, a torch constant, or a list or tuple of these."""
    match node:
        case None:
            return None
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in ("inf", "nan"):
            return float(node.id)
        case ast.Name():
            return names[node.id]
        case ast.List():
            return [_read(entry, names) for entry in node.elts]
        case ast.Tuple():
            return tuple(_read(entry, names) for entry in node.elts)
        case ast.UnaryOp(op=ast.USub()):
            return -_read(node.operand, names)
        case ast.Call(func=ast.Name(id="device")):
            return torch.device(ast.literal_eval(node.args[0]))
        case ast.Attribute():
            return _target(node)
    raise ValueError(f"cannot read the argument {ast.unparse(node)}")


def _read_remarks(source: str) -> dict[str, dict[str, Any]]:
    """What the comments of a dump say about nodes: submodule, source line, placement, rules."""
    found: dict[str, dict[str, Any]] = {}
    origin: dict[str, Any] = {}
    for line in map(str.strip, source.splitlines()):
        name, mark, rest = line.partition(" = ")
        if line.startswith("# "):
            module, _, where = line.removeprefix("# ").partition("  ")
            origin = {"module": "" if module == "(model)" else module, "source": where}
        elif mark and name.isidentifier():
            known = found[name] = dict(origin)
            for remark in rest.rpartition("  # ")[2].split("; "):
                if remark.startswith("@"):
                    known["placement"] = STAGES[remark[1:]]
                elif remark.startswith("by "):
                    known["rules"] = tuple(remark[3:].split(", "))
    return found


def _value(text: str) -> torch.Tensor:
    kind, _, rest = text.partition("[")
    sizes, _, strides = rest.partition("]")
    shape = [int(n) for n in sizes.split(",") if n.strip()]
    tensor = torch.empty(shape, dtype=_LONG[kind])
    if strides.strip():
        steps = [int(n) for n in strides.strip().removeprefix("strides (").rstrip(")").split(",") if n.strip()]
        tensor = torch.empty_strided(shape, steps, dtype=_LONG[kind])
    return tensor
