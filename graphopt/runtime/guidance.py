"""The output of a denoiser call on a batch of guidance branches, held back until it is known which of them are needed.

Classifier-free guidance runs the denoiser on ``cat([x, x])`` and combines the halves of its output. Where the weight of
a branch is zero (the unconditional one at a scale of 1, as in interval guidance), its rows need not be computed. That
is not known before the sampler has combined them, so the call returns a `Guided` tensor and computes nothing yet::

    noise = model(cat([x, x]), t, emb)      # Guided
    u, c = noise.chunk(2)                   # Guided
    guided = u + scale * (c - u)            # Guided; at scale 1 the weight of u is zero
    x = scheduler.step(guided, t, x)        # the first operation that needs values: computed here, c's rows only

accuracy: an expression of which no branch is left out is replayed on the computed rows operation by operation, which
gives every bit that torch gives without graphopt. Where a branch is left out it is ``rounding``: ``u + 1 * (c - u)`` is
c but for rounding. Weights are composed in exact arithmetic, so that 1 - scale is zero for a scale of 1 alone. One
difference remains: infinities and NaN in a branch of weight zero do not spread into the result.

aliasing: branches are views of the whole output, as in torch: what is written in place to one of them is seen through
all, and through none of the combinations made before. Only what looks beyond a branch's own rows (``branch._base``, or
``as_strided`` on what was made from it) sees zeros where other branches were never computed.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from torch._compile import _disable_dynamo
from torch.utils._pytree import tree_map_only

from graphopt.errors import UsageError

Compute = Callable[[tuple[int, ...]], torch.Tensor]

_CONTAINERS = (tuple, list, dict)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class GuidanceCounts:
    """How many calls were deferred, how many branches they have, and how many of these were computed."""

    calls: int = 0
    branches: int = 0
    computed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def skipped(self) -> int:
        """Branches not computed so far; those of a call whose output is still in use may yet be."""
        return self.branches - self.computed

    def add(self, *, calls: int = 0, branches: int = 0, computed: int = 0) -> None:
        with self._lock:
            self.calls += calls
            self.branches += branches
            self.computed += computed


class Guided(torch.Tensor):
    """A tensor that is a whole denoiser output, one of its branches, or a linear combination of branches.

    Made by `defer` alone. Metadata and linear algebra of branches compute nothing; every other operation, from Python
    or from C++, computes what it needs, runs on ordinary tensors and returns ordinary tensors.
    """

    made = False  # whether there has been any in this process
    _call: _Call
    _node: _Node | None  # None: the whole
    _view: bool = False  # whether it is a view of what another Guided stands for
    _value: torch.Tensor | None = None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Dynamo would trace this bookkeeping as if it were the user's; it breaks its graph here instead.
        serve = _untraced if torch.compiler.is_compiling() else _serve
        return serve(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*_plain(args), **_plain_keywords(kwargs or {}))


def _serve(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = _RULES.get(function)
    if rule is not None:
        result = rule(function, args, kwargs)
        if result is not None:
            return result[0]
    return function(*_plain(args), **_plain_keywords(kwargs))


_untraced = _disable_dynamo(_serve)  # `torch.compiler.disable` would import Dynamo, which takes seconds


def defer(
    compute: Compute, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, branches: int,
    strides: Sequence[int] | None = None, counts: GuidanceCounts | None = None,
) -> Guided:  # fmt: skip
    """The output of a call that `compute` will make, as far as it turns out to be needed.

    Parameters
    ----------
    compute : ``compute((g, …))`` gives the rows of these branches, in this order, ``[len(branches)·n, …]``, in memory
        that nothing else writes to. Each branch is asked for at most once, under the grad and inference mode of now,
        by one thread at a time. It must give what it would give now, although inputs may have been written to since.
        What it raises is raised wherever values are needed.
    shape, dtype, device : of the whole output, ``[branches·n, …]``.
    branches : how many there are, along dimension 0.
    strides : of the whole output; contiguous unless given. Results that differ are copied to these.
    counts : told about the call, and about the branches that are computed.

    Raises
    ------
    UsageError : rows that cannot be divided by the number of branches, or strides of zero.
    """
    if branches < 1 or not shape or shape[0] % branches:
        raise UsageError(f"an output of shape {tuple(shape)} cannot be cut into {branches} branches")
    if strides is not None and any(step == 0 and size > 1 for step, size in zip(strides, shape, strict=True)):
        raise UsageError(f"an output of strides {tuple(strides)} has elements that share memory")
    steps = tuple(strides) if strides is not None else torch.empty(tuple(shape), device="meta").stride()
    if str(device) == device.type not in ("cpu", "meta"):
        device = torch.empty(0, device=device).device  # the current one, by its number, as outputs name it
    Guided.made = True
    call = _Call(compute, tuple(shape), dtype, device, branches, steps, counts or GuidanceCounts())
    return _wrap(call, None)


def resolve(value: Any) -> Any:
    """`value` with every Guided in it, however deep in lists, tuples, dicts and the like, computed: plain tensors.

    As in torch, plain tensors share memory with the Guided that they stand for.
    """
    if isinstance(value, Guided):
        return _materialise(value)
    return value if isinstance(value, torch.Tensor) else tree_map_only(Guided, _materialise, value)


# -- expressions -----------------------------------------------------------------------------------------------------


class _Node:
    """A branch, or an operation on nodes; what any number of Guided tensors stand for.

    Attributes
    ----------
    weights, denominator : the value is Σ weights[g] / denominator · branch g, in exact integers.
    mentioned : the branches in the expression, a bit each; their weights may be zero.
    operands : what it still has to read: nothing once it has been replayed.
    mode : grad and inference mode when the operation was called.
    exact : its value by replay of all operations.
    value : `exact`, or the value without the branches of weight zero. As long as another node may still read either,
        nobody else has them.
    shown : the tensor in the hands of the user, who may write to it.
    """

    __slots__ = (
        "__weakref__", "args", "denominator", "exact", "function", "kwargs", "mentioned", "mode", "operands", "shown",
        "value", "weights",
    )  # fmt: skip

    def __init__(
        self, weights: Sequence[int], denominator: int, mentioned: int, function: Any, args: tuple[Any, ...] | None,
        kwargs: dict[str, Any], operands: Sequence[_Node], mode: tuple[bool, bool],
    ) -> None:  # fmt: skip
        self.operands = operands
        self.weights, self.denominator, self.mentioned = weights, denominator, mentioned
        self.function, self.args, self.kwargs, self.mode = function, args, kwargs, mode
        self.exact: torch.Tensor | None = None
        self.value: torch.Tensor | None = None
        self.shown: torch.Tensor | None = None

    def run(self, read: Callable[[Any], Any]) -> torch.Tensor:
        """The operation on what `read` gives for each operand."""
        args = [read(value) for value in self.args or ()]
        kwargs = {name: read(value) for name, value in self.kwargs.items()}
        with _under(self.mode):
            return cast(torch.Tensor, self.function(*args, **kwargs))


def _exact(value: Any) -> Any:
    return value.exact if type(value) is _Node else value


def _value(value: Any) -> Any:
    return value.value if type(value) is _Node else value


class _Call:
    """One deferred denoiser call: its branches, what is known of them, and the expressions made from them.

    `memory`, once a branch or the whole is in the hands of the user, is what these are views of.
    """

    def __init__(
        self, compute: Compute, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, count: int,
        strides: tuple[int, ...], counts: GuidanceCounts,
    ) -> None:  # fmt: skip
        self.shape, self.dtype, self.device, self.strides, self.count = shape, dtype, device, strides, count
        self.rows = shape[0] // count
        self.branch_shape = (self.rows, *shape[1:])
        self.mode = _mode()
        self.lock = threading.RLock()
        self.branches = [
            _Node([int(g == k) for g in range(count)], 1, 1 << k, None, None, {}, (), self.mode) for k in range(count)
        ]
        self._made: list[weakref.ref[_Node]] = []
        self._many = 64
        self.memory: torch.Tensor | None = None
        self._compute: Compute | None = compute
        self._whole: torch.Tensor | None = None
        self._error: tuple[Exception, TracebackType | None] | None = None
        self._counts = counts
        counts.add(calls=1, branches=count)

    # Everything below is called under the lock.

    def watch(self, node: _Node) -> None:
        """Keep track of an expression as long as it is in use."""
        self._made.append(weakref.ref(node))
        if len(self._made) > self._many:
            self._made = [made for made in self._made if made() is not None]
            self._many = 64 + 2 * len(self._made)

    def pending(self) -> Iterator[_Node]:
        """The expressions in use that may still read their operands."""
        for made in self._made:
            node = made()
            if node is not None and node.operands:
                yield node

    def known(self, wanted: Sequence[Any]) -> None:
        """See to it that the branches are computed whose entry in `wanted` is not zero."""
        missing = tuple([k for k, node in enumerate(self.branches) if wanted[k] and node.exact is None])
        if not missing:
            return
        if self._error is not None:
            raise self._error[0].with_traceback(self._error[1])
        assert self._compute is not None
        shape = (len(missing) * self.rows, *self.shape[1:])
        try:
            with _under(self.mode):
                result = self._checked(resolve(self._compute(missing)), shape)
        except Exception as error:
            self._error = error, error.__traceback__
            raise
        self._counts.add(computed=len(missing))
        if len(missing) == self.count:
            self._whole = result
        for position, k in enumerate(missing):
            node = self.branches[k]
            alone = len(missing) == 1
            node.exact = node.value = result if alone else result.narrow(0, position * self.rows, self.rows)
        if all(node.exact is not None for node in self.branches):
            self._compute = None  # with all that it holds

    def _checked(self, result: Any, shape: tuple[int, ...]) -> torch.Tensor:
        if not isinstance(result, torch.Tensor):
            raise UsageError(f"a denoiser call gave {type(result).__name__} instead of a tensor")
        given, promised = (result.shape, result.dtype, result.device), (shape, self.dtype, self.device)
        if given != promised:
            raise UsageError(f"a denoiser call gave {given} instead of {promised}")
        return result if result.stride() == self.strides else _laid_out(result, self.strides)

    def evaluate(self, node: _Node) -> torch.Tensor:
        """The value of an expression, without branches of weight zero that are not computed anyway."""
        if node.value is None:
            self.known(node.weights)
        stack = [node]
        while stack:
            top = stack[-1]
            waiting = [] if top.value is not None else self._settle(top)
            stack.extend(waiting)
            if not waiting:
                stack.pop()
        assert node.value is not None
        return node.value

    def _settle(self, node: _Node) -> list[_Node]:
        """Give `node` its value, if its operands have theirs; else the operands that do not.

        Operations run as they were called, but for those in which a branch that is not computed cancels out.
        """
        unknown = [k for k, branch in enumerate(self.branches) if branch.exact is None and node.mentioned >> k & 1]
        if not unknown:
            _replay(node)
        elif not any(operand.weights[k] for operand in node.operands for k in unknown):
            waiting = [operand for operand in node.operands if operand.value is None]
            if waiting:
                return waiting
            node.value = node.run(_value)
        else:
            factors = _factors(node)
            if factors is None:
                self.known([node.mentioned >> k & 1 for k in range(self.count)])
                _replay(node)
            else:
                with _under(node.mode):
                    node.value = self._combine(factors)
        return []

    def _combine(self, factors: dict[int, float]) -> torch.Tensor:
        total: torch.Tensor | None = None
        for k, factor in factors.items():
            row = cast(torch.Tensor, self.branches[k].exact)
            if total is None:
                total = row.clone() if factor == 1.0 else row * factor
            else:
                total = torch.add(total, row, alpha=factor)
        if total is not None:
            return total
        strides = _result_strides(self.branch_shape, self.strides)
        return torch.empty_strided(self.branch_shape, strides, dtype=self.dtype, device=self.device).zero_()

    def show(self, node: _Node | None) -> torch.Tensor:
        """The tensor that a Guided stands for, to be handed to the user."""
        if node is None:
            self.known([True] * self.count)
            for branch in range(self.count):
                self._show_branch(branch)
            assert self.memory is not None
            return self.memory
        if node.function is None:
            self._show_branch(self.branches.index(node))
        elif node.shown is None:
            value = self.evaluate(node)
            read = any(node in reader.operands for reader in self.pending())
            node.shown = value.clone() if read else value
        assert node.shown is not None
        return node.shown

    def _show_branch(self, k: int) -> None:
        node = self.branches[k]
        if node.shown is not None:
            return
        self.known(node.weights)
        gradients = cast(torch.Tensor, node.exact).requires_grad
        if gradients:  # what autograd has seen cannot be filled in later
            self.known([True] * self.count)
        with _under(self.mode):
            if self.memory is None and self._whole is None and gradients:
                self._whole = self._checked(torch.cat([cast(torch.Tensor, b.exact) for b in self.branches]), self.shape)
            if self.memory is None and self._whole is not None:
                self.memory = self._whole
                for each in range(self.count):
                    self._publish(each, copied=False)
                return
            if self.memory is None:
                memory = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
                self.memory = memory.zero_()
            self._publish(k, copied=True)

    def _publish(self, k: int, *, copied: bool) -> None:
        """Hand out a branch as a view of `memory`; what is pending keeps values of its own to read."""
        assert self.memory is not None
        node = self.branches[k]
        assert node.exact is not None
        view = self.memory.narrow(0, k * self.rows, self.rows)
        read = any(reader.mentioned >> k & 1 for reader in self.pending())
        if copied:
            view.data.copy_(node.exact)  # through `data`: in torch these rows were never written to
        elif read:
            node.exact = _laid_out(node.exact, node.exact.stride())
        if not read:
            node.exact = view
        node.value = node.exact
        node.shown = view


def _replay(node: _Node) -> None:
    """Run the operations that lead to `node`, each once, with the arguments that they were called with."""
    stack = [node]
    while stack:
        top = stack[-1]
        waiting = [operand for operand in top.operands if operand.exact is None]
        stack.extend(waiting)
        if not waiting:
            stack.pop()
            if top.exact is None:
                top.exact = top.run(_exact)
                top.value = top.exact if top.value is None else top.value
                top.args, top.kwargs, top.operands = None, {}, ()


def _factors(node: _Node) -> dict[int, float] | None:
    """The weights that are not zero, or None where one is beyond the range of a float."""
    try:
        return {k: weight / node.denominator for k, weight in enumerate(node.weights) if weight}
    except OverflowError:
        return None


def _laid_out(tensor: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    laid = torch.empty_strided(tensor.shape, tuple(strides), dtype=tensor.dtype, device=tensor.device)
    return laid.copy_(tensor)


@functools.lru_cache(maxsize=256)
def _result_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of what an elementwise operation gives on an operand of this layout."""
    return (-torch.empty_strided(shape, strides, device="meta")).stride()


