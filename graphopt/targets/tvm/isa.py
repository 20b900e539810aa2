"""What the CPU offers to generated code: how wide its vectors are, and how many of them it holds in registers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Isa:
    """Instructions that kernels are generated for.

    Attributes
    ----------
    cpu : LLVM's name of the CPU.
    lanes : float32 numbers in a vector.
    registers : vector registers.
    cores : that the process may use: large tasks are cut so that none is left over.
    bf16 : whether it multiplies bfloat16, 16 lanes of two (AVX512-BF16).
    """

    cpu: str
    lanes: int
    registers: int
    cores: int = 1
    bf16: bool = False

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the block of sums that matrix multiplication keeps in registers.

        Beside the sums the registers hold a row of vectors of one factor and one broadcast number of the other:
        6 · 4 + 4 + 1 of 32, or 6 · 2 + 2 + 1 of 16.
        """
        return 6, (4 if self.registers >= 32 else 2) * self.lanes

    def target(self) -> Any:
        """TVM's description of the CPU."""
        import tvm

        return tvm.target.Target({"kind": "llvm", "mcpu": self.cpu})


def cores() -> int:
    """CPUs that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def detect() -> Isa:
    """The CPU at hand."""
    from tvm.target import codegen

    cpu = str(codegen.llvm_get_system_cpu())
    return of(cpu)


def of(cpu: str) -> Isa:
    """A CPU by LLVM's name; one that LLVM does not know has what every x86-64 has."""
    import tvm

    target, here = tvm.target.Target({"kind": "llvm", "mcpu": cpu}), cores()

    def has(feature: str) -> bool:
        return bool(tvm.target.codegen.target_has_features(feature, target))

    if has("avx512f") and has("avx512vl"):
        return Isa(cpu, 16, 32, here, has("avx512bf16"))
    if has("avx2") and has("fma"):
        return Isa(cpu, 8, 16, here)
    return Isa(cpu, 4, 16, here)
