"""Calls taken apart: names, numbers, nesting, and what can be compared."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from graphopt.capture.calls import CallTaker
from graphopt.capture.roles import NUMBERS_AS_TENSORS, explicit, observe, roles_by_name
from graphopt.errors import CaptureError, RoleError


def forward(
    sample: Any, timestep: Any = None, extra: Any = None, *rest: Any, scale: Any = 1.0, **more: Any
) -> None: ...


TAKER = CallTaker(forward, NUMBERS_AS_TENSORS)
X = torch.ones(2)


@pytest.mark.parametrize(("value", "dtype"), [(3, torch.int64), (0.5, torch.float64)])
def test_numbers_become_tensors(value: float, dtype: torch.dtype) -> None:
    call = TAKER.take((X, value), {})
    assert (call.tensors[1].dtype, call.tensors[1].item(), call.numbers) == (dtype, value, 1)
    assert TAKER.take((X, value + 1), {}).signature == call.signature


def test_booleans_and_other_numbers_are_bound() -> None:
    assert TAKER.take((X, True), {}).numbers == 0
    assert TAKER.take((X,), {"scale": 2.0}).signature != TAKER.take((X,), {"scale": 1.0}).signature


def test_positional_and_keyword_calls_are_alike() -> None:
    assert TAKER.take((X, 1), {}).signature == TAKER.take((), {"timestep": 1, "sample": X}).signature


def _positional_only(sample: Any, /, timestep: Any = 0, *, scale: Any) -> None: ...


def _defaults(sample: Any = None, timestep: Any = None) -> None: ...


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {"scale": 3}),
    ((1,), {"sample": 2}),
    ((1, 2, 3, 4), {}),
    ((1,), {"unknown": 2}),
    ((), {"timestep": 1, "sample": 2, "scale": 3}),
    ((1,), {"scale": 2, "timestep": 3}),
    ((1, 2, 3, 4, 5), {"scale": 3, "more": 1}),
]


@pytest.mark.parametrize("function", [forward, _positional_only, _defaults], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("args", "kwargs"), GIVEN)
def test_arguments_are_bound_as_python_does(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    taker = CallTaker(function)
    try:
        expected = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            taker.take(args, kwargs)
        return
    call = taker.take(args, kwargs)
    assert tree_unflatten(list(call.leaves), call.spec) == expected.arguments
    assert list(tree_unflatten(list(call.leaves), call.spec)) == list(expected.arguments)
    assert call.spec == tree_flatten(dict(expected.arguments))[1]


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (1, True), (0.0, -0.0), ("a", b"a"), ([X], (X,)), ({"a": X}, {"b": X}), (X, X.double()), (None, X)],
)
def test_different_signatures(left: Any, right: Any) -> None:
    assert TAKER.take((X,), {"extra": left}).signature != TAKER.take((X,), {"extra": right}).signature


def test_nan_is_itself() -> None:
    assert TAKER.take((X,), {"scale": float("nan")}).signature == TAKER.take((X,), {"scale": float("nan")}).signature


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.nn.Linear(1, 1)], ids=lambda v: type(v).__name__)
def test_what_cannot_be_compared(value: Any) -> None:
    with pytest.raises(CaptureError, match=type(value).__name__):
        TAKER.take((X,), {"extra": value})


def test_paths() -> None:
    call = TAKER.take((X, 3, {"ids": [X, X], "size": X}, X), {"scale": 2.0, "other": X})
    assert TAKER.paths(call) == [
        "sample", "timestep", "extra.ids.0", "extra.ids.1", "extra.size", "rest.0", "scale", "more.other",
    ]  # fmt: skip


def test_rebuild() -> None:
    call = TAKER.take((X, 3, None, X), {"scale": 2.0, "other": X})
    args, kwargs = TAKER.rebuild(list(call.leaves), call.spec)
    assert (len(args), sorted(kwargs)) == (4, ["other", "scale"])


def _request(seed: int, steps: int = 3) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(2, generator=generator)
    return [TAKER.take((torch.randn(2, generator=generator), 9 - k, prompt), {}) for k in range(steps)]


def test_observed_roles() -> None:
    assert observe([_request(0), _request(1)], TAKER) == {"sample": "state", "timestep": "time", "extra": "condition"}


def test_observation_needs_two_requests_of_three_calls() -> None:
    for requests in ([_request(0)], [_request(0, 2), _request(1, 3)], []):
        with pytest.raises(RoleError, match="two requests of three calls"):
            observe(requests, TAKER)
    with pytest.raises(RoleError, match="different arguments"):
        observe([_request(0), [*_request(1, 2), TAKER.take((X,), {})]], TAKER)


def test_roles_by_name_and_by_choice() -> None:
    paths = ["sample", "timestep", "encoder_hidden_states", "added_cond_kwargs.text_embeds"]
    named = roles_by_name(paths)
    assert list(named.values()) == ["state", "time", "condition", "condition"]
    chosen = explicit({"added_cond_kwargs": "state", "sample": "condition"}, paths, named)
    assert list(chosen.values()) == ["condition", "time", "condition", "state"]
    with pytest.raises(RoleError, match="did you mean 'timestep'"):
        explicit({"timestp": "time"}, paths, named)
