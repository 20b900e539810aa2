"""Passes, and the driver that runs them: find → legal → rewrite, watched and rolled back when wrong.

A pass is a frozen dataclass with three methods. The driver owns everything else: it copies the Program before a pass
touches it, asks `legal` about each match, records refusals, runs until nothing is left to do, verifies the result, and
tells one `Observer` about all of it. Passes never print, time or dump.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from torch import fx

from graphopt.errors import GraphoptError, PassError
from graphopt.ir.effects import has_effect
from graphopt.ir.program import Program
from graphopt.ir.verify import verify

Accuracy: TypeAlias = Literal["bitwise", "rounding", "lossy"]


@dataclass(frozen=True)
class Refusal:
    """Why a pass did not fire at a node."""

    reason: str
    node: fx.Node


@dataclass(frozen=True)
class Match:
    """A place where a pass could fire.

    Attributes
    ----------
    root : the node that names the place in reports.
    nodes : all nodes the rewrite relies on; when one of them is gone, the match is void.
    captures : whatever `find` wants to hand to `legal` and `rewrite`.
    """

    root: fx.Node
    nodes: tuple[fx.Node, ...] = ()
    captures: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.captures[name]

    @property
    def alive(self) -> bool:
        return not any(node._erased for node in (self.root, *self.nodes))


class Pass(ABC):
    """Program → Program: one idea, one equation, one file.

    Subclasses are frozen dataclasses; their fields are the pass's options. `accuracy` says what the pass may do to
    values: ``bitwise`` (nothing at all), ``rounding`` (reassociate; bounded), ``lossy`` (spends error budget).
    """

    accuracy: ClassVar[Accuracy] = "bitwise"
    requires: ClassVar[tuple[str, ...]] = ()  # properties of the Program that earlier passes must ensure
    ensures: ClassVar[tuple[str, ...]] = ()
    repeat: ClassVar[bool] = True  # run until no match is left; False for passes that place rather than rewrite
    exploits: ClassVar[
        tuple[type, ...]
    ] = ()  # kinds of relations between calls that it needs, see `graphopt.ir.relations`

    @property
    def name(self) -> str:
        """The name everywhere (file, CLI, tests, docs): the class name in snake case."""
        return pass_name(type(self))

    @abstractmethod
    def find(self, program: Program) -> Iterable[Match]:
        """Places where the pass could fire, in graph order."""

    def legal(self, program: Program, match: Match) -> Refusal | None:
        """None when rewriting there keeps the declared accuracy and pays, else the reason why not. Changes nothing."""
        return None

    @abstractmethod
    def rewrite(self, program: Program, match: Match) -> None:
        """Change the graph at one legal match."""


def pass_name(cls: type) -> str:
    """``MergeLinears`` → ``merge_linears``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def spell(pass_: Pass) -> str:
    """A pass with the options that differ from their defaults, as the command line spells it."""
    changed = [
        f"{entry.name}={getattr(pass_, entry.name)!r}"
        for entry in dataclasses.fields(pass_)  # type: ignore[arg-type]
        if getattr(pass_, entry.name) != entry.default
    ]
    return pass_.name + (f"{{{','.join(changed)}}}" if changed else "")


class Observer:
    """The one hook through which timing, statistics, dumps and pictures see the compiler. All methods do nothing."""

    def pass_begins(self, pass_: Pass, program: Program) -> None: ...

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None: ...

    def pass_fails(self, pass_: Pass, program: Program, error: PassError) -> None: ...

    def rewrites(self, pass_: Pass, match: Match) -> None: ...

    def refuses(self, pass_: Pass, refusal: Refusal) -> None: ...


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = tuple(observers)

    def pass_begins(self, pass_: Pass, program: Program) -> None:
        for observer in self.observers:
            observer.pass_begins(pass_, program)

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None:
        for observer in self.observers:
            observer.pass_ends(pass_, before, after, fired)

    def pass_fails(self, pass_: Pass, program: Program, error: PassError) -> None:
        for observer in self.observers:
            observer.pass_fails(pass_, program, error)

    def rewrites(self, pass_: Pass, match: Match) -> None:
        for observer in self.observers:
            observer.rewrites(pass_, match)

    def refuses(self, pass_: Pass, refusal: Refusal) -> None:
        for observer in self.observers:
            observer.refuses(pass_, refusal)


