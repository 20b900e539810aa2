"""The driver that runs passes, one after the other: watched, verified, and rolled back when wrong."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from graphopt.errors import GraphoptError, PassError
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Observer, Pass, Refusal, spell
from graphopt.ir.stages import settle
from graphopt.ir.verify import Verification

_MAX_SWEEPS = 32


class Observers(Observer):
    """Several observers as one, called in order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = tuple(observers)

    def allows(self, pass_: Pass, match: Match) -> bool:
        answers = [observer.allows(pass_, match) for observer in self.observers]  # each of them is asked: some count
        return all(answers)


def _forwarded(name: str) -> Any:
    def call(self: Observers, *args: Any) -> None:
        for observer in self.observers:
            getattr(observer, name)(*args)

    return call


for _name in vars(Observer):
    if not _name.startswith("_") and _name not in vars(Observers):
        setattr(Observers, _name, _forwarded(_name))


def check_order(pipeline: Sequence[Pass]) -> None:
    """Raise PassError when a pass stands before the pass that ensures what it requires, with an order that is legal."""
    for position, pass_ in enumerate(pipeline):
        ensured = {name for earlier in pipeline[:position] for name in earlier.ensures}
        for name in pass_.requires:
            if name not in ensured:
                raise PassError(
                    f"pass '{pass_.name}' requires '{name}', which no earlier pass ensures",
                    where=" → ".join(other.name for other in pipeline),
                    hint=_legal_order(pipeline) or f"add a pass that ensures '{name}' before {pass_.name}",
                )


def _legal_order(pipeline: Sequence[Pass]) -> str | None:
    """The order nearest to the given one in which all requirements are met; None where there is no such order."""
    left, order, ensured = list(pipeline), list[Pass](), set[str]()
    while left:
        # The first that can stand next: what is ensured stays so, and no choice rules out what another would allow.
        found = next((position for position, pass_ in enumerate(left) if ensured.issuperset(pass_.requires)), None)
        if found is None:
            return None
        order.append(left.pop(found))
        ensured.update(order[-1].ensures)
    return "this order is legal: " + " → ".join(map(spell, order))


class _Failed(Exception):
    """A pass has failed. What observers raise is none of these, whatever its class."""

    def __init__(self, failure: PassError) -> None:
        self.failure = failure


def run_pass(pass_: Pass, program: Program, observer: Observer | None = None, *, check: bool = True) -> Program:
    """The Program after one pass; `program` itself is left as it is.

    Raises PassError (or its subclass VerificationError) when the pass raises or its result is not a valid Program, and
    what observers raise, other than a GraphoptError of `Observer.checks`, which is such a failure of the pass.
    """
    try:
        return _attempt(pass_, program, observer, check)
    except _Failed as failed:
        raise failed.failure from failed.failure.__cause__


def _attempt(pass_: Pass, program: Program, observer: Observer | None, check: bool) -> Program:
    observer = Observers((*([Verification()] if check else []), *([observer] if observer else [])))
    observer.pass_begins(pass_, program)
    after, fired, refused = program.copy(), 0, set[str]()
    after.rule = pass_.name
    for _ in range(_MAX_SWEEPS):
        before_sweep = fired
        with _blamed(pass_, program, observer):
            found = _found(pass_, after)
        for match in found:
            with _blamed(pass_, program, observer):
                if not match.alive:
                    continue
                refusal = _answer(pass_, pass_.legal(after, match))
                place = refusal.node.name if refusal is not None else ""
            if refusal is None:
                if observer.allows(pass_, match):
                    observer.rewrites(pass_, match)
                    with _blamed(pass_, program, observer):
                        _nothing(pass_, pass_.rewrite(after, match))
                    observer.rewritten(pass_, match, after)
                    fired += 1
            elif place not in refused:
                refused.add(place)
                observer.refuses(pass_, refusal)
        if fired > before_sweep:
            settle(after)
        if fired == before_sweep or not pass_.repeat:
            break
    if fired:
        with _blamed(pass_, program, observer, GraphoptError):
            observer.checks(pass_, program, after)
    after.rule = ""
    observer.pass_ends(pass_, program, after, fired)
    return after


