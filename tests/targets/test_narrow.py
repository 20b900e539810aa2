"""Kernels that multiply bfloat16: numbers by an emulation of the instruction, and code for a CPU that has it."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

pytest.importorskip("tvm")

import graphopt
from graphopt.ir import products
from graphopt.ir.driver import run_pipeline
from graphopt.ir.rewrite import Pass
from graphopt.ir.stages import split
from graphopt.passes import NarrowProducts, Upcast, Winograd
from graphopt.pipelines import generated
from graphopt.targets.tvm.dot import BFLOAT16
from graphopt.targets.tvm.generate import Generated
from graphopt.targets.tvm.isa import Isa, detect, of
from graphopt.targets.tvm.places import Panels, size_of
from graphopt.targets.tvm.running import Code
from graphopt.testing import trace

EMULATED = dataclasses.replace(detect(), bf16=False)
WITH = of("znver5")


def narrow(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def code(function: Callable[..., Any], *inputs: torch.Tensor, isa: Isa = EMULATED) -> Code:
    program = trace(function, *inputs).program
    return Code(isa, program.graph, inputs, torch.nn.Module(), {})


def check(function: Callable[..., Any], *inputs: torch.Tensor) -> Code:
    """Assert that a function's results are those in float64, but for rounding of sums, and that all is generated."""
    made = code(function, *inputs)
    assert not made.builder.plan.left
    (result,) = made(*inputs)
    exact = function(*(value.double() for value in inputs))
    # No term is larger than the largest sum of absolute values; sums are cut into runs.
    bound = 4e-6 * function(*(value.double().abs() for value in inputs)).abs().amax()
    if result.dtype == torch.bfloat16:
        bound = bound + 2**-8 * exact.abs()
    assert bool(((result.double() - exact).abs() <= bound).all())
    return made


# -- numbers ---------------------------------------------------------------------------------------------------------

NUMBERS = (0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.3, 3.4e38, float("inf"), -float("inf"))


@pytest.mark.parametrize("count", [1, 5, 64])
def test_rounding_is_torchs(count: int) -> None:
    bits = torch.randint(-(1 << 31), 1 << 31, (count * 97,)).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([*NUMBERS, float("nan"), 1e-40])])
    made = code(lambda x: x.to(torch.bfloat16), x)
    assert not made.builder.plan.left
    (result,) = made(x)
    expected = x.to(torch.bfloat16)
    assert torch.equal(result.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(result.view(torch.int16)[known], expected.view(torch.int16)[known])
    (wide,) = code(lambda x: x.float(), expected)(expected)
    assert torch.equal(wide[known], expected.float()[known])


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 20), terms=st.integers(1, 70), columns=st.integers(1, 40), bias=st.booleans())
def test_any_linear_layer(rows: int, terms: int, columns: int, bias: bool) -> None:
    inputs = narrow(rows, terms), narrow(columns, terms), *([torch.randn(columns)] if bias else [])
    made = check(lambda x, w, *b: products.linear(x, w, *b), *inputs)
    assert any(name.startswith("linear_bf16") for name in made.names())


@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 1, 1), (37, 1301, 67), (97, 128, 131)])
def test_what_follows_is_part_of_the_kernel(rows: int, terms: int, columns: int) -> None:
    made = code(
        lambda x, w, b, y: (F.silu(products.linear(x, w, b)) + y).to(torch.bfloat16),
        *(inputs := (narrow(rows, terms), narrow(columns, terms), torch.randn(columns), torch.randn(rows, columns))),
    )
    (result,) = made(*inputs)
    x, w, b, y = (value.double() for value in inputs)
    assert torch.allclose(result.double(), F.silu(x @ w.T + b) + y, rtol=2**-8, atol=1e-4)
    assert sum(name.startswith(("linear", "pointwise")) for name in made.names()) == 1


def test_rows_lie_where_they_are_only_if_their_pairs_do() -> None:
    w = narrow(8, 6)
    x = narrow(5, 14)
    assert check(lambda x, w: products.linear(x[:, 2:8], w), x, w).names() == ["linear_bf16_1"]
    assert "copy_1" in check(lambda x, w: products.linear(x[:, 1:7], w), x, w).names()
    assert "copy_1" in check(lambda x, w: products.linear(x.T, w), narrow(6, 5), w).names()


@settings(max_examples=10, deadline=None)
@given(
    batch=st.sampled_from([(), (2,), (2, 3)]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 35), st.integers(1, 35)),
    turned=st.booleans(),
)
def test_any_matrix_product(batch: tuple[int, ...], sizes: tuple[int, int, int], turned: bool) -> None:
    rows, terms, columns = sizes
    y = narrow(*batch, columns, terms) if turned else narrow(*batch, terms, columns)
    check(lambda x, y: products.matmul(x, y.mT if turned else y), narrow(*batch, rows, terms), y)


