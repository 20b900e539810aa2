"""A Program as bytes comes back as it was: values are not inferred anew, so nothing may be lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import GraphoptError, UsageError
from graphopt.ir import stored
from graphopt.ir.driver import run_pass, run_pipeline
from graphopt.ir.printer import dump
from graphopt.ir.program import Program, val
from graphopt.ir.relations import Constant, Repeated, Unchanged, specialise
from graphopt.ir.verify import compare, evaluate, example_inputs
from graphopt.passes import Hoist
from graphopt.pipelines import PIPELINES
from graphopt.testing import random_graph, sketch, trace
from tests.ir import models


def check(program: Program) -> Program:
    """Write and read: the same text, bytes, values and meta."""
    content = stored.write(program)
    found = stored.read(content)
    assert dump(found) == dump(program)
    assert stored.write(found) == content
    assert (found.inputs, found.relations, found.out_spec) == (program.inputs, program.relations, program.out_spec)
    for old, new in zip(program.nodes, found.nodes, strict=True):
        assert (new.op, new.name, new.target) == (old.op, old.name, old.target) or old.op == "placeholder"
        assert repr((new.args, new.kwargs)) == repr((old.args, old.kwargs))
        before, after = (value if isinstance(value, tuple | list) else [value] for value in (val(old), val(new)))
        for one, other in zip(before or [], after or [], strict=True):
            if isinstance(one, torch.Tensor):
                assert _form(one) == _form(other)
    return found


def _form(value: torch.Tensor) -> Any:
    return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device


@pytest.mark.parametrize("model", [models.unet, models.pixart])
@pytest.mark.parametrize("pipeline", [None, *PIPELINES])
def test_models_as_captured_and_after_passes(model: Callable[[], Program], pipeline: str | None) -> None:
    program = model()
    check(program if pipeline is None else run_pipeline(PIPELINES[pipeline], program))


@given(st.integers(0, 2**32), st.booleans())
def test_random_graphs(seed: int, wider: bool) -> None:
    program = random_graph(random.Random(seed).randrange, 12, symbolic=False, wider=wider)
    found, inputs = check(program), example_inputs(program)
    torch.manual_seed(0)
    want = evaluate(program, inputs)
    torch.manual_seed(0)
    assert compare(want, evaluate(found, inputs), "bitwise") is None


def test_arguments_of_every_kind() -> None:
    program = sketch(
        """
        full = ops.aten.full.default([2, 3], -inf, dtype=torch.float32, layout=torch.strided, device=device('cpu'))
        add = ops.aten.add.Tensor(full, x, alpha=-0.0)
        clone = ops.aten.clone.default(add, memory_format=torch.contiguous_format)
        split = ops.aten.split_with_sizes.default(clone, [1, 1])
        getitem = operator.getitem(split, 0)
        index = ops.aten.index.Tensor(x, [None, i])
        power = ops.aten.pow.Tensor_Scalar(getitem, 2.5)
        nan_to_num = ops.aten.nan_to_num.default(power, nan, None)
        sum_1 = ops.aten.sum.dim_IntList(index, (0,), True)
        return (nan_to_num, None, sum_1)
        """,
        x="f32[2, 3]",
        i="i64[2]",
    ).program
    found = check(program)
    add = next(node for node in found.nodes if node.name == "add")
    assert str(add.kwargs["alpha"]) == "-0.0"


def test_relations_placements_and_rules() -> None:
    program = sketch(
        "a = ops.aten.sin.default(c)\nb = ops.aten.mul.Tensor(x, a)\nreturn (b,)", x="f32[4, 6]", c="condition f32[6]"
    ).program
    specialised, _ = specialise(program, (Repeated("x", 2), Unchanged("c"), Constant("x", 1, 2, 4)))
    found = check(run_pass(Hoist(), specialised))
    assert {"placement", "rules"} <= set().union(*(node.meta for node in found.nodes))


def test_constants() -> None:
    half, none = torch.randn(3).to(torch.bfloat16), torch.empty(0)

    def network(x: torch.Tensor) -> torch.Tensor:
        return x * half.float() + none.sum()

    program = trace(network, torch.randn(2, 3)).program
    assert program.constants
    found = check(program)
    for name, value in program.constants.items():
        assert torch.equal(found.constants[name], value) and found.constants[name].dtype == value.dtype
        assert found.constants[name].data_ptr() != value.data_ptr() or not value.numel()


def test_what_has_no_form_is_refused() -> None:
    symbolic = random_graph(random.Random(3).randrange, 6, symbolic=True)
    with pytest.raises(UsageError, match="no form as bytes"):
        stored.write(symbolic)
    turned = trace(lambda x: x + 1, torch.randn(2, 3)).program
    turned.constants["x"] = torch.randn(3, 2).T
    with pytest.raises(UsageError, match="not contiguous"):
        stored.write(turned)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"state"', '"weather"'),
        ("ops.aten.sin.default", "ops.aten.sine.default"),
        ("ops.aten.sin.default", "os.system"),
        ("float32", "Tensor"),
        ('"nodes":', '"knots":'),
        ("{", "["),
    ],
)
def test_bytes_of_another_form_raise(old: str, new: str) -> None:
    program = sketch("a = ops.aten.sin.default(x)\nreturn (a,)", x="f32[3]").program
    content = stored.write(program).decode()
    assert old in content
    with pytest.raises((GraphoptError, ValueError, KeyError, TypeError, AttributeError)):
        stored.read(content.replace(old, new).encode())
