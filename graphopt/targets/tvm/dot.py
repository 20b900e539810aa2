"""How kernels multiply: one product a lane, or several of narrow numbers, which an instruction sums up at once.

Factors of narrow numbers lie together in groups of 32 bits, one group per lane: the terms that a lane takes. TVM has
no vectors of bfloat16 in code for the CPU, so that they are int32 lanes here, and what is done with them are LLVM
functions that are inlined, like those of `vectormath`. A number of bfloat16 by itself is float32 in registers, and its
bits in memory.

A CPU with AVX512-BF16 has instructions for them (``vdpbf16ps``, ``vcvtneps2bf16``), which take numbers below 2^-126 as
zeros; for others the functions are written in float32 and integers, and keep such numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx

from .isa import Isa

if TYPE_CHECKING:
    from .emit import Emitter, Expr


@dataclass(frozen=True)
class Dot:
    """A kind of product, with sums in float32.

    Attributes
    ----------
    name : what kernels of it have in their names.
    terms : of a sum, that a lane multiplies and adds at once: the numbers of a group.
    stored : as which a group is read from memory.
    latency : cycles until a sum can be added to again.
    """

    name: str
    terms: int
    stored: str
    latency: int

    def groups(self, terms: int) -> int:
        """Of so many terms; zeros fill up the last one."""
        return -(-terms // self.terms)

    def zero(self, emitter: Emitter, lanes: int) -> Expr:
        """Groups of zeros."""
        return emitter.spread(tirx.const(0, self.stored), lanes)

    def group(self, emitter: Emitter, terms: Sequence[Expr]) -> Expr:
        """Groups of these numbers, which are float32 lanes and of the kind: no rounding is left to do."""
        return terms[0] if self.terms == 1 else emitter.extern(f"{self.name}_group", self.stored, *terms)

    def added(self, emitter: Emitter, total: Expr, one: Expr, other: Expr) -> Expr:
        """A vector of sums, plus the products of two vectors of groups."""
        if self.terms == 1:
            return total + one * other
        return emitter.extern(f"{self.name}_dot", "float32", total, one, other)


FLOAT32 = Dot("f32", 1, "float32", 4)
BFLOAT16 = Dot("bf16", 2, "int32", 6)


# -- functions -------------------------------------------------------------------------------------------------------

_NATIVE = 16  # lanes for which there are instructions, where the CPU has them


def source(functions: Iterable[tuple[str, int]], isa: Isa) -> str:
    """LLVM's text of functions of `FUNCTIONS`, by name and number of lanes: ``graphopt_{name}_{lanes}``."""
    texts = [FUNCTIONS[name](_Types(lanes, isa.bf16 and lanes == _NATIVE)) for name, lanes in dict.fromkeys(functions)]
    return "".join(texts)


class _Types:
    """LLVM's names for vectors of so many lanes, and whether the CPU's instructions are to be used."""

    def __init__(self, lanes: int, native: bool) -> None:
        self.lanes, self.native = lanes, native
        self.float, self.i32, self.i16, self.i1 = (
            kind if lanes == 1 else f"<{lanes} x {kind}>" for kind in ("float", "i32", "i16", "i1")
        )

    def all(self, number: int) -> str:
        """An integer in all lanes."""
        return str(number) if self.lanes == 1 else f"splat (i32 {number})"


