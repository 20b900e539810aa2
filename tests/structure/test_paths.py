"""No file of the repository names a folder of one particular machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure import checks


def test_tracked_files() -> None:
    if not (checks.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    found = checks.check_machine_paths(checks.tracked_files(checks.ROOT))
    assert not found, "\n".join(found)


# Written in two halves, so that this file passes its own test.
@pytest.mark.parametrize(
    ("folder", "rest"),
    [("/home", "/ada/x.py"), ("/root", "/.cache"), ("/Users", "/ada"), ("/mnt", "/disk1"), ("/opt", "/venv/bin")],
)
def test_finds_a_planted_path(folder: str, rest: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text(f"fine\nsee `{folder}{rest}`\n")
    assert checks.check_machine_paths([file]) == [f"{file}:2: names {folder}{rest}"]


@pytest.mark.parametrize(
    "text", ["https://example.org/home/ada", "docs/root/x.md", "~/work/x", "a/tmp/b", "$HOME/work/x", "/tmp/out.png"]
)
def test_leaves_the_rest_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text(text)
    assert checks.check_machine_paths([file]) == []


def test_skips_binary_files(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"\xff\xfe /home" + b"/ada")
    assert checks.check_machine_paths([file]) == []
