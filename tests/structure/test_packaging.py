"""The wheel and the source distribution hold the package, its pipelines and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.structure import checks

pytestmark = pytest.mark.slow

DATA = {".json", ".md", ".safetensors", ".txt"}
PAGE = PurePosixPath("graphopt/debug/viz/static")


def belongs(file: PurePosixPath) -> bool:
    """Whether a file of the package, named from the root of the repository, goes into a wheel."""
    known = file.suffix == ".py" or file.name == "py.typed" or ("models" in file.parts and file.suffix in DATA)
    return known or file.parent == PAGE


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files: building writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("build") / "graphopt"
    for file in checks.tracked_files(checks.ROOT):
        target = folder / file.relative_to(checks.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    for link in ("passes", "targets"):
        (folder / link).symlink_to(f"graphopt/{link}")
    return folder


def build(source: Path, kind: str) -> Path:
    """Build `wheel` or `sdist` with the backend that is installed, without the network."""
    code = f"import setuptools.build_meta as b, sys; print(b.build_{kind}('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    (archive,) = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return archive


def test_wheel(source: Path) -> None:
    names = {PurePosixPath(name) for name in zipfile.ZipFile(build(source, "wheel")).namelist()}
    assert {name.parts[0] for name in names} == {"graphopt", "graphopt-0.1.0.dist-info"}
    expected = {
        name
        for file in (source / "graphopt").rglob("*")
        if file.is_file() and belongs(name := PurePosixPath(file.relative_to(source).as_posix()))
    }
    assert {name for name in names if name.parts[0] == "graphopt"} == expected


def test_every_file_of_the_package_is_packaged() -> None:
    strays = [
        file.relative_to(checks.ROOT).as_posix()
        for file in checks.tracked_files(checks.ROOT)
        if file.is_relative_to(checks.ROOT / "graphopt")
        and not belongs(PurePosixPath(file.relative_to(checks.ROOT).as_posix()))
    ]
    assert strays == [], "list their kind in [tool.setuptools.package-data] and here"


def test_sdist(source: Path) -> None:
    with tarfile.open(build(source, "sdist")) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "graphopt/py.typed"} <= names
    assert not [name for name in names if name.startswith(("passes/", "targets/", ".venv"))]
