"""Which nodes of a stage become kernels together, which values lie in memory, and what stays with torch.

A *group* is one kernel (attention: two): an anchor (linear layer, norm, softmax, attention) with the chain of pointwise
operations that alone reads it, or a pointwise operation by itself. Pointwise operations that one other group reads, at
its own size, are computed there. Views are resolved where they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...ir import winograd
from ...ir.program import bind, val
from .operators import SPLITS, VIEWS, is_float, is_pointwise, view_source

aten = torch.ops.aten


@dataclass(frozen=True)
class Group:
    """A kernel to be: it computes `anchor`, goes on to `result`, and writes that.

    Attributes
    ----------
    kind : linear, layer_norm, rms_norm, softmax, attention, cat, or pointwise, where anchor and result are one.
    chain : pointwise operations and reshapes from the anchor, excluded, to the result.
    """

    kind: str
    anchor: fx.Node
    chain: tuple[fx.Node, ...] = ()

    @property
    def result(self) -> fx.Node:
        return self.chain[-1] if self.chain else self.anchor


@dataclass
class Plan:
    """What to do with a stage's nodes.

    Attributes
    ----------
    steps : groups, and nodes that torch computes, in order.
    memory : nodes whose values lie in memory.
    """

    steps: list[Group | fx.Node] = field(default_factory=list)
    memory: set[fx.Node] = field(default_factory=set)

    @property
    def left(self) -> list[fx.Node]:
        """Nodes that torch computes and that are no views."""
        return [
            step
            for step in self.steps
            if isinstance(step, fx.Node) and step.target not in SPLITS and view_source(step) is None
        ]


def plan(graph: fx.Graph) -> Plan:
    """Group a stage's graph."""
    kinds = {node: kind for node in graph.nodes if (kind := kind_of(node))}
    order = {node: place for place, node in enumerate(graph.nodes)}
    chains: dict[fx.Node, tuple[fx.Node, ...]] = {}
    claimed: dict[fx.Node, fx.Node] = {}  # node of a chain → its anchor
    for node in reversed(list(graph.nodes)):
        if kinds.get(node) in _FUSING:
            chains[node] = tuple(_chain(node, kinds, claimed))
            claimed.update(dict.fromkeys(chains[node], node))
    found = Plan()
    inlined = {node for node in kinds if _goes_along(node, kinds, claimed)}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            found.memory.add(node)
            continue
        kind = kinds.get(node)
        if node.op != "call_function" or node in claimed or node in inlined:
            continue
        if kind is not None:
            found.steps.append(Group(kind, node, chains.get(node, ())))
        elif _needs_torch(node, kinds):
            found.steps.append(node)
    found.steps.sort(key=lambda step: order[step.result if isinstance(step, Group) else step])
    found.memory |= {step.result if isinstance(step, Group) else step for step in found.steps}
    return found


# -- kinds -----------------------------------------------------------------------------------------------------------

_IN_ROWS = ("linear", "layer_norm", "rms_norm", "softmax")  # written row by row, whatever the leading dimensions
_FUSING = (*_IN_ROWS, "conv2d", "winograd", "group_norm")


def kind_of(node: fx.Node) -> str | None:
    """The kind of group that a node is the anchor of, if any."""
    if node.op != "call_function" or node.target in VIEWS:
        return None
    if not is_float(val(node)) or not val(node).numel():
        return None
    if is_pointwise(node):
        return "pointwise"
    rule = _KINDS.get(node.target)
    if rule is None:
        return None
    name, fits = rule
    return name if fits(node, bind(node)) else None


def _floats(*values: Any) -> bool:
    return all(value is None or (isinstance(value, fx.Node) and is_float(val(value))) for value in values)


def _linear(node: fx.Node, bound: dict[str, Any]) -> bool:
    weight = bound["weight"]
    if not _floats(bound["input"], weight, bound["bias"]) or val(weight).ndim != 2 or not val(weight).numel():
        return False
    return weight.op in ("placeholder", "get_attr") and val(bound["input"]).ndim > 0


def _last_alone(bound: dict[str, Any]) -> bool:
    return len(bound["normalized_shape"]) == 1


def _layer_norm(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["input"], bound["weight"], bound["bias"]) and _last_alone(bound)


def _rms_norm(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["input"], bound["weight"]) and _last_alone(bound)


def _conv2d(node: fx.Node, bound: dict[str, Any]) -> bool:
    weight = bound["weight"]
    if not _floats(bound["input"], weight, bound["bias"]) or weight.op not in ("placeholder", "get_attr"):
        return False
    return bool(bound["groups"] == 1 and val(bound["input"]).ndim == 4 and val(weight).numel())


def _winograd(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["input"], bound["weight"], bound["bias"])


def _group_norm(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["input"], bound["weight"], bound["bias"]) and val(node).ndim > 1


