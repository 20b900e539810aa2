"""Imports run one way, passes stand alone, nothing is imported in a circle, only the command line prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.structure import checks

CHECKS = [
    checks.check_direction,
    checks.check_pass_isolation,
    checks.check_cycles,
    checks.check_relative,
    checks.check_printing,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_graphopt(check: Callable[[Path], list[str]]) -> None:
    found = check(checks.ROOT / "graphopt")
    assert not found, "\n".join(found)


IN_ORDER = {
    "graphopt/__init__.py": "from graphopt.compile import compile\n__all__ = ['compile']\n",
    "graphopt/errors.py": "class Refusal: ...\n",
    "graphopt/ir/__init__.py": "from graphopt.ir.program import Program\n",
    "graphopt/ir/program.py": "from graphopt import errors\n",
    "graphopt/ir/verify.py": "from . import program\nfrom ..errors import Refusal\n",
    "graphopt/passes/__init__.py": "from .fold import Fold\nPASSES = (Fold,)\n",
    "graphopt/passes/fold.py": "import torch\nfrom ..ir import Program\nfrom ._shared import helper\n",
    "graphopt/passes/_shared.py": "def helper(): 'print(1)'\n",
    "graphopt/targets/eager.py": "import sys\nfrom ..ir.program import Program\nsys.path\n",
    "graphopt/compile.py": "from graphopt import passes\nfrom graphopt.targets import eager\n",
    "graphopt/cli/main.py": "import typer\nimport graphopt\nprint(graphopt)\n",
}


def package(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "graphopt"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_finds_nothing_in_an_orderly_package(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert check(package(tmp_path, IN_ORDER)) == []
    assert check(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("check", "file", "text", "expected"),
    [
        (checks.check_direction, "ir/bad.py", "from ..passes.fold import Fold\n", "ir.bad:1: imports graphopt.passes"),
        (checks.check_direction, "ir/bad.py", "import graphopt.passes.fold as f\n", "imports graphopt.passes.fold"),
        (
            checks.check_direction,
            "errors.py",
            "def f():\n    from graphopt import ir\n",
            "errors:2: imports",
        ),
        (checks.check_direction, "runtime/a.py", "import graphopt\n", "imports graphopt, which is above"),
        (checks.check_direction, "targets/a.py", "from ..cli.main import app\n", "imports graphopt.cli.main"),
        (checks.check_direction, "passes/a.py", "from ..targets.eager import E\n", "imports graphopt.targets.eager"),
        (checks.check_direction, "utils.py", "", "graphopt.utils: not in the layout"),
        (checks.check_pass_isolation, "passes/merge.py", "from .fold import Fold\n", "passes.merge:1"),
        (
            checks.check_pass_isolation,
            "passes/merge.py",
            "from . import fold\n",
            "the pass graphopt.passes.fold",
        ),
        (
            checks.check_cycles,
            "ir/program.py",
            "from graphopt.ir import verify\n",
            "graphopt.ir.program, graphopt",
        ),
        (checks.check_cycles, "ir/program.py", "from ..targets import eager\n", "graphopt.ir, graphopt.targets"),
        (checks.check_relative, "passes/a.py", "from graphopt.ir import Program\n", "imports graphopt.ir absolutely"),
        (checks.check_relative, "targets/tvm/a.py", "import graphopt.ir\n", "imports graphopt.ir absolutely"),
        (checks.check_printing, "ir/a.py", "print(1)\n", "calls print"),
        (checks.check_printing, "debug/a.py", "from rich.console import Console\n", "imports rich.console"),
        (checks.check_printing, "compile.py", "import sys\nsys.stderr.write('x')\n", "uses sys.stderr"),
    ],
)
def test_finds_a_planted_violation(
    check: Callable[[Path], list[str]], file: str, text: str, expected: str, tmp_path: Path
) -> None:
    found = check(package(tmp_path, IN_ORDER | {f"graphopt/{file}": text}))
    assert any(expected in violation for violation in found), found
