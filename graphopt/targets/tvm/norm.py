"""Layer norm, RMS norm and softmax over the last dimension, with what comes before and after them, a row at a time.

Or as many rows at a time as a vector has lanes, where not the elements of a row but the rows lie next to each other in
memory, as the pixels of an image do: its channels then are what is read in vectors, and transposed when written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .tile import elements_of, transposed

# Row, column, lanes → the elements there.
Read: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Lanes | None], Expr]
# Row, column, values, lanes → written.
Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Expr, Lanes | None], None]
# The same of a row, or of one of some rows: its number among them, column, values, lanes.
Write: TypeAlias = Callable[[int, Expr, Expr, Lanes | None], None]

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
        """Elements from outside."""
        return self.put(place, self._read(place, lanes))

    def get(self, place: Expr, lanes: Lanes | None) -> Expr:
        return self.emitter.load(self.memory, place, lanes.count if lanes else 1)

    def put(self, place: Expr, value: Expr) -> Expr:
        """Elements that `get` finds from then on."""
        value = self.emitter.let(value)
        self.emitter.store(self.memory, place, value)
        return value

    def each(self, visit: Callable[[Expr, Lanes | None, int], None], together: int = 1) -> None:
        """Visit all places, some vectors in turns, and one by one where no vector is left; with the turn's number."""
        whole, rest = divmod(self.size, self.lanes)
        lanes = vector_of(self.emitter, self.lanes)
        self.in_turns(whole, together, lambda vector, number: visit(vector * self.lanes, lanes, number))
        if rest:
            with self.emitter.loop(rest, "rest") as place:
                visit(place + whole * self.lanes, None, 0)

    def in_turns(self, vectors: int, together: int, visit: Callable[[Expr, int], None]) -> None:
        """Visit so many vectors, some in turns; with the turn's number, of those that are left over 0."""
        rounds, left = divmod(vectors, together)
        if rounds:
            with self.emitter.loop(rounds, "round") as turn:
                for number in range(together):
                    visit(turn * together + number, number)
        if left:
            with self.emitter.loop(left, "left") as vector:
                visit(rounds * together + vector, 0)

    def reduce(self, how: str, start: float, value: Callable[[Expr, Lanes | None], Expr]) -> Expr:
        """The sum or the largest of values over the row, in as many running ones as some vectors have lanes."""
        (found,) = self.reduce_each(how, start, 1, lambda place, at: [value(place, at)])
        return found

    def reduce_each(
        self, how: str, start: float, count: int, values: Callable[[Expr, Lanes | None], Sequence[Expr]]
    ) -> list[Expr]:
        """The same of several values at once, so many."""
        emitter, both = self.emitter, self._both(how)
        wide = [[emitter.register(emitter.spread(start, self.lanes)) for _ in range(_RUNNING)] for _ in range(count)]
        alone = [emitter.register(emitter.number(start)) for _ in range(count)]

        def visit(place: Expr, at: Lanes | None, turn: int) -> None:
            for vectors, number, value in zip(wide, alone, values(place, at), strict=True):
                running = vectors[turn] if at else number
                emitter.put(running, both(emitter.get(running), value))

        self.each(visit, _RUNNING)
        return [
            self.total(how, functools.reduce(both, map(emitter.get, vectors)), emitter.get(number))
            for vectors, number in zip(wide, alone, strict=True)
        ]

    def total(self, how: str, vector: Expr, number: Expr) -> Expr:
        """Of the lanes of a vector and a number."""
        return self._both(how)(self.emitter.reduced(how, vector), number)

    def _both(self, how: str) -> Callable[[Expr, Expr], Expr]:
        emitter = self.emitter
        return lambda one, other: emitter.let(one + other if how == "sum" else emitter.call("maximum", one, other))

    def number(self, value: float) -> Expr:
        """A constant to compute with what `reduce` gives."""
        return self.emitter.number(value)

    def scaled(self, value: Callable[[Expr, Lanes | None], Expr], scale: Expr, write: Write) -> None:
        """Write values times a number."""
        scale = self.emitter.let(scale, "scale")

        def visit(place: Expr, lanes: Lanes | None, _: int) -> None:
            factor = self.emitter.spread(scale, lanes.count if lanes else 1)
            write(0, place, self.emitter.let(value(place, lanes) * factor), lanes)

        self.each(visit)


