"""``graphopt tune``: a search within a budget, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.cli.tune import seconds_of
from graphopt.errors import UsageError
from graphopt.targets.tvm.schedule import TORCH
from tests.cli.conftest import Run, parsed

pytest.importorskip("tvm")

PIPELINE = "tests.cli.factories:unconditional"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone."""
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAPHOPT_CACHE", raising=False)
    return tmp_path / "cache"


def test_a_search_that_goes_on(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.targets.tvm.tuning._SLICE", 0.0)
    data = parsed(run("tune", PIPELINE, "--steps", "2", "--budget", "2s", "--json"))
    tried = [kernel["tried"] for kernel in data["kernels"]]
    assert data["module"] == "unet" and data["threads"] >= 1 and data["database"].startswith(str(folder))
    assert 0 < sum(tried) < sum(kernel["candidates"] for kernel in data["kernels"])
    chosen = any(kernel["choice"] for kernel in data["kernels"])
    assert (data["default_step_seconds"] is not None) == (data["step_seconds"] is not None) == chosen
    assert all(kernel["call_seconds"] > 0 for kernel in data["kernels"] if kernel["tried"])
    result = run("tune", PIPELINE, "--steps", "2", "--budget", "0s")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for word in (
        "Kernels with a choice",
        "are left to torch by measurement",
        "candidates left: the next run goes on there",
    ):
        assert word in words
    assert f"{tried[0]} of {data['kernels'][0]['candidates']}" in result.stdout
    data = parsed(run("tune", PIPELINE, "--steps", "2", "--budget", "0s", "--again", "--json"))
    assert not any(kernel["tried"] for kernel in data["kernels"])


def test_kernels_says_what_was_chosen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every schedule wins but torch, whether or not the search comes to it in its time."""
    monkeypatch.setattr("graphopt.targets.tvm.tuning.compared", lambda _, new: None if new.choice == TORCH else 1e-9)
    result = run("tune", PIPELINE, "--steps", "2", "--budget", "1s")
    assert "Whole steps, in turns" in " ".join(result.stdout.split())
    data = parsed(run("kernels", PIPELINE, "--steps", "2", "--repeats", "1", "--json"))
    assert data["tuned"] > 0 and data["torch_by_measurement"] == 0
    result = run("kernels", PIPELINE, "--steps", "2", "--repeats", "1")
    assert "By measurement (graphopt tune)" in result.stdout


def test_budgets() -> None:
    texts = "90s", "5m", "1h", "0s", "1.5m", ".5 h", "7"
    assert [seconds_of(text) for text in texts] == [90, 300, 3600, 0, 90, 1800, 7]
    for text in ("", "m", "5d", "-1s", "1m30s", "inf"):
        with pytest.raises(UsageError, match="is not a time of 0s or more"):
            seconds_of(text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--budget", "soon"), ("'soon' is not a time", "90s, 5m or 1h")),
        (("--module", "nope"), ("there is no compiled module 'nope'",)),
    ],
)
def test_mistakes(arguments: tuple[str, ...], expected: tuple[str, ...], run: Run) -> None:
    result = run("tune", PIPELINE, "--steps", "2", *arguments)
    assert result.exit_code == 2
    for word in expected:
        assert word in result.stderr


def test_nowhere_to_keep_what_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is loaded, even a pipeline that is none."""
    monkeypatch.setenv("GRAPHOPT_CACHE", "0")
    result = run("tune", "no such pipeline", "--budget", "1s")
    assert result.exit_code == 2 and "what is found cannot be kept: there is no folder" in result.stderr


def test_an_interrupt_says_what_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graphopt.targets.tvm.tuning.Search.run", interrupted)
    result = run("tune", PIPELINE, "--steps", "2")
    assert result.exit_code and "what was found so far is kept" in " ".join(result.stderr.split())
