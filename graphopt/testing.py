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

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from graphopt.capture.calls import CallTaker
from graphopt.capture.export import capture
from graphopt.errors import VerificationError
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program, Role
from graphopt.ir.rewrite import Match, Observer, Pass, Refusal, run_pass
from graphopt.ir.verify import compare, evaluate, example_inputs


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
        lines = dump(self.program).split("):\n", 1)[1].splitlines()
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
