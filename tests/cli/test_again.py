"""What a command says to do next, done: with passes of one's own, and with all the options that were given."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from graphopt.cli._options import asked_for, check_pass, passes_named
from graphopt.cli._request import Request
from graphopt.errors import UsageError
from graphopt.passes import Hoist
from graphopt.plugins import spelled
from tests.cli.conftest import Run, parsed
from tests.cli.own_pass import CopyResult

PIPELINE = "tests.cli.factories:smallest"
OWN = "tests.cli.own_pass:CopyResult"
ABOUT = "about=({'a': '}, {'}, {'b': '1'})"


def test_a_pass_is_spelled_so_that_it_is_found_again() -> None:
    assert spelled(Hoist(max_bytes=7)) == "hoist{max_bytes=7}"
    for own in (CopyResult(), CopyResult(3, ({"a": "}, {"}, {"b": "it's"}))):
        text = f"remove_dead,{spelled(own)},hoist{{max_bytes=inf}}"
        found = passes_named(text)
        assert found is not None and found[1:] == (own, Hoist(max_bytes=float("inf")))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be used: many is no value"):
        passes_named("hoist{max_bytes=many}")


def test_a_pass_is_known_by_its_name_wherever_it_was_given() -> None:
    assert check_pass("copy_result", f"remove_dead,{OWN}{{times=2}}") == "copy_result"
    assert check_pass("copy_result", None, [f"{OWN}{{times=2}}"]) == "copy_result"
    with pytest.raises(UsageError, match="unknown pass 'copy_results'"):
        check_pass("copy_results", OWN)


def test_a_pass_of_ones_own_is_named_by_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from tests.cli.own_pass import *")
    for read in (check_pass, passes_named):
        with pytest.raises(UsageError) as raised:
            read("mine")
        assert "a pass in mine.py is named by module and class, mine:MyPass" in str(raised.value)
    with pytest.raises(UsageError, match="has no 'CopyResults'") as raised:
        passes_named("remove_dead", ["tests.cli.own_pass:CopyResults"])
    assert "(one of: CopyResult)" in str(raised.value)
    assert asked_for([f"{OWN}{{times=2}}", "hoist"]) == {"copy_result", "hoist"}


def test_options_are_those_that_differ_from_the_defaults() -> None:
    assert Request(PIPELINE, target="eager").options() == []
    assert Request(PIPELINE, steps=2, arg=("eta=0.5", "x=1"), passes=(OWN,), target="inductor").options() == [
        "--steps", "2", "--arg", "eta=0.5", "--arg", "x=1", "--target", "inductor", "--pass", OWN,
    ]  # fmt: skip


def test_what_trace_prints_runs(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my dumps"
    options = ("--steps", "2", "--pass-pipeline", f"{OWN}{{times=2,{ABOUT}}},remove_dead", "--module", "unet",
               "--pass", f"{OWN}{{times=3}}")  # fmt: skip
    result = run("trace", PIPELINE, *options, "-o", str(folder))
    assert result.exit_code == 0, result.output
    commands = [
        shlex.split(line.partition("  # ")[0])
        for line in re.findall(r"^  ((?:python|graphopt) .*)", result.stdout, re.M)
    ]
    assert [command[:2] for command in commands] == [
        ["python", str(folder / "001_copy_result.py")], ["graphopt", "diff"], ["graphopt", "run"],
        ["graphopt", "explain"],
    ]  # fmt: skip
    runpy.run_path(commands[0][1], run_name="__main__")
    assert "checksum" in capsys.readouterr().out
    assert "clone" in run(*commands[1][1:]).stdout
    assert run(*commands[2][1:], "-o", str(tmp_path / "images")).exit_code == 0
    explained = run(*commands[3][1:])
    assert explained.exit_code == 0 and "copy_result{times=3} on unet: pass 1 of 2" in explained.stdout
    assert commands[3][2:] == [PIPELINE, OWN, "--module", "unet", *options[:4], *options[6:]]

    journal = json.loads((folder / "journal.json").read_text())
    assert journal["passes"] == [f"{OWN}{{times=3}}", "remove_dead"]
    captured = str(folder / "000_captured.py")
    rest = run("run", "--from", captured, "--then", "rest", "-o", str(tmp_path / "rest"))
    assert rest.exit_code == 0, rest.output
    assert "then copy_result, remove_dead" in " ".join(rest.stderr.split())


def test_run_takes_a_pass(run: Run, tmp_path: Path) -> None:
    data = parsed(run("run", PIPELINE, "--steps", "1", "--target", "eager", "--pass-pipeline", "none", "--pass",
                      f"{OWN}{{times=2}}", "-o", str(tmp_path), "--json"))  # fmt: skip
    (made,) = data["report"]["modules"][0]["variants"][0]["passes"]
    assert (made["name"], made["fired"]) == ("copy_result{times=2}", 1)
    result = run("run", "--from", "x.py", "--pass", "hoist")
    assert result.exit_code == 2 and "--then hoist" in result.stderr


@pytest.mark.parametrize("name", ["copy_result", OWN])
def test_explain_leaves_the_options_that_were_given(name: str, run: Run) -> None:
    arguments = ("--steps", "1", "--pass-pipeline", f"{OWN}{{times=2}}", "--json")
    data = parsed(run("explain", PIPELINE, name, *arguments))
    assert [entry["name"] for entry in data["occurrences"]] == ["copy_result{times=2}"]


@pytest.mark.parametrize("format", ["json", "dot", "explorer"])
def test_json_of_a_graph_says_where_it_is(
    format: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = parsed(run("graph", PIPELINE, "--steps", "1", "--pass-pipeline", "none", "--format", format, "--json"))
    assert (data["file"], data["format"], data["module"]) == (f"graphopt-graph.{format}", format, "unet")
    assert (tmp_path / data["file"]).stat().st_size == data["bytes"]
