from __future__ import annotations

import pytest
import torch

from graphopt.capture.export import program_of
from graphopt.ir.driver import run_pass
from graphopt.passes import SimplifyViews
from graphopt.testing import Recorder, check_pass, sketch, trace
from tests.goldens import Golden


def test_skip_slices_and_reshapes(golden: Golden) -> None:
    before = sketch(
        """
        slice_1 = ops.aten.slice.Tensor(x, 0, 0, 9223372036854775807)
        sin = ops.aten.sin.default(slice_1)
        view = ops.aten.view.default(sin, [2, 12])
        unsqueeze = ops.aten.unsqueeze.default(view, 1)
        view_1 = ops.aten.view.default(unsqueeze, [4, 6])
        permute = ops.aten.permute.default(view_1, [1, 0])
        return (permute,)
        """,
        x="f32[2, 3, 4]",
    )
    check_pass(SimplifyViews(), before.program)
    golden(before.rewritten(SimplifyViews()).body)


@pytest.mark.parametrize(
    "lines",
    [
        "y = ops.aten.view.default(x, [2, 3, 4])",
        "y = ops.aten.expand.default(x, [2, 3, 4])",
        "y = ops.aten.permute.default(x, [0, 1, 2])",
        "y = ops.aten.slice.Tensor(x, 1, 0, 3)",
        "y = ops.aten.alias.default(x)",
        "a = ops.aten.transpose.int(x, 0, 1)\ny = ops.aten.transpose.int(a, 1, 0)",
        "a = ops.aten.permute.default(x, [1, 2, 0])\ny = ops.aten.permute.default(a, [2, 0, 1])",
        "a = ops.aten.unsqueeze.default(x, 1)\ny = ops.aten.squeeze.dim(a, 1)",
        "a = ops.aten.view.default(x, [-1])\ny = ops.aten.view.default(a, [2, 3, 4])",
        "a = ops.aten.split.Tensor(x, 3, 1)\ny = operator.getitem(a, 0)",
    ],
)
def test_gives_x_back(lines: str) -> None:
    body = f"{lines}\nsin = ops.aten.sin.default(y)\nreturn (sin,)"
    checked = check_pass(SimplifyViews(), sketch(body, x="f32[2, 3, 4]").program)
    assert [node.name for node in checked.program.calls()] == ["sin"]


@pytest.mark.parametrize(
    ("lines", "one"),
    [
        ("a = ops.aten.view.default(x, [6, 4])\ny = ops.aten.unsqueeze.default(a, 0)", "aten.view.default"),
        ("a = ops.aten.transpose.int(x, 0, 1)\ny = ops.aten.permute.default(a, [2, 0, 1])", "aten.permute.default"),
        (
            "a = ops.aten.expand.default(x, [5, 2, 3, 4])\ny = ops.aten.expand.default(a, [6, 5, 2, 3, 4])",
            "aten.expand.default",
        ),
    ],
)
def test_becomes_one(lines: str, one: str) -> None:
    checked = check_pass(SimplifyViews(), sketch(f"{lines}\nreturn (y,)", x="f32[2, 3, 4]").program)
    (node,) = checked.program.calls()
    assert str(node.target) == one


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = ops.aten.transpose.int(x, 0, 1)\nreturn (y,)", "f32[2, 2]"),
        # the same shape after other elements
        ("a = ops.aten.slice.Tensor(x, 0, 1, 3)\ny = ops.aten.view.default(a, [2, 3])\nz = ops.aten.sin.default(y)\n"
         "b = ops.aten.slice.Tensor(x, 0, 0, 2)\nc = ops.aten.add.Tensor(b, z)\nreturn (c, a)", "f32[3, 3]"),
        # reshape copies here: the elements have another order
        ("a = ops.aten.reshape.default(x, [6])\ny = ops.aten.as_strided.default(a, [2, 3], [1, 2])\n"
         "z = ops.aten.sin.default(y)\nreturn (z,)", "f32[2, 3] strides (1, 2)"),
    ],
)  # fmt: skip
def test_keeps_other_elements(body: str, inputs: str) -> None:
    check_pass(SimplifyViews(), sketch(body, x=inputs).program)


def test_leaves_shared_inner_views() -> None:
    body = "a = ops.aten.view.default(x, [6])\ny = ops.aten.view.default(a, [3, 2])\nreturn (a, y)"
    assert check_pass(SimplifyViews(), sketch(body, x="f32[2, 3]").program).fired == 0


def test_refuses_other_strides() -> None:
    body = """
        transpose = ops.aten.transpose.int(x, 0, 1)
        unsqueeze = ops.aten.unsqueeze.default(transpose, 2)
        squeeze = ops.aten.squeeze.dim(unsqueeze, 1)
        return (squeeze,)
    """
    checked = check_pass(SimplifyViews(), sketch(body, x="f32[1, 4]").program)
    assert (checked.fired, checked.reasons) == (0, ["a single view of the source has other strides"])


class _Flatten(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(0).view(-1) * 2


def test_refuses_symbolic_sizes() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(_Flatten(), (torch.zeros(4, 8),), dynamic_shapes=({0: batch},)).run_decompositions(
        {}
    )
    program, recorder = program_of(exported, {"x": "state"}, ["x"], name="dynamic"), Recorder()
    run_pass(SimplifyViews(), program, recorder)
    assert [refusal.reason for _, refusal in recorder.refusals] == ["sizes are symbolic"]
    assert recorder.fired == []


def test_a_split_of_a_split_is_another_split() -> None:
    traced = trace(lambda x: x.chunk(2, -1)[0].chunk(2, -1)[1] + 1, torch.ones(2, 8))
    assert check_pass(SimplifyViews(), traced.program).fired == 0
