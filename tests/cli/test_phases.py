"""What a command says on stderr while it works: the phase, and on a terminal what is being compiled in it."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from graphopt.cli import _app

LOGGER = logging.getLogger("graphopt")


def console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    made = Console(file=file, force_terminal=terminal, width=60, highlight=False, soft_wrap=True, no_color=True)
    monkeypatch.setattr(_app, "errors", lambda: made)
    return file


def plain(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", file.getvalue())


def test_what_is_logged_is_told_while_it_lasts() -> None:
    found, level = list[str](), LOGGER.level
    with _app.told(found.append):
        LOGGER.info("%s: compiling", "unet")
        LOGGER.debug("no")
    LOGGER.info("afterwards")
    assert found == ["unet: compiling"]
    assert LOGGER.level == level and not LOGGER.handlers


@pytest.mark.parametrize("terminal", [True, False])
def test_compiling_shows_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=terminal)
    with _app.phase("sampling") as say:
        LOGGER.info("unet: compiling UNet: first call; %s", "long " * 40)
        assert (say is not None) == terminal
    text = plain(file)
    assert "sampling" in text
    assert ("unet: compiling UNet" in text) == terminal
    assert all(len(line) <= 60 for line in re.split(r"[\r\n]", text))