def _found(pass_: Pass, program: Program) -> list[Match]:
    """The matches of a pass. Raises PassError where they are none."""
    found: Any = pass_.find(program)
    if not isinstance(found, Iterable):
        raise _mistake(pass_, "find", f"returned {_shown(found)}", "yield Match(node), once for each place")
    matches = list(found)
    for match in matches:
        if not isinstance(match, Match):
            raise _mistake(pass_, "find", f"gave {_shown(match)}", "Match(node), once for each place")
    return matches


def _answer(pass_: Pass, answer: Any) -> Refusal | None:
    """What `legal` said. Raises PassError where it is no answer."""
    if answer is None:
        return None
    if not isinstance(answer, Refusal):
        expected = 'None to rewrite here, or Refusal("why not", match.root)'
        raise _mistake(pass_, "legal", f"returned {_shown(answer)}", expected)
    reason: Any = answer.reason  # of any type, whatever the class says
    node: Any = answer.node
    if not (isinstance(node, fx.Node) and isinstance(reason, str)):
        what = f"returned Refusal({_shown(reason)}, {_shown(node)})"
        raise _mistake(pass_, "legal", what, "a reason, which is a str, and a node of the program, in this order")
    return answer


def _nothing(pass_: Pass, returned: Any) -> None:
    """Raise PassError where `rewrite` has returned something, which nobody would use."""
    if returned is not None:
        expected = "nothing: change the program that is given, say by program.replace(match.root, new)"
        raise _mistake(pass_, "rewrite", f"returned {_shown(returned)}", expected)


def _mistake(pass_: Pass, method: str, what: str, expected: str) -> PassError:
    return PassError(f"pass '{pass_.name}': {method} {what}", where=f"{type(pass_).__qualname__}.{method}",
                     hint=f"expected is {expected}")  # fmt: skip


def _shown(value: Any) -> str:
    """A value and its class, short: ``'no' (str)``."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:59] + '…'} ({type(value).__name__})"


@contextlib.contextmanager
def _blamed(pass_: Pass, program: Program, observer: Observer, kind: type[Exception] = Exception) -> Iterator[None]:
    """Within it, errors of this kind are failures of the pass, and told to the observer."""
    try:
        yield
    except kind as error:
        failure = _failure(pass_, program, error)
        if failure is not error:
            failure.__cause__ = error
        observer.pass_fails(pass_, program, failure)
        raise _Failed(failure) from error


def _failure(pass_: Pass, program: Program, error: Exception) -> PassError:
    if isinstance(error, PassError):
        return error
    if isinstance(error, GraphoptError):
        return PassError(str(error), where=f"pass '{pass_.name}'")
    return PassError(
        f"pass '{pass_.name}' raised {type(error).__name__}: {error}",
        where=", ".join([*_lines_of(pass_, error), f"program '{program.name}'"]),
        hint="this is a bug in the pass: leave it out of the pipeline, or mend it; the error above is this one's "
        "__cause__, with its traceback, and graphopt.compile raises it where strict=True",
    )


def _lines_of(pass_: Pass, error: Exception) -> list[str]:
    """The innermost line of the pass's own file that an error went through: ``my_pass.py:31 in rewrite``."""
    file = getattr(sys.modules.get(type(pass_).__module__), "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if file and frame.filename == file]
    return [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames[-1:]]


def run_pipeline(
    pipeline: Sequence[Pass], program: Program, observer: Observer | None = None, *, strict: bool = False,
    check: bool = True,
) -> Program:  # fmt: skip
    """Run passes in order. A pass that fails is rolled back with a warning; `strict` raises its error instead."""
    check_order(pipeline)
    for pass_ in pipeline:
        try:
            program = _attempt(pass_, program, observer, check)
        except _Failed as failed:
            if strict:
                raise failed.failure from failed.failure.__cause__
            what = f"graphopt: pass '{pass_.name}' was rolled back: {failed.failure}"
            warnings.warn(what, RuntimeWarning, stacklevel=2)
    return program
