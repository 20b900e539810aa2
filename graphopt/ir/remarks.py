"""What the comments of a dump say about its nodes: how it is written, and how it is read back.

====================================================  ==============================================================
``# :: mid_block.attn  diffusers/attention.py:97``    above nodes: the submodule and source line they came from, down
                                                      to the next such comment
``# f32[2, 4]; @request; by hoist``                   behind a node: its value, the stage that computes it where that
                                                      is not the step, and the passes that made it
====================================================  ==============================================================

All other comments are the user's own and say nothing: those above nodes without the mark, those behind nodes that do
not begin with a value.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from graphopt.errors import UsageError, nearest
from graphopt.ir.notation import describe, is_tensor
from graphopt.ir.stages import STAGES, STEP, placement, stage_name

MARK = "# :: "
_MODEL = "(model)"  # what no submodule made


def origin(node: fx.Node) -> str:
    """The comment above a node."""
    return f"{MARK}{node.meta.get('module', '') or _MODEL}  {node.meta.get('source', '')}".rstrip()


def remark(node: fx.Node) -> str:
    """The comment behind a node."""
    parts = [describe(node.meta.get("val"))]
    if placement(node) != STEP:
        parts.append(f"@{stage_name(placement(node))}")
    if node.meta.get("rules"):
        parts.append("by " + ", ".join(node.meta["rules"]))
    return f"# {'; '.join(parts)}"


@dataclass
class Comments:
    """The comments of a text by line number: those that have a line of their own, and those behind something."""

    above: dict[int, str] = field(default_factory=dict)
    behind: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Comments:
        """The text must be Python."""
        found = cls()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                (found.behind if token.line[:column].strip() else found.above)[row] = token.string
        return found

    def origin(self, first: int, last: int) -> dict[str, Any]:
        """What is said of a node at line `last` above it, from line `first` on: module and source, where known."""
        for row in range(last - 1, first - 1, -1):
            if (text := self.above.get(row, "")).startswith(MARK):
                module, _, source = text.removeprefix(MARK).partition("  ")
                return {"module": "" if module == _MODEL else module, "source": source}
        return {}

    def remark(self, first: int, last: int, value: Any) -> dict[str, Any]:
        """What is said behind a node of lines `first` to `last`: the value as text, placement and rules, where known.

        Raises UsageError for a stage that there is not.
        """
        for text in filter(None, (self.behind.get(row) for row in range(last, first - 1, -1))):
            known, *parts = text.removeprefix("#").partition("#")[0].strip().split("; ")
            if known == describe(value) or all(map(is_tensor, _entries(known))):
                return {"val": known, **dict(_meanings(parts))}
        return {}


def _entries(text: str) -> list[str]:
    """The tensors of a list ``(f32[2, 4], i64[3])``; a text of any other kind as it is."""
    return re.split(r", (?=\w+\[)", text[1:-1]) if text[:1] == "(" and text[-1:] == ")" else [text]


def _meanings(parts: list[str]) -> Iterator[tuple[str, Any]]:
    for part in parts:
        if part.startswith("@"):
            if part[1:] not in STAGES:
                raise UsageError(f"there is no stage '{part[1:]}'", hint=nearest(part[1:], STAGES))
            yield "placement", STAGES[part[1:]]
        elif part.startswith("by ") and all(map(str.isidentifier, rules := part[3:].split(", "))):
            yield "rules", tuple(rules)
