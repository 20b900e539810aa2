"""Random Programs as a strategy of hypothesis, which shrinks those that fail."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError
from graphopt.ir.program import Program
from graphopt.testing.blocks import BLOCKS
from graphopt.testing.graphs import begin, end

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def programs(size: int = 16, *, symbolic: bool | None = False, related: bool | None = False) -> SearchStrategy[Program]:
    """Random Programs of up to about `size` operations; the smallest, to which others shrink, have none.

    Parameters
    ----------
    symbolic, related : as for `graphopt.testing.random_graph`; None: some are.

    Raises
    ------
    UsageError : hypothesis is not installed.

    >>> from hypothesis import given, settings
    >>> from graphopt.passes import SimplifyViews
    >>> from graphopt.testing import check_pass
    >>> @settings(max_examples=2, deadline=None, database=None)
    ... @given(programs(size=4))
    ... def test_my_pass(program):
    ...     check_pass(SimplifyViews(), program, seeds=1)
    >>> test_my_pass()
    """
    drawn: SearchStrategy[Program] = _strategy()(size, symbolic, related)
    return drawn


@cache
def _strategy() -> Any:
    try:
        from hypothesis import strategies as st
    except ModuleNotFoundError as error:
        raise UsageError(
            "random programs need hypothesis, which is not installed",
            where="graphopt.testing.programs",
            hint="pip install hypothesis, or use graphopt.testing.random_graph(seed)",
        ) from error

    @st.composite
    def drawn(draw: Any, size: int, symbolic: bool | None, related: bool | None) -> Program:
        def choose(bound: int) -> int:
            number: int = draw(st.integers(0, bound - 1))
            return number

        grower = begin(choose, symbolic=bool(choose(2)) if symbolic is None else symbolic)
        # One draw per block, the end a block like any other: shrinking leaves out blocks and ends earlier.
        while grower.count < size and (block := draw(st.integers(0, len(BLOCKS)))):
            grower.grow(BLOCKS[block - 1])
        return end(grower, related=bool(choose(2)) if related is None else related)

    return drawn
