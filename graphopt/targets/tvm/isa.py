"""What the CPU offers to generated code: its vectors, how many of them it holds in registers, and caches."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import host

_L2 = 512 << 10
# Instructions that code for a CPU of some name may use, by LLVM's names, and Linux's names where they are not alike.
_APX = ("egpr", "ndd", "nf", "ccmp", "ppx", "push2pop2", "zu")
_USED = re.compile(
    r"avx|amx|sse|ssse|fma|xop|f16c|bmi|lzcnt|popcnt|movbe|gfni|vaes|vpclmulqdq|pclmul|tbm|lwp|cmpccxadd|"
    rf"({'|'.join(_APX)})$"
)
_LINUX = {**dict.fromkeys(_APX, "apx"), "bmi": "bmi1", "sse3": "pni", "lzcnt": "abm", "pclmul": "pclmulqdq"}


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
    l2 : bytes of a core's second cache.
    disabled : instructions, by LLVM's names, that CPUs of this name have and this one does not offer.
    """

    cpu: str
    lanes: int
    registers: int
    cores: int = 1
    bf16: bool = False
    l2: int = _L2
    disabled: tuple[str, ...] = ()

    @property
    def l2_scale(self) -> int:
        """How many times as much has room in the second cache as in one of 512 KiB: one to four."""
        return max(1, min(4, self.l2 // _L2))

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the block of sums that matrix multiplication keeps in registers.

        Beside the sums the registers hold a row of vectors of one factor and one broadcast number of the other:
        6 · 4 + 4 + 1 of 32, or 6 · 2 + 2 + 1 of 16.
        """
        return 6, (4 if self.registers >= 32 else 2) * self.lanes

    def rows(self, vectors: int) -> int:
        """Rows of sums, of so many vectors each, that the registers hold beside a row of vectors and a number."""
        return (self.registers - vectors - 1) // vectors

    def target(self) -> Any:
        """TVM's description of the CPU."""
        return _target(self.cpu, self.disabled)


def _target(cpu: str, disabled: tuple[str, ...]) -> Any:
    import tvm

    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "mattr": [f"-{feature}" for feature in disabled]})


def cores() -> int:
    """CPUs that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def detect() -> Isa:
    """The CPU at hand.

    LLVM knows it by its model. A virtual machine may keep some of the model's instructions from the system, which then
    does not list them, and a program that uses them may be stopped: code is generated without.
    """
    from tvm.target import codegen

    found = of(str(codegen.llvm_get_system_cpu()), host.instructions())
    return dataclasses.replace(found, l2=host.l2_cache() or _L2)


def of(cpu: str, offered: Set[str] | None = None) -> Isa:
    """A CPU by LLVM's name; one that LLVM does not know has what every x86-64 has.

    Parameters
    ----------
    offered : instructions by Linux's names, of which it uses no others; None for all that CPUs of this name have.
    """
    from tvm.target import codegen

    here, disabled = cores(), tuple[str, ...]()
    if offered is not None:
        known = {name.replace("_", "") for name in offered}
        has = codegen.llvm_get_cpu_features(_target(cpu, ()))
        disabled = tuple(sorted(name for name in has if _USED.match(name) and _plain(name) not in known))
    features = codegen.llvm_get_cpu_features(_target(cpu, disabled))
    if {"avx512f", "avx512vl"} <= features:
        return Isa(cpu, 16, 32, here, "avx512bf16" in features, disabled=disabled)
    if {"avx2", "fma"} <= features:
        return Isa(cpu, 8, 16, here, disabled=disabled)
    return Isa(cpu, 4, 16, here, disabled=disabled)


def _plain(feature: str) -> str:
    """LLVM's name of an instruction as Linux writes it, but for underscores."""
    return _LINUX.get(feature, re.sub(r"[-.]", "", feature))
