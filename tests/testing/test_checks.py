from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from graphopt.errors import PassError, UsageError, VerificationError
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Pass, Refusal
from graphopt.passes import RemoveDead
from graphopt.testing import check_pass, check_sequence, sketch, trace
from graphopt.testing.checks import Checked

aten = torch.ops.aten

BODY = """
    add = ops.aten.add.Tensor(x, 1)
    sin = ops.aten.sin.default(add)
    noise = ops.aten.rand_like.default(x)
    mul = ops.aten.mul.Tensor(noise, 0)
    return (sin, mul)
"""


def example() -> Program:
    return sketch(BODY, x="f32[2, 3]").program


@dataclass(frozen=True)
class Faulty(Pass):
    """Fires at each sine, in a way that is wrong."""

    fault: str = "none"

    def find(self, program: Program) -> Iterable[Match]:
        if self.fault == "find":
            raise KeyError("lost")
        for node in program.calls(aten.sin.default):
            yield Match(node)

    def legal(self, program: Program, match: Match) -> Refusal | None:
        if self.fault == "reason":
            return Refusal("", match.root)
        return None if "faulty" not in match.root.meta.get("rules", ()) else Refusal("done already", match.root)

    def rewrite(self, program: Program, match: Match) -> None:
        FAULTS[self.fault](program, match)
        if self.fault != "again":
            program.touch(match.root)


def cosine(program: Program, match: Match) -> None:
    program.replace(match.root, program.call(aten.cos.default, *match.root.args, before=match.root))


def lose_noise(program: Program, match: Match) -> None:
    (noise,) = program.calls(aten.rand_like.default)
    program.replace(noise, program.call(aten.zeros_like.default, noise.args[0], before=noise))


def grow(program: Program, match: Match) -> None:
    negated = program.call(aten.neg.default, match.root.args[0], before=match.root)
    match.root.args = (program.call(aten.neg.default, negated, before=match.root),)


FLIPS = iter(range(1000))


def flip(program: Program, match: Match) -> None:
    if next(FLIPS) % 2:
        grow(program, match)


_original: list[Program] = []


def reach_back(program: Program, match: Match) -> None:
    next(iter(_original[0].calls())).args = (_original[0].placeholders[0], 1.0)


FAULTS: dict[str, Callable[[Program, Match], Any]] = {
    "none": lambda program, match: None, "cosine": cosine, "noise": lose_noise, "again": grow, "flip": flip,
    "input": reach_back,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cosine", r"not bitwise: result 0 differs"),
        ("again", "running the pass again fired again|32"),
        ("flip", "another Program each time"),
        ("input", "changed the Program it was given"),
        ("reason", "a refusal needs a reason"),
        ("find", "raised KeyError"),
    ],
)
def test_check_pass_finds(fault: str, message: str) -> None:
    program = example()
    _original[:] = [program]
    with pytest.raises(PassError, match=message):
        check_pass(Faulty(fault), program)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cosine", "not bitwise"),
        ("again", "fired again"),
        ("noise", "with an effect were"),
        ("input", "changed the Program it was given"),
        ("reason", "a refusal needs a reason"),
        ("find", "raised KeyError"),
    ],
)
def test_check_sequence_finds(fault: str, message: str) -> None:
    program = example()
    _original[:] = [program]
    with pytest.raises(PassError, match=message):
        check_sequence([Faulty(), Faulty(fault)] if fault == "reason" else [Faulty(fault)], program)


def test_an_error_shows_what_changed() -> None:
    with pytest.raises(VerificationError) as caught:
        check_pass(Faulty("cosine"), example())
    text = str(caught.value)
    assert "-sin = ops.aten.sin.default(add)  # f32[2, 3]" in text
    assert "+cos_default = ops.aten.cos.default(add)  # f32[2, 3]; by faulty" in text
    assert "where: faulty{fault='cosine'}, seed 0" in text


def test_what_is_right_passes() -> None:
    assert check_pass(Faulty(), example()).fired == 1
    assert check_sequence([Faulty(), Faulty()], example()).fired == {"faulty": 1}


