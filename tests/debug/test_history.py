from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch

import graphopt
from graphopt import Match, Pass, Program
from graphopt.debug.history import Compilation, Fired, Held, History, Place
from graphopt.ir.driver import run_pass, run_pipeline
from graphopt.ir.printer import dump
from graphopt.ir.stages import split
from graphopt.passes import FoldConstants, Hoist, MergeCommon, RemoveDead
from graphopt.testing import sketch
from tests.soundness import tiny

BODY = """
    unused = ops.aten.mul.Tensor(x, 2)
    one = ops.aten.sin.default(x)
    two = ops.aten.sin.default(x)
    add = ops.aten.add.Tensor(one, two)
    return (add,)
"""


@dataclass(frozen=True)
class Raising(Pass):
    """Raises at its first match."""

    limit: int = 3

    def find(self, program: Program) -> Iterable[Match]:
        yield Match(next(program.calls()))

    def rewrite(self, program: Program, match: Match) -> None:
        program.graph.erase_node(program.output)
        raise ValueError("planted")


def compiled(passes: Sequence[Pass], program: Program) -> Compilation:
    history = History()
    history.program_begins(program)
    result = run_pipeline(passes, program, history)
    history.program_ends(result, split(result))
    (compilation,) = history.compilations
    return compilation


def test_a_snapshot_per_pass_in_order() -> None:
    program = sketch(BODY, x="f32[3]").program
    found = compiled((RemoveDead(), MergeCommon(), Hoist(max_bytes=7)), program)
    assert [shot.slug for shot in found.snapshots] == [
        "000_captured", "001_remove_dead", "002_merge_common", "003_hoist"
    ]  # fmt: skip
    assert [shot.name for shot in found.snapshots][-1] == "hoist{max_bytes=7}"
    assert [shot.number for shot in found.snapshots] == [0, 1, 2, 3]
    assert [shot.accuracy for shot in found.snapshots] == ["", "bitwise", "bitwise", "bitwise"]
    assert [len(list(shot.program.calls())) for shot in found.snapshots] == [4, 3, 2, 2]
    assert found.captured is program
    assert found.result is found.snapshots[-1].program
    assert [part.name for part in found.parts] == ["step"]


def test_rewrites_with_what_they_removed_and_added() -> None:
    found = compiled((RemoveDead(), MergeCommon()), sketch(BODY, x="f32[3]").program)
    _, dead, merged = found.snapshots
    assert dead.fired == [Fired(Place("unused"), ("unused",), ())]
    assert merged.fired == [Fired(Place("two"), ("two",), ())]
    assert not dead.held


def test_places_name_the_module_and_the_source_line() -> None:
    program = sketch(BODY, x="f32[3]").program
    next(program.calls()).meta |= {"module": "block.0", "source": "model.py:3"}
    (fired,) = compiled((RemoveDead(),), program).snapshots[1].fired
    assert str(fired.place) == "unused  block.0  model.py:3"
    assert str(Place("x")) == "x"


def test_refusals_with_their_reason() -> None:
    body = """
        view = ops.aten.transpose.int(c, 0, 1)
        add = ops.aten.add.Tensor(x, view)
        return (add,)
    """
    found = compiled((Hoist(),), sketch(body, x="f32[3, 2]", c="condition f32[2, 3]").program)
    assert found.snapshots[1].held == [Held(Place("view"), "it is a view of an input: keeping it saves no work")]
    assert found.snapshots[1].fired == []


def test_a_pass_that_fails_leaves_the_program_before_it() -> None:
    program = sketch(BODY, x="f32[3]").program
    with pytest.warns(RuntimeWarning, match="'raising' was rolled back"):
        found = compiled((RemoveDead(), Raising(), MergeCommon()), program)
    _, before, failed, after = found.snapshots
    assert failed.error is not None and "planted" in failed.error
    assert failed.program is before.program
    assert [len(list(shot.program.calls())) for shot in (before, failed, after)] == [3, 3, 2]
    assert after.error is None


def test_earlier_programs_stay_as_they_were() -> None:
    program = sketch(BODY, x="f32[3]").program
    text = dump(program)
    found = compiled(graphopt.pipelines.exact, program)
    assert dump(found.captured) == text
    assert dump(found.snapshots[1].program) != text


def test_a_pass_run_by_itself() -> None:
    history = History()
    run_pass(RemoveDead(), sketch(BODY, x="f32[3]").program, history)
    assert history.compilations == []
    history.program_ends(sketch("return (x,)", x="f32[3]").program, [])
    assert [shot.slug for shot in history.last("<sketch>").snapshots] == ["000_captured", "001_remove_dead"]


def test_modules_by_name_the_newest_first() -> None:
    history = History()
    module = tiny.Small()
    graphopt.compile(module, target="eager", pipeline="bitwise", observers=[history])
    arguments = (torch.ones(1, 4, 8, 8), torch.tensor(3), torch.ones(1, 5, tiny.WIDTH))
    with torch.no_grad():
        module(*arguments)
        module(arguments[0][..., :4], *arguments[1:])
    first, second = history.compilations
    assert history.last("Small") is second
    assert first.captured.placeholders[-3].meta["val"].shape[-1] == 8
    assert second.captured.placeholders[-3].meta["val"].shape[-1] == 4
    assert second.targets["step"] == "eager"
    assert not second.failed
    with pytest.raises(KeyError, match="Smell"):
        history.last("Smell")


def test_a_compilation_begun_again_is_kept_as_it_ended() -> None:
    history = History()
    pipe = tiny.stable_diffusion()
    tiny.compiled(pipe, (FoldConstants(),), observers=[history])
    tiny.generate(pipe)
    assert {entry.captured.relations for entry in history.compilations} == {()}
    names = [entry.name for entry in history.compilations]
    assert names.count("unet") == 1
