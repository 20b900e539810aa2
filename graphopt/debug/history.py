"""Every Program of a compilation, from the captured one to the last: what dumps, diffs, bisection and pictures read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from graphopt.errors import PassError
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Observer, Pass, Refusal, spell
from graphopt.ir.stages import Part


@dataclass(frozen=True)
class Place:
    """A node as the user knows it: its name in the Program, the submodule and the source line it came from."""

    node: str
    module: str = ""
    source: str = ""

    @classmethod
    def of(cls, node: fx.Node) -> Place:
        return cls(node.name, node.meta.get("module", ""), node.meta.get("source", ""))

    def __str__(self) -> str:
        return "  ".join(filter(None, (self.node, self.module, self.source)))


@dataclass(frozen=True)
class Fired:
    """One rewrite: where, and the names of the nodes that it removed and added."""

    place: Place
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """A place where a pass did not fire, and why."""

    place: Place
    reason: str


@dataclass
class Snapshot:
    """A Program after a pass, or as captured.

    Attributes
    ----------
    number : 0 as captured, then counting passes.
    name : the pass as the command line spells it; ``captured`` for the first.
    pass_ : None for the first.
    fired, held : rewrites and refusals, in order.
    seconds : that the pass took, verification included. It differs from run to run, everything else does not.
    error : why the pass was rolled back, or None; the Program is then the one before.
    """

    number: int
    name: str
    program: Program
    pass_: Pass | None = None
    fired: list[Fired] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    @property
    def accuracy(self) -> str:
        return self.pass_.accuracy if self.pass_ else ""

    @property
    def slug(self) -> str:
        """``018_hoist``: sorts as passes run, and names a file."""
        return f"{self.number:03}_{self.pass_.name if self.pass_ else self.name}"


@dataclass
class Compilation:
    """The way of one Program through a pipeline.

    Attributes
    ----------
    name : of the module, as the report names it.
    snapshots : the captured Program (with what was assumed of its inputs in front), then one after each pass.
    parts : its stages; empty until the passes are done.
    targets : what built each stage, by its name; ``failed`` are the targets that could not, with their reason.
    """

    name: str
    snapshots: list[Snapshot]
    parts: tuple[Part, ...] = ()
    targets: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def captured(self) -> Program:
        return self.snapshots[0].program

    @property
    def result(self) -> Program:
        return self.snapshots[-1].program


class History(Observer):
    """Keeps every Program of every compilation, in `compilations`, oldest first.

    A module is compiled once per shape, and once more when relations between its calls become known. One that was begun
    again without relations that no pass gained from is kept only as it ended. Programs refer to no weights' values.
    """

    def __init__(self) -> None:
        self.compilations: list[Compilation] = []
        self._begun: Compilation | None = None
        self._names: set[str] = set()
        self._start = 0.0

    def last(self, name: str) -> Compilation:
        """The newest compilation of the module called `name`. Raises KeyError when there is none."""
        for compilation in reversed(self.compilations):
            if compilation.name == name:
                return compilation
        raise KeyError(name)

    def program_begins(self, program: Program) -> None:
        self._begun = Compilation(program.name, [Snapshot(0, "captured", program)])

    def program_ends(self, program: Program, parts: Sequence[Part]) -> None:
        if self._begun is not None:
            self._begun.parts = tuple(parts)
            self.compilations.append(self._begun)

    def pass_begins(self, pass_: Pass, program: Program) -> None:
        if self._begun is None:  # a pass run by itself
            self._begun = Compilation(program.name, [Snapshot(0, "captured", program)])
        number = len(self._begun.snapshots)
        self._begun.snapshots.append(Snapshot(number, spell(pass_), program, pass_))
        self._names = _names(program)
        self._start = time.perf_counter()

    def rewrites(self, pass_: Pass, match: Match) -> None:
        self._newest.fired.append(Fired(Place.of(match.root)))

    def rewritten(self, pass_: Pass, match: Match, program: Program) -> None:
        names = _names(program)
        removed, added = tuple(sorted(self._names - names)), tuple(sorted(names - self._names))
        self._newest.fired[-1] = Fired(self._newest.fired[-1].place, removed, added)
        self._names = names

    def refuses(self, pass_: Pass, refusal: Refusal) -> None:
        self._newest.held.append(Held(Place.of(refusal.node), refusal.reason))

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None:
        self._newest.program, self._newest.seconds = after, time.perf_counter() - self._start

    def pass_fails(self, pass_: Pass, program: Program, error: PassError) -> None:
        self._newest.seconds, self._newest.error = time.perf_counter() - self._start, str(error)

    def build_ends(self, part: Part, target: str) -> None:
        if self._begun is not None:
            self._begun.targets[part.name] = target

    def build_fails(self, part: Part, target: str, error: Exception) -> None:
        if self._begun is not None:
            self._begun.failed[part.name] = f"{target}: {error}"

    @property
    def _newest(self) -> Snapshot:
        assert self._begun is not None
        return self._begun.snapshots[-1]


def _names(program: Program) -> set[str]:
    """Names of all nodes but the output, whose name is a copy's own."""
    return {node.name for node in program.graph.nodes if node.op != "output"}
