"""The example of a pass in a package of its own installs, is found, works on the command line, and passes its tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, installed from a copy: building writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("custom_pass")
    shutil.copytree(
        ROOT / "examples/custom_pass", folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build")
    )
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        str(folder / "site"),
        str(folder / "source"),
    ]
    subprocess.run(install, check=True)
    return folder / "site"


def run(site: Path, *command: str) -> str:
    paths = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run([sys.executable, "-m", *command], env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "100"},
                          cwd=site.parent / "source", capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_is_listed(site: Path) -> None:
    described = {entry["name"]: entry for entry in json.loads(run(site, "graphopt", "passes", "--json"))["passes"]}
    found = described["fuse_silu"]
    assert (found["equation"], found["accuracy"]) == ("x * sigmoid(x) → silu(x).", "rounding")


def test_its_own_tests_pass(site: Path) -> None:
    assert "passed" in run(site, "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", ".")


@pytest.mark.slow
def test_runs_by_name(site: Path) -> None:
    report = run(
        site, "graphopt", "report", "emoji-unet", "--steps", "1", "--target", "eager", "--pass", "fuse_silu", "--json"
    )
    names = [record["name"] for record in json.loads(report)["modules"][0]["variants"][-1]["passes"]]
    assert "fuse_silu" in names
