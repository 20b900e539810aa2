"""Guidance branches of weight zero are never computed, and nothing else can tell a Guided from the tensor it is."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.ir.verify import compare
from graphopt.runtime import guidance
from graphopt.runtime.guidance import GuidanceCounts, Guided, defer, resolve

Expression = Callable[..., Any]


class Denoiser:
    """What a deferred call would give, and which branches it was asked for."""

    def __init__(self, output: torch.Tensor, branches: int = 2) -> None:
        self.output, self.count, self.asked = output, branches, list[tuple[int, ...]]()
        self.counts = GuidanceCounts()

    def __call__(self, branches: tuple[int, ...]) -> torch.Tensor:
        self.asked.append(branches)
        if branches == tuple(range(self.count)):
            return self.output.clone()
        return torch.cat([self.output.chunk(self.count)[g] for g in branches])

    def defer(self) -> Guided:
        out = self.output
        return defer(
            self, out.shape, out.dtype, out.device, branches=self.count, strides=out.stride(), counts=self.counts
        )


def denoiser(branches: int = 2, rows: int = 2, dtype: torch.dtype = torch.float32) -> Denoiser:
    return Denoiser(torch.randn(branches * rows, 4, 6, 6).to(dtype), branches)


def check(expression: Expression, model: Denoiser, asked: list[tuple[int, ...]], accuracy: str = "bitwise") -> None:
    """`expression` of the branches: deferred against plain torch, and which branches were computed."""
    plain = expression(*model.output.clone().chunk(model.count))
    guided = expression(*model.defer().chunk(model.count))
    assert isinstance(guided, Guided)
    assert model.asked == []
    assert (guided.shape, guided.dtype, guided.stride()) == (plain.shape, plain.dtype, plain.stride())
    assert model.asked == []
    value = resolve(guided)
    assert type(value) is torch.Tensor
    assert model.asked == asked
    exact = expression(*model.output.double().chunk(model.count))
    wrong = compare([plain], [value], accuracy, exact=[exact])
    assert wrong is None, wrong
    assert value.stride() == plain.stride()


# -- guidance expressions --------------------------------------------------------------------------------------------

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
SCALES = st.sampled_from([1.0, 1, 0.0, -1.0, 7.5, 1.0 + 2**-40, 0.3]) | st.floats(-20, 20)


@given(SCALES, DTYPES, st.integers(1, 3))
def test_classifier_free_guidance(scale: float, dtype: torch.dtype, rows: int) -> None:
    asked = {1: (1,), 0: (0,)}.get(scale, (0, 1))  # type: ignore[call-overload]
    accuracy = "bitwise" if asked == (0, 1) else "rounding"
    check(lambda u, c: u + scale * (c - u), denoiser(2, rows, dtype), [asked], accuracy)
    check(lambda u, c: torch.lerp(u, c, scale), denoiser(2, rows, dtype), [asked], accuracy)
    check(lambda u, c: torch.add(u, c.sub(u), alpha=scale), denoiser(2, rows, dtype), [asked], accuracy)


@given(SCALES, SCALES, DTYPES)
def test_instruct_pix2pix(text: float, image: float, dtype: torch.dtype) -> None:
    weights = text, image - text, 1 - image  # of t, i and u, up to rounding: below only where it is exact
    model = denoiser(3, 2, dtype)
    if all(float(s).is_integer() for s in (text, image)):
        asked = tuple(g for g, weight in enumerate(weights) if weight)
        accuracy = "bitwise" if len(asked) == 3 else "rounding"
        check(lambda t, i, u: u + text * (t - i) + image * (i - u), model, [asked], accuracy)
    else:
        t, i, u = model.defer().chunk(3)
        value = resolve(u + text * (t - i) + image * (i - u))
        assert type(value) is torch.Tensor
        assert model.asked == [tuple(g for g, w in enumerate((text, image != text, image != 1)) if w)]


@given(SCALES, SCALES)
def test_perturbed_attention_guidance(scale: float, perturbed: float) -> None:
    model = denoiser(3)
    u, c, p = model.defer().chunk(3)
    pu, pc, pp = model.output.chunk(3)
    value = resolve(u + scale * (c - u) + perturbed * (c - p))
    if len(model.asked[0]) == 3:
        assert compare([pu + scale * (pc - pu) + perturbed * (pc - pp)], [value], "bitwise") is None
    assert (0 in model.asked[0]) == (scale != 1)
    assert (2 in model.asked[0]) == (perturbed != 0)


@st.composite
def expressions(draw: st.DrawFn) -> Expression:
    """Nested linear algebra with small whole numbers, in which weights cancel often."""
    numbers = st.sampled_from([-2, -1.0, 0, 0.5, 1, 1.0, 2.0, np.float64(2.0), np.float32(0.5), np.int64(2)])

    def grow(depth: int) -> Expression:
        if depth == 0:
            k = draw(st.integers(0, 2))
            return lambda *branches: branches[k]
        a, kind = grow(depth - 1), draw(st.integers(0, 10))
        if kind <= 4:
            b, s = grow(draw(st.integers(0, depth - 1))), draw(numbers)
            return [
                lambda *x: a(*x) + b(*x),
                lambda *x: a(*x) - b(*x),
                lambda *x: torch.sub(a(*x), b(*x), alpha=float(s)),
                lambda *x: torch.lerp(a(*x), b(*x), float(s)),
                lambda *x: torch.rsub(a(*x), b(*x)),
            ][kind]
        s = draw(numbers)
        return [
            lambda *x: -a(*x),
            lambda *x: a(*x) * s,
            lambda *x: s * a(*x),
            lambda *x: a(*x) / (s or 3),
            lambda *x: a(*x).clone(),
            lambda *x: 0 + a(*x),
        ][kind - 5]

    root = grow(draw(st.integers(1, 5)))
    return lambda *x: root(*x) + 0  # an operation at least


@given(expressions())
def test_nested(expression: Expression) -> None:
    output = torch.randint(-8, 8, (6, 2, 3)).double()  # so that all weights can be read off results, exactly
    unit = torch.eye(3, dtype=torch.float64).reshape(3, 3, 1).unbind()
    weights = expression(*unit).flatten()
    asked = tuple(g for g in range(3) if weights[g] != 0)
    model = Denoiser(output, 3)
    value = resolve(expression(*model.defer().chunk(3)))
    assert model.asked == ([asked] if asked else [])
    plain = expression(*output.chunk(3))
    assert compare([plain], [value], "rounding", exact=[plain]) is None


def test_interval_guidance_counts() -> None:
    counts, x = GuidanceCounts(), torch.randn(2, 4, 6, 6)
    for scale in (1.0, 7.5, 7.5, 1.0, 1.0):
        model = denoiser()
        model.counts = counts
        u, c = model.defer().chunk(2)
        x = x - 0.1 * (u + scale * (c - u))
        assert type(x) is torch.Tensor
        assert model.asked == [(1,) if scale == 1.0 else (0, 1)]
    assert (counts.calls, counts.branches, counts.computed, counts.skipped) == (5, 10, 7, 3)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_rescaled_guidance_computes(scale: float) -> None:
    def rescaled(noise: torch.Tensor) -> torch.Tensor:
        u, c = noise.chunk(2)
        guided = u + scale * (c - u)
        ratio = c.std(dim=[1, 2, 3], keepdim=True) / guided.std(dim=[1, 2, 3], keepdim=True)
        return 0.7 * (guided * ratio) + 0.3 * guided

    model = denoiser()
    value, plain, exact = rescaled(model.defer()), rescaled(model.output), rescaled(model.output.double())
    assert type(value) is torch.Tensor
    assert model.asked == [(1,)] if scale == 1.0 else sorted(model.asked) == [(0,), (1,)] or model.asked == [(0, 1)]
    assert compare([plain], [value], "rounding" if scale == 1.0 else "bitwise", exact=[exact]) is None


@pytest.mark.parametrize("scale", [torch.tensor(1.0), torch.tensor(2.5)])
def test_scale_in_a_tensor_is_read_when_it_is_used(scale: torch.Tensor) -> None:
    model, scale = denoiser(), scale.clone()
    plain = model.output[:2] + scale * (model.output[2:] - model.output[:2])
    u, c = model.defer().chunk(2)
    guided, one = u + scale * (c - u), bool(scale == 1)
    scale.fill_(100)
    assert isinstance(guided, Guided)
    assert compare([plain], [resolve(guided)], "rounding", exact=[plain.double()]) is None
    assert model.asked == [(1,) if one else (0, 1)]


def test_no_weight_at_all() -> None:
    model = denoiser()
    u, c = model.defer().chunk(2)
    assert torch.equal(0 * (u + c), torch.zeros(2, 4, 6, 6))
    assert model.asked == []


def test_a_dropped_branch_may_hold_anything() -> None:
    model = denoiser()
    model.output[:2] = torch.nan
    u, c = model.defer().chunk(2)
    assert torch.equal(resolve(u + 1.0 * (c - u)), model.output[2:])


def test_a_branch_that_is_known_is_not_dropped() -> None:
    model = denoiser()
    u, c = model.defer().chunk(2)
    guided, other = u + 1.0 * (c - u), c - u
    resolve(other)
    pu, pc = model.output.chunk(2)
    assert compare([pu + 1.0 * (pc - pu)], [resolve(guided)], "bitwise") is None
    assert model.asked == [(0, 1)]


def test_long_expressions() -> None:
    model = denoiser()
    u, c = model.defer().chunk(2)
    pu, total, plain = model.output[:2], u, model.output[:2]
    for _ in range(3000):
        total, plain = total * 0.5 + u, plain * 0.5 + pu
    assert model.asked == []
    assert torch.equal(resolve(total + c), plain + model.output[2:])


# -- cutting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.chunk(2),
        lambda x: x.chunk(2, 0),
        lambda x: x.chunk(chunks=2, dim=-4),
        lambda x: torch.chunk(x, 2),
        lambda x: torch.chunk(x, chunks=2, dim=0),
        lambda x: torch.chunk(input=x, chunks=2),
        lambda x: x.split(3),
        lambda x: torch.split(x, 3),
        lambda x: torch.split(x, [3, 3], dim=0),
        lambda x: torch.split(x, split_size_or_sections=3),
        lambda x: torch.tensor_split(x, 2),
        lambda x: x.tensor_split(2, dim=0),
        lambda x: (x[:3], x[3:]),
        lambda x: (x[0:-3], x[-3:6]),
        lambda x: (x[None:3:1], x[3:100]),
    ],
)
def test_cuts_into_branches(cut: Callable[[torch.Tensor], Any]) -> None:
    model = denoiser(rows=3)
    pieces = cut(model.defer())
    assert all(isinstance(piece, Guided) for piece in pieces)
    assert type(pieces) is type(cut(model.output))
    assert [(p.shape, p.stride()) for p in pieces] == [(p.shape, p.stride()) for p in cut(model.output)]
    assert model.asked == []
    for piece, plain in zip(reversed(pieces), reversed(cut(model.output)), strict=True):
        assert torch.equal(piece, plain)
    assert model.asked == [(1,), (0,)]


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.chunk(3),
        lambda x: x.chunk(2, dim=1),
        lambda x: x.split(2),
        lambda x: x.split([2, 4]),
        lambda x: x.split(3, dim=1),
        lambda x: x.tensor_split((1, 3)),
        lambda x: (x[:2], x[2:]),
        lambda x: (x[::2], x[1::2]),
        lambda x: (x[0], x[:3, 1:]),
        lambda x: (x[...], x[None]),
        lambda x: (x[torch.tensor(0) : torch.tensor(3)],),
        lambda x: tuple(x),
        lambda x: x.unbind(),
    ],
)
def test_other_cuts_compute(cut: Callable[[torch.Tensor], Any]) -> None:
    model = denoiser(rows=3)
    pieces = cut(model.defer())
    assert model.asked == [(0, 1)] or isinstance(pieces[0], Guided)
    for piece, plain in zip(pieces, cut(model.output), strict=True):
        assert torch.equal(piece, plain)


# -- what computes nothing, and what computes ------------------------------------------------------------------------


def test_metadata() -> None:
    model = denoiser()
    for value, plain in ((model.defer(), model.output), (model.defer()[:2] * 2, model.output[:2] * 2)):
        for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "itemsize", "nbytes"):
            assert getattr(value, name) == getattr(plain, name)
        for name in ("size", "stride", "dim", "numel", "is_floating_point", "is_complex", "is_contiguous", "__len__"):
            assert getattr(value, name)() == getattr(plain, name)()
        assert value.size(1) == 4
        assert torch.is_tensor(value)
        assert torch.is_floating_point(value)
        hash(value)
        with torch.no_grad():
            assert not (model.defer().requires_grad or model.defer().grad_fn)
    assert model.asked == []


def test_conversions_that_change_nothing() -> None:
    model = denoiser()
    with torch.no_grad():
        values = [model.defer(), model.defer()[2:], -model.defer()[2:]]
    for value in values:
        assert value.float() is value.to(torch.float32) is value.to("cpu") is value.contiguous() is value
        assert value.to(device="cpu", dtype=torch.float32) is value.to(torch.device("cpu"), torch.float32) is value
        assert isinstance(value.detach(), Guided)
    assert model.asked == []
    for other in (model.defer().half(), model.defer().to(torch.float64), model.defer().to("cpu", copy=True)):
        assert type(other) is torch.Tensor
    assert model.asked == [(0, 1)] * 3


def saved(value: torch.Tensor) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


ESCAPES: dict[str, Callable[[Any], Any]] = {
    "print": repr,
    "format": lambda x: f"{x.sum():.3f}",
    "numpy": lambda x: x.numpy(),
    "asarray": np.asarray,
    "ufunc": lambda x: np.add(x, 1),
    "array": lambda x: np.array(x, dtype=np.float64),
    "dlpack": torch.utils.dlpack.from_dlpack,
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x.sum().item(),
    "iterate": list,
    "index": lambda x: x[0, 1],
    "mask": lambda x: x[x > 0],
    "cat": lambda x: torch.cat([x, torch.ones(1, 4, 6, 6)]),
    "stack": lambda x: torch.stack((x, x)),
    "ordinary": lambda x: x + torch.ones(6, 6),
    "ordinary first": lambda x: torch.ones(6, 6) - x,
    "affine": lambda x: x + 1,
    "affine first": lambda x: 1 - x,
    "product": lambda x: x * x,
    "quotient": lambda x: 2 / x,
    "infinite": lambda x: x * float("inf"),
    "by zero": lambda x: x / 0,
    "integer division": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "power": lambda x: x**2,
    "compare": lambda x: x == x,
    "cpu": lambda x: x.cpu(),
    "clone": lambda x: x.clone(memory_format=torch.channels_last),
    "double": lambda x: x.double(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy in a list": lambda x: copy.deepcopy([x, {"x": x}])[0],
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "save": saved,
    "out": lambda x: torch.add(x, 1, out=torch.empty(0)),
    "vmap": lambda x: torch.func.vmap(lambda row: row * 2 + 1)(x),
    "grad": lambda x: torch.func.grad(lambda y: (y**2).sum())(x),
    "jvp": lambda x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1],
    "module": torch.nn.Conv2d(4, 3, 1),
    "functional": lambda x: F.interpolate(x, scale_factor=2.0),
    "einsum": lambda x: torch.einsum("bchw,bchw->b", x, x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "in place": lambda x: x.mul_(2),
    "augmented": lambda x: x.__iadd__(1),
    "ones like": lambda x: torch.ones_like(x) + torch.empty_like(x).zero_(),
    "storage": lambda x: x.untyped_storage().nbytes() // x.untyped_storage().nbytes(),
    "data": lambda x: x.data,
    "script": torch.jit.script(torch.nn.ReLU()),
    "split in C++": lambda x: torch.nn.utils.parameters_to_vector([x]),
    "without torch functions": lambda x: _without_functions(lambda: x + 1),
    "in place without torch functions": lambda x: _without_functions(lambda: x.mul_(2)),
    "view without torch functions": lambda x: _without_functions(lambda: x.reshape(-1)),
}


def _without_functions(work: Callable[[], Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return work()


def _leaves(value: Any) -> Any:
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["whole", "branch", "combination"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_everything_else_computes(name: str, kind: str, mode: Any) -> None:
    escape = ESCAPES[name]

    def value_of(noise: torch.Tensor) -> torch.Tensor:
        u, c = noise.chunk(2)
        return {"whole": noise, "branch": c, "combination": u + 1.5 * (c - u)}[kind]

    model = denoiser()
    with mode():
        # Twice: what is computed forwards everything from then on.
        value, plain = value_of(model.defer()), value_of(model.output.clone())
        for _ in range(2):
            got, expected = escape(value), escape(plain)
            assert type(got) is type(expected) or got is value  # as C++ answers operations in place
            if isinstance(expected, np.ndarray | torch.Tensor):
                assert torch.equal(_leaves(got), _leaves(expected))
            elif isinstance(expected, list) and isinstance(expected[0], torch.Tensor):
                assert all(type(a) is torch.Tensor and torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            else:
                assert got == expected
        assert torch.equal(value, plain)
    needed = {"whole": [(0, 1)], "branch": [(1,)], "combination": [(0, 1)]}
    assert model.asked == needed[kind]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x * "a",
        lambda x: x.add(x, alpha="a"),
        lambda x: x - True,
        lambda x: x * 10**30,
        lambda x: x + torch.ones(5),
        lambda x: x.lerp(x),
        lambda x: x.chunk(0),
        lambda x: x.nonsense,
    ],
)
def test_errors_are_torchs_own_and_come_at_once(wrong: Callable[[Any], Any]) -> None:
    model = denoiser()
    errors = []
    for value in (model.output[:2], model.defer()[:2]):
        try:
            wrong(value)
        except Exception as error:
            errors.append(type(error))
    assert len(errors) == 2
    assert errors[0] is errors[1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_other_dtypes_are_cut_and_no_more(dtype: torch.dtype) -> None:
    model = Denoiser(torch.randint(0, 2, (4, 3)).to(dtype))
    u, c = model.defer().chunk(2)
    assert model.asked == []
    combined = u * 2 + c
    assert type(combined) is torch.Tensor
    assert torch.equal(combined, model.output[:2] * 2 + model.output[2:])


def test_branches_of_two_calls_are_computed_together() -> None:
    one, two = denoiser(), denoiser()
    combined = one.defer()[:2] + two.defer()[2:]
    assert torch.equal(combined, one.output[:2] + two.output[2:])
    assert (one.asked, two.asked) == ([(0,)], [(1,)])


@pytest.mark.parametrize(
    "strides", [(144, 1, 24, 4), (1, 8, 32, 192), (200, 36, 6, 1)], ids=["channels last", "reversed", "with gaps"]
)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_layouts(strides: tuple[int, ...], scale: float) -> None:
    output = torch.empty_strided((4, 4, 6, 6), strides).copy_(torch.randn(4, 4, 6, 6))
    accuracy, asked = ("rounding", (1,)) if scale == 1 else ("bitwise", (0, 1))
    check(lambda u, c: u + scale * (c - u), Denoiser(output), [asked], accuracy)
    model = Denoiser(output)
    whole = model.defer()
    branch = resolve(whole[2:])
    assert (branch.stride(), branch.storage_offset()) == (strides, 2 * strides[0])
    assert torch.equal(branch, output[2:])
    assert resolve(whole).stride() == strides


# -- writing in place ------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "a branch": lambda w, u, c, g: c.mul_(2),
    "the other": lambda w, u, c, g: u.zero_(),
    "the whole": lambda w, u, c, g: w.add_(1),
    "rows of the whole": lambda w, u, c, g: w[1:3].fill_(3),
    "an item": lambda w, u, c, g: c.__setitem__((0, 0), 5.0),
    "a view of a branch": lambda w, u, c, g: c.view(-1)[3:].zero_(),
    "a combination": lambda w, u, c, g: g.neg_(),
    "a detached branch": lambda w, u, c, g: c.detach().zero_(),
    "a detached combination": lambda w, u, c, g: g.detach().zero_(),
    "through numpy": lambda w, u, c, g: c.numpy().fill(2),
    "as a result": lambda w, u, c, g: torch.add(torch.ones_like(c), 1, out=u),
    "another's value": lambda w, u, c, g: c.copy_(u),
    "through data": lambda w, u, c, g: u.data.fill_(4),
    "nothing": lambda w, u, c, g: c.sum(),
}


@hypothesis.settings(max_examples=150)
@given(
    st.lists(st.sampled_from(sorted(WRITES)), min_size=1, max_size=3), st.permutations(range(9)), st.booleans(),
    st.booleans(), st.integers(2, 3),
)  # fmt: skip
def test_all_agree_after_a_write(writes: list[str], order: list[int], early: bool, middle: bool, count: int) -> None:
    def work(noise: Any) -> list[torch.Tensor]:
        u, c, *others = noise.chunk(count)
        difference = c - u
        guided, pending = u + 1.5 * difference, difference * 3
        without = u + 1.0 * difference + 0.0 * (c - (others or [u])[0])
        within = (c - without) * 2 + u
        again = noise[2:4]
        if early:
            difference.sum()
        if middle:
            without.sum()
        for write in writes:
            WRITES[write](noise, u, c, guided)
            WRITES[write](noise, u, again, within)
            WRITES[write](noise, again, u, difference)
        late = u + 1.0 * c
        values = [noise, u, c, difference, guided, pending, without, within, late]
        read = {k: resolve(values[k]).clone() for k in order}
        return [read[k] for k in range(len(values))]

    # Small whole numbers, so that nothing is rounded: results without a branch agree in every bit as well.
    model = Denoiser(torch.randint(-8, 8, (2 * count, 4, 6, 6)).double(), count)
    with torch.no_grad():
        for got, plain in zip(work(model.defer()), work(model.output.clone()), strict=True):
            assert torch.equal(got, plain)


def test_views_share_memory() -> None:
    model = denoiser()
    whole = model.defer()
    u, c = whole.chunk(2)
    first = c[0]
    resolve(whole)
    first.zero_()
    for value in (whole[2], c[0], resolve(c)[0], resolve({"a": [whole]})["a"][0][2]):
        assert not value.any()
    assert c._base is resolve(whole)
    assert c.data_ptr() == whole.data_ptr() + c.storage_offset() * 4
    assert torch.equal(u, model.output[:2])


def test_the_same_tensor_every_time() -> None:
    value = denoiser().defer()
    assert resolve(value) is resolve([value])[0]
    assert resolve(3) == 3


def test_a_result_without_a_branch_has_memory_of_its_own() -> None:
    model = denoiser()
    u, c = model.defer().chunk(2)
    guided = u + 1.0 * (c - u)
    guided.zero_()
    assert torch.equal(c, model.output[2:])


# -- the call --------------------------------------------------------------------------------------------------------


def test_the_mode_of_the_call_holds() -> None:
    weight, modes = torch.ones((), requires_grad=True), list[tuple[bool, bool]]()

    def compute(branches: tuple[int, ...]) -> torch.Tensor:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return weight * torch.ones(len(branches), 3)

    def deferred() -> Guided:
        return defer(compute, (2, 3), torch.float32, torch.device("cpu"), branches=2)

    with torch.inference_mode():
        one = deferred()
    with torch.no_grad():
        two = deferred()
    three = deferred()
    with torch.no_grad():
        resolve(three)
    assert resolve(one).is_inference()
    assert not two.requires_grad
    assert not resolve(two).requires_grad
    assert three.requires_grad
    four = deferred()
    u, c = four.chunk(2)
    c.sum()
    (u + 1.0 * (c - u)).sum().backward()
    assert weight.grad == 3
    assert modes == [(True, False), (False, True), (False, False), (True, False), (True, False)]


def test_errors_surface_every_time() -> None:
    asked = []

    def compute(branches: tuple[int, ...]) -> torch.Tensor:
        asked.append(branches)
        raise RuntimeError("out of memory")

    u, c = defer(compute, (2, 3), torch.float32, torch.device("cpu"), branches=2).chunk(2)
    for read in (lambda: repr(u), lambda: c.sum(), lambda: resolve(u + c), lambda: c.mul_(2)):
        with pytest.raises(RuntimeError, match="out of memory"):
            read()
    assert asked == [(0,)]


@pytest.mark.parametrize("wrong", [torch.ones(1, 3), torch.ones(2, 3).double(), torch.ones(2, 4), None])
def test_a_call_that_breaks_its_promise(wrong: Any) -> None:
    value = defer(lambda branches: wrong, (2, 3), torch.float32, torch.device("cpu"), branches=2)
    with pytest.raises(UsageError, match="a denoiser call gave"):
        resolve(value)


@pytest.mark.parametrize(("shape", "branches"), [((3, 2), 2), ((), 1), ((2, 2), 0)])
def test_rows_that_are_no_branches(shape: tuple[int, ...], branches: int) -> None:
    with pytest.raises(UsageError, match="branches"):
        defer(lambda g: torch.ones(0), shape, torch.float32, torch.device("cpu"), branches=branches)


def test_no_rows() -> None:
    model = Denoiser(torch.ones(0, 3))
    assert [piece.shape for piece in model.defer().chunk(2)] == [(0, 3), (0, 3)]
    assert model.defer()[:0].shape == (0, 3)


def test_elements_that_share_memory() -> None:
    with pytest.raises(UsageError, match="share memory"):
        defer(lambda g: torch.ones(0), (2, 3), torch.float32, torch.device("cpu"), branches=2, strides=(0, 1))


def test_each_branch_is_computed_once_by_one_thread() -> None:
    for _ in range(20):
        model = denoiser()
        u, c = model.defer().chunk(2)
        start, results = threading.Barrier(4), list[torch.Tensor]()

        def work(scale: float, u: Any = u, c: Any = c, start: Any = start, results: Any = results) -> None:
            start.wait()
            results.append(resolve(u + scale * (c - u)))

        workers = [threading.Thread(target=work, args=(scale,)) for scale in (1.0, 0.0, 2.0, 1.0)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(results) == 4
        assert sorted(g for branches in model.asked for g in branches) == [0, 1]


def test_nothing_is_kept_longer_than_needed() -> None:
    model = denoiser()
    whole = model.defer()
    call, inputs = weakref.ref(whole._call), weakref.ref(model)
    u, c = whole.chunk(2)
    guided = u + 2.0 * (c - u)
    resolve(guided)
    del model
    assert inputs() is None  # all branches are known
    del whole, u, c, guided
    assert call() is None


# -- schedulers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
        "PNDMScheduler", "LCMScheduler", "FlowMatchEulerDiscreteScheduler",
        "DPMSolverSinglestepScheduler", "DEISMultistepScheduler",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_schedulers(name: str, scale: float) -> None:
    def sample(hold: bool) -> tuple[list[torch.Tensor], list[list[tuple[int, ...]]]]:
        scheduler, generator = getattr(diffusers, name)(), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(6)
        x = torch.randn(1, 4, 8, 8, generator=generator)
        taken, asked = [], []
        random = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
        for t in scheduler.timesteps:
            model = Denoiser(torch.cat([x * 0.5, x * 0.25 + 0.1]))
            noise = model.defer() if hold else model.output
            u, c = noise.chunk(2)
            # Without a branch the result is c itself; so it is here, that every bit can agree.
            guided = u + scale * (c - u) if hold or scale != 1.0 else c
            x = scheduler.step(guided, t, x, **random).prev_sample
            taken.append(x)
            asked.append(model.asked)
        return taken, asked

    (held, asked), (plain, _) = sample(True), sample(False)
    assert all(type(x) is torch.Tensor for x in held)
    assert compare(plain, held, "bitwise") is None
    assert asked == [[(1,)] if scale == 1.0 else [(0, 1)]] * len(held)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_within_compiled_functions() -> None:
    affine = torch.compile(lambda u, c: c * 2 + 1, backend="eager")
    guided = torch.compile(lambda u, c: u + 1.0 * (c - u), backend="eager")
    for function, kind in ((affine, torch.Tensor), (guided, Guided)):
        model = denoiser()
        result = function(*model.defer().chunk(2))
        assert type(result) is kind
        plain = model.output[2:] * 2 + 1 if function is affine else model.output[2:]
        assert torch.equal(result, plain)
        assert model.asked == [(1,)]


def test_no_address_before_there_is_memory() -> None:
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(RuntimeError, match="data pointer"):
        denoiser().defer().data_ptr()


def test_rules_name_functions_of_torch() -> None:
    assert all(callable(function) for function in guidance._RULES)
    assert {torch.Tensor.chunk, torch.chunk, torch.Tensor.__rsub__, torch.lerp} <= guidance._RULES.keys()
