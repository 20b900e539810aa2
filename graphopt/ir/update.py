"""What a step of a sampler does to its state, as one linear update: guidance, scheduler and scaling folded by sympy.

Between two calls of the denoiser most samplers only add, scale and cast: guidance combines branches, the scheduler
combines prediction, state and noise. Such a chain is a linear combination of a few tensors, whose coefficients are
expressions in the numbers that occurred (guidance scale, sigmas, alphas). `fold` finds the terms and the expressions;
with the numbers of another step they give that step's coefficients.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx

from graphopt.ir.program import bind, val

aten = torch.ops.aten

Form: TypeAlias = dict[fx.Node, sympy.Expr]

_SAME = (aten._to_copy.default, aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default)


@dataclass(frozen=True)
class Update:
    """``result = Σ coefficient · term``, exact but for rounding.

    Attributes
    ----------
    terms : coefficient by node: an expression in `numbers`.
    numbers : the number that each symbol stood for in the step that was recorded.
    folded : operations over whole tensors that the update stands for.
    """

    terms: Form
    numbers: Mapping[sympy.Symbol, float]
    folded: int

    def coefficients(self, numbers: Mapping[sympy.Symbol, float] | None = None) -> dict[fx.Node, float]:
        """The coefficient of each term, with these numbers or the recorded ones."""
        given = self.numbers if numbers is None else numbers
        return {node: float(expression.subs(given)) for node, expression in self.terms.items()}

    def apply(self, tensors: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
        """The result for these values of the terms, in as many passes over memory as there are terms."""
        result: torch.Tensor | None = None
        for node, factor in self.coefficients().items():
            result = tensors[node] * factor if result is None else result.add_(tensors[node], alpha=factor)
        assert result is not None
        return result


def fold(node: fx.Node, inside: Sequence[fx.Node]) -> Update:
    """The linear form of `node` over values computed before the operations `inside`, or by them but not linearly."""
    folder = _Folder(set(inside))
    form = folder.form(node)
    terms = {term: sympy.factor_terms(expression) for term, expression in form.items() if expression != 0}
    return Update(terms, folder.numbers, len(folder.folded))


def combined(factors: dict[fx.Node, float], of: Callable[[fx.Node], Any], call: Callable[..., Any]) -> Any:
    """``Σ factor · of(term)``, a call per term, and one less where a first factor is 1."""
    total: Any = None
    for terms, factor in summands(factors):
        tensors = [of(term) for term in terms]
        part = call(aten.sub.Tensor, *tensors) if len(tensors) == 2 else tensors[0]
        if total is not None:
            total = call(aten.add.Tensor, total, part, **({} if factor == 1 else {"alpha": factor}))
        elif factor != 1:
            total = call(aten.mul.Tensor, part, factor)
        else:
            total = part if len(factors) > 1 else call(aten.clone.default, part)
    return total


def summands(factors: dict[fx.Node, float]) -> list[tuple[tuple[fx.Node, ...], float]]:
    """The terms and their factor, two of opposite factors as one difference; in the order of summation."""
    left = dict(factors)
    found: list[tuple[tuple[fx.Node, ...], float]] = []
    for term, factor in factors.items():
        if left.pop(term, None) is None:
            continue
        other = next((entry for entry in left if left[entry] == -factor), None)
        if other is None:
            found.append(((term,), factor))
        else:
            del left[other]
            found.append(((term, other) if factor > 0 else (other, term), abs(factor)))
    return sorted(found, key=lambda entry: (entry[1] != 1, abs(entry[1])))


@dataclass
class _Folder:
    """Forms of nodes, from the node backwards."""

    inside: set[fx.Node]
    numbers: dict[sympy.Symbol, float] = field(default_factory=dict)
    folded: set[fx.Node] = field(default_factory=set)
    forms: dict[fx.Node, Form] = field(default_factory=dict)
    symbols: dict[Any, sympy.Symbol] = field(default_factory=dict)

    def form(self, node: fx.Node) -> Form:
        if node not in self.forms:
            self.forms[node] = self._form(node) if node in self.inside else {node: sympy.Integer(1)}
        return self.forms[node]

    def _form(self, node: fx.Node) -> Form:
        alone: Form = {node: sympy.Integer(1)}
        if node.op != "call_function" or not isinstance(val(node), torch.Tensor):
            return alone
        if node.target in _SAME and val(node).dtype.is_floating_point:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            return self._over(node, self.form(source)) if val(source).dtype.is_floating_point else alone
        if node.target not in _RULES or not val(node).dtype.is_floating_point:
            return alone
        found = _RULES[node.target](self, bind(node))
        return alone if found is None else self._over(node, found)

    def _over(self, node: fx.Node, form: Form) -> Form:
        """The form, `node` counted as folded; broadcasts are no linear combination of terms of the result's shape."""
        if any(val(term).shape != val(node).shape for term in form):
            return {node: sympy.Integer(1)}
        self.folded.add(node)
        return form

    def number(self, value: Any) -> sympy.Expr | None:
        """A number, or a 0-dimensional value, as a symbol (small integers as themselves); None for a tensor."""
        if isinstance(value, fx.Node):
            if "value" not in value.meta:
                return None
            return self._symbol(value, float(value.meta["value"]))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return sympy.Integer(int(value)) if value in (0, 1, -1) else self._symbol(("number", value), float(value))

    def _symbol(self, key: Any, value: float) -> sympy.Symbol:
        if key not in self.symbols:
            self.symbols[key] = sympy.Symbol(f"c{len(self.symbols)}", real=True)
            self.numbers[self.symbols[key]] = value
        return self.symbols[key]

    # -- rules -------------------------------------------------------------------------------------------------------

    def sum(self, left: Any, right: Any, sign: Any) -> Form | None:
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
            return None
        if val(left).ndim == 0 or val(right).ndim == 0:
            return None
        total = dict(self.form(left))
        for term, factor in self.form(right).items():
            total[term] = total.get(term, sympy.Integer(0)) + sign * factor
        return total

    def scaled(self, left: Any, right: Any) -> Form | None:
        for tensor, factor in ((left, right), (right, left)):
            number = self.number(factor)
            if isinstance(tensor, fx.Node) and number is not None and val(tensor).ndim:
                return {term: number * value for term, value in self.form(tensor).items()}
        return None

    def divided(self, left: Any, right: Any) -> Form | None:
        number = self.number(right)
        if not isinstance(left, fx.Node) or number is None or not val(left).ndim or number == 0:
            return None
        return {term: value / number for term, value in self.form(left).items()}

    def lerp(self, start: Any, end: Any, weight: Any) -> Form | None:
        number = self.number(weight)
        if number is None:
            return None
        total = {term: (1 - number) * value for term, value in self.form(start).items()}
        for term, value in self.form(end).items():
            total[term] = total.get(term, sympy.Integer(0)) + number * value
        return total