def check_order(pipeline: Sequence[Pass]) -> None:
    """Raise PassError when a pass stands before the pass that ensures what it requires."""
    for position, pass_ in enumerate(pipeline):
        ensured = {name for earlier in pipeline[:position] for name in earlier.ensures}
        for name in pass_.requires:
            if name not in ensured:
                later = [other.name for other in pipeline[position:] if name in other.ensures]
                raise PassError(
                    f"pass '{pass_.name}' requires '{name}', which no earlier pass ensures",
                    where=" → ".join(other.name for other in pipeline),
                    hint=f"move {later[0]} in front of {pass_.name}" if later else f"add a pass that ensures '{name}'",
                )


def run_pass(pass_: Pass, program: Program, observer: Observer | None = None, *, check: bool = True) -> Program:
    """The Program after one pass; `program` itself is left as it is.

    Raises PassError (or its subclass VerificationError) when the pass raises or its result is not a valid Program.
    """
    observer = observer or Observer()
    observer.pass_begins(pass_, program)
    after, fired, refused = program.copy(), 0, set[str]()
    after.rule = pass_.name
    try:
        for _ in range(_MAX_SWEEPS):
            before_sweep = fired
            for match in _matches(pass_, after):
                refusal = pass_.legal(after, match)
                if refusal is None:
                    observer.rewrites(pass_, match)
                    pass_.rewrite(after, match)
                    fired += 1
                elif refusal.node.name not in refused:
                    refused.add(refusal.node.name)
                    observer.refuses(pass_, refusal)
            if fired == before_sweep or not pass_.repeat:
                break
        if fired and check:
            verify(program, after)
    except GraphoptError as error:
        failure = error if isinstance(error, PassError) else PassError(str(error), where=f"pass '{pass_.name}'")
        observer.pass_fails(pass_, program, failure)
        raise failure from error
    except Exception as error:
        failure = PassError(
            f"pass '{pass_.name}' raised {type(error).__name__}: {error}",
            where=f"program '{program.name}'",
            hint="this is a bug in the pass; leave it out of the pipeline, or run with strict=True for the traceback",
        )
        observer.pass_fails(pass_, program, failure)
        raise failure from error
    after.rule = ""
    observer.pass_ends(pass_, program, after, fired)
    return after


def erase_unread(program: Program, nodes: Iterable[fx.Node]) -> None:
    """Remove what nobody reads any more: those of `nodes` without readers or effects, and what only they read."""
    for node, below in [(node, node.all_input_nodes) for node in nodes]:
        if node.op == "call_function" and not (node.users or node._erased or has_effect(node)):
            program.graph.erase_node(node)
            erase_unread(program, below)


_MAX_SWEEPS = 32


def _matches(pass_: Pass, program: Program) -> Iterator[Match]:
    for match in list(pass_.find(program)):
        if match.alive:
            yield match


def run_pipeline(
    pipeline: Sequence[Pass], program: Program, observer: Observer | None = None, *, strict: bool = False,
    check: bool = True,
) -> Program:  # fmt: skip
    """Run passes in order. A pass that fails is rolled back with a warning; `strict` raises its error instead."""
    check_order(pipeline)
    for pass_ in pipeline:
        try:
            program = run_pass(pass_, program, observer, check=check)
        except PassError as error:
            if strict:
                raise
            warnings.warn(f"graphopt: pass '{pass_.name}' was rolled back: {error}", RuntimeWarning, stacklevel=2)
    return program
