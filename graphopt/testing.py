"""For authors of passes: trace a function into a Program, and check a pass by structure, numbers and accuracy class.

>>> from graphopt.passes import RemoveDead
>>> before = sketch('''
...     unused = ops.aten.mul.Tensor(x, 2)
...     add = ops.aten.add.Tensor(x, 1)
...     return (add,)
... ''', x="f32[3]")
>>> check_pass(RemoveDead(), before.program).fired
1
"""

from __future__ import annotations

import operator
import random
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphopt.capture.calls import CallTaker
from graphopt.capture.export import capture
from graphopt.errors import VerificationError
from graphopt.ir.driver import run_pass
from graphopt.ir.effects import has_effect
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program, Role
from graphopt.ir.rewrite import Match, Observer, Pass, Refusal
from graphopt.ir.verify import compare, evaluate, example_inputs

aten = torch.ops.aten


class _Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


@dataclass
class Traced:
    """A Program made from a function or module, with what reading it in a test needs."""

    program: Program

    @property
    def body(self) -> str:
        """The lines of the Program's function without provenance comments: what a golden file holds."""
        lines = dump(self.program).partition("\ndef program(")[2].split("):\n", 1)[1].splitlines()
        return "\n".join(line.strip() for line in lines if not line.strip().startswith("# "))

    def rewritten(self, *passes: Pass) -> Traced:
        """After these passes, in order; each must succeed."""
        program = self.program
        for pass_ in passes:
            program = run_pass(pass_, program)
        bare = program.copy()
        for node in bare.graph.nodes:
            node.meta.pop("rules", None)
        return Traced(bare)


def trace(function: Callable[..., Any], *args: Any, roles: Mapping[str, Role] | None = None, **kwargs: Any) -> Traced:
    """A function or module of tensors as a Program. Arguments without a role are ``state``."""
    module = function if isinstance(function, torch.nn.Module) else _Function(function)
    taker = CallTaker(module.forward)
    call = taker.take(args, kwargs)
    known: dict[str, Role] = dict.fromkeys(taker.paths(call), "state")
    return Traced(capture(module, taker, call, {**known, **(roles or {})}, name="example"))


def sketch(body: str, **inputs: str) -> Traced:
    """A Program written by hand: the lines of a dump, and its inputs as ``[role] dtype[shape]``.

    >>> sketch("return (x,)", x="f32[2, 3]", w="weight f32[3]", t="time i64[]").program.inputs[2].role
    'time'
    """
    table = {}
    for name, text in inputs.items():
        role, value = text.split(" ", 1) if "[" not in text.split(" ")[0] else ("state", text)
        table[name] = (role, name, value)
    lines = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return Traced(parse(f"INPUTS = {table!r}\n\n\ndef program({', '.join(table)}):\n{lines}\n", "<sketch>"))


class Recorder(Observer):
    """Keeps what passes did: fired matches (by root name) and refusals, in order."""

    def __init__(self) -> None:
        self.fired: list[tuple[str, str]] = []
        self.refusals: list[tuple[str, Refusal]] = []

    def rewrites(self, pass_: Pass, match: Match) -> None:
        self.fired.append((pass_.name, match.root.name))

    def refuses(self, pass_: Pass, refusal: Refusal) -> None:
        self.refusals.append((pass_.name, refusal))


@dataclass
class Checked:
    """What `check_pass` saw: the Program after the pass, how often it fired, and why it did not elsewhere."""

    program: Program
    fired: int
    refusals: list[Refusal]

    @property
    def reasons(self) -> list[str]:
        return [refusal.reason for refusal in self.refusals]


def check_pass(pass_: Pass, program: Program, *, seeds: int = 2, idempotent: bool = True) -> Checked:
    """Run one pass and check everything that must hold of any pass.

    Structure and boundary (`graphopt.ir.verify.verify`), values on seeded inputs by the accuracy the pass declares,
    that the Program given is left as it was, and that running the pass again changes nothing.

    Raises VerificationError naming what does not hold.
    """
    recorder, untouched = Recorder(), dump(program)
    after = run_pass(pass_, program, recorder)
    if dump(program) != untouched:
        raise VerificationError("the pass changed the Program it was given", where=pass_.name)
    for seed in range(seeds):
        inputs = example_inputs(program, seed)
        exact = evaluate(program, inputs, double=True) if pass_.accuracy != "bitwise" else None
        wrong = compare(evaluate(program, inputs), evaluate(after, inputs), pass_.accuracy, exact)
        if wrong:
            raise VerificationError(f"not {pass_.accuracy}: {wrong}", where=f"{pass_.name}, seed {seed}")
    if idempotent:
        again = Recorder()
        twice = run_pass(pass_, after, again)
        if again.fired or dump(twice) != dump(after):
            raise VerificationError("running the pass again fired again", where=f"{pass_.name}: {again.fired}")
    return Checked(after, len(recorder.fired), [refusal for _, refusal in recorder.refusals])


