"""Passes that are right everywhere but in one place: what a bisection has to find.

Each fires wherever its pattern is, with a rewrite that keeps every value up to rounding; at the node that `wrong` names
it makes the mistake that the class is named after.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

import graphopt
from graphopt.compile import try_out
from graphopt.debug.bisect import Sample
from graphopt.debug.limit import Limit
from graphopt.debug.metrics import Result
from graphopt.ir.program import Program, bind, dtype, shape, val
from graphopt.ir.rewrite import Accuracy, Match, Observer, Pass
from graphopt.ir.stages import stages
from graphopt.runtime.kept import Captures

aten = torch.ops.aten


@dataclass(frozen=True)
class Fault(Pass):
    """One wrong rewrite among right ones.

    Attributes
    ----------
    wrong : ``module:node``, the place of the mistake; nowhere when empty.
    """

    wrong: str = ""

    accuracy: ClassVar[Accuracy] = "rounding"
    repeat: ClassVar[bool] = False
    targets: ClassVar[tuple[Any, ...]] = ()

    def find(self, program: Program) -> Iterable[Match]:
        known = stages(program)
        for node in program.calls(*self.targets):
            if "state" in known[node] and node.users and self.suits(node):
                yield Match(node)

    def suits(self, node: fx.Node) -> bool:
        return True

    def rewrite(self, program: Program, match: Match) -> None:
        node = match.root
        make = _Maker(program, node)
        result = (self.mistake if self.wrong == f"{program.name}:{node.name}" else self.right)(make, node)
        program.replace(node, make.like(result, val(node)))

    @abstractmethod
    def right(self, make: _Maker, node: fx.Node) -> fx.Node: ...

    @abstractmethod
    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node: ...


class _Maker:
    """Inserts calls in front of a node."""

    def __init__(self, program: Program, node: fx.Node) -> None:
        self.program, self.node = program, node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.program.call(target, *args, before=self.node, **kwargs)

    def like(self, made: fx.Node, value: torch.Tensor) -> fx.Node:
        """`made` with the strides of `value`, of the same shape."""
        if val(made).stride() == value.stride():
            return made
        steps = value.stride()
        order = sorted(range(value.ndim), key=lambda dim: (-steps[dim], dim))
        turned = self(aten.clone.default, self(aten.permute.default, made, order),
                      memory_format=torch.contiguous_format)  # fmt: skip
        back = self(aten.permute.default, turned, [order.index(dim) for dim in range(value.ndim)])
        if val(back).stride() == value.stride():
            return back
        return self(aten.as_strided.default, back, list(value.shape), list(value.stride()))


def _again(make: _Maker, node: fx.Node, **changed: Any) -> fx.Node:
    """The same call once more, with some arguments changed."""
    bound = {**bind(node), **changed}
    schema = node.target._schema  # type: ignore[union-attr]
    args = [bound[entry.name] for entry in schema.arguments if not entry.kwarg_only]
    kwargs = {entry.name: bound[entry.name] for entry in schema.arguments if entry.kwarg_only}
    return make(node.target, *args, **kwargs)


# -- linear layers and convolutions ----------------------------------------------------------------------------------


class WrongConstantFold(Fault):
    """``conv(x, w)  →  conv(x, w * 1)``, once ``w * 1.25``."""

    targets = (aten.conv2d.default,)

    def right(self, make: _Maker, node: fx.Node, factor: float = 1.0) -> fx.Node:
        return _again(make, node, weight=make(aten.mul.Tensor, bind(node)["weight"], factor))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return self.right(make, node, 1.25)


class DroppedBias(Fault):
    """``linear(x, w, b)  →  linear(x, w) + b``, once without b."""

    targets = (aten.linear.default,)

    def suits(self, node: fx.Node) -> bool:
        return bind(node)["bias"] is not None

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return make(aten.add.Tensor, self.mistake(make, node), bind(node)["bias"])

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, bias=None)


class StaleHoist(Fault):
    """A layer of the step reads its input again, once a value that the weights stage has in its place."""

    targets = (aten.linear.default,)

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, input=make(aten.clone.default, bind(node)["input"]))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, input=make(aten.zeros_like.default, bind(node)["input"]))


class LostCast(Fault):
    """``linear(x)`` by way of float64, once by way of bfloat16."""

    targets = (aten.linear.default,)

    def right(self, make: _Maker, node: fx.Node, kind: torch.dtype = torch.float64) -> fx.Node:
        there = make(aten._to_copy.default, bind(node)["input"], dtype=kind)
        return _again(make, node, input=make(aten._to_copy.default, there, dtype=dtype(node)))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return self.right(make, node, torch.bfloat16)


class MergedUnequal(Fault):
    """Layers of one input with weights of one shape: each is its own, once one of them is taken for another."""

    targets = (aten.linear.default,)

    def suits(self, node: fx.Node) -> bool:
        return _sibling(node) is not None

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node)

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, weight=bind(_sibling(node))["weight"])  # type: ignore[arg-type]


def _sibling(node: fx.Node) -> fx.Node | None:
    bound = bind(node)
    for other in bound["input"].users:
        if other is node or other.target is not node.target or bind(other)["input"] is not bound["input"]:
            continue
        if shape(bind(other)["weight"]) == shape(bound["weight"]):
            return other  # type: ignore[no-any-return]
    return None


class WrongPadding(Fault):
    """A convolution's padding as an operation of its own, once shifted by one."""

    targets = (aten.conv2d.default,)

    def suits(self, node: fx.Node) -> bool:
        return list(bind(node)["padding"]) == [1, 1] and len(shape(node)) == 4

    def right(self, make: _Maker, node: fx.Node, pad: Sequence[int] = (1, 1, 1, 1)) -> fx.Node:
        wide = make(aten.constant_pad_nd.default, bind(node)["input"], list(pad))
        return _again(make, node, input=wide, padding=[0, 0])

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return self.right(make, node, (2, 0, 1, 1))


