"""Programs for tests: traced from a function, or written by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from graphopt.capture.calls import CallTaker
from graphopt.capture.export import capture
from graphopt.errors import UsageError
from graphopt.ir.driver import run_pass
from graphopt.ir.printer import dump, parse
from graphopt.ir.program import Program, Role
from graphopt.ir.rewrite import Pass, check_is_pass
from graphopt.ir.source import SKETCH


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
        return "\n".join(body_lines(self.program))

    def rewritten(self, *passes: Pass) -> Traced:
        """After these passes, in order; each must succeed.

        Raises PassError when one does not.
        """
        program = self.program
        for pass_ in passes:
            check_is_pass(pass_, "Traced.rewritten")
            program = run_pass(pass_, program)
        bare = program.copy()
        for node in bare.graph.nodes:
            node.meta.pop("rules", None)
        return Traced(bare)


def program_of(given: Program | Traced, where: str) -> Program:
    """The Program itself. Raises UsageError where there is none."""
    program: Any = given.program if isinstance(given, Traced) else given
    if not isinstance(program, Program):
        hint = "make one with graphopt.testing.sketch or graphopt.testing.trace"
        raise UsageError(f"this {type(given).__name__} is not a Program", where=where, hint=hint)
    return program


def body_lines(program: Program) -> list[str]:
    """The lines of a Program's function, without its parameters and without comments on where lines come from."""
    lines = dump(program).partition("\ndef program(")[2].split("):\n", 1)[1].splitlines()
    return [line.strip() for line in lines if not line.strip().startswith("# ")]


def trace(function: Callable[..., Any], *args: Any, roles: Mapping[str, Role] | None = None, **kwargs: Any) -> Traced:
    """A function or module of tensors as a Program, captured as graphopt captures models.

    Parameters
    ----------
    args, kwargs : of the call to trace; whatever is no tensor is bound.
    roles : of arguments by name; those without are ``state``.

    Raises
    ------
    CaptureError : the function cannot be exported.

    >>> traced = trace(lambda x, scale: x * scale, torch.ones(2, 3), torch.ones(3), roles={"scale": "condition"})
    >>> print(traced.body)
    mul = ops.aten.mul.Tensor(x, scale)  # f32[2, 3]
    return (mul,)
    """
    module = function if isinstance(function, torch.nn.Module) else _Function(function)
    taker = CallTaker(module.forward)
    call = taker.take(args, kwargs)
    known: dict[str, Role] = dict.fromkeys(taker.paths(call), "state")
    return Traced(capture(module, taker, call, {**known, **(roles or {})}, name="example"))


def sketch(body: str, **inputs: str) -> Traced:
    """A Program written by hand: the lines of a dump, and its inputs as ``[role] dtype[shape]``.

    Raises UsageError with the line that cannot be read.

    >>> sketch("return (x,)", x="f32[2, 3]", w="weight f32[3]", t="time i64[]").program.inputs[2].role
    'time'
    """
    table = {}
    for name, text in inputs.items():
        role, value = text.split(" ", 1) if "[" not in text.split(" ")[0] else ("state", text)
        table[name] = (role, name, value)
    lines = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return Traced(parse(f"INPUTS = {table!r}\n\n\ndef program({', '.join(table)}):\n{lines}\n", SKETCH))
