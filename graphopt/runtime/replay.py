"""Replays: what a sampling function does around its modules, recorded once and run again without the function.

A recording is evaluated in part: what depends neither on arguments, nor on what modules return, nor on chance is
computed when the replay is built. That is the whole arithmetic of a schedule. Passes fold what is left, and straight
code runs it, calling the modules as the function did.

It stands for the function only where the user has said that results depend on arguments, on the weights of modules and
on random generators alone (``pure=True``). What can be seen to speak against it is refused (`build`); each replay is
compared once with the function.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_map_only, tree_unflatten

from graphopt.capture.calls import CallTaker
from graphopt.capture.guards import call_state
from graphopt.capture.loop import Position, Recording, active, default_generators, identity, record
from graphopt.debug.statistics import PassRecord, Statistics
from graphopt.errors import CaptureError, GraphoptError, VerificationError
from graphopt.ir.driver import Observers, run_pipeline
from graphopt.ir.effects import METADATA_CHECKS, has_effect
from graphopt.ir.loop import LoopProgram, ModuleCall
from graphopt.ir.program import Input, Program, infer, val
from graphopt.ir.rewrite import Pass
from graphopt.runtime.installed import disagreement

aten = torch.ops.aten

_RECORDINGS = 8  # kept per function, by structure, shapes and Python values of the arguments
_SMALL = 64 << 10  # bytes of a constant up to which its contents are compared before each run
_SCALARS = (bool, int, float, str, type(None))


# -- from a recording to a Program -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """The arguments of one call of the function.

    Attributes
    ----------
    key : hashable; equal for calls that one recording can serve.
    tensors, generators : what varies, each object once, in order.
    modules : passed as arguments; held, since the key names them by identity.
    """

    key: Hashable
    tensors: tuple[torch.Tensor, ...]
    generators: tuple[torch.Generator, ...]
    modules: tuple[torch.nn.Module, ...]


class Constant:
    """A tensor of before the recording, and how to see that it was changed since.

    Its version and its place in memory tell most changes; contents tell those of a small one on the CPU by ``.data`` or
    through NumPy too.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self._place, self._contents = tensor, _place(tensor), _contents(tensor)

    def holds(self) -> bool:
        return _place(self.tensor) == self._place and (
            self._contents is None or _contents(self.tensor) == self._contents
        )


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _contents(tensor: torch.Tensor) -> bytes | None:
    if tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > _SMALL:
        return None
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@dataclass
class Partial:
    """A recording as a Program over the arguments of the function, all that is known evaluated.

    Attributes
    ----------
    program : inputs are the tensors and the generators of the arguments, then constants.
    outside : tensors of before the recording that it depends on.
    spec, leaves : how results are put together; a `Position` stands for one of the Program's.
    """

    program: Program
    outside: list[Constant]
    spec: TreeSpec
    leaves: list[Any]


def evaluate_known(recording: Recording, taken: Taken, result: Any) -> Partial:
    """The partial evaluation of a recording.

    Raises CaptureError with the reason where running the operations again would not do what the function does.
    """
    for reason, line in recording.obstacles:
        raise CaptureError(reason, where=line)
    return _Evaluator(recording, taken).finish(result)


