"""TensorIR built statement by statement: loops, loads and stores of whole vectors, scratch memory, calls of functions.

A kernel is a function of a task number. Its `Emitter` collects statements; expressions are TVM's own, so that
arithmetic is written as such. Vectors are explicit: what the schedule says is what the CPU executes.

Every buffer is flat: an index is one number, counted in elements, and lanes are consecutive elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import tvm
from tvm import sym, tirx
from tvm.ir import Call, PointerType, PrimType, StringImm

from .image import PARTS
from .isa import Isa

Expr: TypeAlias = Any
Buffer: TypeAlias = Any

_ZERO = tirx.const(0, "int32")
_ANY = 1 << 30  # elements of a buffer whose size is not known here


class Emitter:
    """Statements of one kernel, in the order in which they are emitted.

    Attributes
    ----------
    isa : the CPU that the kernel is for.
    called : names of the functions of `vectormath` and `dot` that the kernel calls, by number of lanes.
    upcoming : what the thread most likely does next: a task whose memory can be brought near.
    scratches : allocations, which belong before the loop over tasks: TVM frees memory at the end of the function.
    """

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.called: set[tuple[str, int]] = set()
        self.analyzer = sym.Analyzer()
        self.scratches: list[Any] = []
        self.upcoming: Expr = _ZERO
        self._blocks: list[list[Any]] = [[]]
        self._numbers = itertools.count()

    # -- statements --------------------------------------------------------------------------------------------------

    def emit(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    def body(self) -> Any:
        """All statements so far, as one."""
        return sequence(self._blocks[0])

    @contextmanager
    def block(self) -> Iterator[list[Any]]:
        """Collect what is emitted inside in a list of its own."""
        self._blocks.append([])
        try:
            yield self._blocks[-1]
        finally:
            self._blocks.pop()

    @contextmanager
    def loop(self, count: Expr | int, name: str = "i") -> Iterator[Expr]:
        """A loop from 0; of one round, its body alone."""
        if isinstance(count, int) and count == 1:
            yield _ZERO
            return
        index = tirx.Var(self._name(name), "int32")
        if isinstance(count, int):
            self.bound(index, count)
        with self.block() as inside:
            yield index
        self.emit(tirx.For(index, _ZERO, _integer(count), tirx.ForKind.SERIAL, sequence(inside)))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """What is emitted inside happens where the condition holds."""
        with self.block() as inside:
            yield
        self.emit(tirx.IfThenElse(condition, sequence(inside), None))

    def bound(self, var: Expr, size: int) -> None:
        """Let the analyzer know that a variable is at least 0 and less than `size`."""
        self.analyzer.bind(var, tvm.ir.Range(0, size))

    def let(self, value: Expr, name: str = "v") -> Expr:
        """A name for a value, computed once, here."""
        value = tirx.convert(value)
        if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
            return value
        var = tirx.Var(self._name(name), value.ty)
        self.emit(tirx.Bind(var, value))
        return var

    # -- memory ------------------------------------------------------------------------------------------------------

    def buffer(self, pointer: Expr, dtype: str, name: str) -> Buffer:
        """Memory that a pointer shows to."""
        var = tirx.Var(self._name(name), pointer_to(dtype))
        self.emit(tirx.Bind(var, pointer))
        found = tirx.decl_buffer((_ANY,), dtype, name=self._name(name), data=var)
        self.emit(tirx.DeclBuffer(found, data=var))
        return found

    def scratch(self, size: int, dtype: str = "float32", name: str = "scratch") -> Buffer:
        """Memory of this task alone, on the stack if less than a KiB; `register` is for what stays in registers."""
        found = tirx.decl_buffer((size,), dtype, name=self._name(name))
        self.scratches.append(tirx.AllocBuffer(found))
        return found

    def register(self, value: Expr, name: str = "register") -> Buffer:
        """A variable that holds a number or vector, at first `value`: see `get` and `put`.

        Its one element is the whole vector: of several elements, LLVM would get each lane apart.
        """
        dtype = str(value.ty.dtype)
        found = tirx.decl_buffer((1,), dtype, name=self._name(name))
        self.emit(tirx.AllocBuffer(found))
        self.put(found, value)
        return found

    def get(self, register: Buffer) -> Expr:
        """What a register holds."""
        return tirx.BufferLoad(register, [_ZERO])

    def put(self, register: Buffer, value: Expr) -> None:
        """What a register is to hold from here on."""
        self.emit(tirx.BufferStore(register, value, [_ZERO]))

    def load(self, buffer: Buffer, index: Expr | int, lanes: int = 1, step: int = 1) -> Expr:
        """Elements at `index`, `index + step` and so on; with a step of 0, one of them in all lanes."""
        if lanes > 1 and step == 0:
            return self.spread(tirx.BufferLoad(buffer, [_integer(index)]), lanes)
        return tirx.BufferLoad(buffer, [_lanes(index, lanes, step)])

    def store(self, buffer: Buffer, index: Expr | int, value: Expr, step: int = 1) -> None:
        """A number or vector to `index`, `index + step` and so on."""
        value = tirx.convert(value)
        self.emit(tirx.BufferStore(buffer, value, [_lanes(index, lanes_of(value), step)]))

    def prefetch(self, buffer: Buffer, start: Expr, place: Expr) -> None:
        """Have the second cache read the line of the element `start + place`, of 32 bits; loops change only `place`."""
        self.emit(tirx.Evaluate(tirx.call_extern("int32", "graphopt_prefetch", buffer.data, start, place)))

    # -- values ------------------------------------------------------------------------------------------------------

    def spread(self, value: Expr | float, lanes: int) -> Expr:
        """A number in all lanes."""
        value = self.number(value) if isinstance(value, int | float) else value
        return value if lanes == 1 or lanes_of(value) == lanes else tirx.Broadcast(value, lanes)

    def number(self, value: float, like: Expr | None = None) -> Expr:
        """A constant: float32, or of the dtype of another value."""
        return tirx.FloatImm("float32", value) if like is None else tirx.const(value, dtype_of(like))

    def cast(self, value: Expr, dtype: str) -> Expr:
        """Numbers of another dtype. ``bool`` is float32 too: 1 where a number is not 0, and 0 where it is.

        (A vector of truth values has no name in TVM 0.27: its analyzer fails on those of integers.) ``uint16`` are
        the bits of bfloat16.
        """
        own, lanes = dtype_of(value), lanes_of(value)
        if own == "uint16" != dtype:
            return self.cast(self.extern("bf16_wide", "float32", value), dtype)
        if dtype == "uint16" != own:
            return self.extern("bf16_bits", "uint16", self.cast(value, "float32"))
        if dtype == "bool":
            return self.truth(tirx.EQ(value, self.spread(tirx.const(0, own), lanes)), 0, 1)
        return value if own == dtype else tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)

    def truth(self, condition: Expr, yes: int = 1, no: int = 0) -> Expr:
        """1 where a condition holds, and 0 elsewhere; or the other way round."""
        lanes = lanes_of(condition)
        return tirx.Select(condition, self.spread(float(yes), lanes), self.spread(float(no), lanes))

    def call(self, function: str, *values: Expr) -> Expr:
        """A function of `vectormath` over float32 numbers or vectors of equal lanes."""
        lanes = max(map(lanes_of, values))
        self.called.add((function, lanes))
        spread = [self.spread(value, lanes) for value in values]
        return tirx.call_pure_extern(_float(lanes), f"graphopt_{function}_{lanes}", *spread)

    def extern(self, function: str, dtype: str, *values: Expr) -> Expr:
        """A function of `dot` over numbers or vectors of equal lanes, and the dtype that it gives."""
        lanes = max(map(lanes_of, values))
        self.called.add((function, lanes))
        result = dtype if lanes == 1 else f"{dtype}x{lanes}"
        return tirx.call_pure_extern(
            result, f"graphopt_{function}_{lanes}", *(self.spread(value, lanes) for value in values)
        )

    def reduced(self, how: str, vector: Expr) -> Expr:
        """The sum of a vector's lanes, or the largest: ``sum`` or ``max``."""
        lanes = lanes_of(vector)
        if lanes == 1:
            return vector
        self.called.add((f"lane_{how}", lanes))
        return tirx.call_pure_extern("float32", f"graphopt_lane_{how}_{lanes}", vector)

    def _name(self, name: str) -> str:
        return f"{name}_{next(self._numbers)}"


