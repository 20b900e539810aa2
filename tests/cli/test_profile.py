"""``graphopt profile``, at the smallest settings that do all of its work."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.debug import machine
from graphopt.targets import TARGETS, Eager
from tests.cli.conftest import Run, parsed

PIPELINE = "tests.cli.factories:unconditional"
TINY = ("--steps", "2", "--repeats", "1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CEILING_SECONDS", 0.01)
    monkeypatch.setattr(machine, "_COPY", 1 << 20)


def test_tables(run: Run) -> None:
    result = run("profile", PIPELINE, *TINY, "--top", "3")
    assert result.exit_code == 0, result.output
    for word in ("FLOP/s", "Stages", "schedule", "step", "bit for bit", "The step by operator", "conv2d",
                 "The step by submodule", "others", "The 3 slowest nodes", "Rank correlation",
                 "misjudges most"):  # fmt: skip
        assert word in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_json_maps_nodes_to_seconds(run: Run) -> None:
    data = parsed(run("profile", PIPELINE, *TINY, "--json"))
    assert data["module"] == "unet" and data["machine"]["flops"] > 0
    stages = {stage["name"]: stage for stage in data["stages"]}
    assert stages["step"]["calls"] == 2 and stages["schedule"]["calls"] == 2
    assert stages["step"]["off"] == 0.0 and stages["step"]["target"] == "eager"
    nodes = {node["node"]: node for node in data["nodes"]}
    assert data["seconds"] == {name: node["seconds"] for name, node in nodes.items()}
    conv = next(node for node in nodes.values() if node["operator"] == "conv2d")
    assert conv["predicted"] > 0 and conv["module"] and conv["source"]
    assert sum(group["nodes"] for group in data["operators"]) == sum(n["stage"] == "step" for n in data["nodes"])
    assert sum(group["nodes"] for group in data["submodules"]) == sum(n["stage"] == "step" for n in data["nodes"])
    assert data["rank_correlation"] is None or -1 <= data["rank_correlation"] <= 1


def test_other_targets_are_timed_per_stage_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(Eager):
        name = "inductor"

    monkeypatch.setitem(TARGETS, "inductor", Whole())
    result = run("profile", PIPELINE, *TINY, "--target", "inductor")
    assert result.exit_code == 0, result.output
    assert "inductor fuses nodes" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--module", "unett"), ("there is no compiled module 'unett'", "did you mean 'unet'?")),
        (("--target", "induktor"), ("unknown target", "inductor")),
        (("--repeats", "0"), ("--repeats",)),
    ],
)
def test_mistakes(arguments: tuple[str, ...], expected: tuple[str, ...], run: Run) -> None:
    result = run("profile", PIPELINE, *TINY, *arguments)
    assert result.exit_code == 2
    for text in expected:
        assert text in result.output


def test_a_module_that_never_ran_compiled_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any, variant: Any, call: Any, args: Any, kwargs: Any) -> Any:
        self._reject(variant, "it is wrong on purpose")
        return self._original(args, kwargs)

    monkeypatch.setattr("graphopt.runtime.installed.Installed._first", none)
    with pytest.warns(RuntimeWarning, match="on purpose"):
        result = run("profile", PIPELINE, *TINY)
    assert result.exit_code == 1
    assert "unet made no compiled call" in result.output
