"""Whatever a Program of a real model holds is written and read back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt import pipelines
from graphopt.capture.export import program_of
from graphopt.errors import UsageError
from graphopt.ir.driver import run_pass
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program
from graphopt.ir.relations import Constant, Paired, Repeated, Unchanged, specialise
from graphopt.ir.rewrite import Match
from graphopt.ir.verify import evaluate, example_inputs, verify
from graphopt.testing import Traced, random_graph, sketch, trace
from tests.capture.test_models import KINDS
from tests.ir import models


def check(program: Program) -> Program:
    """What was read back, which prints as what was read and has the same boundary."""
    text = dump(program)
    again = parse(text)
    assert dump(again) == text
    program = program.copy()
    program.rule = again.rule = "every node"
    verify(program, again)
    return again


def controlnet() -> tuple[Any, dict[str, Any]]:
    model = diffusers.ControlNetModel(
        in_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=2, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 8), controlnet_conditioning_channel_order="rgb",
    )  # fmt: skip
    return model, {
        "sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(7), "encoder_hidden_states": torch.randn(2, 5, 8),
        "controlnet_cond": torch.randn(2, 3, 16, 16), "return_dict": False,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "controlnet"])
def test_models_after_every_pass(name: str) -> None:
    model, call = controlnet() if name == "controlnet" else KINDS[name]()
    tensors = {key: torch.tensor([value]) if key == "timestep" and value == 7 else value for key, value in call.items()}
    program = check(trace(model.eval().requires_grad_(False), **tensors, roles=ROLES).program)
    for pass_ in pipelines.packed:
        program = run_pass(pass_, program)
        check(program)


ROLES: Any = {"timestep": "time", "encoder_hidden_states": "condition"}


@pytest.mark.parametrize("model", [models.pixart, pytest.param(models.unet, marks=pytest.mark.slow)])
def test_guided_models_after_every_pass(model: Callable[[], Program]) -> None:
    program = model()
    state = next(entry.path for entry in program.inputs if entry.role == "state")
    program, _ = specialise(program, [Repeated(state, 2), Paired(2)])
    for pass_ in pipelines.packed:
        program = run_pass(pass_, program)
        assert check(program).relations == program.relations


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_random_graphs(seed: int) -> None:
    program = random_graph(seed)
    again = check(program)
    inputs = example_inputs(program)
    for ours, theirs in zip(evaluate(again, inputs), evaluate(program, inputs), strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_relations() -> None:
    known = (Repeated("x", 2), Unchanged("y"), Constant("z", 1, 0, 4), Paired(3))
    program = sketch("return (x,)", x="f32[2]").program
    program.relations = known
    assert check(program).relations == known
    with pytest.raises(UsageError, match="no relation 'Doubled'"):
        parse(dump(program).replace("'Repeated'", "'Doubled'"))


@pytest.mark.parametrize(
    "value",
    ["c64[2]", "c128[2]", "f16[2]", "i8[2]", "u8[]", "bool[3, 0]", "float8_e4m3fn[2]", "uint16[2]", "i64[2] on meta",
     "f32[2, 3] strides (1, 2)", "f32[1, 3] strides (7, 1)", "f32[4, 2] strides (0, 1)", "f32[2] on cuda:0"],
)  # fmt: skip
def test_values(value: str) -> None:
    check(sketch("return (x,)", x=value).program)


@pytest.mark.parametrize(
    "line",
    [
        "full.default([2], -inf, dtype=torch.float64, layout=torch.strided, device=device('cpu'))",
        "full.default([2], (1+2j), dtype=torch.complex64)",
        "clone.default(x, memory_format=torch.contiguous_format)",
        "index.Tensor(x, [None, i])",
        "einsum.default('ij->ji', [x])",
        "mul.Tensor(x, -0.0)",
        "pow.Tensor_Scalar(x, 1e-05)",
        "to.dtype_layout(x, dtype=torch.bfloat16)",
        "__and__.Tensor(i, i)",
    ],
)
def test_arguments(line: str) -> None:
    check(sketch(f"y = ops.aten.{line}\nreturn (y, None)", x="f32[2, 3]", i="i64[2]").program)


def test_results_in_tuples_and_python_numbers() -> None:
    program = sketch(
        """
        split = ops.aten.split.Tensor(x, 1)
        first = operator.getitem(split, 0)
        rest = operator.getitem(split, slice(1, None, None))
        size = ops.aten.sym_size.int(x, 0)
        more = operator.add(size, 1)
        check = ops.aten._assert_async.msg(b, 'is true')
        return (first, None)
        """,
        x="f32[2, 3]",
        b="bool[]",
    ).program
    again = check(program)
    assert again.results[1] is None
    assert evaluate(again, [torch.ones(2, 3), torch.tensor(True)])[1] is None


class _Nested(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"pair": (x + 1, None), "more": [x * 2]}


def test_how_results_are_put_together() -> None:
    program = trace(_Nested(), torch.ones(3)).program
    again = check(program)
    assert "RESULT = " in dump(program)
    assert again.out_spec == program.out_spec
    assert "RESULT" not in dump(sketch("return (x,)", x="f32[3]").program)


class _Branches(torch.nn.Module):
    """Two levels of subgraphs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def outer(x: torch.Tensor) -> torch.Tensor:
            inner: torch.Tensor = torch.cond(x.sum() > 10, lambda x: x * 2, lambda x: x * 3, (x,))
            return inner + 1

        found: torch.Tensor = torch.cond(x.mean() > 0, outer, lambda x: x - 1, (x,))
        return found


