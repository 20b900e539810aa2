"""Functional graphs of exported ones, without torch's running the whole graph a second time.

What torch.export gives may write into its values, and calls operators that are made of others (reshape, chunk, to).
``ExportedProgram.run_decompositions({})`` removes both by tracing the graph once more, which takes as long as the
export itself. Where nothing is written, only the second is left to do: the few operators that are made of others are
traced here, each by itself, and all other nodes stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _is_cia_op, _is_preservable_cia_op
from torch._guards import detect_fake_mode
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


def functional(exported: torch.export.ExportedProgram) -> fx.Graph | None:
    """The graph that ``exported.run_decompositions({})`` has; None where something is written, or of unknown size."""
    if not all(map(_is_plain, exported.graph.nodes)):
        return None
    try:
        return _decomposed(exported.graph)
    except _NotPlainError:
        return None


class _NotPlainError(Exception):
    """An operator is made of some that write, or that take tensors from nowhere."""


def _is_plain(node: fx.Node) -> bool:
    """Whether a node gives values of known sizes, and writes into none."""
    if node.op in ("placeholder", "output"):
        return True
    if any(isinstance(leaf, torch.SymInt) for leaf in _sizes(node)):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable
    return node.op == "call_function" and node.target is operator.getitem


def _sizes(node: fx.Node) -> list[Any]:
    leaves = tree_leaves(node.meta.get("val"))
    return [size for leaf in leaves for size in (leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,))]


def _decomposed(graph: fx.Graph) -> fx.Graph:
    """A copy in which operators that are made of others, and that torch takes apart, are replaced by these."""
    tracer = _Tracer()
    values: dict[fx.Node, Any] = {}  # of the graph, to nodes of the copy; to several where there are several results

    def value(node: fx.Node) -> Any:
        return values[node]

    for node in graph.nodes:
        if node.op == "call_function" and _is_composite(node.target):
            values[node] = tracer.taken_apart(node, values)
        elif node.target is operator.getitem and not isinstance(values[node.args[0]], fx.Node):
            values[node] = values[node.args[0]][node.args[1]]
        else:
            name = _name(node.target) if node.op == "call_function" else node.name
            args, kwargs = map_arg((node.args, node.kwargs), value)
            values[node] = tracer.graph.create_node(node.op, node.target, args, kwargs, name=name)
            values[node].meta = dict(node.meta)
    tracer.graph.eliminate_dead_code()
    return tracer.graph


def _is_composite(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and _is_cia_op(target) and not _is_preservable_cia_op(target)


def _name(target: Any) -> str | None:
    """What torch's tracer calls a node of an operator; None leaves it to the graph."""
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else None


def _faked(*values: Any) -> AbstractContextManager[Any]:
    """What makes tensors without contents, as those among the values are."""
    return detect_fake_mode(values) or nullcontext()


class _Tracer(TorchDispatchMode):
    """Appends the operators that run within it to a graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self._meta: dict[str, Any] = {}
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}  # by a tensor's id; the tensor lives as long

    def taken_apart(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Run an operator on the values that its arguments have: the node of its result, or some in a list."""
        assert isinstance(node.target, torch._ops.OpOverload)

        def given(source: fx.Node) -> Any:
            copies = values[source]
            if isinstance(copies, fx.Node):
                self._know(copies.meta["val"], copies)
                return copies.meta["val"]
            return [self._know(copy.meta["val"], copy) for copy in copies]

        args, kwargs = map_arg((node.args, node.kwargs), given)
        self._meta = {name: value for name, value in node.meta.items() if name != "val"}
        with torch.no_grad(), enable_python_dispatcher(), _faked(args, kwargs), self:
            found = node.target.decompose(*args, **kwargs)
        return tree_map_only(torch.Tensor, self._node_of, found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            raise _NotPlainError
        found = func(*args, **(kwargs or {}))
        given, named = tree_map_only(torch.Tensor, self._node_of, (args, kwargs or {}))
        node = self.graph.create_node("call_function", func, given, named, name=_name(func))
        node.meta = {**self._meta, "val": found}
        if isinstance(found, torch.Tensor):
            self._know(found, node)
        elif isinstance(found, list | tuple):
            for place, value in enumerate(found):
                part = self.graph.call_function(operator.getitem, (node, place))
                part.meta = {**self._meta, "val": value}
                self._know(value, part)
        return found

    def _know(self, value: Any, node: fx.Node) -> Any:
        self._nodes[id(value)] = value, node
        return value

    def _node_of(self, value: torch.Tensor) -> fx.Node:
        if id(value) not in self._nodes:
            raise _NotPlainError
        return self._nodes[id(value)][1]