@dataclass(frozen=True)
class Kernel:
    """A function that threads run together, until no task is left.

    Attributes
    ----------
    name : its symbol; kernels of one module have different ones.
    arguments : how many pointers it takes, in the order in which its body got buffers for them.
    called : names of the functions of `vectormath` and `dot` that it calls, by number of lanes.
    """

    name: str
    arguments: int
    function: Any
    called: frozenset[tuple[str, int]]


def kernel(
    name: str,
    isa: Isa,
    arguments: Sequence[str],
    tasks: int,
    body: Callable[[Emitter, Sequence[Buffer], Expr], None],
) -> Kernel:
    """A kernel over buffers of these dtypes, of so many tasks, each of which `body` emits.

    Each thread has a part of the tasks, and does them in order; who is done steals from another's. Where kernels number
    their tasks alike, say image after image, a thread then reads what it wrote itself.

    Parameters
    ----------
    body : called once, with the emitter, a buffer per argument, and the number of the task.
    """
    assert tasks * PARTS < 1 << 31, f"{name}: {tasks} tasks are counted in 32 bits"
    emitter = Emitter(isa)
    team = tirx.Var("team", "handle")
    table = tirx.Var("table", "handle")
    emitter.emit(tirx.Bind(table, pointer_at(team, 0)))
    buffers = [
        emitter.buffer(pointer_at(table, place, dtype), dtype, f"a{place}") for place, dtype in enumerate(arguments)
    ]
    task, turn = (tirx.decl_buffer((size,), "int32", name=name) for name, size in (("task", 1), ("turn", 2)))
    for buffer in (task, turn):
        emitter.emit(tirx.AllocBuffer(buffer))
    # Whose part the thread takes from, and how many it has seen to the end.
    emitter.emit(tirx.BufferStore(turn, tirx.call_extern("int32", "graphopt_own_part", team), [_ZERO]))
    emitter.emit(tirx.BufferStore(turn, _ZERO, [tirx.const(1, "int32")]))
    count = tirx.const(tasks, "int32")
    take = tirx.BufferStore(task, tirx.call_extern("int32", "graphopt_next_task", team, count, turn.data), [_ZERO])
    emitter.emit(take)
    with emitter.block() as inside:
        current = emitter.let(tirx.BufferLoad(task, [_ZERO]), "task")
        emitter.bound(current, tasks)
        emitter.upcoming = emitter.let(tirx.min(current + 1, tasks - 1), "upcoming")
        emitter.bound(emitter.upcoming, tasks)
        body(emitter, buffers, current)
        emitter.emit(take)
    for scratch in emitter.scratches:
        emitter.emit(scratch)
    emitter.emit(tirx.While(tirx.BufferLoad(task, [_ZERO]) < tasks, sequence(inside)))
    return Kernel(name, len(arguments), c_function(name, [team], emitter.body()), frozenset(emitter.called))


