"""``program → the program of a dump``: an edited dump in place of what the passes made, in a pipeline of passes.

A `Given` stands first in a pipeline, and passes that follow go on from the dump::

    graphopt.compile(pipe, pipeline=(Given("dumps/018_hoist.py"), Tabulate()), target="eager")

where: the Program is the one that the dump was made of: the same module, inputs, roles, shapes and results. All others,
    those of other modules and other shapes, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import fx

from graphopt.debug.dumps import load
from graphopt.errors import UsageError
from graphopt.ir.notation import describe
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Accuracy, Match, Observer, Pass, Refusal


@dataclass(frozen=True)
class Given(Pass):
    """Put the Program of a dump in place of the one at work; lossy, since an edit may change anything.

    Attributes
    ----------
    dump : path of the file.

    Raises
    ------
    UsageError : the dump cannot be read; by `program`, and in a pipeline as soon as a module is compiled.
    """

    dump: str

    accuracy: ClassVar[Accuracy] = "lossy"
    repeat: ClassVar[bool] = False

    @property
    def exploits(self) -> tuple[type, ...]:  # type: ignore[override]
        """What was assumed of the inputs when the dump was made, and is assumed again."""
        return tuple({type(known): None for known in self.program.relations})

    @cached_property
    def program(self) -> Program:
        """The Program of the dump."""
        return load(Path(self.dump))

    def find(self, program: Program) -> Iterable[Match]:
        if program.name == self.program.name:
            yield Match(program.output)

    def legal(self, program: Program, match: Match) -> Refusal | None:
        what = boundary(program, self.program)
        return Refusal(what, match.root) if what else None

    def rewrite(self, program: Program, match: Match) -> None:
        mine = self.program.copy()
        program.graph, program.root = mine.graph, mine.root


def boundary(captured: Program, given: Program) -> str | None:
    """How the boundary of a dump differs from that of the Program it is to replace; None where it does not."""
    if [entry.name for entry in captured.inputs] != [entry.name for entry in given.inputs]:
        names, other = ({entry.name for entry in program.inputs} for program in (captured, given))
        parts = [f"it lacks {', '.join(sorted(names - other))}"] if names - other else []
        parts += [f"it has {', '.join(sorted(other - names))}"] if other - names else []
        return f"the inputs of the dump are others: {' and '.join(parts) or 'their order differs'}"
    for was, now, old, new in zip(
        captured.inputs, given.inputs, captured.placeholders, given.placeholders, strict=True
    ):
        if was != now:
            return f"input {was.name} is {now.role} '{now.path}' in the dump, and {was.role} '{was.path}' in the model"
        if _value(old) != _value(new):
            return f"input {was.name} is {_value(new)} in the dump, and {_value(old)} in the model"
    if len(captured.results) != len(given.results):
        return f"the dump returns {len(given.results)} results, and the model {len(captured.results)}"
    for number, (first, second) in enumerate(zip(captured.results, given.results, strict=True)):
        if _value(first) != _value(second):
            return f"result {number} is {_value(second)} in the dump, and {_value(first)} in the model"
    return None


def _value(node: fx.Node | None) -> str:
    return "None" if node is None else describe(node.meta.get("val"), exact=True)


def check(captured: Program, given: Given) -> None:
    """Raise UsageError where a dump cannot stand in for a captured Program, with the line to look at."""
    what = boundary(captured, given.program)
    if what:
        lines = Path(given.dump).read_text(encoding="utf-8").splitlines()
        sought = "return" if what.startswith(("result", "the dump returns")) else "INPUTS"
        number = max((k for k, line in enumerate(lines, 1) if line.strip().startswith(sought)), default=1)
        raise UsageError(
            what,
            where=f"{given.dump}:{number}: {lines[number - 1].strip()}",
            hint="inputs and results are the model's own: an edit may change only what lies between",
        )


class Boundary(Observer):
    """Ends a compilation with `check` as soon as the Program begins that a dump is to replace."""

    def __init__(self, given: Given) -> None:
        self.given = given

    def program_begins(self, program: Program) -> None:
        mine = self.given.program
        if (program.name, program.relations) == (mine.name, mine.relations):
            check(program, self.given)
