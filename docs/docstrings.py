"""Lets mkdocstrings read graphopt's docstrings: sections as in numpydoc, with descriptions where that has types.

``name : what it is`` under a heading underlined with hyphens becomes an item of a section in Google's style, and
examples of a session become blocks of code: brackets in them are no references.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTIONS = {"Parameters": "Args", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}


def in_googles_style(text: str) -> str:
    r"""A docstring with its sections rewritten.

    >>> print(in_googles_style("Adds.\n\nParameters\n----------\nx, y : what to\n    add.\n\nSlow."))
    Adds.
    <BLANKLINE>
    Args:
        x: what to add.
        y: what to add.
    <BLANKLINE>
    Slow.
    """
    paragraphs = re.split(r"\n{2,}", text)
    for number, paragraph in enumerate(paragraphs):
        title, _, rest = paragraph.partition("\n")
        line, _, body = rest.partition("\n")
        if title in _SECTIONS and re.fullmatch(r"-+", line):
            items = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", body)]
            paragraphs[number] = "\n".join([f"{_SECTIONS[title]}:", *_items(items, title)])
        elif paragraph.startswith(">>> "):
            paragraphs[number] = f"```pycon\n{paragraph}\n```"
    return "\n\n".join(paragraphs)


def _items(entries: list[str], title: str) -> list[str]:
    if title == "Returns":
        return [f"    {' '.join(entries)}"]
    found = []
    for entry in entries:
        names, mark, what = entry.partition(" : ")
        found += [f"    {name.strip()}: {what}" for name in names.split(",")] if mark else [f"    {entry}"]
    return found


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = in_googles_style(obj.docstring.value)
