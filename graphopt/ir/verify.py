"""Is a rewritten Program still a Program, with the same boundary, and does it know its own shapes?

Structure is checked after every pass; numbers through `compare`, the one oracle for values (used by
``graphopt.testing.check_pass``, by tests, and on demand during compilation).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from graphopt.errors import GraphoptError, VerificationError
from graphopt.ir.effects import is_view
from graphopt.ir.program import Program, infer
from graphopt.ir.rewrite import Observer, Pass
from graphopt.ir.shapes import MEANING
from graphopt.ir.stages import check_placements


class Verification(Observer):
    """Has a pass rolled back whose result `verify` does not accept.

    Parameters
    ----------
    values : also run the Program before and after the pass on seeded inputs and compare by the accuracy that the pass
        declares: of a lossy one form and finiteness. This evaluates the whole Program two or three times for each pass
        that fires.
    """

    def __init__(self, *, values: bool = False) -> None:
        self.values = values

    def checks(self, pass_: Pass, before: Program, after: Program) -> None:
        try:
            self._check(pass_, before, after)
        except GraphoptError:
            raise
        except Exception as error:  # of an operation, which cannot do what the pass wants it to
            what = f"the result cannot be checked: {type(error).__name__}: {error}"
            raise VerificationError(what, where=f"after pass '{pass_.name}'") from error

    def _check(self, pass_: Pass, before: Program, after: Program) -> None:
        verify(before, after)
        if self.values:
            inputs = example_inputs(before)
            exact = evaluate(before, inputs, double=True) if pass_.accuracy == "rounding" else None
            if wrong := compare(evaluate(before, inputs), evaluate(after, inputs), pass_.accuracy, exact):
                raise VerificationError(f"not {pass_.accuracy}: {wrong}", where=f"after pass '{pass_.name}'")


def verify(before: Program, after: Program) -> None:
    """Raise VerificationError unless `after` is well formed and has the boundary of `before`.

    Checked: graph lint; the same inputs in the same order with the same roles (constants may be added); the same number
    of results with the same shapes, dtypes and strides; for every node that the last pass made or changed, or that
    reads other nodes than before, that the recorded shape, dtype and strides are what the operation really gives;
    placements that respect dependence.
    """
    try:
        after.graph.lint()
    except Exception as error:
        raise VerificationError(f"the graph is not well formed: {error}", where=f"after pass '{after.rule}'") from error
    if before.inputs != after.inputs or [n.name for n in after.placeholders] != [i.name for i in after.inputs]:
        raise VerificationError("inputs or their roles changed", where=f"after pass '{after.rule}'",
                                hint="a pass may not add, remove, rename or reorder placeholders")  # fmt: skip
    if len(before.results) != len(after.results):
        raise VerificationError("the number of results changed", where=f"after pass '{after.rule}'")
    for old, new in zip(before.results, after.results, strict=True):
        if _signature(old) != _signature(new):
            raise VerificationError(
                f"a result changed from {_signature(old)} to {_signature(new)}", where=f"after pass '{after.rule}'"
            )
    reads = {node.name: _names(node) for node in before.calls()}
    for node in after.calls():
        _check_value(node, after.rule, rewired=reads.get(node.name) != _names(node))
    check_placements(after)


def _signature(node: fx.Node | None) -> Any:
    value = None if node is None else node.meta.get("val")
    return (tuple(value.shape), value.dtype, tuple(value.stride())) if isinstance(value, torch.Tensor) else type(value)


def _names(node: fx.Node) -> list[str]:
    return [source.name for source in node.all_input_nodes]


def _check_value(node: fx.Node, rule: str, *, rewired: bool) -> None:
    """Recorded metadata must be what the operator's own shape rule gives (for what the pass just run has changed)."""
    if "val" not in node.meta:
        raise VerificationError("node has no recorded value", where=f"{node.name}, after pass '{rule}'",
                                hint="create nodes with Program.call, which infers it")  # fmt: skip
    changed = (node, *node.all_input_nodes)  # a reader of a changed node may have been given another shape
    if node.meta.get("opaque") or not (rewired or any(rule in entry.meta.get("rules", ()) for entry in changed)):
        return
    actual, recorded = infer(node), node.meta["val"]
    if isinstance(actual, torch.Tensor) and (
        tuple(actual.shape) != tuple(recorded.shape)
        or actual.dtype != recorded.dtype
        or steps(actual) != steps(recorded)
    ):
        raise VerificationError(
            f"recorded {tuple(recorded.shape)} {recorded.dtype} {recorded.stride()} "
            f"but the operation gives {tuple(actual.shape)} {actual.dtype} {actual.stride()}",
            where=f"{node.name}, after pass '{rule}'",
        )


