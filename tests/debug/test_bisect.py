"""The right pass and the right rewrite, in few runs, whatever is wrong with them."""

from __future__ import annotations

import contextlib
import io
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import graphopt
from benchmarks.faults import FAULTS, DroppedBias, Fault, Rig, WrongTranspose, planted
from graphopt import Match, Observer, Pass, Program
from graphopt.compile import try_out
from graphopt.debug.bisect import Bisection, Run, Sample, bisect
from graphopt.debug.film import film
from graphopt.debug.limit import Limit
from graphopt.debug.metrics import METRICS, Result
from graphopt.debug.reproduce import Reproduction, recorded, reproduce, write
from graphopt.errors import GraphoptError, PassError
from graphopt.ir.rewrite import Accuracy, pass_name
from graphopt.runtime.kept import Captures
from graphopt.testing import sketch
from tests.debug.rig import rig
from tests.soundness import tiny

aten = torch.ops.aten
LATENT = METRICS["latent"]


class Stack(torch.nn.Module):
    """Layers in a row, each with a bias and an activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(7))
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Small:
    """Samples a `Stack`: two calls, one on the result of the other."""

    def __init__(self) -> None:
        self.module, self.runs, self.captures = Stack(), 0, Captures()

    def __call__(self, passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        if passes is None:
            return self.sample()
        self.runs += 1
        try:
            try_out(self.module, tuple(passes), observers, self.captures)
            return self.sample()
        finally:
            graphopt.restore(self.module)

    def sample(self) -> Result:
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            result: Result = self.module(self.module(x)).numpy()
        return result


@dataclass(frozen=True)
class Scale(Pass):
    """``tanh(x)  →  tanh(x) * factor`` at the nodes named, and ``* 1`` at all others: as wrong as it is told to be."""

    nodes: tuple[str, ...] = ()
    factor: float = 2.0

    accuracy: ClassVar[Accuracy] = "rounding"
    repeat: ClassVar[bool] = False

    def find(self, program: Program) -> Iterable[Match]:
        yield from (Match(node) for node in program.calls(aten.tanh.default))

    def rewrite(self, program: Program, match: Match) -> None:
        node, users = match.root, list(match.root.users)
        factor = self.factor if node.name in self.nodes else 1.0
        scaled = program.call(aten.mul.Tensor, node, factor, before=node.next)
        for user in users:
            user.replace_input_with(node, scaled)


@dataclass(frozen=True)
class Unscale(Scale):
    """As `Scale`; another name."""


@dataclass(frozen=True)
class Nothing(Pass):
    """Never fires."""

    def find(self, program: Program) -> Iterable[Match]:
        return ()

    def rewrite(self, program: Program, match: Match) -> None:
        raise AssertionError


@dataclass(frozen=True)
class Broken(Scale):
    """Makes a Program that is none, when it may do all it wants."""

    def rewrite(self, program: Program, match: Match) -> None:
        super().rewrite(program, match)
        if match.root.name == "tanh_6":
            program.output.args = ((),)


@dataclass(frozen=True)
class Crashing(Scale):
    """Gives code that raises when it runs."""

    def rewrite(self, program: Program, match: Match) -> None:
        super().rewrite(program, match)
        if match.root.name in self.nodes:
            operator = aten.index_select.default
            ids = program.call(aten.full.default, [3], 9, dtype=torch.int64, device="cpu", pin_memory=False,
                               before=match.root.next)  # fmt: skip
            taken = program.call(operator, match.root, 0, ids, before=ids.next)
            (scaled,) = [user for user in match.root.users if user.target is aten.mul.Tensor]
            scaled.replace_input_with(match.root, taken)


def searched(passes: Sequence[Pass], sample: Sample | None = None, threshold: float = 1e-4) -> Bisection:
    return bisect(sample or Small(), passes, LATENT, threshold)


def bound(found: Bisection) -> int:
    """The most compiled runs that a search may take."""
    rewrites = found.fault.of if found.fault else 1
    return 3 + math.ceil(math.log2(max(1, len(found.passes)))) + math.ceil(math.log2(max(1, rewrites)))


# -- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("position", "node"), [(0, "tanh_3"), (2, "tanh"), (4, "tanh_6")])
def test_the_pass_and_the_rewrite(position: int, node: str) -> None:
    passes = [Nothing(), Unscale(), Nothing(), Unscale(), Nothing()]
    passes[position] = Scale((node,))
    sample = Small()
    found = searched(passes, sample)
    fault = found.fault
    assert fault is not None and fault.rewrite is not None and fault.attempt is not None and fault.alone is not None
    assert (fault.position, fault.pass_) == (position, Scale((node,)))
    assert (fault.rewrite.place.node, fault.attempt.name, fault.of) == (node, "Stack", 7)
    assert fault.without.good and not fault.with_.good and fault.alone.good
    assert fault.doubts == ()
    assert sample.runs == len(found.runs) <= bound(found)


def test_within_the_threshold_takes_one_run() -> None:
    sample = Small()
    found = searched([Scale(), Unscale()], sample)
    assert found.within and found.fault is None and found.all.value == 0
    assert sample.runs == 1


def test_the_pipeline_is_left_as_it_was() -> None:
    sample = Small()
    before = dict(sample.module.__dict__)
    searched([Scale(("tanh_2",))], sample)
    assert sample.module.__dict__ == before


def test_the_same_pass_twice() -> None:
    wrong = Scale(("tanh_1",))
    found = searched([Unscale(), wrong, wrong])  # one object in two places
    assert found.fault is not None and found.fault.position == 1
    assert "something else is wrong as well" in found.fault.doubts[0]


def test_two_faults_in_one_pass() -> None:
    found = searched([Scale(("tanh_2", "tanh_5"))])
    fault = found.fault
    assert fault is not None and fault.rewrite is not None and fault.alone is not None
    assert fault.rewrite.place.node in ("tanh_2", "tanh_5")
    assert not fault.alone.good
    assert "something else is wrong as well" in fault.doubts[0]


def test_a_later_pass_repairs_a_part() -> None:
    found = searched([Scale(("tanh_2",), 4.0), Unscale(("tanh_2",), 0.25), Scale(("tanh_4",))])
    assert found.fault is not None and found.fault.rewrite is not None
    assert found.fault.position in (0, 2)
    assert found.fault.without.good and not found.fault.with_.good


def test_two_passes_needed_together() -> None:
    """Each alone stays below the threshold."""
    found = searched([Scale(("tanh_6",), 1.06), Nothing(), Unscale(("tanh_6",), 1.06)], threshold=0.1)
    assert found.fault is not None and found.fault.position == 2
    assert found.fault.alone is not None and found.fault.alone.good


@pytest.mark.parametrize(
    ("wrong", "said"), [(Crashing(("tanh_3",)), "crashed: "), (Scale(("tanh_3",), math.nan), "not finite: 18 of 18")]
)
def test_a_run_without_a_result_is_a_bad_one(wrong: Pass, said: str) -> None:
    found = searched([Unscale(), wrong, Nothing()])
    assert found.fault is not None and found.fault.rewrite is not None
    assert (found.fault.position, found.fault.rewrite.place.node) == (1, "tanh_3")
    assert found.fault.with_.value is None and found.fault.with_.trouble.startswith(said)


def test_what_is_rolled_back_is_said() -> None:
    found = searched([Broken(), Scale()])
    assert found.within
    ((name, module, why),) = found.rolled_back
    assert (name, module) == ("broken", "Stack") and "number of results" in why


def test_a_pass_that_is_rolled_back_is_not_searched() -> None:
    found = searched([Broken(("tanh_1",)), Scale(("tanh_2",))])
    assert found.fault is not None and found.fault.position == 1
    assert [name for name, _, _ in found.rolled_back] == ["broken{nodes=('tanh_1',)}"]


def test_wrong_without_any_pass() -> None:
    class Wrong(Small):
        def __call__(self, passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
            return super().__call__(passes, observers) + (0 if passes is None else 1)

    found = searched([Scale()], Wrong())
    assert found.fault is None and not found.within
    assert found.doubts == ("it is off without any pass: the fault is in the capture, the stages or the target",)


def test_an_original_that_differs_from_run_to_run() -> None:
    def sample(passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        return torch.rand(3).numpy()

    assert "two runs of the original differ" in searched([], sample).doubts[0]


def test_an_original_that_is_not_finite() -> None:
    with pytest.raises(GraphoptError, match="the original's own result is not finite"):
        searched([Scale()], lambda passes, observers: np.array([math.nan]))


def test_what_the_original_raises_is_its_callers() -> None:
    def sample(passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        raise ValueError("no such scheduler")

    with pytest.raises(ValueError, match="no such scheduler"):
        searched([Scale()], sample)


def test_an_illegal_order() -> None:
    class Needing(Scale):
        requires = ("something",)

    with pytest.raises(PassError, match="requires 'something'"):
        searched([Needing()])


def test_runs_are_told_as_they_go() -> None:
    told: list[tuple[int, int, str]] = []

    def on_run(number: int, about: int, run: Run) -> None:
        told.append((number, about, run.what))

    bisect(Small(), [Nothing(), Scale(("tanh_1",))], LATENT, on_run=on_run)
    assert told[:3] == [(1, 8, "all passes"), (2, 7, "no pass"), (3, 7, "1 of 2 passes, to nothing")]
    assert told[-1] == (7, 7, "all but scale{nodes=('tanh_1',)} at tanh_1")


def test_a_limit_vetoes_what_is_beyond_it() -> None:
    for most in (0, 3, 7):
        limit = Limit(0, most=most)
        Small()([Scale()], [limit])
        assert [entry.place.node for entry in limit.done] == ["tanh", *(f"tanh_{k}" for k in range(1, 7))][:most]


# -- reproductions ---------------------------------------------------------------------------------------------------


def reproduction(found: Bisection, module: torch.nn.Module, again: Callable[[], Any]) -> Reproduction | str:
    fault = found.fault
    assert fault is not None and fault.attempt is not None
    assert fault.attempt.before is not None and fault.attempt.after is not None

    def record() -> Any:
        with recorded(module) as calls:
            again()
        return module, calls

    return reproduce(fault.attempt.before, fault.attempt.after, fault.pass_, record)


def test_a_reproduction_runs_by_itself(tmp_path: Path, golden: Any) -> None:
    sample = Small()
    found = searched([Scale(("tanh_3",))], sample)
    made = reproduction(found, sample.module, lambda: pytest.fail("seeded values show it"))
    assert isinstance(made, Reproduction) and made.seeded
    (path,) = write(made, tmp_path / "reproduction.py", "What rewrite 4 does.")
    golden(re.sub(r"\.py:\d+", ".py:LINE", path.read_text(encoding="utf-8")))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("before and after differ\n")
    assert "off by up to" in done.stdout


class Through(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("rows", [3, 300])
def test_values_of_the_run_where_seeded_ones_show_nothing(rows: int, tmp_path: Path) -> None:
    before = sketch("m = ops.aten.mul.Tensor(x, 1)\nreturn (m,)", x=f"f32[{rows}, 2]").program
    after = sketch("m = ops.aten.clamp.default(x, -9, 9)\nreturn (m,)", x=f"f32[{rows}, 2]").program
    calls: list[Any] = [((torch.full((rows, 2), value),), {}) for value in (0.5, 20.0)]
    made = reproduce(before, after, Scale(), lambda: (Through(), calls))
    assert isinstance(made, Reproduction) and not made.seeded
    paths = write(made, tmp_path / "reproduction.py", "What it does.")
    assert [path.suffix for path in paths] == [".py", ".safetensors"][: 1 + (rows > 30)]
    assert "off by up to 11 " in run_file(paths[0])


def test_no_reproduction_where_nothing_differs() -> None:
    program = sketch("m = ops.aten.mul.Tensor(x, 1)\nreturn (m,)", x="f32[3]").program
    same = sketch("m = ops.aten.div.Tensor(x, 1)\nreturn (m,)", x="f32[3]").program
    given: Any = (Through(), [((torch.ones(3),), {})])
    assert reproduce(program, same, Scale(), lambda: given) == (
        "its nodes give the same before and after, on seeded inputs and on those of the run"
    )
    assert reproduce(program, program.copy(), Scale(), lambda: given) == (
        "it changes no value, only the stage that computes it"
    )


def run_file(path: Path) -> str:
    """What the file prints; it must end with exit code 1."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert runpy.run_path(str(path))["main"]() == 1
    return said.getvalue()


