"""How far a compilation has come: which module, and which pass is at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.ir.program import Program
from graphopt.ir.rewrite import Observer, Pass
from graphopt.ir.stages import Part


class Progress(Observer):
    """Tells `say` what begins: ``unet, pass 3, hoist``; an empty text where sampling goes on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._name, self._number = "", 0

    def program_begins(self, program: Program) -> None:
        self._name, self._number = program.name, 0

    def pass_begins(self, pass_: Pass, program: Program) -> None:
        self._number += 1
        self.say(f"{self._name}, pass {self._number}, {pass_.name}")

    def program_ends(self, program: Program, parts: Sequence[Part]) -> None:
        self.say("")

    def build_begins(self, part: Part, target: str) -> None:
        self.say(f"{self._name}, {target} builds the stage {part.name}")

    def build_ends(self, part: Part, target: str) -> None:
        self.say("")