def steps(value: Any) -> list[Any]:
    """The strides that matter: of dimensions longer than 1, in a tensor that has elements."""
    if any(size == 0 for size in value.shape if isinstance(size, int)):
        return []
    return [
        step
        for size, step in zip(value.shape, value.stride(), strict=True)
        if not (isinstance(size, int) and size == 1)
    ]


# -- numbers ---------------------------------------------------------------------------------------------------------


def example_inputs(program: Program, seed: int = 0, sizes: Mapping[Any, int] | None = None) -> list[Any]:
    """Seeded values for all inputs: normal for floats (weights scaled by fan-in), small integers, random booleans.

    An input of one name gets the same values whatever other inputs there are. Symbolic sizes are those of the example
    that the Program was made of, or what `sizes` says by symbol.
    """
    values = []
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        if entry.name in program.constants:
            values.append(program.constants[entry.name])
        else:
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(entry.name.encode()))
            values.append(_example(node.meta["val"], entry.role == "weight", generator, sizes or {}))
    return values


class Examples(Sequence[Any]):
    """Values of the shapes, dtypes, devices and strides that nodes record: zeros, or the numbers themselves.

    Each is made when it is asked for, and anew at every access, since all weights once more take as much memory as they
    do. Those of symbolic sizes have the sizes of the example. They are plain tensors, whatever mode they are made in.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = list(values)

    @property
    def outlines(self) -> list[Any]:
        """They without memory: see `outline`."""
        with _plainly():
            return list(map(_outlined, self._values))

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Examples(self._values[index])
        value = self._values[index]
        with _plainly():
            return _like(value, value.device).zero_() if isinstance(value, torch.Tensor) else value


def outline(value: Any) -> Any:
    """A tensor on the device ``meta``, of the shape, dtype and strides of one; other values as they are."""
    with _plainly():
        return _outlined(value)


def _outlined(value: Any) -> Any:
    return _like(value, "meta") if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Whatever mode is on, tensors are plain."""
    with _disable_current_modes(), torch.inference_mode(False):
        yield


