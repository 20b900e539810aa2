"""What CONTRIBUTING.md shows runs, and what it lists exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_example_of_a_pass_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import math\n.*?)```", TEXT, re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "example.py")]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert "ops.aten.mul.Tensor(x, 0.125)" in result.stdout
    assert "ops.aten.div.Tensor(mul_tensor, 3)" in result.stdout


def test_the_folders_exist() -> None:
    named = re.findall(r"^\| `(graphopt/[^`]*)` \|", TEXT, re.MULTILINE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    there = {f"graphopt/{path.parent.name}/" for path in (ROOT / "graphopt").glob("*/__init__.py")}
    assert there <= set(named)
