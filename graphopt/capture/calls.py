"""A call of a module taken apart: tensors that vary, numbers that become tensors, and everything else, which is bound.

Two calls with the same `signature` can share one captured Program.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from graphopt.errors import CaptureError

# Values that are what they are: equal ones are interchangeable.
_COMPARABLE = (
    int, str, bytes, type(None), type, enum.Enum, types.FunctionType, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One call's arguments, flat.

    Attributes
    ----------
    leaves : all leaves of the bound arguments in order; numbers named by `as_tensors` are 0-d tensors.
    spec : how the leaves nest.
    signature : hashable; equal for calls that one Program can serve: nesting, shapes, dtypes, devices and strides of
        tensors, which of them are one and the same object, and the values of everything else.
    numbers : how many Python numbers became tensors.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    signature: Hashable
    numbers: int = 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]


class CallTaker:
    """Takes calls of one function apart, by parameter name, so that positional and keyword calls are alike.

    Parameters
    ----------
    forward : the function that is called.
    as_tensors : names of parameters whose Python numbers vary from step to step (time, guidance). They become 0-d
        tensors by the rule of diffusers' `get_time_embed`: float → float64, int → int64.
    """

    def __init__(self, forward: Callable[..., Any], as_tensors: frozenset[str] = frozenset()) -> None:
        self._signature = inspect.signature(forward)
        self._as_tensors = as_tensors
        parameters = self._signature.parameters.values()
        # Those before parameters that have no name for the caller are left to `bind`.
        plain = all(p.kind is not p.POSITIONAL_ONLY for p in parameters)
        self._positional = [p.name for p in parameters if plain and p.kind is p.POSITIONAL_OR_KEYWORD]
        self._named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self._required = frozenset(p.name for p in parameters if p.default is p.empty and p.kind not in variadic)
        self._variadic = {
            name: parameter.kind
            for name, parameter in self._signature.parameters.items()
            if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        }

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self._signature.parameters)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, in the order of the parameters. Raises TypeError where they do not fit."""
        if len(args) <= len(self._positional) and kwargs.keys() <= self._named:
            # As `bind` would, in a tenth of its time.
            given = dict(zip(self._positional, args, strict=False))
            if given.keys().isdisjoint(kwargs):
                given.update(kwargs)
                if given.keys() >= self._required:
                    return {name: given[name] for name in self._signature.parameters if name in given}
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call taken apart. Raises CaptureError for arguments that cannot be compared between calls."""
        arguments, numbers = self._bound(args, kwargs), 0
        for name in self._as_tensors:
            value = arguments.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                arguments[name] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
                numbers += 1
        leaves, spec, shape = _flat(arguments)
        parts: list[Hashable] = []
        first: dict[int, int] = {}  # where an argument that is passed twice occurs first
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                if type(leaf) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
                    raise CaptureError(f"an argument is a {type(leaf).__name__}, which graphopt does not trace")
                same = first.setdefault(id(leaf), position)
                parts.append((leaf.shape, leaf.dtype, leaf.device, leaf.stride(), same))
            elif isinstance(leaf, float | complex):
                parts.append((type(leaf), repr(leaf)))  # tells -0.0 from 0.0, and finds NaN equal to itself
            elif isinstance(leaf, _COMPARABLE):
                parts.append((type(leaf), leaf))
            else:
                raise CaptureError(f"an argument is or holds a {type(leaf).__name__}, whose state graphopt cannot see")
        signature = (shape, tuple(parts))
        return Call(tuple(leaves), spec, signature, numbers)

    def paths(self, call: Call) -> list[str]:
        """The key path of every leaf, such as ``added_cond_kwargs.resolution``."""
        tree = tree_unflatten(list(range(len(call.leaves))), call.spec)
        keyed, _ = tree_flatten_with_path(tree)
        return [key_path(path) for path, _ in keyed]

    def rebuild(self, leaves: list[Any], spec: TreeSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leaves back into ``args, kwargs`` of the function."""
        bound = inspect.BoundArguments(self._signature, tree_unflatten(leaves, spec))
        return bound.args, bound.kwargs


def _flat(arguments: dict[str, Any]) -> tuple[list[Any], TreeSpec, Hashable]:
    """The leaves of `arguments`, how they nest, and the same as something to compare: equal for equal nesting."""
    leaves, specs, shape = list[Any](), list[TreeSpec](), list[Hashable]()
    for name, value in arguments.items():
        if isinstance(value, _LEAVES):
            leaves.append(value)
            specs.append(_LEAF)
            shape.append(name)
        else:
            found, spec = tree_flatten(value)
            leaves += found
            specs.append(spec)
            shape.append((name, str(spec)))
    return leaves, TreeSpec(dict, list(arguments), specs), tuple(shape)


_LEAVES = (torch.Tensor, int, float, str, type(None))
_LEAF = tree_flatten(0)[1]


def key_path(path: Any) -> str:
    """Where a leaf lies among arguments, as reports write it: ``added_cond_kwargs.resolution``."""
    return keystr(path).replace("']['", ".").replace("][", ".").strip("[]'").replace("'", "")
