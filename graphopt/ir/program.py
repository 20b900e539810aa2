"""A Program: a functional FX graph plus what graphopt knows about it.

All tensors a Program uses enter through placeholders, the model's weights included, so that a graph is closed, prints
as one function and never holds a model alive. What is known about a node lives in ``node.meta``:

==============  =====================================================================================
``val``         fake tensor (or symbolic number) with shape, dtype, device and strides
``placement``   the stage that computes the node, a `Stage`; absent means: every step
``rules``       names of the passes that made or changed the node, oldest first
``source``      the user's source line, ``file.py:12``
``module``      dotted path of the submodule the node came from
==============  =====================================================================================
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only

from graphopt.ir.effects import has_effect
from graphopt.ir.shapes import RULES

Role: TypeAlias = Literal["weight", "condition", "time", "state"]
ROLES: tuple[Role, ...] = ("weight", "condition", "time", "state")


@dataclass(frozen=True)
class Input:
    """One placeholder of a Program.

    Attributes
    ----------
    name : the placeholder's name in the graph.
    role : what the input is to the sampling loop.
    path : for a weight its qualified name in the model; for an argument of the call its key path, such as
        ``added_cond_kwargs.resolution``.
    """

    name: str
    role: Role
    path: str


@dataclass(frozen=True)
class Kept:
    """Where an earlier process has kept a Program.

    Attributes
    ----------
    key : that it is kept under.
    digest : of its bytes.
    """

    key: str
    digest: str


@dataclass
class Program:
    """A functionalised graph, the roles of its inputs, and tensors the model held as plain constants.

    Attributes
    ----------
    graph : placeholders (weights first), ``call_function`` nodes, one output. Functional: no node mutates another.
    inputs : one `Input` per placeholder, in order.
    constants : tensors that the model created outside its parameters and buffers, by placeholder name. They have the
        role ``weight``.
    out_spec : how the flat outputs are put together into what the model returns; None for a tuple.
    name : shown in reports and dumps.
    root : owner of subgraphs that higher-order operations refer to (``get_attr`` nodes).
    """

    graph: fx.Graph
    inputs: tuple[Input, ...]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    out_spec: TreeSpec | None = None
    name: str = "program"
    root: torch.nn.Module = field(default_factory=torch.nn.Module)
    relations: tuple[
        Any, ...
    ] = ()  # what is assumed of the inputs and holds whenever the Program runs, see ir.relations
    rule: str = ""  # the pass at work; new nodes carry it
    kept: Kept | None = None  # by an earlier process, as it is; a copy, which may be changed, is not

    def __repr__(self) -> str:
        weights = sum(entry.role == "weight" for entry in self.inputs)
        given = ", ".join(f"{entry.name}: {entry.role}" for entry in self.inputs if entry.role != "weight")
        calls = sum(node.op == "call_function" for node in self.graph.nodes)
        counts = f"{_counted(weights, 'weight')}, {_counted(calls, 'operation')}"
        return f"Program({self.name!r}, {given or 'no inputs'}; {counts})"

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes in order, a copy that stays valid while the graph changes."""
        return list(self.graph.nodes)

    @property
    def placeholders(self) -> list[fx.Node]:
        return self.graph.find_nodes(op="placeholder")

    @property
    def output(self) -> fx.Node:
        last: fx.Node = next(iter(reversed(self.graph.nodes)))
        return last

    @property
    def results(self) -> tuple[fx.Node | None, ...]:
        """The nodes returned by the graph, flat; None where the model returns a literal None."""
        (values,) = self.output.args
        assert isinstance(values, Sequence)
        return tuple(value if isinstance(value, fx.Node) else None for value in values)

    def calls(self, *targets: Callable[..., Any]) -> Iterator[fx.Node]:
        """``call_function`` nodes in order, all of them or those that call one of `targets`."""
        for node in self.nodes:
            if node.op == "call_function" and (not targets or node.target in targets):
                yield node

    def role(self, node: fx.Node) -> Role:
        """The role of a placeholder. Raises KeyError for other nodes."""
        return self.roles()[node.name]

    def roles(self) -> dict[str, Role]:
        """The roles of all placeholders by name, gathered now: for many of them ask once."""
        return {entry.name: entry.role for entry in self.inputs}

    # -- writing -----------------------------------------------------------------------------------------------------

    def copy(self) -> Program:
        """An independent copy: changing the copy's graph leaves this one as it is."""
        graph = fx.Graph()
        names: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(self.graph, names)
        node = graph.output(result)
        node.meta = dict(self.output.meta)
        for old, new in names.items():
            new.meta = dict(old.meta)
        return replace(self, graph=graph, constants=dict(self.constants), kept=None)

    def call(
        self, target: Callable[..., Any], *args: Any, before: fx.Node, like: fx.Node | None = None, val: Any = None,
        **kwargs: Any,
    ) -> fx.Node:  # fmt: skip
        """Insert ``target(*args, **kwargs)`` before a node, with shapes inferred and provenance taken from `like`.

        Parameters
        ----------
        before : the node in front of which the new one goes.
        like : the node whose source line and module the new node inherits, and its placement where the stage has all
            that the new node reads; `before` when left out.
        val : fake value of the result, where it cannot be inferred (opaque packed weights).
        """
        origin = like if like is not None else before
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = infer(node) if val is None else val
        for key in ("source", "module", "stack_trace", "nn_module_stack"):
            if key in origin.meta:
                node.meta[key] = origin.meta[key]
        placed = origin.meta.get("placement")
        if placed is not None and not has_effect(node) and all(self._has(placed, n) for n in node.all_input_nodes):
            node.meta["placement"] = placed
        node.meta["rules"] = (*origin.meta.get("rules", ()), *((self.rule,) if self.rule else ()))
        return node

    def _has(self, stage: frozenset[str], node: fx.Node) -> bool:
        """Whether a stage has the value of `node`."""
        if node.op == "placeholder":
            return self.role(node) in (*stage, "weight")
        return node.op == "get_attr" or ("placement" in node.meta and node.meta["placement"] <= stage)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every user of `old` use `new` instead, and remove `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def touch(self, node: fx.Node) -> None:
        """Note that the pass at work changed `node` in place."""
        if self.rule and self.rule not in node.meta.get("rules", ()):
            node.meta["rules"] = (*node.meta.get("rules", ()), self.rule)

    def module(self) -> fx.GraphModule:
        """The graph as a callable module taking all inputs in order and returning a flat tuple."""
        return fx.GraphModule(self.root, self.graph, class_name="Program")


def _counted(count: int, one: str) -> str:
    return f"{count} {one}{'s' * (count != 1)}"


# -- values of nodes -------------------------------------------------------------------------------------------------


def val(node: Any) -> Any:
    """The fake value of a node; anything that is no node is returned as it is."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def shape(node: Any) -> tuple[Any, ...]:
    """Shape of a node's tensor; sizes are ints or symbolic ints."""
    return tuple(val(node).shape)


def dtype(node: Any) -> torch.dtype:
    """Dtype of a node's tensor."""
    result = val(node).dtype
    assert isinstance(result, torch.dtype)
    return result


def infer(node: fx.Node) -> Any:
    """The fake value of a ``call_function`` node, computed from those of its arguments."""
    assert callable(node.target)
    args, kwargs = tree_map_only(fx.Node, val, (node.args, node.kwargs))
    mode = fake_mode(node.graph)
    known = _inferred.get()
    key = None if known is None else _signature(node.target, mode, args, kwargs)
    if known is None or key is None:
        return _infer(node.target, mode, args, kwargs)
    if key not in known:
        try:
            known[key] = _infer(node.target, mode, args, kwargs)
        except Exception as error:
            known[key] = error
    if isinstance(known[key], Exception):
        raise known[key].with_traceback(None)
    return known[key]


def _infer(target: Any, mode: FakeTensorMode, args: Any, kwargs: Any) -> Any:
    with mode, torch.no_grad():
        return RULES.get(target, target)(*args, **kwargs)


_inferred: ContextVar[dict[Any, Any] | None] = ContextVar("inferred", default=None)


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Inside, equal operations on equal fake values of one mode are inferred once.

    For work on many small Programs that share a mode, where inference is most of it. What has symbolic sizes is not
    remembered.
    """
    token = _inferred.set({})
    try:
        yield
    finally:
        _inferred.reset(token)


def _signature(target: Any, mode: FakeTensorMode, args: Any, kwargs: Any) -> Any:
    """What a fake result depends on, hashable; None where it may depend on more."""
    leaves, spec = tree_flatten((args, kwargs))
    found: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
            return None
        if isinstance(leaf, torch.Tensor):
            if any(isinstance(size, torch.SymInt) for size in leaf.shape):
                return None
            found.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.storage_offset()))
        else:
            found.append((type(leaf), leaf))
    return target, id(mode), str(spec), tuple(found)


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the graph's fake values belong to (a fresh one when there are none)."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of a torch operator by their schema names, defaults filled in.

    Lets passes read ``bind(node)["bias"]`` without caring whether it was passed by position or by name.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return dict(enumerate(node.args), **node.kwargs)  # type: ignore[arg-type]
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if not argument.kwarg_only and position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def item(node: fx.Node, position: int, before: fx.Node, program: Program) -> fx.Node:
    """Insert ``node[position]`` for a node with several results."""
    return program.call(operator.getitem, node, position, before=before, like=node)
