"""Texts that differ only in their numbers, put together."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.debug.alike import alike, together, without_numbers


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["only 3 terms"], "only 3 terms"),
        (["1.05 times as cheap", "12 times as cheap", "3 times as cheap"], "1.05 to 12 times as cheap"),
        (["2 of 4 fit", "3 of 4 fit"], "2 to 3 of 4 fit"),
        (["f32[2, 4] is read", "f32[3, 4] is read"], "f32[2 to 3, 4] is read"),
        (["mul_3 is read", "mul_4 is read"], "mul_3 is read (and 1 like it)"),
        (["adds -1 to it", "adds -2 to it"], "adds -1 to it (and 1 like it)"),
        (["off by 1e-3", "off by 2e-3"], "off by 1e-3 (and 1 like it)"),
        (["1, 1, 1", "2, 2, 2", "3, 3, 3"], "1, 1, 1 (and 2 like it)"),
    ],
)
def test_together(texts: list[str], expected: str) -> None:
    assert together(Counter(texts)) == expected


def test_the_most_frequent_is_the_example() -> None:
    assert together(Counter({"mul_1 is read": 1, "mul_7 is read": 3})) == "mul_7 is read (and 1 like it)"


@given(st.dictionaries(st.text(alphabet="ab_-. 0123456789", min_size=1), st.integers(1, 9), max_size=9))
def test_each_counts_once(counts: dict[str, int]) -> None:
    found = alike(counts)
    assert found.total() == sum(counts.values())
    assert len(found) == len({without_numbers(text) for text in counts})
