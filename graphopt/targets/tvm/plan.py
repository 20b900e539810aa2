"""Which nodes of a stage become kernels together, which values lie in memory, and what stays with torch.

A *group* is one kernel (attention: two): an anchor (linear layer, norm, softmax, attention) with the chain of pointwise
operations that alone reads it, or a pointwise operation by itself. Pointwise operations that one other group reads, at
its own size, are computed there. Views are resolved where they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...ir import products, winograd
from ...ir.program import bind, val
from .contraction import contraction
from .operators import (
    KEEPING,
    LOOKUPS,
    POSITIONS,
    SAMPLED,
    SPLITS,
    VIEWS,
    is_float,
    is_pointwise,
    is_tensor,
    padding_mode,
    pads,
    pair,
    view_source,
)

aten = torch.ops.aten

_PHASES = 16  # of a transposed convolution: each is a kernel, and takes time to compile


@dataclass(frozen=True)
class Group:
    """A kernel to be: it computes `anchor`, goes on to `result`, and writes that.

    Attributes
    ----------
    kind : one of `_KINDS` or `_JOINING`, or pointwise, where anchor and result are one.
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
    mixed = _mixed(graph, kinds)
    order = {node: place for place, node in enumerate(graph.nodes)}
    chains: dict[fx.Node, tuple[fx.Node, ...]] = {}
    claimed: dict[fx.Node, fx.Node] = {}  # node of a chain → its anchor
    for node in reversed(list(graph.nodes)):
        if kinds.get(node) in _FUSING:
            chains[node] = tuple(_chain(node, kinds, claimed, mixed))
            claimed.update(dict.fromkeys(chains[node], node))
    found = Plan()
    inlined = {node for node in kinds if _goes_along(node, kinds, claimed, mixed)}
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
    late = _late(found.steps)
    found.steps.sort(key=lambda step: (step in late, order[step.result if isinstance(step, Group) else step]))
    found.memory |= {step.result if isinstance(step, Group) else step for step in found.steps if step not in late}
    return found


# -- kinds -----------------------------------------------------------------------------------------------------------

_IN_ROWS = ("linear", "layer_norm", "rms_norm", "softmax")  # written row by row, whatever the leading dimensions
_FUSING = (
    *(*_IN_ROWS, "conv2d", "winograd", "group_norm", "convolution", "grouped_convolution", "transposed_convolution"),
    *("narrow_conv2d", "contraction", "reduction", "softmax_across", "layer_norm_of_blocks"),
)


def kind_of(node: fx.Node) -> str | None:
    """The kind of group that a node is the anchor of, if any."""
    if node.op != "call_function" or view_source(node) is not None or node.target in SPLITS:
        return None
    if not is_tensor(val(node)) or not val(node).numel():
        return None
    if is_pointwise(node):
        return "pointwise"
    if node.target in _JOINING:
        return _JOINING[node.target] if _joined(bind(node)) else None
    rule = _KINDS.get(node.target) if is_float(val(node)) else None
    if rule is None:
        return None
    name, fits = rule
    found = fits(node, bind(node))
    return found if isinstance(found, str) else name if found else None


def _floats(*values: Any) -> bool:
    return all(value is None or (isinstance(value, fx.Node) and is_float(val(value))) for value in values)


def _narrow(*values: fx.Node) -> bool:
    return all(is_tensor(val(value)) and val(value).dtype == torch.bfloat16 for value in values)


def _linear(node: fx.Node, bound: dict[str, Any]) -> bool | str:
    weight, factors = bound["weight"], _narrow if node.target is products.linear else _floats
    if not factors(bound["input"], weight) or not _floats(bound["bias"]):
        return False
    if val(weight).ndim != 2 or not val(weight).numel():
        return False
    if not val(bound["input"]).ndim:
        return False
    return True if weight.op in ("placeholder", "get_attr") else "contraction"


def _contraction(node: fx.Node, bound: dict[str, Any]) -> bool:
    found = contraction(node)
    if found is None or not found.terms:
        return False
    factors = _narrow if node.target is products.matmul else _floats
    return factors(found.left, found.right) and _floats(found.bias)


def _last_alone(bound: dict[str, Any]) -> bool:
    return len(bound["normalized_shape"]) == 1


def _layer_norm(node: fx.Node, bound: dict[str, Any]) -> bool | str:
    if not _floats(bound["input"], bound["weight"], bound["bias"]):
        return False
    return True if _last_alone(bound) else "layer_norm_of_blocks"


def _rms_norm(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["input"], bound["weight"]) and _last_alone(bound)


