from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from graphopt.errors import PassError, VerificationError
from graphopt.ir.printer import dump
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Observers, Pass, Refusal, check_order, run_pass, run_pipeline, spell
from graphopt.testing import Recorder, check_pass, sketch

aten = torch.ops.aten


@dataclass(frozen=True)
class SinToCos(Pass):
    """Wrong on purpose: same shapes, other numbers."""

    broken: str = ""
    limit: int = 9

    requires: ClassVar[tuple[str, ...]] = ("sines",)

    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls(aten.sin.default):
            yield Match(node)
            yield Match(node)  # void once the first has fired

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal("a sine of an input", match.root) if match.root.args[0] in program.placeholders else None

    def rewrite(self, program: Program, match: Match) -> None:
        if self.broken == "raises":
            raise ValueError("no cosine at hand")
        if self.broken == "shape":
            program.output.args = (tuple(program.placeholders) * 2,)
        program.replace(match.root, program.call(aten.cos.default, match.root.args[0], before=match.root))


@dataclass(frozen=True)
class MakeSines(Pass):
    """Ensures that there are sines, by believing it."""

    ensures: ClassVar[tuple[str, ...]] = ("sines",)

    def find(self, program: Program) -> Iterable[Match]:
        return ()

    def rewrite(self, program: Program, match: Match) -> None:
        raise AssertionError


def example() -> Program:
    body = "a = ops.aten.sin.default(x)\nb = ops.aten.sin.default(a)\nc = ops.aten.sin.default(b)\nreturn (c,)"
    return sketch(body, x="f32[3]").program


def test_fires_where_legal_and_records_the_rest_once() -> None:
    program, recorder, other = example(), Recorder(), Recorder()
    before = dump(program)
    after = run_pass(SinToCos(), program, Observers([recorder, other]))
    assert recorder.fired == other.fired == [("sin_to_cos", "b"), ("sin_to_cos", "c")]
    assert [(refusal.reason, refusal.node.name) for _, refusal in recorder.refusals] == [("a sine of an input", "a")]
    assert dump(program) == before
    assert [node.meta.get("rules") for node in after.calls()] == [None, ("sin_to_cos",), ("sin_to_cos",)]


@pytest.mark.parametrize(("broken", "error"), [("raises", "no cosine at hand"), ("shape", "the number of results")])
def test_a_failing_pass_is_rolled_back(broken: str, error: str) -> None:
    program = example()
    pipeline = (MakeSines(), SinToCos(broken))
    with pytest.raises(PassError, match=error):
        run_pipeline(pipeline, program, strict=True)
    with pytest.warns(RuntimeWarning, match="'sin_to_cos' was rolled back"):
        after = run_pipeline(pipeline, program)
    assert dump(after) == dump(program)


def test_order() -> None:
    check_order((MakeSines(), SinToCos()))
    with pytest.raises(PassError, match="move make_sines in front of sin_to_cos"):
        check_order((SinToCos(), MakeSines()))
    with pytest.raises(PassError, match="add a pass that ensures 'sines'"):
        check_order((SinToCos(),))


def test_spelling() -> None:
    assert spell(SinToCos()) == "sin_to_cos"
    assert spell(SinToCos("shape", limit=3)) == "sin_to_cos{broken='shape',limit=3}"


def test_check_pass_sees_wrong_numbers() -> None:
    with pytest.raises(VerificationError, match="not bitwise"):
        check_pass(SinToCos(), example())
