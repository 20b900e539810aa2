"""A small network with every stage, several levels of submodules, views and an operator with several results."""

from __future__ import annotations

from graphopt.debug.history import Compilation, History
from graphopt.ir.driver import run_pipeline
from graphopt.ir.program import Program
from graphopt.ir.stages import split
from graphopt.passes import FoldConstants, Hoist, MergeLinears, Tabulate
from graphopt.testing import sketch

BODY = """
    # :: time_embed.linear  model.py:4
    time = ops.aten.linear.default(t, w_time)
    # :: blocks.0.attn.to_out  model.py:9
    scaled = ops.aten.mul.Tensor(w_out, 0.5)
    # :: blocks.0.attn.to_k  model.py:10
    key = ops.aten.linear.default(prompt, w_key)
    # :: blocks.0.attn.to_v  model.py:11
    value = ops.aten.linear.default(prompt, w_value)
    # :: blocks.0.attn  model.py:12
    query = ops.aten.add.Tensor(x, time)
    flat = ops.aten.view.default(query, [2, 10, 8])
    attended = ops.aten.scaled_dot_product_attention.default(flat, key, value)
    # :: blocks.0.attn.to_out  model.py:9
    projected = ops.aten.linear.default(attended, scaled)
    # :: blocks.0.split  model.py:20
    chunks = ops.aten.split.Tensor(projected, 4, -1)
    first = operator.getitem(chunks, 0)
    second = operator.getitem(chunks, 1)
    # :: blocks.0  model.py:21
    gated = ops.aten.mul.Tensor(first, second)
    # :: blocks.1.norm  model.py:30
    doubled = ops.aten.cat.default([gated, gated], -1)
    normed = ops.aten.layer_norm.default(doubled, [8])
    # :: norm_out  model.py:31
    silu = ops.aten.silu.default(normed)
    return (silu,)
"""


def program() -> Program:
    return sketch(
        BODY,
        x="f32[2, 10, 8]",
        t="time f32[1, 8]",
        prompt="condition f32[2, 5, 8]",
        w_time="weight f32[8, 8]",
        w_key="weight f32[8, 8]",
        w_value="weight f32[8, 8]",
        w_out="weight f32[8, 8]",
    ).program


def compilation() -> Compilation:
    """The network after five passes, the last but one of which does nothing."""
    history, first = History(), program()
    first.name = "network"
    history.program_begins(first)
    last = run_pipeline((MergeLinears(), FoldConstants(), Hoist(), Hoist(), Tabulate()), first, history)
    history.program_ends(last, split(last))
    return history.last("network")


def wide(count: int) -> Program:
    """A chain of blocks too long to flow from top to bottom, with a skip over all of them."""
    lines, last = [], "x"
    for number in range(count):
        lines += [
            f"# :: blocks.{number}.first  model.py:1",
            f"a{number} = ops.aten.sin.default({last})",
            f"# :: blocks.{number}.second  model.py:2",
            f"b{number} = ops.aten.mul.Tensor(a{number}, {last})",
            f"c{number} = ops.aten.cos.default(b{number})",
            f"# :: blocks.{number}  model.py:3",
            f"d{number} = ops.aten.add.Tensor(c{number}, a{number})",
        ]
        last = f"d{number}"
    lines += ["# :: out  model.py:9", f"skip = ops.aten.add.Tensor({last}, a0)", "return (skip,)"]
    return sketch("\n".join(lines), x="f32[4, 4]").program
