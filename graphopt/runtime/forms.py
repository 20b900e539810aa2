"""The forms of calls as text: what tells variants of a module apart, and what is new about a call.

A form names every argument by its path: shape, dtype and strides of a tensor, the value of anything else; and the state
of torch that a variant was captured under.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from graphopt.capture.calls import Call, CallTaker
from graphopt.capture.guards import CALL_STATE
from graphopt.ir.notation import describe

Form: TypeAlias = Mapping[str, str]
_MOST = 4  # arguments in a name, the others are counted
_LONG = 40  # characters of a value


def form(taker: CallTaker, call: Call, state: Sequence[Any]) -> dict[str, str]:
    """The form of a call under a state of torch (`graphopt.capture.guards.call_state`): ``x`` → ``x f32[2, 4]``."""
    found, first = dict[str, str](), dict[int, str]()
    for path, leaf in zip(taker.paths(call), call.leaves, strict=True):
        if isinstance(leaf, torch.Tensor):
            same = first.setdefault(id(leaf), path)
            found[path] = f"{path} {describe(leaf)}" if same == path else f"{path} is {same}"
        else:
            found[path] = f"{path}={_value(leaf)}"
    return found | {name: f"{name} {_value(entry)}" for name, entry in zip(CALL_STATE, state, strict=True)}


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else getattr(value, "__qualname__", None) or repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def why(new: Form, known: Sequence[Form]) -> str:
    """Why a call of this form is captured, where calls of others were.

    >>> why({"x": "x f32[2, 4]", "default dtype": "default dtype torch.float32"}, [])
    'first call'
    >>> why({"x": "x f32[2, 4]", "y": "y f32[4]"}, [{"x": "x f32[3, 4]", "y": "y f32[4]"}])
    'new: x f32[2, 4]'
    """
    if not known:
        return "first call"
    nearest = min((_apart((new, other)) for other in known), key=len)
    return f"new: {_told(new, nearest)}" if nearest else "the module, or what its arguments share, has changed"


def names(forms: Sequence[Form]) -> list[str]:
    """What tells each form from the others; those that nothing does are numbered. Empty for one alone.

    >>> names([{"x": "x f32[2]", "y": "y f32[2]"}, {"x": "x f32[4]", "y": "y f32[2]"}])
    ['x f32[2]', 'x f32[4]']
    """
    if len(forms) == 1:
        return [""]
    apart = _apart(forms)
    told = [_told(entry, apart) for entry in forms]
    often, seen, found = Counter(told), Counter[str](), list[str]()
    for text in told:
        seen[text] += 1
        number = f"number {seen[text]} of {often[text]}"
        found.append(text if often[text] == 1 else f"{text}, {number}" if text else number)
    return found


def _apart(forms: Sequence[Form]) -> list[str]:
    """What the forms do not all have alike."""
    keys = dict.fromkeys(key for entry in forms for key in entry)
    return [key for key in keys if len({entry.get(key) for entry in forms}) > 1]


def _told(entry: Form, keys: Sequence[str]) -> str:
    texts = [entry.get(key, f"no {key}") for key in keys]
    more = [f"{len(texts) - _MOST} more"] * (len(texts) > _MOST)
    return ", ".join([*texts[:_MOST], *more])
