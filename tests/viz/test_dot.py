"""Pictures by Graphviz: their text, what is folded, what is marked, and that Graphviz draws them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.debug.figures import scaled
from graphopt.debug.history import Compilation, Snapshot
from graphopt.debug.viz.dot import dot, picture
from graphopt.debug.viz.fold import by_stage, columns, cost_of, fold, is_plumbing, levels
from graphopt.debug.viz.palette import COLOURS, tint
from graphopt.errors import UsageError
from graphopt.ir.cost import program_cost
from graphopt.ir.program import Program
from graphopt.ir.stages import STAGES
from graphopt.passes import Hoist
from graphopt.testing import sketch
from tests.goldens import Golden
from tests.ir import models
from tests.viz import blocks
from tests.viz.conftest import need, package


@pytest.fixture(scope="module")
def compiled() -> Compilation:
    return blocks.compilation()


def titles(text: str) -> list[str]:
    """The bold lines: titles of boxes and marks, the picture's own title left out."""
    return re.findall(r"<b>([^<]*)</b>", text)[1:]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole", {}),
        ("folded", {"depth": 1}),
        ("stage", {"stage": "step", "depth": 0}),
        ("hoist", {"after": 4, "compare": True, "depth": 0}),
        ("merge_linears", {"after": "merge_linears", "compare": True}),
        ("captured", {"after": 0, "views": True, "depth": 0}),
    ],
)
def test_text(name: str, options: dict[str, object], compiled: Compilation, golden: Golden) -> None:
    golden(dot(compiled, **options), case=name, suffix=".dot")  # type: ignore[arg-type]


def test_columns_text(golden: Golden) -> None:
    golden(dot(blocks.wide(12)), case="columns", suffix=".dot")


def test_text_depends_on_nothing_but_the_program(compiled: Compilation) -> None:
    assert dot(compiled) == dot(blocks.compilation())
    assert dot(blocks.wide(20)) == dot(blocks.wide(20))


@pytest.mark.parametrize("model", [blocks.program, models.unet])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_every_operator_is_in_one_box_and_no_work_is_lost(model: Callable[[], Program], depth: int) -> None:
    program = model()
    found = fold(program, depth)
    inside = [node.name for box in found.boxes for node in box.nodes]
    assert len(inside) == len(set(inside))
    computing = {node.name for node in program.calls() if not is_plumbing(node)}
    assert computing <= set(inside)
    assert cost_of(node for box in found.boxes for node in box.nodes) == program_cost(program)
    assert len({box.name for box in found.boxes}) == len(found.boxes)
    assert all({*ends} <= {box.name for box in found.boxes} and len({*ends}) == 2 for ends in found.edges)
    assert depth == 0 or all(len(box.path) <= depth for box in found.boxes if box.kind == "module")
    assert sorted(box.name for some in columns(program, found.boxes).values() for box in some) == sorted(
        box.name for box in found.boxes
    )


def test_values_reach_through_views_and_folded_boxes() -> None:
    edges = fold(blocks.program(), 0).edges
    assert edges["query", "attended"].views == ("view",)
    assert edges["projected", "gated"].views == ("split",)
    assert ("gated", "doubled") in edges and ("doubled", "normed") in edges
    folded = fold(blocks.program(), 1)
    assert {box.name: box.kind for box in folded.boxes}["scaled"] == "module"
    assert ("time", "scaled") in folded.edges


def test_a_stage_shows_what_it_takes_from_others(compiled: Compilation) -> None:
    text = dot(compiled, stage="step", depth=0)
    assert "from request" in titles(text) and "from schedule" in titles(text)
    assert "from weights" not in titles(text)
    found = fold(compiled.result, 0, stage="request")
    assert {box.nodes[0].op for box in found.boxes} == {"placeholder", "call_function"}
    assert all(set(by_stage(compiled.result, box.nodes)) == {"request"} for box in found.boxes)


def test_marks_say_what_a_pass_did(compiled: Compilation) -> None:
    first, second = (snapshot.number for snapshot in compiled.snapshots if snapshot.name == "hoist")
    assert "nothing changed" in dot(compiled, after=second, compare=True, depth=0)
    hoisted = dot(compiled, after=first, compare=True, depth=0)
    assert "→ moved from step to request" in titles(hoisted)
    assert not [title for title in titles(hoisted) if "removed" in title or "added" in title]
    merged = dot(compiled, after="merge_linears", compare=True, depth=0)
    assert titles(merged).count("− removed") == 2 and "− 2 removed, + 5 added (3 of them views)" in merged
    before, _, after = merged.partition('subgraph "cluster 1"')
    assert "added" not in " ".join(titles(before)) and "removed" not in " ".join(titles(after))
    assert any("+ added" in title for title in titles(after))


