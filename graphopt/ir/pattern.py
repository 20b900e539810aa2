"""Patterns over graph nodes: what a local pass looks for, written the way the expression is read.

>>> x = Var("x")
>>> double_transpose = Call(aten.transpose.int, Call(aten.transpose.int, x, Var("a"), Var("b")), Var("a"), Var("b"))

A variable that occurs twice must match the same thing twice. `match` answers with what each variable stands for, or
None. Arguments are compared by schema position with defaults filled in, so ``add(x, y)`` and ``add(x, y, alpha=1)``
are the same to a pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphopt.ir.program import bind

aten = torch.ops.aten


class Pattern:
    """Base of patterns; a plain Python value in a pattern matches an equal value."""

    def bind(self, node: Any, found: dict[str, Any]) -> bool:
        """Whether `node` matches, given what variables already stand for; adds to `found`."""
        raise NotImplementedError


class Var(Pattern):
    """Matches anything for which `where` holds, and names it."""

    def __init__(self, name: str, where: Callable[[Any], bool] | None = None) -> None:
        self.name, self.where = name, where

    def bind(self, node: Any, found: dict[str, Any]) -> bool:
        if self.name in found:
            known = found[self.name]
            return known is node or (not isinstance(known, fx.Node) and bool(known == node))
        if self.where is not None and not self.where(node):
            return False
        found[self.name] = node
        return True


class Call(Pattern):
    """Matches a call of `target` (or of one of several) whose leading schema arguments match `args`."""

    def __init__(self, target: Any, *args: Any, name: str | None = None, **kwargs: Any) -> None:
        self.targets = target if isinstance(target, tuple) else (target,)
        self.args, self.kwargs, self.name = args, kwargs, name

    def bind(self, node: Any, found: dict[str, Any]) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_function" or node.target not in self.targets:
            return False
        bound = bind(node)
        positional = list(bound.values())
        wanted = [(pattern, positional[i]) for i, pattern in enumerate(self.args) if i < len(positional)]
        wanted += [(pattern, bound.get(key)) for key, pattern in self.kwargs.items()]
        if self.name is not None:
            found[self.name] = node
        return len(self.args) <= len(positional) and all(_bind(pattern, value, found) for pattern, value in wanted)


def _bind(pattern: Any, value: Any, found: dict[str, Any]) -> bool:
    if isinstance(pattern, Pattern):
        return pattern.bind(value, found)
    return not isinstance(value, fx.Node) and bool(pattern == value)


def match(pattern: Pattern, node: fx.Node) -> dict[str, Any] | None:
    """What each variable of `pattern` stands for when `node` matches it, else None."""
    found: dict[str, Any] = {}
    return found if pattern.bind(node, found) else None
