"""How the fastest of several targets is found: whole calls over successive times, served by what is measured."""

from __future__ import annotations

import gc
import statistics
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch

import graphopt
from graphopt import pipelines
from graphopt.errors import TargetError, UsageError, VerificationError
from graphopt.ir.relations import Repeated
from graphopt.ir.stages import Part
from graphopt.passes import RemoveDead, Tabulate
from graphopt.runtime import race
from graphopt.runtime.installed import Installed
from graphopt.runtime.race import ORIGINAL, Race
from graphopt.targets import Eager, Kernel, Target, Tvm
from tests.racing import let_win
from tests.soundness.test_trajectories import guided, last, latents
from tests.soundness.tiny import EXPLOITING, Small, embeddings


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Denoiser(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.linear(sample) * timestep.reshape(-1, 1).to(sample.dtype).sin()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "timestep",
    [
        torch.tensor(7),
        torch.tensor(7).expand(2),
        torch.tensor(7).expand(1),
        torch.tensor([0.5]).expand(2),
        torch.tensor([7, 7]),
        torch.tensor([7]),
    ],
    ids=["number", "expanded", "expanded to one", "expanded float", "plain", "one"],
)
def test_the_race_captures_nothing(timestep: torch.Tensor) -> None:
    torch.manual_seed(0)
    module = Denoiser()
    graphopt.compile(module, target="auto")(torch.randn(2, 4), timestep)
    entry = module._compiled_call_impl
    assert isinstance(entry, Installed)
    assert len(entry.variants) == 1 and entry.variants[0].race is not None


