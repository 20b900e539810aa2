"""The search for schedules that are faster on this machine than what formulas say, and for where torch is.

One kernel of each sort is measured, on what a step gives it: a candidate against the fastest one so far, in turns. What
is found goes into the database (`tuned`) candidate by candidate: a search that is interrupted goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg

from ...ir.program import val
from . import tuned
from .build import Call, Library
from .isa import detect
from .places import Launch, Panels, Place, Scratch, spanned
from .plan import Group
from .running import Code
from .schedule import TORCH, Choice, Schedule, Space
from .stage import Builder
from .tuned import Found

_SAMPLE = 2e-4  # seconds that a sample takes at least, by repeating
_LEAST = 5  # samples of a candidate by itself
_ROUNDS, _WINS = 11, 9  # of two candidates in turn; of nine or more by chance: 3 %
_HOPELESS = 3, 1.15  # rounds after which a candidate goes that has been so much slower
_MARGIN = 0.98  # of the time: less of a gain is none
_SLICE = 3.0  # seconds that a kernel gets at least, before another has its turn
_ERROR = 1e-5  # of the largest value of a result


@dataclass(frozen=True)
class Subject:
    """A sort of kernel: groups of a stage that share their kernels.

    Attributes
    ----------
    identity : see `Builder.identity`.
    name : of the kernel that computes the result.
    group : one of them.
    calls : in a step.
    seconds : of all calls, with the default schedule.
    """

    identity: str
    name: str
    group: Group
    calls: int
    seconds: float
    space: Space


@dataclass(frozen=True)
class Outcome:
    """What is known of a subject."""

    subject: Subject
    found: Found | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        subject, found = self.subject, self.found or Found(None, 0, False, 0.0, 0.0)
        choice = found.choice if found.choice in (None, TORCH) else dataclasses.asdict(found.choice)  # type: ignore[arg-type]
        return {
            "kernel": subject.name, "calls": subject.calls, "seconds": subject.seconds, "choice": choice,
            "tried": found.tried, "candidates": len(subject.space), "finished": found.finished,
            "default_call_seconds": found.default_seconds, "call_seconds": found.seconds,
        }  # fmt: skip


# What a search tells: the subject, how many candidates of it have been tried, and what was found so far.
Say = Callable[[Subject, Found], None]


class Search:
    """The search for a stage.

    Parameters
    ----------
    code : of the stage.
    values : what a call of it is given.

    Attributes
    ----------
    subjects : the slowest first, all their calls together.
    """

    def __init__(self, code: Code, values: Sequence[Any]) -> None:
        self.plain, self.values, self.threads = code.again({}), values, torch.get_num_threads()
        self.subjects = _subjects(self.plain, values)

    def outcomes(self) -> list[Outcome]:
        """What is known now."""
        known = tuned.known(self.threads)
        return [Outcome(subject, known.get(subject.identity)) for subject in self.subjects]

    def forget(self) -> None:
        """Let go of what is known of the stage's kernels."""
        tuned.forget(self.threads, [subject.identity for subject in self.subjects])

    def run(self, budget: float, say: Say) -> None:
        """Go on with the search for so many seconds, or to its end.

        Time is shared in proportion to what kernels take of a step; what one does not need is for the others.

        Raises
        ------
        OSError : what is found cannot be written.
        """
        deadline = time.perf_counter() + budget
        while waiting := [entry for entry in self.outcomes() if entry.found is None or not entry.found.finished]:
            for place, entry in enumerate(waiting):
                now = time.perf_counter()
                if now >= deadline:
                    return
                share = entry.subject.seconds / sum(other.subject.seconds for other in waiting[place:])
                self._search(entry, min(deadline, now + max(_SLICE, share * (deadline - now))), say)

    def _search(self, entry: Outcome, stop: float, say: Say) -> None:
        """Try candidates of a subject until it is time to stop, one at least."""
        subject, known = entry.subject, entry.found
        bench = _Bench(self.plain, subject, self.values)
        default = bench.trial(subject.space.default)
        default.run()
        expected, best = default.result.clone(), default
        first = default.least()
        found = known or Found(None, 0, False, first, first)
        if isinstance(found.choice, Schedule) and found.choice in subject.space:
            best = bench.trial(found.choice)
        for number in range(found.tried, len(subject.space)):
            schedule = best.choice
            assert isinstance(schedule, Schedule)
            choice = subject.space.candidate(number, schedule)
            new = bench.trial(choice) if bench.can_run(choice) else default
            new.run()
            if new is default:
                pass
            elif not _agree(new.result, expected):
                warnings.warn(f"{subject.name} computes something else with {new.choice}", RuntimeWarning, stacklevel=2)
            elif (faster := compared(best, new)) is not None and faster < _MARGIN * (usual := default.least()):
                best = new
                found = dataclasses.replace(found, choice=new.choice, default_seconds=usual, seconds=faster)
            found = dataclasses.replace(found, tried=number + 1)
            if found.tried == len(subject.space):
                found = _settled(found, default, best)
            tuned.keep(self.threads, subject.identity, found)
            say(subject, found)
            if time.perf_counter() >= stop:
                return


