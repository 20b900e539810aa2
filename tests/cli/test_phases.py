"""What a command says on stderr while it works: the phase, and on a terminal what is being compiled in it."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from graphopt.cli import _app, _demo

LOGGER = logging.getLogger("graphopt")


def console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    made = Console(file=file, force_terminal=terminal, width=60, highlight=False, soft_wrap=True, no_color=True)
    monkeypatch.setattr(_app, "errors", lambda: made)
    monkeypatch.setattr(_demo, "errors", lambda: made)
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


@pytest.mark.parametrize("terminal", [True, False])
def test_phases_of_the_demo(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=terminal)
    with _demo._phases("emoji", 4) as (say, advance):
        say("loading")
        say("compiling")
        LOGGER.info("unet: compiling UNet: first call")
        advance()
    lines = [line.rstrip() for line in re.split(r"[\r\n]", plain(file)) if line.strip()]
    lines = [re.sub(r"took [\d.]+ m?s", "took", line) for line in lines if "/4" not in line]
    assert lines == [
        "emoji: loading", "  took", "emoji: compiling", "  unet: compiling UNet: first call", "  took",
    ]  # fmt: skip


def test_a_phase_that_fails_took_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=False)
    with pytest.raises(ValueError, match="no"), _demo._phases("emoji", 4) as (say, _):
        say("loading")
        raise ValueError("no")
    assert file.getvalue() == "emoji: loading\n"
    assert not LOGGER.handlers
