"""One name everywhere: a pass's file, class, test, golden folder and place in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphopt import pipelines
from tests.structure import checks


def test_graphopt() -> None:
    found = checks.check_pass_names(checks.ROOT)
    assert not found, "\n".join(found)


PASS = "@dataclass(frozen=True)\nclass HoistRequest(Pass):\n    limit: int = 1\nclass _Helper: ...\n"
IN_ORDER = {
    "graphopt/passes/__init__.py": "PASSES: tuple[type[Pass], ...] = (HoistRequest,)\n",
    "graphopt/passes/base.py": "class Pass: ...\nclass Other: ...\n",
    "graphopt/passes/_shared.py": "",
    "graphopt/passes/hoist_request.py": PASS,
    "tests/passes/test_hoist_request.py": "",
    "tests/passes/golden/hoist_request/linear.py": "",
    "docs/passes.md": "## hoist_request\n",
}


def tree(root: Path, changes: dict[str, str | None]) -> Path:
    for name, text in (IN_ORDER | changes).items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def test_finds_nothing_in_an_orderly_tree(tmp_path: Path) -> None:
    assert checks.check_pass_names(tmp_path / "absent") == []
    assert checks.check_pass_names(tree(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"graphopt/passes/hoist_request.py": PASS + "class Another: ...\n"}, "exactly one public class"),
        ({"graphopt/passes/hoist_request.py": ""}, "exactly one public class, has none"),
        ({"graphopt/passes/hoist_request.py": "class HoistRequest: ...\n"}, "not a frozen dataclass"),
        ({"graphopt/passes/hoist_request.py": PASS.replace("(frozen=True)", "")}, "not a frozen dataclass"),
        ({"graphopt/passes/hoist_request.py": PASS.replace("HoistR", "MoveR")}, "belongs in move_request.py"),
        ({"graphopt/passes/__init__.py": "PASSES = ()\n"}, "PASSES lacks HoistRequest"),
        ({"graphopt/passes/__init__.py": "PASSES = (HoistRequest, Gone)\n"}, "names Gone"),
        ({"graphopt/passes/__init__.py": "PASSES = (HoistRequest, HoistRequest)\n"}, "repeats HoistRequest"),
        ({"graphopt/passes/__init__.py": "PASSES = tuple(discover())\n"}, "not a literal tuple"),
        ({"graphopt/passes/__init__.py": None}, "not a literal tuple"),
        ({"tests/passes/test_hoist_request.py": None}, "test_hoist_request.py: missing"),
        ({"tests/passes/golden/hoist_request/linear.py": None}, "golden/hoist_request/: missing"),
        ({"tests/passes/golden/old_name/linear.py": ""}, "golden/old_name/: there is no such pass"),
        ({"docs/passes.md": "## hoist_requests\n"}, "no section hoist_request"),
        ({"docs/passes.md": None}, "no section hoist_request"),
    ],
)
def test_finds_a_planted_violation(changes: dict[str, str | None], expected: str, tmp_path: Path) -> None:
    found = checks.check_pass_names(tree(tmp_path, changes))
    assert any(expected in violation for violation in found), found


def test_dumps_that_texts_name_are_those_of_the_exact_pipeline() -> None:
    known = {f"{number:03}_{name}" for number, name in enumerate(["captured", *(p.name for p in pipelines.exact)])}
    places = ("README.md", "docs/*.md", "graphopt/cli/*.py", "graphopt/debug/**/*.py")
    files = [path for place in places for path in checks.ROOT.glob(place)]
    assert len(files) > 40
    named = [(path.name, name) for path in files for name in re.findall(r"\b\d{3}_[a-z_]+\b", path.read_text("utf-8"))]
    assert len(named) > 15
    assert not [entry for entry in named if entry[1] not in known]