def test_subgraphs() -> None:
    model, inputs = _Branches(), torch.randn(3, 4)
    program = trace(model, inputs).program
    text = dump(program)
    again = check(program)
    assert text.count("\ndef ") == 5
    for scale in (1, -1, 100):
        assert torch.equal(evaluate(again, [scale * inputs])[0], model(scale * inputs))
    name = text.partition("GRAPHS['")[2].partition("'")[0]
    with pytest.raises(UsageError, match="there is no function 'other'"):
        parse(text.replace(f"GRAPHS['{name}']", "GRAPHS['other']"))


def dynamic() -> Program:
    batch = torch.export.Dim("batch", min=2, max=64)
    model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Flatten(0))
    exported = torch.export.export(model, (torch.zeros(4, 8),), dynamic_shapes=({0: batch},)).run_decompositions({})
    return program_of(exported, {"input": "state"}, ["input"], name="dynamic")


def test_symbolic_sizes() -> None:
    program = dynamic()
    text = dump(program)
    again = parse(text)
    assert "SIZES = {'s" in text
    assert dump(again) == text
    assert evaluate(again, [*example_inputs(program)[:-1], torch.ones(5, 8)])[0].shape == (15,)


def test_sizes_known_only_when_the_program_runs() -> None:
    text = dump(dynamic())
    symbol = text.partition("SIZES = {'")[2].partition("'")[0]
    with pytest.raises(UsageError, match="the size 'u0' is known only when the program runs"):
        parse(text.replace(f"'{symbol}'", "'u0'"))
    with pytest.raises(UsageError, match="the size 'other' cannot be read; symbols are listed in SIZES"):
        parse(text.replace(f"f32[{symbol}, 8]'", "f32[other, 8]'"))


def test_a_tensor_that_the_graph_holds_has_no_text() -> None:
    program = sketch("return (x,)", x="f32[3]").program
    program.root.register_buffer("table", torch.ones(3))
    program.graph.inserting_before(program.output).__enter__()
    program.output.args = ((program.graph.get_attr("table"),),)
    with pytest.raises(UsageError, match="the graph holds a Tensor, which a dump cannot"):
        dump(program)


# -- edits -----------------------------------------------------------------------------------------------------------

