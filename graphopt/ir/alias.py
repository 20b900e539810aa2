"""Who shares memory with whom: what a caller could notice by writing into a result.

Inside a Program nothing is written to, so two nodes may share memory freely. Its results leave it: a caller may write
into one, and must then find neither an input, nor another result, nor a kept value changed.
"""

from __future__ import annotations

import operator

from torch import fx

from graphopt.ir.effects import is_view
from graphopt.ir.program import Program


def owner(node: fx.Node) -> fx.Node:
    """The node whose memory `node` may be a view of; `node` itself when it is no view."""
    while node.op == "call_function" and is_view(node):
        node = node.all_input_nodes[0]
    return node


def shared_results(program: Program, node: fx.Node) -> set[fx.Node]:
    """The results that may share memory with `node`: itself, and views of it."""
    found, open_, results = {node}, [node], set(program.results)
    while open_:
        for user in open_.pop().users:
            if user not in found and (is_view(user) or user.target is operator.getitem):
                found.add(user)
                open_.append(user)
    return {entry for entry in found if entry in results}


def noticed(program: Program, old: fx.Node, new: fx.Node) -> str | None:
    """Why a caller could notice that `new` takes the place of an equal value `old`; None when nobody can."""
    source = owner(new)
    if owner(old) is source or not shared_results(program, old):
        return None
    if source.op != "call_function":
        return "a result would share memory with an input"
    if shared_results(program, source):
        return "two results would share memory"
    return None
