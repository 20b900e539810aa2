"""Amounts as text, the same in tables, in pictures and in reports."""

from __future__ import annotations

from typing import Any


def scaled(amount: Any, unit: str = "") -> str:
    """``12.3 MB`` with SI prefixes, three digits; a symbolic amount as it is, ``s0 B``.

    >>> scaled(1_550_000_000, "FLOP"), scaled(0, "B"), scaled(0), scaled(2.5e17)
    ('1.55 GFLOP', '0 B', '0', '250 P')
    """
    if not isinstance(amount, int | float):
        return f"{amount} {unit}".strip()
    size, prefixes = float(amount), ["", "k", "M", "G", "T", "P"]
    while abs(size) >= 999.5 and len(prefixes) > 1:
        size /= 1000
        prefixes.pop(0)
    digits = f"{size:.0f}" if abs(size) >= 99.5 else f"{size:.3g}"
    return f"{digits} {prefixes[0]}{unit}".strip()


def duration(seconds: float) -> str:
    """``1.23 s``, or in milliseconds where it is less than one.

    >>> duration(1.234), duration(0.6411)
    ('1.23 s', '641 ms')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def counted(count: int, noun: str, plural: str = "s") -> str:
    """``1 call``, ``2 calls``; `plural` is an ending, or the whole word."""
    many = plural if len(plural) > 2 else noun + plural
    return f"{count} {noun if count == 1 else many}"


def grew(pair: tuple[Any, Any]) -> bool:
    """Whether an amount grew; of symbolic ones, whether it differs."""
    known = all(isinstance(value, int | float) for value in pair)
    return bool(pair[1] > pair[0] if known else pair[0] != pair[1])


def weights_alone(flops: tuple[Any, Any], moved: tuple[Any, Any]) -> str:
    """Why a step looks dearer than it is after a pass that prepares a later one; empty where it adds no such work.

    Parameters
    ----------
    flops, moved : FLOPs and bytes of the step that depend on weights alone, before and after the pass.

    >>> weights_alone((0, 2_600_000), (0, 1_000))
    'of which 2.6 MFLOP, 1 kB depend on weights alone: once per set of weights where fold_constants follows'
    >>> weights_alone((5, 5), (9, 3))
    ''
    """
    if not grew(flops) and not grew(moved):
        return ""
    work = f"{scaled(flops[1], 'FLOP')}, {scaled(moved[1], 'B')}"
    return f"of which {work} depend on weights alone: once per set of weights where fold_constants follows"