def gain(code: Code, values: Sequence[Any], rounds: int) -> tuple[float, float]:
    """Median seconds of a call with the default schedules, and with those that are in the database, in turns."""
    both, clock = (code.again({}), code.again(None)), _clock()
    times: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(-1, rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                start = clock()
                both[which](*values)
                if number >= 0:
                    times[which].append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def compared(old: Trial, new: Trial) -> float | None:
    """The new candidate's seconds if it is faster than the old one beyond noise."""
    repeats = old.repeats()
    times: list[tuple[float, float]] = []
    for number in range(_ROUNDS):
        if number % 2:
            after, before = new.seconds(repeats), old.seconds(repeats)
        else:
            before, after = old.seconds(repeats), new.seconds(repeats)
        times.append((before, after))
        if len(times) == _HOPELESS[0] and min(t for _, t in times) > _HOPELESS[1] * min(t for t, _ in times):
            return None
    least = min(after for _, after in times)
    clear = sum(after < before for before, after in times) >= _WINS
    return least if clear and least < _MARGIN * min(before for before, _ in times) else None


def _clock() -> Callable[[], float]:
    """What measures seconds: of one thread its own, in which others' turns do not count."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _settled(found: Found, default: Trial, best: Trial) -> Found:
    """With the fastest candidate only if it is faster than the default once more."""
    found = dataclasses.replace(found, finished=True)
    if best is default:
        return dataclasses.replace(found, choice=None, seconds=found.default_seconds)
    seconds = compared(default, best)
    if seconds is None:
        return dataclasses.replace(found, choice=None, seconds=found.default_seconds)
    return dataclasses.replace(found, default_seconds=default.least(), seconds=seconds)


def _agree(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether results are the same but for rounding."""
    if not result.is_floating_point():
        return torch.equal(result, expected)
    error = max(_ERROR, torch.finfo(expected.dtype).eps)  # a sum of bfloat16 may be rounded the other way
    size = float(expected[expected.isfinite()].abs().amax()) if expected.isfinite().any() else 0.0
    return torch.allclose(result, expected, rtol=0.0, atol=error * size, equal_nan=True)


def _subjects(code: Code, values: Sequence[Any]) -> list[Subject]:
    seconds: dict[fx.Node, tuple[str, float]] = {}
    waiting = 0.0
    for launch, taken in code.timed(values, 3):
        waiting += taken
        if launch.computes:
            seconds[launch.computes[-1]] = launch.name, waiting
            waiting = 0.0
    builder, groups = code.builder, dict[str, list[Group]]()
    for step in builder.plan.steps:
        if isinstance(step, Group) and len(builder.spaces.get(builder.identity(step), ())):
            groups.setdefault(builder.identity(step), []).append(step)
    found = [
        Subject(
            identity,
            seconds[some[0].result][0],
            some[0],
            len(some),
            sum(seconds[group.result][1] for group in some),
            builder.spaces[identity],
        )
        for identity, some in groups.items()
    ]
    return sorted(found, key=lambda subject: -subject.seconds)


class Trial:
    """A candidate, ready to run.

    Attributes
    ----------
    result : where it writes to.
    memory : what it works with and only pointers show to.
    """

    def __init__(self, choice: Choice, result: torch.Tensor, run: Callable[[], None], memory: object = None) -> None:
        self.choice, self.result, self.run, self.memory = choice, result, run, memory

    def seconds(self, repeats: int = 1) -> float:
        """Of a call, the mean of some."""
        clock = _clock()
        start = clock()
        for _ in range(repeats):
            self.run()
        return (clock() - start) / repeats

    def repeats(self) -> int:
        """Calls of a sample."""
        return max(1, ceil(_SAMPLE / min(self.seconds(), self.seconds())))

    def least(self) -> float:
        """The least seconds of some samples."""
        repeats = self.repeats()
        return min(self.seconds(repeats) for _ in range(_LEAST))


class _Bench:
    """What a group of a stage reads in a call, for its candidates to run on."""

    def __init__(self, code: Code, subject: Subject, values: Sequence[Any]) -> None:
        self.group = subject.group
        self.builder = Builder(detect(), code.graph, code.examples, {})
        self.builder.anew(self.group, subject.space.default)
        computed = set(self.builder.computed(self.group))
        self.reads = [node for node in _sources(computed) if isinstance(val(node), torch.Tensor)]
        self.held = _held(code, values, self.group, self.reads)

    def can_run(self, choice: Choice) -> bool:
        """Whether all that a candidate reads is at hand: what torch alone reads may lie in memory of others by now."""
        return choice != TORCH or all(node in self.held for node in self.reads)

    def trial(self, choice: Choice) -> Trial:
        """A candidate that can run."""
        return self._torch() if choice == TORCH else self._generated(choice)

    def _generated(self, schedule: Schedule) -> Trial:
        result = self.group.result
        launches, strides = self.builder.anew(self.group, schedule), self.builder.strides[result]
        into = torch.empty(spanned(val(result).shape, strides), dtype=val(result).dtype)
        if into.is_floating_point():
            into.fill_(float("nan"))
        places: dict[Place, torch.Tensor] = {result: into}
        calls, table = [], list[int]()
        for launch in launches:
            calls.append(Call(self.builder.kernels[launch.kernel], len(table)))
            table += [self._memory(places, place).data_ptr() for place in launch.pointers]
        library, addresses = Library(detect(), [calls]), np.array(table)

        written = into.as_strided(val(result).shape, strides)
        return Trial(schedule, written, lambda: library.run(0, addresses.ctypes.data), places)

    def _memory(self, places: dict[Place, torch.Tensor], place: Place) -> torch.Tensor:
        if place not in places:
            if isinstance(place, Panels):
                with torch.no_grad():
                    places[place] = place.pack(self.held[place.weight])
            elif isinstance(place, Scratch):
                places[place] = torch.empty(place.floats)
            else:
                places[place] = self.held[place]
        return places[place]

    def _torch(self) -> Trial:
        """The group's nodes, one by one."""
        result, nodes, held = self.group.result, self.builder.computed(self.group), self.held
        into = torch.empty_strided(val(result).shape, self.builder.strides[result], dtype=val(result).dtype)
        trial = Trial(TORCH, into, lambda: None)

        def run() -> None:
            known: dict[fx.Node, Any] = dict(held)
            with torch.no_grad():
                for node in nodes:
                    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
                    known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
                trial.result = known[result]
                if trial.result.stride() != into.stride():
                    into.copy_(trial.result)

        trial.run = run
        return trial


def _sources(computed: set[fx.Node]) -> Iterator[fx.Node]:
    """What nodes read and do not compute."""
    yield from dict.fromkeys(source for node in computed for source in node.all_input_nodes if source not in computed)


def _held(code: Code, values: Sequence[Any], group: Group, reads: Sequence[fx.Node]) -> dict[fx.Node, torch.Tensor]:
    """The values of what a group reads, as they are when the first of its launches begins."""
    launches = [launch for step in code.plan.kernels for launch in step.launches]
    ends = [place for place, launch in enumerate(launches) if launch.computes]
    last = next(place for place in ends if launches[place].computes[-1] is group.result)
    first = max((place + 1 for place in ends if place < last), default=0)
    found: dict[fx.Node, torch.Tensor] = {}
    numbers = itertools.count()

    def each(launch: Launch, run: Callable[[], None], held: Callable[[fx.Node], torch.Tensor]) -> None:
        if next(numbers) == first:
            for node in reads:
                with contextlib.suppress(KeyError):
                    found[node] = held(node)
        run()

    code.walk(values, each)
    return found
