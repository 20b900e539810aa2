"""Small compilations, and a browser where there is one."""

from __future__ import annotations

import importlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from graphopt.debug.history import Compilation, History
from graphopt.ir.driver import run_pipeline
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Pass
from graphopt.ir.stages import split

# A browser that asks nobody for anything.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


def compiled(program: Program, passes: Sequence[Pass]) -> Compilation:
    """The way of a Program through passes, as `graphopt.compile` would have it observed."""
    history = History()
    history.program_begins(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # passes that are meant to fail
        result = run_pipeline(passes, program, history)
    history.program_ends(result, split(result))
    return history.last(program.name)


def need(program: str | None, what: str) -> None:
    """Skip the test where a program is missing; on CI, which installs it, fail."""
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not on the PATH")


def package(name: str) -> Any:
    """A module of a package that not everybody has: where it is missing the test is skipped, on CI it fails."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; without either the test is skipped, on CI it fails."""
    sync_api = package("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    need(chromium, "Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()


class Page:
    """A report in the browser, with what it complained of in `complaints`."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function("performance.getEntriesByName('graphopt:drawn').length > 0")

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

    @property
    def heading(self) -> str:
        """The title of the details."""
        return str(self.page.locator(".details h2").first.inner_text())

    def until(self, holds: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for the page to have done what it was told."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"still not so after {seconds:g} s"
            self.page.wait_for_timeout(20)

    def shows(self, title: str) -> None:
        """Wait until the details are those of a pass, a module or a node."""
        self.until(lambda: self.heading == title)

    def graph(self, code: str, side: str = "after", argument: Any = None) -> Any:
        """Evaluate JavaScript over `cy`, the graph of one side, and `argument`."""
        found = f"document.querySelector('[data-side={side}] .canvas')._cyreg.cy"
        return self.page.evaluate(f"(argument) => {{ const cy = {found}; return {code}; }}", argument)

    def ids(self, selector: str, side: str = "after") -> set[str]:
        """The elements of one side that match a selector of cytoscape."""
        return set(self.graph("cy.$(argument).map(entry => entry.id())", side, selector))

    def place(self, element: str, side: str = "after") -> tuple[float, float]:
        """Where the middle of an element is, in pixels of the page."""
        box = self.page.locator(f"[data-side={side}] .canvas").bounding_box()
        x, y = self.graph("(at => [at.x, at.y])(cy.getElementById(argument).renderedPosition())", side, element)
        return box["x"] + x, box["y"] + y
