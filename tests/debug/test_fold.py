"""Changes by submodule, what repeats from block to block said once."""

from __future__ import annotations

from graphopt.debug.diff import difference
from graphopt.debug.fold import as_json, fold
from graphopt.ir.driver import run_pass
from graphopt.ir.program import Program
from graphopt.passes import RemoveDead
from graphopt.testing import sketch


def blocks(kinds: str) -> Program:
    """A block per letter: one that ends in an unread ``clone`` (c), ``neg`` (n), or in both (b)."""
    lines, last = [], "x"
    for number, kind in enumerate(kinds):
        lines.append(f"# :: blocks.{number}.act  model.py:3")
        lines.append(f"silu_{number} = ops.aten.silu.default({last})")
        last = f"silu_{number}"
        lines += [f"clone_{number} = ops.aten.clone.default({last})"] * (kind in "cb")
        lines += [f"neg_{number} = ops.aten.neg.default({last})"] * (kind in "nb")
    return sketch("\n".join([*lines, f"return ({last},)"]), x="f32[3]").program


def folded(kinds: str) -> list[tuple[str, int, int]]:
    program = blocks(kinds)
    found = difference(program, run_pass(RemoveDead(), program))
    return [(group.module, len(group.modules), len(group.changes)) for group in fold(found.changes)]


def test_equal_blocks_are_one() -> None:
    assert folded("cccc") == [("blocks.*.act", 4, 1)]
    assert folded("b") == [("blocks.0.act", 1, 2)]


def test_other_blocks_stay_apart() -> None:
    assert folded("ccbcn") == [("blocks.*.act", 3, 1), ("blocks.2.act", 1, 2), ("blocks.4.act", 1, 1)]


def test_every_change_is_in_one_group() -> None:
    program = blocks("cbnbc")
    found = difference(program, run_pass(RemoveDead(), program))
    groups = fold(found.changes)
    assert sum(len(group.modules) * len(group.changes) for group in groups) == len(found.changes)
    assert fold([]) == []


def test_shapes_keep_blocks_apart() -> None:
    body = """
        # :: blocks.0  model.py:3
        a_0 = ops.aten.clone.default(x)
        # :: blocks.1  model.py:3
        a_1 = ops.aten.clone.default(y)
        return (x,)
    """
    program = sketch(body, x="f32[3]", y="f32[4]").program
    assert len(fold(difference(program, run_pass(RemoveDead(), program)).changes)) == 2


def test_as_json() -> None:
    program = blocks("cn")
    data = as_json(difference(program, run_pass(RemoveDead(), program)))
    assert data["equal"] is False
    assert data["counts"] == {"removed": 2, "added": 0, "changed": 0, "moved": 0}
    assert data["changes"][0]["before"] == "clone_0 = ops.aten.clone.default(silu_0)"
    assert data["changes"][0]["module"] == "blocks.0.act"
    assert [stage["nodes"] for stage in data["stages"]["step"]] == [4, 2]
