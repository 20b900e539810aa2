"""Amounts as text, the same in tables and in pictures."""

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