def _softmax(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["self"]) and val(node).ndim > 0 and bound["dim"] % val(node).ndim == val(node).ndim - 1


def _cat(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(*bound["tensors"]) and all(val(part).ndim == val(node).ndim for part in bound["tensors"])


def _attention(node: fx.Node, bound: dict[str, Any]) -> bool:
    values = bound["query"], bound["key"], bound["value"]
    if not _floats(*values) or bound["dropout_p"] != 0.0:
        return False
    if not all(val(value).numel() for value in values):
        return False
    shapes = [val(value).shape for value in values]
    if any(len(shape) != 4 for shape in shapes) or len({tuple(shape[:2]) for shape in shapes}) != 1:
        return False
    mask = bound["attn_mask"]
    return mask is None or (_floats(mask) and val(mask).ndim == 4 and not bound["is_causal"])


_KINDS: dict[Any, tuple[str, Any]] = {
    aten.linear.default: ("linear", _linear),
    aten.layer_norm.default: ("layer_norm", _layer_norm),
    aten.conv2d.default: ("conv2d", _conv2d),
    aten.group_norm.default: ("group_norm", _group_norm),
    winograd.conv2d: ("winograd", _winograd),
    aten.rms_norm.default: ("rms_norm", _rms_norm),
    aten.softmax.int: ("softmax", _softmax),
    aten._softmax.default: ("softmax", _softmax),
    aten.cat.default: ("cat", _cat),
    aten.scaled_dot_product_attention.default: ("attention", _attention),
}


# -- what goes along -------------------------------------------------------------------------------------------------


def _chain(anchor: fx.Node, kinds: dict[fx.Node, str], claimed: dict[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """Operations that alone read what comes before them, and go over the same rows and columns; ends with no view."""
    waiting: list[fx.Node] = []
    node = anchor
    while len(node.users) == 1:
        (user,) = node.users
        if user in claimed or user.op != "call_function":
            return
        if kinds.get(user) == "pointwise" and val(user).shape == val(node).shape:
            yield from waiting
            waiting.clear()
            yield user
        elif kinds[anchor] in _IN_ROWS and view_source(user) is node and _keeps_rows(user, node):
            waiting.append(user)
        else:
            return
        node = user


def _keeps_rows(view: fx.Node, source: fx.Node) -> bool:
    """Whether a view shows the same numbers in the same order and cuts them into the same rows."""
    old, new = val(source).shape, val(view).shape
    if view.target in _REORDERING or not old or not new:
        return False
    return bool(old.numel() == new.numel() and old[-1] == new[-1])


_REORDERING = frozenset(
    {
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.einsum.default,
    }
)


def _goes_along(node: fx.Node, kinds: dict[fx.Node, str], claimed: dict[fx.Node, fx.Node]) -> bool:
    """Whether a pointwise operation is computed where it is read: by one group, once per element."""
    if kinds[node] != "pointwise" or node in claimed:
        return False
    readers = list(_readers(node, kinds))
    if len(readers) != 1:
        return False
    (reader,) = readers
    if kinds.get(reader) not in _READING:
        return False
    sizes = val(node).numel(), val(reader).numel()
    return sizes[0] == sizes[1] or kinds[reader] == "cat" or (sizes[0] < sizes[1] and node.target in _CHEAP)


_READING = ("pointwise", "layer_norm", "rms_norm", "group_norm", "softmax", "cat", "conv2d", "winograd")

# Operations that take less time than the memory that would keep their results for elements read several times.
_CHEAP = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default})


def _readers(node: fx.Node, kinds: dict[fx.Node, str]) -> Iterator[fx.Node]:
    """What reads a node, directly or through views that are resolved."""
    for user in node.users:
        if user.op == "call_function" and user.target in SPLITS:
            yield from (reader for part in user.users for reader in _through(part, kinds))
        elif user.op == "call_function" and view_source(user) is node:
            yield from _through(user, kinds)
        else:
            yield user


def _through(view: fx.Node, kinds: dict[fx.Node, str]) -> Iterator[fx.Node]:
    yield from _readers(view, kinds)
    if _needs_torch(view, kinds):
        yield view


def _needs_torch(node: fx.Node, kinds: dict[fx.Node, str]) -> bool:
    """Whether torch computes a node: all but views that only kernels read."""
    if node.target in SPLITS:
        return any(_needs_torch(part, kinds) for part in node.users)
    if view_source(node) is None:
        return True
    return any(_needs_torch(user, kinds) if user in views_of(node) else user not in kinds for user in node.users)


def views_of(node: fx.Node) -> set[fx.Node]:
    """Users that are views of a node, those of what it is split into left out, but the split itself."""
    found = {user for user in node.users if user.op == "call_function" and user.target in SPLITS}
    return found | {user for user in node.users if user.op == "call_function" and view_source(user) is node}
