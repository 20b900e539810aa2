"""Which values consist of equal parts, as guidance batches ``cat([x, x])`` do, and what computes one part alone.

`repeats` walks a Program forward. Repetitions begin where the graph writes them down: a concatenation that lists its
tensors several times over, a `repeat`, an `expand` of a size-1 dimension, a constant. Operators on the list below carry
them on, as long as their other arguments treat the parts alike: a weight does, another input of the size of the whole
batch does not. Every claim is tried on fake tensors: one part must have the recorded shape, divided in the repeated
dimension, and the recorded dtype.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import gcd, prod
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from graphopt.ir.effects import has_effect
from graphopt.ir.layout import has_symbols
from graphopt.ir.program import Program, bind, fake_mode, shape, val
from graphopt.ir.shapes import RULES

aten = torch.ops.aten
Key: TypeAlias = "str | int"  # an argument: its name in the schema, its position where there is none
Change: TypeAlias = Callable[[Any, int], Any]  # (value of an argument, number of parts) → its value for one part


@dataclass(frozen=True)
class Claim:
    """What an operator's rule says: the result repeats along `dim`, and how one part is computed.

    Attributes
    ----------
    dim : of the result (of each, where there are several).
    carried : arguments of which one part suffices. The operation reads all others whole.
    changes : arguments that are others for one part, by name: how they follow from those for all parts.
    count : how many equal parts; 0: as many as the arguments carried have in common.
    given : the first argument is one part: nothing has to be computed for it.
    """

    dim: int
    carried: frozenset[Key] = frozenset()
    changes: Mapping[Key, Change] = field(default_factory=dict)
    count: int = 0
    given: bool = False


@dataclass(frozen=True)
class Repeat:
    """A node's value is `count` equal parts along `dim`.

    Attributes
    ----------
    carried, changes, given : as in `Claim`.
    target : the operator that computes one part; `reshape` where the strides of one part allow no `view`.
    value : the fake value of one part.
    """

    dim: int
    count: int
    carried: frozenset[Key]
    changes: Mapping[Key, Change]
    given: bool
    target: Callable[..., Any]
    value: Any


Known: TypeAlias = Mapping[fx.Node, Repeat]
Rule: TypeAlias = Callable[[fx.Node, dict[Any, Any], Known], Iterator[Claim]]


def repeats(program: Program) -> dict[fx.Node, Repeat]:
    """The nodes whose values consist of equal parts, in graph order."""
    found: dict[fx.Node, Repeat] = {}
    with fake_mode(program.graph), torch.no_grad():
        for node in program.calls():
            if not _static(val(node)) or has_effect(node):
                continue
            claims = [*carried_on(node, found), *written_down(node)]
            tried = (_tried(node, claim, found) for claim in claims)
            if repeat := next((entry for entry in tried if entry is not None), None):
                found[node] = repeat
    return found


def carriers(node: fx.Node, repeat: Repeat) -> list[fx.Node]:
    """The argument nodes of which one part suffices."""
    return [source for name, value in bind(node).items() if name in repeat.carried for source in _nodes(value)]


def whole(node: fx.Node, repeat: Repeat) -> set[fx.Node]:
    """The argument nodes that are read whole."""
    rest = {name: value for name, value in bind(node).items() if name not in repeat.carried}
    return set(_nodes([_changed(repeat, name, value) for name, value in rest.items()]))


def _changed(repeat: Repeat, name: Key, value: Any) -> Any:
    """An argument as one part needs it."""
    return repeat.changes[name](value, repeat.count) if name in repeat.changes else value


def arguments(
    node: fx.Node, repeat: Repeat, part: Callable[[fx.Node], Any], other: Callable[[fx.Node], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the call that computes one part, from one part of each argument carried and all of the others."""
    schema = getattr(node.target, "_schema", None)

    def changed(name: Key, value: Any) -> Any:
        if name in repeat.carried:
            return tree_map_only(fx.Node, part, value)
        return tree_map_only(fx.Node, other, _changed(repeat, name, value))

    names = [entry.name for entry in schema.arguments] if schema is not None else range(len(node.args))
    args = tuple(changed(name, value) for name, value in zip(names, node.args, strict=False))
    return args, {name: changed(name, value) for name, value in node.kwargs.items()}


