"""How far two results of one request are apart: measures of images and of latents, each with a threshold of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import UsageError

Result = npt.NDArray[Any]  # images [count, height, width, channels] of 0 to 1; latents of any shape


@dataclass(frozen=True)
class Metric:
    """A measure of two results.

    Attributes
    ----------
    measure : (original, other) → a number; infinite or NaN only where the results are equal or not finite.
    higher : whether more means more alike.
    threshold : the default: the least value (the largest, where less means more alike) that passes as the same image.
    unit, form : of the value in text.
    latent : whether it measures latents, not images.
    """

    name: str
    about: str
    measure: Callable[[Result, Result], float]
    higher: bool
    threshold: float
    unit: str = ""
    form: str = ".3g"
    latent: bool = False

    def within(self, value: float, threshold: float) -> bool:
        """Whether `value` is on the good side of the threshold, or on it. NaN is on no side."""
        return value >= threshold if self.higher else value <= threshold

    def text(self, value: float) -> str:
        """``41.2 dB``, ``equal`` for what no difference gives."""
        if self.higher and value == math.inf:
            return "equal"
        return f"{value:{self.form}} {self.unit}".rstrip()

    def relation(self, threshold: float) -> str:
        """What is asked for: ``psnr at least 40 dB``."""
        return f"{self.name} {'at least' if self.higher else 'at most'} {threshold:g} {self.unit}".rstrip()


def _psnr(original: Result, other: Result) -> float:
    if (original == other).all():
        return math.inf
    return float(_skimage("psnr").peak_signal_noise_ratio(original, other, data_range=1.0))


def _ssim(original: Result, other: Result) -> float:
    if (original == other).all():
        return 1.0  # a window in which nothing varies has no structure to compare
    measure = _skimage("ssim").structural_similarity
    side = min(7, *original.shape[1:3])  # of the sliding window, which must be odd and fit into the image
    if side < 3:
        height, width = original.shape[1:3]
        what = f"an image of {width} × {height} pixels is too small for ssim"
        raise UsageError(what, where="--metric", hint="--metric psnr")
    options = {"win_size": side - (side + 1) % 2, "channel_axis": -1, "data_range": 1.0}
    return float(np.mean([measure(one, two, **options) for one, two in zip(original, other, strict=True)]))


def _largest(original: Result, other: Result) -> float:
    return float(np.abs(levels(original).astype(np.int16) - levels(other).astype(np.int16)).max())


def _relative(original: Result, other: Result) -> float:
    one, two = original.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(one - two) / (np.linalg.norm(one) or 1.0))


def levels(images: Result) -> npt.NDArray[np.uint8]:
    """Images of 0 to 1 as grey levels of 0 to 255; what is not finite is black."""
    known = np.nan_to_num(images, posinf=0.0, neginf=0.0).clip(0, 1)
    return np.asarray((known * 255).round(), dtype=np.uint8)


METRICS: dict[str, Metric] = {
    entry.name: entry
    for entry in (
        Metric("psnr", "peak signal-to-noise ratio", _psnr, True, 40.0, "dB", ".1f"),
        Metric("ssim", "structural similarity, 1 for equal images", _ssim, True, 0.99, "", ".4f"),
        Metric("max", "largest difference of a value of a pixel", _largest, False, 2.0, "of 255 grey levels", ".0f"),
        Metric("latent", "norm of the latents' difference over theirs", _relative, False, 1e-3, "", ".2e", latent=True),
    )
}


def _skimage(name: str) -> Any:
    try:
        import skimage.metrics
    except ImportError as error:
        raise UsageError(
            f"the metric '{name}' needs scikit-image, which is not installed",
            where="--metric",
            hint="pip install 'graphopt[metrics]', or --metric max or latent, which need nothing",
        ) from error
    return skimage.metrics


def available(metric: Metric) -> None:
    """Raise UsageError where the package that a metric needs is missing."""
    if metric.name in ("psnr", "ssim"):
        _skimage(metric.name)