def test_golden(tmp_path: Path) -> None:
    path = tmp_path / "golden" / "sines.txt"
    with pytest.raises(UsageError, match="no golden file"):
        check_pass(Faulty(), example(), golden=path)
    check_pass(Faulty(), example(), golden=path, update=True)
    assert path.read_text().splitlines()[1] == "sin = ops.aten.sin.default(add)  # f32[2, 3]"
    check_pass(Faulty(), example(), golden=path)
    path.write_text(path.read_text().replace("sin.default", "cos.default"))
    with pytest.raises(VerificationError, match="not that of the golden file") as caught:
        check_pass(Faulty(), example(), golden=path)
    assert "-sin = ops.aten.cos.default(add)  # f32[2, 3]" in str(caught.value)


def test_stale_stages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.ir import effects
    from graphopt.passes import FoldConstants

    program = sketch("y = ops.aten.cos.default(x)\nz = ops.aten.sin.default(y)\nreturn (z,)", x="f32[3]").program
    check_sequence([FoldConstants()], program, seed=1)
    monkeypatch.setattr(effects, "_SHAPE_READERS", effects._SHAPE_READERS | {aten.cos.default})
    monkeypatch.setattr("graphopt.ir.stages._available", lambda known, node: frozenset())
    y, z = program.calls()
    y.meta["placement"] = z.meta["placement"] = frozenset()
    with pytest.raises(VerificationError, match="kept stages are stale when state"):
        check_sequence([FoldConstants()], program, seed=1)


def test_a_program_that_cannot_be_run_is_the_users() -> None:
    program = sketch("y = ops.aten.embedding.default(w, i)\nreturn (y,)", w="weight f32[2, 2]", i="i64[9]").program
    with pytest.raises(UsageError, match="the program cannot be run"):
        check_sequence([], program)


def test_what_a_prompt_shows_is_short() -> None:
    program = sketch("a = ops.aten.mul.Tensor(x, w)\nreturn (a,)", x="f32[3]", w="weight f32[3]").program
    assert repr(program) == "Program('<sketch>', x: state; 1 weight, 1 operation)"
    checked = check_pass(RemoveDead(), program)
    assert repr(checked) == f"Checked(fired=0, refused: nowhere, {program!r})"
    refusals = [Refusal(reason, program.output) for reason in ("no", "no", "b", "c", "d")]
    assert repr(Checked(program, 2, refusals)) == (
        f"Checked(fired=2, refused: 'no' (2 times), 'b', 'c', and 1 more, {program!r})"
    )


def test_what_sketch_gives_can_be_checked_as_it_is() -> None:
    traced = sketch(BODY, x="f32[2, 3]")
    assert check_pass(RemoveDead(), traced).fired == check_pass(RemoveDead(), traced.program).fired
    assert check_sequence([RemoveDead()], traced).fired == check_sequence([RemoveDead()], traced.program).fired


@pytest.mark.parametrize("check", [check_pass, lambda pass_, program: check_sequence([pass_], program)])
def test_what_is_no_pass_and_no_program(check: Callable[[Any, Any], object]) -> None:
    with pytest.raises(UsageError, match=r"the class RemoveDead is not a pass\n.*check_.*\n.*: RemoveDead\(\)"):
        check(RemoveDead, example())
    with pytest.raises(UsageError, match=r"this str is not a Program\n.*check_.*\n.*sketch"):
        check(RemoveDead(), BODY)
    with pytest.raises(UsageError, match="the class RemoveDead is not a pass"):
        sketch(BODY, x="f32[2, 3]").rewritten(RemoveDead)  # type: ignore[arg-type]


def test_constants_keep_their_numbers() -> None:
    """They are the model's own tensors, whatever inputs a seed draws."""
    constant = torch.arange(64.0)
    program = trace(Constant(constant), torch.randn(4, 64)).program
    assert program.constants
    for seed in (0, 1, 16, 17):  # zeros of either sign, infinities
        check_sequence([RemoveDead()], program, seed=seed)
    assert torch.equal(constant, torch.arange(64.0))
    assert all(torch.equal(value, constant) for value in program.constants.values())


class Constant(torch.nn.Module):
    """Adds a tensor that is neither parameter nor buffer."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.held = [value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.held[0]
