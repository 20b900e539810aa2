"""The report in a browser: what a reader does with it, by mouse and by keyboard, in light and in dark."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphopt.debug.history import Compilation
from graphopt.debug.viz import FORMATS
from graphopt.debug.viz.html import page
from graphopt.debug.viz.model import View, document
from graphopt.pipelines import exact
from graphopt.testing import trace
from tests.viz.conftest import Page, compiled

LAST = len(exact)
VIEW = View("a test", steps=4, calls=4)


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.time, self.key = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.query, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        read = self.norm(x * 1) + self.time(nn.functional.silu(time))
        weight = (self.query(read) @ self.key(text).transpose(-1, -2)).softmax(-1)
        found: Tensor = x + self.out(weight @ text)
        return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Mix(), Mix()])
        self.up = nn.ModuleList([Mix(), Mix()])
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        for block in (*self.down, *self.up):
            x = block(x, time, text)
        found: Tensor = self.head(x)
        return found


@pytest.fixture(scope="module")
def compilation() -> Compilation:
    torch.manual_seed(0)
    inputs = torch.randn(1, 8, 16), torch.randn(1, 1, 16), torch.randn(1, 4, 16)
    return compiled(trace(Net().eval(), *inputs, roles={"time": "time", "text": "condition"}).program, exact)


@pytest.fixture(scope="module")
def report(compilation: Compilation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_bytes(FORMATS["html"](compilation, VIEW))
    return file


@pytest.fixture
def shown(browser: Any, report: Path) -> Iterator[Page]:
    """The report, fresh; at the end nothing may have complained, and nothing was fetched."""
    opened = Page(browser, report)
    yield opened
    opened.context.close()
    assert opened.complaints == []


@pytest.fixture
def whole(browser: Any, report: Path) -> Iterator[Page]:
    """The same on a screen with room for everything: what is out of view, or a speck, is not drawn."""
    opened = Page(browser, report, viewport={"width": 2400, "height": 4800})
    yield opened
    opened.context.close()
    assert opened.complaints == []


def ready(shown: Page) -> None:
    """Two frames later: what was asked for is drawn."""
    shown.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_holds_the_document(report: Path, compilation: Compilation) -> None:
    text = report.read_text(encoding="utf-8")
    packed = re.search(r'id="document"[^>]*>([^<]*)<', text)
    assert packed
    assert json.loads(gzip.decompress(base64.b64decode(packed[1]))) == document(compilation, VIEW)
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert page(compilation, VIEW) == report.read_bytes()


def test_names_are_escaped(compilation: Compilation) -> None:
    text = page(compilation, replace(VIEW, pipeline="</title><script>alert(1)</script>{script}")).decode()
    assert "<script>alert" not in text
    assert text.count("<script") == 2


# -- the page --------------------------------------------------------------------------------------------------------


def test_begins_with_all_passes_side_by_side_and_two_levels(shown: Page) -> None:
    captions = shown.page.locator("figcaption").all_inner_texts()
    assert captions == ["as captured", "after all passes"]
    assert shown.ids(".open") == {"g:down", "g:up"}
    assert shown.ids(".closed") == {"g:down.0", "g:down.1", "g:up.0", "g:up.1"}
    assert "FLOP" in shown.page.locator(".verdict").inner_text()


def test_clicking_through_passes(shown: Page, compilation: Compilation) -> None:
    rows = shown.page.locator(".timeline button.pass")
    assert rows.count() == LAST + 2  # all passes, and the captured graph
    changes = document(compilation)["passes"]
    for number in range(LAST + 1):
        name = compilation.snapshots[number].name
        rows.nth(number + 1).click()
        shown.shows(name)
        assert rows.nth(number + 1).get_attribute("aria-current") == "step"
        assert shown.page.locator("figure:visible").count() == (2 if number else 1)
        for kind in ("removed", "added", "moved"):
            count = len(changes[number]["changes"][kind])
            chip = rows.nth(number + 1).locator(f".chip.{kind} .hidden")
            assert chip.all_inner_texts() == ([f"{count} {kind}"] if count else [])


def test_marks_of_a_pass(whole: Page, compilation: Compilation) -> None:
    number = next(entry.number for entry in compilation.snapshots if entry.name == "hoist")
    whole.page.locator("button.pass").nth(number + 1).click()
    whole.page.get_by_role("button", name="Expand changes").click()
    whole.page.keyboard.press("0")
    ready(whole)
    moved = document(compilation)["passes"][number]["changes"]["moved"]
    assert moved
    assert whole.ids(".moved") == whole.ids(".moved", "before") == {f"n:{node}" for node in moved}
    for side, stage in (("before", "step"), ("after", "request")):
        assert set(whole.graph("cy.$('.moved').map(entry => entry.data('stage'))", side)) == {stage}


def test_removed_on_the_left_added_on_the_right(whole: Page, compilation: Compilation) -> None:
    found = document(compilation)["passes"]
    number = next(entry["number"] for entry in found if entry["changes"]["removed"] and entry["changes"]["added"])
    whole.page.locator("button.pass").nth(number + 1).click()
    whole.page.get_by_role("button", name="Expand changes").click()
    whole.page.keyboard.press("0")
    ready(whole)
    removed = {f"n:{node}" for node in found[number]["changes"]["removed"]}
    added = {f"n:{node}" for node in found[number]["changes"]["added"]}
    assert (whole.ids(".removed", "before"), whole.ids(".removed")) == (removed, set())
    assert (whole.ids(".added", "before"), whole.ids(".added")) == (set(), added)
    whole.page.get_by_role("button", name="Side by side").click()
    whole.page.keyboard.press("0")
    ready(whole)
    assert (whole.ids(".removed"), whole.ids(".added")) == (removed, added)  # as ghosts, in one drawing


def test_expanding_by_mouse_and_by_keyboard(shown: Page) -> None:
    shown.page.mouse.dblclick(*shown.place("g:down.0"))
    shown.until(lambda: "g:down.0" in shown.ids(".open") & shown.ids(".open", "before"))
    before = shown.ids(".leaf")
    shown.page.keyboard.press("0")  # all of it in view
    ready(shown)
    shown.page.mouse.click(*shown.place("g:down.1"))
    shown.page.locator("[data-side=after] .canvas").focus()
    shown.page.keyboard.press("Enter")
    ready(shown)
    assert "g:down.1" in shown.ids(".open")
    assert shown.ids(".leaf") > before
    shown.page.get_by_role("button", name="Expand all").click()
    ready(shown)
    assert shown.ids(".closed") == set()
    shown.page.get_by_role("button", name="Collapse all").click()
    ready(shown)
    assert "g:down.0" not in shown.ids(".open")


def test_viewports_move_together(shown: Page) -> None:
    x, y = shown.place("g:down.0", "before")
    shown.page.mouse.move(x, y - 60)
    shown.page.mouse.wheel(0, -240)
    shown.page.get_by_role("button", name="Zoom in").click()
    shown.page.locator("[data-side=after] .canvas").focus()
    shown.page.keyboard.press("ArrowDown")
    ready(shown)
    views = [shown.graph("[cy.zoom(), cy.pan().x, cy.pan().y]", side) for side in ("before", "after")]
    assert views[0] == pytest.approx(views[1])


def test_search_by_keyboard(shown: Page) -> None:
    shown.page.keyboard.press("/")
    box = shown.page.get_by_role("combobox", name="Search nodes")
    box.type("up.1 softmax")
    options = shown.page.get_by_role("option")
    assert options.count() == 1
    assert "softmax" in options.first.inner_text()
    shown.page.keyboard.press("Enter")
    ready(shown)
    assert "softmax" in shown.page.locator(".details .kind").inner_text()
    assert "g:up.1" in shown.ids(".open")  # revealed
    assert len(shown.ids(".chosen")) == 1
    shown.page.keyboard.press("Escape")
    shown.shows("all passes")


def test_removed_nodes_are_found_where_they_are_drawn(shown: Page, compilation: Compilation) -> None:
    found = document(compilation)
    number, node = next((entry["number"], entry["changes"]["removed"][0]) for entry in found["passes"]
                        if entry["changes"]["removed"])  # fmt: skip
    name = found["nodes"][node]["versions"][-1]["name"]
    shown.page.locator("button.pass").nth(number + 1).click()
    shown.page.keyboard.press("/")
    shown.page.keyboard.type(name)
    assert name in [text.split()[0] for text in shown.page.get_by_role("option").all_inner_texts()]


def test_search_moves_with_the_arrows_and_closes_with_escape(shown: Page) -> None:
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("linear")
    options = shown.page.get_by_role("option")
    assert options.count() > 2
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        shown.page.keyboard.press(key)
    assert options.nth(1).get_attribute("aria-selected") == "true"
    shown.page.keyboard.press("Escape")
    assert options.count() == 0
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("no such thing")
    assert shown.page.get_by_role("status").inner_text() == "nothing found"


def test_details_lead_from_node_to_node(shown: Page) -> None:
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("softmax down.0")
    shown.page.keyboard.press("Enter")
    details = shown.page.get_by_role("complementary", name="Details")
    text = details.inner_text()
    for expected in ("f32[1, 8, 4]", "down.0", "test_page.py", "FLOP", "step"):
        assert expected in text
    first = details.locator("h2").inner_text()
    details.locator("details", has_text="Read by").get_by_role("button").first.click()
    ready(shown)
    assert details.locator("h2").inner_text() != first
    details.locator("details", has_text="Reads").get_by_role("button", name=re.compile(first)).click()
    ready(shown)
    assert details.locator("h2").inner_text() == first


def test_weights_are_folded_until_they_are_asked_for(shown: Page) -> None:
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("head.weight")
    shown.page.keyboard.press("Enter")
    ready(shown)
    assert shown.page.get_by_role("button", name="Weights", exact=True).get_attribute("aria-pressed") == "true"
    assert shown.page.locator(".details .kind").inner_text() == "weight"
    assert len(shown.ids(".chosen")) == 1


def test_refusals_are_shown_with_the_pass_and_with_the_node(shown: Page, compilation: Compilation) -> None:
    found = document(compilation)["passes"]
    entry = next(entry for entry in found if entry["refusals"] and isinstance(entry["refusals"][0]["places"][0], int))
    shown.page.locator("button.pass").nth(entry["number"] + 1).click()
    reason = entry["refusals"][0]["reason"]
    group = shown.page.locator(".details details", has_text=reason)
    group.locator("summary").click()
    group.get_by_role("button").first.click()
    assert reason in shown.page.locator(".details details", has_text="Refused here").inner_text()


def test_passes_by_arrow_keys(shown: Page) -> None:
    expected = [("Right", "captured"), ("Right", exact[0].name), ("Left", "captured"), ("Left", "all passes")]
    for key, title in [*expected, ("Left", exact[-1].name), ("Right", "all passes")]:
        shown.page.keyboard.press(f"Arrow{key}")
        shown.shows(title)


def test_next_change(shown: Page, compilation: Compilation) -> None:
    found = document(compilation)["passes"]
    number = next(entry["number"] for entry in found if len(entry["changes"]["moved"]) > 1)
    shown.page.locator("button.pass").nth(number + 1).click()
    seen = set()
    for _ in range(2):
        shown.page.keyboard.press("n")
        ready(shown)
        seen |= shown.ids(".chosen")
    assert len(seen) == 2
    shown.page.keyboard.press("p")
    ready(shown)
    assert shown.ids(".chosen") < seen


def test_waterfall_switches_between_quantities(shown: Page, compilation: Compilation) -> None:
    section = shown.page.get_by_role("region", name="Cost per image")
    chart = section.get_by_role("img")
    texts = set()
    for name in ("FLOPs", "bytes", "joules"):
        section.get_by_role("button", name=name).click()
        texts.add(chart.get_attribute("aria-label"))
    section.get_by_role("button", name="later images").click()
    texts.add(chart.get_attribute("aria-label"))
    assert len(texts) == 4
    assert section.locator(".bar").count() == LAST + 2
    section.locator(".bar .hit").nth(3).click()
    shown.shows(compilation.snapshots[3].name)


def test_a_stage_alone(whole: Page) -> None:
    whole.page.get_by_role("group", name="Stages").get_by_role("button", name="request", exact=True).click()
    whole.page.get_by_role("button", name="Expand all").click()
    whole.page.keyboard.press("0")
    ready(whole)
    stages = set(whole.graph("cy.$('.leaf').not('.dim').map(entry => entry.data('stage'))"))
    assert stages == {"request"}


def test_dark_and_light(browser: Any, report: Path) -> None:
    shown = Page(browser, report, color_scheme="dark")
    colours = []
    for _ in range(2):
        colours.append(shown.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        colours.append(shown.graph("cy.$('.leaf')[0].style('color')"))
        shown.page.get_by_role("button", name=re.compile("Switch to .* colours")).click()
        ready(shown)
    assert len(set(colours)) == 4
    dark, light = (sum(map(int, re.findall(r"\d+", text)[:3])) for text in (colours[0], colours[2]))
    assert dark < 150 < 600 < light
    shown.context.close()
    assert shown.complaints == []


def cut_off(shown: Page) -> Any:
    """What is wider than its box and has no way of showing it. Details that would scroll sideways count as well."""
    return shown.page.evaluate("""[...document.querySelectorAll("#app *:not(.hidden):not(.canvas *):not(svg *)")]
        .filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth)
        .filter(one => getComputedStyle(one).overflowX !== "visible")
        .map(one => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 60)}`)""")


@pytest.mark.parametrize("width", [900, 1280])
def test_nothing_is_cut_off(browser: Any, report: Path, width: int) -> None:
    shown = Page(browser, report, viewport={"width": width, "height": 800})
    assert cut_off(shown) == []
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("softmax")
    shown.page.keyboard.press("Enter")
    ready(shown)
    assert cut_off(shown) == []
    wide = shown.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    for name in ("top", "timeline", "graph", "details", "waterfall"):
        box = shown.page.locator(f".{name}").first.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 800
        assert box["height"] > 30
    shown.context.close()
    assert shown.complaints == []


def test_everything_has_a_name_and_shows_its_focus(shown: Page) -> None:
    named = "button, input, [role=group], [role=img], nav, aside, main, section, [tabindex]"
    nameless = shown.page.evaluate(
        """(named) => [...document.querySelectorAll(named)]
        .filter(one => !one.closest(".canvas > *"))
        .filter(one => !(one.getAttribute("aria-label") || one.textContent.trim()))
        .map(one => one.outerHTML.slice(0, 120))""",
        named,
    )
    assert nameless == []
    for _ in range(12):
        shown.page.keyboard.press("Tab")
        outline = shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or "auto" in outline


def test_begins_where_it_is_told_to(browser: Any, compilation: Compilation, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_bytes(page(compilation, replace(VIEW, after=2, stage="schedule")))
    shown = Page(browser, file)
    shown.shows(compilation.snapshots[2].name)
    pressed = shown.page.get_by_role("button", name="schedule", exact=True).get_attribute("aria-pressed")
    assert pressed == "true"
    shown.context.close()
    assert shown.complaints == []


def test_a_document_of_another_schema_is_refused(browser: Any, report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    packed = base64.b64encode(gzip.compress(b'{"schema": 99}')).decode()
    file = tmp_path / "report.html"
    file.write_text(re.sub(r'(id="document"[^>]*>)[^<]*', rf"\g<1>{packed}", text), encoding="utf-8")
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(file.as_uri())
    opened.wait_for_function("document.body.innerText.includes('cannot be shown')")
    assert "schema 1" in opened.locator("body").inner_text()
    context.close()


def test_errors_and_the_first_change_of_the_pass_that_was_asked_for(
    browser: Any, compilation: Compilation, tmp_path: Path
) -> None:
    number = next(shot.number for shot in compilation.snapshots if shot.name == "tabulate")
    result = compilation.result.results[0]
    assert result is not None
    view = replace(VIEW, after=number, errors={result.name: 0.034})
    file = tmp_path / "after.html"
    file.write_bytes(page(compilation, view))
    opened = Page(browser, file)
    found = document(compilation, view)
    first = next(found["passes"][number]["changes"][kind][0] for kind in ("removed", "added", "moved", "changed")
                 if found["passes"][number]["changes"][kind])  # fmt: skip
    names = {entry["name"] for entry in found["nodes"][first]["versions"]}
    opened.until(lambda: opened.heading in names)
    details = opened.page.locator(".details dl")
    assert "no counterpart" in details.inner_text() or "not measured" in details.inner_text()
    opened.page.keyboard.press("/")
    opened.page.keyboard.type(result.name)
    opened.page.keyboard.press("Enter")
    opened.shows(result.name)
    assert "3.4e-2 of the captured graph's largest value" in details.inner_text()
    assert opened.complaints == []
    opened.context.close()


def test_the_line_at_the_top_agrees_with_all_passes(shown: Page) -> None:
    verdict, whole = shown.page.locator(".verdict"), shown.page.locator(".timeline li").first
    for label, button in (("first image", "first image"), ("later images", "later images")):
        shown.page.get_by_role("button", name=button).click()
        assert verdict.inner_text().startswith(label)
        changes = verdict.locator("em").all_inner_texts()
        assert changes and all(text in whole.inner_text() for text in changes)