# -- random graphs ---------------------------------------------------------------------------------------------------

_POOL = {
    "w_linear": "weight f32[8, 8]", "w_project": "weight f32[8, 8]", "w_bias": "weight f32[8]",
    "w_conv": "weight f32[4, 4, 3, 3]", "w_conv_bias": "weight f32[4]", "w_table": "weight f32[8, 8]",
    "w_half": "weight bf16[8, 8]", "x": "state f32[2, 6, 8]", "image": "state f32[2, 4, 6, 8]",
    "timestep": "time i64[]", "sigma": "time f32[2]", "prompt": "condition f32[2, 5, 8]",
    "mask": "condition bool[2, 5]", "ids": "condition i64[2, 5]",
}  # fmt: skip


def random_graph(choose: int | Callable[[int], int], size: int = 24) -> Program:
    """A valid Program of about `size` operations of the kinds that diffusion models are made of.

    Linear, convolution, normalisation, attention, broadcasting, views, cat and slices, integer and boolean side paths,
    several dtypes, repeated and useless operations, inputs of every role, one or more results.

    Parameters
    ----------
    choose : a seed, or a function that draws an int below its argument: with hypothesis,
        ``lambda n: data.draw(st.integers(0, n - 1))`` makes failing graphs shrink.
    """
    if isinstance(choose, int):
        generator = random.Random(choose)
        choose = generator.randrange
    grower = _Grower(choose, sketch("return ()", **_POOL).program)
    for _ in range(size):
        grower.grow()
    return grower.finish()


