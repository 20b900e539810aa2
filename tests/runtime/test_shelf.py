"""Programs of earlier processes: used where they would come out the same, and nowhere else."""

from __future__ import annotations

import logging
import logging.handlers
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import graphopt
from graphopt import artifacts
from graphopt.compile import compiled_calls
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Accuracy, Match, Pass
from tests.structure.checks import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of this test alone."""
    place = tmp_path / "cache"
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(place))
    monkeypatch.setattr(artifacts, "_warned", [])
    return place


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is captured, as it happens."""
    found: list[str] = []
    capture = graphopt.compile.__globals__["capture"]

    def seen(module: Any, taker: Any, call: Any, roles: Any, name: str) -> Program:
        found.append(name)
        made: Program = capture(module, taker, call, roles, name)
        return made

    monkeypatch.setitem(graphopt.compile.__globals__, "capture", seen)
    return found


class Net(torch.nn.Module):
    """Counts its calls where the graph does not see it."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.linear, self.factor = torch.nn.Linear(4, 4), factor

    def forward(self, x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        LOG.debug("called")
        result: torch.Tensor = self.linear(x * self.factor) * t.cos() + prompt.sin() + 0 * x
        return result


LOG, SEEN = logging.getLogger("tests.shelf"), logging.handlers.BufferingHandler(1 << 20)  # which no digest looks at
LOG.setLevel(logging.DEBUG)
LOG.addHandler(SEEN)
LOG.propagate = False
GIVEN = torch.ones(2, 4), torch.tensor(3.0), torch.arange(4.0)


def run(module: torch.nn.Module, given: tuple[Any, ...] = GIVEN, **options: Any) -> torch.Tensor:
    """The first result of the module, compiled; and it is right."""
    with torch.no_grad():
        expected: torch.Tensor = module(*given)
        graphopt.compile(module, target="eager", **options)
        for _ in range(2):
            assert torch.allclose(module(*given), expected)
    return expected


def kinds() -> list[str]:
    return [artifact.kind for artifact in artifacts.kept()]


def test_the_second_of_two_alike_is_not_captured(captures: list[str]) -> None:
    run(Net())
    assert captures == ["Net"] and kinds() == [artifacts.PROGRAM] * 2
    run(Net())  # with other weights
    assert captures == ["Net"] and len(kinds()) == 2


def test_what_was_done_is_reported_all_the_same() -> None:
    one, other = Net(), Net()
    run(one)
    run(other)
    reports = [graphopt.report(module).to_dict() for module in (one, other)]
    for report in reports:
        for variant in report["modules"][0]["variants"]:
            variant.pop("seconds")
            for entry in variant["passes"]:
                entry.pop("seconds")
    assert reports[0] == reports[1]
    assert any(entry["fired"] for entry in reports[0]["modules"][0]["variants"][0]["passes"])


CHANGES: dict[str, Callable[[], Any]] = {
    "number": lambda: run(Net(3.0)),
    "shape": lambda: run(Net(), (torch.ones(3, 4), *GIVEN[1:])),
    "role": lambda: run(Net(), roles={"prompt": "condition"}),
    "training": lambda: run(Net().eval()),
    "dtype": lambda: run(Net().double(), tuple(value.double() for value in GIVEN)),
}


@pytest.mark.parametrize("again", CHANGES.values(), ids=CHANGES)
def test_another_call_or_module_is_captured(again: Callable[[], Any], captures: list[str]) -> None:
    run(Net())
    again()
    assert len(captures) == 2


def test_other_passes_are_run(captures: list[str]) -> None:
    run(Net())
    for passes, programs in (((), 3), ("bitwise", 4), ((), 4)):
        run(Net(), pipeline=passes)
        assert len(kinds()) == programs
    assert len(captures) == 1


@dataclass(frozen=True)
class Foreign(Pass):
    """A pass whose code nobody can tell."""

    name: ClassVar[str] = "foreign"
    accuracy: ClassVar[Accuracy] = "bitwise"

    def find(self, program: Program) -> Any:
        ran.append(1)
        return ()

    def legal(self, program: Program, match: Match) -> None:
        return None

    def rewrite(self, program: Program, match: Match) -> None: ...


ran: list[int] = []


def test_passes_of_others_run_each_time(captures: list[str]) -> None:
    for _ in range(2):
        ran.clear()
        run(Net(), pipeline=(Foreign(),))
        assert ran and len(captures) == 1 and kinds() == [artifacts.PROGRAM]


class Seen(graphopt.Observer):
    def __init__(self) -> None:
        self.passes = 0

    def pass_begins(self, pass_: Pass, program: Program) -> None:
        self.passes += 1


def test_observers_see_every_pass() -> None:
    run(Net())
    observer = Seen()
    run(Net(), observers=[observer])
    assert observer.passes == len(graphopt.pipelines.exact)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"nodes":', b'"knots":'), (b"aten.linear.default", b"aten.linear.defaults")],
    ids=["form", "name"],
)
def test_an_entry_of_another_form_is_made_again(old: bytes, new: bytes, captures: list[str]) -> None:
    run(Net())
    for artifact in artifacts.kept():
        content = artifacts.read(artifact.path.stem, artifact.kind)
        assert content is not None and old in content
        artifacts.write(artifact.path.stem, artifact.kind, content.replace(old, new))
    run(Net())
    assert len(captures) == 2
    run(Net())
    assert len(captures) == 2


def test_a_damaged_entry_is_made_again(captures: list[str]) -> None:
    run(Net())
    for artifact in artifacts.kept():
        artifact.path.write_bytes(artifact.path.read_bytes()[:-3])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        run(Net())
    assert len(captures) == 2


def test_a_wrong_entry_is_found_out_and_made_again(captures: list[str]) -> None:
    run(Net())
    for artifact in artifacts.kept():
        content = artifacts.read(artifact.path.stem, artifact.kind)
        assert content is not None
        artifacts.write(artifact.path.stem, artifact.kind, content.replace(b"aten.cos", b"aten.sin"))
    module = Net()
    with pytest.warns(RuntimeWarning, match="Net is captured again: what an earlier process kept.*its result is off"):
        run(module)  # each of its calls finds one of the two wrong
    with torch.no_grad():
        module(*GIVEN)
    (call,) = compiled_calls(module)
    assert len(call.variants) == 1 and not call.variants[0].wrong
    captures.clear()
    run(Net())
    assert captures == []


def test_without_a_folder_nothing_is_kept(captures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", "0")
    run(Net())
    run(Net())
    assert len(captures) == 2 and kinds() == []


def test_the_module_runs_once() -> None:
    for _ in range(2):
        module = Net()
        graphopt.compile(module, target="eager")
        SEEN.buffer.clear()
        with torch.no_grad():
            module(*GIVEN)
        assert len(SEEN.buffer) == 1  # to be seen, and compared with; what is logged while tracing is not heard


class Held(torch.nn.Module):
    """Has a tensor that is no buffer, which the graph takes as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.ones(2000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.held.sum()


def test_a_tensor_that_someone_holds_stays_that_tensor(captures: list[str]) -> None:
    for count in (1, 2):
        module = Held()
        run(module, (torch.ones(3),))
        module.held.fill_(2)
        assert module(torch.ones(3)).tolist() == [4001.0] * 3
        assert len(captures) == count


class Noisy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def test_random_numbers_are_those_of_one_call() -> None:
    x = torch.zeros(3)
    torch.manual_seed(1)
    expected = [Noisy()(x) for _ in range(3)]
    for _ in range(2):
        module = graphopt.compile(Noisy(), target="eager")
        torch.manual_seed(1)
        with torch.no_grad():
            for want in expected:
                assert torch.equal(module(x), want)


class Counting(torch.nn.Module):
    """Writes into its argument, which no graph may."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        return x * 2


@pytest.mark.filterwarnings("ignore:graphopt")
def test_a_module_that_writes_into_its_argument_does_so_once() -> None:
    module, x = graphopt.compile(Counting(), target="eager"), torch.zeros(3)
    for count in (1, 2):
        with torch.no_grad():
            assert module(x).tolist() == [2.0 * count] * 3
        assert x.tolist() == [count] * 3


class Filling(torch.nn.Module):
    """Fills a cache at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, float] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] not in self.known:
            self.known[x.shape[0]] = 0.5
        return x * self.known[x.shape[0]]


