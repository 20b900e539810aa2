from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from graphopt.targets.tvm import attention, build, isa
from graphopt.targets.tvm.attention import Index, Load, Mask, Shape
from graphopt.targets.tvm.emit import Buffer, Emitter, Expr
from graphopt.targets.tvm.isa import Isa

CPU = isa.detect()
# LLVM takes several registers for a vector that the CPU does not have.
WIDE = Isa(CPU.cpu, 16, 32)
NARROW = Isa(CPU.cpu, 4, 16)


def _at(strides: Sequence[int], index: Index) -> Expr:
    return sum((number * stride for number, stride in zip(index, strides, strict=True)), 0)


def _load(place: int, tensor: torch.Tensor) -> Load:
    step = tensor.stride(3)

    def load(emitter: Emitter, buffers: Sequence[Buffer], index: Index, lanes: int) -> Expr:
        return emitter.load(buffers[place], _at(tensor.stride(), index), lanes, step)

    return load


def run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    per_query: bool = True,
    causal: bool = False,
    scale: float | None = None,
    cpu: Isa = CPU,
) -> torch.Tensor:
    """What the kernels give; the output is written to memory in (batch, row, head, channel)."""
    batch, heads, queries, depth = query.shape
    values = value.shape[3]
    output = torch.full((batch, queries, heads, values), torch.nan).transpose(1, 2)
    strides = output.stride()
    tensors = [query, key, value, output]
    if mask is not None:
        mask = mask.expand(batch, heads, queries, key.shape[2])
        tensors.append(mask)

    def store(emitter: Emitter, buffers: Sequence[Buffer], index: Index, number: Expr) -> None:
        emitter.store(buffers[3], _at(strides, index), number)

    kernels, size = attention.kernels(
        "attention",
        cpu,
        Shape(batch, heads, key.shape[1], queries, key.shape[2], depth, values),
        scale=depth**-0.5 if scale is None else scale,
        causal=causal,
        mask=None if mask is None else Mask(_load(4, mask), per_query),
        arguments=["float32"] * len(tensors),
        query=_load(0, query),
        key=_load(1, key),
        value=_load(2, value),
        store=store,
    )
    workspace = torch.full((size + 16,), torch.nan)
    table = np.array([tensor.data_ptr() for tensor in (*tensors, workspace)])
    library = build.Library(cpu, [[build.Call(kernel, 0) for kernel in kernels]])
    library.run(0, table.ctypes.data)
    assert workspace[size:].isnan().all(), "past the workspace"
    return output


