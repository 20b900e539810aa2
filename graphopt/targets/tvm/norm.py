"""Layer norm, RMS norm and softmax over the last dimension, with what comes before and after them, a row at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tvm import tirx

from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .tile import elements_of

# Row, column, lanes → the elements there.
Read: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Lanes | None], Expr]
# Row, column, values, lanes → written.
Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Expr, Lanes | None], None]
Write: TypeAlias = Callable[[Expr, Expr, Lanes | None], None]  # the same of one row: column, values, lanes


_RUNNING = 4  # vectors that a sum runs in, or a core would wait for each addition


class Row:
    """One row, walked over in vectors and a rest: in memory of the task's own once it has been read.

    Parameters
    ----------
    read : its elements, at a place in lanes.
    """

    def __init__(self, emitter: Emitter, memory: Buffer, size: int, read: Callable[[Expr, Lanes | None], Expr]) -> None:
        self.emitter, self.memory, self.size, self.lanes, self._read = emitter, memory, size, emitter.isa.lanes, read

    def read(self, place: Expr, lanes: Lanes | None) -> Expr:
        """Elements, which `get` finds from then on."""
        value = self.emitter.let(self._read(place, lanes))
        self.emitter.store(self.memory, place, value)
        return value

    def get(self, place: Expr, lanes: Lanes | None) -> Expr:
        return self.emitter.load(self.memory, place, lanes.count if lanes else 1)

    def each(self, visit: Callable[[Expr, Lanes | None, int], None], together: int = 1) -> None:
        """Visit all places, some vectors in turns, and one by one where no vector is left; with the turn's number."""
        whole, rest = divmod(self.size, self.lanes)
        rounds, left = divmod(whole, together)
        lanes = vector_of(self.emitter, self.lanes)
        if rounds:
            with self.emitter.loop(rounds, "round") as turn:
                for number in range(together):
                    visit((turn * together + number) * self.lanes, lanes, number)
        for number in range(left):
            visit(tirx.const((rounds * together + number) * self.lanes, "int32"), lanes, number)
        if rest:
            with self.emitter.loop(rest, "rest") as place:
                visit(place + whole * self.lanes, None, 0)

    def reduce(self, how: str, start: float, value: Callable[[Expr, Lanes | None], Expr]) -> Expr:
        """The sum or the largest of values over the row, in as many running ones as some vectors have lanes."""
        emitter = self.emitter
        vectors = [emitter.register(emitter.spread(start, self.lanes)) for _ in range(_RUNNING)]
        number = emitter.register(emitter.number(start))

        def both(one: Expr, other: Expr) -> Expr:
            return emitter.let(one + other if how == "sum" else emitter.call("maximum", one, other))

        def visit(place: Expr, at: Lanes | None, turn: int) -> None:
            running = vectors[turn] if at else number
            emitter.put(running, both(emitter.get(running), value(place, at)))

        self.each(visit, _RUNNING)
        vector = functools.reduce(both, map(emitter.get, vectors))
        return both(emitter.reduced(how, vector), emitter.get(number))

    def scaled(self, value: Callable[[Expr, Lanes | None], Expr], scale: Expr, write: Write) -> None:
        """Write values times a number."""
        scale = self.emitter.let(scale, "scale")

        def visit(place: Expr, lanes: Lanes | None, _: int) -> None:
            factor = self.emitter.spread(scale, lanes.count if lanes else 1)
            write(place, self.emitter.let(value(place, lanes) * factor), lanes)

        self.each(visit)


def _over_rows(
    name: str,
    isa: Isa,
    rows: int,
    size: int,
    arguments: Sequence[str],
    read: Read,
    rule: Callable[[Row, Write], None],
    finish: Finish,
) -> Kernel:
    """A kernel of a rule that reads a row, and writes what becomes of it."""
    together = max(1, elements_of(rows * size) // max(size, 1))

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        first = task * together
        memory = emitter.scratch(size + isa.lanes, name="row")
        with emitter.loop(at_most(together, rows, first), "row") as each:
            number = emitter.let(first + each)
            row = Row(emitter, memory, size, lambda place, lanes: read(emitter, buffers, number, place, lanes))
            rule(row, lambda place, value, lanes: finish(emitter, buffers, number, place, value, lanes))

    return kernel(name, isa, arguments, -(-rows // together), body)


def layer_norm(
    name: str, isa: Isa, rows: int, size: int, eps: float, arguments: Sequence[str], read: Read, finish: Finish
) -> Kernel:
    """``(x - mean) / sqrt(variance + eps)``; the variance from differences to the mean, as torch has it."""

    def rule(row: Row, write: Write) -> None:
        emitter = row.emitter
        mean = emitter.let(row.reduce("sum", 0.0, row.read) * emitter.number(1 / size))

        def off(place: Expr, lanes: Lanes | None) -> Expr:
            return emitter.let(row.get(place, lanes) - emitter.spread(mean, lanes.count if lanes else 1))

        def square(place: Expr, lanes: Lanes | None) -> Expr:
            value = off(place, lanes)
            return value * value

        variance = row.reduce("sum", 0.0, square) * emitter.number(1 / size)
        row.scaled(off, emitter.call("rsqrt", variance + emitter.number(eps)), write)

    return _over_rows(name, isa, rows, size, arguments, read, rule, finish)


def rms_norm(
    name: str, isa: Isa, rows: int, size: int, eps: float, arguments: Sequence[str], read: Read, finish: Finish
) -> Kernel:
    """``x / sqrt(mean(x²) + eps)``."""

    def rule(row: Row, write: Write) -> None:
        emitter = row.emitter

        def square(place: Expr, lanes: Lanes | None) -> Expr:
            value = row.read(place, lanes)
            return value * value

        squares = row.reduce("sum", 0.0, square) * emitter.number(1 / size)
        row.scaled(row.get, emitter.call("rsqrt", squares + emitter.number(eps)), write)

    return _over_rows(name, isa, rows, size, arguments, read, rule, finish)


def softmax(name: str, isa: Isa, rows: int, size: int, arguments: Sequence[str], read: Read, finish: Finish) -> Kernel:
    """``exp(x - max) / sum``."""

    def rule(row: Row, write: Write) -> None:
        emitter = row.emitter
        largest = row.reduce("max", float("-inf"), row.read)

        def exponential(place: Expr, lanes: Lanes | None) -> Expr:
            off = row.get(place, lanes) - emitter.spread(largest, lanes.count if lanes else 1)
            value = emitter.let(emitter.call("exp_nonpositive", off))
            emitter.store(row.memory, place, value)
            return value

        total = row.reduce("sum", 0.0, exponential)
        row.scaled(row.get, emitter.number(1.0) / total, write)

    return _over_rows(name, isa, rows, size, arguments, read, rule, finish)
