"""Samples of tiny pipelines, for bisections: with some passes, or as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.faults import Rig
from tests.soundness import tiny


def rig(make: Callable[[], Any]) -> Rig:
    """The final latents of a pipeline of tests/soundness/tiny.py."""
    pipe = make()
    return Rig(pipe, lambda: tiny.generate(pipe))
