"""Orders of passes that nobody thought of, with options that nobody would choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from graphopt.errors import UsageError
from graphopt.ir.rewrite import Pass

_INTS = (0, 1, 1 << 40)
_FLOATS = (1e-3, 1.0, 1e9)


def random_sequence(
    choose: Callable[[int], int], kinds: Sequence[type[Pass]], eager: Sequence[Pass] = ()
) -> list[Pass]:
    """All passes in a random legal order, some of them several times, some with random options.

    Every fourth sequence begins with a random subset. `requires` and `ensures` are heeded.

    Parameters
    ----------
    choose : draws an int below its argument.
    eager : passes with options that let them fire on graphs of any size; each takes the place of every other one of its
        kind.

    >>> import random
    >>> from graphopt.passes import PASSES
    >>> sequence = random_sequence(random.Random(0).randrange, PASSES)
    >>> {type(pass_) for pass_ in sequence} == set(PASSES)
    True
    """
    wanted = [kind for kind in kinds if choose(2)] if choose(4) == 3 else []
    wanted = [*_shuffled(choose, wanted), *_shuffled(choose, kinds)]
    for _ in range(choose(4) if kinds else 0):
        wanted.insert(choose(len(wanted) + 1), kinds[choose(len(kinds))])
    found: list[Pass] = []
    while wanted:
        ensured = {name for pass_ in found for name in pass_.ensures}
        legal = next((kind for kind in wanted if ensured.issuperset(kind.requires)), None)
        if legal is None:
            missing = sorted({name for kind in wanted for name in kind.requires} - ensured)
            raise UsageError(f"no pass ensures {', '.join(missing)}", where=", ".join(kind.__name__ for kind in wanted))
        wanted.remove(legal)
        chosen = next((pass_ for pass_ in eager if type(pass_) is legal), None) if choose(2) else None
        found.append(chosen or random_options(choose, legal))
    return found


def _shuffled(choose: Callable[[int], int], kinds: Sequence[type[Pass]]) -> list[type[Pass]]:
    rest, found = list(kinds), list[type[Pass]]()
    while rest:
        found.append(rest.pop(choose(len(rest))))
    return found


def random_options(choose: Callable[[int], int], kind: type[Pass]) -> Pass:
    """A pass with its defaults, or with extreme values for some of its options."""
    if choose(2) == 0:
        return kind()
    options: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        match entry.default:
            case bool():
                extremes: tuple[Any, ...] = (not entry.default,)
            case int() | None:
                extremes = _INTS
            case float():
                extremes = _FLOATS
            case _:
                continue
        chosen = choose(len(extremes) + 1)
        if chosen:
            options[entry.name] = extremes[chosen - 1]
    try:
        return kind(**options)
    except UsageError:  # the pass does not take them together
        return kind()