def close(found: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> None:
    options = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def qkv(shape: Shape, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def made(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    batch, heads, kv = shape.batch, shape.heads, shape.kv_heads
    return (
        made(batch, heads, shape.queries, shape.depth),
        made(batch, kv, shape.keys, shape.depth),
        made(batch, kv, shape.keys, shape.values),
    )


@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, 1, 1, 1, 1),
        Shape(1, 2, 2, 1, 77, 40, 40),
        Shape(2, 3, 3, 64, 77, 40, 40),
        Shape(1, 2, 2, 256, 256, 64, 64),
        Shape(1, 2, 2, 67, 1009, 8, 8),
        Shape(1, 1, 1, 100, 1, 13, 5),
        Shape(1, 1, 1, 33, 500, 17, 31),
        Shape(2, 1, 1, 5, 7, 160, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True])
def test_is_torchs_attention(shape: Shape, causal: bool) -> None:
    tensors = qkv(shape)
    close(run(*tensors, causal=causal), *tensors, is_causal=causal)


@pytest.mark.parametrize("cpu", [NARROW, WIDE], ids=["4 lanes", "16 lanes"])
@pytest.mark.parametrize("causal", [False, True])
def test_other_vectors(cpu: Isa, causal: bool) -> None:
    tensors = qkv(Shape(1, 2, 2, 150, 203, 24, 20))
    mask = torch.randn(150, 203)
    if causal:
        close(run(*tensors, causal=True, cpu=cpu), *tensors, is_causal=True)
    else:
        close(run(*tensors, mask=mask, cpu=cpu), *tensors, attn_mask=mask)


@pytest.mark.parametrize("keys", [50, 900])
@pytest.mark.parametrize("size", [(2, 2, 35, 0), (1, 1, 35, 0), (2, 1, 1, 0)], ids=str)
def test_additive_masks(size: tuple[int, ...], keys: int) -> None:
    tensors = qkv(Shape(2, 2, 2, 35, keys, 16, 24))
    mask = torch.randn(*size[:3], keys) * 3
    close(run(*tensors, mask=mask), *tensors, attn_mask=mask.expand(2, 2, 35, keys))


@pytest.mark.parametrize("per_query", [False, True])
def test_padding_masks(per_query: bool) -> None:
    tensors = qkv(Shape(2, 2, 2, 20, 77, 16, 16))
    mask = torch.zeros(2, 1, 1, 77)
    mask[0, ..., 11:] = -torch.inf
    close(run(*tensors, mask=mask, per_query=per_query), *tensors, attn_mask=mask)


@pytest.mark.parametrize("keys", [40, 800])
def test_a_query_that_sees_nothing_gives_zero(keys: int) -> None:
    tensors = qkv(Shape(1, 1, 1, 30, keys, 16, 16))
    mask = torch.zeros(30, keys)
    mask[3] = mask[29] = -torch.inf
    mask[5, :-1] = -torch.inf  # the one key that is seen lies in the last block
    mask[7] = torch.finfo(torch.float32).min  # finite: all keys count alike
    found = run(*tensors, mask=mask)
    assert (found[:, :, [3, 29]] == 0).all()
    torch.testing.assert_close(found[:, :, 5], tensors[2][:, :, -1])
    torch.testing.assert_close(found[:, :, 7], tensors[2].mean(2), rtol=1e-4, atol=1e-5)


def test_large_scores_and_not_a_number() -> None:
    query, key, value = qkv(Shape(1, 1, 1, 17, 500, 16, 16))
    close(run(query * 100, key, value), query * 100, key, value)
    query[0, 0, 4, 3] = torch.nan
    found = run(query, key, value)
    assert found[0, 0, 4].isnan().all()
    assert not found[0, 0, :4].isnan().any() and not found[0, 0, 5:].isnan().any()


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_share_keys_and_values(kv_heads: int) -> None:
    tensors = qkv(Shape(2, 4, kv_heads, 20, 50, 16, 16))
    close(run(*tensors), *tensors, enable_gqa=True)


def test_views() -> None:
    heads_last = [torch.randn(2, 30, 3, 16).transpose(1, 2) for _ in range(3)]
    close(run(*heads_last, scale=0.3), *heads_last, scale=0.3)
    channels_first = [torch.randn(2, 3, 16, 30).transpose(2, 3) for _ in range(3)]
    close(run(*channels_first), *channels_first)


def test_tasks_of_fewer_panels() -> None:
    shape = Shape(2, 6, 6, 13 * CPU.tile[1] - 3, 30, 8, 8)
    plan = attention._plan(CPU, shape)
    assert plan.panels % plan.together
    tensors = qkv(shape)
    close(run(*tensors), *tensors)
    close(run(*tensors, causal=True), *tensors, is_causal=True)


@pytest.mark.parametrize("cpu", [NARROW, CPU, WIDE], ids=["4 lanes", "this one", "16 lanes"])
@pytest.mark.parametrize("short", [0, 3])
def test_a_last_panel_of_fewer_queries(cpu: Isa, short: int) -> None:
    """It takes fewer vectors than the others, and is alone in the last task."""
    shape = Shape(1, 6, 6, 6 * cpu.tile[1] + cpu.lanes - short, 130, 24, 8)
    plan = attention._plan(cpu, shape)
    assert plan.last < plan.vectors and plan.panels % plan.together
    tensors, mask = qkv(shape), torch.randn(shape.queries, shape.keys)
    close(run(*tensors, cpu=cpu), *tensors)
    close(run(*tensors, cpu=cpu, causal=True), *tensors, is_causal=True)
    close(run(*tensors, cpu=cpu, mask=mask), *tensors, attn_mask=mask)


def sizes(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.builds(Shape, sizes(2), sizes(3), st.just(1), sizes(70), sizes(70), sizes(40), sizes(40)),
    st.booleans(),
    st.sampled_from([CPU, NARROW]),
    st.integers(0, 99),
)
def test_any_shape(shape: Shape, causal: bool, cpu: Isa, seed: int) -> None:
    shape = replace(shape, kv_heads=shape.heads)
    tensors = qkv(shape, seed)
    close(run(*tensors, causal=causal, cpu=cpu), *tensors, is_causal=causal)
