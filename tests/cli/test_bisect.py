"""``graphopt bisect`` and ``graphopt filmstrip``: what they print, write and answer."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

import graphopt
from graphopt import plugins
from graphopt.cli import _bisect, _options
from graphopt.cli._grid import typeface, wrapped
from tests.cli import factories
from tests.cli.conftest import Run, parsed
from tests.goldens import Golden

TINY = ("tests.cli.factories:unconditional", "--steps", "2")
WRONG = "simplify_identities,wrong_padding{wrong='unet:conv2d_3'},merge_common"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of another package: right everywhere but in one place."""

    def entry_points(group: str) -> list[EntryPoint]:
        known = [EntryPoint("wrong_padding", "benchmarks.faults:WrongPadding", "graphopt.passes")]
        return [entry for entry in known if entry.group == group]

    monkeypatch.setattr(_options, "entry_points", entry_points)
    monkeypatch.setattr(plugins, "entry_points", entry_points)


def settled(text: str, folder: Path) -> str:
    """Without what differs from machine to machine and release to release: metrics, the folder, numbers of lines."""
    text = re.sub(r"\d+\.\d dB", "… dB", text.replace(str(folder), "FOLDER"))
    text = re.sub(r"\.py:\d+", ".py:LINE", text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_bisect(
    tmp_path: Path, run: Run, faulty: None, golden: Golden, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pipe = factories.unconditional()
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(factories, "unconditional", lambda: pipe)
    before = set(vars(pipe))
    result = run("bisect", *TINY, "--pass-pipeline", WRONG, "--threshold", "80", "-o", str(tmp_path))
    assert result.exit_code == 1, result.output
    golden(settled(result.stdout, tmp_path), "fault", ".txt")
    golden(settled(result.stderr, tmp_path), "progress", ".txt")
    assert Image.open(tmp_path / "side_by_side.png").width > 4 * 128
    golden(settled((tmp_path / "reproduction.py").read_text(encoding="utf-8"), tmp_path), "reproduction")
    with pytest.raises(graphopt.GraphoptError, match="not compiled"):
        graphopt.report(pipe)
    assert set(vars(pipe)) == before
    assert not pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("arguments", [("bisect", "emoji-unet"), ("filmstrip", "emoji-unet")])
def test_the_output_is_checked_before_anything_runs(arguments: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "x.png").mkdir()
    places = ("file", "file/below") if arguments[0] == "bisect" else ("x.png", "file/x.png")
    for place in places:
        result = run(*arguments, "-o", str(tmp_path / place))
        assert result.exit_code == 2
        assert result.stdout == "" and "--output" in result.stderr


def test_a_reproduction_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise KeyError("gone")

    monkeypatch.setattr(_bisect, "_pictures", fails)
    monkeypatch.setattr(_bisect, "_reproduction", fails)
    files = _bisect.save(cast(Any, None), cast(Any, SimpleNamespace(fault=object())), tmp_path)
    assert files == dict.fromkeys(("no_pictures", "no_reproduction"), "KeyError: 'gone'")


@pytest.mark.slow
def test_bisect_as_json(tmp_path: Path, run: Run, faulty: None) -> None:
    result = run("bisect", *TINY, "--pass-pipeline", WRONG, "--metric", "latent", "--threshold", "1e-4", "--json",
                 "-o", str(tmp_path))  # fmt: skip
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    fault = data["fault"]
    assert (fault["module"], fault["node"], fault["position"]) == ("unet", "conv2d_3", 2)
    assert fault["pass"].startswith("wrong_padding")
    assert fault["without"]["good"] and not fault["with"]["good"] and fault["all_but_it"]["good"]
    assert {entry["kind"] for entry in fault["changes"]} <= {"removed", "added", "changed"}
    assert data["rolled_back"] == data["doubts"] == fault["doubts"] == []
    assert all(Path(file).exists() for file in data["files"].values())


def test_bisect_within_the_threshold(tmp_path: Path, run: Run) -> None:
    result = run("bisect", *TINY, "--pass-pipeline", "remove_dead,simplify_views", "--pass", "remove_dead",
                 "-o", str(tmp_path / "none"))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "psnr equal, within the threshold (psnr at least 40 dB)" in " ".join(result.stdout.split())
    assert "remove_dead never fired" in " ".join(result.stdout.split())
    assert not (tmp_path / "none").exists()
    data = parsed(run("bisect", *TINY, "--pass-pipeline", "remove_dead", "--metric", "max", "--json"))
    assert data["within"] and data["fault"] is None and data["never_fired"] == ["remove_dead"]
    assert data["runs"] == [{"what": "all passes", "value": 0.0, "equal": False, "good": True, "trouble": ""}]


@pytest.mark.parametrize("name", ["merge_common", "pack_weights{max_terms=0}"])
def test_names_in_the_picture_are_those_of_the_passes(name: str) -> None:
    assert "".join(wrapped(name, typeface(13), 128)) == name


def test_filmstrip(tmp_path: Path, run: Run, golden: Golden) -> None:
    file = tmp_path / "film.png"
    given = ("filmstrip", *TINY, "--pass-pipeline", "remove_dead,simplify_identities,merge_linears", "-o", str(file))
    result = run(*given)
    assert result.exit_code == 0, result.output
    # Whether merged layers give the same to the last bit is the CPU's business; and columns are as wide as that.
    text = settled(result.stdout, tmp_path)
    assert re.search(r"merge_linears +1 +(equal +0|… dB +\d\S*)$", text, re.M)
    text = re.sub(r"(merge_linears +1) .*", r"\1 as it comes", text)
    golden(re.sub(r"──+", "──", re.sub(r"(?<=\S)  +", "  ", text)), suffix=".txt")
    width, height = Image.open(file).size
    assert width > 4 * 128 and height > 2 * 128
    data = parsed(run(*given, "--json"))
    assert [frame["pass"] for frame in data["frames"]] == [None, "simplify_identities", "merge_linears"]
    assert data["never_fired"] == ["remove_dead"]
    assert data["frames"][1]["equal"] and data["frames"][1]["psnr"] is None
    assert all(frame["largest_grey_levels"] <= 1 for frame in data["frames"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bisect", "emoji-unet", "--metric", "pnsr"), r"unknown metric 'pnsr'.*did you mean 'psnr'"),
        (("bisect", "emoji-unte"), r"no pipeline 'emoji-unte'.*'emoji-unet'"),
        (("bisect", "emoji-unet", "--pass-pipeline", "exakt"), r"'exakt'.*'exact'"),
        (("bisect", "emoji-unet", "--threshold", "much"), r"--threshold"),
        (("bisect", "emoji-unet", "--threshold", "nan"), r"the threshold is nan"),
        (("filmstrip", "emoji-unet", "-o", "film.gif"), r"'film.gif' is no \.png.*film\.png"),
        (("filmstrip", "emoji-unet", "--dtype", "float12"), r"dtype 'float12'"),
    ],
)
def test_what_users_get_wrong(arguments: tuple[str, ...], expected: str, run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.search(expected, " ".join(result.stderr.split())), result.stderr


@pytest.mark.parametrize(
    "arguments", [("bisect", "emoji-unet"), ("bisect", "x", "--metric", "ssim"), ("filmstrip", "x")]
)
def test_scikit_image_is_asked_for(arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "needs scikit-image" in result.stderr and "pip install 'graphopt[metrics]'" in result.stderr


def test_a_pipeline_that_crashes_by_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        pipe = factories.unconditional()
        pipe.unet.forward = None
        return pipe

    monkeypatch.setattr(factories, "broken", broken, raising=False)
    result = run("bisect", "tests.cli.factories:broken", "--steps", "2")
    assert result.exit_code == 1
    assert "TypeError" in result.stderr