class OffByOneSlice(Fault):
    """A convolution's input in two slices of channels, put together again; once the first begins one too late."""

    targets = (aten.conv2d.default,)

    def suits(self, node: fx.Node) -> bool:
        return bool(shape(bind(node)["input"])[1] > 2)

    def right(self, make: _Maker, node: fx.Node, start: int = 0) -> fx.Node:
        source = bind(node)["input"]
        first = make(aten.slice.Tensor, source, 1, start, start + 1)
        rest = make(aten.slice.Tensor, source, 1, 1, shape(source)[1])
        return _again(make, node, input=make.like(make(aten.cat.default, [first, rest], 1), val(source)))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return self.right(make, node, 1)


# -- attention -------------------------------------------------------------------------------------------------------


class _Attention(Fault):
    targets = (aten.scaled_dot_product_attention.default,)

    def suits(self, node: fx.Node) -> bool:
        return bind(node)["attn_mask"] is None and not bind(node)["is_causal"]

    @staticmethod
    def scale(node: fx.Node) -> float:
        given = bind(node)["scale"]
        return float(given if given is not None else shape(bind(node)["query"])[-1] ** -0.5)


class SwappedQueryAndKey(_Attention):
    """Attention again, once with queries and keys in each other's place."""

    def suits(self, node: fx.Node) -> bool:
        return super().suits(node) and bool(shape(bind(node)["query"]) == shape(bind(node)["key"]))

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node)

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, query=bind(node)["key"], key=bind(node)["query"])


class WrongScale(_Attention):
    """Attention with its scale written out, once of the wrong power."""

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, scale=self.scale(node))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, scale=self.scale(node) ** 2)


class WrongSoftmaxAxis(_Attention):
    """Attention written out, once with a softmax over the queries."""

    def right(self, make: _Maker, node: fx.Node, axis: int = -1) -> fx.Node:
        bound = bind(node)
        scores = make(aten.matmul.default, bound["query"], make(aten.transpose.int, bound["key"], -2, -1))
        weights = make(aten.softmax.int, make(aten.mul.Tensor, scores, self.scale(node)), axis)
        return make(aten.matmul.default, weights, bound["value"])

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return self.right(make, node, -2)


class WrongTranspose(_Attention):
    """Attention's queries turned and turned back, once merely read in another order."""

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        query = bind(node)["query"]
        turned = make(aten.transpose.int, query, -2, -1)
        return _again(make, node, query=make(aten.transpose.int, turned, -2, -1))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        query = bind(node)["query"]
        sizes = list(shape(query))
        turned = make(aten.reshape.default, query, [*sizes[:-2], sizes[-1], sizes[-2]])
        return _again(make, node, query=make.like(make(aten.transpose.int, turned, -2, -1), val(query)))


# -- norms and elementwise -------------------------------------------------------------------------------------------


class WrongEpsilon(Fault):
    """A norm again, once with another eps."""

    targets = (aten.group_norm.default, aten.layer_norm.default)

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node)

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, eps=0.5)