def test_submodules_that_a_pass_left_alone_are_folded(compiled: Compilation) -> None:
    merged = dot(compiled, after="merge_linears", compare=True, depth=0)
    assert "norm_out: silu" in titles(merged) and "blocks.1" in titles(merged)
    assert "layer_norm" not in " ".join(titles(merged))


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        ({"stage": "steps"}, "no stage 'steps'", "step"),
        ({"after": "hoists"}, "no pass 'hoists' runs", "did you mean 'hoist'"),
        ({"after": "hoist"}, "'hoist' runs 2 times", "003_hoist or 004_hoist"),
        ({"after": "005_hoist"}, "no pass '005_hoist' runs", "003_hoist or 004_hoist"),
        ({"after": "9_tabulate"}, "no pass '9_tabulate' runs", "did you mean 005_tabulate"),
        ({"after": 17}, "no pass '17'", "captured"),
        ({"after": "captured", "compare": True}, "nothing before the captured", "pass"),
        ({"depth": -1}, "the depth is -1", "0 or more"),
        ({"format": "jpeg"}, "no format 'jpeg'", "png"),
    ],
)
def test_mistakes_are_explained(options: dict[str, object], what: str, hint: str, compiled: Compilation) -> None:
    with pytest.raises(UsageError, match=re.escape(what)) as caught:
        picture(compiled, **{"format": "dot", **options})  # type: ignore[arg-type]
    assert hint in caught.value.hint


@pytest.mark.parametrize("options", [{"after": "hoist"}, {"compare": True}])
def test_a_program_alone_has_no_passes(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="does not know its passes"):
        dot(blocks.program(), **options)  # type: ignore[arg-type]


def test_passes_are_found_by_name_number_or_both(compiled: Compilation) -> None:
    texts = {dot(compiled, after=name) for name in ("fold_constants", 2, "2", "002_fold_constants")}
    assert len(texts) == 1
    assert "as captured" in dot(compiled, after="captured")


def test_names_that_html_or_graphviz_would_read_are_quoted() -> None:
    program = blocks.program()
    for node in program.calls():
        node.meta["module"] = 'a<b>&"c".0.inner'
    text = dot(program, depth=2)
    assert "a&lt;b&gt;&amp;" in text and 'a<b>&"' not in text
    need(shutil.which("dot"), "Graphviz's dot")
    package("graphviz")
    assert picture(program, format="svg").startswith(b"<?xml")


@pytest.mark.parametrize("source", [blocks.compilation, lambda: blocks.wide(12), models.unet])
def test_graphviz_draws_it(source: Callable[[], Compilation | Program]) -> None:
    need(shutil.which("dot"), "Graphviz's dot")
    package("graphviz")
    drawn = picture(source(), format="svg").decode()
    assert drawn.startswith("<?xml") and "</svg>" in drawn
    assert picture(source(), format="png").startswith(b"\x89PNG")
    assert picture(source(), format="dot").startswith(b"digraph graphopt {")


def test_without_graphviz_it_says_what_to_install(
    compiled: Compilation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(UsageError, match="Python package graphviz") as caught:
        picture(compiled, format="svg")
    assert "graphopt[viz]" in caught.value.hint
    assert picture(compiled, format="dot")
    monkeypatch.delitem(sys.modules, "graphviz")
    package("graphviz")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="program dot, which was not found") as caught:
        picture(compiled, format="png")
    assert "graphviz.org" in caught.value.hint


def test_levels_keep_an_index_with_its_list() -> None:
    assert levels("down_blocks.0.resnets.1.conv1") == ("down_blocks.0", "resnets.1", "conv1")
    assert levels("0.1.conv") == ("0.1", "conv")
    assert levels("") == ()


def test_stages_have_colours_of_their_own() -> None:
    assert list(COLOURS) == list(STAGES)
    assert len({*COLOURS.values(), *map(tint, COLOURS.values())}) == 2 * len(STAGES)
    assert tint("#000000", 0.5) == "#808080"
    assert (scaled(1_550_000_000, "FLOP"), scaled(0, "B"), scaled("s0", "B")) == ("1.55 GFLOP", "0 B", "s0 B")


def test_a_new_node_with_an_old_ones_name_is_marked_itself() -> None:
    before = sketch("a = ops.aten.sin.default(x)\nreturn (a,)", x="f32[3]").program
    after = sketch("b = ops.aten.sin.default(x)\na = ops.aten.cos.default(b)\nreturn (a,)", x="f32[3]").program
    snapshots = [Snapshot(0, "captured", before), Snapshot(1, "hoist", after, Hoist())]
    lines = dot(Compilation("network", snapshots), compare=True).splitlines()
    marked = {name: line for line in lines for name in ("sin", "cos") if f"<b>{name}</b>" in line}
    assert "+ added" in marked["cos"] and "added" not in marked["sin"]