def _conv2d(node: fx.Node, bound: dict[str, Any]) -> bool | str:
    if not _convolves(bound, 2):
        return False
    return True if bound["groups"] == 1 else "grouped_convolution"


def _convolution(node: fx.Node, bound: dict[str, Any]) -> bool | str:
    """Of one or three dimensions."""
    if not _convolves(bound, 1 if node.target is aten.conv1d.default else 3):
        return False
    return True if bound["groups"] == 1 else "grouped_convolution"


def _convolves(bound: dict[str, Any], dims: int) -> bool:
    weight = bound["weight"]
    if not _floats(bound["input"], weight, bound["bias"]) or weight.op not in ("placeholder", "get_attr"):
        return False
    return bool(val(bound["input"]).ndim == 2 + dims and val(weight).numel())


def _narrow_conv2d(node: fx.Node, bound: dict[str, Any]) -> bool:
    weight = bound["weight"]
    if not _narrow(bound["input"], weight) or not _floats(bound["bias"]):
        return False
    return weight.op in ("placeholder", "get_attr") and val(bound["input"]).ndim == 4 and val(weight).numel() > 0


def _transposed(node: fx.Node, bound: dict[str, Any]) -> bool:
    down, right = pair(bound["stride"])
    return bound["groups"] == 1 and down * right <= _PHASES and _convolves(bound, 2)


def _reduction(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["self"]) and val(bound["self"]).numel() > 0 and bound.get("ord", 2) == 2


def _pad(node: fx.Node, bound: dict[str, Any]) -> bool:
    constant = padding_mode(node) == "constant" and all(min(pair) >= 0 for pair in pads(node).values())
    return constant and _floats(bound["self"]) and not isinstance(bound["value"], fx.Node)