BODY = """
    sin = ops.aten.sin.default(x)
    mul = ops.aten.mul.Tensor(sin, w)
    return (mul,)
"""


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("aten.sin.default", "aten.sinn.default", r"no operator ops.aten.sinn\n.*:\d+: sin = .*\n.*did you mean 'sin'"),
        ("aten.sin.default", "aten.sin.defalt", r"no operator ops.aten.sin.defalt.*\n.*\n.*did you mean 'default'"),
        ("aten.sin.default", "aten.sin", r"ops.aten.sin has several forms.*\n.*\n.*ops.aten.sin.default"),
        ("aten.sin.default", "atem.sin.default", "there is no operator ops.atem.sin"),
        ("ops.aten.sin.default", "torch.load", "torch.load is no operator of a graph"),
        ("ops.aten.sin.default", "open", "'open' is none of math, operator, ops, torch"),
        ("Tensor(sin, w)", "Tensor(sim, w)", r"'sim' is not defined above this line\n.*mul = .*\n.*did you mean 'sin'"),
        ("sin.default(x)", "sin.default(mul)", "'mul' is not defined above this line"),
        ("Tensor(sin, w)", "Tensor(ops.aten.neg.default(sin), w)", "is a call.*\n.*\n.*a line and a name of its own"),
        ("sin.default(x)", "sin.default(x, 3)", r"cannot read a line.*sin"),
        ("sin.default(x)", "sin.default(x[0])", r"cannot read the argument x\[0\]"),
        ("sin.default(x)", "view.default(x, [5])", r"cannot read a line of the dump: .*\n.*:\d+: sin ="),
        ("Tensor(sin, w)", "Tensor(sin, v)", "(?s)Tensor|size|broadcast"),
        ("sin.default(x)", "sin.default(x * 2)", r"argument x \* 2\n.*\n  next: .*a line of its own: y = ops.aten.mul"),
        ("return (mul,)", "", r"'program' returns nothing\n.*\n  next:  end it with its results: return"),
        (
            "return (mul,)",
            "print(sin)\n    return (mul,)",
            r"a line must read.*\n.*\n  next:  take it out: print",
        ),
        ("return (mul,)", "return (mul,)\n    neg = ops.aten.neg.default(x)", "nothing can follow the return"),
        ("    sin = ", "    sin == ", r"a line must read: name = operator.*\n.*\n  next:  take the line out"),
        ("    sin = ", "    sin = = ", r"not a readable dump: invalid syntax.*\n.*<program>:\d+"),
        ("    x,\n", "    x,\n    y,\n", "parameters of 'program' are not those of INPUTS: y"),
        ("    x,\n    w,\n", "    w,\n    x,\n", "are not those of INPUTS: their order differs"),
        ("'f32[2, 3]'", "'g32[2, 3]'", "'g32' is no dtype"),
        ("'f32[2, 3]'", "'f32'", "'f32' is no tensor such as"),
        ("def program", "def other", "there is no .*function 'program'"),
        ("INPUTS = {", "INPUTS = dict() or {", r"INPUTS must be written out.*\n.*<program>:\d+: INPUTS = "),
    ],
)
def test_a_broken_edit_is_named_with_its_line(old: str, new: str, error: str) -> None:
    text = dump(sketch(BODY, x="f32[2, 3]", w="f32[3]", v="f32[5]").program)
    assert old in text
    with pytest.raises(UsageError, match=error):
        parse(text.replace(old, new, 1) if old != "return (mul,)" else text.replace(old, new))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "y = ops.aten.mm.default(x, w)",
            r"b must be 2D\n.*: y = .*\n  next: .*: x is f32\[2, 3\], w is f32\[5\]",
        ),
        ("y = ops.aten.add.Tensor(x, w)", r"broadcast.*\n.*: y = .*\n  next: .*: x is f32\[2, 3\], w is f32\[5\]"),
        ("y = ops.aten.sin.default(x, far=3)", r"at most 1 argument.*\n.*: y = .*\n  next: .*: x is f32\[2, 3\]"),
        (
            "y = ops.aten.sin.default()",
            r"missing value.*\n.*: y = .*\n  next:  change the arguments .* takes them$",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_said_once(line: str, expected: str) -> None:
    """Torch logs a traceback of what it cannot infer; only the error is for whoever wrote the line."""
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        with pytest.raises(UsageError, match=expected):
            sketch(f"{line}\nreturn (y,)", x="f32[2, 3]", w="f32[5]")
        assert not logged
        with FakeTensorMode(), pytest.raises(RuntimeError):
            torch.ones(2, 3) @ torch.ones(5, 5)
        assert logged  # by whoever else uses torch, as before
    finally:
        logger.removeHandler(handler)


def test_a_sketch_is_called_one() -> None:
    for body, value in (("return (y,)", "f32[2]"), ("return (x,)", "f33[2]"), ("return = x", "f32[2]")):
        with pytest.raises(UsageError, match=r"of the sketch|readable sketch"):
            sketch(body, x=value)


@pytest.mark.parametrize("kind", ["float", "half", "int", "ones"])
def test_a_dtype_has_one_name(kind: str) -> None:
    with pytest.raises(UsageError, match=rf"'{kind}' is no dtype\n.*\n  next: .*bf16, bool, .*f32"):
        sketch("return (x,)", x=f"{kind}[2]")


def test_names_may_be_used_again() -> None:
    body = "y = ops.aten.sin.default(x)\ny = ops.aten.neg.default(y)\nreturn (y,)"
    program = sketch(body, x="f32[3]").program
    assert torch.equal(evaluate(program, [torch.ones(3)])[0], -torch.ones(3).sin())
    check(program)


def test_a_line_of_ones_own_takes_the_provenance_above_it() -> None:
    program = sketch(BODY, x="f32[2, 3]", w="f32[3]").program
    next(program.calls()).meta |= {"module": "block", "source": "model.py:3"}
    text = dump(program).replace("    # :: (model)\n", "    neg = ops.aten.neg.default(sin)\n    # :: (model)\n")
    _, neg, _ = Traced(parse(text)).program.calls()
    assert (neg.name, neg.meta["module"], neg.meta["source"]) == ("neg", "block", "model.py:3")
    assert isinstance(Match(neg), Match)
