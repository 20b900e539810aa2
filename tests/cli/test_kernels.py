"""``graphopt kernels``: what the TVM target generated for a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run, parsed

pytest.importorskip("tvm")

PIPELINE = "tests.cli.factories:unconditional"
TINY = ("--steps", "2", "--repeats", "1")


def test_table(run: Run) -> None:
    result = run("kernels", PIPELINE, *TINY)
    assert result.exit_code == 0, result.output
    for word in ("Peak of this machine", "Kernels of the step", "conv2d", "group_norm", "of peak"):
        assert word in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


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
