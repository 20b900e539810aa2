"""What a diffusers pipeline returns, as arrays, compiled or not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import graphopt
from graphopt.cli._measure import Pictures
from graphopt.cli._request import Session
from graphopt.compile import try_out
from graphopt.debug.metrics import Result, levels
from graphopt.errors import GraphoptError, UsageError
from graphopt.runtime.kept import Captures

if TYPE_CHECKING:
    from graphopt.debug.bisect import Sample
    from graphopt.ir.rewrite import Observer, Pass


def sampler(session: Session, output_type: str = "np") -> Sample:
    """A function that samples once: compiled for the eager target with some passes, or as the pipeline is.

    The pipeline is restored after each run; what is captured is captured once. Compiled code stays in use however wrong
    it is, and what it raises is raised.

    Raises
    ------
    UsageError : the pipeline cannot return arrays.
    """
    kind = type(session.pipe).__name__
    if "output_type" not in inspect.signature(session.pipe.__call__).parameters:
        raise UsageError(f"{kind} cannot return arrays: its call has no argument output_type", where="PIPELINE")

    captures = Captures()

    def sample(passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        if passes is None:
            return _array(session.sample(output_type=output_type), output_type, kind)
        try:
            try_out(session.pipe, tuple(passes), observers, captures)
            return _array(session.sample(output_type=output_type), output_type, kind)
        finally:
            graphopt.restore(session.pipe)

    return sample


def apart(originals: Result, others: Result) -> tuple[Pictures, int]:
    """Absolute differences of images, black where equal, and the exponent of the power of two they were multiplied by.

    Other than pictures of grey levels, images of 0 to 1 show differences below a level as well.
    """
    off = np.nan_to_num(np.abs(originals.astype(np.float64) - others), nan=1.0, posinf=1.0)
    largest = float(off.max())
    exponent = max(0, math.floor(-math.log2(largest))) if largest else 0
    return levels(off * 2.0**exponent), exponent


def factor(exponent: int) -> str:
    """A power of two as titles have it: ``64``, ``2^20``."""
    return str(2**exponent) if exponent <= 10 else f"2^{exponent}"


def _array(result: Any, output_type: str, kind: str) -> Result:
    """Images [count, height, width, channels] of 0 to 1, frames of videos one by one; latents as they are."""
    found = getattr(result, "images", None)
    found = getattr(result, "frames", None) if found is None else found
    if found is None:
        raise GraphoptError(f"{kind} returned a {type(result).__name__} without pictures", where="one sampling run")
    if hasattr(found, "detach"):
        found = found.detach().float().cpu().numpy()
    values = np.asarray(found)
    if output_type != "latent":
        if values.ndim < 4:
            raise GraphoptError(f"{kind} returned an array of shape {values.shape}, not images")
        values = values.reshape(-1, *values.shape[-3:])
    return values
