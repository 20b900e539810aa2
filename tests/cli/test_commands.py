"""Every command, at the smallest settings that do all of its work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import graphopt
from graphopt.cli._grid import Column, _plain, amplified, grid
from graphopt.cli._options import passes_named
from graphopt.debug.figures import scaled
from graphopt.errors import UsageError
from graphopt.ir.rewrite import spell
from graphopt.passes import PASSES, Hoist
from tests.cli.conftest import Run, parsed

VERBS = (
    "demo", "run", "report", "explain", "graph", "profile", "trace", "diff", "bisect", "filmstrip", "passes", "cache",
    "tune",
)  # fmt: skip
TINY = ("--steps", "2", "--target", "eager")


def test_help_names_every_verb_and_gives_examples(run: Run) -> None:
    text = run("--help").stdout
    for verb in VERBS:
        assert verb in text
        assert "For example" in run(verb, "--help").stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"graphopt {graphopt.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, graphopt.cli.main; print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_passes(run: Run) -> None:
    listed = run("passes")
    assert listed.exit_code == 0
    for cls in PASSES:
        name = cls().name
        assert name in listed.stdout
        about = parsed(run("passes", name, "--json"))
        assert about["name"] == name
        assert "→" in about["equation"]
    data = parsed(run("passes", "--json"))
    assert {entry["name"] for entry in data["passes"]} >= {cls().name for cls in PASSES}
    assert data["pipelines"]["exact"] == [spell(pass_) for pass_ in graphopt.pipelines.exact]
    assert "eager" in data["targets"]
    assert all("`" not in entry["equation"] for entry in data["passes"])
    about = parsed(run("passes", "hoist", "--json"))
    assert about["options"]["max_bytes"] == Hoist().max_bytes
    text = run("passes", "hoist").stdout
    assert "`" not in text
    assert re.search(r"^where: .*\n( {4}\S.*\n)+because: .*\n {4}\S", text, re.MULTILINE)
    assert ">>> before = sketch('''\n" in text


def test_pass_lists_read_what_spell_writes() -> None:
    assert passes_named("exact") == graphopt.pipelines.exact
    assert passes_named(",".join(spell(pass_) for pass_ in graphopt.pipelines.exact)) == graphopt.pipelines.exact
    assert passes_named("none,remove_dead{}") == (PASSES_BY_NAME["remove_dead"](),)
    assert passes_named(None) is None


def test_a_pass_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
from dataclasses import dataclass
from graphopt import Pass

@dataclass(frozen=True)
class Mine(Pass):
    limit: int = 1
    def find(self, program): return ()
    def rewrite(self, program, match): ...
"""
    (tmp_path / "of_my_own.py").write_text(text, encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = passes_named(None, ["of_my_own:Mine{limit=3}"])
    assert found and found[:-2] == graphopt.pipelines.exact and spell(found[-2]) == "mine{limit=3}"
    assert [entry.name for entry in found[-2:]] == ["mine", "fold_constants"]  # what it makes of weights is folded too
    found = passes_named("of_my_own:Mine,remove_dead", ["of_my_own:Mine{limit=2}"])
    assert found and [spell(pass_) for pass_ in found] == ["mine{limit=2}", "remove_dead"]
    with pytest.raises(UsageError, match="'broken' cannot be imported: ZeroDivisionError: division by zero"):
        passes_named(None, ["broken:Mine"])


PASSES_BY_NAME = {cls().name: cls for cls in PASSES}


def test_run_saves_images(tmp_path: Path, run: Run, read_once: None) -> None:
    data = parsed(run("run", "emoji-unet", "--prompt", "a", "--prompt", "b", "--count", "2", "--no-compile", "--steps",
                      "2", "-o", str(tmp_path), "--json"))  # fmt: skip
    assert [(row["prompt"], row["seed"]) for row in data["images"]] == [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
    assert all(Image.open(row["file"]).size == (64, 64) for row in data["images"])
    assert data["report"] is None


def test_run_of_a_factory_compiles_and_gives_the_same_image(tmp_path: Path, run: Run) -> None:
    pictures = []
    for name, extra in (("plain", ["--no-compile"]), ("compiled", ["--target", "eager"])):
        result = run("run", "tests.cli.factories:unconditional", "--steps", "2", "-o", str(tmp_path / name), *extra)
        assert result.exit_code == 0, result.output
        assert "0000.png" in result.stdout
        pictures.append(np.asarray(Image.open(tmp_path / name / "0000.png")))
    assert (pictures[0] == pictures[1]).all()


def test_report(run: Run, read_once: None) -> None:
    result = run("report", "tests.cli.factories:unconditional", *TINY)
    assert result.exit_code == 0, result.output
    for word in ("Stages", "Passes on unet", "Weights", "Inputs", "sample", "timestep", "remove_dead"):
        assert word in result.stdout
    data = parsed(run("report", "tests.cli.factories:unconditional", *TINY, "--json"))
    variant = data["modules"][0]["variants"][0]
    assert variant["inputs"] == {"sample": "state", "timestep": "time"}
    assert 0 <= variant["idle_weight_bytes"] <= variant["weight_bytes"]
    assert sum(stage["nodes"] for stage in variant["stages"]) > 0


@pytest.mark.parametrize("name", ["emoji-unet", "emoji-dit"])
def test_demo(name: str, tmp_path: Path, run: Run, read_once: None) -> None:
    arguments = ("demo", "--pipeline", name, "--images", "2", "--batch", "1", *TINY, "-o", str(tmp_path))
    result = run(*arguments, *(["--json"] if name == "emoji-dit" else []))
    assert result.exit_code == 0, result.output
    for picture in ("original", "compiled", "difference", "side_by_side"):
        assert Image.open(tmp_path / name / f"{picture}.png").width > 128
    data = json.loads((tmp_path / "report.json").read_text())
    assert name != "emoji-dit" or json.loads(result.stdout) == data
    (entry,) = data["pipelines"]
    assert entry["images"] == 2
    assert entry["difference"]["largest_grey_levels"] <= 1
    assert entry["seconds_per_image"]["ratio"]["count"] == 2
    assert entry["energy"]["joules_per_image"]["original"] > 0
    assert entry["energy"]["source"]
    assert any(module["variants"] for module in entry["report"]["modules"])
    assert [line.partition(": ")[2] for line in result.stderr.splitlines() if line.startswith(f"{name}: ")] == [
        "loading", "first runs of the original", "compiling, first runs of the compiled", "batch 1 of 2, original",
        "batch 1 of 2, compiled", "batch 2 of 2, compiled", "batch 2 of 2, original",
    ]  # fmt: skip
    assert len(re.findall(r"^  took [\d.]+ m?s$", result.stderr, re.MULTILINE)) == 7
    assert "first call" in result.stderr and "compiled for target eager" in result.stderr
    if name == "emoji-unet":
        for word in ("time per image", "time per step", "energy per image", "Pictures", "Stages", "Passes on unet"):
            assert word in result.stdout


def test_difference_is_amplified_until_it_shows() -> None:
    before = np.zeros((1, 2, 2, 3), np.uint8)
    after = before.copy()
    assert amplified(before, after)[1] == 1
    after[0, 0, 0, 0] = 3
    apart, factor = amplified(before, after)
    assert (factor, apart.max()) == (64, 192)


def test_grid_holds_every_caption() -> None:
    pictures = np.zeros((5, 8, 8, 3), np.uint8)
    captions = ["short", "a caption of many words that must be broken and cut", "x" * 90, "", "é"]
    sheet = grid([Column(pictures, "left"), Column(pictures, "right")], captions, "title")
    assert sheet.width > 2 * 128


def test_captions_are_drawn_in_letters_the_font_has() -> None:
    assert _plain("piñata, man’s shoe, “café”") == 'pinata, man\'s shoe, "cafe"'


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5e15, "5 PB"), ("s0", "s0 B")],
)
def test_sizes_are_readable(value: object, text: str) -> None:
    assert scaled(value, "B") == text
