"""Tags of dicts: equal ones mean that nothing was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.capture import tags

_OPERATIONS: list[Callable[[dict[str, Any], str, Any], object]] = [
    lambda d, key, value: d.__setitem__(key, value),
    lambda d, key, value: d.pop(key, None),
    lambda d, key, value: d.setdefault(key, value),
    lambda d, key, value: d.update({key: value}),
    lambda d, key, value: d.get(key),
    lambda d, key, value: d.clear(),
    lambda d, key, value: d.popitem() if d else None,
    lambda d, key, value: sorted(d),
    lambda d, key, value: d.copy(),
]


def _contents(d: dict[str, Any]) -> list[tuple[str, int]]:
    return [(key, id(value)) for key, value in d.items()]


@given(st.lists(st.tuples(st.sampled_from(_OPERATIONS), st.sampled_from("abc"), st.integers(0, 3)), max_size=40))
def test_a_write_changes_the_tag(operations: list[tuple[Any, str, int]]) -> None:
    if not tags.kept():
        pytest.skip("this Python keeps no tags")
    d: dict[str, Any] = {"a": 0}
    for operate, key, value in operations:
        before, held = tags.tags([d]), _contents(d)
        operate(d, key, value)
        if tags.tags([d]) == before:
            assert _contents(d) == held


def test_tags_that_miss_a_write_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in (lambda d: 1, lambda d: len(d), None):
        monkeypatch.setattr(torch._C._dynamo.guards, "dict_version", broken)
        tags.kept.cache_clear()
        try:
            assert not tags.kept()
        finally:
            tags.kept.cache_clear()


def test_the_dict_of_a_class() -> None:
    class Some:
        value = 1

    found = tags.of_class(Some)
    assert found is not None
    Some.value = 2
    assert found["value"] == 2
