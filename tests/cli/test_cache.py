"""``graphopt cache``: what is kept of generated code."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from graphopt import artifacts
from tests.cli.conftest import Run, parsed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a graph and two stages."""
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAPHOPT_CACHE", raising=False)
    for key, kind in (("a", artifacts.CODE), ("b", artifacts.CODE), ("a", artifacts.PROGRAM)):
        artifacts.write(64 * key, kind, bytes(468))
    return tmp_path / "cache"


def test_shown_and_cleared(folder: Path, run: Run) -> None:
    assert run("cache").stdout.replace("\n", "") == f"{folder}: 1 graph, code of 2 stages, 1.5 kB"
    data = {"folder": str(folder), "cleared": False, "programs": 1, "codes": 2, "bytes": 1500}
    assert parsed(run("cache", "--json")) == data
    assert parsed(run("cache", "clear", "--json")) == {**data, "cleared": True}
    assert list(folder.iterdir()) == []
    assert run("cache", "clear").stdout.replace("\n", "") == f"{folder}: removed 0 graphs, code of 0 stages, 0 B"


def test_what_was_tuned_stays(folder: Path, run: Run) -> None:
    (folder / artifacts.TUNED).write_bytes(bytes(2000))
    result = run("cache", "clear")
    assert "What graphopt tune found, 2 kB, stays" in " ".join(result.stdout.split())
    assert [path.name for path in folder.iterdir()] == [artifacts.TUNED]


def test_switched_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", "0")
    assert "Nothing is kept" in run("cache").stdout
    assert parsed(run("cache", "--json"))["folder"] is None


def test_mistakes(run: Run) -> None:
    result = run("cache", "cler")
    assert result.exit_code == 2
    for word in ("'cler' is nothing that it can do", "clear"):
        assert word in result.stderr


def test_folders_and_sizes_that_are_none(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "none"))
    assert "nothing is kept yet" in run("cache").stdout
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "file"))
    result = run("cache")
    assert result.exit_code == 2 and "is not a folder" in result.stderr
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("GRAPHOPT_CACHE_BYTES", "many")
    result = run("cache")
    assert result.exit_code == 2 and "'many' is not a number of bytes" in result.stderr


def test_what_cannot_be_removed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("graphopt.artifacts.clear", refused)
    result = run("cache", "clear")
    assert result.exit_code == 2 and "Read-only file system" in result.stderr