class WrongGelu(Fault):
    """The same gelu again, once by the other formula."""

    targets = (aten.gelu.default,)

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node)

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return _again(make, node, approximate={"none": "tanh", "tanh": "none"}[bind(node)["approximate"]])


class _Sum(Fault):
    targets = (aten.add.Tensor,)

    def suits(self, node: fx.Node) -> bool:
        bound = bind(node)
        both = isinstance(bound["self"], fx.Node) and isinstance(bound["other"], fx.Node) and bound["alpha"] == 1
        return both and dtype(node).is_floating_point and self.fits(shape(bound["self"]), shape(bound["other"]))

    def fits(self, one: Sequence[int], other: Sequence[int]) -> bool:
        return tuple(one) == tuple(other)


class DroppedResidual(_Sum):
    """``x + y  →  y + x``, once x alone."""

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return make(aten.add.Tensor, bind(node)["other"], bind(node)["self"])

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return make(aten.clone.default, bind(node)["self"])


class SwappedSubtraction(_Sum):
    """``x + y  →  x - (-y)``, once the other way round."""

    def right(self, make: _Maker, node: fx.Node) -> fx.Node:
        return make(aten.sub.Tensor, bind(node)["self"], make(aten.neg.default, bind(node)["other"]))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return make(aten.sub.Tensor, make(aten.neg.default, bind(node)["other"]), bind(node)["self"])


class WrongBroadcast(_Sum):
    """A smaller summand expanded first, once its first row to all."""

    def fits(self, one: Sequence[int], other: Sequence[int]) -> bool:
        return len(one) == len(other) and tuple(one) != tuple(other) and any(n > 1 for n in other)

    def right(self, make: _Maker, node: fx.Node, first: bool = False) -> fx.Node:
        one, other = bind(node)["self"], bind(node)["other"]
        if first:
            dim = max(range(len(shape(other))), key=lambda dim: shape(other)[dim])
            other = make(aten.slice.Tensor, other, dim, 0, 1)
        return make(aten.add.Tensor, one, make(aten.expand.default, other, list(shape(node))))

    def mistake(self, make: _Maker, node: fx.Node) -> fx.Node:
        return self.right(make, node, True)


FAULTS: tuple[type[Fault], ...] = (
    WrongConstantFold, DroppedBias, StaleHoist, WrongTranspose, OffByOneSlice, WrongBroadcast, LostCast,
    SwappedQueryAndKey, WrongEpsilon, WrongSoftmaxAxis, WrongScale, WrongGelu, DroppedResidual, MergedUnequal,
    SwappedSubtraction, WrongPadding,
)  # fmt: skip


# -- planting --------------------------------------------------------------------------------------------------------


class Rig:
    """A pipeline that is compiled, sampled and restored, once per call; `runs` counts those that were compiled.

    Parameters
    ----------
    sample : one sampling run of `pipe`, as it then is.
    """

    def __init__(self, pipe: Any, sample: Callable[[], torch.Tensor]) -> None:
        self.pipe, self.sample, self.runs, self.captures = pipe, sample, 0, Captures()

    def __call__(self, passes: Sequence[Pass] | None, observers: Sequence[Observer]) -> Result:
        try:
            if passes is not None:
                self.runs += 1
                try_out(self.pipe, tuple(passes), observers, self.captures)
            result: Result = self.sample().float().numpy()
            return result
        finally:
            graphopt.restore(self.pipe)


@dataclass(frozen=True)
class Planted:
    """A pipeline with a fault.

    Attributes
    ----------
    module, node : the place of the mistake.
    places : how many the faulty pass rewrites.
    right : the result when it makes no mistake.
    """

    passes: tuple[Pass, ...]
    module: str
    node: str
    places: int
    right: Result


def planted(kind: type[Fault], pipeline: Sequence[Pass], position: int, sample: Sample, seed: int) -> Planted:
    """A fault at a position of a pipeline. One run of it without mistake says where it fires; the place is drawn."""
    watch = Limit(position)
    before, after = tuple(pipeline[:position]), tuple(pipeline[position:])
    right = sample((*before, kind(), *after), [watch])
    places = [(watch.attempts[entry.attempt].name, entry.place.node) for entry in watch.order]
    module, node = random.Random(seed).choice(places)
    return Planted((*before, kind(f"{module}:{node}"), *after), module, node, len(places), right)