def _alpha(folder: _Folder, bound: dict[str, Any]) -> Any:
    return folder.number(bound.get("alpha", 1))


_RULES: dict[Any, Any] = {
    aten.add.Tensor: lambda f, b: f.sum(b["self"], b["other"], _alpha(f, b)),
    aten.add_.Tensor: lambda f, b: f.sum(b["self"], b["other"], _alpha(f, b)),
    aten.sub.Tensor: lambda f, b: f.sum(b["self"], b["other"], -_alpha(f, b)),
    aten.sub_.Tensor: lambda f, b: f.sum(b["self"], b["other"], -_alpha(f, b)),
    aten.mul.Tensor: lambda f, b: f.scaled(b["self"], b["other"]),
    aten.mul_.Tensor: lambda f, b: f.scaled(b["self"], b["other"]),
    aten.mul.Scalar: lambda f, b: f.scaled(b["self"], b["other"]),
    aten.div.Tensor: lambda f, b: f.divided(b["self"], b["other"]),
    aten.div.Scalar: lambda f, b: f.divided(b["self"], b["other"]),
    aten.neg.default: lambda f, b: f.scaled(b["self"], -1),
    aten.lerp.Scalar: lambda f, b: f.lerp(b["self"], b["end"], b["weight"]),
    aten.lerp.Tensor: lambda f, b: f.lerp(b["self"], b["end"], b["weight"]),
}


# Operations that give a linear combination of their whole tensors and write nothing.
LINEAR = frozenset({*_SAME, *_RULES} - {aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor})


def branch(node: fx.Node, output: fx.Node) -> tuple[int, int] | None:
    """``(position, of how many)`` when `node` is one of the equal parts of a call's output along the batch."""
    rows = int(val(output).shape[0]) if isinstance(val(output), torch.Tensor) and val(output).ndim else 0
    if not rows or node.op != "call_function" or not isinstance(val(node), torch.Tensor):
        return None
    size = int(val(node).shape[0]) if val(node).ndim == val(output).ndim else 0
    if not size or rows % size or size == rows:
        return None
    if node.target is aten.slice.Tensor and node.args[0] is output:
        bound = bind(node)
        start = int(bound["start"] or 0) % rows
        return (start // size, rows // size) if bound["dim"] == 0 and start % size == 0 else None
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and source.target is aten.split.Tensor and source.args[0] is output:
        position = node.args[1]
        dim = source.args[2] if len(source.args) > 2 else 0
        return (int(position), rows // size) if dim == 0 and source.args[1] == size else None  # type: ignore[arg-type]
    return None


def outputs(call: fx.Node) -> list[fx.Node]:
    """The results of a call, in order."""
    return [user for user in call.users if user.target is operator.getitem]


@dataclass(frozen=True)
class Guidance:
    """How the branches of a call's output are combined.

    Attributes
    ----------
    node : the first value that is a weighted mean of all branches.
    weights : of each branch, by its position in the batch; they add up to 1.
    """

    node: fx.Node
    weights: tuple[float, ...]


def guidance(call: fx.Node, segment: Sequence[fx.Node]) -> Guidance | None:
    """The combination of the branches of a call, if the operations that follow make one."""
    for output in outputs(call):
        parts = {node: place for node in segment if (place := branch(node, output)) is not None}
        count = next(iter(parts.values()))[1] if parts else 0
        if len({position for position, _ in parts.values()}) != count or count < 2:
            continue
        inside = [node for node in segment if node not in parts]
        reached: dict[fx.Node, set[int]] = {node: {position} for node, (position, _) in parts.items()}
        for node in inside:
            reached[node] = set().union(*(reached.get(source, set()) for source in node.all_input_nodes))
            if len(reached[node]) < count:
                continue
            update = fold(node, inside)
            weights = [0.0] * count
            for term, weight in update.coefficients().items():
                if term in parts:
                    weights[parts[term][0]] += weight
            if not set(update.terms) <= set(parts):
                break  # something else enters first
            if abs(sum(weights) - 1) < 1e-6:  # not yet a difference of branches
                return Guidance(node, tuple(weights))
    return None