class Across(Row):
    """As many rows as a vector has lanes, which lie next to each other in memory: a column is a vector of them."""

    def __init__(self, emitter: Emitter, memory: Buffer, size: int, read: Callable[[Expr, Lanes | None], Expr]) -> None:
        super().__init__(emitter, memory, size, read)
        self._rows = vector_of(emitter, self.lanes)

    def get(self, place: Expr, lanes: Lanes | None) -> Expr:
        return self.emitter.load(self.memory, place * self.lanes, self.lanes)

    def put(self, place: Expr, value: Expr) -> Expr:
        return super().put(place * self.lanes, value)

    def each(self, visit: Callable[[Expr, Lanes | None, int], None], together: int = 1) -> None:
        self.in_turns(self.size, together, lambda column, number: visit(column, self._rows, number))

    def total(self, how: str, vector: Expr, number: Expr) -> Expr:
        return vector

    def number(self, value: float) -> Expr:
        return self.emitter.spread(value, self.lanes)

    def scaled(self, value: Callable[[Expr, Lanes | None], Expr], scale: Expr, write: Write) -> None:
        scale = self.emitter.let(scale, "scale")
        columns = vector_of(self.emitter, self.lanes)
        with self.emitter.loop(self.size // self.lanes, "block") as block:
            first = block * self.lanes
            found = [self.emitter.let(value(first + number, self._rows) * scale) for number in range(self.lanes)]
            for number, row in enumerate(transposed(self.emitter, found)):
                write(number, first, row, columns)


@dataclass(frozen=True)
class Rows:
    """What a rule is for.

    Attributes
    ----------
    arguments : dtypes of the pointers.
    across : whether `read` takes the lanes for rows, which are then one after the other in memory, not for columns.
    """

    name: str
    isa: Isa
    rows: int
    size: int
    arguments: Sequence[str]
    read: Read
    finish: Finish
    across: bool = False

    def kernel(self, rule: Callable[[Row, Write], None]) -> Kernel:
        """Of a rule that reads a row, or some `across`, and writes what becomes of it."""
        once = self.isa.lanes if self.across else 1
        together = max(1, elements_of(self.rows * self.size) // max(self.size * once, 1))
        kind = Across if self.across else Row

        def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
            first = task * together
            memory = emitter.scratch(self.size * once + self.isa.lanes, name="row")
            with emitter.loop(at_most(together, self.rows // once, first), "row") as each:
                number = emitter.let((first + each) * once)
                row = kind(
                    emitter, memory, self.size, lambda place, lanes: self.read(emitter, buffers, number, place, lanes)
                )
                rule(
                    row, lambda at, place, value, lanes: self.finish(emitter, buffers, number + at, place, value, lanes)
                )

        return kernel(self.name, self.isa, self.arguments, -(-self.rows // once // together), body)


def layer_norm(rows: Rows, eps: float) -> Kernel:
    """``(x - mean) / sqrt(variance + eps)``; the variance from differences to the mean, as torch has it.

    The mean is that of the row, as rounded, and that of what is left: of nearly constant rows only the rounding would
    else be left.
    """

    def rule(row: Row, write: Write) -> None:
        emitter, part = row.emitter, row.number(1 / rows.size)
        rounded = emitter.let(row.reduce("sum", 0.0, row.read) * part)

        def less(value: Expr, number: Expr, lanes: Lanes | None) -> Expr:
            return emitter.let(value - emitter.spread(number, lanes.count if lanes else 1))

        def both(place: Expr, lanes: Lanes | None) -> Sequence[Expr]:
            value = less(row.get(place, lanes), rounded, lanes)
            return value, value * value

        def off(place: Expr, lanes: Lanes | None) -> Expr:
            return less(less(row.get(place, lanes), rounded, lanes), error, lanes)

        sums, squares = row.reduce_each("sum", 0.0, 2, both)
        error = emitter.let(sums * part)
        variance = emitter.call("maximum", squares * part - error * error, row.number(0.0))
        row.scaled(off, emitter.call("rsqrt", variance + row.number(eps)), write)

    return rows.kernel(rule)


def rms_norm(rows: Rows, eps: float) -> Kernel:
    """``x / sqrt(mean(x²) + eps)``."""

    def rule(row: Row, write: Write) -> None:
        emitter = row.emitter

        def square(place: Expr, lanes: Lanes | None) -> Expr:
            value = row.read(place, lanes)
            return value * value

        squares = row.reduce("sum", 0.0, square) * row.number(1 / rows.size)
        row.scaled(row.get, emitter.call("rsqrt", squares + row.number(eps)), write)

    return rows.kernel(rule)


def softmax(rows: Rows) -> Kernel:
    """``exp(x - max) / sum``."""

    def rule(row: Row, write: Write) -> None:
        emitter = row.emitter
        largest = row.reduce("max", float("-inf"), row.read)

        def exponential(place: Expr, lanes: Lanes | None) -> Expr:
            off = row.get(place, lanes) - emitter.spread(largest, lanes.count if lanes else 1)
            return row.put(place, emitter.call("exp_nonpositive", off))

        total = row.reduce("sum", 0.0, exponential)
        row.scaled(row.get, row.number(1.0) / total, write)

    return rows.kernel(rule)
