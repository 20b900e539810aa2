"""Which instructions code is generated with: those of the CPU's name that the system offers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

from graphopt.ir.stages import split
from graphopt.targets.tvm import host, isa, winograd
from graphopt.targets.tvm.generate import Generated
from graphopt.testing import trace

AVX2 = """
pni ssse3 sse4_1 sse4_2 abm popcnt movbe pclmulqdq avx f16c fma bmi1 bmi2 avx2 sse sse2
"""
AVX512 = f"""
{AVX2} gfni vaes vpclmulqdq avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2
avx512_vnni avx512_bitalg avx512_vpopcntdq avx_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8
"""


def test_all_that_a_cpu_has_is_offered() -> None:
    assert isa.of("sapphirerapids", set(AVX512.split())) == isa.of("sapphirerapids")
    assert isa.of("sapphirerapids").bf16 and not isa.of("sapphirerapids").disabled


@pytest.mark.parametrize(
    ("hidden", "lanes", "registers"),
    [("avx512_bf16", 16, 32), ("avx512vl", 8, 16), ("avx512f", 8, 16), ("fma", 4, 16), ("avx2", 4, 16)],
)
def test_what_is_hidden_is_not_used(hidden: str, lanes: int, registers: int) -> None:
    found = isa.of("sapphirerapids", {*AVX512.split()} - {hidden})
    assert (found.lanes, found.registers, found.bf16) == (lanes, registers, False)
    assert hidden.replace("_", "") in found.disabled


def test_a_cpu_that_hides_its_widest_vectors_gets_code_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        f"processor : 0\nflags : {' '.join(AVX2.split())}\n\nprocessor : 1\nflags : none\n"
    )
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    found, whole = isa.of("sapphirerapids", host.instructions.__wrapped__()), isa.of("sapphirerapids")
    given = torch.randn(24, 24), torch.randn(32, 24)
    (part,) = split(trace(lambda x, w: F.gelu(F.linear(x, w)), *given).program)
    code = {cpu: Generated(cpu, part.graph, given).source("asm") for cpu in (found, whole)}
    widest = {cpu: set(re.findall(r"[xyz]mm", text)) for cpu, text in code.items()}
    assert widest == {found: {"xmm", "ymm"}, whole: {"xmm", "zmm", *widest[whole]}}


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    assert host.instructions.__wrapped__() is None
    assert isa.of("znver3", None).lanes == 8


def test_the_cpu_at_hand_has_what_code_is_generated_with() -> None:
    offered = host.instructions()
    if offered is None:
        pytest.skip("this system does not say what it offers")
    assert isa.detect().bf16 <= ("avx512_bf16" in offered)
    assert (isa.detect().lanes == 16) <= ("avx512f" in offered)
    assert (isa.detect().lanes >= 8) <= ("avx2" in offered)


# -- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"index0": "1 Data 48K", "index1": "1 Instruction 32K", "index2": "2 Unified 2048K"}, 2 << 20),
        ({"index1": "2 Instruction 64K", "index2": "2 Data 1M", "index3": "3 Unified 32M"}, 1 << 20),
        ({"index0": "1 Data 48K", "index3": "3 Unified 32M"}, None),
        ({"index2": "2 Unified many"}, None),
        ({"index2": "2 Unified"}, None),
        ({}, None),
    ],
)
def test_the_l2_cache(
    entries: dict[str, str], size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, text in entries.items():
        (tmp_path / index).mkdir()
        for name, value in zip(("level", "type", "size"), text.split(), strict=False):
            (tmp_path / index / name).write_text(f"{value}\n")
    monkeypatch.setattr(host, "CACHES", tmp_path)
    assert host.l2_cache.__wrapped__() == size


def test_a_larger_l2_cache_has_room_for_larger_tasks() -> None:
    assert [isa.Isa("any", 16, 32, l2=size << 10).l2_scale for size in (256, 512, 1280, 2048)] == [1, 1, 2, 4]
    cuts = [
        winograd.cut(winograd.Shape(isa.Isa("any", 16, 32, 2, l2=size << 10), 2, 256, (32, 32), 256, (1, 1), 4))
        for size in (512, 2048)
    ]
    assert cuts[0].groups < cuts[1].groups
