"""docs/passes.md is what scripts/pass_reference.py writes, and that says what is true of each pass."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from graphopt import pipelines
from graphopt.ir.rewrite import Pass, pass_name, spell
from graphopt.passes import PASSES, FoldUpdates, Hoist, MergeLinears, RejoinParts
from scripts.pass_reference import MEASURED, NOTES, PAGE, reference, refusals, section

MEASURES = json.loads(MEASURED.read_text(encoding="utf-8"))


def test_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(MEASURES), "run python scripts/pass_reference.py"


def test_all_notes_are_of_a_pass() -> None:
    assert {note.stem for note in NOTES.glob("*.md")} <= {pass_name(cls) for cls in PASSES}


@pytest.mark.parametrize("cls", PASSES)
def test_a_section_says_all_there_is(cls: type[Pass]) -> None:
    text = "\n".join(section(cls, MEASURES, NOTES))
    for part in (
        "→",
        f"**Accuracy**: {cls.accuracy}.",
        "**Where**: ",
        "**Because**: ",
        "**Place**: ",
        ">>> print(",
    ):
        assert part in text, part
    for option in fields(cls):  # type: ignore[arg-type]
        row = next(line for line in text.splitlines() if line.startswith(f"| `{option.name}` |"))
        assert not row.endswith("|  |"), f"the docstring of {cls.__name__} does not say what {option.name} is"


def test_reasons_are_read_from_the_source() -> None:
    assert refusals(RejoinParts) == [
        "a size is known only when the program runs",
        "the parts are not all of the value that they were cut from, in order",
        "the copy has strides …, the original …",
        "a result would share memory with an input",
        "two results would share memory",
    ]
    assert any("max_flops=…" in reason for reason in refusals(MergeLinears))
    assert refusals(Hoist) == []  # its reasons are those of graphopt.ir.price


def test_zeros_are_shown_for_bundled_pipelines_only() -> None:
    text = "\n".join(section(RejoinParts, MEASURES, NOTES))
    assert "| emoji-unet, unet | 0 | 0 | 0 | 0 |" in text
    assert "| flux-like, transformer | 3 | −9 | 0 | −" in text and "sd-like" not in text


def test_a_pass_that_was_not_measured(tmp_path: Path) -> None:
    assert "not in the pipeline `exact`" in "\n".join(section(FoldUpdates, MEASURES, tmp_path))
    assert "What it saves was not measured yet." in "\n".join(section(RejoinParts, {}, tmp_path))


def test_measures_are_of_passes_that_there_are() -> None:
    """A new pass may not be measured yet; the figures of one that is gone, or has other options, must go."""
    known = {spell(pass_) for pass_ in pipelines.exact}
    for model, modules in MEASURES.items():
        for module, entry in modules.items():
            stale = {row["name"] for row in entry["passes"]} - known
            assert not stale, f"{model}, {module}: run python scripts/pass_reference.py --measure"
            assert not any(row["error"] for row in entry["passes"])
