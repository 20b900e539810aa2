"""`import graphopt` is small and light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure import checks

HEAVY = ("diffusers", "transformers", "sympy", "networkx", "rich", "typer", "tvm", "matplotlib", "peft")


def test_graphopt() -> None:
    found = checks.check_door(checks.ROOT / "graphopt")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__all__ = ['compile']\n", None),
        ("__all__ = ('compile',)\n" + "x = 1\n" * 40, "41 lines, at most 40"),
        ("from .compile import compile\n", "no literal __all__"),
        (f"__all__ = {[f'name_{i}' for i in range(15)]}\n", "15 exports"),
    ],
)
def test_measures_the_door(text: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text(text)
    found = checks.check_door(tmp_path)
    assert (expected is None and found == []) or any(expected in violation for violation in found if expected), found


def imported_by(statement: str, path: Path) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after `statement`."""
    code = f"import json, sys; {statement}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], cwd=path, check=True, capture_output=True, text=True).stdout
    return set(json.loads(out))


def test_importing_graphopt_loads_nothing_heavy_that_torch_does_not() -> None:
    if not (checks.ROOT / "graphopt" / "__init__.py").exists():
        pytest.skip("there is no door yet")
    assert imported_by("import graphopt", checks.ROOT) <= imported_by("import torch, torch.export", checks.ROOT)


def test_sees_a_heavy_import(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("import networkx\n")
    assert "networkx" in imported_by("import planted", tmp_path)
