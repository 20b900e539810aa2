"""Colours and figures that all pictures share."""

from __future__ import annotations

from typing import Any

# Okabe and Ito, "Color Universal Design" (2008): told apart by readers with any kind of colour vision.
COLOURS = {
    "weights": "#8c8c8c",
    "request": "#0072B2",
    "schedule": "#E69F00",
    "request_schedule": "#CC79A7",
    "common": "#009E73",
    "step": "#D55E00",
}

# The stage from which on an input is known, by its role.
STAGE_OF_ROLE = {"weight": "weights", "condition": "request", "time": "schedule", "state": "step"}


def tint(colour: str, white: float = 0.75) -> str:
    """A colour ``#rrggbb`` mixed with some share of white, for areas that text stands on."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in parts)


def scaled(amount: Any, unit: str = "") -> str:
    """``12.3 M`` with SI prefixes; a symbolic amount as it is."""
    if not isinstance(amount, int | float):
        return f"{amount} {unit}".strip()
    size, prefixes = float(amount), ["", "k", "M", "G", "T", "P"]
    while abs(size) >= 999.5 and len(prefixes) > 1:
        size /= 1000
        prefixes.pop(0)
    digits = f"{size:.0f}" if abs(size) >= 99.5 else f"{size:.3g}"
    return f"{digits} {prefixes[0]}{unit}".strip()
