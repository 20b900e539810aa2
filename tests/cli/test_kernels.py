"""``graphopt kernels``: what the TVM target generated for a step."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import Run, parsed

pytest.importorskip("tvm")

from graphopt.cli import kernels
from graphopt.targets.tvm.timing import KernelTime

PIPELINE = "tests.cli.factories:unconditional"
TINY = ("--steps", "2", "--repeats", "1")


def test_table(run: Run) -> None:
    result = run("kernels", PIPELINE, *TINY)
    assert result.exit_code == 0, result.output
    for word in ("Peak of this machine", "Kernels of the step", "conv2d", "group_norm", "of peak"):
        assert word in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def listed(width: int, found: list[KernelTime], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    file = io.StringIO()
    monkeypatch.setattr(kernels, "out", lambda: Console(file=file, width=width, highlight=False))
    session: Any = SimpleNamespace(title="some (Pipeline, 4 steps)")
    kernels._show(session, "unet", found, {"f32": 1e11}, [])
    return file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "left_out"), [(80, ("calls", "B/s")), (100, ())])
def test_a_kernel_is_a_line(width: int, left_out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    long = " + ".join(["scaled_dot_product_attention", "mul", "add"] * 9)
    found = [
        KernelTime(f"attention_{k}_pack", 12, 0.123 / k, 10**9 * (k < 3), 10**9, long * (k < 3)) for k in (1, 2, 3)
    ]
    lines = listed(width, found, monkeypatch)
    assert all(len(line) <= width for line in lines)
    (header,) = [line for line in lines if line.split()[:1] == ["kernel"]]
    columns = ("calls", "time", "share", "FLOP/s", "of peak", "B/s", "computes")
    assert tuple(name for name in columns if f" {name} " not in header) == left_out
    start = lines.index(header) + 2
    assert [line.split()[0] for line in lines[start : start + 3]] == [entry.name for entry in found]
    assert not any(line.strip() for line in lines[start + 3 :])


def test_one_kernel_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = listed(
        80, [KernelTime("linear_1", 1, 0.1, 10**9, 10**9, " + ".join(["mul", "add", "gelu"] * 9))], monkeypatch
    )
    assert "…" not in "".join(lines) and sum(line.count("gelu") for line in lines) == 9


def test_json_and_source(run: Run) -> None:
    data = parsed(run("kernels", PIPELINE, *TINY, "--json"))
    assert data["module"] == "unet" and data["peak_flops_per_second"] > 0
    busiest = max(data["kernels"], key=lambda kernel: kernel["flops"])
    assert busiest["computes"].endswith("conv2d") and busiest["calls"] >= 1 and busiest["share_of_peak"] > 0
    assert sum(kernel["seconds"] for kernel in data["kernels"]) > 0
    result = run("kernels", PIPELINE, *TINY, "--kernel", busiest["name"], "--source", "asm")
    assert result.exit_code == 0 and ".globl" in result.stdout and f"graphopt_{busiest['name']}" in result.stdout


def test_roofline(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "step.svg"
    result = run("kernels", PIPELINE, *TINY, "--roofline", str(file))
    assert result.exit_code == 0, result.output
    assert "step.svg" in result.stderr
    text = file.read_text(encoding="utf-8")
    assert text.count("<svg") == 1 and "main memory" in text and "of the time" in text
    assert 1 <= len(re.findall(r"<!-- [a-z0-9_]+_\d+ -->", text)) <= 8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--source", "c"), ("there is no source 'c'", "tir, ll or asm")),
        (("--kernel", "conv2d"), ("there is no kernel 'conv2d'",)),
        (("--roofline", "step.bmp"), ("cannot draw a '.bmp' file", ".svg, .png, .pdf")),
        (("--roofline", "nowhere/step.svg"), ("there is no folder nowhere",)),
        (("--module", "nope"), ("there is no compiled module 'nope'",)),
    ],
)
def test_mistakes(arguments: tuple[str, ...], expected: tuple[str, ...], run: Run) -> None:
    result = run("kernels", PIPELINE, *TINY, *arguments)
    assert result.exit_code == 2
    for word in expected:
        assert word in result.stderr