def _like(value: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Of the sizes and strides of another tensor; what is in it is undefined."""
    sizes, strides = [_int(n) for n in value.shape], [_int(n) for n in value.stride()]
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device=device)


def _int(size: Any, sizes: Mapping[Any, int] | None = None) -> int:
    """A size as a number. Turning a symbolic one into an int would bind the symbol, for all Programs that share it."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    bound = size.node.expr.subs(dict(sizes or {}))
    return int(bound if bound.is_number else size.node.hint)


def _example(value: Any, weight: bool, generator: torch.Generator, sizes: Mapping[Any, int]) -> Any:
    if not isinstance(value, torch.Tensor):
        return _int(value, sizes) if not isinstance(value, bool | float) else value
    size, strides = ([_int(n, sizes) for n in numbers] for numbers in (value.shape, value.stride()))
    if value.dtype.is_floating_point or value.dtype.is_complex:
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        fan_in = max(1, drawn[:1].numel()) if weight and drawn.ndim > 1 else 1
        return _laid_out(drawn / fan_in**0.5, value, strides)
    if value.dtype == torch.bool:
        return _laid_out(torch.rand(size, generator=generator) < 0.5, value, strides)
    return _laid_out(torch.randint(0, 8, size, generator=generator), value, strides)


def _laid_out(drawn: torch.Tensor, value: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """What was drawn, with dtype and device of a fake value, and these strides; of expanded dimensions one entry."""
    once = drawn[tuple(slice(1 if step == 0 else None) for step in steps)]
    return (
        torch.empty_strided(once.shape, steps, dtype=value.dtype, device=value.device).copy_(once).expand(drawn.shape)
    )


def evaluate(program: Program, inputs: Sequence[Any], *, double: bool = False) -> list[Any]:
    """Run a Program node by node on the reference operators; in float64 throughout with `double`."""
    if double:
        inputs = tree_map_only(torch.Tensor, _double, list(inputs))
        program = _in_double(program)
    with torch.no_grad():
        return list(fx.Interpreter(program.root, graph=program.graph).run(*inputs))


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.dtype.is_floating_point else tensor


def _in_double(program: Program) -> Program:
    program = program.copy()
    for node in program.calls():
        node.target = MEANING.get(node.target, node.target)
        node.args, node.kwargs = tree_map_only(
            torch.dtype, lambda kind: torch.float64 if kind.is_floating_point else kind, (node.args, node.kwargs)
        )
    return program


def spread(program: Program, inputs: Sequence[Any], samples: int = 4) -> list[float]:
    """Per result, the error that rounding has to be expected to make, wherever each operation rounds.

    The Program runs in float64, and what each operation gives is off at random by a unit in the last place, in the
    operation's own dtype, of its largest element (Monte Carlo arithmetic: Parker, 1997). The largest error of `samples`
    runs is given; 0 for results that are no floats.
    """
    twin = _in_double(program)
    kinds = {node.name: node.meta["val"] for node in program.calls()}
    exact = evaluate(twin, given := tree_map_only(torch.Tensor, _double, list(inputs)))
    found = [0.0] * len(exact)
    for sample in range(samples):
        runner = _Rounded(twin, torch.Generator().manual_seed(sample), kinds)
        with torch.no_grad():
            results = runner.run(*given)
        for position, (off, true) in enumerate(zip(results, exact, strict=True)):
            if isinstance(true, torch.Tensor) and true.dtype.is_floating_point:
                errors = (off - true).abs()
                finite = errors[errors.isfinite()]
                found[position] = max(found[position], finite.max().item() if finite.numel() else 0.0)
    return found


class _Rounded(fx.Interpreter):
    """Puts every result of an operation off by a random part of its unit in the last place."""

    def __init__(self, program: Program, generator: torch.Generator, kinds: Mapping[str, Any]) -> None:
        super().__init__(program.root, graph=program.graph)
        self.generator, self.kinds = generator, kinds

    def run_node(self, n: fx.Node) -> Any:
        result, kind = super().run_node(n), self.kinds.get(n.name)
        if is_view(n) or not isinstance(kind, torch.Tensor) or not kind.dtype.is_floating_point or not result.numel():
            return result
        size = torch.finfo(kind.dtype).eps * torch.nan_to_num(result, 0.0, 0.0, 0.0).abs().max()
        noise = torch.rand(result.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return torch.empty_like(result).copy_(result + size * noise)  # strides and all


def compare(
    before: Sequence[Any],
    after: Sequence[Any],
    accuracy: str,
    exact: Sequence[Any] | None = None,
    *,
    passes: int = 1,
    expected: Sequence[float] | None = None,
) -> str | None:
    """The one numeric oracle: None when `after` is as accurate as declared, else what is wrong.

    ``bitwise``: equal in every bit (NaN equals NaN). ``rounding``: against `exact` (the original in float64), the
    largest error is at most 4 times the largest error of `before`, or 32 units in the last place of the largest value,
    whichever is more. ``lossy``: the same form (dtypes and shapes, classes of what is no tensor), and finite where
    `before` is.

    Parameters
    ----------
    passes : rounding passes that fired in between. Each may add to the error what one may, 3 times that of `before` or
        32 units: errors of rounding add, in first order.
    expected : per result, the error that rounding has to be expected to make (`spread`), where it is more than that of
        `before`, which may be small by luck.
    """
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        if not isinstance(old, torch.Tensor):
            if type(old) is not type(new) or (accuracy != "lossy" and old != new):
                return f"result {position}: {new!r} instead of {old!r}"
            continue
        if not isinstance(new, torch.Tensor):
            return f"result {position}: {new!r} instead of a tensor"
        if old.dtype != new.dtype or old.shape != new.shape:
            return f"result {position}: {new.dtype} {tuple(new.shape)} instead of {old.dtype} {tuple(old.shape)}"
        if _same(old, new, signed=accuracy == "bitwise"):
            continue
        if accuracy == "lossy":
            if not bool(new[old.isfinite()].isfinite().all()):
                return f"result {position} is not finite where the original is"
            continue
        if accuracy == "bitwise" or exact is None or not old.dtype.is_floating_point:
            off = (old.double() - new.double()).abs().max().item()
            return f"result {position} differs by up to {off:.3g} where every bit must agree"
        truth = exact[position].double()
        finite = truth.isfinite() & old.isfinite()
        if not bool(new[finite].isfinite().all()):
            return f"result {position} is not finite where the original is"
        if not bool(finite.any()):
            continue
        was, now = ((value.double() - truth)[finite].abs().max().item() for value in (old, new))
        floor = 32 * passes * torch.finfo(old.dtype).eps * truth[finite].abs().max().item()
        allowed = (1 + 3 * passes) * max(was, expected[position] if expected is not None else 0.0)
        if now > max(allowed, floor):
            return f"result {position}: error {now:.3g} against float64, the original's is {was:.3g}"
    return None


def _same(old: torch.Tensor, new: torch.Tensor, *, signed: bool) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN, and 0.0 equals -0.0 unless `signed`."""
    same = old == new
    if signed and old.dtype.is_floating_point:
        same &= torch.signbit(old) == torch.signbit(new)
    return bool((same | (old.isnan() & new.isnan())).all())