@settings(max_examples=10, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 13)),
    size=st.tuples(st.integers(3, 18), st.integers(3, 18)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3), (1, 3)]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
)
def test_any_convolution(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
) -> None:
    if any(edge + 2 * padding <= dilation * (taps - 1) for edge, taps in zip(size, kernel, strict=True)):
        return
    options: Any = ([stride] * 2, [padding] * 2, [dilation] * 2)
    inputs = narrow(2, channels[0], *size), narrow(channels[1], channels[0], *kernel), torch.randn(channels[1])
    made = check(lambda x, w, b: products.conv2d(x, w, b, *options), *inputs)
    assert any(name.startswith("conv2d_bf16") for name in made.names())


def test_convolution_of_many_channels() -> None:
    check(lambda x, w: products.conv2d(x, w, None, [1, 1], [1, 1]), narrow(1, 301, 8, 8), narrow(7, 301, 3, 3))


def test_input_of_a_convolution_is_rounded_where_it_is_laid_out() -> None:
    x, w, m = torch.randn(2, 8, 16, 16), narrow(8, 8, 3, 3), torch.rand(2, 8, 16, 16) > 0.5
    made = code(
        lambda x, w, m: torch.where(products.conv2d(F.silu(x).bfloat16(), w, None, [1, 1], [1, 1]) > 0, m, ~m), x, w, m
    )
    assert made.names()[:2] == ["pad_bf16_1", "conv2d_bf16_2"]


def test_values_that_are_not_finite() -> None:
    x, w = narrow(3, 5), narrow(4, 5)
    x[0, 0], x[1, 4] = float("inf"), float("nan")
    (result,) = code(lambda x, w: products.linear(x, w), x, w)(x, w)
    assert torch.equal(result.isfinite(), torch.tensor([[False], [False], [True]]).expand(3, 4))