def c_function(name: str, arguments: Sequence[Any], body: Any) -> Any:
    """A function as C has them, without TVM's conventions: it gives an int."""
    on_cpu = tirx.AttrStmt(_ZERO, "device_type", tirx.const(1, "int32"), body)
    found = tirx.PrimFunc(list(arguments), tirx.AttrStmt(_ZERO, "device_id", _ZERO, on_cpu), ret_type=PrimType("int32"))
    return found.with_attr({"global_symbol": name, "tirx.is_host_func": True, "calling_conv": 2})


def sequence(statements: Sequence[Any]) -> Any:
    """Statements as one."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def at_most(count: int, size: int, start: Expr) -> Any:
    """How many of `size` are left from `start`, but at most `count`: known here where `size` is a multiple."""
    return count if size % count == 0 else tirx.min(count, size - start)


def lanes_of(value: Expr) -> int:
    """Lanes of an expression; 1 of a number."""
    return int(value.ty.dtype.lanes)


def dtype_of(value: Expr) -> str:
    """The dtype of an expression's lanes."""
    return str(value.ty.dtype).partition("x")[0]


def pointer_to(dtype: str) -> Any:
    """The type of a pointer to numbers."""
    return PointerType(PrimType(dtype), "global")


def pointer_at(table: Expr, place: int, dtype: str | None = None) -> Expr:
    """The pointer at a place of a table of pointers."""
    kind = pointer_to(dtype) if dtype else table.ty
    return Call(
        "tirx.call_pure_extern", [StringImm("graphopt_pointer_at"), table, tirx.const(place, "int32")], ret_ty=kind
    )


def _float(lanes: int) -> str:
    return "float32" if lanes == 1 else f"float32x{lanes}"


def _integer(value: Expr | int) -> Expr:
    return tirx.const(value, "int32") if isinstance(value, int) else value


def _lanes(index: Expr | int, lanes: int, step: int) -> Expr:
    index = _integer(index)
    return index if lanes == 1 else tirx.Ramp(index, tirx.const(step, "int32"), lanes)