class _Evaluator:
    """Old node → tensor where its value is known, else → node of the new graph."""

    def __init__(self, recording: Recording, taken: Taken) -> None:
        self.recording, self.mode = recording, FakeTensorMode(allow_non_fake_inputs=True)
        self.program = Program(fx.Graph(), (), name="replay")
        self.known: dict[fx.Node, Any] = {}
        self.moving: dict[fx.Node, fx.Node] = {}
        self.inputs: dict[int, fx.Node] = {}  # by identity of the tensor or generator
        self.held: list[Any] = []
        self.used: set[fx.Node] = set()
        self.last_input: fx.Node | None = None
        for k, tensor in enumerate(taken.tensors):
            self._input(f"argument_{k}", tensor, "state")
        for k, generator in enumerate(taken.generators):
            self._input(f"generator_{k}", generator, "state")
        self.given = set(self.inputs)
        for node in list(recording.graph.nodes):
            self._visit(node)
        read = [(node, line) for node, line in recording.read if node in self.moving]
        if read:
            raise CaptureError("Python reads a value that depends on arguments, modules or chance", where=read[0][1])

    def _input(self, name: str, value: Any, role: Any) -> fx.Node:
        graph = self.program.graph
        after = self.last_input if self.last_input is not None else graph._root
        with graph.inserting_after(after):
            node = graph.placeholder(name)
        if isinstance(value, torch.Tensor):
            node.meta["val"] = self._fake(value)
        else:
            node.meta["val"] = None
        self.program.inputs = (*self.program.inputs, Input(node.name, role, name))
        self.inputs[identity(value)] = self.last_input = node
        self.held.append(value)
        return node

    def _fake(self, value: torch.Tensor) -> torch.Tensor:
        with self.mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            tensor = self.recording.outside[node]
            if id(tensor) in self.given:
                self.moving[node] = self.inputs[id(tensor)]
            else:
                self.known[node] = tensor
        elif isinstance(node.target, ModuleCall):
            self._module(node)
        elif node.target is operator.getitem and node.args[0] in self.known:
            self.known[node] = self.known[node.args[0]][node.args[1]]  # type: ignore[index]
        else:
            self._operation(node)

    def _module(self, node: fx.Node) -> None:
        new = self.program.graph.call_function(node.target, tuple(self._argument(entry) for entry in node.args))  # type: ignore[arg-type]
        new.meta = {**node.meta, "opaque": True}
        results = [user for user in node.users if user.target is operator.getitem]
        if any(val(user) is None for user in results):
            raise CaptureError(f"{new.name} returns a sparse tensor", where=_line(node))
        new.meta["val"] = [self._recorded(user) for user in results]
        self.moving[node] = new

    def _recorded(self, node: fx.Node) -> torch.Tensor:
        """The recorded value of a node, as this graph's fake values are made."""
        value = val(node)
        with self.mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=node.meta["device"])

    def _operation(self, node: fx.Node) -> None:
        target, random = functional(node.target), False
        if isinstance(target, OpOverload):
            random = torch.Tag.nondeterministic_seeded in target.tags
        if target is None:
            raise CaptureError(f"{node.target} writes into a tensor in a way that has no other form", where=_line(node))
        if isinstance(target, OpOverload) and target.namespace not in ("aten", "prims"):
            raise CaptureError(f"the effects of {node.target} are unknown", where=_line(node))
        if any(isinstance(leaf, torch.UntypedStorage | torch.TypedStorage) for leaf in tree_flatten(node.args)[0]):
            raise CaptureError(f"{node.target} deals with memory", where=_line(node))
        if not any(source in self.moving for source in node.all_input_nodes) and not random:
            self._evaluate(node, target)
            return
        if _silent(node):
            return
        new = self._emit(node, target)
        if has_effect(new) and not random:
            raise CaptureError(f"the effects of {node.target} are unknown", where=_line(node))
        self.moving[node] = new

    def _evaluate(self, node: fx.Node, target: Any) -> None:
        if _silent(node):
            return
        args, kwargs = tree_map_only(fx.Node, lambda source: self.known[source], (node.args, node.kwargs))
        self.known[node] = target(*args, **kwargs)

    def _emit(self, node: fx.Node, target: Any) -> fx.Node:
        if isinstance(target, OpOverload) and _dynamic(node, target):
            raise CaptureError(f"the size of what {node.target} gives depends on values", where=_line(node))
        args, kwargs = tree_map_only(torch.Generator, self._generator(node), (node.args, node.kwargs))
        target, args, kwargs = self._with_numbers(node, target, args, kwargs)
        args, kwargs = tree_map_only(
            fx.Node, lambda source: source if source.graph is self.program.graph else self._argument(source),
            (args, kwargs),
        )  # fmt: skip
        new = self.program.graph.call_function(target, args, kwargs)
        new.meta["source"] = node.meta.get("source", "")
        with self.mode:
            new.meta["val"] = infer(new)
        if isinstance(val(new), torch.Tensor) and "device" in node.meta and not _alike(val(new), node):
            raise CaptureError(f"{node.target} gives another layout than it gave", where=_line(node))
        return new

    def _generator(self, node: fx.Node) -> Callable[[torch.Generator], fx.Node]:
        def input_of(generator: torch.Generator) -> fx.Node:
            if identity(generator) not in self.inputs:
                raise CaptureError("a generator that is no argument is drawn from", where=_line(node))
            return self.inputs[identity(generator)]

        return input_of

    def _argument(self, source: Any) -> Any:
        """What stands for an old node among arguments; a constant becomes an input."""
        if not isinstance(source, fx.Node):
            return source
        if source in self.moving:
            return self.moving[source]
        value = self.known[source]
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self.inputs:
            node = self._input(f"constant_{len(self.inputs)}", value, "weight")
            self.program.constants[node.name] = value
        return self.inputs[id(value)]

    def _with_numbers(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """A known factor or summand of one element as a Python number, where that gives the same dtype and shape."""
        if target not in _TAKES_NUMBER or len(args) != 2:
            return target, args, kwargs
        left, right = (self._number(value, other, node) for value, other in (args, args[::-1]))
        if right is not None:
            return target, (args[0], right), kwargs
        if left is not None and target in (aten.mul.Tensor, aten.add.Tensor) and not kwargs:
            return target, (args[1], left), kwargs
        if left is not None and target is aten.sub.Tensor and not kwargs:
            return aten.rsub.Scalar, (args[1], left), kwargs
        return target, args, kwargs

    def _number(self, value: Any, other: Any, node: fx.Node) -> float | None:
        tensor = self.known.get(value) if isinstance(value, fx.Node) else None
        if not isinstance(tensor, torch.Tensor) or tensor.numel() != 1 or other not in self.moving:
            return None
        kept, result = val(self.moving[other]), val(node)
        same = kept.dtype == result.dtype and kept.shape == result.shape
        if not same or not kept.dtype.is_floating_point or tensor.is_complex() or tensor.dtype == torch.bool:
            return None
        return float(tensor.item())

    def finish(self, result: Any) -> Partial:
        leaves, spec = tree_flatten(result)
        results: list[fx.Node] = []
        placed: list[Any] = []
        held = {a: "a tensor of before" for t in self.recording.outside.values() if (a := _memory(t))}
        held |= {a: "an argument" for value in self.held[: len(self.given)] if (a := _memory(value))}
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                node = self.recording.node(leaf)
                if _memory(leaf) in held:
                    raise CaptureError(f"a result shares memory with {held[_memory(leaf)]}", where="the results")
                if leaf.requires_grad:
                    raise CaptureError("a result carries gradients", where="the results")
                if node is None or (node not in self.moving and node not in self.known):
                    raise CaptureError("a result was made by no operation", where="the results")
                placed.append(Position(len(results)))
                results.append(self._argument(node))
            elif isinstance(leaf, _SCALARS):
                placed.append(leaf)
            else:
                raise CaptureError(f"it returns a {type(leaf).__name__}", where="the results")
        self.program.graph.output(tuple(results)).meta["val"] = None
        outside = [Constant(t) for n, t in self.recording.outside.items() if n in self.known and n.users]
        return Partial(self.program, outside, spec, placed)


def functional(target: Any) -> Any:
    """The operator that gives what `target` writes into its first argument; itself where it writes nothing; or None."""
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return target
    written = [k for k, entry in enumerate(target._schema.arguments) if entry.alias_info and entry.alias_info.is_write]
    name = target._schema.name.partition("::")[2]
    packet = getattr(aten, {"normal_": "normal_functional"}.get(name, name.rstrip("_")), None)
    found = getattr(packet, target._overloadname, None) or getattr(packet, "default", None)
    if written != [0] or not name.endswith("_") or target.namespace != "aten" or found is None:
        return None
    if str(target._schema.arguments[0].type) != "Tensor":
        return None
    same = [entry.name for entry in found._schema.arguments] == [entry.name for entry in target._schema.arguments]
    return found if same and not found._schema.is_mutable else None


_TAKES_NUMBER = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_FRESH: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
}