def _mode() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@contextlib.contextmanager
def _entered(mode: tuple[bool, bool]) -> Iterator[None]:
    with torch.inference_mode(mode[1]), torch.set_grad_enabled(mode[0]):
        yield


def _under(mode: tuple[bool, bool]) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if mode == _mode() else _entered(mode)


# -- tensors ---------------------------------------------------------------------------------------------------------


def _wrap(call: _Call, node: _Node | None, *, view: bool = False) -> Guided:
    if node is None:
        shape, strides = call.shape, call.strides
    elif node.function is None:
        shape, strides = call.branch_shape, call.strides
    else:
        shape, strides = call.branch_shape, _result_strides(call.branch_shape, call.strides)
    made = torch.Tensor._make_wrapper_subclass(Guided, shape, strides=strides, dtype=call.dtype, device=call.device)
    torch._C._set_throw_on_mutable_data_ptr(made)  # there is no memory yet that an extension could take the address of
    made._call, made._node = call, node
    if view:
        made._view = True
    return made


def _materialise(guided: Guided) -> torch.Tensor:
    """The ordinary tensor that a Guided stands for, computed if need be; the same object every time."""
    if guided._value is None:
        with guided._call.lock:
            if guided._value is None:
                shown = guided._call.show(guided._node)
                guided._value = shown.detach() if guided._view else shown
    return guided._value