# -- planted faults in diffusers pipelines ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: pass_name(kind))
@pytest.mark.slow
def test_a_planted_fault(kind: type[Fault], tmp_path: Path) -> None:
    find_planted(kind, 0, rig(tiny.stable_diffusion), tmp_path)


@pytest.mark.parametrize("kind", [DroppedBias, WrongTranspose], ids=lambda kind: pass_name(kind))
@pytest.mark.slow
def test_a_planted_fault_in_a_transformer(kind: type[Fault], tmp_path: Path) -> None:
    find_planted(kind, 1, rig(tiny.pixart), tmp_path)


def find_planted(kind: type[Fault], seed: int, sample: Rig, folder: Path) -> None:
    """The threshold is ten times what the same pass does where it makes no mistake."""
    exact = graphopt.pipelines.exact
    position = len(exact) // 2
    plant = planted(kind, exact, position, sample, seed)
    assert plant.places > 1
    threshold, before = 10 * max(LATENT.measure(sample(None, ()), plant.right), 1e-8), sample.runs
    found = bisect(sample, plant.passes, LATENT, threshold)
    fault = found.fault
    assert fault is not None and fault.rewrite is not None and fault.attempt is not None
    assert (fault.position, fault.attempt.name, fault.rewrite.place.node) == (position, plant.module, plant.node)
    assert fault.doubts == ()
    assert found.rolled_back == []
    assert sample.runs - before == len(found.runs) <= bound(found)
    made = reproduction(found, attrgetter(plant.module)(sample.pipe), lambda: sample(None, ()))
    assert isinstance(made, Reproduction), made
    assert "off by up to" in run_file(write(made, folder / "reproduction.py", "What it does.")[0])


# -- films -----------------------------------------------------------------------------------------------------------


def test_a_film_has_a_frame_per_pass_that_fires() -> None:
    sample = Small()
    shot = film(Images(sample), [Nothing(), Scale(), Broken(), Unscale(("tanh_2",), 1.5), Nothing()])
    assert [(frame.position, frame.fired) for frame in shot.frames] == [(0, 0), (2, 7), (4, 7)]
    assert [frame.largest for frame in shot.frames[:2]] == [0, 0]
    assert shot.frames[2].largest is not None and shot.frames[2].largest > 0
    assert shot.frames[0].run.value == math.inf
    assert shot.still == ("nothing",)
    assert [name for name, _, _ in shot.rolled_back] == ["broken"]
    assert sample.runs == 3


def test_a_film_without_passes() -> None:
    shot = film(Images(Small()), [])
    assert [frame.name for frame in shot.frames] == ["no passes"]


class Images:
    """Results as one image, 3 by 6 pixels."""

    def __init__(self, sample: Small) -> None:
        self.inner = sample

    def __call__(self, passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        return self.inner(passes, observers)[None, :, :, None] / 2 + 0.5
