"""Puts together what mkdocs makes the documentation site of: build/site/source.

    python scripts/site_source.py && mkdocs build --strict        (scripts/site.sh does both)

The Markdown files that git tracks keep their places, so that links between them lead where they do in the repository.
Pictures and sources that they link to are copied beside them; links to folders, for which a site has no page, become
text. The pages of the public interface are written here, from the names below.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.check_links import INLINE, prose, tracked  # noqa: E402

SOURCE = ROOT / "build/site/source"
LEFT_OUT = ("docs/pass_notes/", "tests/", "examples/emoji/judge/", "examples/emoji/vae/")

API = {
    "graphopt": """\
# graphopt

Everything that `import graphopt` offers.

## Functions

::: graphopt.compile.compile
::: graphopt.compile.report
::: graphopt.compile.restore
::: graphopt.bundle.bundled

## Named pipelines of passes

::: graphopt.pipelines
    options: {show_root_heading: false, show_source: true}

## For passes, observers and targets

[`Pass`][graphopt.ir.rewrite.Pass], [`Match`][graphopt.ir.rewrite.Match], [`Refusal`][graphopt.ir.rewrite.Refusal],
[`Observer`][graphopt.ir.rewrite.Observer] and [`Program`][graphopt.ir.program.Program] have pages of their own.

::: graphopt.targets.base.Target
::: graphopt.errors.GraphoptError
""",
    "testing": "# graphopt.testing\n\n::: graphopt.testing\n",
    "program": "# graphopt.ir.program\n\n::: graphopt.ir.program\n",
    "rewrite": "# graphopt.ir.rewrite\n\n::: graphopt.ir.rewrite\n    options: {show_if_no_docstring: true}\n",
    "driver": "# graphopt.ir.driver\n\n::: graphopt.ir.driver\n",
    "history": "# graphopt.debug\n\n::: graphopt.debug.history\n\n::: graphopt.debug.diff\n",
}


def assemble(root: Path, target: Path) -> None:
    """Write the source of the site anew."""
    shutil.rmtree(target, ignore_errors=True)
    for page in tracked(root):
        name = page.relative_to(root).as_posix()
        if name.startswith(LEFT_OUT):
            continue
        text = page.read_text(encoding="utf-8")
        for link in _links(text):
            there = (page.parent / link.partition("#")[0]).resolve()
            if there.is_dir() or there.relative_to(root).as_posix().startswith(LEFT_OUT):
                text = re.sub(rf"\[([^\]]+)\]\({re.escape(link)}\)", r"\1", text)
            elif there.suffix != ".md" and there.exists():  # what is missing, the build names with its page
                _copy(there, target / there.relative_to(root))
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    _copy(root / "docs/site.css", target / "docs/site.css")
    for name, text in API.items():
        (target / "api").mkdir(exist_ok=True)
        (target / "api" / f"{name}.md").write_text(text, encoding="utf-8")


def _links(text: str) -> set[str]:
    """Links of a page to files of the repository."""
    found = {link for _, line in prose(text) for link in INLINE.findall(line)}
    return {link for link in found if not re.match(r"[a-z]+:|#", link)}


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


if __name__ == "__main__":
    assemble(ROOT, SOURCE)
