"""A pass is one idea: its file stays short."""

from __future__ import annotations

from pathlib import Path

from tests.structure import checks


def test_graphopt() -> None:
    found = checks.check_pass_sizes(checks.ROOT / "graphopt")
    assert not found, "\n".join(found)


def test_finds_a_long_pass_and_only_that(tmp_path: Path) -> None:
    passes = tmp_path / "passes"
    passes.mkdir()
    for name, lines in {"short": 170, "long": 171, "base": 300, "_shared": 300, "__init__": 300}.items():
        (passes / f"{name}.py").write_text("x = 1\n" * lines)
    assert checks.check_pass_sizes(tmp_path) == ["passes/long.py: 171 lines, at most 170"]
