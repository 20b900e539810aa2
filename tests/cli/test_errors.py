"""What users get wrong: one message that says what, where and what next, an exit code, and no traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt import pipelines, plugins
from graphopt.cli import _load, _options, _request
from tests.cli.conftest import Run

FACTORIES = "tests.cli.factories"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "emoji-unte", "--prompt", "x"], 2, r"no pipeline 'emoji-unte'.*did you mean 'emoji-unet'"),
        (
            ["report", "nowhere"],
            2,
            r"no pipeline 'nowhere'.*next: give a bundled one \(emoji-dit, emoji-unet\).*factory",
        ),
        (["run", "owner/name", "--prompt", "x"], 2, r"'owner/name' is no folder here.*hub.*give a folder"),
        (["run", "emoji-unet"], 2, r"needs a prompt.*--prompt"),
        (["run", "emoji-unet", "--prompt", "x", "--arg", "strenght=1"], 2, r"takes no argument 'strenght'"),
        (["run", "emoji-unet", "--prompt", "x", "--arg", "noise"], 2, r"'noise' is not key=value"),
        (["run", "emoji-unet", "--prompt", "x", "--arg", "eta=[1"], 2, r"not valid JSON.*--arg eta"),
        (["run", "emoji-unet", "--prompt", "x", "--dtype", "float12"], 2, r"dtype 'float12'.*float32"),
        (["run", "emoji-unet", "--prompt", "x", "--target", "eagre"], 2, r"unknown target 'eagre'.*'eager'"),
        (["run", "emoji-unet", "--prompt", "x", "--pass-pipeline", "exakt"], 2, r"'exakt'.*'exact'"),
        (["report", "emoji-unet", "--pass-pipeline", "hoist{max_byte=3}"], 2, r"no option 'max_byte'.*'max_bytes'\?"),
        (["report", "emoji-unet", "--pass-pipeline", "hoist{max_bytes='3'}"], 2, r"cannot be used: .* is a number"),
        (["report", "emoji-unet", "--pass-pipeline", "hoist{3}"], 2, r"cannot be used: .*option=value"),
        (["report", "emoji-unet", "--pass-pipeline", "hoist{max_bytes=}"], 2, r"options cannot be used"),
        (["report", "emoji-unet", "--pass", "hoits"], 2, r"unknown pass 'hoits'.*--pass.*'hoist'"),
        (["report", "emoji-unet", "--pass", "no_such_module:Mine"], 2, r"'no_such_module' cannot be imported"),
        (["report", "emoji-unet", "--pass", "graphopt.passes:Hoits"], 2, r"has no 'Hoits'.*did you mean 'Hoist'"),
        (["report", "emoji-unet", "--pass", "graphopt:Pass"], 2, r"'Pass' is not a pass.*dataclass"),
        (["report", "emoji-unet", "--pass", "graphopt:compile"], 2, r"'compile' is not a pass"),
        (["report", "emoji-unet", "--pass", "graphopt.passes:Hoist{max_byte=3}"], 2, r"no option 'max_byte'"),
        (["report", "emoji-unet", "--pass-pipeline", "exact,a:b:c"], 2, r"unknown pass or pipeline 'a:b:c'"),
        (["run", f"{FACTORIES}:failing"], 2, r"ValueError: there are no weights"),
        (["run", f"{FACTORIES}:unconditonal"], 2, r"has no 'unconditonal'.*did you mean 'unconditional'"),
        (["run", f"{FACTORIES}:not_callable"], 2, r"is a int, not a function"),
        (["run", f"{FACTORIES}:no_pipeline"], 2, r"returned a SimpleNamespace, not a diffusers pipeline"),
        (["run", "no_such_module:make"], 2, r"'no_such_module' cannot be imported"),
        (["demo", "--pipeline", "emoji-vit"], 2, r"'emoji-vit'.*did you mean 'emoji-dit'"),
        (["demo", "--captions", "absent.txt"], 2, r"captions cannot be read: No such file.*absent.txt"),
        (["demo", "--captions", "x", "--prompt", "y"], 2, r"not both"),
        (["demo", "--prompt", " "], 2, r"a prompt is empty"),
        (["demo", "--prompt", "a", "--prompt", "b", "--images", "1"], 2, r"2 captions, but only 1 images"),
        (["demo", "--steps", "0"], 2, r"--steps"),
        (["passes", "hoits"], 2, r"no pass 'hoits'"),
        (["passes", "--nonsense"], 2, r"--nonsense"),
        (["dmeo"], 2, r"no command 'dmeo'.*next: did you mean 'demo'\? \(one of: bisect, .*\); graphopt --help"),
        (["frobnicate", "x"], 2, r"no command 'frobnicate'.*next: one of: bisect, .*tune; graphopt --help"),
        (["report", "emoji-unet", "--pass", "hoist{max_bytes=-5}"], 2, r"max_bytes cannot be negative: -5.*hoist"),
        (["report", "emoji-unet", "--pass-pipeline", "tabulate{flops_per_byte=-inf}"], 2, r"flops_per_byte cannot be"),
        (["report", "emoji-unet", "--pass", "pack_weights{max_terms=-1}"], 2, r"max_terms cannot be negative: -1"),
        (
            ["explain", "emoji-unet", "hoist", "--module", "nope"],
            2,
            r"module 'nope'.*--module.*vae.decoder",
        ),
        (["trace", "emoji-unet", "--module", "unett"], 2, r"no compiled module 'unett'.*did you mean 'unet'"),
        (["graph", "emoji-unet", "--module", "vae.decodr"], 2, r"'vae.decodr'.*did you mean 'vae.decoder'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_says_what_where_and_what_next(
    arguments: list[str], code: int, expected: str, run: Run, read_once: None
) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert re.search(expected, " ".join(result.stderr.split())), result.stderr


@pytest.mark.parametrize("place", ["graphopt.cli.main", "torch"])
def test_an_interrupt_is_one_line(place: str) -> None:
    """Wherever it comes: while the command line is imported, or in the middle of a command."""
    code = (
        "import sys\n"
        "from graphopt.__main__ import main\n"
        "place = sys.argv.pop(1)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == place: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()"
    )
    command = [sys.executable, "-c", code, place, "report", "emoji-unet"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_module_is_checked_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(_request.Session, "sample", lambda *arguments, **call: pytest.fail("sampled"))
    for arguments in (["trace"], ["graph"], ["profile"], ["explain", "hoist"]):
        result = run(arguments[0], "emoji-unet", *arguments[1:], "--module", "nope")
        assert result.exit_code == 2 and "there is no compiled module 'nope'" in result.stderr


def test_folder_that_is_no_pipeline(tmp_path: Path, run: Run) -> None:
    result = run("report", str(tmp_path))
    assert result.exit_code == 2
    assert "has no model_index.json" in result.stderr
    (tmp_path / "model_index.json").write_text("{}")
    result = run("report", str(tmp_path))
    assert result.exit_code == 2
    assert "cannot be loaded as a diffusers pipeline" in result.stderr
    result = run("report", str(tmp_path / "model_index.json"))
    assert "is a file" in result.stderr


def test_empty_captions(tmp_path: Path, run: Run) -> None:
    (tmp_path / "captions.txt").write_text("\n\n")
    result = run("demo", "--captions", str(tmp_path / "captions.txt"))
    assert result.exit_code == 2
    assert "no captions" in result.stderr


@pytest.mark.parametrize("arguments", [("--debug", "passes", "hoits"), ("passes", "hoits", "--debug")])
def test_debug_shows_the_error_itself(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "UsageError"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "emoji-unet"),
        ("run", "emoji-unte", "--prompt", "x"),
        ("run", "emoji-unet", "--prompt", "x", "--target", "eagre"),
        ("report", "emoji-unet", "--pass-pipeline", "exakt"),
        ("demo", "--target", "eagre"),
        ("demo", "--pipeline", "emoji-vit"),
        ("trace", "emoji-unte"),
        ("explain", "emoji-unet", "hoits"),
        ("diff", "gone.py", "gone.py"),
    ],
    ids=" ".join,
)
def test_names_are_checked_before_torch_is_imported(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from graphopt.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert result.stdout == "2 False\n", result.stderr


def test_names_known_without_torch_are_those_there_are() -> None:
    assert set(_options._PIPELINES) == set(pipelines.PIPELINES)
    for name in (*plugins.passes(), *pipelines.PIPELINES):
        _options.check_names("auto", name)
    for name in plugins.targets():
        _options.check_names(name, None)


def test_an_argument_is_checked_before_weights_are_read(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(_load, "_from_pretrained", lambda *arguments: pytest.fail("weights were read"))
    assert run("run", "emoji-dit", "--prompt", "x", "--arg", "strenght=1").exit_code == 2
