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
SPECIAL = (
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    1e-45,
    -1e-45,
    2.0**-126,
    3.4e38,
    -3.4e38,
)
SIZE = 2**20  # of a sample: every 4099th float, specials, and numbers from 0.5 to 1.5 up to the size
LANES = sorted({1, detect().lanes})
ELEMENTWISE = [name for name in vectormath.FUNCTIONS if not name.startswith("lane_")]


@cache
def sample() -> Single:
    """Floats of every magnitude and sign."""
    every = np.arange(0, 2**32, STEP, dtype=np.uint32).view(np.float32)
    found = np.concatenate([np.array(SPECIAL, np.float32), every])
    return np.concatenate([found, np.linspace(0.5, 1.5, SIZE - len(found), dtype=np.float32)])


def samples(name: str) -> list[Single]:
    """Arguments of a function: the sample, and for further ones the same in other orders."""
    if name.endswith("_nonpositive"):
        return [np.where(sample() > 0, -sample(), sample())]
    others = np.random.default_rng(0)
    return [sample(), *(others.permutation(sample()) for _ in range(vectormath.FUNCTIONS[name] - 1))]


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


def apply(name: str, lanes: int, arguments: list[Single]) -> Single:
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


def ulp(true: Double, x: Double) -> Double:
    """The unit in the last place of the result."""
    largest = float(np.finfo(np.float32).max)
    return np.spacing(np.minimum(abs(true), largest).astype(np.float32)).astype(np.float64)


def of_normal(true: Double, x: Double) -> Double:
    """The same, or the smallest float that is not subnormal."""
    return np.where(true < 2.0**-126, 2.0**-126, ulp(true, x))


def of_product(true: Double, x: Double) -> Double:
    """The same, or the argument times the smallest float."""
    return np.maximum(ulp(true, x), abs(x) * 2.0**-149)


def of_argument(true: Double, x: Double) -> Double:
    """The unit in the last place of the argument, or of the result where that is larger."""
    return np.maximum(ulp(true, x), ulp(x, x))


def of_one(true: Double, x: Double) -> Double:
    """The unit in the last place of 1."""
    return np.full_like(true, 2.0**-23)


# A function in float64, the unit of the error, and the most such units.
BOUNDS: dict[str, tuple[Callable[..., Double], Callable[[Double, Double], Double], float]] = {
    "fma": (lambda x, y, z: x * y + z, ulp, 0.501),
    "abs": (abs, ulp, 0.0),
    "sqrt": (np.sqrt, ulp, 0.501),
    "rsqrt": (lambda x: 1 / np.sqrt(x), ulp, 1.5),
    "floor": (np.floor, ulp, 0.0),
    "ceil": (np.ceil, ulp, 0.0),
    "round": (np.round, ulp, 0.0),
    "maximum": (np.maximum, ulp, 0.0),
    "minimum": (np.minimum, ulp, 0.0),
    "relu": (lambda x: np.maximum(x, 0), ulp, 0.0),
    "exp": (np.exp, ulp, 2.0),
    "exp_nonpositive": (np.exp, ulp, 2.0),
    "exp2": (np.exp2, ulp, 2.0),
    "exp2_nonpositive": (np.exp2, of_normal, 2.0),
    "expm1": (np.expm1, ulp, 2.0),
    "log": (np.log, ulp, 2.0),
    "pow": (np.power, ulp, 1.0),
    "sigmoid": (sigmoid, ulp, 4.0),
    "silu": (lambda x: x * sigmoid(x), of_product, 4.0),
    "softplus": (lambda x: np.logaddexp(x, 0), ulp, 4.0),
    "tanh": (np.tanh, ulp, 4.0),
    "erf": (through_torch(torch.special.erf), ulp, 4.0),
    "gelu": (gelu, of_argument, 4.0),
    "gelu_tanh": (gelu_tanh, of_argument, 4.0),
    "sin": (np.sin, of_one, 1.0),
    "cos": (np.cos, of_one, 1.0),
    "equal": (lambda x, y: np.equal(x, y) * 1.0, ulp, 0.0),
    "less": (lambda x, y: np.less(x, y) * 1.0, ulp, 0.0),
    "at_most": (lambda x, y: np.less_equal(x, y) * 1.0, ulp, 0.0),
}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_accuracy(name: str, lanes: int) -> None:
    function, unit, bound = BOUNDS[name]
    arguments = samples(name)
    result = apply(name, lanes, arguments)
    with np.errstate(all="ignore"):
        doubles: list[Double] = [values.astype(np.float64) for values in arguments]
        true = function(*doubles)
        single = true.astype(np.float32)
        errors = np.abs(result - true) / unit(true, doubles[0])
    assert np.array_equal(np.isnan(result), np.isnan(true))
    infinite = np.isinf(result) | np.isinf(single)
    assert np.array_equal(result[infinite], single[infinite])
    errors[infinite | np.isnan(true)] = 0.0
    worst = int(errors.argmax())
    assert errors[worst] <= bound, [float(values[worst]) for values in (*doubles, result.astype(np.float64), true)]
    plain = (np.arange(SIZE) < len(SPECIAL)) & np.isin(single, (0.0, 1.0, -1.0))
    assert np.array_equal(result[plain], single[plain])


@pytest.mark.parametrize("lanes", LANES)
def test_lanes_to_a_number(lanes: int) -> None:
    x = np.random.default_rng(0).standard_normal((64, lanes)).astype(np.float32)
    x[0, 0], x[1, -1] = math.nan, math.inf

    def body(emitter: Emitter, buffers: Any, task: Any) -> None:
        vector = emitter.load(buffers[0], task * lanes, lanes)
        emitter.store(buffers[1], task, emitter.reduced("sum", vector))
        emitter.store(buffers[2], task, emitter.reduced("max", vector))

    built = Library(detect(), [[Call(kernel("reduce", detect(), ["float32"] * 3, len(x), body), 0)]])
    sums, largest = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    table = np.array([array.ctypes.data for array in (x, sums, largest)], np.int64)
    built.run(0, table.ctypes.data)
    assert np.array_equal(largest, x.max(1), equal_nan=True)
    assert np.allclose(sums, x.sum(1), rtol=0, atol=lanes * 2.0**-21, equal_nan=True)


def test_text_defines_and_declares_once() -> None:
    asked = [(name, lanes) for name in vectormath.FUNCTIONS for lanes in (1, 4, 16)]
    lines = vectormath.source(asked + asked).splitlines()
    defined = [line for line in lines if line.startswith("define")]
    declared = [line for line in lines if line.startswith("declare")]
    assert len(defined) == len(set(defined)) == len(asked)
    assert len(declared) == len(set(declared))
    assert all(line.endswith("alwaysinline {") for line in defined)
    assert not any(line.startswith("@") for line in lines)  # no global constants


def test_arguments() -> None:
    assert {name: count for name, count in vectormath.FUNCTIONS.items() if count != 1} == {
        "fma": 3,
        "maximum": 2,
        "minimum": 2,
        "pow": 2,
        "equal": 2,
        "less": 2,
        "at_most": 2,
    }


def test_unknown_name() -> None:
    with pytest.raises(TargetError, match=r"no vector function 'expp'[^?]*did you mean 'exp"):
        vectormath.source([("expp", 8)])


def test_no_lanes() -> None:
    with pytest.raises(TargetError, match="exp of 0 lanes"):
        vectormath.source([("exp", 0)])