def test_calls_of_the_race_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the report says of a stage is of the calls that were made: the race leaves neither counts nor entries."""
    monkeypatch.setattr(Race, "won", True)
    torch.manual_seed(0)
    module = Denoiser()
    graphopt.compile(module, pipeline=(Tabulate(),), target="auto")
    times = [torch.tensor(step) for step in (7, 5, 3, 1)]
    for time in (*times, *times):
        module(torch.randn(2, 4), time)
    stage = graphopt.report(module).stage("Denoiser", "schedule")
    assert (stage.hits, stage.misses, stage.entries) == (4, 4, 4)


def test_the_ratio_is_within_its_interval() -> None:
    """On a busy machine the times drift: medians of each side alone come from different pairs."""
    times = [(1.0, 0.9), (1.1, 1.0), (2.0, 1.9), (2.0, 0.95), (3.0, 2.8), (1.0, 0.95), (2.2, 2.0)]
    race = Race.of(times)
    assert race.pairs == 7
    assert race.low <= race.ratio <= race.high
    assert race.ratio == sorted(b / a for a, b in times)[3]
    assert not race.low <= statistics.median(b for _, b in times) / statistics.median(a for a, _ in times) <= race.high


class Counted(Eager):
    """Keeps weak references to the kernels that it made."""

    name: ClassVar[str] = "counted"
    pipeline: ClassVar[str] = "generated"

    def __init__(self) -> None:
        self.made: list[weakref.ref[Any]] = []

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        kernel = super().build(part, examples)

        def run(*values: Any) -> tuple[Any, ...]:
            return kernel(*values)

        self.made.append(weakref.ref(run))
        return run


class Wrong(Counted):
    name: ClassVar[str] = "wrong"

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        kernel = super().build(part, examples)
        return lambda *values: tuple(2 * value for value in kernel(*values))


class Failing(Counted):
    name: ClassVar[str] = "failing"

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        raise TargetError("it cannot")


CALL = torch.ones(2, 4), torch.tensor(7)


def raced(*targets: str | Target, **options: Any) -> tuple[Denoiser, Any]:
    """A module that was called once and has raced, and the report of its variant."""
    module = Denoiser()
    expected = module(*CALL)
    graphopt.compile(module, target=targets, **options)
    torch.testing.assert_close(module(*CALL), expected)
    torch.testing.assert_close(module(*CALL), expected)
    entry = module._compiled_call_impl
    assert isinstance(entry, Installed) and len(entry.variants) == 1
    return module, graphopt.report(module).modules[0].variants[0]


@pytest.mark.parametrize("winner", ["counted", "eager", ORIGINAL])
def test_the_fastest_serves_and_the_others_are_released(winner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    races, counted = let_win(monkeypatch, winner), Counted()
    module, found = raced(counted, "eager")
    assert races == [("counted", "eager")]
    assert found.original_seconds == pytest.approx(0.02 if winner != ORIGINAL else 0.01)
    assert {entry.target: entry.faster > 1 for entry in found.contenders} == {
        name: name == winner for name in ("counted", "eager")
    }
    gc.collect()
    assert (counted.made[0]() is None) == (winner == "eager")
    aside = graphopt.report(module).modules[0].asides
    if winner == ORIGINAL:
        assert found.runs.startswith("the original runs") and sum(aside.values()) == 1
    else:
        assert found.target == winner and found.stages[-1].name == "step" and not aside
        assert found.runs.startswith(f"runs compiled by {winner}: 2.00 times as fast")


def test_each_target_has_the_passes_that_suit_it_or_those_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    let_win(monkeypatch, "counted")
    names = [record.name for record in raced("eager", Counted())[1].passes]
    assert len(names) == len(pipelines.generated) and not any("pack_weights" in name for name in names)
    assert [record.name for record in raced("eager", Counted(), pipeline=(RemoveDead(),))[1].passes] == ["remove_dead"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [(Wrong(), "its result is off"), (Failing(), "it cannot")],
    ids=["wrong", "failing"],
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:graphopt")
def test_what_is_wrong_or_cannot_be_built_is_left_out(
    target: Target, reason: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    races = let_win(monkeypatch, target.name)
    monkeypatch.setattr(Race, "won", True)
    _, found = raced(*((target, "eager") if first else ("eager", target)))
    assert races == [("eager",)]
    assert found.target == "eager" and found.runs.startswith("runs compiled")
    assert reason in next(entry.left_out for entry in found.contenders if entry.target == target.name)
    assert f"{target.name} left out: " in str(found.measured())
    with pytest.raises((VerificationError, TargetError)):
        raced("eager", target, strict=True)


@pytest.mark.filterwarnings("ignore:graphopt")
def test_a_module_whose_compiled_calls_are_all_wrong_runs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    races = let_win(monkeypatch, "wrong")
    _, found = raced(Wrong(), type("Wronger", (Wrong,), {"name": "wronger"})())
    assert races == [] and found.runs.startswith("left to the module: its result is off")


def test_auto_generates_code_for_long_calls_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_out() -> str | None:
        module = graphopt.compile(Denoiser(), target="auto")
        module(*CALL)
        found = graphopt.report(module).modules[0].variants[0].contenders
        return next((entry.left_out for entry in found if entry.target == "tvm"), None)

    races = let_win(monkeypatch, "eager")
    monkeypatch.setattr(Tvm, "build", lambda *_: Eager().build(*_[1:]))
    monkeypatch.setattr(Tvm, "unavailable", lambda *_: "there is none")
    assert left_out() == "there is none"
    monkeypatch.setattr(Tvm, "unavailable", lambda *_: None)
    assert left_out() is None
    monkeypatch.setattr(race, "SHORTEST", 50.0)
    assert left_out() == "a call of the module takes less than 50000 ms"
    assert races == [("eager",), ("eager", "tvm"), ("eager",)]


def test_what_calls_show_later_is_built_by_the_target_that_won(monkeypatch: pytest.MonkeyPatch) -> None:
    races, counted = let_win(monkeypatch, "counted"), Counted()
    original, model = Small(), graphopt.compile(Small(), target=("eager", counted), pipeline=EXPLOITING)
    for prompt in (1, 2):
        ours, theirs = (last(guided(net, latents(), embeddings(prompt, 2))) for net in (model, original))
        torch.testing.assert_close(ours, theirs)
    call: Any = model._compiled_call_impl
    assert any(Repeated("sample", 2) in variant.relations for variant in call.variants)
    assert races[0] == ("eager", "counted") and set(races[1:]) <= {("counted",)}
    assert all(variant.built.target is counted for variant in call.variants)


def test_threads_that_call_during_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    races = let_win(monkeypatch, "counted")
    original, model = Small(), graphopt.compile(Small(), target=("eager", Counted()), pipeline=EXPLOITING, strict=True)
    found: dict[int, torch.Tensor] = {}
    together = threading.Barrier(3)

    def work(number: int) -> None:
        together.wait()
        with torch.no_grad():
            found[number] = model(latents(number), torch.tensor(7.0), embeddings(number))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert races == [("eager", "counted")]
    for number in range(3):
        torch.testing.assert_close(found[number], original(latents(number), torch.tensor(7.0), embeddings(number)))


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ((), r"\(\) is no target"),
        (7, "7 is no target"),
        (("eager", "auto"), "'auto' is none of several"),
        (("eager", "eager"), "'eager' is there 2 times"),
        (("eager", "eagre"), "did you mean 'eager'"),
        (("eager", 7), "7 is neither a name nor"),
    ],
)
def test_targets_that_are_none(target: Any, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        graphopt.compile(Denoiser(), target=target)


def test_rounds_begin_with_another_one_each() -> None:
    ran: list[tuple[str, int]] = []

    def run(name: str, number: int) -> float:
        ran.append((name, number))
        return {ORIGINAL: 3.0, "a": 2.0, "b": 1.0}[name]

    found = race.rounds(("a", "b"), run)
    assert found == [{ORIGINAL: 3.0, "a": 2.0, "b": 1.0}] * 5
    assert [name for name, _ in ran[3::3]] == [ORIGINAL, "a", "b", ORIGINAL, "a"]
    assert [number for _, number in ran[::3]] == [1, 2, 3, 4, 5, 6]


def test_one_beyond_doubt_is_preferred() -> None:
    contest = race.Contest()
    contest.add([{ORIGINAL: 1.0, "a": a, "b": 0.8} for a in (0.2, 0.3, 0.5, 1.1, 1.2)])
    assert contest.races["a"].ratio < contest.races["b"].ratio and contest.fastest == "b"
