"""``graphopt graph``: the file it writes, what it prints, and what users get wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from graphopt import pipelines
from graphopt.cli import graph
from graphopt.debug.viz import FORMATS
from graphopt.ir.stages import STAGES
from tests.cli.conftest import Run, parsed

PIPELINE = "tests.cli.factories:unconditional"


def test_names_of_stages_are_those_of_the_compiler() -> None:
    assert tuple(STAGES) == graph._STAGES


def test_a_page(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "new" / "unet.html"
    about = parsed(run("graph", PIPELINE, "--steps", "2", "--seed", "3", "--after", "hoist", "-o", str(file), "--json"))
    assert about["module"] == "unet"
    assert about["passes"] == len(pipelines.exact)
    assert about["bytes"] == file.stat().st_size
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_document_on_standard_output(run: Run) -> None:
    result = run("graph", PIPELINE, "--steps", "3", "--stage", "step", "--after", "3", "--format", "json")
    found = json.loads(result.stdout)
    assert (found["steps"], found["calls"], found["show"]) == (3, 3, {"stage": "step", "after": 3})
    assert "unconditional" in found["pipeline"]
    assert [entry["name"].partition("{")[0] for entry in found["passes"][1:]] == [p.name for p in pipelines.exact]


def test_the_ending_of_the_file_decides(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "unet.DOT"
    result = run("graph", PIPELINE, "--steps", "2", "--after", "fold_constants", "--compare", "-o", str(file))
    assert result.exit_code == 0, result.output
    assert "unet.DOT: unet, " in result.stdout
    assert file.read_text(encoding="utf-8").startswith("digraph")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "htm"], r"unknown format 'htm'.*did you mean 'html'"),
        (["-o", "unet.jpg"], r"unknown format 'jpg'.*unet\.jpg"),
        (["-o", "."], r"this is a folder.*name a file"),
        (["--depth", "1"], r"--depth says nothing to html.*svg, png, dot"),
        (["--compare", "--format", "json"], r"--compare says nothing to json"),
        (["--stage", "step", "--open-explorer"], r"--stage says nothing to explorer"),
        (["--format", "svg", "--open-explorer"], r"cannot open svg"),
        (["--compare", "--after", "0", "--format", "dot"], r"nothing before the captured"),
        (["--stage", "steps"], r"unknown stage 'steps'.*did you mean 'step'"),
        (["--after", "hoits"], r"no pass 'hoits' runs.*did you mean 'hoist'"),
        (["--after", "99"], r"no pass '99' runs.*a number up to"),
        (["--after", "fold_updates"], r"no pass 'fold_updates' runs"),
        (["--depth", "-1"], r"--depth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_says_what_is_wrong_before_anything_runs(arguments: list[str], expected: str, run: Run) -> None:
    result = run("graph", PIPELINE, *arguments)
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert re.search(expected, text), text
    assert "compiling" not in text


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("003_hoist", r"no pass '003_hoist' runs.*did you mean 0\d\d_hoist"),
        ("remove_dead", r"'remove_dead' runs 2 times.*001_remove_dead or"),
    ],
)
def test_a_pass_is_named_by_what_tells_it_apart(after: str, expected: str, run: Run) -> None:
    result = run("graph", PIPELINE, "--after", after)
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert re.search(expected, text) and "compiling" not in text, text


def test_without_graphviz_nothing_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("graph", "no.such.module:anywhere", "--format", "svg")
    assert result.exit_code == 2
    assert "Graphviz" in result.output or "package graphviz" in result.output


def test_no_other_module_is_shown_in_the_denoisers_place(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("graphopt.cli._load.network_name", lambda pipe: "transformer")
    result = run("graph", PIPELINE, "--steps", "2", "-o", str(tmp_path / "unet.json"))
    assert result.exit_code == 1
    assert "the transformer was not compiled" in result.output and "unet" in result.output
    assert not list(tmp_path.iterdir())


def test_an_unknown_module(run: Run) -> None:
    result = run("graph", PIPELINE, "--steps", "2", "--module", "vae")
    assert result.exit_code == 2
    assert "there is no compiled module 'vae'" in result.output
    assert "one of: unet" in result.output


def test_every_format_is_named_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert not [name for name in FORMATS if f"`{name}`" not in text]