def _plain(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_plain_value(value) for value in values)


def _plain_keywords(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Guided):
        return _materialise(value)
    return resolve(value) if isinstance(value, _CONTAINERS) else value


# -- what computes nothing -------------------------------------------------------------------------------------------

# A rule gives a tuple of its one result, or None: then the values are needed.
_Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], "tuple[Any] | None"]


def _waiting(value: Any) -> bool:
    """Whether `value` is a Guided that is still to be computed."""
    return isinstance(value, Guided) and value._value is None and (value._node is None or value._node.shown is None)


def _metadata(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    if not args or not isinstance(args[0], Guided) or args[0]._value is not None:
        return None
    with torch._C.DisableTorchFunctionSubclass():
        return (function(*args, **kwargs),)


def _gradient_metadata(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    # What is computed under grad mode may require gradients: only its value knows.
    return None if not args or not isinstance(args[0], Guided) or args[0]._call.mode[0] else _metadata(
        function, args, kwargs
    )  # fmt: skip


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> list[Any] | None:
    """Positional and keyword arguments in the order of `names`, as many as there are."""
    if not kwargs:
        return list(args) if len(args) <= len(names) else None
    rest = names[len(args) :][: len(kwargs)]
    return [*args, *(kwargs[name] for name in rest)] if set(rest) == kwargs.keys() else None


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _cut(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """``chunk``, ``split`` and ``tensor_split`` of the whole into its branches."""
    given = _arguments(args, kwargs, "input" if "input" in kwargs else "tensor", _CUT[function], "dim")
    if given is None or len(given) < 2 or not _waiting(given[0]) or given[0]._node is not None:
        return None
    call, into, axis = given[0]._call, given[1], given[2] if len(given) == 3 else 0
    by_size = function in (torch.split, torch.Tensor.split)
    wanted = call.rows if by_size else call.count
    pieces = by_size and isinstance(into, list | tuple) and list(into) == [call.rows] * call.count
    if not call.rows or not (pieces or (_is_number(into, int) and into == wanted)):
        return None
    if not _is_number(axis, int) or axis not in (0, -len(call.shape)):
        return None
    return (tuple(_wrap(call, node) for node in call.branches),)


def _index(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """``whole[a:b]`` that is one branch."""
    whole, index = args
    if not _waiting(whole) or whole._node is not None or type(index) is not slice or not whole._call.rows:
        return None
    if not all(end is None or _is_number(end, int) for end in (index.start, index.stop, index.step)):
        return None
    call = whole._call
    start, stop, step = index.indices(call.shape[0])
    if step != 1 or stop - start != call.rows or start % call.rows:
        return None
    return (_wrap(call, call.branches[start // call.rows]),)


def _same(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """``to`` and the like that change nothing give the very same tensor."""
    source, *wanted = args
    if not _waiting(source) or not kwargs.keys() <= {"dtype", "device", "non_blocking"}:
        return None
    call = source._call
    if function in _CASTS:
        return (source,) if not wanted and not kwargs and call.dtype == _CASTS[function] else None
    if function is torch.Tensor.contiguous:
        with torch._C.DisableTorchFunctionSubclass():
            return (source,) if not wanted and not kwargs and source.is_contiguous() else None
    wanted = [*wanted, *(value for name, value in kwargs.items() if name != "non_blocking" and value is not None)]
    for value in wanted:
        if isinstance(value, torch.dtype):
            if value != call.dtype:
                return None
        elif not isinstance(value, str | torch.device) or torch.device(value) != call.device:
            return None
    return (source,) if wanted else None


def _detach(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    if len(args) != 1 or kwargs or not _waiting(args[0]) or args[0]._call.mode[0]:
        return None
    return (_wrap(args[0]._call, args[0]._node, view=True),)


def _ratio(value: Any, dtype: torch.dtype) -> tuple[int, int] | None:
    """A finite number that torch takes as a scalar, as a fraction; None for anything else."""
    if type(value) is float and math.isfinite(value):
        return value.as_integer_ratio()
    if type(value) is torch.Tensor:
        if value.dim() or value.device.type != "cpu" or value.dtype != dtype or value.requires_grad:
            return None
        value = value.item()
    if _is_number(value, _INTEGRAL):
        return (int(value), 1) if -(2**63) <= value < 2**63 else None
    if isinstance(value, _FLOATING) and math.isfinite(value):
        numerator, denominator = value.as_integer_ratio()
        return int(numerator), int(denominator)
    return None


_INTEGRAL, _FLOATING = (int, np.integer), (float, np.floating)
_ONE, _ZERO = (1, 1), (0, 1)


def _add(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """Sums: a + alpha·b, a − alpha·b, b − alpha·a."""
    alpha, rest = _ONE, kwargs
    if kwargs:
        rest = {name: value for name, value in kwargs.items() if name != "alpha"}
        if "alpha" in kwargs:
            found = None if isinstance(kwargs["alpha"], torch.Tensor) else _ratio(kwargs["alpha"], torch.float64)
            if found is None:
                return None
            alpha = found
    given = _arguments(args, rest, "input", "other")
    if given is None or len(given) != 2:
        return None
    first, second = given if function not in _REVERSED else reversed(given)
    sign = 1 if function in _SUMS else -1
    return _linear(function, args, kwargs, (first, _ONE), (second, (sign * alpha[0], alpha[1])))


def _multiply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    given = _arguments(args, kwargs, "input", "other")
    if given is None or len(given) != 2:
        return None
    source, number = given if isinstance(given[0], Guided) else reversed(given)
    if not isinstance(source, Guided):
        return None
    factor = _ratio(number, source._call.dtype)
    return None if factor is None else _linear(function, args, kwargs, (source, factor))


def _divide(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    given = _arguments(args, kwargs, "input", "other")
    if given is None or len(given) != 2 or not isinstance(given[0], Guided):
        return None
    by = _ratio(given[1], given[0]._call.dtype)
    if by is None or not by[0]:
        return None
    sign = 1 if by[0] > 0 else -1
    return _linear(function, args, kwargs, (given[0], (sign * by[1], abs(by[0]))))


def _alone(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """−a, and a copy of a."""
    if len(args) != 1 or kwargs:
        return None
    return _linear(function, args, kwargs, (args[0], _ONE if function in _COPIES else (-1, 1)))


def _lerp(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """Interpolation: a + weight·(b − a)."""
    given = _arguments(args, kwargs, "input", "end", "weight")
    if given is None or len(given) != 3 or not isinstance(given[0], Guided) or not isinstance(given[1], Guided):
        return None
    weight = _ratio(given[2], given[0]._call.dtype)
    if weight is None:
        return None
    return _linear(function, args, kwargs, (given[0], (weight[1] - weight[0], weight[1])), (given[1], weight))


def _linear(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *terms: tuple[Any, tuple[int, int]]
) -> tuple[Any] | None:
    """Record an operation that gives the sum of `terms`, each a combination of branches, or zero, and its factor."""
    call: _Call | None = None
    operands = []
    total, denominator, mentioned = [0], 1, 0
    for value, (above, below) in terms:
        if isinstance(value, Guided):
            node = value._node
            if node is None or value._value is not None or (call is not None and value._call is not call):
                return None
            operands.append(node)
            below *= node.denominator
            if call is None:
                call, denominator, total = value._call, below, [weight * above for weight in node.weights]
            else:
                left, right = (1, above) if below == denominator else (below, above * denominator)
                total = [a * left + b * right for a, b in zip(total, node.weights, strict=True)]
                denominator = denominator if below == denominator else denominator * below
            mentioned |= node.mentioned
        elif isinstance(value, torch.Tensor) or _ratio(value, torch.float64) != _ZERO:
            return None
    if call is None or call.dtype not in _FLOATS:
        return None
    kept = tuple([_kept(value) for value in args])
    kept_keywords = {name: _kept(value) for name, value in kwargs.items()} if kwargs else kwargs
    node = _Node(total, denominator, mentioned, function, kept, kept_keywords, operands, _mode())
    with call.lock:  # what is shown may be written to at any time
        for operand in operands:
            if operand.shown is not None:
                return None
        call.watch(node)
    return (_wrap(call, node),)


def _kept(value: Any) -> Any:
    """An argument as it is now."""
    if isinstance(value, Guided):
        return value._node
    return value.clone() if isinstance(value, torch.Tensor) else value


def _named(*names: str) -> list[Any]:
    """The functions of these names in torch and torch.Tensor."""
    return [getattr(home, name) for name in names for home in (torch, torch.Tensor) if hasattr(home, name)]


def _getters(*names: str) -> list[Any]:
    return [getattr(torch.Tensor, name).__get__ for name in names]


_SUMS = frozenset(_named("add", "__add__", "__radd__"))
_REVERSED = frozenset(_named("rsub", "__rsub__"))
_COPIES = frozenset(_named("clone"))
_CUT = {
    **dict.fromkeys(_named("chunk"), "chunks"),
    **dict.fromkeys(_named("tensor_split"), "indices_or_sections"),
    torch.split: "split_size_or_sections",
    torch.Tensor.split: "split_size",
}
_CASTS = {
    torch.Tensor.float: torch.float32,
    torch.Tensor.double: torch.float64,
    torch.Tensor.half: torch.float16,
    torch.Tensor.bfloat16: torch.bfloat16,
}
_RULES: dict[Any, _Rule] = {
    **dict.fromkeys(_CUT, _cut),
    torch.Tensor.__getitem__: _index,
    **dict.fromkeys([torch.Tensor.to, torch.Tensor.contiguous, *_CASTS], _same),
    **dict.fromkeys(_named("detach"), _detach),
    **dict.fromkeys([*_SUMS, *_REVERSED, *_named("sub", "subtract", "__sub__")], _add),
    **dict.fromkeys(_named("mul", "multiply", "__mul__", "__rmul__"), _multiply),
    **dict.fromkeys(_named("div", "divide", "true_divide", "__truediv__", "__div__"), _divide),
    **dict.fromkeys(_named("neg", "negative", "__neg__", "clone"), _alone),
    **dict.fromkeys(_named("lerp"), _lerp),
    **dict.fromkeys(
        [
            *_named("size", "stride", "dim", "ndimension", "numel", "nelement", "element_size", "__len__"),
            *_named("is_floating_point", "is_complex", "is_signed", "is_contiguous", "get_device"),
            *_getters("shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes"),
            *_getters("is_cuda", "is_cpu", "is_mps", "is_meta", "is_sparse", "is_quantized", "is_mkldnn"),
        ],
        _metadata,
    ),
    **dict.fromkeys(_getters("requires_grad", "is_leaf", "grad_fn", "grad"), _gradient_metadata),
}
