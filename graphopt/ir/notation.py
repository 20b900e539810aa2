"""How values, operators and arguments are written in a dump, and how each is read back.

=====================================  =======================================================================
``f32[2, 4]``                          a tensor; ``strides (1, 2)`` and ``on cuda:0`` follow where they matter
``f32[s77, 2*s77]``                    with symbolic sizes, whose example values stand in ``SIZES``
``ops.aten.linear.default``            an operator of torch or of a library that registers its own
``device('cpu')``, ``torch.float32``   arguments as Python writes them
=====================================  =======================================================================

A size that is known only once values are (``u0``) is written, and cannot be read back.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from graphopt.errors import UsageError, nearest
from graphopt.ir.effects import PURE_PYTHON

_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip
_LONG = {short: dtype for dtype, short in _SHORT.items()}


# -- values ----------------------------------------------------------------------------------------------------------


def describe(value: Any, *, exact: bool = False) -> str:
    """``f32[2, 4, 16, 16]`` for a tensor, with strides where it is not contiguous; a list of these for several.

    `exact` also gives strides that differ from a contiguous tensor's only in dimensions of size 1.
    """
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(n) for n in value.shape)
        kind = _SHORT.get(value.dtype, str(value.dtype).removeprefix("torch."))
        plain = value.is_contiguous() and not (exact and _steps_differ(value))
        strides = "" if plain else f" strides {tuple(value.stride())}".replace("'", "")
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{kind}[{sizes}]{strides}{place}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(describe(entry) for entry in value) + ")"
    return type(value).__name__


def _steps_differ(value: torch.Tensor) -> bool:
    if not all(isinstance(n, int) for n in (*value.shape, *value.stride())):
        return False
    return tuple(value.stride()) != torch.empty(value.shape, device="meta").stride()


def symbols(value: Any) -> Iterator[tuple[str, int]]:
    """The symbols in a tensor's sizes and strides with their example values; 0 where a symbol has none."""
    for size in (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else ():
        if isinstance(size, torch.SymInt):
            known = size.node.shape_env.backed_var_to_val
            for symbol in sorted(size.node.expr.free_symbols, key=str):
                yield str(symbol), int(known.get(symbol, 0))


def sizes(hints: Mapping[Any, Any]) -> tuple[Any, dict[str, Any]]:
    """Symbolic ints by name, and the ``ShapeEnv`` that they belong to; None where there are no symbols.

    Raises ValueError for a symbol that stands for a size known only once values are, and for what is no symbol.
    """
    if not hints:
        return None, {}
    if not all(isinstance(name, str) and type(hint) is int for name, hint in hints.items()):
        raise ValueError("sizes must read: {'symbol': number, …}")
    from torch._dynamo.source import ConstantSource  # importing Dynamo takes seconds, and symbols are rare
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    class Named(ShapeEnv):
        def _generate_unique_id(self, source_name: str) -> int:
            return int(re.sub(r"\D", "", source_name))  # a symbol gets the number that is in its name

    env, found = Named(), dict[str, Any]()
    for name, hint in hints.items():
        if not re.fullmatch(r"s\d+", name) or hint < 2:
            raise ValueError(f"the size '{name}' is known only when the program runs: such dumps cannot be read back")
        source = ConstantSource(name)
        symbol = env.create_symbol(hint, source, DimDynamic.DYNAMIC, constraint_dim=None)
        found[name] = env.create_symintnode(symbol, hint=hint, source=source)
    return env, found


_TENSOR = re.compile(r"(\w+)\[([^]]*)\](?: strides \(([^)]*)\))?(?: on (\S+))?")


def tensor(text: str, known: Mapping[str, Any]) -> torch.Tensor:
    """The tensor that `describe` has written; `known` are the symbolic sizes. Raises UsageError or ValueError."""
    match = _TENSOR.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no tensor such as f32[2, 3]")
    kind, shape, strides, place = match.groups()
    dtype = _dtype(kind)
    if dtype is None:
        raise UsageError(f"'{kind}' is no dtype", hint=nearest(kind, _LONG))
    size = _numbers(shape, known)
    if strides is None:
        return torch.empty(size, dtype=dtype, device=place)
    steps = _numbers(strides, known)
    if len(steps) != len(size):
        raise ValueError(f"'{text}' has {len(size)} dimensions and {len(steps)} strides")
    return torch.empty_strided(size, steps, dtype=dtype, device=place)


def is_tensor(text: str) -> bool:
    """Whether a text describes one tensor."""
    match = _TENSOR.fullmatch(text)
    return match is not None and _dtype(match[1]) is not None


def _dtype(kind: str) -> torch.dtype | None:
    found = _LONG.get(kind, getattr(torch, kind, None))
    plain = kind in _LONG or str(found) == f"torch.{kind}"  # torch.float and others are second names
    return found if isinstance(found, torch.dtype) and plain else None


def _numbers(text: str, known: Mapping[str, Any]) -> list[Any]:
    try:
        entries = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        raise ValueError(f"the sizes '{text}' cannot be read: they are numbers with commas between") from None
    found = [_number(entry, known) for entry in entries.elts]  # type: ignore[attr-defined]
    for size in found:
        if isinstance(size, int) and not 0 <= size < 2**63:
            raise ValueError(f"the size {size} is {'negative' if size < 0 else 'too large'}")
    return found


_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip


def _number(node: ast.expr, known: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int()):
            return node.value
        case ast.UnaryOp(op=ast.USub()):
            return -_number(node.operand, known)
        case ast.Name() if node.id in known:
            return known[node.id]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            left, right = _number(node.left, known), _number(node.right, known)
            divides, raises = isinstance(node.op, ast.FloorDiv | ast.Mod), isinstance(node.op, ast.Pow)
            if not ((divides and right == 0) or (raises and not (isinstance(right, int) and 0 <= right < 64))):
                return _ARITHMETIC[type(node.op)](left, right)
    raise ValueError(f"the size '{ast.unparse(node)}' cannot be read; symbols are listed in SIZES")


# -- operators -------------------------------------------------------------------------------------------------------


def target_name(target: Any) -> str:
    """How a call target is written in a dump: ``ops.aten.linear.default``, ``operator.getitem``."""
    if isinstance(target, torch._ops.OpOverload):
        return f"ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"ops.higher_order.{target.name()}"
    module = getattr(target, "__module__", "") or ""
    return f"{module.removeprefix('_')}.{getattr(target, '__name__', str(target))}"


# What the names of operators and constants begin with.
ROOTS = {"ops": torch.ops, "operator": operator, "torch": torch, "math": math}


def target(node: ast.expr) -> Any:
    """The operator that a dotted name stands for; a line may call nothing else. Raises UsageError or ValueError."""
    found = attribute(node)
    known = isinstance(found, torch._ops.OpOverload | torch._ops.HigherOrderOperator) or any(
        found is entry for entry in PURE_PYTHON
    )
    if isinstance(found, torch._ops.OpOverloadPacket):
        choices = ", ".join(f"{ast.unparse(node)}.{name}" for name in found.overloads())
        raise UsageError(f"{ast.unparse(node)} has several forms", hint=f"one of: {choices}")
    if not known and getattr(found, "__module__", "") != "math":
        raise ValueError(f"{ast.unparse(node)} is no operator of a graph")
    return found


def attribute(node: ast.expr) -> Any:
    """What a dotted name below ``ops``, ``operator``, ``torch`` or ``math`` stands for."""
    if not isinstance(node, ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else ast.unparse(node)
        if name not in ROOTS:
            raise ValueError(f"'{name}' is none of {', '.join(sorted(ROOTS))}")
        return ROOTS[name]
    parent = attribute(node.value)
    try:
        return getattr(parent, node.attr)
    except AttributeError:
        raise UsageError(f"there is no operator {ast.unparse(node)}", hint=close(node.attr, _members(parent))) from None


def _members(parent: Any) -> list[str]:
    """The names below a part of ``torch.ops``, those not looked up so far included; of anything else its attributes."""
    if isinstance(parent, torch._ops.OpOverloadPacket):
        return list(parent.overloads())
    if isinstance(parent, torch._ops._OpNamespace):
        every = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
        return sorted({name.partition(".")[0] for space, _, name in every if space == parent.name})
    return dir(parent)


def close(name: str, known: Collection[str]) -> str:
    """The known name closest to `name`, and all of them where there are few."""
    hint = nearest(name, known)
    return hint if len(known) <= 8 else hint.partition(" (")[0] if hint.startswith("did") else "check the spelling"


# -- arguments -------------------------------------------------------------------------------------------------------


def argument(value: Any) -> str:
    """An argument of a call as Python writes it."""
    match value:
        case fx.Node():
            return value.name
        case tuple():
            return "(" + ", ".join(map(argument, value)) + ("," if len(value) == 1 else "") + ")"
        case list():
            return "[" + ", ".join(map(argument, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{key!r}: {argument(entry)}" for key, entry in value.items()) + "}"
        case slice():
            return f"slice({argument(value.start)}, {argument(value.stop)}, {argument(value.step)})"
        case torch.device():
            return f"device({str(value)!r})"
        case torch.memory_format() | torch.dtype() | torch.layout():
            return str(value)
    return repr(value)


def read(node: ast.expr | None, names: Mapping[str, fx.Node]) -> Any:
    """An argument: a node's name, a literal, a constant of torch, or a list, tuple, dict or slice of these."""
    match node:
        case None:
            return None
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in names:
            return names[node.id]
        case ast.Name() if node.id in ("inf", "nan"):
            return float(node.id)
        case ast.Name():
            raise UsageError(f"'{node.id}' is not defined above this line", hint=close(node.id, names))
        case ast.List():
            return [read(entry, names) for entry in node.elts]
        case ast.Tuple():
            return tuple(read(entry, names) for entry in node.elts)
        case ast.Dict(keys=keys) if all(isinstance(key, ast.Constant) for key in keys):
            return dict(zip(map(ast.literal_eval, keys), (read(entry, names) for entry in node.values), strict=True))  # type: ignore[arg-type]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() | complex() as number)):
            return -number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf" | "nan" as name)):
            return -float(name)
        case ast.BinOp(left=ast.Constant() | ast.UnaryOp(), right=ast.Constant()):
            return ast.literal_eval(node)  # a complex number
        case ast.Call(func=ast.Name(id="device"), args=[ast.Constant(value=str() as name)], keywords=[]):
            return torch.device(name)
        case ast.Call(func=ast.Name(id="slice"), args=[_, *_], keywords=[]):
            return slice(*(read(entry, names) for entry in node.args))
        case ast.Call():
            what = f"the argument {ast.unparse(node)} is a call"
            raise UsageError(what, hint="give it a line and a name of its own above this one")
        case ast.Attribute():
            return attribute(node)
    hint = "an argument is a name or a value; what is computed has a line of its own: y = ops.aten.mul.Tensor(x, 2)"
    raise UsageError(f"cannot read the argument {ast.unparse(node)}", hint=hint)