def test_a_cache_that_the_first_call_fills_is_captured_once(captures: list[str]) -> None:
    for _ in range(2):
        module = graphopt.compile(Filling(), target="eager")
        with torch.no_grad():
            for _ in range(3):
                assert module(torch.ones(2)).tolist() == [0.5, 0.5]
        (call,) = compiled_calls(module)
        assert call.asides.total() == 1 and len(call.variants) == 1
    assert len(captures) == 1


class Drifting(torch.nn.Module):
    """Changes with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x * self.count


def test_a_module_that_changes_at_every_call_serves_itself(captures: list[str]) -> None:
    module = graphopt.compile(Drifting(), target="eager")
    with torch.no_grad():
        assert [module(torch.ones(1)).item() for _ in range(6)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert captures == []


PROCESS = """
import sys, torch, graphopt
from graphopt import compile as _
import graphopt.capture.export as export
captured = []
graphopt.compile(torch.nn.Identity())
function = graphopt.compile.__globals__["capture"]
graphopt.compile.__globals__["capture"] = lambda *args: (captured.append(1), function(*args))[1]
torch.manual_seed(0)
model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
x = torch.randn(1, 4, 8)
with torch.no_grad():
    expected = model(x)
    graphopt.compile(model, target="eager", inputs=(x,))
    assert torch.allclose(model(x), expected, atol=1e-5)
print(len(captured))
"""


def test_another_process_captures_nothing(folder: Path) -> None:
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "GRAPHOPT_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", PROCESS], env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split()[-1])
    assert found == ["1", "0"]


def test_records_come_back_as_they_were() -> None:
    module, other = Net(), Net()
    run(module)
    run(other)
    before, after = (compiled_calls(entry)[0].variants[0].built for entry in (module, other))
    assert before.passes == after.passes and before.boundary == after.boundary
