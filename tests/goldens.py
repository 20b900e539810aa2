"""Golden files: the whole text of a result, compared exactly, rewritten by `pytest --update-golden`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Golden:
    """The `golden` fixture: call it with a text.

    `tests/passes/test_merge_linear.py::test_shared_input` compares with
    `tests/passes/golden/merge_linear/shared_input.py`. A parametrised test gets one file per parameter.
    """

    test: Path
    case: str
    update: bool

    def path(self, case: str | None = None, suffix: str = ".py") -> Path:
        """Where the text of a case lies."""
        return self.test.parent / "golden" / self.test.stem.removeprefix("test_") / f"{case or self.case}{suffix}"

    def __call__(self, text: str, case: str | None = None, suffix: str = ".py") -> None:
        """Compare `text` with the golden file; a test with several texts names the `case` of each.

        Raises
        ------
        AssertionError
            The texts differ, or there is no file yet.
        """
        __tracebackhide__ = True
        path, text = self.path(case, suffix), text.rstrip("\n") + "\n"
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists():
            pytest.fail(f"no golden file {path}; write it with `pytest --update-golden`, read it, commit it")
        else:
            expected = path.read_text(encoding="utf-8")
            assert text == expected, f"{path} differs; `pytest --update-golden` accepts the new text"


def case_name(test: str) -> str:
    """The file name of a test's name: `test_fold[dit-bf16]` → `fold-dit-bf16`."""
    return re.sub(r"[^\w.-]+", "-", test.removeprefix("test_")).strip("-")
