"""`explain`: where a pass fired, what it saved, and why not elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from graphopt.cli._options import check_pass
from graphopt.cli.explain import show
from graphopt.debug.explain import Explanation, explain
from graphopt.debug.history import Compilation, History
from graphopt.errors import UsageError
from graphopt.ir.driver import run_pipeline
from graphopt.passes import Hoist, MergeCommon, RemoveDead, SimplifyIdentities
from graphopt.pipelines import exact
from graphopt.testing import sketch
from tests.cli.conftest import Run, parsed
from tests.goldens import Golden

PIPELINE = "tests.cli.factories:smallest"

BODY = """
    # :: block.0  model.py:3
    one = ops.aten.mul.Tensor(x, 1)  # f32[64, 8]
    two = ops.aten.mul.Tensor(one, 1)  # f32[64, 8]
    # :: block.1  model.py:7
    three = ops.aten.mul.Tensor(two, 1)  # f32[64, 8]
    # :: tokens  model.py:11
    view = ops.aten.transpose.int(c, 0, 1)  # f32[8, 64]
    key = ops.aten.neg.default(c)  # f32[64, 8]
    wide = ops.aten.expand.default(k, [64, 8])  # f32[64, 8]
    # :: (model)
    add = ops.aten.add.Tensor(three, key)  # f32[64, 8]
    sum = ops.aten.add.Tensor(add, wide)  # f32[64, 8]
    product = ops.aten.matmul.default(sum, view)  # f32[64, 64]
    return (product,)
"""


@pytest.fixture(scope="module")
def compilation() -> Compilation:
    program = sketch(BODY, x="f32[64, 8]", c="condition f32[64, 8]", k="condition f32[8]").program
    history = History()
    history.program_begins(program)
    passes = (SimplifyIdentities(), RemoveDead(), Hoist(dispatch_bytes=0), MergeCommon(), Hoist(dispatch_bytes=1))
    history.program_ends(run_pipeline(passes, program, history), [])
    return history.compilations[0]


def only(compilation: Compilation, name: str) -> Explanation:
    (found,) = explain(compilation, name)
    return found


def test_fired_by_source_line(compilation: Compilation) -> None:
    found = only(compilation, "simplify_identities")
    assert (found.position, found.passes, found.count) == (1, 5, 3)
    assert [(line.source, len(line.places)) for line in found.fired] == [("model.py:3", 2), ("model.py:7", 1)]
    assert found.fired[0].places[0].module == "block.0"
    was, now = found.stages["step"]
    assert was.cost.flops - now.cost.flops == 3 * 64 * 8


def test_a_pass_that_stands_twice_is_explained_twice(compilation: Compilation) -> None:
    first, second = explain(compilation, "hoist")
    assert (first.position, first.count, second.position, second.count) == (3, 1, 5, 0)
    assert [entry.reason for entry in second.missed] == ["it is a view of an input: keeping it saves no work"]
    assert [place.node for place in second.missed[0].lines[0].places] == ["view", "wide"]


def test_nothing_to_look_at(compilation: Compilation) -> None:
    assert only(compilation, "remove_dead").count == 0
    assert not only(compilation, "remove_dead").missed
    assert explain(compilation, "tabulate") == []


def test_places_that_earlier_passes_consumed() -> None:
    program = sketch(BODY, x="f32[64, 8]", c="condition f32[64, 8]", k="condition f32[8]").program
    history = History()
    history.program_begins(program)
    history.program_ends(run_pipeline((SimplifyIdentities(), SimplifyIdentities()), program, history), [])
    compilation = history.compilations[0]
    first, second = explain(compilation, "simplify_identities")
    assert (first.count, first.captured, second.count, second.captured) == (3, 0, 0, 3)
    console = Console(file=io.StringIO(), width=80)
    show(console, compilation, second, behind="exact")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "3 places of this form were there as captured; to run it first: --pass-pipeline simplify_identities,exact"
        in text
    )


def test_reasons_that_differ_in_numbers_are_one_and_the_most_work_comes_first() -> None:
    body = """
        view = ops.aten.transpose.int(c, 0, 1)
        b = ops.aten.neg.default(c)
        d = ops.aten.neg.default(e)
        f = ops.aten.add.Tensor(x, b)
        g = ops.aten.add.Tensor(f, d)
        return (g, view)
    """
    program = sketch(body, x="f32[2, 8]", c="condition f32[2, 8]", e="condition f32[8]").program
    history = History()
    history.program_begins(program)
    history.program_ends(run_pipeline((Hoist(max_bytes=0),), program, history), [])
    found = only(history.compilations[0], "hoist")
    first, last = found.missed
    assert first.reason.startswith("the stage would keep ") and "N bytes" not in first.reason
    assert (first.count, first.cost.flops, first.cost.bytes) == (2, 16 + 8, 4 * (32 + 16))
    assert [line.places[0].node for line in first.lines] == ["b"]
    assert (last.count, last.cost.flops) == (1, 0)
    data = found.to_dict()
    assert [entry["count"] for entry in data["refused"]] == [2, 1]
    assert data["refused"][0]["lines"][0]["places"][0]["node"] == "b"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    from tests.cli.conftest import invoke

    found = {}
    for name in ("simplify_views", "tabulate"):
        result = invoke("explain", PIPELINE, name, "--steps", "2", "--pass-pipeline", "bitwise")
        assert result.exit_code == 0, result.output
        found[name] = re.sub(r"(\.py):\d+", r"\1:N", result.stdout)
    return found


def test_text(texts: dict[str, str], golden: Golden) -> None:
    golden("".join(texts.values()), suffix=".txt")


@pytest.mark.slow
def test_both_occurrences_and_json(run: Run) -> None:
    arguments = ("explain", PIPELINE, "remove_dead", "--steps", "2", "--pass-pipeline", "remove_dead,remove_dead")
    data = parsed(run(*arguments, "--json"))
    assert [entry["position"] for entry in data["occurrences"]] == [1, 2]
    assert data["occurrences"][0]["stages"]["step"]["before"]["nodes"] > 0
    assert (data["module"], data["pass"]) == ("unet", "remove_dead")


def test_a_pass_that_found_nothing_says_so(run: Run) -> None:
    text = run("explain", PIPELINE, "remove_dead", "--steps", "2", "--pass-pipeline", "remove_dead").stdout
    assert "found nothing to look at" in text


def test_unknown_passes_and_passes_that_did_not_run(run: Run) -> None:
    result = run("explain", PIPELINE, "hoits")
    assert result.exit_code == 2
    assert "unknown pass 'hoits'" in result.stderr and "did you mean 'hoist'" in result.stderr
    result = run("explain", PIPELINE, "hoist", "--steps", "1", "--pass-pipeline", "remove_dead")
    assert result.exit_code == 2
    assert "the pass 'hoist' is not in the pipeline that ran" in result.stderr and "--pass hoist" in result.stderr
    with pytest.raises(UsageError, match="unknown pass"):
        check_pass("exact")
    assert {check_pass(entry.name) for entry in exact} == {entry.name for entry in exact}
