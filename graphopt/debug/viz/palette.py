"""Colours that all pictures share."""

from __future__ import annotations

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