def _rounded(t: _Types) -> str:
    """float32 to the nearest number of bfloat16, that of even bits where two are as near; NaN stays NaN."""
    if t.native:
        return """
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define <16 x float> @graphopt_bf16_rounded_16(<16 x float> %x) alwaysinline {
  %near = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %bits = bitcast <16 x bfloat> %near to <16 x i16>
  %wide = zext <16 x i16> %bits to <16 x i32>
  %high = shl <16 x i32> %wide, splat (i32 16)
  %y = bitcast <16 x i32> %high to <16 x float>
  ret <16 x float> %y
}
"""
    return f"""
define {t.float} @graphopt_bf16_rounded_{t.lanes}({t.float} %x) alwaysinline {{
  %bits = bitcast {t.float} %x to {t.i32}
  %high = lshr {t.i32} %bits, {t.all(16)}
  %odd = and {t.i32} %high, {t.all(1)}
  %half = add {t.i32} %odd, {t.all(32767)}
  %up = add {t.i32} %bits, %half
  %quiet = or {t.i32} %bits, {t.all(1 << 22)}
  %undefined = fcmp uno {t.float} %x, %x
  %near = select {t.i1} %undefined, {t.i32} %quiet, {t.i32} %up
  %kept = and {t.i32} %near, {t.all(-65536)}
  %y = bitcast {t.i32} %kept to {t.float}
  ret {t.float} %y
}}
"""


def _bits(t: _Types) -> str:
    """The bits of numbers of bfloat16."""
    return f"""
define {t.i16} @graphopt_bf16_bits_{t.lanes}({t.float} %x) alwaysinline {{
  %bits = bitcast {t.float} %x to {t.i32}
  %high = lshr {t.i32} %bits, {t.all(16)}
  %y = trunc {t.i32} %high to {t.i16}
  ret {t.i16} %y
}}
"""


def _wide(t: _Types) -> str:
    """The numbers of bfloat16 that have these bits."""
    return f"""
define {t.float} @graphopt_bf16_wide_{t.lanes}({t.i16} %x) alwaysinline {{
  %bits = zext {t.i16} %x to {t.i32}
  %high = shl {t.i32} %bits, {t.all(16)}
  %y = bitcast {t.i32} %high to {t.float}
  ret {t.float} %y
}}
"""


def _group(t: _Types) -> str:
    """Two numbers of bfloat16 each, the first one in the lower half."""
    return f"""
define {t.i32} @graphopt_bf16_group_{t.lanes}({t.float} %first, {t.float} %second) alwaysinline {{
  %one = bitcast {t.float} %first to {t.i32}
  %other = bitcast {t.float} %second to {t.i32}
  %low = lshr {t.i32} %one, {t.all(16)}
  %high = and {t.i32} %other, {t.all(-65536)}
  %y = or {t.i32} %low, %high
  ret {t.i32} %y
}}
"""


def _dot(t: _Types) -> str:
    """Sums, plus two products each."""
    if t.native:
        return """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @graphopt_bf16_dot_16(<16 x float> %sum, <16 x i32> %x0, <16 x i32> %x1) alwaysinline {
  %one = bitcast <16 x i32> %x0 to <32 x bfloat>
  %other = bitcast <16 x i32> %x1 to <32 x bfloat>
  %y = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %one, <32 x bfloat> %other)
  ret <16 x float> %y
}
"""
    return f"""
define {t.float} @graphopt_bf16_dot_{t.lanes}({t.float} %sum, {t.i32} %x0, {t.i32} %x1) alwaysinline {{
  %upper0 = and {t.i32} %x0, {t.all(-65536)}
  %upper1 = and {t.i32} %x1, {t.all(-65536)}
  %lower0 = shl {t.i32} %x0, {t.all(16)}
  %lower1 = shl {t.i32} %x1, {t.all(16)}
  %high0 = bitcast {t.i32} %upper0 to {t.float}
  %high1 = bitcast {t.i32} %upper1 to {t.float}
  %low0 = bitcast {t.i32} %lower0 to {t.float}
  %low1 = bitcast {t.i32} %lower1 to {t.float}
  %second = fmul contract {t.float} %high0, %high1
  %more = fadd contract {t.float} %sum, %second
  %first = fmul contract {t.float} %low0, %low1
  %y = fadd contract {t.float} %more, %first
  ret {t.float} %y
}}
"""


FUNCTIONS: dict[str, Callable[[_Types], str]] = {
    "bf16_rounded": _rounded,
    "bf16_bits": _bits,
    "bf16_wide": _wide,
    "bf16_group": _group,
    "bf16_dot": _dot,
}
"""How functions of vectors are written."""
