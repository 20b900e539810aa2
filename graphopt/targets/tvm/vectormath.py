"""Elementary functions of float32 vectors, as LLVM functions that are inlined where they are called.

A formula is Python arithmetic over `Value`, each operation of which is one line of LLVM's text. TVM links the functions
as available externally: nothing but inlined code reaches the machine, hence no helpers and no tables of constants.

Errors over all of float32, subnormals included, in units in the last place of the result, for a CPU with fused
multiplication; infinities, zeros and not-a-number come where torch has them:

| functions | largest error measured |
|---|---|
| fma, abs, sqrt, floor, ceil, round, relu, maximum, minimum, equal, less, at_most | rounded once, or exact |
| rsqrt | 1.5 |
| exp, exp_nonpositive, exp2, expm1, log | 1.5, 0.9, 1.1, 1.6, 0.9 |
| exp2_nonpositive | 1.8; 0 below 2^-126.5 |
| sigmoid, softplus | 2.2, 2.0 |
| silu | 3.0, where its exponential is not subnormal (x > -87); there, of the smallest float times x |
| tanh, erf | 3.8, 3.5; at most a unit beyond 1, and 1 from 9.02 and 3.93 on |
| gelu, gelu_tanh | 1.9, 1.5 of the argument's unit where that is larger: 1 + erf and 1 + tanh cancel for x < 0 |
| sin, cos | 0.6 of the unit of 1, which is 2^-23; beyond 100,000 libm's, lane by lane |
| pow | libm's, lane by lane: slow |
| lane_sum | in any order |

`exp_nonpositive` is `exp` for x ≤ 0, as in a softmax, in three instructions less; `exp2_nonpositive`, for attention,
takes one less again. `maximum`, `minimum` and `lane_max` of anything and not-a-number are not-a-number; zeros of
either sign are equal. `equal`, `less` and `at_most` are 1 where that holds and 0 elsewhere, not-a-number being none of
it. `round` rounds halves to even.
"""

from __future__ import annotations

import inspect
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from ...errors import TargetError, nearest


def source(functions: Iterable[tuple[str, int]]) -> str:
    """LLVM's text of these functions, by name and number of lanes; one asked for twice is defined once.

    ``graphopt_{name}_{lanes}`` takes `FUNCTIONS[name]` vectors of so many float32 lanes, or numbers where there is one
    lane, and gives the same; `lane_sum` and `lane_max` give a number.

    Raises
    ------
    TargetError : a name that is not in `FUNCTIONS`, or no lanes.
    """
    declared: dict[str, None] = {}
    definitions = []
    for name, lanes in dict.fromkeys(functions):
        if name not in _FORMULAS:
            raise TargetError(
                f"no vector function {name!r}", where="graphopt.targets.tvm", hint=nearest(name, _FORMULAS)
            )
        if lanes < 1:
            raise TargetError(
                f"{name} of {lanes} lanes", where="graphopt.targets.tvm", hint="a vector has at least one"
            )
        text = _Text(lanes, declared)
        arguments = [Value(text, f"%x{place}", "float", lanes) for place in range(FUNCTIONS[name])]
        result = _FORMULAS[name](*arguments)
        signature = ", ".join(f"{value.type} {value.name}" for value in arguments)
        definitions += [
            f"define {result.type} @graphopt_{name}_{lanes}({signature}) alwaysinline {{",
            *("entry:", *text.lines, f"ret {result.type} {result.name}"),
            "}",
        ]
    return "\n".join([*declared, *definitions, ""])


# -- the writer ------------------------------------------------------------------------------------------------------


@dataclass
class _Text:
    """The lines of one function, and the declarations of its module."""

    lanes: int
    declared: dict[str, None]
    lines: list[str] = field(default_factory=list)

    def line(self, operation: str, kind: str, lanes: int) -> Value:
        """A new value, and the operation that gives it."""
        value = Value(self, f"%v{len(self.lines)}", kind, lanes)
        self.lines.append(f"{value.name} = {operation}")
        return value

    def call(self, intrinsic: str, arguments: Sequence[Value], lanes: int, flags: str = "", start: str = "") -> Value:
        """An LLVM intrinsic, overloaded on the type of its arguments; `start` is one before them."""
        of, kind = arguments[-1], arguments[-1].kind
        suffix = kind.replace("float", "f32") if of.lanes == 1 else f"v{of.lanes}{kind.replace('float', 'f32')}"
        result = _type(kind, lanes)
        types = [*([start.split()[0]] if start else []), *(value.type for value in arguments)]
        given = [*([start] if start else []), *(f"{value.type} {value.name}" for value in arguments)]
        self.declared[f"declare {result} @{intrinsic}.{suffix}({', '.join(types)})"] = None
        return self.line(f"call {flags}{result} @{intrinsic}.{suffix}({', '.join(given)})", kind, lanes)


