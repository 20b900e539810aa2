"""A pass that is registered nowhere: ``tests.cli.own_pass:CopyResult``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from graphopt import Match, Pass
from graphopt.ir.program import Program


@dataclass(frozen=True)
class CopyResult(Pass):
    """Copies the first result `times` times."""

    times: int = 1
    about: tuple[dict[str, str], ...] = ()

    repeat: ClassVar[bool] = False

    def find(self, program: Program) -> Iterable[Match]:
        yield Match(program.output)

    def rewrite(self, program: Program, match: Match) -> None:
        (first, *others) = program.results
        for _ in range(self.times):
            assert first is not None
            first = program.call(torch.ops.aten.clone.default, first, before=program.output)
        program.output.args = ((first, *others),)
        program.touch(program.output)
