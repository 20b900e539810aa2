from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks import fuzz
from graphopt.errors import UsageError
from graphopt.passes import FoldConstants, RemoveDead, SimplifyIdentities
from graphopt.testing import Ran, sketch


def test_a_run_is_counted_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, cases = tmp_path / "state.json", tmp_path / "cases"
    options = ["--seed", "50", "--state", str(state), "--cases", str(cases)]
    assert fuzz.main(["--graphs", "3", *options]) == 0
    assert json.loads(state.read_text())["done"] == [[50, 53]]
    first = capsys.readouterr().out
    assert first.startswith("3 graphs (")
    assert fuzz.main(["--graphs", "3", *options]) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit, match="is of a run from seed 50"):
        fuzz.main(["--graphs", "5", "--seed", "1", "--state", str(state), "--cases", str(cases)])


def test_a_failure_leaves_a_small_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        sin = ops.aten.sin.default(x)
        cos = ops.aten.cos.default(sin)
        turned = ops.aten.transpose.int(cos, 0, 1)
        copy = ops.aten.clone.default(turned, memory_format=torch.contiguous_format)
        tanh = ops.aten.tanh.default(copy)
        return (tanh, sin)
    """
    program = sketch(body, x="f32[2, 3]", w="weight f32[3]").program
    passes = [RemoveDead(), SimplifyIdentities(), FoldConstants()]
    monkeypatch.setattr(fuzz, "case", lambda seed: fuzz.Case(seed, program, passes))
    monkeypatch.setattr(SimplifyIdentities, "legal", lambda self, program, match: None)
    tally = fuzz.run(7, tmp_path)
    ((seed, reason),) = tally.failures.items()
    assert (seed, tally.passes) == ("7", 3)
    assert "simplify_identities" in reason
    text = (tmp_path / "7.py").read_text()
    assert "# seed 7\n# passes: simplify_identities\n" in text
    assert text.count(" = ops.") <= 3
    assert f"seed 7: {reason}" in fuzz.table(tally)


def test_a_process_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        exitcode = -11

        def join(self) -> None: ...

    class Worker(fuzz._Worker):
        """A process of its own that dies of seed 3."""

        def start(self) -> None:
            self.pipe, self.process, self.sent = self, Process(), list[int]()  # type: ignore[assignment]

        def send(self, seeds: list[int] | None) -> None:
            self.sent = list(seeds or [])

        def recv(self) -> fuzz.Tally:
            if self.sent.pop(0) == 3:
                raise EOFError
            return fuzz.Tally(graphs=1)

    monkeypatch.setattr(fuzz, "_Worker", Worker)
    monkeypatch.setattr(fuzz, "wait", list)
    tally, done = fuzz.Tally(), list[int]()
    fuzz.run_all([2, 3, 4], 1, partial(fuzz.run, folder=tmp_path), tally, done.append)
    assert (tally.graphs, done) == (3, [2, 3, 4])
    assert tally.failures == {"3": "the process died with -11"}


def test_unusable_graphs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable(*args: object, **options: object) -> Ran:
        raise UsageError("the program cannot be run")

    monkeypatch.setattr(fuzz, "check_sequence", unusable)
    assert fuzz.run(1, None).unusable == 1
