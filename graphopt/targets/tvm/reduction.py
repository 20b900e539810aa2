"""Sums, means, extremes, variances and norms over some dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .emit import Buffer, Emitter, Expr, Kernel, at_most, kernel
from .isa import Isa
from .reading import Lanes, vector_of
from .tile import TERMS, elements_of, in_runs

# Result, its lanes, term, its lanes → the elements there.
Read: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Lanes | None, Expr, Lanes | None], Expr]
# Result, value, lanes → written.
Finish: TypeAlias = Callable[[Emitter, Sequence[Buffer], Expr, Expr, Lanes | None], None]


@dataclass(frozen=True)
class Reduction:
    """What becomes of the elements.

    Attributes
    ----------
    results, terms : how many results there are, and of how many elements each.
    how : mean, sum, amax, amin, var, std or norm.
    across : lanes hold neighbouring results; else, terms of one.
    correction : what is taken from the number of terms of a variance.
    """

    results: int
    terms: int
    how: str
    across: bool
    correction: float = 0


def reduction(name: str, isa: Isa, what: Reduction, arguments: Sequence[str], read: Read, finish: Finish) -> Kernel:
    """A kernel that reduces."""
    together = max(1, elements_of(what.results * what.terms) // what.terms)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        first = emitter.let(task * together, "first")
        count = at_most(together, what.results, first)

        def one(number: Expr, lanes: Lanes | None) -> None:
            def element(place: Expr, along: Lanes | None) -> Expr:
                return read(emitter, buffers, number, lanes, place, along)

            finish(emitter, buffers, number, _reduced(emitter, what, lanes.count if lanes else 1, element), lanes)

        if not what.across:
            with emitter.loop(count, "result") as result:
                one(emitter.let(first + result), None)
            return
        lanes = vector_of(emitter, isa.lanes)
        with emitter.loop(count // isa.lanes, "vector") as vector:
            one(emitter.let(first + vector * isa.lanes), lanes)
        with emitter.loop(count % isa.lanes, "rest") as rest:
            one(emitter.let(first + count // isa.lanes * isa.lanes + rest), None)

    return kernel(name, isa, arguments, -(-what.results // together), body)


def _reduced(emitter: Emitter, what: Reduction, width: int, element: Callable[[Expr, Lanes | None], Expr]) -> Expr:
    """Of one result, or of as many as there are lanes."""

    def total(largest: bool, value: Callable[[Expr, Lanes | None], Expr]) -> Expr:
        if what.across:
            return _total(emitter, what.terms, largest, width, lambda place: value(place, None))
        size = emitter.isa.lanes
        whole, rest = divmod(what.terms, size)
        lanes = vector_of(emitter, size)
        found = []
        if whole:
            vector = _total(emitter, whole, largest, size, lambda place: value(place * size, lanes))
            found.append(emitter.reduced("max" if largest else "sum", vector))
        if rest:
            found.append(_total(emitter, rest, largest, 1, lambda place: value(place + whole * size, None)))
        if len(found) == 1:
            return emitter.let(found[0])
        return emitter.let(emitter.call("maximum", *found) if largest else found[0] + found[1])

    def wide(value: Expr, like: Expr) -> Expr:
        return emitter.spread(value, int(like.ty.dtype.lanes))

    def square(place: Expr, along: Lanes | None) -> Expr:
        value = emitter.let(element(place, along))
        return value * value

    if what.how in ("amax", "amin"):
        if what.how == "amax":
            return total(True, element)
        return emitter.let(total(True, lambda place, along: element(place, along) * -1.0) * -1.0)
    if what.how == "norm":
        return emitter.let(emitter.call("sqrt", total(False, square)))
    summed = total(False, element)
    if what.how == "sum":
        return summed
    mean = emitter.let(summed * emitter.number(1 / what.terms))
    if what.how == "mean":
        return mean

    def deviation(place: Expr, along: Lanes | None) -> Expr:
        value = element(place, along)
        off = emitter.let(value - wide(mean, value))
        return off * off

    variance = emitter.let(total(False, deviation) / emitter.number(max(what.terms - what.correction, 0)))
    return variance if what.how == "var" else emitter.let(emitter.call("sqrt", variance))


def _total(emitter: Emitter, count: int, largest: bool, width: int, value: Callable[[Expr], Expr]) -> Expr:
    """The sum or the largest of so many values, in runs, so that sums round little."""
    start = emitter.spread(float("-inf") if largest else 0.0, width)
    result = emitter.register(start)

    def both(one: Expr, other: Expr) -> Expr:
        return emitter.call("maximum", one, other) if largest else one + other

    def add(first: Expr, many: int, fresh: bool) -> None:
        run = emitter.register(start)
        with emitter.loop(many, "term") as term:
            emitter.put(run, both(emitter.get(run), emitter.spread(value(first + term), width)))
        emitter.put(result, both(emitter.get(result), emitter.get(run)))

    in_runs(emitter, count, TERMS, add)
    return emitter.let(emitter.get(result))
