"""Whether the branches of a batch are computed independently, so that one of them can be left out."""

from __future__ import annotations

import torch
from torch import fx

from graphopt.ir.effects import has_effect
from graphopt.ir.program import Program, val
from graphopt.ir.relations import Repeated, specialise
from graphopt.ir.repeats import Repeat, carriers, repeats, whole


def independent(program: Program, times: int) -> frozenset[str]:
    """Paths of the arguments that hold the rows of `times` branches, if each branch of all results needs only its own.

    Empty where that cannot be shown. The proof is that of repetitions: were all these arguments made of equal parts,
    every operation up to the results would carry the parts on, and nothing that reads a batch whole (a mean over it, a
    reordering of its rows) lies in between.
    """
    sizes = {_rows(node) for node in program.results}
    if len(sizes) != 1 or not (rows := sizes.pop()) or rows % times or any(map(has_effect, program.calls())):
        return frozenset()
    inputs = zip(program.placeholders, program.inputs, strict=True)
    paths = [entry.path for node, entry in inputs if entry.role != "weight" and _rows(node) == rows]
    split, _ = specialise(program, [Repeated(path, times) for path in paths])
    known = repeats(split)
    proved = {user for node in split.placeholders if node.name.endswith("_part") for user in node.users}
    touched = set(proved)
    for node in split.calls():
        if node in touched or not touched.intersection(node.all_input_nodes):
            continue
        touched.add(node)
        if node in known and _carries(node, known[node], times, proved, touched):
            proved.add(node)
    shown = all(node in proved and known[node].dim == 0 for node in split.results if node is not None)
    return frozenset(paths) if shown else frozenset()


def _carries(node: fx.Node, repeat: Repeat, times: int, proved: set[fx.Node], touched: set[fx.Node]) -> bool:
    """Whether a branch of `node` needs only that branch of what it reads."""
    carried = carriers(node, repeat)
    alone = all(source in proved or source not in touched for source in carried)
    return bool(carried) and repeat.count % times == 0 and alone and not whole(node, repeat) & touched


def _rows(node: fx.Node | None) -> int:
    value = val(node)
    return int(value.shape[0]) if isinstance(value, torch.Tensor) and value.ndim else 0