def _silent(node: fx.Node) -> bool:
    """Whether an operation only tells Python something: what it tells is noted as read."""
    tags = node.target.tags if isinstance(node.target, OpOverload) else ()
    return torch.Tag.data_dependent_output in tags or node.target in (aten.equal.default, *METADATA_CHECKS)


def _dynamic(node: fx.Node, target: OpOverload) -> bool:
    if target is aten.index.Tensor:
        indices = node.args[1]
        assert isinstance(indices, list | tuple)
        return any(i is not None and val(i).dtype in (torch.bool, torch.uint8) for i in indices)
    return torch.Tag.dynamic_output_shape in target.tags


def _alike(new: torch.Tensor, node: fx.Node) -> bool:
    old = val(node)
    steps = [s for s, n in zip(new.stride(), new.shape, strict=True) if n > 1]
    return (
        old is not None
        and (new.shape, new.dtype, new.device) == (old.shape, old.dtype, node.meta["device"])
        and (steps == [s for s, n in zip(old.stride(), old.shape, strict=True) if n > 1] or new.numel() == 0)
    )


def _line(node: fx.Node) -> str:
    return str(node.meta.get("source", ""))


def _memory(value: Any) -> int:
    strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return value.untyped_storage().data_ptr() if strided else 0


# -- from a Program to code ------------------------------------------------------------------------------------------


