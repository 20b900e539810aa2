"""The one oracle for passes: structure, numbers, accuracy class, and what else must hold of any pass."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import UsageError, VerificationError
from graphopt.ir.driver import run_pass
from graphopt.ir.printer import dump
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Match, Observer, Pass, Refusal, check_is_pass, spell
from graphopt.ir.verify import compare, evaluate, example_inputs, spread
from graphopt.testing.sketches import Traced, body_lines, program_of

_SHOWN = 60  # lines of a difference


class Recorder(Observer):
    r"""Keeps what passes did: fired matches (pass and root by name) and refusals, in order.

    >>> from graphopt.passes import RemoveDead
    >>> from graphopt.testing import sketch
    >>> recorder = Recorder()
    >>> program = sketch("y = ops.aten.sin.default(x)\nreturn (x,)", x="f32[3]").program
    >>> _ = run_pass(RemoveDead(), program, recorder)
    >>> recorder.fired
    [('remove_dead', 'y')]
    """

    def __init__(self) -> None:
        self.fired: list[tuple[str, str]] = []
        self.refusals: list[tuple[str, Refusal]] = []

    def rewrites(self, pass_: Pass, match: Match) -> None:
        self.fired.append((pass_.name, match.root.name))

    def refuses(self, pass_: Pass, refusal: Refusal) -> None:
        if refusal.node._erased or not refusal.reason:
            raise VerificationError(
                "a refusal needs a reason and a node of the program", where=f"{pass_.name}, at {refusal.node.name}"
            )
        self.refusals.append((pass_.name, refusal))


@dataclass
class Checked:
    """What `check_pass` saw: the Program after the pass, how often it fired, and why it did not elsewhere."""

    program: Program
    fired: int
    refusals: list[Refusal]

    def __repr__(self) -> str:
        counts = Counter(self.reasons).most_common()
        held = [f"{reason!r} ({count} times)" if count > 1 else repr(reason) for reason, count in counts[:3]]
        more = [f"and {len(counts) - 3} more"] * (len(counts) > 3)
        return f"Checked(fired={self.fired}, refused: {', '.join(held + more) or 'nowhere'}, {self.program!r})"

    @property
    def reasons(self) -> list[str]:
        """Of the refusals, in order."""
        return [refusal.reason for refusal in self.refusals]


def check_pass(
    pass_: Pass,
    program: Program | Traced,
    *,
    seeds: int = 2,
    idempotent: bool = True,
    golden: str | Path | None = None,
    update: bool = False,
) -> Checked:
    """Run one pass and check everything that must hold of any pass.

    - The result is a valid Program with the inputs, roles and result shapes of the one given; no node is placed in a
      stage before what it reads is known (`graphopt.ir.verify.verify`).
    - Values on seeded inputs are as accurate as the pass declares; `compare` of `graphopt.ir.verify` says what that is.
    - The Program given is left as it is, the same comes out of it again, and running the pass on that changes nothing.
    - Refusals have a reason, and a node of the Program.

    Parameters
    ----------
    program : a Program, or what `sketch` and `trace` give.
    seeds : how many sets of inputs to try.
    idempotent : whether to check that the pass leaves its own result alone.
    golden : file with the text that the Program must have after the pass, line for line.
    update : write that file instead of reading it.

    Raises
    ------
    VerificationError : says what does not hold, and shows what the pass changed.
    PassError : the pass raised.
    UsageError : there is no golden file yet; or this is no pass, or no Program.
    """
    check_is_pass(pass_, "check_pass")
    program = program_of(program, "check_pass")
    recorder, untouched = Recorder(), dump(program)
    after = run_pass(pass_, program, recorder)
    if dump(program) != untouched:
        raise VerificationError("the pass changed the Program it was given", where=spell(pass_),
                                hint="only the Program that `rewrite` is handed may be changed")  # fmt: skip
    for seed in range(seeds):
        inputs = example_inputs(program, seed)
        exact = evaluate(program, inputs, double=True) if pass_.accuracy != "bitwise" else None
        was, now = evaluate(program, inputs), evaluate(after, inputs)
        wrong = compare(was, now, pass_.accuracy, exact)
        if wrong and pass_.accuracy == "rounding":  # the original may be right by chance, where terms cancel
            wrong = compare(was, now, pass_.accuracy, exact, expected=spread(program, inputs))
        if wrong:
            raise VerificationError(
                f"not {pass_.accuracy}: {wrong}\n{changes(program, after)}",
                where=f"{spell(pass_)}, seed {seed}",
                hint=_looser(pass_),
            )
    if dump(run_pass(pass_, program)) != dump(after):
        raise VerificationError(
            "the pass makes another Program each time",
            where=spell(pass_),
            hint="nothing may depend on the order of a set",
        )
    if idempotent:
        again = Recorder()
        twice = run_pass(pass_, after, again)
        if again.fired or dump(twice) != dump(after):
            where = f"{spell(pass_)}, at {', '.join(name for _, name in again.fired)}"
            raise VerificationError(f"running the pass again fired again\n{changes(after, twice)}", where=where)
    if golden is not None:
        _compare_text(after, Path(golden), update=update)
    return Checked(after, len(recorder.fired), [refusal for _, refusal in recorder.refusals])


def changes(before: Program, after: Program) -> str:
    """The lines in which two Programs differ, with those around them; as a unified difference."""
    found = list(difflib.unified_diff(body_lines(before), body_lines(after), "before", "after", lineterm="", n=3))
    rest = [f"… and {len(found) - _SHOWN} more lines"] if len(found) > _SHOWN else []
    return "\n".join([*found[:_SHOWN], *rest])


def _looser(pass_: Pass) -> str:
    """What to write where a pass is meant to be less accurate than it says."""
    if pass_.accuracy != "bitwise":
        return ""
    return 'if it may round otherwise than before, declare it: accuracy: ClassVar[Accuracy] = "rounding"'


def _compare_text(program: Program, path: Path, *, update: bool) -> None:
    bare = program.copy()
    for node in bare.graph.nodes:
        node.meta.pop("rules", None)
    lines = body_lines(bare)
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif not path.exists():
        raise UsageError("there is no golden file", where=str(path),
                         hint="check_pass(…, update=True) writes it: read it, and keep it with the test")  # fmt: skip
    elif (known := path.read_text(encoding="utf-8").splitlines()) != lines:
        found = difflib.unified_diff(known, lines, str(path), "now", lineterm="")
        raise VerificationError("the text is not that of the golden file\n" + "\n".join(found), where=str(path),
                                hint="check_pass(…, update=True) writes it anew")  # fmt: skip
