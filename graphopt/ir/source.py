"""The text of a dump, taken apart and never run: assignments, functions, comments, and errors."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graphopt.errors import GraphoptError, UsageError
from graphopt.ir.remarks import Comments

SKETCH = "<sketch>"  # stands for the file of what `graphopt.testing.sketch` was given
_HINT = "dumps are written by graphopt.ir.printer.dump, and by graphopt trace"


@dataclass
class Source:
    """A dump, taken apart."""

    filename: str
    lines: list[str]
    tree: ast.Module
    assigned: dict[str, ast.expr]
    functions: dict[str, ast.FunctionDef]
    comments: Comments

    @classmethod
    def of(cls, text: str, filename: str) -> Source:
        """Raises UsageError where the text is not Python."""
        lines = re.split(r"\r\n?|\n", text.removeprefix("\ufeff"))
        text, kind = "\n".join(lines), "sketch" if filename == SKETCH else "dump"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Python thinks of the style of an edit is no matter here
                tree = ast.parse(text)
                compile(
                    tree, filename, "exec", dont_inherit=True
                )  # finds what parsing does not: parameters given twice
        except SyntaxError as error:
            shown = f": {(error.text or lines[(error.lineno or 1) - 1]).strip()}" if lines else ""
            raise UsageError(f"not a readable {kind}: {error.msg}{shown}", where=f"{filename}:{error.lineno}",
                             hint="a line must read: name = operator(arguments)") from error  # fmt: skip
        except (ValueError, RecursionError, MemoryError) as error:
            what = str(error) if isinstance(error, ValueError) else "an expression is nested too deeply"
            raise UsageError(f"not a readable dump: {what}", where=filename, hint=_HINT) from error
        found = cls(filename, lines, tree, {}, {}, Comments.of(text))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.assigned[node.targets[0].id] = node.value
            elif isinstance(node, ast.FunctionDef):
                found.functions[node.name] = node
        return found

    @property
    def kind(self) -> str:
        """What the text is to its author: a dump, or the lines of `graphopt.testing.sketch`."""
        return "sketch" if self.filename == SKETCH else "dump"

    def function(self, name: str) -> ast.FunctionDef:
        if name not in self.functions:
            raise UsageError(f"not a readable dump: there is no function '{name}'", where=self.filename, hint=_HINT)
        return self.functions[name]

    def table(self, name: str) -> Iterator[tuple[ast.AST, Any, Any]]:
        """The entries of a dict, each with its place in the text."""
        node = self.assigned.get(name)
        if node is None:
            raise UsageError(f"not a readable dump: there is no {name}", where=self.filename, hint=_HINT)
        with self.reading(node):
            if not isinstance(node, ast.Dict):
                raise ValueError(f"{name} must be written out: {{name: value, …}}")
        assert isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True):
            with self.reading(key or value):
                entry = literal(key), literal(value)
            yield key or value, *entry

    def literal(self, name: str, default: Any) -> Any:
        """What is assigned to a name, which must be of the kind that `default` is of; that, where nothing is."""
        node = self.assigned.get(name)
        if node is None:
            return default
        with self.reading(node):
            value = literal(node)
            if not isinstance(value, type(default)):
                raise ValueError(f"{name} must be a {type(default).__name__}, not a {type(value).__name__}")
        return value

    @contextmanager
    def reading(self, place: ast.AST) -> Iterator[None]:
        """Inside, whatever is raised becomes a UsageError that names the line of `place`.

        That an operator cannot be used so is said by torch, in errors of any kind.
        """
        try:
            yield
        except Exception as error:
            raise self.at(place, error) from error

    def at(self, place: ast.AST, error: Exception) -> UsageError:
        """An error with the line where it arose; one that has a line keeps it."""
        if isinstance(error, UsageError) and error.where.startswith(f"{self.filename}:"):
            return error
        number = getattr(place, "lineno", 1)
        known = isinstance(error, GraphoptError)
        what = error.what if isinstance(error, GraphoptError) else str(error).strip().partition("\n")[0]
        kind = "" if known or isinstance(error, ValueError) else f"{type(error).__name__}: "
        return UsageError(
            f"cannot read a line of the {self.kind}: {kind}{what}",
            where=f"{self.filename}:{number}: {self.lines[number - 1].strip()}",
            hint=error.hint if isinstance(error, GraphoptError) else "",
        )


def literal(node: ast.expr | None) -> Any:
    """Text, numbers, tuples, lists and dicts. Raises ValueError for anything that would have to be computed."""
    what = ast.unparse(node) if node else "**"
    try:
        if node is not None:
            return ast.literal_eval(node)
        raise ValueError(what)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{what} is not written out as text, numbers, tuples, lists and dicts") from None