def _tried(node: fx.Node, claim: Claim, known: Known) -> Repeat | None:
    """The repetition that a rule claims, if one part can be computed and comes out as it should."""
    bound: dict[Any, Any] = bind(node)
    before = val(node)
    sources = [known[source] for name in claim.carried for source in _nodes(bound[name])]
    count = claim.count or gcd(*(source.count for source in sources))
    # Fewer parts of more copies each: free where a part has size 1, else it would be another concatenation.
    if count < 2 or any(entry.count != count and entry.value.shape[entry.dim] != 1 for entry in sources):
        return None
    target: Any = node.target
    repeat = Repeat(claim.dim, count, claim.carried, claim.changes, claim.given, target, None)
    args, kwargs = arguments(node, repeat, lambda source: expanded(known[source], count), val)
    try:
        value = RULES.get(target, target)(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError):
        if target not in (aten.view.default, aten._unsafe_view.default):
            return None
        target = aten.reshape.default
        value = target(*args)
    pairs = zip(before, value, strict=True) if isinstance(before, list | tuple) else [(before, value)]
    if not all(one.dtype == all_.dtype and _part_of(all_, claim.dim, count) == one.shape for all_, one in pairs):
        return None
    return replace(repeat, target=target, value=value)


def expanded(repeat: Repeat, count: int) -> Any:
    """The fake value of one of `count` parts of a repetition of at least as many."""
    if repeat.count == count:
        return repeat.value
    return repeat.value.expand(fewer(repeat, count))


