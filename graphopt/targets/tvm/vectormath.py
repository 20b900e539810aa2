"""Elementary functions of float32 vectors, as LLVM functions that are inlined where they are called."""

from __future__ import annotations

from collections.abc import Iterable


def source(functions: Iterable[tuple[str, int]]) -> str:
    """LLVM's text of these functions, by name and number of lanes."""
    return "".join(_REDUCE[name[5:]](lanes) if name.startswith("lane_") else "" for name, lanes in functions)


def _reduce(how: str, start: str):
    def text(n):
        return f"""
declare float @llvm.vector.reduce.{how}.v{n}f32({start}<{n} x float>)
"""
    return text


def _sum(n: int) -> str:
    return f"""
declare float @llvm.vector.reduce.fadd.v{n}f32(float, <{n} x float>)
define float @graphopt_lane_sum_{n}(<{n} x float> %x) alwaysinline {{
  %r = call reassoc float @llvm.vector.reduce.fadd.v{n}f32(float -0.0, <{n} x float> %x)
  ret float %r
}}
"""


_REDUCE = {"sum": _sum}