@dataclass(frozen=True, eq=False)
class Value:
    """A number or vector in a function that is being written; Python's operators write LLVM's.

    Attributes
    ----------
    kind : float, i32 or i1.
    """

    text: _Text
    name: str
    kind: str
    lanes: int

    @property
    def type(self) -> str:
        return _type(self.kind, self.lanes)

    def constant(self, number: float) -> Value:
        """A number in all lanes, of this value's type."""
        name = f"{int(number)}" if self.kind == "i32" else _hexadecimal(number)
        return Value(self.text, name if self.lanes == 1 else f"splat ({self.kind} {name})", self.kind, self.lanes)

    def __add__(self, other: Number) -> Value:
        return self._binary("fadd", "add", other)

    def __sub__(self, other: Number) -> Value:
        return self._binary("fsub", "sub", other)

    def __mul__(self, other: Number) -> Value:
        return self._binary("fmul", "mul", other)

    def __truediv__(self, other: Number) -> Value:
        return self._binary("fdiv", "", other)

    def __rtruediv__(self, other: float) -> Value:
        return self.constant(other) / self

    def __rsub__(self, other: float) -> Value:
        return self.constant(other) - self

    def __neg__(self) -> Value:
        return self.text.line(f"fneg {self.type} {self.name}", self.kind, self.lanes)

    def __abs__(self) -> Value:
        return self.function("llvm.fabs")

    def __lshift__(self, places: int) -> Value:
        return self._binary("", "shl", places)

    def __rshift__(self, places: int) -> Value:
        return self._binary("", "ashr", places)

    def __and__(self, other: Number) -> Value:
        return self._binary("", "and", other)

    def __xor__(self, other: Number) -> Value:
        return self._binary("", "xor", other)

    def __lt__(self, other: Number) -> Value:
        return self._compare("fcmp olt", other)

    def __gt__(self, other: Number) -> Value:
        return self._compare("fcmp ogt", other)

    def __le__(self, other: Number) -> Value:
        return self._compare("fcmp ole", other)

    def equals(self, other: Number) -> Value:
        return self._compare("icmp eq" if self.kind == "i32" else "fcmp oeq", other)

    def bits(self) -> Value:
        return self._cast("bitcast", "i32")

    def floats(self) -> Value:
        """The number that has these bits."""
        return self._cast("bitcast", "float")

    def rounded(self) -> Value:
        """The float nearest to an integer."""
        return self._cast("sitofp", "float")

    def function(self, intrinsic: str, *others: Value, flags: str = "") -> Value:
        return self.text.call(intrinsic, [self, *others], self.lanes, flags)

    def across(self, intrinsic: str, flags: str = "", start: str = "") -> Value:
        """A reduction of the lanes to a number."""
        return self if self.lanes == 1 else self.text.call(intrinsic, [self], 1, flags, start)

    def where(self, condition: Value, other: Number) -> Value:
        """Lane by lane: itself where the condition holds, the other where it does not."""
        other = self._same(other)
        chosen = f"select {condition.type} {condition.name}, {self.type} {self.name}, {other.type} {other.name}"
        return self.text.line(chosen, self.kind, self.lanes)

    def unless(self, condition: Value, other: Callable[[], Value]) -> Value:
        """Itself, or where the condition holds, the other, which is computed only if it holds in some lane.

        A function has room for one of these.
        """
        some = condition.across("llvm.vector.reduce.or")
        self.text.lines += [f"br i1 {some.name}, label %rare, label %done", "rare:"]
        chosen = other().where(condition, self)
        self.text.lines += ["br label %done", "done:"]
        return self.text.line(
            f"phi {self.type} [ {self.name}, %entry ], [ {chosen.name}, %rare ]", self.kind, self.lanes
        )

    def at_least(self, low: float) -> Value:
        """No less than `low`; not a number stays that."""
        return self.constant(low).where(self < low, self)

    def at_most(self, high: float) -> Value:
        """No more than `high`; not a number stays that."""
        return self.constant(high).where(self > high, self)

    def _same(self, other: Number) -> Value:
        return other if isinstance(other, Value) else self.constant(other)

    def _binary(self, on_floats: str, on_integers: str, other: Number) -> Value:
        operation = on_floats if self.kind == "float" else on_integers
        return self.text.line(f"{operation} {self.type} {self.name}, {self._same(other).name}", self.kind, self.lanes)

    def _compare(self, operation: str, other: Number) -> Value:
        return self.text.line(f"{operation} {self.type} {self.name}, {self._same(other).name}", "i1", self.lanes)

    def _cast(self, operation: str, kind: str) -> Value:
        return self.text.line(f"{operation} {self.type} {self.name} to {_type(kind, self.lanes)}", kind, self.lanes)


