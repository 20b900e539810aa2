"""How far each value of an optimised Program is off the original's, on the inputs of one call.

Two values are compared where one node stands for the other: a node that passes left, renamed or gave other arguments,
as long as its shape is the same, or a result of the whole. What a pass made anew has no counterpart, and no error; what
is computed from it mostly has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from graphopt.debug.diff import difference
from graphopt.debug.history import Compilation
from graphopt.ir.accuracy import relative_error
from graphopt.ir.printer import describe
from graphopt.ir.program import Program, val


def errors(compilation: Compilation, inputs: Sequence[Any]) -> dict[str, float]:
    """The largest relative error of each value, by the name of its node in the last Program (`relative_error`).

    Both Programs run node by node on torch's own kernels. The values that are compared are held in memory at the same
    time: all activations of a call, once.

    Parameters
    ----------
    inputs : those of the Program, weights first, in order.
    """
    pairs = counterparts(compilation)
    known = dict[str, Any]()
    found = dict[str, float]()

    def keep(name: str, value: Any) -> None:
        known[name] = value

    def compare(name: str, value: Any) -> None:
        found[name] = max(found.get(name, 0.0), *(relative_error(known[old], value) for old in back[name]))

    back: dict[str, list[str]] = {}
    for old, new in pairs:
        back.setdefault(new, []).append(old)
    _Watched(compilation.captured, {old for old, _ in pairs}, keep).run(*inputs)
    _Watched(compilation.result, back, compare).run(*inputs)
    return found


def counterparts(compilation: Compilation) -> list[tuple[str, str]]:
    """Names of nodes of the captured Program, each with that of the node that stands for it in the last one."""
    follows = {node.name: node.name for node in compilation.captured.calls()}
    for before, after in pairwise(compilation.snapshots):
        if before.program is after.program:
            continue
        found = difference(before.program, after.program)
        gone = {change.node for change in found.of("removed")}
        follows = {old: found.renamed.get(now, now) for old, now in follows.items() if now not in gone}
    ends = zip(compilation.captured.results, compilation.result.results, strict=True)
    results = [(old.name, new.name) for old, new in ends if old is not None and new is not None and _called(old, new)]
    was, now = (_tensors(program) for program in (compilation.captured, compilation.result))
    pairs = [(old, new) for old, new in follows.items() if old in was and was[old] == now.get(new)]
    return list(dict.fromkeys([*pairs, *results]))


def _tensors(program: Program) -> dict[str, str]:
    """Shape and dtype of each tensor that is computed: what has another shape is another value."""
    values = {node.name: val(node) for node in program.calls()}
    return {name: describe(value) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _called(*nodes: fx.Node) -> bool:
    return all(node.op == "call_function" for node in nodes)


class _Watched(fx.Interpreter):
    """Runs a Program and tells of the values of some nodes."""

    def __init__(self, program: Program, names: Iterable[str], tell: Callable[[str, Any], None]) -> None:
        super().__init__(program.root, graph=program.graph)
        self.names, self.tell = set(names), tell

    def run(self, *inputs: Any) -> Any:  # type: ignore[override]
        with torch.no_grad():
            return super().run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.tell(n.name, value)
        return value
