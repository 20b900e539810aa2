"""Relations: what they do to a Program, and how parts come out of the arguments of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.relations import Boundary, Constant, Paired, Relation, Repeated, Taken, Unchanged, bits, repeats
from graphopt.ir.relations import specialise as specialised
from graphopt.ir.verify import evaluate
from graphopt.testing import Traced, sketch

NAN = float("nan")
BODY = """
    relu = ops.aten.relu.default(sample)
    add = ops.aten.add.Tensor(relu, w)
    return (add,)
"""


def program(shape: str = "f32[2, 5, 3]") -> Traced:
    return sketch(BODY, sample=shape, w="weight f32[3]")


@pytest.mark.parametrize(
    ("relations", "inputs"),
    [
        ([Repeated("sample", 2)], [("sample[0:1]", "state", (1, 5, 3))]),
        ([Unchanged("sample")], [("sample", "condition", (2, 5, 3))]),
        (
            [Constant("sample", 1, 2, 5)],
            [("sample[:, 0:2]", "state", (2, 2, 3)), ("sample[:, 2:5]", "condition", (2, 3, 3))],
        ),
        (
            [Constant("sample", 1, 0, 1), Constant("sample", 1, 3, 4), Repeated("sample", 2)],
            [
                ("sample[0:1, 0:1]", "condition", (1, 1, 3)), ("sample[0:1, 1:3]", "state", (1, 2, 3)),
                ("sample[0:1, 3:4]", "condition", (1, 1, 3)), ("sample[0:1, 4:5]", "state", (1, 1, 3)),
            ],
        ),
        ([Repeated("nothing", 2), Paired(2), Constant("other", 1, 0, 1)], [("sample", "state", (2, 5, 3))]),
    ],
)  # fmt: skip
def test_specialise(relations: list[Relation], inputs: list[Any]) -> None:
    before = program().program
    after, boundary = specialised(before, relations)
    entries = [entry for entry in after.inputs if entry.role != "weight"]
    values = [node.meta["val"] for node in after.placeholders if after.role(node) != "weight"]
    found = [(e.path, e.role, tuple(v.shape)) for e, v in zip(entries, values, strict=True)]
    assert found == inputs
    assert after.relations == tuple(relations)
    assert not before.relations
    whole = torch.cat([torch.randn(1, 5, 3)] * 2)
    weight = torch.randn(3)
    assert boundary.fits([whole])
    parts = dict(zip((entry.name for entry in entries), boundary.take([whole]), strict=True))
    taken = [parts.get(entry.name, weight) for entry in after.inputs]
    assert torch.equal(evaluate(after, taken)[0], evaluate(before, [whole, weight])[0])


@pytest.mark.parametrize(
    ("rows", "times", "expected"),
    [
        ([1.0, 2.0, 1.0, 2.0], 2, True),
        ([1.0, 2.0, 1.0, 3.0], 2, False),
        ([1.0, 1.0, 1.0], 2, False),
        ([1.0, 1.0, 1.0], 3, True),
        ([NAN, NAN], 2, True),
        ([0.0, -0.0], 2, False),
        ([], 2, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_repeats(rows: list[float], times: int, expected: bool, dtype: torch.dtype) -> None:
    assert repeats(torch.tensor(rows).to(dtype), times) is expected
    assert repeats(torch.tensor(rows).to(dtype)[:, None].expand(-1, 3), times) is expected


def test_repeats_of_other_kinds() -> None:
    assert not repeats(torch.tensor(1.0), 2)
    assert repeats(torch.ones(1, 3).expand(4, 3), 2)
    assert repeats(torch.tensor([True, False, True, False]), 2)
    assert not repeats(torch.tensor([1, 2, 1, 3]), 2)
    assert not repeats(torch.tensor([NAN, NAN]).copysign(torch.tensor([1.0, -1.0])), 2)
    odd = torch.randn(6, 4).t().contiguous().t()[::3, 1:]
    assert not repeats(odd, 2)
    assert repeats(torch.cat([odd[:1]] * 2), 2)
    negated = torch.randn(2, 3, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    assert repeats(torch.cat([negated[:1]] * 2), 2)
    assert not repeats(negated, 2)
    assert not repeats(torch.randn(2, 3, dtype=torch.complex64).conj(), 2)


def test_bits_of_a_negated_view() -> None:
    value = torch.randn(3, dtype=torch.complex64).conj().imag
    assert torch.equal(bits(value), bits(value.clone()))


@given(st.data())
def test_bits_are_those_of_memory(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=4))
    value = torch.tensor(numbers)
    assert bits(value).tolist() == value.view(torch.int32).tolist()
    assert repeats(torch.cat([value, value]), 2)


def test_a_boundary_of_whole_arguments_passes_them_on() -> None:
    boundary, given_ = Boundary((Taken(0), Taken(1))), [torch.ones(2), torch.zeros(1)]
    assert boundary.plain
    assert boundary.fits(given_)
    assert all(new is old for new, old in zip(boundary.take(given_), given_, strict=True))


def test_a_boundary_says_where_parts_differ() -> None:
    boundary = Boundary((Taken(1, 2), Taken(0, 2, 1, 0, 1), Taken(0, 2, 1, 1, 3)))
    same, other = torch.arange(3.0).expand(2, 3), torch.arange(6.0).reshape(2, 3)
    assert boundary.fits([same, same.clone()])
    assert not boundary.fits([other, same])
    assert not boundary.fits([same, other])
    taken = boundary.take([same, same + 1])
    assert [entry.tolist() for entry in taken] == [[[1, 2, 3]], [[0]], [[1, 2]]]


def test_text() -> None:
    assert str(Repeated("x", 2)) == "x is 2 equal parts"
    assert str(Constant("x", 1, 4, 9)) == "x[:, 4:9] stays the same"
    assert str(Unchanged("x")) == "x stays the same"
    assert str(Paired(3)) == "3 calls share one state and time"
