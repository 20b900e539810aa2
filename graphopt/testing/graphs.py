"""Random Programs of the kinds of operations that diffusion models are made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from graphopt.ir.program import Program
from graphopt.ir.relations import Constant, Paired, Relation, Repeated, Unchanged, specialise
from graphopt.testing.blocks import BLOCKS, INPUTS
from graphopt.testing.growing import Grower, inputs
from graphopt.testing.wider import WIDER_BLOCKS, WIDER_INPUTS

_BATCHED = ("x", "image", "sigma", "prompt", "pooled")
_ATTEMPTS = 4  # blocks tried per operation asked for: some do not fit


def random_graph(
    choose: int | Callable[[int], int],
    size: int = 24,
    *,
    symbolic: bool = False,
    related: bool = False,
    wider: bool = False,
) -> Program:
    """A valid Program of about `size` operations of the kinds that diffusion models are made of.

    Layers, normalisation, attention whole and written out, modulation by time, skip connections, broadcasting, views,
    concatenations and slices, integer and boolean side paths, several dtypes, repeated and useless operations, inputs
    of every role, one or more results. All sizes are small.

    Parameters
    ----------
    choose : a seed, or a function that draws an int below its argument; with hypothesis use
        `graphopt.testing.programs`, whose graphs shrink.
    size : operations; a block of operations may go beyond it.
    symbolic : batch and sequence length are known only when the Program runs, as dynamic dimensions of `torch.export`.
    related : the Program has relations in front, as `graphopt.ir.relations.specialise` puts them there: a batch of
        equal halves, channels that stay the same from call to call, a state that does; calls that share state and time.
    wider : operators that few models have come in, too: other convolutions, products of computed factors, choices.

    >>> program = random_graph(3, size=8)
    >>> len(list(program.calls())) >= 8
    True
    >>> random_graph(3, size=8, symbolic=True).output.args[0][0].meta["val"].shape  # doctest: +ELLIPSIS
    torch.Size([s...
    """
    if isinstance(choose, int):
        choose = random.Random(choose).randrange
    grower = begin(choose, symbolic=symbolic, wider=wider)
    blocks = BLOCKS + WIDER_BLOCKS if wider else BLOCKS
    for _ in range(size * _ATTEMPTS):
        if grower.count >= size:
            break
        grower.grow(blocks[choose(len(blocks))])
    return end(grower, related=related)


def begin(choose: Callable[[int], int], *, symbolic: bool = False, wider: bool = False) -> Grower:
    """A grower with inputs of all roles and no operations yet."""
    if symbolic:  # sizes that nothing else has
        return Grower(choose, inputs(_table(wider), {"B": 11, "T": 13}, frozenset("BT")))
    return Grower(choose, _static((2, 4, 1)[choose(3)], wider).copy())


@cache
def _static(batch: int, wider: bool) -> Program:
    return inputs(_table(wider), {"B": batch, "T": 6})


def _table(wider: bool) -> dict[str, str]:
    return INPUTS | WIDER_INPUTS if wider else INPUTS


def end(grower: Grower, *, related: bool = False) -> Program:
    """The Program that was grown, `related` or not."""
    program = grower.finish()
    return specialise(program, relations(grower.choose, program))[0] if related else program


def relations(choose: Callable[[int], int], program: Program) -> list[Relation]:
    """One to four relations that hold of the inputs of a random graph."""
    known: list[Relation] = []
    for node in program.placeholders:
        batch = next(iter(node.meta["val"].shape), 1)
        if node.name in _BATCHED and isinstance(batch, int) and batch % 2 == 0 and choose(2):
            known.append(Repeated(node.name, 2))
    if choose(2):
        known.append(Constant("image", 1, choose(2), 2 + choose(3)))
    if choose(4) == 0:
        known.append(Unchanged("x"))
    if choose(2):
        known.append(Paired(2))
    return known
