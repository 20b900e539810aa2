"""What happens within registers: a block of sums of products, the inner part of matrix products; transposing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from .dot import FLOAT32, Dot
from .emit import Emitter, Expr

TERMS = 576  # of a running sum, which then goes to a total
LINE = 16  # numbers of a line of the cache
_TASKS = 32  # that a kernel is cut into, if they are not too small
# Of a task, at least and at most: a few to some hundred microseconds of work.
MULTIPLICATIONS = 1 << 18, 1 << 22
_ELEMENTS = 1 << 12, 1 << 14


def task_of(multiplications: int) -> int:
    """Multiplications of a task, of so many of a kernel: no thread should wait long for the one with the last task."""
    return _part(multiplications, *MULTIPLICATIONS)


def elements_of(elements: int) -> int:
    """Elements of a task, of so many that a kernel computes one by one."""
    return _part(elements, *_ELEMENTS)


def _part(whole: int, least: int, most: int) -> int:
    """A power of two, so that tasks are made of whole vectors."""
    return max(least, min(most, 1 << (whole // _TASKS).bit_length() >> 1))


def tile(
    emitter: Emitter,
    rows: int,
    vectors: int,
    depth: Expr | int,
    a: Callable[[int, Expr], Expr],
    b: Callable[[Expr, int], Expr],
    dot: Dot = FLOAT32,
    near: Callable[[Expr], None] | None = None,
) -> list[list[Expr]]:
    """sums[row][vector] = Σₖ a(row, k) · b(k, vector)

    The sums stay in registers if there are enough of them: see `Isa.tile`.

    Parameters
    ----------
    rows, vectors : the tile's size; a vector has the CPU's lanes.
    depth : how many k there are; of narrow numbers, how many groups of them.
    a : one number per row, in all lanes or as a number.
    b : a vector, read once per k.
    dot : what is multiplied.
    near : emits what else happens at a k.
    """
    lanes = emitter.isa.lanes
    sums = [[emitter.register(emitter.spread(0.0, lanes), "sum") for _ in range(vectors)] for _ in range(rows)]
    with emitter.loop(depth, "k") as k:
        if near:
            near(k)
        others = [emitter.let(b(k, vector), "b") for vector in range(vectors)]
        for number, row in enumerate(sums):
            factor = emitter.let(emitter.spread(a(number, k), lanes), "a")
            for register, vector in zip(row, others, strict=True):
                emitter.put(register, dot.added(emitter, emitter.get(register), factor, vector))
    return [[emitter.let(emitter.get(register), "sum") for register in row] for row in sums]


def in_runs(emitter: Emitter, terms: int, most: int, add: Callable[[Expr, int, bool], None]) -> None:
    """Sum up so many terms in runs of at most `most`: rounding errors grow with what is summed up in one go.

    Parameters
    ----------
    add : takes the first term of a run, how many there are, and whether no run came before it.
    """
    run = max(1, min(terms, most))
    add(tirx.const(0, "int32"), run, True)
    more, rest = divmod(terms - run, run)
    if more:
        with emitter.loop(more, "run") as later:
            add(emitter.let((later + 1) * run), run, False)
    if rest:
        add(tirx.const((more + 1) * run, "int32"), rest, False)


def transposed(emitter: Emitter, rows: Sequence[Expr]) -> list[Expr]:
    """columns[i][j] = rows[j][i], of as many vectors as they have lanes, a power of two.

    Blocks of half the size change places in each step (Eklundh, "A fast computer method for matrix transposing", 1972).
    """
    size = len(rows)
    found = list(rows)
    width = size // 2
    while width:
        for i in range(size):
            if not i & width:
                upper, lower = found[i], found[i + width]
                first = [size + j - width if j & width else j for j in range(size)]
                second = [size + j if j & width else j + width for j in range(size)]
                found[i] = emitter.let(_shuffled(upper, lower, first), "t")
                found[i + width] = emitter.let(_shuffled(upper, lower, second), "t")
        width //= 2
    return found


def _shuffled(first: Expr, second: Expr, lanes: Sequence[int]) -> Expr:
    return tirx.Shuffle([first, second], [tirx.const(lane, "int32") for lane in lanes])
