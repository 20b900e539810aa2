"""Links between the repository's Markdown files lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import check_links
from tests.structure import checks


def test_repository() -> None:
    if not (checks.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    found = [line for file in check_links.tracked(checks.ROOT) for line in check_links.broken(file, checks.ROOT)]
    assert not found, "\n".join(found)


OTHER = "# One\n\n## Two words, `code`\n\n## One\n\n<a id='x'></a><a id=\"here\"></a>\n```\n# not a heading\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        '[a](other.md), [b](other.md#two-words-code) and ![c](sub/x.png "title")',
        "[a](other.md#one-1)",
        "[a](other.md#here)",
        "[a](#self)\n# Self",
        "[a](/sub/x.png)",
        "[a](https://example.org/missing.md#x) [b](mailto:a@b.c)",
        "`[a](missing.md)`\n```\n[a](missing.md)\n```",
        "[![badge](sub/x.png)](other.md)",
        "[a]: other.md",
    ],
)
def test_leaves_good_links_alone(text: str, tmp_path: Path) -> None:
    assert broken(text, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n[a](missing.md)", "page.md:2: missing.md does not exist"),
        ("[a](other.md#three)", "page.md:1: other.md#three: no such heading"),
        ("[a](other.md#not-a-heading)", "page.md:1: other.md#not-a-heading: no such heading"),
        ("[a](other.md#one-2)", "page.md:1: other.md#one-2: no such heading"),
        ("[a](#self)", "page.md:1: #self: no such heading"),
        ("[a](../../elsewhere.md)", "page.md:1: ../../elsewhere.md leads out of the repository"),
        ("[![badge](gone.png)](other.md)", "page.md:1: gone.png does not exist"),
        ("[a]: gone.md", "page.md:1: gone.md does not exist"),
        ('<img src="gone.png" width="3">', "page.md:1: gone.png does not exist"),
        ("```\n```\n[a](gone.md)", "page.md:3: gone.md does not exist"),
    ],
)
def test_finds_a_planted_broken_link(text: str, expected: str, tmp_path: Path) -> None:
    assert broken(text, tmp_path) == [expected]


def broken(text: str, root: Path) -> list[str]:
    root = root.resolve()
    (root / "sub").mkdir()
    (root / "sub" / "x.png").touch()
    (root / "other.md").write_text(OTHER)
    (root / "page.md").write_text(text)
    return check_links.broken(root / "page.md", root)
