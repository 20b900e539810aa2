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
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode, _push_mode
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from graphopt import errors
from graphopt.capture.calls import key_path
from graphopt.capture.export import in_package
from graphopt.capture.tracing import METHODS
from graphopt.ir.loop import LoopCall, LoopProgram, ModuleCall, written_beside

_here = threading.local()
_watching = 0  # recordings under way in the process
_replaced: Callable[..., Any] | None = None  # the `nn.Module.__call__` that `_watched_call` stands in for
_FEW = 4  # elements of an argument whose numbers are noted
# Folders of code that is nobody's sampler.
_LIBRARIES = (
    *(str(Path(path).parent) + os.sep for path in (torch.__file__, str(errors.__file__))),
    contextlib.__file__,
)


class Recording(TorchDispatchMode):
    """What one thread computes while this mode is active.

    Parameters
    ----------
    names : name by module, for those that should be called otherwise than by their class.
    closely : note what running the recorded operations again takes: values that were there before, how modules were
        called, and whatever decides results without being an operation. Those values stay alive with the recording.

    Attributes
    ----------
    outside : tensors that no recorded operation made, by placeholder.
    read : nodes whose values Python has seen, each with the line.
    obstacles : why running the operations again would not do what was recorded, each with the line.
    """

    def __init__(self, names: dict[torch.nn.Module, str] | None = None, *, closely: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.closely = closely
        self.outside: dict[fx.Node, torch.Tensor] = {}
        self.read: list[tuple[fx.Node, str]] = []
        self.obstacles: list[tuple[str, str]] = []
        self._draws = _Draws()
        if closely:
            self._draws.watch(default_generators())
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
        if self.closely:
            self._look(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.closely:
            self._draws.after()
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
            if self.closely:
                self._appears(known, tensor)
            self._name(known, tensor)
        elif self.closely and known.target is written_beside:
            self.stands_against("a tensor is read after a view of it, or what it is a view of, was written into")
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
        node.meta["device"] = tensor.device
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

    # -- what no operation tells -------------------------------------------------------------------------------------

    def node(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of a tensor, if it is known."""
        known: fx.Node | None = self._nodes.get(tensor)
        return known

    def sees(self, tensor: torch.Tensor) -> None:
        """Note that Python reads the values of a tensor."""
        self.read.append((self._node(tensor), _user_line()))

    def stands_against(self, reason: str) -> None:
        """Note why running the operations again would not do what was recorded."""
        self.obstacles.append((reason, _user_line()))

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What an operation reads for Python, writes to, and draws."""
        if torch.Tag.data_dependent_output in func.tags or func is torch.ops.aten.equal.default:
            for value in args:
                if isinstance(value, torch.Tensor):
                    self.sees(value)
        for value in args[:1] if func._schema.is_mutable else ():
            if isinstance(value, torch.Tensor) and self._from_outside(value):
                self.stands_against("an operation writes into a tensor that was there before")
        if torch.Tag.nondeterministic_seeded in func.tags:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
            self._draw(given or default_generators())

    def _draw(self, generators: list[torch.Generator]) -> None:
        if self._draws.before(generators):
            self.stands_against("a random generator is seeded, or its state is set")

    def watch(self, generators: Iterable[torch.Generator]) -> None:
        """Note what becomes of generators, besides torch's own."""
        self._draws.watch(generators)

    def _from_outside(self, tensor: torch.Tensor) -> bool:
        memory = _memory(tensor)
        return any(_memory(other) == memory for other in self.outside.values())

    def _appears(self, node: fx.Node, tensor: torch.Tensor) -> None:
        """A tensor that no operation made must not lie where one did make a tensor."""
        memory = _memory(tensor)
        alive = [other for reference in self._memories.get(memory, ()) if (other := reference()) is not None]
        if memory and alive and not self._from_outside(tensor):
            self.stands_against("a tensor shares memory with another in a way that no operation tells")
        self.outside[node] = tensor

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
        tensors = [(key_path(path), leaf) for path, leaf in keyed if isinstance(leaf, torch.Tensor)]
        numbers: dict[str, tuple[float, ...]]
        numbers = {key_path(path): (float(leaf),) for path, leaf in keyed if type(leaf) in (int, float)}
        numbers.update({path: n for path, leaf in tensors if (n := _numbers(leaf))})
        nodes = tuple(self._node(leaf) for _, leaf in tensors)
        if self.closely:
            self._draw(default_generators())
        result = _module_call(module, *args, **kwargs)
        self._draws.after()
        node = self.graph.call_function(ModuleCall(name, tuple(path for path, _ in tensors)), nodes)
        node.meta["source"] = _user_line()
        leaves, _ = tree_flatten(result)
        if self.closely:
            self._called(node, module, [leaf for _, leaf in tensors], (args, kwargs), leaves)
        self._returned(node, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        self.calls.append(LoopCall(node, numbers))
        return result

    def _called(
        self, node: fx.Node, module: torch.nn.Module, tensors: list[torch.Tensor], arguments: Any, results: list[Any]
    ) -> None:
        """How a module was called, and what keeps it from being called so again."""
        place = {id(tensor): position for position, tensor in enumerate(tensors)}
        leaves, spec = tree_flatten(arguments)
        node.meta["arguments"] = (
            spec,
            [
                Position(place[id(leaf)]) if isinstance(leaf, torch.Tensor) and id(leaf) in place else leaf
                for leaf in leaves
            ],
        )
        name = type(module).__name__
        if module.training:
            self.stands_against(f"{name} is in training mode")
        if torch._C._is_any_autocast_enabled():
            self.stands_against(f"{name} is called under autocast")
        for leaf in results:
            if not isinstance(leaf, torch.Tensor) and leaf is not None:
                self.stands_against(f"{name} returns a {type(leaf).__name__} besides tensors")
            elif leaf is not None and leaf.requires_grad:
                self.stands_against(f"gradients flow through {name}: compile and call it under torch.no_grad()")
        node.meta["inference"] = torch.is_inference_mode_enabled()

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
        reads = _pop_reads() if self.closely else None
        _here.recording = None
        try:
            yield
        finally:
            _here.recording = self
            if reads is not None:
                push_function_mode(reads)
            if aside:
                _push_mode(self)


@dataclass(frozen=True)
class Position:
    """Stands for a tensor among the arguments of a call: which of the node's arguments it is."""

    index: int


class _Draws:
    """Whether generators go on where they were: one that is seeded in between does not."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[torch.Generator, torch.Tensor]] = {}
        self._drawn: list[torch.Generator] = []

    def watch(self, generators: Iterable[torch.Generator]) -> None:
        """Remember how generators are now."""
        self._states.update({identity(generator): (generator, generator.get_state()) for generator in generators})

    def before(self, generators: Iterable[torch.Generator]) -> bool:
        """Whether a generator about to be drawn from is not as it was left."""
        self._drawn = list(generators)
        self.watch(generator for generator in self._drawn if identity(generator) not in self._states)
        return any(not torch.equal(self._states[identity(entry)][1], entry.get_state()) for entry in self._drawn)

    def after(self) -> None:
        """What was drawn is drawn."""
        self.watch(self._drawn)
        self._drawn = []

    def moved(self) -> bool:
        """Whether any of them is not as it was left."""
        return any(not torch.equal(state, generator.get_state()) for generator, state in self._states.values())


def identity(value: Any) -> int:
    """The same for two objects that stand for one and the same tensor, module or generator."""
    # An operator is given a generator in a new shell each time.
    return int(getattr(value, "_cdata")) if isinstance(value, torch.Generator) else id(value)  # noqa: B009


def default_generators() -> list[torch.Generator]:
    """Torch's own generators, of the devices that are in use."""
    return [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]


class _Reads(TorchFunctionMode):
    """Sees what gives the values of tensors to Python without being an operation."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        literal = args[1:] if func is torch.Tensor.new_tensor else args[:1] if func in _LITERALS else ()
        nested = [entry for entry in (*literal, *kwargs.values()) if not isinstance(entry, torch.Tensor)]
        for leaf in tree_flatten((args, kwargs) if func in _READERS else nested if func in _LITERALS else ())[0]:
            if isinstance(leaf, torch.Tensor):
                self.recording.sees(leaf)
        return func(*args, **kwargs)


_READERS = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        "numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "__deepcopy__", "__reduce_ex__",
        "__format__", "__repr__", "item",
    )
)  # fmt: skip
_LITERALS = frozenset(
    {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
)  # of lists that hold tensors


def _pop_reads() -> _Reads | None:
    """The function mode on top, if it is one of these."""
    if torch._C._len_torch_function_stack() == 0:
        return None
    mode = pop_function_mode()
    if isinstance(mode, _Reads):
        return mode
    push_function_mode(mode)
    return None


@contextlib.contextmanager
def record(
    names: dict[torch.nn.Module, str] | None = None, *, closely: bool = False, kind: type[Recording] = Recording
) -> Iterator[Recording]:
    """Record what the calling thread computes inside ``with record() as recording:``, in a recording of this kind.

    Nothing is recorded, and the recording stays empty, where the thread is recorded already.
    """
    recording = kind(names, closely=closely) if closely else kind(names)
    if active():
        yield recording
        return
    _watch(1)
    _here.recording = recording
    recording.__enter__()  # type: ignore[no-untyped-call]
    try:
        with _Reads(recording) if closely else contextlib.nullcontext():
            yield recording
            if recording._draws.moved():
                recording.stands_against("a random generator is seeded, or its state is set")
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


def _numbers(tensor: torch.Tensor) -> tuple[float, ...]:
    if tensor.device.type != "cpu" or tensor.numel() > _FEW or tensor.is_complex():
        return ()
    return tuple(tensor.detach().reshape(-1).tolist())


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _user_line() -> str:
    """The line at work that belongs neither to torch nor to graphopt."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_LIBRARIES):
            return f"{in_package(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
