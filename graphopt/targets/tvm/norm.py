"""Layer norm, RMS norm and softmax over the last dimension, with what comes before and after them, a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .tile import elements_of

# Row, column, lanes → the elements there.
Read: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Lanes | None], Expr]
# Row, column, values, lanes → written.
Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Expr, Lanes | None], None]


class Row:
    """One row in memory of the task's own, walked over in vectors and a rest."""

    def __init__(self, emitter: Emitter, size: int) -> None:
        self.emitter, self.size, self.lanes = emitter, size, emitter.isa.lanes
        self.memory = emitter.scratch(size + self.lanes, name="row")

    def each(self, visit: Callable[[Expr, Lanes | None], None]) -> None:
        """Visit all places, a vector at a time, and one by one where no vector is left."""
        whole, rest = divmod(self.size, self.lanes)
        if whole:
            lanes = vector_of(self.emitter, self.lanes)
            with self.emitter.loop(whole, "vector") as vector:
                visit(vector * self.lanes, lanes)
        if rest:
            with self.emitter.loop(rest, "rest") as place:
                visit(place + whole * self.lanes, None)

    def get(self, place: Expr, lanes: Lanes | None) -> Expr:
        return self.emitter.load(self.memory, place, lanes.count if lanes else 1)

    def reduce(self, how: str, start: float, value: Callable[[Expr, Lanes | None], Expr]) -> Expr:
        """The sum or the largest of values over the row, in as many running ones as a vector has lanes."""
        emitter, lanes = self.emitter, self.lanes
        vector = emitter.register(emitter.spread(start, lanes))
        number = emitter.register(emitter.number(start))

        def visit(place: Expr, at: Lanes | None) -> None:
            running = vector if at else number
            known, new = emitter.get(running), value(place, at)
            emitter.put(running, known + new if how == "sum" else emitter.call("maximum", known, new))

        self.each(visit)
        both = emitter.reduced(how, emitter.get(vector)), emitter.get(number)
        return emitter.let(both[0] + both[1] if how == "sum" else emitter.call("maximum", *both))


def _over_rows(
    name: str, isa: Isa, rows: int, size: int, arguments: Sequence[str], read: Read, after: Callable[..., None]
) -> Kernel:
    """A kernel that reads each row into memory of its own and hands it to `after`."""
    together = max(1, elements_of(rows * size) // max(size, 1))

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        first = task * together
        row = Row(emitter, size)
        with emitter.loop(at_most(together, rows, first), "row") as each:
            number = emitter.let(first + each)

            def fetch(place: Expr, lanes: Lanes | None) -> None:
                emitter.store(row.memory, place, read(emitter, buffers, number, place, lanes))

            row.each(fetch)
            after(emitter, buffers, number, row)

    return kernel(name, isa, arguments, -(-rows // together), body)


def layer_norm(
    name: str, isa: Isa, rows: int, size: int, eps: float, arguments: Sequence[str], read: Read, finish: Finish
) -> Kernel:
    """``(x - mean) / sqrt(variance + eps)``; the variance from differences to the mean, as torch has it."""

    def after(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, row: Row) -> None:
        mean = emitter.let(row.reduce("sum", 0.0, row.get) * emitter.number(1 / size))

        def square(place: Expr, lanes: Lanes | None) -> Expr:
            off = emitter.let(row.get(place, lanes) - emitter.spread(mean, lanes.count if lanes else 1))
            return off * off

        variance = row.reduce("sum", 0.0, square) * emitter.number(1 / size)
        scale = emitter.let(emitter.call("rsqrt", variance + emitter.number(eps)))

        def write(place: Expr, lanes: Lanes | None) -> None:
            count = lanes.count if lanes else 1
            off = row.get(place, lanes) - emitter.spread(mean, count)
            finish(emitter, buffers, number, place, emitter.let(off * emitter.spread(scale, count)), lanes)

        row.each(write)

    return _over_rows(name, isa, rows, size, arguments, read, after)


def rms_norm(
    name: str, isa: Isa, rows: int, size: int, eps: float, arguments: Sequence[str], read: Read, finish: Finish
) -> Kernel:
    """``x / sqrt(mean(x²) + eps)``."""

    def after(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, row: Row) -> None:
        def square(place: Expr, lanes: Lanes | None) -> Expr:
            value = emitter.let(row.get(place, lanes))
            return value * value

        squares = row.reduce("sum", 0.0, square) * emitter.number(1 / size)
        scale = emitter.let(emitter.call("rsqrt", squares + emitter.number(eps)))

        def write(place: Expr, lanes: Lanes | None) -> None:
            value = row.get(place, lanes) * emitter.spread(scale, lanes.count if lanes else 1)
            finish(emitter, buffers, number, place, emitter.let(value), lanes)

        row.each(write)

    return _over_rows(name, isa, rows, size, arguments, read, after)


def softmax(name: str, isa: Isa, rows: int, size: int, arguments: Sequence[str], read: Read, finish: Finish) -> Kernel:
    """``exp(x - max) / sum``."""

    def after(emitter: Emitter, buffers: Sequence[Buffer], number: Expr, row: Row) -> None:
        largest = row.reduce("max", float("-inf"), row.get)

        def exponential(place: Expr, lanes: Lanes | None) -> Expr:
            off = row.get(place, lanes) - emitter.spread(largest, lanes.count if lanes else 1)
            value = emitter.let(emitter.call("exp_nonpositive", off))
            emitter.store(row.memory, place, value)
            return value

        total = row.reduce("sum", 0.0, exponential)
        scale = emitter.let(emitter.number(1.0) / total)

        def write(place: Expr, lanes: Lanes | None) -> None:
            value = row.get(place, lanes) * emitter.spread(scale, lanes.count if lanes else 1)
            finish(emitter, buffers, number, place, emitter.let(value), lanes)

        row.each(write)

    return _over_rows(name, isa, rows, size, arguments, read, after)
