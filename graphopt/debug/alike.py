"""Texts that differ only in their numbers, put together: reasons of refusals, as reports count them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MOST_RANGES = 2  # numbers in which texts may differ to be written as one text with ranges


def without_numbers(text: str) -> str:
    """What texts that differ only in their numbers have in common; not to be read."""
    return _NUMBER.sub("\0", text)


def alike(counts: Mapping[str, int]) -> Counter[str]:
    """Texts that differ only in their numbers as one (see `together`), with how often they occur in all.

    >>> alike({"only 3 terms": 2, "only 12 terms": 1, "it is shared": 4})
    Counter({'it is shared': 4, 'only 3 to 12 terms': 3})
    """
    grouped: dict[str, Counter[str]] = defaultdict(Counter)
    for text, count in counts.items():
        grouped[without_numbers(text)][text] += count
    found = Counter[str]()
    for some in grouped.values():
        found[together(some)] += some.total()
    return found


def together(counts: Counter[str]) -> str:
    """One text for several that differ only in their numbers: with ranges, or where there is no such thing the most
    frequent one.

    >>> together(Counter({"1.05 times as cheap": 2, "3.1 times as cheap": 1}))
    '1.05 to 3.1 times as cheap'
    >>> together(Counter({"linear_3 is read": 2, "linear_4 is read": 1, "linear_9 is read": 1}))
    'linear_3 is read (and 2 like it)'
    """
    often = counts.most_common(1)[0][0]
    found = [list(_NUMBER.finditer(text)) for text in counts]
    columns = list(zip(*found, strict=True))
    differ = [column for column in columns if len({match[0] for match in column}) > 1]
    if len(differ) > _MOST_RANGES or not all(_stands_alone(match) for column in differ for match in column):
        return f"{often} (and {len(counts) - 1} like it)"
    between = _NUMBER.split(often)
    ranges = [" to ".join(dict.fromkeys(_ends([match[0] for match in column]))) for column in columns]
    return between[0] + "".join(number + rest for number, rest in zip(ranges, between[1:], strict=True))


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether a number is an amount, and no part of a name, of a negative number or of a version."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return not (before.isalpha() or before in ("_", "-", ".") or after.isalpha() or after in ("_", "-"))


def _ends(numbers: list[str]) -> tuple[str, str]:
    return min(numbers, key=float), max(numbers, key=float)
