"""An observer that lets only so many rewrites of one pass happen, and keeps what that pass made of each Program."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from graphopt.debug.history import Place
from graphopt.errors import PassError
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Observer, Pass
from graphopt.ir.stages import Part


@dataclass
class Attempt:
    """One Program on its way through the passes, be it used in the end or begun again without what was assumed.

    Attributes
    ----------
    name : of the module.
    number : how many Programs of this module there were before, plus 1.
    before, after : the Program before and after the pass that is watched; None until it ran.
    fired : per pass, in order, how often it fired; 0 for one that was rolled back.
    failed : position of a pass that was rolled back, and why.
    used : whether it is what the module was compiled to.
    """

    name: str
    number: int
    before: Program | None = None
    after: Program | None = None
    fired: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    used: bool = False


@dataclass(frozen=True)
class Rewrite:
    """A rewrite of the watched pass: where, and in which of the attempts."""

    place: Place
    attempt: int


class Limit(Observer):
    """Counts the rewrites of the pass at a position of the pipeline, over all Programs in order, and vetoes some.

    Parameters
    ----------
    position : of the pass among those that are compiled with, from 0; -1 watches none.
    most : how many rewrites may happen; None: all.
    without : module and node at which none may happen.
    closed : numbers, from 0, of attempts in which the pass may do nothing: it was rolled back there when all its
        rewrites happened.
    free : numbers of attempts in which it may do all it wants, uncounted: they are not used, and what the pass does
        there decides what is assumed in the next.
    """

    def __init__(
        self, position: int, *, most: int | None = None, without: tuple[str, str] | None = None,
        closed: Container[int] = (), free: Container[int] = (),
    ) -> None:  # fmt: skip
        self.position, self.most, self.without, self.closed, self.free = position, most, without, closed, free
        self.attempts: list[Attempt] = []
        self.done: list[Rewrite] = []
        self._counted = 0  # rewrites before the pass at work began

    @property
    def order(self) -> list[Rewrite]:
        """The rewrites of the watched pass that are in use, in order."""
        return [entry for entry in self.done if self.attempts[entry.attempt].used]

    @property
    def rolled_back(self) -> list[tuple[int, str, str]]:
        """Position of the pass, module and reason of everything that was rolled back."""
        used = [attempt for attempt in self.attempts if attempt.used]
        return [(at, attempt.name, why) for attempt in used for at, why in attempt.failed.items()]

    def fired(self, position: int) -> int:
        """How often a pass fired, over all Programs."""
        return sum(attempt.fired[position] for attempt in self.attempts if attempt.used)

    def program_begins(self, program: Program) -> None:
        number = 1 + sum(attempt.name == program.name for attempt in self.attempts)
        self.attempts.append(Attempt(program.name, number))

    def program_ends(self, program: Program, parts: Sequence[Part]) -> None:
        self.attempts[-1].used = True

    def pass_begins(self, pass_: Pass, program: Program) -> None:
        attempt = self.attempts[-1]
        attempt.fired.append(0)
        if self._watched:
            attempt.before = attempt.after = program
            self._counted = len(self.done)

    def allows(self, pass_: Pass, match: Match) -> bool:
        here = len(self.attempts) - 1
        if not self._watched or here in self.free:
            return True
        if here in self.closed or (self.most is not None and len(self.done) >= self.most):
            return False
        return self.without != (self.attempts[-1].name, match.root.name)

    def rewrites(self, pass_: Pass, match: Match) -> None:
        if self._watched and len(self.attempts) - 1 not in self.free:
            self.done.append(Rewrite(Place.of(match.root), len(self.attempts) - 1))

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None:
        attempt = self.attempts[-1]
        attempt.fired[-1] = fired
        if self._watched:
            attempt.after = after

    def pass_fails(self, pass_: Pass, program: Program, error: PassError) -> None:
        attempt = self.attempts[-1]
        attempt.failed[len(attempt.fired) - 1] = str(error)
        if self._watched:
            del self.done[self._counted :]

    @property
    def _watched(self) -> bool:
        return len(self.attempts[-1].fired) - 1 == self.position
