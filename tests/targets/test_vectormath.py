"""Elementary functions in generated code: as accurate over all of float32 as the module's table says."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from graphopt.errors import TargetError

pytest.importorskip("tvm")

from graphopt.targets.tvm import vectormath
from graphopt.targets.tvm.build import Call, Library
from graphopt.targets.tvm.emit import Emitter, Kernel, kernel
from graphopt.targets.tvm.isa import detect

Single = NDArray[np.float32]
Double = NDArray[np.float64]

STEP = 4099
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, 1.5, 2.5, 1e-45, -1e-45, 2.0**-126, 3.4e38, -3.4e38)
SIZE = 2**20  # of a sample: every 4099th float, specials, and numbers from 0.5 to 1.5 up to the size
LANES = sorted({1, detect().lanes})
ELEMENTWISE = [name for name in vectormath.FUNCTIONS if not name.startswith("lane_")]


@cache
def sample() -> Single:
    """Floats of every magnitude and sign."""
    every = np.arange(0, 2**32, STEP, dtype=np.uint32).view(np.float32)
    found = np.concatenate([np.array(SPECIAL, np.float32), every])
    return np.concatenate([found, np.linspace(0.5, 1.5, SIZE - len(found), dtype=np.float32)])


def as_kernel(name: str, lanes: int) -> Kernel:
    """A kernel that applies a function to all of a sample."""
    arguments = vectormath.FUNCTIONS[name]

    def body(emitter: Emitter, buffers: Any, task: Any) -> None:
        with emitter.loop(SIZE // lanes) as index:
            values = [emitter.load(buffer, index * lanes, lanes) for buffer in buffers[:arguments]]
            emitter.store(buffers[arguments], index * lanes, emitter.call(name, *values))

    return kernel(f"apply_{name}", detect(), ["float32"] * (arguments + 1), 1, body)


@cache
def library(lanes: int) -> Library:
    return Library(detect(), [[Call(as_kernel(name, lanes), 0)] for name in ELEMENTWISE])


def apply(name: str, lanes: int, *arguments: Single) -> Single:
    result = np.empty(SIZE, np.float32)
    table = np.array([array.ctypes.data for array in (*arguments, result)], np.int64)
    library(lanes).run(ELEMENTWISE.index(name), table.ctypes.data)
    return result


def through_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Double], Double]:
    return lambda x: function(torch.from_numpy(x)).numpy()


def sigmoid(x: Double) -> Double:
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def gelu(x: Double) -> Double:
    return x * through_torch(torch.special.erfc)(-x * math.sqrt(0.5)) / 2


def gelu_tanh(x: Double) -> Double:
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def ulp(true: Double, x: Single) -> Double:
    """The unit in the last place of the true result."""
    with np.errstate(over="ignore"):
        single = abs(true).astype(np.float32)
    return np.spacing(np.minimum(single, np.finfo(np.float32).max)).astype(np.float64)


def argument(true: Double, x: Single) -> Double:
    """The unit in the last place of the larger of the argument and the result."""
    return np.maximum(ulp(true, x), ulp(x.astype(np.float64), x))


def one(true: Double, x: Single) -> Double:
    """The unit in the last place of 1."""
    return np.full_like(true, 2.0**-23)


# Function, what it is in float64, arguments that it is for, unit of the error, and most such units.
BOUNDS: dict[str, tuple[Callable[[Double], Double], tuple[float, float], Callable[[Double, Single], Double], float]] = {
    "abs": (abs, (-math.inf, math.inf), ulp, 0.0),
    "sqrt": (np.sqrt, (-math.inf, math.inf), ulp, 0.5),
    "rsqrt": (lambda x: 1 / np.sqrt(x), (-math.inf, math.inf), ulp, 1.5),
    "floor": (np.floor, (-math.inf, math.inf), ulp, 0.0),
    "ceil": (np.ceil, (-math.inf, math.inf), ulp, 0.0),
    "round": (np.round, (-math.inf, math.inf), ulp, 0.0),
    "relu": (lambda x: np.maximum(x, 0), (-math.inf, math.inf), ulp, 0.0),
    "exp": (np.exp, (-math.inf, math.inf), ulp, 2.0),
    "exp_nonpositive": (np.exp, (-math.inf, 0.0), ulp, 2.0),
    "exp2": (np.exp2, (-math.inf, math.inf), ulp, 2.0),
    "expm1": (np.expm1, (-math.inf, math.inf), ulp, 3.0),
    "log": (np.log, (-math.inf, math.inf), ulp, 2.0),
    "sigmoid": (sigmoid, (-math.inf, math.inf), ulp, 4.0),
    "silu": (lambda x: x * sigmoid(x), (-math.inf, math.inf), ulp, 4.0),
    "softplus": (lambda x: np.logaddexp(x, 0), (-math.inf, math.inf), ulp, 4.0),
    "tanh": (np.tanh, (-math.inf, math.inf), ulp, 4.0),
    "erf": (through_torch(torch.special.erf), (-math.inf, math.inf), ulp, 4.0),
    "gelu": (gelu, (-math.inf, math.inf), argument, 4.0),
    "gelu_tanh": (gelu_tanh, (-math.inf, math.inf), argument, 4.0),
    "sin": (np.sin, (-math.inf, math.inf), one, 1.0),
    "cos": (np.cos, (-math.inf, math.inf), one, 1.0),
}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", BOUNDS)
def test_accuracy(name: str, lanes: int) -> None:
    function, (low, high), unit, bound = BOUNDS[name]
    x = sample()
    with np.errstate(all="ignore"):
        true = function(x.astype(np.float64))
        error = np.abs(apply(name, lanes, x) - true)
    print(name)