@pytest.mark.parametrize("group", [2, 4])
def test_panels_hold_groups_of_terms(group: int) -> None:
    weight = torch.arange(1, 1 + 5 * 7 * 3).view(5, 7, 3).to(torch.int16)
    panels = Panels(fx.Graph().placeholder("weight"), 4, group=group).pack(weight)
    assert panels.shape == (2, -(-7 // group) * 3, 4, group)
    for output, term, tap in ((0, 0, 0), (4, 6, 2), (3, 5, 1)):
        place = panels[output // 4, term // group * 3 + tap, output % 4, term % group]
        assert place == weight[output, term, tap]
    assert int((panels != 0).sum()) == weight.numel()


# -- code ------------------------------------------------------------------------------------------------------------


def loops(assembly: str) -> list[list[str]]:
    """The innermost loops of some code that multiply pairs."""
    lines = [line.strip() for line in assembly.splitlines()]
    labels = {line[:-1]: place for place, line in enumerate(lines) if line.startswith(".L") and line.endswith(":")}
    found = list[list[str]]()
    for place, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.\w+)", line)
        if jump and labels.get(jump[1], place) < place:
            body = lines[labels[jump[1]] : place]
            if any("vdpbf16ps" in each for each in body) and not any(re.match(r"j\w+\s", each) for each in body):
                found.append(body)
    return found


@pytest.mark.parametrize(
    ("function", "inputs", "spilled"),
    [
        (lambda x, w, b: F.gelu(products.linear(x, w, b)), (narrow(480, 384), narrow(1536, 384), torch.randn(1536)), 0),
        (lambda x, y: products.matmul(x, y), (narrow(4, 60, 64), narrow(4, 64, 128)), 0),
        (
            lambda x, w: products.conv2d(x, w, None, [1, 1], [1, 1]),
            (narrow(1, 64, 32, 32), narrow(64, 64, 3, 3)),
            0.05,  # of nine taps, unrolled, LLVM holds more than the registers that there are, as in float32
        ),
    ],
    ids=["linear", "matmul", "conv2d"],
)
def test_products_are_one_instruction_in_registers(
    function: Callable[..., Any], inputs: Sequence[torch.Tensor], spilled: float
) -> None:
    graph = trace(function, *inputs).program.graph
    found = loops(Generated(WITH, graph, inputs).source("asm"))
    assert found
    for body in found:
        multiplied = [line for line in body if "vdpbf16ps" in line]
        assert len(multiplied) >= 24 and all(line.count("%zmm") == 3 for line in multiplied)
        assert sum("%rsp" in line for line in body) <= spilled * len(multiplied)  # to the stack, and back


def test_rounding_is_one_instruction() -> None:
    x = torch.randn(64, 64)
    graph = trace(lambda x: x.to(torch.bfloat16), x).program.graph
    assert "vcvtneps2bf16" in Generated(WITH, graph, [x]).source("asm")
    assert "vcvtneps2bf16" not in Generated(dataclasses.replace(WITH, bf16=False), graph, [x]).source("asm")


def test_which_cpus_have_it() -> None:
    assert WITH.bf16 and of("cooperlake").bf16
    assert not of("skylake-avx512").bf16 and not of("znver3").bf16


# -- models ----------------------------------------------------------------------------------------------------------


def pipeline(rounds: bool) -> tuple[Pass, ...]:
    """That of the target, as on a CPU that multiplies bfloat16, or on one that does not."""
    passes: dict[type[Pass], Pass] = {
        Upcast: Upcast(always=True, products=rounds),
        NarrowProducts: NarrowProducts(always=rounds),
        Winograd: Winograd(min_gain=0.0),
    }
    return tuple(passes.get(type(entry), entry) for entry in generated)


class Transformer(torch.nn.Module):
    """A block as in diffusion transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64, elementwise_affine=False)
        self.query, self.key, self.value, self.out = (torch.nn.Linear(64, 64) for _ in range(4))
        self.modulate, self.up, self.down = torch.nn.Linear(64, 128), torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        shift, scale = self.modulate(F.silu(t))[:, None].chunk(2, dim=-1)
        hidden = self.norm(x) * (1 + scale) + shift
        heads = (layer(hidden).unflatten(-1, (4, 16)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        result: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))
        return result


class Residual(torch.nn.Module):
    """A block as in U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList([torch.nn.GroupNorm(4, 32), torch.nn.GroupNorm(4, 48)])
        self.first, self.second = torch.nn.Conv2d(32, 48, 3, padding=1), torch.nn.Conv2d(48, 32, 3, padding=1)
        self.time, self.down = torch.nn.Linear(64, 48), torch.nn.Conv2d(32, 33, 3, 2, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        hidden = self.first(F.silu(self.norms[0](x))) + self.time(F.silu(t))[:, :, None, None]
        result: torch.Tensor = self.down(x + self.second(F.silu(self.norms[1](hidden))))
        return result


@pytest.mark.parametrize(
    ("model", "shape"), [(Transformer, (2, 21, 64)), (Residual, (2, 32, 12, 12))], ids=["transformer", "residual"]
)
def test_models_are_nearer_to_exact_than_torch(model: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    half = model().eval().to(torch.bfloat16)
    inputs = narrow(*shape), narrow(2, 64)
    with torch.no_grad():
        exact = copy.deepcopy(half).double()(*(value.double() for value in inputs))
        was = half(*inputs)
    compiled = graphopt.compile(half, inputs=inputs, target="tvm", pipeline=pipeline(True), strict=True)
    with torch.no_grad():
        now = compiled(*inputs)
    errors = [(value.double() - exact).square().mean().sqrt().item() for value in (was, now)]
    assert errors[1] < errors[0]
    graphopt.restore(compiled)


def kernels(model: torch.nn.Module, passes: Sequence[Pass], *inputs: torch.Tensor) -> list[str]:
    """Names of the kernels of a model's step, without numbers, that multiply."""
    part = split(run_pipeline(passes, trace(model.eval(), *inputs).program, strict=True))[-1]
    values = [node.meta["val"] for node in part.graph.find_nodes(op="placeholder")]
    examples = [torch.empty_strided(value.shape, value.stride(), dtype=value.dtype) for value in values]
    made = Generated(WITH, part.graph, examples).builder.kernels
    names = (re.sub(r"_\d+$", "", name.removeprefix("graphopt_")) for name in made)
    return sorted({name for name in names if name.startswith(("linear", "conv2d", "winograd"))})


def test_kernels_say_what_they_multiply() -> None:
    block, image = Transformer().bfloat16(), Residual().bfloat16()
    assert kernels(block, pipeline(True), narrow(2, 21, 64), narrow(2, 64)) == ["linear_bf16"]
    assert kernels(image, pipeline(True), narrow(2, 32, 12, 12), narrow(2, 64)) == ["conv2d_bf16", "linear_bf16"]
    assert kernels(image, pipeline(False), narrow(2, 32, 12, 12), narrow(2, 64)) == [
        *("conv2d", "linear", "winograd", "winograd_input"),
    ]


def test_models_of_float32_stay() -> None:
    block, image = Transformer(), Residual()
    assert kernels(block, pipeline(True), torch.randn(2, 21, 64), torch.randn(2, 64)) == ["linear"]
    assert "winograd" in kernels(image, pipeline(True), torch.randn(2, 32, 12, 12), torch.randn(2, 64))
    half = Transformer().half()
    assert kernels(half, pipeline(True), torch.randn(2, 21, 64).half(), torch.randn(2, 64).half()) == ["linear"]


def test_panels_of_pairs_take_the_bytes_of_the_weight() -> None:
    x, w = narrow(4, 8), narrow(16, 8)
    made = code(lambda x, w: products.linear(x, w), x, w)
    panels = [place for step in made.plan.kernels for place in step.slots if isinstance(place, Panels)]
    assert [(place.group, size_of(place)) for place in panels] == [(BFLOAT16.terms, 2 * w.numel())]