class Invocation:
    """Calls a module as it was called when it was recorded, with other tensors; gives its tensors as a list."""

    def __init__(self, module: torch.nn.Module, spec: TreeSpec, leaves: Sequence[Any]) -> None:
        self.module, self.spec, self.leaves = module, spec, list(leaves)
        self.places = [(k, leaf.index) for k, leaf in enumerate(leaves) if isinstance(leaf, Position)]

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        leaves = self.leaves.copy()
        for place, index in self.places:
            leaves[place] = tensors[index]
        args, kwargs = tree_unflatten(leaves, self.spec)
        result = self.module(*args, **kwargs)
        if type(result) is tuple and all(type(entry) is torch.Tensor for entry in result):
            return list(result)
        return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]


def code_of(program: Program, modules: dict[str, torch.nn.Module]) -> tuple[str, dict[str, Any]]:
    """The Program as the source of a function ``replay``, and the objects that the source names."""
    writer = _Writer(program, modules)
    return writer.source(), writer.objects


class _Writer:
    """One line per operation; values are let go after their last use; sums go into memory that nothing else reads."""

    def __init__(self, program: Program, modules: dict[str, torch.nn.Module]) -> None:
        self.program, self.modules = program, modules
        self.objects: dict[str, Any] = {}
        self.named: dict[int, str] = {}
        self.names: dict[fx.Node, str] = {}

    def source(self) -> str:
        parameters, lines = [], []
        for k, node in enumerate(self.program.placeholders):
            constant = self.program.constants.get(node.name)
            self.names[node] = f"x{k}" if constant is None else self.object(constant, "constant")
            if constant is None:
                parameters.append(self.names[node])
        last = self._last_uses()
        for k, node in enumerate(self.program.calls()):
            self.names[node] = f"v{k}"
            lines.append(f"v{k} = {self._call(node)}  # {_line(node)}")
            if gone := [self.names[source] for source in last.get(node, ())]:
                lines.append(f"del {', '.join(gone)}")
        copies = [node for node in self.program.results if node is not None and node.name in self.program.constants]
        found = [
            f"{self.names[node]}.clone()" if node in copies else self.names[node]
            for node in self.program.results
            if node is not None
        ]
        body = [*lines, f"return [{', '.join(found)}]"]
        return f"def replay({', '.join(parameters)}):\n    " + "\n    ".join(body) + "\n"

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        seen, found = {self.program.output, *self.program.output.all_input_nodes}, dict[fx.Node, list[fx.Node]]()
        for node in reversed(list(self.program.calls())):
            for source in (*node.all_input_nodes, *(() if node.users else (node,))):
                if source not in seen and source.op == "call_function":
                    found.setdefault(node, []).append(source)
                seen.add(source)
        return found

    def _call(self, node: fx.Node) -> str:
        if node.target is operator.getitem:
            return f"{self.write(node.args[0])}[{node.args[1]}]"
        if isinstance(node.target, ModuleCall):
            call = Invocation(self.modules[node.target.module], *node.meta["arguments"])
            return f"{self.object(call, node.target.__name__)}({', '.join(map(self.write, node.args))})"
        parts = [*map(self.write, node.args), *(f"{key}={self.write(value)}" for key, value in node.kwargs.items())]
        if node.target is aten.add.Tensor and _may_write(node):
            return f"{parts[0]}.add_({', '.join(parts[1:])})"
        function = _FRESH.get(node.target, node.target)
        return f"{self.object(function, str(node.target).replace('.', '_'))}({', '.join(parts)})"

    def object(self, value: Any, name: str) -> str:
        if id(value) not in self.named:
            self.named[id(value)] = f"{name}_{len(self.objects)}"
            self.objects[self.named[id(value)]] = value
        return self.named[id(value)]

    def write(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            inner = ", ".join(map(self.write, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
        if isinstance(value, bool | int | str | type(None)) or (isinstance(value, float) and value - value == 0):
            return repr(value)
        return self.object(value, "value")


def _may_write(node: fx.Node) -> bool:
    """Whether a sum may go into the memory of its first summand: computed here, read by nothing else, and like it."""
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or first.target not in _FRESH or len(first.users) != 1 or first is second:
        return False
    one, all_ = val(first), val(node)
    return bool((one.shape, one.dtype, one.stride()) == (all_.shape, all_.dtype, all_.stride()))


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Replay:
    """One recording, ready to run.

    Attributes
    ----------
    loop : what was recorded.
    partial : with its Program after the passes.
    passes : what each pass did.
    source : the code that runs.
    checked : whether it was compared with the function.
    wrong : why it is not used, if it is not.
    """

    loop: LoopProgram
    partial: Partial
    passes: list[PassRecord]
    modules: tuple[torch.nn.Module, ...]
    held: tuple[Any, ...]
    source: str
    run_code: Callable[..., list[torch.Tensor]]
    inference: bool
    checked: bool = False
    wrong: str | None = None
    runs: int = 0

    def holds(self) -> bool:
        """Whether the tensors of before that it was built from are as they were."""
        return all(constant.holds() for constant in self.partial.outside)

    def run(self, taken: Taken) -> Any:
        """What the function would return."""
        with torch.inference_mode() if self.inference else torch.no_grad():
            results = self.run_code(*taken.tensors, *taken.generators)
        leaves = [results[leaf.index] if isinstance(leaf, Position) else leaf for leaf in self.partial.leaves]
        self.runs += 1
        return tree_unflatten(leaves, self.partial.spec)

    @property
    def operations(self) -> tuple[int, int]:
        """Operations around the modules, before → after."""
        return _operations(self.loop.graph), _operations(self.partial.program.graph)


def _operations(graph: fx.Graph) -> int:
    operations = [n for n in graph.nodes if n.op == "call_function" and n.target is not operator.getitem]
    return sum(not isinstance(node.target, ModuleCall) for node in operations)


def build(recording: Recording, taken: Taken, result: Any, passes: Sequence[Pass], observer: Any = None) -> Replay:
    """A recorded call of a function as a `Replay`. Raises CaptureError where it cannot be replayed."""
    with torch.no_grad(), torch.inference_mode(False):
        partial = evaluate_known(recording, taken, result)
    statistics = Statistics()
    partial.program = run_pipeline(passes, partial.program, Observers([statistics, *([observer] if observer else [])]))
    source, objects = code_of(partial.program, recording.modules)
    space = dict(objects)
    exec(compile(source, "<replay>", "exec"), space)
    inference = any(call.node.meta["inference"] for call in recording.calls)
    modules = tuple(recording.modules.values())
    held = (taken.modules,)
    return Replay(recording.program(), partial, statistics.records, modules, held, source, space["replay"], inference)


class Replays:
    """The replays of one function, by structure, shapes, dtypes and Python values of its arguments.

    A call without a replay runs the function and is recorded. Each thread's calls stand alone.

    Parameters
    ----------
    strict : raise why a recording cannot be replayed instead of warning and calling the function.

    Attributes
    ----------
    asides : calls that the function served itself, by reason.
    """

    def __init__(self, function: Callable[..., Any], passes: Sequence[Pass], *, strict: bool = False) -> None:
        self.function, self.passes, self.strict = function, tuple(passes), strict
        self.name = getattr(function, "__name__", type(function).__name__)
        self.names: dict[torch.nn.Module, str] = {}
        self.known: OrderedDict[Hashable, Replay | str] = OrderedDict()
        self.asides: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._taker = CallTaker(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ``function(*args, **kwargs)`` returns, where the function is pure."""
        try:
            taken = self.take(args, kwargs)
        except (CaptureError, TypeError) as error:
            return self._aside(error.what if isinstance(error, CaptureError) else str(error), args, kwargs)
        with self._lock:
            found = self.known.get(taken.key)
            if found is not None:
                self.known.move_to_end(taken.key)
        if isinstance(found, Replay):
            if any(module.training for module in found.modules):
                return self._aside("a module is in training mode", args, kwargs)
            found = found if found.holds() else None
        if found is None:
            return self.record(taken, args, kwargs)[0]
        if isinstance(found, str) or found.wrong:
            return self._aside(found if isinstance(found, str) else str(found.wrong), args, kwargs)
        return found.run(taken) if found.checked else self._both(found, taken, args, kwargs)

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Taken:
        """The arguments taken apart. Raises CaptureError where calls cannot be told apart or replayed."""
        if torch._C._is_any_autocast_enabled():
            raise CaptureError("autocast is active")
        if torch._C._len_torch_dispatch_stack() or torch.compiler.is_compiling() or active():
            raise CaptureError("operations are traced")
        seen: dict[int, Any] = {}

        def name(leaf: Any) -> Any:
            if isinstance(leaf, torch.Generator):
                seen.setdefault(identity(leaf), leaf)
                return f"generator {list(seen).index(identity(leaf))} on {leaf.device}"
            if isinstance(leaf, torch.nn.Module):
                seen[id(leaf)] = leaf
                return f"module {id(leaf)}"
            return leaf

        args, kwargs = tree_map(name, (args, kwargs))
        call = self._taker.take(args, kwargs)
        tensors = tuple({id(tensor): tensor for tensor in call.tensors}.values())
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise CaptureError("an argument requires gradients (wrap the call in torch.no_grad())")
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), call_state()
        generators = tuple(value for value in seen.values() if isinstance(value, torch.Generator))
        modules = tuple(value for value in seen.values() if isinstance(value, torch.nn.Module))
        return Taken((call.signature, modes), tensors, generators, modules)

    def first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """A first recorded call, whatever its arguments are."""
        try:
            taken = self.take(args, kwargs)
        except CaptureError as error:
            if self.strict:
                raise
            warnings.warn(f"graphopt: {self.name} is not replayed: {error.what}", RuntimeWarning, stacklevel=5)
            with record(self.names) as recording:
                self.function(*args, **kwargs)
            return recording
        return self.record(taken, args, kwargs)[1]

    def record(self, taken: Taken, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Recording]:
        """The function's own result, recorded; the replay serves further calls like this one."""
        with record(self.names, closely=True) as recording:
            recording.watch(taken.generators)
            result = self.function(*args, **kwargs)
        self.learn(recording, taken, result)
        return result, recording

    def learn(self, recording: Recording, taken: Taken, result: Any) -> None:
        """Build the replay of a recorded call, or remember why there is none."""
        found: Replay | str
        try:
            found = build(recording, taken, result, self.passes)
        except Exception as error:
            if self.strict:
                raise
            found = error.what if isinstance(error, GraphoptError) else f"{type(error).__name__}: {error}"
            where = f" ({error.where})" if isinstance(error, CaptureError) and error.where else ""
            found += where
            warnings.warn(f"graphopt: {self.name} is not replayed: {found}", RuntimeWarning, stacklevel=4)
        with self._lock:
            self.known[taken.key] = found
            self.known.move_to_end(taken.key)
            while len(self.known) > _RECORDINGS:
                self.known.popitem(last=False)

    def _aside(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.asides[reason] += 1
        return self.function(*args, **kwargs)

    def _both(self, replay: Replay, taken: Taken, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Function and replay, compared; generators go on as if the function had run."""
        generators = [*default_generators(), *taken.generators]
        before = [generator.get_state() for generator in generators]
        expected = self.function(*args, **kwargs)
        after = [generator.get_state() for generator in generators]
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        try:
            reason = disagreement(expected, replay.run(taken))
            moved = [generator.get_state() for generator in generators]
            if not reason and not all(map(torch.equal, moved, after)):
                reason = "it draws other random numbers"
        except Exception as error:
            if self.strict:
                raise
            reason = f"it raised {type(error).__name__}: {error}"
        finally:
            for generator, state in zip(generators, after, strict=True):
                generator.set_state(state)
        replay.checked = True
        if reason and self.strict:
            raise VerificationError(f"the replay of {self.name} is wrong: {reason}", where="its first call")
        if reason:
            replay.wrong = f"the replay was not what the function gave: {reason}"
            warnings.warn(f"graphopt: {self.name} is not replayed: {reason}", RuntimeWarning, stacklevel=4)
        return expected
