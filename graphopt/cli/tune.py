"""``graphopt tune``: measure which schedules of the TVM target's kernels are fastest on this machine, and keep them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli._app import AsJson, Debug, errors, note, out, phase
from graphopt.cli._history import ModuleName
from graphopt.cli._recorded import generated
from graphopt.cli._request import (
    PROMPT,
    SEED,
    STEPS,
    Arguments,
    Name,
    OnePass,
    PassPipeline,
    Pixels,
    Prompt,
    Request,
    Seed,
    Session,
    Steps,
)  # fmt: skip
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.targets.tvm.tuned import Found
    from graphopt.targets.tvm.tuning import Outcome, Say, Search, Subject

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_ROUNDS = 15  # of whole steps, with and without what was found

Budget = Annotated[str, typer.Option(help="Time for the search: 90s, 5m, 1h; 0s shows what is known.")]
Again = Annotated[bool, typer.Option("--again", help="Forget what is known of these kernels, and measure anew.")]


def tune(
    pipeline: Name,
    budget: Budget = "5m",
    again: Again = False,
    module: ModuleName = None,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    seed: Seed = SEED,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find faster schedules for the kernels that the TVM target generates for a step, by measuring on this machine.

    What is found is kept, and used wherever the same kernels are generated on as many threads. It can be interrupted:
    the next run goes on from there.

    For example:

        graphopt tune emoji-dit

        graphopt tune emoji-unet --budget 90s --module vae.decoder
    """
    seconds = seconds_of(budget)
    if seconds or again:
        _check_kept()
    request = Request(pipeline, prompt, steps, seed, height, width, tuple(arg or ()), None,
                      "tvm", pass_pipeline, tuple(one_pass or ()))  # fmt: skip
    session = request.open()
    name, others, step, code = generated(session, module)
    from graphopt.targets.tvm import tuned
    from graphopt.targets.tvm.tuning import Search, gain

    with phase(f"timing the kernels of {name}"):
        search = Search(code, step.arguments)
    try:
        if again:
            search.forget()
        with _progress(search) as say:
            search.run(seconds, say)
    except OSError as error:
        raise _not_kept(error) from None
    except KeyboardInterrupt:
        note("what was found so far is kept; the next run goes on from there")
        raise
    outcomes = search.outcomes()
    before = after = None
    if any(outcome.found and outcome.found.choice for outcome in outcomes):
        with phase(f"timing whole steps: {_ROUNDS} rounds"):
            before, after = gain(code, step.arguments, _ROUNDS)
    if as_json:
        made = {
            "module": name, "threads": search.threads, "database": str(tuned.path()),
            "default_step_seconds": before, "step_seconds": after,
            "kernels": [outcome.to_dict() for outcome in outcomes],
        }  # fmt: skip
        typer.echo(json.dumps(made, indent=2))
        return
    _show(session, name, outcomes, before, after)
    if others and module is None:
        note(f"--module takes the others, too: {', '.join(others)}")


def _check_kept() -> None:
    """Raise UsageError where what is found could not be kept, before anything is loaded and measured."""
    if importlib.util.find_spec("tvm") is None:
        return  # which the target says better
    from graphopt.targets.tvm import tuned

    try:
        tuned.forget(0, ())
    except OSError as error:
        raise _not_kept(error) from None


def _not_kept(error: OSError) -> UsageError:
    hint = "GRAPHOPT_CACHE_DIR names another folder"
    return UsageError(f"what is found cannot be kept: {error}", where="graphopt tune", hint=hint)


def seconds_of(text: str) -> float:
    """Of a time such as 90s, 5m or 1h.

    Raises
    ------
    UsageError : it is no such time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)", text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a time of 0s or more", where="--budget", hint="90s, 5m or 1h")
    return float(match[1]) * _UNITS[match[2]]


@contextmanager
def _progress(search: Search) -> Iterator[Say]:
    """Candidates tried of all, on stderr; a line per kernel where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = sum(len(subject.space) for subject in search.subjects)
    tried = {outcome.subject.identity: outcome.found.tried for outcome in search.outcomes() if outcome.found}
    console = errors()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("candidates", total=total, completed=sum(tried.values()))

        def say(subject: Subject, found: Found) -> None:
            tried[subject.identity] = found.tried
            progress.update(task, completed=sum(tried.values()), description=f"{subject.name}: {_gain(found)}")
            if found.finished and not console.is_terminal:
                console.print(f"{subject.name}: {_gain(found)}, {found.tried} candidates", markup=False)

        yield say


def _gain(found: Found) -> str:
    if found.choice is None:
        return "default"
    return f"{found.default_seconds / found.seconds:.2f} times as fast"


def _show(session: Session, name: str, outcomes: Sequence[Outcome], before: float | None, after: float | None) -> None:
    from rich.text import Text

    from graphopt.cli._show import remark, table
    from graphopt.debug.figures import counted, duration

    console, total = out(), sum(outcome.subject.seconds for outcome in outcomes)
    console.rule(Text(f"{session.title}: {name}", style="bold"), align="left")
    rows = table("Kernels with a choice", "kernel", "calls", "share", "tried", "default", "chosen", "gain", "choice",
                 left=("choice",))  # fmt: skip
    for outcome in outcomes:
        subject, found = outcome.subject, outcome.found
        rows.add_row(
            subject.name,
            str(subject.calls),
            f"{subject.seconds / total:.1%}",
            f"{found.tried if found else 0} of {len(subject.space)}",
            duration(found.default_seconds) if found else "·",
            duration(found.seconds) if found else "·",
            f"{found.default_seconds / found.seconds:.2f}" if found else "·",
            _choice(found),
        )
    console.print(rows)
    said = [summary(outcomes)]
    if before is not None and after is not None:
        said.append(f"Whole steps, in turns: {duration(before)} with the default schedules, {duration(after)} with the "
                    "chosen ones.")  # fmt: skip
    if left := sum(outcome.found is None or not outcome.found.finished for outcome in outcomes):
        said.append(f"{counted(left, 'kernel has', 'kernels have')} candidates left: the next run goes on there.")
    remark(console, Text(" ".join(said)))


def _choice(found: Found | None) -> str:
    from graphopt.targets.tvm.schedule import Schedule

    if found is None or found.choice is None:
        return "default" if found else "·"
    if not isinstance(found.choice, Schedule):
        return "torch's own operators"
    return f"{found.choice.rows} × {found.choice.vectors} vectors, tasks of {found.choice.work:,}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How often what was chosen."""
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        choice = outcome.found.choice if outcome.found else None
        what = "default" if choice is None else "torch" if choice == "torch" else "tuned"
        counts[what] += outcome.subject.calls
    return (f"Of {sum(counts.values())} calls {counts['tuned']} have another schedule than the default, and "
            f"{counts['torch']} are left to torch by measurement.")  # fmt: skip