class _Grower:
    """Appends random operations to a Program; those that do not fit their arguments are left out again."""

    def __init__(self, choose: Callable[[int], int], program: Program) -> None:
        self.choose, self.program = choose, program
        self.values: list[fx.Node] = list(program.placeholders)
        self.kinds = [
            self.linear, self.linear, self.convolution, self.norm, self.attention, self.unary, self.unary, self.binary,
            self.binary, self.binary, self.identity, self.identity, self.identity, self.cast, self.view, self.view,
            self.view, self.slice, self.split, self.cat, self.again, self.again, self.boolean, self.integer,
            self.constant, self.noise, self.written, self.sums, self.repeated, self.mixed,
        ]  # fmt: skip

    def grow(self) -> None:
        self.kinds[self.choose(len(self.kinds))]()

    def finish(self) -> Program:
        calls = [node for node in self.values if node.op == "call_function"] or self.values
        results = [calls[-1 - self.choose(min(4, len(calls)))] for _ in range(1 + self.choose(3))]
        self.program.output.args = (tuple(results),)
        self.program.name = "random"
        return self.program

    def of(self, *choices: Any) -> Any:
        return choices[self.choose(len(choices))]

    def pick(self, where: Callable[[torch.Tensor], bool] = lambda value: value.is_floating_point()) -> fx.Node:
        """A value for which `where` holds, later ones more often."""
        fitting = [node for node in self.values if where(node.meta["val"])] or self.values
        return fitting[-1 - min(self.choose(len(fitting)), self.choose(len(fitting)))]

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node | None:
        last = self.program.output.prev
        try:
            node = self.program.call(target, *args, before=self.program.output, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError):
            if self.program.output.prev is not last:
                self.program.graph.erase_node(self.program.output.prev)
            return None
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            if value.numel() > 4096 or value.ndim > 5:
                self.program.graph.erase_node(node)
                return None
            self.values.append(node)
        return node

    def beside(self, node: fx.Node) -> fx.Node:
        """A value that broadcasts with `node`."""
        sizes = node.meta["val"].shape[::-1]
        return self.pick(
            lambda v: (
                v.is_floating_point() and all(n == m or 1 in (n, m) for n, m in zip(v.shape[::-1], sizes, strict=False))
            )
        )

    def features(self) -> fx.Node:
        return self.pick(lambda value: value.dtype == torch.float32 and value.shape[-1:] == (8,))

    def weight(self, name: str) -> fx.Node:
        return next(node for node in self.values if node.name == name)

    def linear(self) -> None:
        bias = self.of(None, self.weight("w_bias"))
        self.add(aten.linear.default, self.features(), self.weight(self.of("w_linear", "w_project")), bias)

    def convolution(self) -> None:
        image = self.pick(lambda value: value.dtype == torch.float32 and value.ndim == 4 and value.shape[1] == 4)
        bias = self.of(None, self.weight("w_conv_bias"))
        self.add(aten.conv2d.default, image, self.weight("w_conv"), bias, [1, 1], [self.of(0, 1), 1])

    def norm(self) -> None:
        if self.choose(2):
            bias = self.weight("w_bias")
            self.add(aten.layer_norm.default, self.features(), [8], bias, bias)
        else:
            bias = self.weight("w_conv_bias")
            image = self.pick(lambda value: value.ndim == 4 and value.dtype == torch.float32)
            self.add(aten.group_norm.default, image, 2, bias, bias)

    def attention(self) -> None:
        query, memory = self.features(), self.features()
        heads: list[fx.Node] = []
        for source in (query, memory, memory):
            projected = self.add(aten.linear.default, source, self.weight(self.of("w_linear", "w_project")))
            split = projected and self.add(aten.view.default, projected, [2, -1, 2, 4])
            turned = split and self.add(aten.transpose.int, split, 1, 2)
            if turned is None:
                return
            heads.append(turned)
        mixed = self.add(aten.scaled_dot_product_attention.default, *heads)
        turned = mixed and self.add(aten.transpose.int, mixed, 1, 2)
        if turned is not None:
            self.add(aten.view.default, turned, [2, -1, 8])

    def written(self) -> None:
        """Attention written out as products and a softmax, with a scale and often a mask."""
        query, memory = (self.pick(lambda v: v.dtype == torch.float32 and v.ndim > 1) for _ in range(2))
        turned = self.add(aten.transpose.int, memory, -2, -1)
        scores = turned and self.add(aten.matmul.default, query, turned)
        scaled = scores and self.add(self.of(aten.mul, aten.div).Tensor, scores, self.of(0.5, 2))
        if scaled is not None and self.choose(2):
            scaled = self.add(aten.add.Tensor, scaled, self.beside(scaled))
        softmax = scaled and self.add(aten.softmax.int, scaled, self.of(-1, -1, -1, 0))
        if softmax is not None:
            self.add(aten.matmul.default, softmax, memory)

    def sums(self) -> None:
        """Terms of several roles, added one after the other."""
        total: fx.Node | None = self.features()
        for _ in range(2 + self.choose(3)):
            total = total and self.add(aten.add.Tensor, total, self.beside(total))

    def unary(self) -> None:
        operators = aten.silu, aten.gelu, aten.tanh, aten.sin, aten.cos, aten.relu, aten.neg, aten.sigmoid
        self.add(self.of(*operators).default, self.pick())

    def binary(self) -> None:
        left = self.pick()
        self.add(
            self.of(aten.add, aten.mul, aten.sub).Tensor, left, self.of(self.beside(left), self.beside(left), 0.5, 2)
        )

    def identity(self) -> None:
        source = self.pick(lambda value: value.ndim > 0 and value.dtype != torch.bool)
        target, *rest = self.of(
            (aten.clone.default,), (aten.mul.Tensor, 1), (aten.div.Tensor, 1.0), (aten.add.Tensor, 0),
            (aten.sub.Tensor, 0), (aten.alias.default,), (aten.pow.Tensor_Scalar, 1), (aten.slice.Tensor, 0, 0, 2**62),
            (aten.neg.default,), (aten._to_copy.default,), (aten.repeat.default, [1] * source.meta["val"].ndim),
        )  # fmt: skip
        self.add(target, source, *rest)

    def cast(self) -> None:
        kind = self.of(torch.float32, torch.float64, torch.bfloat16, torch.float16)
        self.add(aten._to_copy.default, self.pick(lambda value: value.dtype != torch.bfloat16), dtype=kind)

    def view(self) -> None:
        source = self.pick(lambda value: value.ndim > 0)
        sizes, rank = list(source.meta["val"].shape), source.meta["val"].ndim
        dims = [self.choose(rank), self.choose(rank)]
        target, *rest = self.of(
            (aten.transpose.int, *dims), (aten.transpose.int, *dims), (aten.unsqueeze.default, dims[0]),
            (aten.squeeze.dim, dims[0]), (aten.view.default, [-1]), (aten.view.default, [2, -1, 8]),
            (aten.view.default, [2, 4, -1, 8]), (aten.view.default, sizes), (aten.expand.default, [2, *sizes]),
            (aten.permute.default, list(range(rank))[::-1]), (aten.expand.default, sizes), (aten.clone.default,),
            (aten.select.int, dims[0], 0),
        )  # fmt: skip
        self.add(target, source, *rest)

    def slice(self) -> None:
        source = self.pick(lambda value: value.ndim > 0)
        start = self.choose(2)
        self.add(aten.slice.Tensor, source, self.choose(source.meta["val"].ndim), start, start + 1 + self.choose(8))

    def split(self) -> None:
        dim = -1 - self.choose(2)
        parts = self.add(aten.split.Tensor, self.pick(lambda value: value.ndim > 1), self.of(2, 4, 8), dim)
        for position in range(len(parts.meta["val"]) if parts is not None else 0):
            self.add(operator.getitem, parts, position)

    def cat(self) -> None:
        first = self.pick(lambda value: value.ndim > 0)
        rows = first.meta["val"].shape[:-1]
        others = [self.pick(lambda v: v.ndim > 0 and v.shape[:-1] == rows) for _ in range(self.choose(3))]
        self.add(aten.cat.default, [first, *others], -1)

    def repeated(self) -> None:
        """What guidance does: a batch of equal parts, and layers that share what the parts have in common."""
        image = self.pick(lambda value: value.dtype == torch.float32 and value.ndim == 4 and value.shape[1] == 4)
        source = self.of(self.features(), image)
        parts = [source] * (2 + self.choose(2))
        batch = self.of(
            self.add(aten.cat.default, parts, self.choose(source.meta["val"].ndim or 1)),
            self.add(aten.cat.default, parts),
            self.add(aten.expand.default, source, [len(parts), *source.meta["val"].shape]),
        )
        if batch is not None and self.choose(2):
            self.add(aten.linear.default, batch, self.weight("w_linear"), self.weight("w_bias"))
            self.add(aten.conv2d.default, batch, self.weight("w_conv"), None, [1, 1], [1, 1])

    def mixed(self) -> None:
        """What inpainting does: inputs of different roles side by side, then a layer."""
        weights = self.weight("w_linear"), self.weight("w_project")
        table = self.add(aten.cat.default, list(weights), 1)
        prompt, mask = self.weight("prompt"), self.weight("x")
        rows = [self.add(aten.slice.Tensor, source, 1, 0, 5) for source in (mask, prompt)]
        parts = [self.of(*rows), self.of(*rows)]
        joined = table and all(rows) and self.add(aten.cat.default, parts, self.of(-1, 2, 1))
        if joined is not None:
            self.add(aten.linear.default, joined, table, self.of(None, self.weight("w_bias")))

    def again(self) -> None:
        """An operation that is there already."""
        calls = [node for node in self.values if node.op == "call_function" and not has_effect(node)]
        if calls:
            node = calls[self.choose(len(calls))]
            self.add(node.target, *node.args, **node.kwargs)

    def boolean(self) -> None:
        whole = self.pick(lambda value: value.dtype in (torch.int64, torch.bool))
        condition = self.add(aten.gt.Scalar, whole, self.choose(4))
        if condition is not None:
            self.add(aten.where.ScalarSelf, condition, self.choose(2), self.beside(condition))

    def integer(self) -> None:
        whole = self.pick(lambda value: value.dtype == torch.int64)
        target, number = self.of((aten.mul.Tensor, 1), (aten.add.Tensor, 0), (aten.add.Tensor, 1), (aten.sub.Tensor, 0))
        changed = self.add(target, whole, number)
        if changed is not None and self.choose(2):
            index = self.add(aten.remainder.Scalar, changed, 8)
            if index is not None:
                self.add(aten.embedding.default, self.weight("w_table"), index)

    def constant(self) -> None:
        source = self.pick()
        target, *rest = self.of(
            (aten.arange.start, 0, 8), (aten.full.default, [2, 1, 8], 0.25), (aten.zeros_like.default, source),
            (aten.ones_like.default, source),
        )  # fmt: skip
        self.add(target, *rest, dtype=torch.float32)

    def noise(self) -> None:
        """A random operation whose result does not depend on chance."""
        drawn = self.add(aten.rand_like.default, self.pick())
        if drawn is not None:
            self.values.remove(drawn)
            self.add(aten.mul.Tensor, drawn, 0)