Number: TypeAlias = Value | float


def _type(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"<{lanes} x {kind}>"


def _hexadecimal(number: float) -> str:
    """A float32 as LLVM writes it: the bits of the double that equals it."""
    (single,) = struct.unpack("f", struct.pack("f", number))
    return f"0x{struct.pack('>d', single).hex().upper()}"


def _fma(a: Value, b: Number, c: Number) -> Value:
    """The sum a · b + c, rounded once where the CPU has an instruction for that, and twice where it has none."""
    return a.function("llvm.fmuladd", a._same(b), a._same(c))


def _polynomial(x: Value, *coefficients: float) -> Value:
    """c0 + c1 x + c2 x² + …, by Horner's rule."""
    *rest, last = coefficients
    total: Value = x.constant(last)
    for coefficient in reversed(rest):
        total = _fma(total, x, coefficient)
    return total


# -- exponentials ----------------------------------------------------------------------------------------------------

_ROUNDER = 1.5 * 2.0**23  # added to a smaller number it leaves an integer, in the lowest bits of the sum


def _reduced(x: Value, per_unit: float, unit: Sequence[float], bias: int = 127) -> tuple[Value, Value]:
    """2^(n + bias - 127) and r, where x = n · unit + r with the least r, for 0 < n + bias < 255.

    Parameters
    ----------
    unit : numbers whose sum it is, all but the last of so few bits that n times it is exact.
    """
    shifted = _fma(x, per_unit, _ROUNDER + bias)
    n, r = shifted - (_ROUNDER + bias), x
    for part in unit:
        r = _fma(n, -part, r)
    return (shifted.bits() << 23).floats(), r


def _halved(x: Value) -> tuple[Value, Value]:
    """2^n and r, where x = 2 n ln 2 + r; half of the exponent is in range even where exp(x) is subnormal."""
    return _reduced(x, 0.5 / math.log(2), [2 * part for part in _LN2])


def _exp(x: Value) -> Value:
    half, r = _halved(x.at_least(-104.0).at_most(89.0))
    return _polynomial(r, 1.0, 1.0, *_EXP_WIDE) * half * half


def _exp_nonpositive(x: Value) -> Value:
    """Polynomial times power of two, the one 2^64 times smaller, the other larger, so that neither is subnormal."""
    power, r = _reduced(x.at_least(-104.0), 1 / math.log(2), _LN2, 127 + 64)
    return _polynomial(r, *(c * 2.0**-64 for c in (1.0, 1.0, *_EXP))) * power


def _exp2(x: Value) -> Value:
    half, r = _reduced(x.at_least(-151.0).at_most(129.0), 0.5, [2.0])
    return _polynomial(r, 1.0, *_EXP2) * half * half


def _exp2_nonpositive(x: Value) -> Value:
    """The sum p + r p q(r) of the power of two p, which is 0 for the least x, and the polynomial 1 + r q(r)."""
    x = x.at_least(-127.0)
    shifted = x + (_ROUNDER + 127)
    r = x - (shifted - (_ROUNDER + 127))
    power = (shifted.bits() << 23).floats()
    return _fma(_polynomial(r, *_EXP2_FEW), r * power, power)


def _expm1(x: Value) -> Value:
    """2^2n (exp(r) - 1) + 2^2n - 1, divided by 2^n and multiplied again."""
    half, r = _halved(x.at_least(-30.0).at_most(89.0))
    less_one = _fma(r * r, _polynomial(r, *_EXP_WIDE), r)
    return half * _fma(half, less_one, half - 1.0 / half)


def _odds(x: Value) -> tuple[Value, Value]:
    """Two numbers whose quotient is sigmoid(x), by exp(-|x|), which neither overflows nor loses digits."""
    e = _exp_nonpositive(-abs(x))
    return e.where(x < 0.0, 1.0), e + 1.0


def _sigmoid(x: Value) -> Value:
    part, whole = _odds(x)
    return part / whole


def _silu(x: Value) -> Value:
    part, whole = _odds(x)
    return x * part / whole


def _gelu_tanh(x: Value) -> Value:
    """x/2 (1 + tanh y) = x sigmoid(2 y)."""
    scale = 2 * math.sqrt(2 / math.pi)
    part, whole = _odds(x * _fma(x * x, 0.044715 * scale, scale))
    return x * part / whole


def _softplus(x: Value) -> Value:
    """max(x, 0) + log(1 + exp(-|x|))."""
    e = _exp_nonpositive(-abs(x))
    return _relu(x) + e * _fma(_polynomial(e, *_LOG1P), e, 1.0)


# -- logarithm, and functions that are rational to float32's precision ---------------------------------------------


def _log(x: Value) -> Value:
    """The sum e ln 2 + log(1 + f), where x = 2^e (1 + f) and 1 + f lies between the roots of 1/2 and 2."""
    subnormal = x < 2.0**-126
    bits = (x * 2.0**23).where(subnormal, x).bits() - _ROOT_HALF
    e = (bits >> 23).rounded()
    e = (e - 23.0).where(subnormal, e)
    f = ((bits & 0x7FFFFF) + _ROOT_HALF).floats() - 1.0
    tail = f * f * _fma(_polynomial(f, *_LOG), f, -0.5)
    result = _fma(e, _LN2[0], f + _fma(e, _LN2[1], tail))
    outside = x.constant(-math.inf).where(x.equals(0.0), math.nan)
    return result.where(x < math.inf, x).where(x > 0.0, outside)


def _saturating(x: Value, one: float, above: Sequence[float], below: Sequence[float]) -> Value:
    """An odd function that rounds to 1 from `one` on, as 2 t / (1 + t²) with t = x above(x²) / below(x²).

    Near 1 that forgives errors of t.
    """
    x = x.at_least(-one).at_most(one)
    z = x * x
    a = _fma(x * z, _polynomial(z, *above[1:]), x * above[0])
    b = _polynomial(z, *below)
    product = a * b
    return (product + product) / _fma(a, a, b * b)


def _tanh(x: Value) -> Value:
    return _saturating(x, _TANH_ONE, _TANH_ABOVE, _TANH_BELOW)


def _erf(x: Value) -> Value:
    return _saturating(x, _ERF_ONE, _ERF_ABOVE, _ERF_BELOW)


def _gelu(x: Value) -> Value:
    half = x * 0.5
    return _fma(half, _erf(x * math.sqrt(0.5)), half)


# -- waves -----------------------------------------------------------------------------------------------------------

_FAR = 1e5


def _wave(x: Value, quarters: int, far: Callable[[], Value]) -> Value:
    """sin(x + quarters · π/2), from the sine or cosine of the distance to the nearest multiple of π/2.

    The distance is exact with fused multiplication (Cody and Waite's reduction in three parts); from 100,000 on, libm.
    """
    turns = _fma(x, 2 / math.pi, _ROUNDER)
    n = turns - _ROUNDER
    r = x
    for part in _HALF_PI:
        r = n.function("llvm.fma", n.constant(-part), r)
    z = r * r
    sine = _fma(_polynomial(z, *_SIN) * z, r, r)
    cosine = _fma(_fma(_polynomial(z, *_COS), z, -0.5), z, 1.0)
    quarter = turns.bits() + quarters
    wave = sine.where((quarter & 1).equals(0), cosine)
    wave = (((quarter & 2) << 30) ^ wave.bits()).floats()
    return wave.unless(abs(x) > _FAR, far)


def _sin(x: Value) -> Value:
    return _wave(x, 0, lambda: x.function("llvm.sin"))


def _cos(x: Value) -> Value:
    return _wave(x, 1, lambda: x.function("llvm.cos"))


def _pow(x: Value, y: Value) -> Value:
    return x.function("llvm.pow", y)


# -- what the CPU does in an instruction or a few ----------------------------------------------------------------------


def _fused(a: Value, b: Value, c: Value) -> Value:
    return a.function("llvm.fma", b, c)


def _relu(x: Value) -> Value:
    return x.at_least(0.0)


def _sqrt(x: Value) -> Value:
    return x.function("llvm.sqrt")


def _rsqrt(x: Value) -> Value:
    return 1.0 / _sqrt(x)


def _floor(x: Value) -> Value:
    return x.function("llvm.floor")


def _ceil(x: Value) -> Value:
    return x.function("llvm.ceil")


def _round(x: Value) -> Value:
    return x.function("llvm.roundeven")


def _maximum(x: Value, y: Value) -> Value:
    return x.function("llvm.maximum", y, flags="nsz ")


def _minimum(x: Value, y: Value) -> Value:
    return x.function("llvm.minimum", y, flags="nsz ")


def _equal(x: Value, y: Value) -> Value:
    return x.constant(1.0).where(x.equals(y), 0.0)


def _less(x: Value, y: Value) -> Value:
    return x.constant(1.0).where(x < y, 0.0)


def _at_most(x: Value, y: Value) -> Value:
    return x.constant(1.0).where(x <= y, 0.0)


def _lane_sum(x: Value) -> Value:
    return x.across("llvm.vector.reduce.fadd", "reassoc ", start="float -0.0")


def _lane_max(x: Value) -> Value:
    return x.across("llvm.vector.reduce.fmaximum", "nsz ")


# -- coefficients ------------------------------------------------------------------------------------------------------

# Polynomials: minimax of the relative error by Lawson's iteration against mpmath, rounded to float32 from the lowest
# coefficient up, the rest fitted again after each. Quotients: the same, linearised, weighted by what the result makes
# of their error, and then moved by a few units in the last place, at random, towards a smaller error of the result.
_LN2 = (355 / 512, math.log(2) - 355 / 512)
_ROOT_HALF = 0x3F3504F3  # bits of the root of 1/2
_HALF_PI = (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15)

# (exp(r) - 1 - r) / r² for |r| < ln 2, and for |r| < ln 2 / 2
_EXP_WIDE = (
    0.5000003576278687, 0.16666610538959503, 0.04166111722588539, 0.008336246013641357, 0.001410778146237135,
    0.00019601914391387254,
)  # fmt: skip
_EXP = (0.4999999403953552, 0.16666516661643982, 0.041668280959129333, 0.008369248360395432, 0.0013820745516568422)
# (2^r - 1) / r for |r| < 1
_EXP2 = (
    0.6931471824645996, 0.24022650718688965, 0.05550411343574524, 0.00961811188608408, 0.0013332676608115435,
    0.00015407579485327005, 1.543537109682802e-05, 1.3044837032794021e-06,
)  # fmt: skip
# (2^r - 1) / r for |r| < 1/2
_EXP2_FEW = (0.693146824836731, 0.24022237956523895, 0.05550896003842354, 0.009671720676124096, 0.0013224551221355796)
# (log(1 + f) - f + f²/2) / f³ for 1 + f between the roots of 1/2 and 2
_LOG = (
    0.3333333134651184, -0.2500081956386566, 0.2000124156475067, -0.166234090924263, 0.14201579988002777,
    -0.13159610331058502, 0.12762215733528137, -0.07636435329914093,
)  # fmt: skip
# (log(1 + e) - e) / e² for 0 < e < 1
_LOG1P = (
    -0.4999993145465851, 0.33330464363098145, -0.24958020448684692, 0.1969212144613266, -0.15344977378845215,
    0.10661370307207108, -0.05746045708656311, 0.020088430494070053, -0.0032910630106925964,
)  # fmt: skip
# in r², for |r| < π/4: (sin(r)/r - 1) / r², (cos(r) - 1 + r²/2) / r⁴
_SIN = (-0.16666653752326965, 0.008332101628184319, -0.00019506842363625765)
_COS = (0.04166664555668831, -0.00138873013202101, 2.443066841806285e-05)
# t / x in x², where 2 t / (1 + t²) is tanh(x), and erf(x), up to where they round to 1
_TANH_ONE = 9.01921558380127
_TANH_ABOVE = (0.46875, 0.013952531851828098, 5.3475669119507074e-05)
_TANH_BELOW = (0.9375, 0.10602999478578568, 0.001130334916524589, 1.1489285043353448e-06)
_ERF_ONE = 3.93
_ERF_ABOVE = (0.5, 0.13198652863502502, 0.014321393333375454, 0.0011286165099591017)
_ERF_BELOW = (0.8862268924713135, 0.24725526571273804, 0.04297804832458496, 0.005371812731027603, 8.790021820459515e-05)

_FORMULAS: Mapping[str, Callable[..., Value]] = {
    "fma": _fused,
    "abs": abs,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "floor": _floor,
    "ceil": _ceil,
    "round": _round,
    "maximum": _maximum,
    "minimum": _minimum,
    "relu": _relu,
    "exp": _exp,
    "exp_nonpositive": _exp_nonpositive,
    "exp2": _exp2,
    "exp2_nonpositive": _exp2_nonpositive,
    "expm1": _expm1,
    "log": _log,
    "pow": _pow,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "softplus": _softplus,
    "tanh": _tanh,
    "erf": _erf,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sin": _sin,
    "cos": _cos,
    "equal": _equal,
    "less": _less,
    "at_most": _at_most,
    "lane_sum": _lane_sum,
    "lane_max": _lane_max,
}

FUNCTIONS: Mapping[str, int] = MappingProxyType(
    {name: len(inspect.signature(formula).parameters) for name, formula in _FORMULAS.items()}
)
"""How many arguments each function takes."""