def fewer(repeat: Repeat, count: int) -> list[int]:
    """The shape of one of `count` parts of a repetition whose parts have size 1."""
    return [repeat.count // count if d == repeat.dim else size for d, size in enumerate(repeat.value.shape)]


def _part_of(value: torch.Tensor, dim: int, count: int) -> torch.Size:
    return torch.Size([size // count if d == dim else size for d, size in enumerate(value.shape)])


def _static(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(entry, torch.Tensor) and not has_symbols(entry) for entry in values)


def _nodes(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    return [node for entry in value for node in _nodes(entry)] if isinstance(value, list | tuple) else []


# -- where repetitions begin -----------------------------------------------------------------------------------------


def written_down(node: fx.Node) -> Iterator[Claim]:
    """Repetitions that an operation makes itself."""
    bound = bind(node)
    if node.target is aten.cat.default:
        tensors = list(bound["tensors"])
        if period := _period(tensors):
            dim = bound["dim"] % max(1, len(shape(node)))
            changes: dict[Key, Change] = {"tensors": lambda value, count: value[: len(value) // count]}
            yield Claim(dim, changes=changes, count=len(tensors) // period, given=period == 1)
    elif node.target is aten.repeat.default:
        times = list(bound["repeats"])
        for dim in [d for d, n in enumerate(times) if n > 1][:1]:
            ones = [1 if d == dim else n for d, n in enumerate(times)]
            yield Claim(
                dim, changes=_always("repeats", ones), count=times[dim], given=ones == [1] * len(shape(bound["self"]))
            )
    elif node.target is aten.expand.default:
        sizes, given = list(shape(node)), shape(bound["self"])
        new = len(sizes) - len(given)
        for dim in [d for d, n in enumerate(sizes) if n > 1 and (d < new or given[d - new] == 1)][:1]:
            once = [1 if d == dim else n for d, n in enumerate(sizes)]
            yield Claim(dim, changes=_always("size", once), count=sizes[dim], given=once == list(given))
    elif node.target in (aten.full.default, aten.zeros.default, aten.ones.default):
        sizes = list(shape(node))
        for dim in [d for d, n in enumerate(sizes) if n > 1][:1]:
            once = [1 if d == dim else n for d, n in enumerate(sizes)]
            yield Claim(dim, changes=_always("size", once), count=sizes[dim])


def _always(name: str, value: list[int]) -> dict[Key, Change]:
    """One argument replaced, whatever it was."""
    return {name: lambda was, count: value}


def _period(entries: list[Any]) -> int:
    """The length of the shortest list that gives `entries` when it is written several times over; 0 if none does."""
    lengths = (n for n in range(1, len(entries)) if len(entries) % n == 0)
    return next((n for n in lengths if entries == entries[:n] * (len(entries) // n)), 0)


# -- what carries them on --------------------------------------------------------------------------------------------


def carried_on(node: fx.Node, known: Known) -> Iterator[Claim]:
    """Repetitions that an operation takes over from its arguments."""
    if not any(source in known for source in node.all_input_nodes):
        return
    if node.target is aten.clone.default and all(user.op == "output" for user in node.users):
        return  # it gives a result its strides, which all parts together have
    rule = _RULES.get(node.target)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = _elementwise
    if rule is not None:
        yield from rule(node, bind(node), known)


def _aligned(bound: dict[Any, Any], names: Iterable[Key], known: Known) -> Iterator[tuple[int, frozenset[Key]]]:
    """Dimensions, counted from the last, -1, in which some arguments repeat and all others broadcast."""
    tensors = {name: bound[name] for name in names if isinstance(val(bound[name]), torch.Tensor)}
    dims = {name: known[node].dim - len(shape(node)) for name, node in tensors.items() if node in known}
    for dim in sorted(set(dims.values())):
        carried = frozenset(name for name in dims if dims[name] == dim)
        others = [shape(node) for name, node in tensors.items() if name not in carried]
        if all(len(sizes) < -dim or sizes[dim] == 1 for sizes in others):
            yield dim, carried


def _rank(node: fx.Node) -> int:
    value = val(node)
    return len((value[0] if isinstance(value, list | tuple) else value).shape)


def _elementwise(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    for dim, carried in _aligned(bound, bound, known):
        yield Claim(_rank(node) + dim, carried)


def _leading(name: str, count: Callable[[dict[Any, Any], int], int]) -> Rule:
    """The operation treats the first `count` dimensions of an argument as a batch and leaves them in place."""

    def rule(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
        source = bound[name]
        if source in known and known[source].dim < count(bound, len(shape(source))):
            yield Claim(known[source].dim, frozenset({name}))

    return rule


def _beside(names: Collection[str] = ("dim",), vanishes: Callable[[dict[Any, Any]], bool] | None = None) -> Rule:
    """The operation works along the dimensions that its arguments `names` list; they may vanish."""

    def rule(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
        source = bound["self"] if "self" in bound else bound["tensor"]
        (given,) = (bound[name] for name in names if name in bound)
        rank = len(shape(source))
        dims = {d % rank for d in ([given] if isinstance(given, int) else given or [])}
        if source in known and dims and (dim := known[source].dim) not in dims:
            gone = sum(d < dim for d in dims) if vanishes is not None and vanishes(bound) else 0
            yield Claim(dim - gone, frozenset({"self" if "self" in bound else "tensor"}))

    return rule


def _product(left: str, right: str, *added: str) -> Rule:
    """A matrix product: batches broadcast, rows come from the left, columns from the right matrix."""

    def rule(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
        if min(len(shape(bound[left])), len(shape(bound[right]))) < 2:
            return
        for names, inner in (((left, right), None), ((left,), -2), ((right,), -1)):
            for dim, carried in _aligned(bound, (*names, *added), known):
                if (dim < -2 if inner is None else dim == inner) and carried & set(names):
                    yield Claim(_rank(node) + dim, carried)

    return rule


def _attention(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    """Attention shares what is equal in queries, keys and values; the mask may broadcast."""
    for dim, carried in _aligned(bound, ("query", "key", "value", "attn_mask"), known):
        grouped = bound["enable_gqa"] and dim == -3  # fewer heads of keys than of queries
        if dim < -2 and carried >= {"query", "key", "value"} and not grouped:
            yield Claim(_rank(node) + dim, carried)


def _regrouped(*sizes: str) -> Rule:
    """A reshape: the parts stay apart where as many elements lie in front of the dimension, and in one part of it."""

    def rule(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
        source = bound["self"]
        if source not in known or val(source).numel() == 0:
            return
        old, new, repeat = shape(source), shape(node), known[source]
        for dim, size in enumerate(new):
            if prod(new[:dim]) == prod(old[: repeat.dim]) and (count := gcd(size, repeat.count)) > 1:
                changes: dict[Key, Change] = {name: _resized(bound, name, dim, new) for name in sizes}
                yield Claim(dim, frozenset({"self"}), changes, count)

    return rule


def _resized(bound: dict[Any, Any], name: str, dim: int, new: tuple[int, ...]) -> Change:
    """Sizes of one part; an `unflatten` names only some of them."""

    def sizes(was: list[int], count: int) -> list[int]:
        every = [size // count if d == dim else size for d, size in enumerate(new)]
        if name != "sizes":
            return every
        first = bound["dim"] % len(shape(bound["self"]))
        return every[first : first + len(was)]

    return sizes


def _expanded(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    source = bound["self"]
    if source in known:
        dim = known[source].dim + _rank(node) - len(shape(source))
        change = _resized(bound, "size", dim, shape(node))
        yield Claim(dim, frozenset({"self"}), {"size": change})


def _tiled(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    source = bound["self"]
    if source in known:
        dim = known[source].dim + _rank(node) - len(shape(source))
        if bound["repeats"][dim] == 1:
            yield Claim(dim, frozenset({"self"}))


def _permuted(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    source = bound["self"]
    if source in known:
        dims = list(range(_rank(node)))
        if "dims" in bound:
            dims = [d % len(dims) for d in bound["dims"]]
        elif len(dims) > 1:
            a, b = bound.get("dim0", 0), bound.get("dim1", 1)
            dims[a], dims[b] = dims[b], dims[a]
        yield Claim(dims.index(known[source].dim), frozenset({"self"}))


def _joined(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    """Concatenating or stacking tensors that all repeat in one other dimension."""
    tensors = list(bound["tensors"])
    dims = {known[source].dim if source in known else None for source in tensors}
    along, dim = bound["dim"] % _rank(node), next(iter(dims))
    if len(dims) == 1 and dim is not None:
        new = dim + (along <= dim) if node.target is aten.stack.default else dim
        if new != along:
            yield Claim(new, frozenset({"tensors"}))


def _summed(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    """An einsum of tensors that all repeat in a dimension with one letter, which the result has too."""
    given, arrow, result = str(bound["equation"]).replace(" ", "").partition("->")
    tensors, terms = list(bound["tensors"]), given.split(",")
    if not arrow or "." in given or len(terms) != len(tensors):
        return
    plain = all(len({*term}) == len(term) for term in terms)
    letters = {term[known[t].dim] if t in known else "" for term, t in zip(terms, tensors, strict=True)}
    if plain and len(letters) == 1 and (letter := letters.pop()) and letter in result:
        yield Claim(result.index(letter), frozenset({"tensors"}))


def _item(node: fx.Node, bound: dict[Any, Any], known: Known) -> Iterator[Claim]:
    source = node.args[0]
    if isinstance(source, fx.Node) and source in known and isinstance(val(source), list | tuple):
        yield Claim(known[source].dim, frozenset({0}))


def _shrinks(bound: dict[Any, Any]) -> bool:
    return not bound["keepdim"]


def _all_but(last: int) -> Callable[[dict[Any, Any], int], int]:
    return lambda bound, rank: rank - last


def _rules() -> dict[Any, Rule]:
    found: dict[Any, Rule] = {
        aten.linear.default: _leading("input", lambda bound, rank: rank - 1),
        aten.group_norm.default: _leading("input", lambda bound, rank: 1),
        aten.embedding.default: _leading("indices", lambda bound, rank: rank),
        aten.pad.default: _leading("self", lambda bound, rank: rank - len(bound["pad"]) // 2),
        aten.constant_pad_nd.default: _leading("self", lambda bound, rank: rank - len(bound["pad"]) // 2),
        aten.scaled_dot_product_attention.default: _attention,
        aten.matmul.default: _product("self", "other"),
        aten.mm.default: _product("self", "mat2"),
        aten.bmm.default: _product("self", "mat2"),
        aten.addmm.default: _product("mat1", "mat2", "self"),
        aten.baddbmm.default: _product("batch1", "batch2", "self"),
        aten.view.default: _regrouped("size"),
        aten._unsafe_view.default: _regrouped("size"),
        aten.reshape.default: _regrouped("shape"),
        aten.unflatten.int: _regrouped("sizes"),
        aten.expand.default: _expanded,
        aten.repeat.default: _tiled,
        aten.cat.default: _joined,
        aten.stack.default: _joined,
        aten.einsum.default: _summed,
        operator.getitem: _item,
    }
    norms = (aten.layer_norm.default, aten.rms_norm.default)
    found |= dict.fromkeys(norms, _leading("input", lambda bound, rank: rank - len(bound["normalized_shape"])))
    # A convolution may come without a batch: then it has one dimension less than its weight.
    convolutions = (
        aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
        aten.conv3d.padding, aten.convolution.default, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
    )  # fmt: skip
    found |= dict.fromkeys(convolutions, _leading("input", lambda bound, rank: rank + 1 - len(shape(bound["weight"]))))
    for kind in ("nearest", "linear", "bilinear", "bicubic", "trilinear", "_nearest_exact"):
        for n in (1, 2, 3):
            resize = getattr(aten, f"upsample_{kind}{n}d" if kind[0] != "_" else f"_upsample{kind}{n}d", None)
            if resize is not None:
                found[resize.vec] = _leading("input", lambda bound, rank: 2)
    for n in (1, 2, 3):
        for kind in ("avg_pool", "max_pool", "adaptive_avg_pool"):
            found[getattr(aten, f"{kind}{n}d").default] = _leading("self", _all_but(n))
    found |= dict.fromkeys((aten.pixel_shuffle.default, aten.pixel_unshuffle.default), _leading("self", _all_but(3)))
    regroupings = (
        aten.flatten.using_ints, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    )  # fmt: skip
    found |= dict.fromkeys(regroupings, _regrouped())
    found |= dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _permuted)
    alike = (
        aten._to_copy.default, aten.alias.default, aten.detach.default, aten.contiguous.default, aten.dropout.default,
        aten.lift_fresh_copy.default, aten.masked_fill.Tensor, aten.where.Scalar, aten.where.ScalarSelf,
        aten.where.ScalarOther, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    )  # fmt: skip
    found |= dict.fromkeys(alike, _elementwise)
    along = (
        aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default, aten.cumsum.default,
        aten.flip.default, aten.roll.default, aten.glu.default, aten.slice.Tensor, aten.narrow.default,
        aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.index_select.default,
    )  # fmt: skip
    found |= dict.fromkeys(along, _beside(("dim", "dims")))
    found |= dict.fromkeys((aten.select.int, aten.unbind.int), _beside(vanishes=lambda bound: True))
    reductions = (
        aten.mean.dim, aten.sum.dim_IntList, aten.var.correction, aten.std.correction, aten.amax.default,
        aten.amin.default, aten.logsumexp.default, aten.linalg_vector_norm.default,
    )  # fmt: skip
    return found | dict.fromkeys(reductions, _beside(vanishes=_shrinks))


_RULES = _rules()