def _winograd(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _convolves(bound, 2)


def _group_norm(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["input"], bound["weight"], bound["bias"]) and val(node).ndim > 1


def _scatter(node: fx.Node, bound: dict[str, Any]) -> bool:
    return _floats(bound["self"], bound["src"])


def _softmax(node: fx.Node, bound: dict[str, Any]) -> bool | str:
    if not _floats(bound["self"]) or not val(node).ndim:
        return False
    return True if bound["dim"] % val(node).ndim == val(node).ndim - 1 else "softmax_across"


def _joined(bound: dict[str, Any]) -> bool:
    """Whether parts are all of one dtype, and of as many dimensions: torch takes empty ones of one dimension."""
    values = [val(part) for part in bound["tensors"]]
    return all(is_tensor(value) for value in values) and len({(value.dtype, value.ndim) for value in values}) == 1


def _attention(node: fx.Node, bound: dict[str, Any]) -> bool:
    values = bound["query"], bound["key"], bound["value"]
    if not _floats(*values) or bound["dropout_p"] != 0.0:
        return False
    if not all(val(value).numel() for value in values):
        return False
    query, key, value = (val(value).shape for value in values)
    if len(query) not in (3, 4) or key[:-1] != value[:-1] or query[:-3] != key[:-3] or len(query) != len(key):
        return False
    grouped = len(query) == 4 and bound.get("enable_gqa") and query[1] % key[1] == 0
    if query[-3] != key[-3] and not grouped:
        return False
    mask = bound["attn_mask"]
    if mask is None:
        return True
    known = is_tensor(val(mask)) and val(mask).dtype in (torch.float32, torch.bool)
    return known and 2 <= val(mask).ndim <= len(query) and not bound["is_causal"]


_KINDS: dict[Any, tuple[str, Any]] = {
    aten.linear.default: ("linear", _linear),
    aten.layer_norm.default: ("layer_norm", _layer_norm),
    aten.conv2d.default: ("conv2d", _conv2d),
    aten.group_norm.default: ("group_norm", _group_norm),
    winograd.conv2d: ("winograd", _winograd),
    products.linear: ("linear", _linear),
    products.conv2d: ("narrow_conv2d", _narrow_conv2d),
    aten.rms_norm.default: ("rms_norm", _rms_norm),
    aten.softmax.int: ("softmax", _softmax),
    aten._softmax.default: ("softmax", _softmax),
    aten.pad.default: ("pad", _pad),
    aten.constant_pad_nd.default: ("pad", _pad),
    aten.slice_scatter.default: ("scatter", _scatter),
    aten.select_scatter.default: ("scatter", _scatter),
    aten.conv1d.default: ("convolution", _convolution),
    aten.conv3d.default: ("convolution", _convolution),
    aten.conv_transpose2d.input: ("transposed_convolution", _transposed),
    **dict.fromkeys(
        (
            *(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default),
            *(aten.einsum.default, products.matmul),
        ),
        ("contraction", _contraction),
    ),
    **dict.fromkeys(
        (
            *(aten.mean.default, aten.mean.dim, aten.sum.default, aten.sum.dim_IntList, aten.amax.default),
            *(aten.amin.default, aten.var.correction, aten.var.dim, aten.std.correction),
            aten.linalg_vector_norm.default,
        ),
        ("reduction", _reduction),
    ),
    aten.scaled_dot_product_attention.default: ("attention", _attention),
}


_JOINING = {
    aten.cat.default: "cat",
    aten.concat.default: "cat",
    aten.concatenate.default: "cat",
    aten.stack.default: "stack",
}


# -- what goes along -------------------------------------------------------------------------------------------------


def _mixed(graph: fx.Graph, kinds: dict[fx.Node, str]) -> set[fx.Node]:
    """Pointwise operations that are computed from other numbers than float32, or are such."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if kinds.get(node) == "pointwise":
            sources = node.all_input_nodes
            if not all(is_float(val(value)) for value in (node, *sources)) or any(value in found for value in sources):
                found.add(node)
        elif view_source(node) in found:
            found.add(node)
    return found


def _chain(
    anchor: fx.Node, kinds: dict[fx.Node, str], claimed: dict[fx.Node, fx.Node], mixed: set[fx.Node]
) -> Iterator[fx.Node]:
    """Operations that alone read what comes before them, and go over the same rows and columns; ends with no view."""
    waiting: list[fx.Node] = []
    node = anchor
    while len(node.users) == 1:
        (user,) = node.users
        if user in claimed or user.op != "call_function" or user.target in _ELSEWHERE:
            return
        if kinds[anchor] == "conv2d" and user in mixed:
            return  # its kernels read and write float32 alone
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
    return bool(VIEWS[view.target] in KEEPING and old and new and old.numel() == new.numel() and old[-1] == new[-1])


# Pointwise operations that read other elements than their own.
_ELSEWHERE = frozenset({*SAMPLED, *LOOKUPS, *POSITIONS})


def _goes_along(node: fx.Node, kinds: dict[fx.Node, str], claimed: dict[fx.Node, fx.Node], mixed: set[fx.Node]) -> bool:
    """Whether a pointwise operation is computed where it is read: by one group, once per element."""
    if kinds[node] != "pointwise" or node in claimed:
        return False
    readers = list(_readers(node, kinds))
    if len(readers) != 1:
        return False
    (reader,) = readers
    kind = kinds.get(reader)
    if kind not in _READING_ONCE or (kind == "conv2d" and node in mixed) or node.target in LOOKUPS:
        return False
    sizes = val(node).numel(), val(reader).numel()
    if kind in ("cat", "stack", "scatter"):
        return True
    if kind in ("pad", "reduction", "convolution", "grouped_convolution"):
        return bool(sizes[0] == val(reader.all_input_nodes[0]).numel())
    return sizes[0] == sizes[1] or (sizes[0] < sizes[1] and node.target in _CHEAP)


_READING_ONCE = frozenset(
    {
        *(
            "pointwise",
            "layer_norm",
            "rms_norm",
            "group_norm",
            "softmax",
            "cat",
            "conv2d",
            "narrow_conv2d",
            "winograd",
            "stack",
            "pad",
            "reduction",
        ),
        *("scatter", "softmax_across", "layer_norm_of_blocks", "convolution", "grouped_convolution"),
    }
)
# Operations that take less time than the memory that would keep their results for elements read several times.
_CHEAP = frozenset(
    {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten._to_copy.default, *POSITIONS}
)


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


def _late(steps: Sequence[Group | fx.Node]) -> set[Group | fx.Node]:
    """Torch's steps that only rearrange, and that nothing but results and other such steps read.

    They are done after all kernels, so that these are one entry into machine code. Kernels read what is rearranged.
    """
    found: set[Group | fx.Node] = set()
    nodes = {step for step in steps if isinstance(step, fx.Node)}
    for node in sorted(nodes, reverse=True):
        view = node.target in SPLITS or view_source(node) is not None
        if view and all(user in found or user not in nodes for user in node.users):
            found.add(node)
    return found


def views_of(node: fx.Node) -> set[fx.Node]:
    """Users that are views of a node, those of what it is split into left out, but the split itself."""
    found = {user for user in node.users if user.op == "call_function" and user.target in SPLITS}
    return found | {user for user in node.users if user.op == "call_function" and view_source(user) is node}
