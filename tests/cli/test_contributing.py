"""What CONTRIBUTING.md lists exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_folders_exist() -> None:
    named = re.findall(r"^\| `(graphopt/[^`]*)` \|", TEXT, re.MULTILINE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    there = {f"graphopt/{path.parent.name}/" for path in (ROOT / "graphopt").glob("*/__init__.py")}
    assert there <= set(named)
