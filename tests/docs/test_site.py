"""The source of the documentation site is whole, and its docstrings are read as they are written."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import check_links
from scripts.site_source import API, assemble
from tests.docs.blocks import ROOT

SCRIPT = (ROOT / "scripts/site.sh").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("site").resolve()
    assemble(ROOT, folder)
    return folder


def test_every_link_leads_to_a_page_or_a_file_of_the_site(source: Path) -> None:
    pages = [page for page in source.rglob("*.md") if page.parent.name != "api"]
    assert len(pages) > 10
    assert [line for page in pages for line in check_links.broken(page, source)] == []


def test_every_page_has_its_place_in_the_navigation(source: Path) -> None:
    named = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.relative_to(source).as_posix() for page in source.rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in named} == {
        "graphopt/models/emoji-dit/README.md",  # the cards of the bundled pipelines: linked from their page
        "graphopt/models/emoji-unet/README.md",
    }
    assert set(API) == {Path(page).stem for page in pages if page.startswith("api/")}


def test_no_marker_was_left_to_fill_in(source: Path) -> None:
    marker = re.compile(r"@[A-Z][A-Z_]+@")
    assert marker.search("| @TABLE@ |")
    pages = [page for page in source.rglob("*.md") if marker.search(page.read_text(encoding="utf-8"))]
    assert pages == []


def test_every_module_of_debug_is_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    modules = {file.name for file in (ROOT / "graphopt/debug").glob("*.py")} - {"__init__.py", "statistics.py",
                                                                               "history.py", "limit.py"}  # fmt: skip
    named = {"Statistics", "History", "Limit", "Boundary", "Verification"} | modules
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []


def test_nothing_comes_from_the_network() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in text and "http" not in text


def converter() -> Any:
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs/docstrings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.in_googles_style


def test_docstrings_of_the_interface_are_read() -> None:
    convert = converter()
    text = "Adds.\n\nParameters\n----------\nx, y : what to\n    add.\n\nReturns\n-------\nA sum.\n\nSlow."
    assert convert(text) == (
        "Adds.\n\nArgs:\n    x: what to add.\n    y: what to add.\n\nReturns:\n    A sum.\n\nSlow."
    )
    assert convert("Adds.\n\nNo section:\n\n- a list") == "Adds.\n\nNo section:\n\n- a list"
    assert convert("Adds.\n\n>>> x[0][0]\n1") == "Adds.\n\n```pycon\n>>> x[0][0]\n1\n```"


@pytest.mark.slow
def test_builds(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    assert build(source, tmp_path) == ""
    page = (tmp_path / "html/docs/passes.html").read_text(encoding="utf-8")
    assert 'id="rejoin_parts"' in page and "fonts.googleapis" not in page
    with (source / "docs/memory.md").open("a", encoding="utf-8") as planted:
        planted.write("\n[broken](passes.md#no_such_pass)\n")
    assert "no_such_pass" in build(source, tmp_path)


def build(source: Path, folder: Path) -> str:
    """What `scripts/site.sh` runs; standard error where it fails."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    text = text.replace("build/site/source", str(source)).replace("build/site/html", str(folder / "html"))
    text = text.replace("paths: [.]", f"paths: [{ROOT}]").replace("docs/docstrings.py", f"{ROOT}/docs/docstrings.py")
    (folder / "mkdocs.yml").write_text(text, encoding="utf-8")
    command = [sys.executable, *re.findall(r"-m mkdocs build .*(?= \"\$@\")", SCRIPT)[0].split()]
    done = subprocess.run([*command, "-f", str(folder / "mkdocs.yml")], capture_output=True, text=True)
    return done.stderr if done.returncode else ""
