"""How random Programs grow: inputs to begin with, and operations appended one after the other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from graphopt.ir.program import Input, Program, Role, val

aten = torch.ops.aten

_MOST = 4096  # elements of a value
_DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16,
           "i64": torch.int64, "bool": torch.bool}  # fmt: skip


class Unfit(Exception):
    """An operation does not fit the values that there are; it is left out."""


def inputs(table: Mapping[str, str], sizes: Mapping[str, int], symbols: frozenset[str] = frozenset()) -> Program:
    """A Program without operations.

    Parameters
    ----------
    table : inputs as ``role dtype[sizes]``, sizes as numbers or names.
    sizes : what the names stand for; distinct where they are symbolic.
    symbols : names whose sizes are known only when the Program runs, as dynamic dimensions of `torch.export` are.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) if symbols else _static_mode()
    graph, entries = fx.Graph(), list[Input]()
    for name, text in table.items():
        role, _, rest = text.partition(" ")
        kind, _, names = rest.rstrip("]").partition("[")
        dims = [entry.strip() for entry in names.split(",") if entry.strip()]
        tensor = torch.empty([sizes[dim] if dim in sizes else int(dim) for dim in dims], dtype=_DTYPES[kind])
        node = graph.placeholder(name)
        if symbols:
            dynamic = [DimDynamic.DUCK if dim in symbols else DimDynamic.STATIC for dim in dims]
            context = StatelessSymbolicContext(dynamic_sizes=dynamic)  # type: ignore[var-annotated]
            node.meta["val"] = mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(name))
        else:
            node.meta["val"] = mode.from_tensor(tensor)
        known: Role = role  # type: ignore[assignment]
        entries.append(Input(name, known, name))
    graph.output(())
    return Program(graph, tuple(entries), name="random")


@cache
def _static_mode() -> FakeTensorMode:
    """One mode for all graphs of known sizes, so that what is inferred for one holds for others."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def sizes(value: torch.Tensor) -> tuple[Any, ...]:
    """Sizes that compare without a guard: ints, and the texts of symbolic ones."""
    found: list[Any] = list(value.shape)
    return tuple(str(size.node.expr) if isinstance(size, torch.SymInt) else size for size in found)


def hint(size: Any) -> int:
    """A size as an int, that of the example where it is symbolic."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


class Grower:
    """Appends random operations to a Program; those that do not fit their arguments are left out again.

    Parameters
    ----------
    choose : draws an int below its argument.
    program : with the inputs that operations may read.
    """

    def __init__(self, choose: Callable[[int], int], program: Program) -> None:
        self.choose, self.program = choose, program
        self.values: list[fx.Node] = list(program.placeholders)
        self.inputs = {node.name: node for node in program.placeholders}
        self._measured: dict[tuple[fx.Node, int], fx.Node] = {}

    @property
    def count(self) -> int:
        """Operations so far."""
        return len(self.program.graph.nodes) - len(self.inputs) - 1

    def grow(self, block: Callable[[Grower], None]) -> None:
        """Append the operations of `block`, as far as they fit."""
        with contextlib.suppress(Unfit), silent():
            block(self)

    def finish(self) -> Program:
        """The Program. Its results are some of the values that nothing reads, and sometimes another one.

        Inputs that nothing reads are left out.
        """
        calls = [node for node in self.values if node.op == "call_function"] or self.values
        ends = [node for node in calls if not node.users] or calls
        results = [ends[-1 - self.choose(len(ends))] for _ in range(1 + self.choose(4))]
        if self.choose(3) == 2:
            results.append(calls[self.choose(len(calls))])
        self.program.output.args = (tuple(results),)
        for node in self.program.placeholders:
            if not node.users:
                self.program.graph.erase_node(node)
        read = {node.name for node in self.program.placeholders}
        self.program.inputs = tuple(entry for entry in self.program.inputs if entry.name in read)
        return self.program

    # -- choosing ------------------------------------------------------------------------------------------------------

    def of(self, *choices: Any) -> Any:
        """One of these."""
        return choices[self.choose(len(choices))]

    def pick(self, where: Callable[[torch.Tensor], bool] = lambda value: value.is_floating_point()) -> fx.Node:
        """A value for which `where` holds, later ones and those that nothing reads yet more often."""
        fitting = [node for node in self.values if where(node.meta["val"])]
        if not fitting:
            raise Unfit
        if self.choose(2):
            fitting = [node for node in fitting if node.op == "call_function" and not node.users] or fitting
        return fitting[-1 - min(self.choose(len(fitting)), self.choose(len(fitting)))]

    def features(self, rank: int | None = None) -> fx.Node:
        """Float32 values whose last dimension layers contract."""
        return self.pick(
            lambda v: v.dtype == torch.float32 and v.shape[-1:] == (8,) and (rank is None or v.ndim == rank)
        )

    def image(self) -> fx.Node:
        """Float32 values that convolutions take."""
        return self.pick(lambda v: v.dtype == torch.float32 and v.ndim == 4 and sizes(v)[1] == 4)

    def beside(self, node: fx.Node) -> fx.Node:
        """A value that broadcasts with `node`."""
        wanted = sizes(val(node))[::-1]
        return self.pick(
            lambda v: (
                v.is_floating_point()
                and all(n == m or 1 in (n, m) for n, m in zip(sizes(v)[::-1], wanted, strict=False))
            )
        )

    # -- appending -----------------------------------------------------------------------------------------------------

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Append an operation. Raises Unfit where it does not fit."""
        last = self.program.output.prev
        environment = self.program.placeholders[0].meta["val"].fake_mode.shape_env
        unbound = environment.error_on_new_guards() if environment else contextlib.nullcontext()
        try:
            with unbound:  # an operation that only takes some sizes would bind symbols
                node = self.program.call(target, *args, before=self.program.output, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if self.program.output.prev is not last:
                self.program.graph.erase_node(self.program.output.prev)
            raise Unfit from error
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            elements = 1
            for size in value.shape:
                elements *= hint(size)
            if elements > _MOST or value.ndim > 5:
                self.program.graph.erase_node(node)
                raise Unfit
            self.values.append(node)
        return node

    def size(self, node: fx.Node, dim: int) -> Any:
        """A size as an argument of an operation: a number, or the node that measures it."""
        number = val(node).shape[dim]
        if not isinstance(number, torch.SymInt):
            return number
        key = (node, dim % val(node).ndim)
        if key not in self._measured:
            self._measured[key] = self.add(aten.sym_size.int, node, key[1])
        return self._measured[key]

    def shape(self, node: fx.Node) -> list[Any]:
        """All sizes of a node as arguments of an operation."""
        return [self.size(node, dim) for dim in range(val(node).ndim)]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without torch's tracebacks of operations that do not fit."""
    loggers = [
        logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")
    ]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
