"""Several passes in a row, in an order nobody thought of: what must hold after each of them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from graphopt.errors import PassError, UsageError, VerificationError
from graphopt.ir.driver import run_pass
from graphopt.ir.effects import has_effect
from graphopt.ir.printer import dump
from graphopt.ir.program import Program, Role
from graphopt.ir.rewrite import Match, Pass, check_is_pass, spell
from graphopt.ir.stages import split
from graphopt.ir.verify import compare, evaluate, example_inputs, spread
from graphopt.testing.checks import changes
from graphopt.testing.sketches import Traced, program_of

# Roles whose inputs change together from one call to the next: within a step, between steps, between requests.
_CHANGES: tuple[frozenset[Role], ...] = (
    frozenset({"condition"}),
    frozenset({"state"}),
    frozenset({"state", "time"}),
    frozenset({"state", "condition"}),
)


@dataclass
class Ran:
    """What `check_sequence` saw.

    Attributes
    ----------
    program : after all passes.
    fired : passes by name, counted where they changed the Program.
    uncertain : how often the original's error alone would not have allowed for the error found, but the error that
        rounding has to be expected to make did (`graphopt.ir.verify.spread`).
    """

    program: Program
    fired: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0


def check_sequence(passes: Sequence[Pass], program: Program | Traced, *, seed: int = 0) -> Ran:
    r"""Run passes one after the other and check after each what must hold of any pass in any order.

    - The result is valid and has the boundary of what went in (`graphopt.ir.verify.verify`); random operations, and
      others with an effect, are all there, in their order; the Program that went in is as it was.
    - Values: a bitwise pass changes no bit of those before it; after rounding passes, values are as close to the
      original in float64 as so many passes may leave them (`graphopt.ir.verify.compare`).
    - A bitwise pass that runs again finds nothing to do.

    For a few seeds, inputs hold infinities and NaN, until a pass fires that may spread them (`Pass.spreads`): from
    there on inputs are finite, and the original is evaluated again.

    And of the last Program: its stages, run one after the other, give the same bits, also where earlier stages are kept
    and only inputs of later ones change; where sizes are symbolic, values are right at other sizes too.

    Raises
    ------
    PassError : says after which pass what does not hold.
    UsageError : the Program itself cannot be run; or there is what is no pass, or no Program.

    >>> from graphopt.passes import FoldConstants, RemoveDead
    >>> from graphopt.testing import sketch
    >>> before = sketch("a = ops.aten.sin.default(w)\nb = ops.aten.cos.default(w)\nreturn (a,)", w="weight f32[2]")
    >>> dict(check_sequence([FoldConstants(), RemoveDead()], before.program).fired)
    {'fold_constants': 1, 'remove_dead': 1}
    """
    for entry in passes:
        check_is_pass(entry, "check_sequence")
    return _Run(program_of(program, "check_sequence"), seed).over(passes)


class _Run:
    def __init__(self, program: Program, seed: int) -> None:
        self.original, self.seed = program, seed
        self.sizes = _other_sizes(program)
        self.finite = False
        try:
            self.expected = evaluate(program, self.inputs)
        except Exception as error:
            raise UsageError(f"the program cannot be run: {error}", where=program.name) from error
        self.rounding = 0
        self.ran = Ran(program)

    def over(self, passes: Sequence[Pass]) -> Ran:
        program, results = self.original, self.expected
        for position, pass_ in enumerate(passes):
            where = f"{spell(pass_)}, pass {position + 1} of {len(passes)}"
            if _fires(pass_, program, where):
                program, results = self.after(pass_, program, results, where)
        self.ran.program = program
        self.stages(program, results)
        self.elsewhere(program)
        return self.ran

    def after(self, pass_: Pass, program: Program, results: list[Any], where: str) -> tuple[Program, list[Any]]:
        """The Program after a pass that fires, and its results."""
        untouched, was, bitwise = dump(program), _effects(program), pass_.accuracy == "bitwise"
        after = run_pass(pass_, program)
        if dump(program) != untouched:
            raise VerificationError("the pass changed the Program it was given", where=where)
        if pass_.spreads and has_nonfinite(self.seed) and not self.finite:
            results = self.only_finite(program, where)
        if (now := _effects(after)) != was:
            raise VerificationError(f"operations with an effect were {was} and are {now}", where=where)
        self.ran.fired[pass_.name] += 1
        self.rounding += not bitwise
        found = _run(after, self.inputs, where)
        wrong = compare(results, found, "bitwise") if bitwise else self.wrong(found, self.inputs)
        if wrong:
            raise VerificationError(f"not {pass_.accuracy}: {wrong}\n{changes(program, after)}", where=where)
        if bitwise and (again := _fires(pass_, after, where)):
            raise VerificationError("running the pass again fired again", where=f"{where}, at {again.root.name}")
        return after, found

    @cached_property
    def inputs(self) -> list[Any]:
        return numbers(self.original, self.seed, finite=self.finite)

    def only_finite(self, program: Program, where: str) -> list[Any]:
        """Go on with finite inputs, and give what a Program makes of them."""
        self.finite = True
        for name in ("inputs", "exact"):
            vars(self).pop(name, None)
        self.expected = _run(self.original, self.inputs, "original")
        return _run(program, self.inputs, where)

    @cached_property
    def exact(self) -> list[Any]:
        """Results of the original in float64."""
        return evaluate(self.original, self.inputs, double=True)

    def wrong(self, found: list[Any], inputs: list[Any]) -> str | None:
        """What `compare` has against these results, given all rounding so far."""
        same = inputs is self.inputs
        before = self.expected if same else _run(self.original, inputs, "original")
        if not self.rounding:
            return compare(before, found, "bitwise")
        exact = self.exact if same else evaluate(self.original, inputs, double=True)
        reason = compare(before, found, "rounding", exact, passes=self.rounding)
        if reason is None:
            return None
        likely = spread(self.original, inputs)
        reason = compare(before, found, "rounding", exact, passes=self.rounding, expected=likely)
        self.ran.uncertain += reason is None
        return reason

    def stages(self, program: Program, results: list[Any]) -> None:
        """Stages run apart give the same, also when kept ones serve other inputs of later ones."""
        roles = _CHANGES[self.seed % len(_CHANGES)]
        drawn = numbers(program, self.seed, 1, finite=self.finite)
        other = [
            changed if entry.role in roles else same
            for entry, changed, same in zip(program.inputs, drawn, self.inputs, strict=True)
        ]
        kept: dict[str, Any] = {}
        first = run_stages(program, self.inputs, kept)
        if wrong := compare(results, first, "bitwise"):
            raise VerificationError(f"stages run apart: {wrong}\n{dump(program)}", where="stages")
        second = run_stages(program, other, kept, roles)
        if wrong := compare(_run(program, other, "stages"), second, "bitwise"):
            names = ", ".join(sorted(roles))
            raise VerificationError(
                f"kept stages are stale when {names} changes: {wrong}\n{dump(program)}", where="stages"
            )

    def elsewhere(self, program: Program) -> None:
        """Values are right at other sizes than those of the example."""
        if self.sizes is None:
            return
        inputs = example_inputs(self.original, self.seed, self.sizes)
        found = _run(program, inputs, f"sizes {self.sizes}")
        if wrong := self.wrong(found, inputs):
            raise VerificationError(f"at sizes {self.sizes}: {wrong}\n{changes(self.original, program)}", where="sizes")


def has_nonfinite(seed: int) -> bool:
    """Whether inputs of a seed hold infinities and NaN."""
    return seed % 16 == 1


def numbers(program: Program, seed: int, more: int = 0, *, finite: bool = False) -> list[Any]:
    """Inputs for a seed, or other ones: for some seeds with zeros of either sign, for a few with infinities and NaN."""
    inputs = example_inputs(program, seed + more)
    special: tuple[float, ...] = ()
    if seed % 4 == 0:
        special = (0.0, -0.0)
    elif has_nonfinite(seed) and not finite:
        special = (float("inf"), -float("inf"), float("nan"))
    for tensor, entry in zip(inputs, program.inputs, strict=True):
        drawn = isinstance(tensor, torch.Tensor) and entry.name not in program.constants  # which are the model's own
        if special and drawn and tensor.dtype.is_floating_point:
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(entry.name.encode()))
            for number in special:
                share = 0.1 if number == 0 else 0.01
                tensor[torch.rand(tensor.shape, generator=generator) < share] = number
    return inputs


def run_stages(
    program: Program, inputs: Sequence[Any], kept: dict[str, Any], changed: frozenset[Role] | None = None
) -> list[Any]:
    """Results of the stages of a Program, run one after the other.

    Parameters
    ----------
    kept : values that stages other than the step give, by name: filled here.
    changed : roles of the inputs that are not as they were when `kept` was filled; stages that depend on none of them
        are not run again. None: all are run.
    """
    known = dict(zip((entry.name for entry in program.inputs), inputs, strict=True))
    results: list[Any] = []
    for part in split(program):
        if part.name != "step" and changed is not None and not part.stage & changed:
            continue
        with torch.no_grad():
            values = [known[name] if name in known else kept[name] for name in part.reads]
            results = list(fx.Interpreter(part.root, graph=part.graph).run(*values))
        if part.name != "step":
            kept |= dict(zip(part.gives, results, strict=True))
    return results


def _run(program: Program, inputs: Sequence[Any], where: str) -> list[Any]:
    try:
        return evaluate(program, inputs)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise VerificationError(f"the program cannot be run: {reason}\n{dump(program)}", where=where) from error


def _fires(pass_: Pass, program: Program, where: str) -> Match | None:
    """The first place where a pass would fire, if any; looking takes no copy of the Program."""
    try:
        for match in pass_.find(program):
            refusal = pass_.legal(program, match)
            if refusal is None:
                return match
            if refusal.node.graph is not program.graph or not refusal.reason:
                raise VerificationError("a refusal needs a reason and a node of the program", where=where)
    except PassError:
        raise
    except Exception as error:
        raise PassError(f"the pass raised {type(error).__name__}: {error}\n{dump(program)}", where=where) from error
    return None


def _effects(program: Program) -> list[str]:
    return [str(node.target) for node in program.calls() if has_effect(node)]


def _other_sizes(program: Program) -> Mapping[Any, int] | None:
    """Numbers for the symbols in a Program's sizes, other than those of its example; None where there are none."""
    symbols: dict[Any, int] = {}
    environment: Any = None
    for node in program.placeholders:
        value = node.meta["val"]
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                symbols[size.node.expr], environment = size.node.hint, size.node.shape_env
    for more in (2, 1, 4, 3, 5):
        sizes = {symbol: number + more for symbol, number in symbols.items()}
        if symbols and all(bool(guard.expr.subs(sizes)) for guard in environment.guards):
            return sizes
    return None
