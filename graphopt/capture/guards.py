"""Whether a module is still as it was when its Program was captured: everything but the values of its tensors.

An exported graph has the module's Python state baked in: training flags, attention processors, FreeU's scales, active
adapters, submodules. `ModuleGuard` remembers that state and compares it before every call, so that a change between two
steps of one run is seen as well. Most values are compared by identity, which is fast and never wrong; where identity
fails, contents of the same type decide. And most of the time nothing is compared: a module with 500 submodules holds
6,000 attributes, which after a step are in no cache, but a dict that nobody wrote to (`graphopt.capture.tags`) holds
what it held.
"""

from __future__ import annotations

import enum
import functools
import gc
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from graphopt.capture import tags

TABLES = ("_modules", "_parameters", "_buffers")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Machinery of nn.Module that does not decide what forward computes without gradients.
SKIPPED = frozenset(
    {
        "_compiled_call_impl", "_non_persistent_buffers_set", "_is_full_backward_hook", "_backward_hooks",
        "_backward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)  # fmt: skip
SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_OPAQUE = (
    torch.Tensor, type, enum.Enum, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, *SCALARS,
)  # fmt: skip


class ModuleGuard:
    """A snapshot of a module tree's Python state that can say whether it still holds.

    Compared are, for every submodule: its class, and the methods and attributes of that class; its attributes, and what
    lists, dicts, plain objects (attention processors, scales of adapters), partial functions and closures among them
    hold in turn, and the code and defaults of functions; arrays and small tensors kept as plain attributes, by
    contents, since a forward may read numbers from them; which submodules it has; which parameters and buffers it has,
    which of them are None, and which are one and the same tensor; and that no hooks are registered. Not seen: global
    variables that a forward reads, and attributes in ``__slots__``.

    Attributes
    ----------
    generation : another object whenever anything may have been written, be it of no consequence to the Program: as long
        as it is the same, the module holds the very same parameters and buffers.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        parts = list(module.modules())
        self._classes: dict[type, tuple[Any, list[Any]]] = {}
        self._forwards = {type(part): type(part).forward for part in parts}  # torch's own classes included
        self._arrays: list[tuple[Any, bytes]] = []
        self._states: list[_Attributes] = []
        self._holders: list[_Elements] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any]] = []
        self._hooks = [part.__dict__[name] for part in parts for name in HOOKS]
        seen = {id(part) for part in parts}
        for part in parts:
            self._remember_class(type(part))
            self._states.append(_Attributes(part))
            for key, value in part.__dict__.items():
                if key not in SKIPPED and key not in TABLES and key not in HOOKS:
                    self._follow(value, seen)
        self._children = [part._modules for part in parts if part._modules]
        self._submodules = [list(table.items()) for table in self._children]
        self._flat = list(chain.from_iterable(table.values() for table in self._children))
        self._tables = [t for part in parts for t in (part._parameters, part._buffers)]
        self._filled = [t for t in self._tables if t]
        self._sizes = list(map(len, self._tables))
        self._shape = _arrangement(self._filled)
        self._ids = _ids(self._filled)
        self._expect()
        self._watch(parts)

    def _follow(self, value: Any, seen: set[int]) -> None:
        """Remember what a value holds that can change while it stays the same object."""
        if is_read_by_value(value) and id(value) not in seen:
            seen.add(id(value))
            self._arrays.append((value, contents(value)))
        if isinstance(value, types.FunctionType) and id(value) not in seen and foreign_name(value.__module__):
            seen.add(id(value))
            for cell in value.__closure__ or ():
                self._cells.append((cell, content_of(cell)))
                self._follow(content_of(cell), seen)
            self._functions.append((value, _made_of(value)))
            self._follow(value.__defaults__, seen)
            self._follow(value.__kwdefaults__, seen)
        if isinstance(value, _OPAQUE) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, functools.partial):
            for element in (value.func, *value.args, value.keywords):
                self._follow(element, seen)
        if isinstance(value, list | tuple | set | frozenset | dict | deque):
            if not isinstance(value, tuple | frozenset):
                self._holders.append(_Elements(value))
            for element in value.values() if isinstance(value, dict) else value:
                self._follow(element, seen)
        if isinstance(value, types.MethodType):
            self._follow(value.__self__, seen)
            return
        inner = getattr(value, "__dict__", None)
        if isinstance(inner, dict) and (isinstance(value, torch.nn.Module) or foreign(type(value))):
            self._remember_class(type(value))
            self._states.append(_Attributes(value))
            for element in inner.values():
                self._follow(element, seen)

    def _remember_class(self, kind: type) -> None:
        """Methods and attributes of a class and of its bases, those of torch and of Python left out."""
        for base in kind.__mro__:
            if base not in self._classes and foreign(base):
                attributes = vars(base)
                self._classes[base] = (attributes, list(attributes.values()))

    def _watch(self, parts: list[torch.nn.Module]) -> None:
        """Find the dicts whose tags stand for what the snapshot holds, and what else has to be looked at every time."""
        self.generation = object()
        self._seen: tuple[list[Any], list[int]] | None = None
        owners = [state.owner for state in self._states if state.bound]
        self._owners, self._inner, self._kinds = owners, list(map(_dict_of, owners)), list(map(type, owners))
        # In one call, without a look-up by name: of most objects the collector finds the class and the dict.
        self._plain = [owner for owner in owners if _is_plain(owner)]
        self._odd = [owner for owner in owners if not _is_plain(owner)]
        self._empty = [*self._hooks, *(table for part in parts for table in map(vars(part).get, TABLES) if not table)]
        self._loose = [holder for holder in self._holders if not holder.tagged]
        self._orders = [holder for holder in self._holders if holder.tagged and holder.ordered]
        held = [holder.holder for holder in self._holders if holder.tagged]
        classes = [tags.of_class(kind) for kind in self._classes]
        self._watched = [*(state.state for state in self._states), *self._children, *self._filled, *held]
        self._watched += [attributes for attributes in classes if attributes is not None]
        self._tagged = tags.kept() and None not in classes

    def _look(self) -> tuple[list[Any], list[int]]:
        """The class and the dict of every object, and the tags of all dicts, as they are now."""
        shells = gc.get_referents(*self._plain)
        shells += map(type, self._odd)
        shells += map(_dict_of, self._odd)
        return shells, tags.tags(self._watched)

    def holds(self) -> bool:
        """Whether nothing but tensor values has changed since the snapshot."""
        # Before anything is compared: what another thread writes meanwhile must not count as compared.
        now = self._look() if self._tagged else None
        if now is None or self._seen is None or not _same_look(now, self._seen) or any(self._empty):
            self.generation = object()
            if not self._same():
                return False
            self._seen = now
        return self._same_contents()

    def _same_contents(self) -> bool:
        """Whether all is as it was that no tag tells of."""
        for holder in self._loose:
            if not holder.same():
                return False
        for holder in self._orders:
            if list(holder.holder) != holder.keys:
                return False
        for cell, kept in self._cells:
            if not _alike(content_of(cell), kept):
                return False
        for function, made in self._functions:
            if not all(map(_alike, _made_of(function), made)):
                return False
        for array, kept in self._arrays:
            if contents(array) != kept:
                return False
        return all(kind.forward is forward for kind, forward in self._forwards.items())

    def _same(self) -> bool:
        """Whether all is as it was that is held in dicts, compared value by value."""
        if any(self._hooks) or list(map(type, self._owners)) != self._kinds:
            return False
        if not all(map(is_, map(_dict_of, self._owners), self._inner)):
            return False
        if list(map(len, self._tables)) != self._sizes:
            return False
        if not self._same_states():
            return False
        for holder in self._holders:
            if not holder.same():
                return False
        for attributes, kept in self._classes.values():
            if len(attributes) != len(kept) or not all(map(is_, attributes.values(), kept)):
                return False
        return self._same_children() and self._same_tables()

    def _same_states(self) -> bool:
        if list(map(len, self._dicts)) == self._lengths:
            try:
                live = [read(state) for read, state in self._reads]
            except KeyError:
                return False
            if all(map(is_, chain.from_iterable(live), self._values)):
                return True
        if not all(state.same() for state in self._states):
            return False
        self._expect()
        return True

    def _expect(self) -> None:
        """Remember all attributes once more in one flat list, which is compared without a call per module."""
        self._dicts = [state.state for state in self._states]
        self._lengths = list(map(len, self._dicts))
        self._reads = [(state.getter, state.state) for state in self._states if state.getter is not None]
        self._values = list(chain.from_iterable(state.kept for state in self._states if state.getter is not None))

    def _same_children(self) -> bool:
        live = list(chain.from_iterable(map(dict.values, self._children)))
        if len(live) == len(self._flat) and all(map(is_, live, self._flat)):
            return True
        return all(
            len(table) == len(kept) and all(table.get(name) is child for name, child in kept)
            for table, kept in zip(self._children, self._submodules, strict=True)
        )

    def _same_tables(self) -> bool:
        """Parameters may be other objects than before, as long as they are arranged alike."""
        ids = _ids(self._filled)
        if ids == self._ids:
            return True
        if _arrangement(self._filled) != self._shape:
            return False
        self._ids = ids
        return True


def _ids(tables: list[dict[str, Any]]) -> list[int]:
    return list(map(id, chain.from_iterable(map(dict.values, tables))))


def _arrangement(tables: list[dict[str, Any]]) -> list[tuple[str, Any, int]]:
    """Name, class, and place of the first occurrence of every parameter and buffer: None and ties show."""
    first: dict[int, int] = {}
    return [
        (name, type(value), first.setdefault(id(value), position) if value is not None else -1)
        for position, (name, value) in enumerate(chain.from_iterable(map(dict.items, tables)))
    ]


def _same_look(now: tuple[list[Any], list[int]], before: tuple[list[Any], list[int]]) -> bool:
    return now[1] == before[1] and len(now[0]) == len(before[0]) and all(map(is_, now[0], before[0]))


_dict_of = attrgetter("__dict__")
_made_of = attrgetter("__code__", "__defaults__", "__kwdefaults__")


def _is_plain(owner: Any) -> bool:
    """Whether an object refers to its class and its ``__dict__`` and to nothing else."""
    found = gc.get_referents(owner)
    return len(found) == 2 and {id(entry) for entry in found} == {id(type(owner)), id(owner.__dict__)}


class _Attributes:
    """The ``__dict__`` of a module or of a plain object, without what is skipped.

    Attributes
    ----------
    bound : whether the object gives this very dict whenever it is asked; else the dict stands for itself.
    """

    __slots__ = ("bound", "getter", "kept", "owner", "size", "state")

    def __init__(self, owner: Any) -> None:
        state = owner.__dict__
        names = tuple(name for name in state if name not in SKIPPED)
        self.owner, self.bound = owner, owner.__dict__ is state
        self.state, self.size = state, len(state) - ("_compiled_call_impl" in state)
        self.getter: Callable[[Any], tuple[Any, ...]] | None = _getter(names)
        self.kept = self.getter(state) if self.getter else ()

    def same(self) -> bool:
        state = self.state
        if len(state) - ("_compiled_call_impl" in state) != self.size:
            return False
        if self.getter is None:
            return True
        try:
            live = self.getter(state)
        except KeyError:
            return False
        if all(map(is_, live, self.kept)):
            return True
        if not all(map(_alike, live, self.kept)):
            return False
        self.kept = live
        return True


class _Elements:
    """What a list, set or dict holds, by identity and order, or else by content.

    Attributes
    ----------
    tagged : whether it is a dict whose tag stands for its contents.
    ordered : whether it may change its order without changing its contents, and its tag.
    """

    __slots__ = ("holder", "kept", "keys", "ordered", "tagged")

    def __init__(self, holder: Any) -> None:
        kind = type(holder)
        self.holder, self.ordered = holder, isinstance(holder, OrderedDict)
        base: Any = OrderedDict if self.ordered else dict
        self.tagged = isinstance(holder, dict) and (kind.__iter__, kind.values) == (base.__iter__, base.values)
        self.keys = list(holder) if isinstance(holder, dict) else None
        self.kept = list(_elements(holder))

    def same(self) -> bool:
        holder = self.holder
        if len(holder) != len(self.kept) or (self.keys is not None and list(holder) != self.keys):
            return False
        return all(map(is_, _elements(holder), self.kept)) or all(map(_alike, _elements(holder), self.kept))


def _elements(holder: Any) -> Iterable[Any]:
    return holder.values() if isinstance(holder, dict) else holder


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]] | None:
    if not names:
        return None
    if len(names) == 1:
        (name,) = names
        return lambda state: (state[name],)
    return itemgetter(*names)


def _alike(live: Any, kept: Any) -> bool:
    """Whether two values are the same object, or immutable and equal in type and content."""
    if live is kept:
        return True
    if type(live) is not type(kept):
        return False
    if type(live) is float or type(live) is complex:
        return repr(live) == repr(kept)  # tells -0.0 from 0.0, and finds NaN equal to itself
    if type(live) in SCALARS:
        return bool(live == kept)
    if type(live) in (tuple, frozenset):
        return len(live) == len(kept) and all(map(_alike, live, kept))
    return False


def foreign(kind: type) -> bool:
    """Whether objects of this class are worth looking into (torch's own and Python's are not)."""
    return foreign_name(kind.__module__)


def foreign_name(module: str | None) -> bool:
    """Whether a module of this name is neither torch's, nor Python's, nor graphopt's own."""
    return (module or "").partition(".")[0] not in _OURS


_OURS = frozenset({"torch", "builtins", "threading", "_thread", "logging", "graphopt", "collections", "functools",
                   "numpy", "abc", "typing"})  # fmt: skip
_MOST_ELEMENTS = 1024  # of a plain tensor attribute that is compared by contents; larger ones enter the graph as inputs


def is_read_by_value(value: Any) -> bool:
    """Whether a graph may have a value's numbers baked in: a small tensor, an array."""
    if isinstance(value, torch.Tensor):
        return value.device.type == "cpu" and value.layout is torch.strided and value.numel() <= _MOST_ELEMENTS
    return isinstance(value, np.ndarray) and value.dtype != object


def contents(value: Any) -> bytes:
    """The numbers of a tensor or array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    found: bytes = value.tobytes()
    return found


def content_of(cell: types.CellType) -> Any:
    """What a variable of a closure holds; None where it holds nothing."""
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def interference(module: torch.nn.Module) -> str | None:
    """What besides ``forward`` would run in a call (hooks on any submodule, or a replaced ``forward``), or None."""
    for part in module.modules():
        if any(part.__dict__[name] for name in HOOKS):
            return "hooks are registered on the module or its submodules"
        if "forward" in part.__dict__:
            return "the forward of the module or of a submodule was replaced"
    return None


def watched() -> str | None:
    """Why nothing may be captured, built or compared right now, or None: a mode may change what operators do."""
    modes = [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()]
    seen = next((mode for mode in modes if not isinstance(mode, DeviceContext)), None)
    return f"the mode {type(seen).__name__} is active, and the call is not compiled yet" if seen is not None else None


# What `call_state` consists of.
CALL_STATE = (
    "float32 matmul precision", "deterministic algorithms", "oneDNN", "default dtype", "default device",
    "scaled_dot_product_attention",
)  # fmt: skip


def call_state() -> tuple[Any, ...]:
    """Global state that decides what a forward computes or which kernels torch picks, as `CALL_STATE` names it."""
    functional = torch.nn.functional
    return (
        torch._C._get_float32_matmul_precision(),
        torch._C._get_deterministic_algorithms(),
        torch._C._get_mkldnn_enabled(),
        torch.get_default_dtype(),
        torch._C._len_torch_function_stack() and str(torch.get_default_device()),
        functional.scaled_dot_product_attention,  # attention libraries replace it
    )


def outside(module: torch.nn.Module, tensors: list[torch.Tensor]) -> str | None:
    """Why a call cannot be served by a captured Program whatever it was captured from, or None."""
    if torch.is_grad_enabled() and (
        any(tensor.requires_grad for tensor in tensors)
        or any(weight.requires_grad for weight in chain(module.parameters(), module.buffers()))
    ):
        return "gradients are recorded (wrap the call in torch.no_grad())"
    if torch._C._is_any_autocast_enabled():
        return "autocast is active"
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return "another compiler is tracing"
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0:
        return "a function transform (torch.func or forward-mode derivatives) is active"
    registry = torch.nn.modules.module
    if registry._global_forward_hooks or registry._global_forward_pre_hooks:
        return "global module hooks are registered"
    return None


def twin(module: torch.nn.Module) -> torch.nn.Module | None:
    """The same module tree in new shells around the same tensors, for tracing; None where shells cannot be exchanged.

    Tracing exchanges a module's parameters for a while. Another thread may be running the module meanwhile.
    """
    parts = list(module.modules())
    inside = {id(part) for part in parts}
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):
        return None
    for part in parts:
        for name, value in part.__dict__.items():
            if name not in TABLES and any(id(found) in inside for found in _reachable(value)):
                return None
    shells = {id(part): object.__new__(type(part)) for part in parts}
    for part in parts:
        state = {**part.__dict__, **{name: dict(part.__dict__[name]) for name in TABLES}}
        state["_modules"] = {name: child and shells[id(child)] for name, child in part._modules.items()}
        state.pop("_compiled_call_impl", None)
        shells[id(part)].__dict__.update(state)
    return shells[id(module)]


def _reachable(value: Any, depth: int = 3) -> Iterator[Any]:
    """A value and what it directly refers to, as far as it can refer to a module."""
    if isinstance(value, _OPAQUE):
        return
    yield value
    if depth == 0:
        return
    if isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, list | tuple | set | frozenset | dict):
        for element in value.values() if isinstance(value, dict) else value:
            yield from _reachable(element, depth - 1)
    else:
        inner = getattr(value, "__dict__", None)
        if isinstance(inner, dict) and not isinstance(value, torch.nn.Module):
            for element in inner.values():
                yield from _reachable(element, depth - 1)
