"""Every code block of the documentation for authors of passes does what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil.example import SybilFailure

from tests.docs.blocks import ROOT, run_page

# Each is a process of its own, and most compile a whole pipeline.
LONG = ("graphopt", "python use_it.py")


def is_long(command: str) -> bool:
    return command.startswith(LONG)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["from_scratch", "architecture", "writing_a_pass"])
def test_page(page: str, folder: Path) -> None:
    assert run_page(ROOT / f"docs/{page}.md", folder, skip=is_long) > 1


@pytest.mark.slow
@pytest.mark.timeout(1200)  # several whole compilations, on a machine that may be busy
def test_every_command_of_the_guide(folder: Path) -> None:
    run_page(ROOT / "docs/writing_a_pass.md", folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\n>>> 1 + 1\n3\n```", "Expected:\n    3\nGot:\n    2"),
        ("```python\nx = 1\n```\n```python\n>>> x\n1\n>>> x\n2\n```", "Got:\n    1"),
        ("```console\n$ echo one\ntwo\n```", "printed\none\n\ninstead of\ntwo"),
        ("```python\n# file: graphopt/py.typed\nx = 1\n```", "graphopt/py.typed reads otherwise"),
        ("```python\n# in: LICENSE\nMIT License, all of it\n```", "LICENSE reads otherwise"),
    ],
)
def test_finds_a_planted_fault(text: str, expected: str, folder: Path) -> None:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SybilFailure) as failure:
        run_page(page, folder)
    assert expected in str(failure.value)


def test_a_command_that_fails(folder: Path) -> None:
    (folder / "page.md").write_text("```console\n$ false\n```", encoding="utf-8")
    with pytest.raises(AssertionError, match="false"):
        run_page(folder / "page.md", folder)


def test_files_are_there_for_commands(folder: Path) -> None:
    text = "```python\n# file: say.py\nprint('hello')\n```\n"
    text += "```console\n$ python say.py\nhello\n$ python say.py\nhel...\n```"
    (folder / "page.md").write_text(text, encoding="utf-8")
    assert run_page(folder / "page.md", folder) == 2
