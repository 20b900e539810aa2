"""Checks that links inside the repository's Markdown files lead somewhere: files exist, and anchors are headings.

    python scripts/check_links.py [FILE ...]

Without arguments it reads every Markdown file that git tracks. Links to other sites are not followed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]

INLINE = re.compile(r"\]\(\s*<?([^()\s>]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]^]+\]:\s+<?(\S+?)>?(?:\s|$)")
HTML = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
ANCHOR = re.compile(r"<[^>]+\b(?:id|name)=\"([^\"]+)\"")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines outside code blocks, with their numbers."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if not fence and match:
            fence = match.group(1)
        elif fence and match and line.strip() == line.strip()[0] * len(line.strip()) and match.group(1) >= fence:
            fence = ""
        elif not fence:
            yield number, line


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading.

    >>> slug("What `graphopt.compile` does, and why")
    'what-graphoptcompile-does-and-why'
    """
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"<[^>]+>", "", text).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """What a link into a Markdown text may name after `#`."""
    found: set[str] = set()
    counts: dict[str, int] = {}
    for _, line in prose(text):
        found.update(ANCHOR.findall(line))
        if match := HEADING.match(line):
            name = slug(match.group(1))
            count = counts.get(name, 0)
            counts[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """The targets of links and pictures, with their lines; code is left out."""
    for number, line in prose(text):
        line = re.sub(r"(`+)(?:(?!\1).)+\1", "`code`", line)
        for pattern in (INLINE, REFERENCE, HTML):
            yield from ((number, target) for target in pattern.findall(line))


def broken(file: Path, root: Path) -> list[str]:
    """The links of one file that lead nowhere, a line of text each."""
    text, found = file.read_text(encoding="utf-8"), []
    for number, target in links(text):
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", target) or target.startswith("//"):
            continue
        name, _, anchor = unquote(target).partition("#")
        where = f"{file.relative_to(root)}:{number}"
        path = (root / name.lstrip("/") if name.startswith("/") else file.parent / name).resolve() if name else file
        if not path.is_relative_to(root):
            found.append(f"{where}: {target} leads out of the repository")
        elif not path.exists():
            found.append(f"{where}: {target} does not exist")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
            found.append(f"{where}: {target}: no such heading")
    return found


def tracked(root: Path) -> list[Path]:
    """The Markdown files that git tracks, links left out."""
    command = ["git", "ls-files", "-z", "*.md"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file() and not (root / name).is_symlink()]


def main() -> int:
    """Print what is broken; the exit status is 1 if anything is."""
    files = [Path(name).resolve() for name in sys.argv[1:]] or tracked(ROOT)
    found = [line for file in files for line in broken(file, ROOT)]
    print("\n".join(found) if found else f"{len(files)} Markdown files: all links lead somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
