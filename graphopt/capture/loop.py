"""Records one trajectory of a sampler as a `LoopProgram`: a dispatch mode sees the operations, a wrapper the modules.

Modules are called as they are, compiled or not, and appear as one node each, whatever they do inside. Everything else
that the thread computes is recorded operation by operation: the price is some microseconds each, for one trajectory.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode, _push_mode
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from graphopt import errors
from graphopt.capture.tracing import METHODS
from graphopt.ir.loop import LoopCall, LoopProgram, ModuleCall, written_beside

_here = threading.local()
_watching = 0  # recordings under way in the process
_replaced: Callable[..., Any] | None = None  # the `nn.Module.__call__` that `_watched_call` stands in for
_FEW = 4  # elements of an argument whose numbers are noted
_LIBRARIES = (*(f"{Path(str(m.__file__)).parent}{os.sep}" for m in (torch, errors)), contextlib.__file__)


class Recording(TorchDispatchMode):
    """What one thread computes while this mode is active.

    Parameters
    ----------
    names : name by module, for those that should be called otherwise than by their class.
    """

    def __init__(self, names: dict[torch.nn.Module, str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.names = fx.Graph(), dict(names or {})
        self.modules: dict[str, torch.nn.Module] = {}
        self.examples: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}  # arguments of each module's first call
        self.calls: list[LoopCall] = []
        self._nodes = WeakTensorKeyDictionary()
        self._memories: dict[int, list[Any]] = {}  # address of memory → weak references to tensors in it

    def program(self, name: str = "loop") -> LoopProgram:
        """All that was recorded up to now."""
        return LoopProgram(self.graph, tuple(self.calls), name)

    # -- operations --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_map_only(torch.Tensor, self._node, (args, kwargs))  # before it runs: it may write
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, *given)
        node.meta["source"] = _user_line()
        self._returned(node, result)
        for value in _written_to(func, args, kwargs):
            self._written(value, node)
        return result

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        known: fx.Node | None = self._nodes.get(tensor)
        if known is None:
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first):
                known = self.graph.placeholder(f"outside_{len(self._nodes)}")
            self._name(known, tensor)
        return known

    def _returned(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            self._name(node, result)
        elif isinstance(result, list | tuple):
            for position, entry in enumerate(result):
                if isinstance(entry, torch.Tensor):
                    self._name(self.graph.call_function(operator.getitem, (node, position)), entry)

    def _name(self, node: fx.Node, tensor: torch.Tensor) -> None:
        node.meta["val"] = torch.empty_like(tensor, device="meta") if tensor.layout is torch.strided else None
        if tensor.ndim == 0 and tensor.device.type == "cpu" and tensor.dtype != torch.bool and not tensor.is_complex():
            node.meta["value"] = tensor.item()
        self._nodes[tensor] = node
        self._memories.setdefault(_memory(tensor), []).append(weakref.ref(tensor))

    def _written(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """A tensor was written to: it is the result now, and what else lies in its memory may have changed with it."""
        lying = {id(other): other for ref in self._memories.get(_memory(tensor), ()) if (other := ref()) is not None}
        for other in lying.values():
            if other is not tensor and other in self._nodes:
                beside = self.graph.call_function(written_beside, (self._nodes[other], node))
                beside.meta["val"] = self._nodes[other].meta["val"]
                self._nodes[other] = beside
        self._name(node, tensor)

    # -- modules -----------------------------------------------------------------------------------------------------

    def call(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module as it is, and record one node for it."""
        with self._stepped_aside():
            return self._call(module, args, kwargs)

    def _call(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.names.setdefault(module, self._new_name(module))
        self.modules.setdefault(name, module)
        self.examples.setdefault(name, (args, kwargs))
        bound = _bound(module, args, kwargs)
        keyed, _ = tree_flatten_with_path(bound)
        tensors = [(_path(path), leaf) for path, leaf in keyed if isinstance(leaf, torch.Tensor)]
        numbers: dict[str, tuple[float, ...]] = {
            _path(path): (leaf,) for path, leaf in keyed if type(leaf) in (int, float)
        }
        numbers.update({path: n for path, leaf in tensors if (n := _numbers(leaf))})
        nodes = tuple(self._node(leaf) for _, leaf in tensors)
        result = _module_call(module, *args, **kwargs)
        node = self.graph.call_function(ModuleCall(name, tuple(path for path, _ in tensors)), nodes)
        node.meta["source"] = _user_line()
        leaves, _ = tree_flatten(result)
        self._returned(node, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        self.calls.append(LoopCall(node, numbers))
        return result

    def _new_name(self, module: torch.nn.Module) -> str:
        base = type(module).__name__
        taken = {*self.names.values()}
        return next(name for k in range(len(taken) + 1) if (name := f"{base}_{k}" if k else base) not in taken)

    @contextlib.contextmanager
    def _stepped_aside(self) -> Iterator[None]:
        """Out of the way while a module runs, where no mode of the user's lies on top."""
        aside = _get_current_dispatch_mode() is self
        if aside:
            _pop_mode()
        _here.recording = None
        try:
            yield
        finally:
            _here.recording = self
            if aside:
                _push_mode(self)


@contextlib.contextmanager
def record(
    names: dict[torch.nn.Module, str] | None = None, *, kind: type[Recording] = Recording
) -> Iterator[Recording]:
    """Record what the calling thread computes inside ``with record() as recording:``, in a recording of this kind.

    Nothing is recorded, and the recording stays empty, where the thread is recorded already.
    """
    recording = kind(names)
    if active():
        yield recording
        return
    _watch(1)
    _here.recording = recording
    recording.__enter__()  # type: ignore[no-untyped-call]
    try:
        yield recording
    finally:
        _leave(recording)
        _here.recording = None
        _watch(-1)


def _leave(recording: Recording) -> None:
    """Take the recording off the stack of modes, from below those that a user entered inside and has not left."""
    above = []
    while (mode := _get_current_dispatch_mode()) is not None and mode is not recording:
        above.append(_pop_mode())
    if mode is not None:
        recording.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    for mode in reversed(above):
        _push_mode(mode)


def active() -> bool:
    """Whether the calling thread is recorded right now."""
    return getattr(_here, "recording", None) is not None


def _watch(change: int) -> None:
    """While any thread records, calls of modules pass by `_watched_call`; whoever replaced the method keeps it."""
    global _watching, _replaced
    with METHODS:
        _watching += change
        if _watching and _replaced is None:
            _replaced, torch.nn.Module.__call__ = torch.nn.Module.__call__, _watched_call  # type: ignore[method-assign]
        elif not _watching and torch.nn.Module.__call__ is _watched_call:
            torch.nn.Module.__call__, _replaced = _replaced, None  # type: ignore[method-assign,assignment]


def _watched_call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    recording: Recording | None = getattr(_here, "recording", None)
    if recording is None:
        return _module_call(module, *args, **kwargs)
    return recording.call(module, args, kwargs)


def _module_call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Another thread may have ended the last recording since this call began.
    return (_replaced or torch.nn.Module.__call__)(module, *args, **kwargs)


def _written_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes to, those in lists and named by keyword (``out``) included."""
    schema = getattr(func, "_schema", None)  # operators of higher order have none
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _bound(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by parameter name, as far as they fit."""
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"argument_{k}": value for k, value in enumerate(args)}, **kwargs}


def _path(path: Any) -> str:
    return keystr(path).replace("']['", ".").replace("][", ".").strip("[]'").replace("'", "")


def _numbers(tensor: torch.Tensor) -> tuple[float, ...]:
    if tensor.device.type != "cpu" or tensor.numel() > _FEW or tensor.is_complex():
        return ()
    return tuple(tensor.detach().reshape(-1).tolist())


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _user_line() -> str:
    """The line at work that belongs neither to torch nor to graphopt."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_LIBRARIES):
            return f"{_short(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _short(path: str) -> str:
    parts = path.replace("\\", "/").split("/")
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return parts[-1]
