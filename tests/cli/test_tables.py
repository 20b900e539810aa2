"""Every table at 80 columns, the width of a pipe, a log or a CI: nothing is cut, and every label is there."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from graphopt.cli import _demo, _show
from graphopt.cli._app import out
from graphopt.cli._measure import Difference, Sampled
from graphopt.debug.statistics import PassRecord
from graphopt.energy import EstimateMeter
from graphopt.energy.best import Choice
from graphopt.energy.meter import Reading
from graphopt.runtime.report import ModuleReport, Report, StageReport, VariantReport

STAGES = ("weights", "request", "schedule", "request_schedule", "step")
PASSES = ("remove_dead", "simplify_identities", "hoist{max_bytes=1000000,flops_per_byte=3.5}", "tabulate")


def a_report(modules: tuple[str, ...] = ("StableDiffusionControlNet", "text_encoder", "vae.decoder")) -> Report:
    """Figures as wide as they get."""
    stages = [StageReport(name, "inductor", 12345, 987.6e9, 987.6e6, 987.6e6, 380, 20, 4, 987_600_000)
              for name in STAGES]  # fmt: skip
    passes = [
        PassRecord(name, "rounding", 1234, Counter({"a reason that is long " * 4: 5}), (12345, 11111),
                   (987.6e9, 888.8e9), (987.6e9, 987.6e6), (0, 12.3e6), (0, 987.6e6), 0.1,
                   "what went wrong " * 8 if k == 2 else None)
        for k, name in enumerate(PASSES)
    ]  # fmt: skip
    inputs = {"encoder_hidden_states": "condition", "added_cond_kwargs.time_ids_that_are_long.resolution": "condition"}
    runs = "no clear difference, so the original runs (interval 0.98 to 1.05)"
    variant = VariantReport(inputs, 12345, 1e12, 1e12, 987.6e6, 888.8e6, stages, passes, 1.0, 1.0, (0.98, 1.05), runs)
    return Report([ModuleReport(name, "Module", 400, [variant], {"gradients are recorded": 2}) for name in modules])


def a_result() -> _demo.Result:
    def sampled(factor: float) -> Sampled:
        pictures = np.zeros((4, 8, 8, 3), np.uint8)
        readings = [Reading(123.4, 1.0, "an estimate", False, 100.0) for _ in range(2)]
        seconds = [factor, 1.5 * factor]
        return Sampled([pictures] * 2, seconds, [4, 4], [[0.0123 * factor, 0.999]] * 2, readings)

    ours, theirs = sampled(9.9), sampled(8.8)
    choice = Choice(EstimateMeter(watts_per_core=5.0), {"rapl": "no permission " * 8})
    return _demo.Result("emoji-unet", "StableDiffusionPipeline", Path("graphopt-demo/emoji-unet"), "cpu", ours, theirs,
                        12.34, 56.78, Difference(1, 0.1, 10, 100), 64, choice, a_report(), 0.7)  # fmt: skip


def shown(show: Callable[[Console], None], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    return str(text)


TABLES: dict[str, tuple[Callable[[Console], None], tuple[str, ...]]] = {
    "stages and passes": (
        lambda console: _show.show_modules(console, a_report(), full=True),
        ("stage", "target", "nodes", "FLOPs", "bytes", "weights", "kept", "hits", "weights", "request", "schedule",
         "step", "StableDiffusionControlNet", "text_encoder", "vae.decoder", "inductor", "988 G", "988 MB",
         "380 of 400", "12345", "pass", "accuracy", "fired", "refused", "remove_dead", "simplify_identities",
         "tabulate", "as captured", "rounding", "failed", "889 G", "was rolled back"),
    ),
    "weights": (
        lambda console: _show.show_weights(console, a_report()),
        ("module", "in all", "read by the step", "not read by the step", "share", "text_encoder", "90.0%"),
    ),
    "inputs": (
        lambda console: _show.show_inputs(console, a_report()),
        ("module", "input", "role", "encoder_hidden_states", "condition"),
    ),
    "demo": (
        lambda console: _demo.show(console, a_result()),
        ("original", "compiled", "original / compiled", "time per image", "time per step of a batch",
         "energy per image", "estimated", "above rest", "warm-up", "not in the above", "1.125", "30.9 J"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_nothing_is_cut_at_80_columns(name: str) -> None:
    show, labels = TABLES[name]
    text = shown(show)
    words = _words(text)
    for label in labels:
        assert label in text or label in words, f"{label!r} is not in\n{text}"


def _words(text: str) -> str:
    """Folded cells put together: the text of each column of characters that no line crosses, read downwards."""
    cells = []
    for block in re.split(r"\n\s*\n|\n ─+", text):
        lines = [line.ljust(80) for line in block.splitlines()]
        gaps = [k for k in range(80) if all(line[k] == " " for line in lines)]
        for start, end in zip([-1, *gaps], [*gaps, 80], strict=True):
            cells.append(" ".join(" ".join(line[start + 1 : end] for line in lines).split()))
    return "\n".join(cells)


def test_passes_are_listed_whole() -> None:
    from typer.testing import CliRunner

    from graphopt import plugins
    from graphopt.cli.main import app
    from graphopt.cli.passes import describe

    text = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, ["passes"]).stdout
    about = [describe(name, cls) for name, cls in plugins.passes().items()]
    assert text.count("…") == sum(entry["equation"].count("…") for entry in about)
    for entry in about:
        assert re.search(rf"^ {entry['name']} +{entry['accuracy']} ", text, re.MULTILINE)
        for word in (*entry["equation"].split(), *entry["options"]):
            assert word in text
    for header in ("pass", "accuracy", "before → after"):
        assert header in text


def test_without_a_terminal_there_are_100_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert out().width == 100
    monkeypatch.setenv("COLUMNS", "72")
    assert out().width == 72
    out().print(Text("x"))
    assert capsys.readouterr().out == "x\n"
