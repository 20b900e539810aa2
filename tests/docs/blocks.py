"""The code blocks of a Markdown page, run in order in one namespace and one folder.

Blocks of ``python`` are executed, those that begin with ``>>>`` as doctests. A block whose first line is
``# file: NAME`` is written to that file instead, or must be what the repository's file of that name holds; one that
begins with ``# in: NAME`` must be a part of such a file. In blocks of ``console``, each line that begins with ``$`` is
a command, and the lines below are what it prints on standard output (``...`` stands for anything).
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(page: Path, folder: Path, *, skip: Callable[[str], bool] = lambda command: False) -> int:
    """Run the blocks of a page with `folder` as the current one; commands for which `skip` holds are left out.

    Returns the number of blocks. Raises SybilFailure, or what a block raised, where one does not do what it shows.
    """
    console = CodeBlockParser("console", lambda example: _commands(example, folder, skip))
    document = Sybil(parsers=[_python(folder), console], path=str(page.parent)).parse(page)
    document.namespace["__name__"] = "page"
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def _python(folder: Path) -> Callable[[Document], Iterator[Region]]:
    parser = PythonCodeBlockParser(doctest_optionflags=FLAGS)

    def parse(document: Document) -> Iterator[Region]:
        for region in parser(document):
            if isinstance(region.parsed, str) and (named := re.match(r"# (file|in): (\S+)\n", region.parsed)):
                theirs = (ROOT / named[2]).exists()
                region.evaluator = _same(ROOT / named[2], named[1]) if theirs else _writer(folder / named[2])
            yield region

    return parse


def _writer(file: Path) -> Callable[[Example], None]:
    def write(example: Example) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(example.parsed).partition("\n")[2].lstrip("\n"), encoding="utf-8")

    return write


def _same(file: Path, how: str) -> Callable[[Example], str | None]:
    def compare(example: Example) -> str | None:
        shown, there = str(example.parsed).partition("\n")[2].rstrip(), file.read_text(encoding="utf-8").rstrip()
        same = shown == there if how == "file" else shown in there
        return None if same else f"{file.relative_to(ROOT)} reads otherwise"

    return compare


def _commands(example: Example, folder: Path, skip: Callable[[str], bool]) -> str | None:
    """What is wrong with a block of commands, if anything."""
    for entry in re.split(r"^\$ ", str(example.parsed), flags=re.MULTILINE)[1:]:
        command, _, wanted = entry.partition("\n")
        if skip(command):
            continue
        script = re.fullmatch(r"python (\S+\.py)", command)
        found = _script(folder / script[1]) if script else _shell(command, folder)
        if not doctest.OutputChecker().check_output(wanted, found, FLAGS):
            return f"$ {command}\nprinted\n{found}\ninstead of\n{wanted}"
    return None


def _script(file: Path) -> str:
    """Standard output of a script, run in this process, where what it imports is at hand."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(file), run_name="__main__")
    return out.getvalue()


def _shell(command: str, folder: Path) -> str:
    """Standard output of a command that must succeed, run with this interpreter and this checkout."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    return done.stdout
