"""`trace`, and what is done with its dumps: run, edited, fed back, compared."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from graphopt.debug.dumps import save, text
from graphopt.ir.printer import parse
from graphopt.testing import sketch
from tests.cli.conftest import Run, invoke, parsed
from tests.goldens import Golden
from tests.structure.checks import ROOT

PIPELINE = "tests.cli.factories:smallest"
SAMPLE = ("--steps", "2", "--pass-pipeline", "bitwise")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of dumps of the tiny pipeline, and what the command printed."""
    folder = tmp_path_factory.mktemp("trace") / "dumps"
    result = invoke("trace", PIPELINE, *SAMPLE, "-o", str(folder))
    assert result.exit_code == 0, result.output
    return folder, result.stdout.replace(str(folder), "dumps")


@pytest.fixture
def dumps(traced: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of them, to be changed."""
    return Path(shutil.copytree(traced[0], tmp_path / "dumps"))


def journal(folder: Path) -> Any:
    return json.loads((folder / "journal.json").read_text())


def without_lines(found: str) -> str:
    """Without the line numbers of other packages, which move from release to release."""
    return re.sub(r"(\.py):\d+", r"\1:N", found)


@pytest.mark.parametrize("verb", ["trace", "diff", "explain"])
def test_help_gives_examples(verb: str, run: Run) -> None:
    assert verb in run("--help").stdout
    assert "For example" in run(verb, "--help").stdout


def test_table(traced: tuple[Path, str], golden: Golden) -> None:
    golden(traced[1], suffix=".txt")


def test_journal_says_what_each_pass_did_and_how_to_make_it_again(traced: tuple[Path, str]) -> None:
    about = journal(traced[0])
    assert (about["pipeline"], about["module"], about["target"]) == (PIPELINE, "unet", "eager")
    assert about["request"] == {
        "prompt": None, "steps": 2, "seed": 0, "height": None, "width": None, "arg": [], "dtype": None,
    }  # fmt: skip
    entries = about["dumps"]
    assert [entry["file"] for entry in entries] == sorted(path.name for path in traced[0].glob("*.py"))
    assert [entry["name"] for entry in entries[1:]] == about["passes"]
    merged = next(entry for entry in entries if entry["name"] == "simplify_identities")
    assert merged["accuracy"] == "bitwise"
    assert merged["fired"][0].keys() == {"node", "module", "source", "removed", "added"}
    assert merged["fired"][0]["source"].startswith("diffusers/models/")
    assert merged["changes"]["removed"] > 0
    for entry in entries:
        for refusal in entry["refusals"]:
            assert refusal["places"][0].keys() == {"node", "module", "source"}
    nodes = [sum(stage["nodes"] for stage in entry["stages"].values()) for entry in entries]
    for before, after, entry in zip(nodes, nodes[1:], entries[1:], strict=False):
        assert after - before == entry["changes"]["added"] - entry["changes"]["removed"]


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes(
    traced: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    code = f"from graphopt.cli.main import app; app({['trace', PIPELINE, *SAMPLE, '-o', str(tmp_path / 'again')]!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    files = sorted(path.name for path in traced[0].iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (traced[0] / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
        assert str(ROOT) not in (traced[0] / name).read_text()


def test_every_dump_reads_back(traced: tuple[Path, str]) -> None:
    for path in sorted(traced[0].glob("*.py")):
        assert text(parse(path.read_text())) == path.read_text()


CHECKSUM = re.compile(r"checksum (\w+)")


def test_a_dump_runs(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(path: Path) -> str:
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    files = sorted(dumps.glob("*.py"))
    printed = run(files[0])
    assert re.search(r"unet of 000_captured.py, \d+ seeded inputs\n  result 0: f32\[1, 3, 8, 8\]  mean", printed)
    assert CHECKSUM.findall(printed) == CHECKSUM.findall(run(files[-1]))
    text = files[0].read_text().replace("    return (", '    print("here", conv2d.shape)\n    return (')
    files[0].write_text(text.replace("silu.default", "relu.default", 1))
    printed = run(files[0])
    assert printed.startswith("here torch.Size(")
    assert CHECKSUM.findall(printed) != CHECKSUM.findall(run(files[-1]))


@pytest.mark.slow
def test_a_dump_runs_from_anywhere(dumps: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(dumps / "000_captured.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert CHECKSUM.search(result.stdout)
    (dumps / "000_captured.py").write_text("import graphopt.cli.dumps as d\nd.evaluate(print, __file__)\n")
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 2 and "not a readable dump" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_json_is_the_journal(run: Run, tmp_path: Path) -> None:
    data = parsed(run("trace", PIPELINE, *SAMPLE, "-o", str(tmp_path), "--pass", "hoist{max_bytes=1}", "--json"))
    assert data == {"folder": str(tmp_path), **journal(tmp_path)}
    assert "hoist{max_bytes=1}" in data["passes"]


# -- what must not be lost -------------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_kept(run: Run, dumps: Path) -> None:
    (dumps / "notes.txt").write_text("mine")
    result = run("trace", PIPELINE, *SAMPLE, "-o", str(dumps))
    assert result.exit_code == 2
    assert "holds something else: notes.txt" in result.stderr and "--force" in result.stderr
    (dumps / "notes.txt").unlink()
    path = dumps / "001_remove_dead.py"
    path.write_text(path.read_text() + "\n# mine\n")
    result = run("trace", PIPELINE, *SAMPLE, "-o", str(dumps))
    assert result.exit_code == 2
    assert "holds dumps that were edited: 001_remove_dead.py" in result.stderr
    result = run("trace", PIPELINE, *SAMPLE, "-o", str(path))
    assert "this is a file, and dumps need a folder" in result.stderr


@pytest.mark.slow
def test_an_earlier_trace_is_replaced(run: Run, dumps: Path) -> None:
    assert run("trace", PIPELINE, "--steps", "1", "--pass-pipeline", "remove_dead", "-o", str(dumps)).exit_code == 0
    assert sorted(path.name for path in dumps.glob("*.py")) == ["000_captured.py", "001_remove_dead.py"]
    assert journal(dumps)["request"]["steps"] == 1


def test_an_unknown_module_is_refused_with_the_names_there_are(run: Run, tmp_path: Path) -> None:
    result = run("trace", PIPELINE, "--steps", "1", "--pass-pipeline", "none", "--module", "unte", "-o", str(tmp_path))
    assert result.exit_code == 2
    assert "there is no compiled module 'unte'" in result.stderr and "did you mean 'unet'" in result.stderr


# -- fed back --------------------------------------------------------------------------------------------------------


def image(run: Run, folder: Path, *arguments: str) -> Any:
    result = run("run", *arguments, "-o", str(folder))
    assert result.exit_code == 0, result.output
    return np.asarray(Image.open(folder / "0000.png")).astype(int)


def test_fed_back_unedited_it_draws_the_same(run: Run, dumps: Path, tmp_path: Path) -> None:
    original = image(run, tmp_path / "original", PIPELINE, "--steps", "2", "--no-compile")
    last = max(dumps.glob("*.py"))
    for number, arguments in enumerate(
        (["--from", str(dumps / "000_captured.py")], ["--from", str(last)],
         ["--from", str(dumps / "002_simplify_views.py"), "--then", "rest"])
    ):  # fmt: skip
        assert abs(image(run, tmp_path / str(number), *arguments) - original).max() <= 1


def test_fed_back_edited_it_draws_the_edit(run: Run, dumps: Path, tmp_path: Path) -> None:
    path = dumps / "003_simplify_identities.py"
    original = image(run, tmp_path / "original", PIPELINE, "--steps", "2", "--no-compile")
    path.write_text(path.read_text().replace("silu.default", "relu.default"))
    drawn = image(run, tmp_path / "edited", "--from", str(path))
    assert abs(drawn - original).max() > 1
    result = run("run", "--from", str(path), "--then", "rest", "-o", str(tmp_path / "rest"))
    assert "unet ran" in result.stderr and "(edited), then merge_common" in " ".join(result.stderr.split())
    assert abs(np.asarray(Image.open(tmp_path / "rest" / "0000.png")).astype(int) - drawn).max() <= 1


@pytest.mark.slow
def test_what_is_given_goes_over_the_journal(run: Run, dumps: Path, tmp_path: Path) -> None:
    path = str(dumps / "003_simplify_identities.py")
    arguments = (PIPELINE, "--from", path, "--steps", "3", "--seed", "5", "--count", "2", "-o", str(tmp_path / "x"))
    data = parsed(run("run", *arguments, "--json"))
    assert data["from"] == path
    assert [row["seed"] for row in data["images"]] == [5, 6]
    assert data["report"]["modules"][0]["calls"] == 6


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("aten.silu.default", "aten.sulu.default", r"no operator ops.aten.sulu.*000_captured.py:\d+:.*did you mean"),
        ("silu.default(group_norm)", "silu.default(group_nrm)", r"'group_nrm' is not defined.*:\d+:.*'group_norm'"),
        ("('state', 'sample'", "('condition', 'sample'", r"input sample is condition 'sample' in the dump.*:\d+"),
        ("return (", "return (sample, ", r"2 results are returned, and the model puts together 1.*:\d+: return"),
        (
            '"""graphopt program unet"""',
            '"""graphopt program unte"""',
            "the dump is of 'unte', and its journal of 'unet'",
        ),
    ],
)
def test_a_broken_edit_is_the_users_mistake(
    old: str, new: str, expected: str, run: Run, dumps: Path, tmp_path: Path
) -> None:
    path = dumps / "000_captured.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    result = run("run", "--from", str(path), "-o", str(tmp_path / "images"))
    assert result.exit_code == 2
    assert re.search(expected, " ".join(result.stderr.split())), result.stderr
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "gone.py"], "the dump cannot be read: No such file"),
        (["--from", "DUMP", "--no-compile"], "a dump runs compiled"),
        (["--from", "DUMP", "--pass-pipeline", "exact"], "named by --then"),
        (["--from", "DUMP", "--then", "hoits"], "unknown pass or pipeline 'hoits'"),
        (["--then", "rest"], "no dump to go on from"),
        ([], "there is no PIPELINE"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], expected: str, run: Run, traced: tuple[Path, str]
) -> None:
    dumped = str(traced[0] / "000_captured.py")
    result = run("run", *(dumped if entry == "DUMP" else entry for entry in arguments))
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.split())


@pytest.mark.slow
def test_without_a_journal_the_pipeline_must_be_named(run: Run, dumps: Path, tmp_path: Path) -> None:
    (dumps / "journal.json").unlink()
    path = str(dumps / "000_captured.py")
    result = run("run", "--from", path)
    assert result.exit_code == 2 and "no journal beside the dump" in result.stderr
    result = run("run", PIPELINE, "--from", path, "--then", "rest")
    assert result.exit_code == 2 and "which passes remain" in result.stderr
    assert run("run", PIPELINE, "--from", path, "--steps", "1", "-o", str(tmp_path / "x")).exit_code == 0
    (dumps / "journal.json").write_text("{}")
    assert "this is no journal" in run("run", "--from", path).stderr
    (dumps / "journal.json").write_text("{")
    assert "the journal cannot be read" in run("run", "--from", path).stderr


@pytest.mark.slow
def test_what_the_dump_assumes_is_shown_by_a_first_run(run: Run, dumps: Path, tmp_path: Path) -> None:
    path, arguments = dumps / "000_captured.py", ("-o", str(tmp_path / "x"))
    text = path.read_text()
    path.write_text(text.replace("\n}\n", "\n}\nRELATIONS = [('Paired', 2)]\n", 1))
    result = run("run", "--from", str(path), *arguments)
    assert result.exit_code == 0 and "a first run, which shows what the dump assumes" in result.stderr
    text = text.replace("('state', 'sample'", "('condition', 'sample'")
    path.write_text(text.replace("\n}\n", "\n}\nRELATIONS = [('Unchanged', 'sample')]\n", 1))
    result = run("run", "--from", str(path), "-o", str(tmp_path / "y"))
    assert result.exit_code == 1 and not (tmp_path / "y").exists()
    assert "no call was as the dump assumes: sample stays the same" in " ".join(result.stderr.split())


# -- compared --------------------------------------------------------------------------------------------------------


def test_diff_of_two_dumps(run: Run, traced: tuple[Path, str], golden: Golden) -> None:
    files = sorted(traced[0].glob("*.py"))
    result = run("diff", str(files[0]), str(files[-1]))
    assert result.exit_code == 1
    golden(without_lines(result.stdout), suffix=".txt")


def test_diff_of_equals(run: Run, traced: tuple[Path, str], dumps: Path) -> None:
    path = traced[0] / "000_captured.py"
    for other in (path, dumps, dumps / path.name):
        result = run("diff", str(path), str(other))
        assert (result.exit_code, result.stdout) == (0, "the programs do not differ\n")
    assert run("diff", str(traced[0]), str(dumps)).exit_code == 0
    data = parsed(run("diff", str(path), str(path), "--json"))
    assert data["equal"] is True and data["changes"] == []


def test_diff_as_json(run: Run, traced: tuple[Path, str]) -> None:
    files = sorted(traced[0].glob("*.py"))
    result = run("diff", str(files[2]), str(files[3]), "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["counts"] == journal(traced[0])["dumps"][3]["changes"]
    assert len(data["changes"]) == sum(data["counts"].values())
    assert data["stages"]["step"][0]["nodes"] - data["stages"]["step"][1]["nodes"] == data["counts"]["removed"]


def test_diff_of_folders(run: Run, traced: tuple[Path, str], dumps: Path, golden: Golden) -> None:
    path = dumps / "002_simplify_views.py"
    path.write_text(path.read_text().replace("silu.default", "relu.default", 1))
    (dumps / "001_remove_dead.py").unlink()
    result = run("diff", str(traced[0]), str(dumps))
    assert result.exit_code == 1
    text = result.stdout.replace(str(traced[0]), "a").replace(str(dumps), "b")
    golden("\n".join(map(str.rstrip, text.splitlines())) + "\n", suffix=".txt")  # padding depends on the folders' names
    data = json.loads(run("diff", str(traced[0]), str(dumps), "--json").stdout)
    assert data["only"] == {str(traced[0]): ["001_remove_dead.py"], str(dumps): []}


def test_diff_of_one_folder_goes_pass_by_pass(run: Run, traced: tuple[Path, str], golden: Golden) -> None:
    result = run("diff", str(traced[0]))
    assert result.exit_code == 1
    golden(result.stdout, suffix=".txt")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gone.py", "gone.py"], "there is no such file or folder"),
        (["DUMP"], "one dump has nothing to be compared with"),
        (["EMPTY"], "there are no dumps in this folder"),
        (["DUMP", "EMPTY"], "the dump cannot be read: No such file"),
    ],
)
def test_diff_in_trouble(
    arguments: list[str], expected: str, run: Run, traced: tuple[Path, str], tmp_path: Path
) -> None:
    places = {"DUMP": str(traced[0] / "000_captured.py"), "EMPTY": str(tmp_path)}
    result = run("diff", *(places.get(entry, entry) for entry in arguments))
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.split())


def test_diff_compares_values_of_constants(run: Run, tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        program = sketch("y = ops.aten.mul.Tensor(x, w)\nreturn (y,)", x="f32[3]", w="weight f32[3]").program
        program.inputs = (program.inputs[0], dataclasses.replace(program.inputs[1], path=""))
        program.constants = {"w": torch.full((3,), value)}
        save(program, tmp_path / name / "000_captured.py")
    result = run("diff", *(str(tmp_path / name / "000_captured.py") for name in ("a", "b")))
    assert result.exit_code == 1
    assert "w.flatten()[0] = 2.0  # 3 of 3 values differ" in result.stdout
    (tmp_path / "b" / "constants.safetensors").unlink()
    result = run("diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert result.exit_code == 0 and "constants are not compared" in result.stderr
