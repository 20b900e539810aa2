"""What it costs that the compiler can be watched: building with hooks against building without any, and with a History.

    python -m benchmarks.observers                   both bundled pipelines, about ten minutes
    python -m benchmarks.observers --tiny            two small pipelines: a minute

Every module of a pipeline is captured once; then all are built again and again, from the captured Program to kernels of
the eager target, which is where observers are told of things. Three ways take turns in random order on the same
Programs:

- *without hooks*: events go straight to the two observers that compiling needs itself (statistics and verification),
  and those that neither listens to are calls of an empty function;
- *observers off*: as it is when no observer is given;
- *History*: with `graphopt.debug.history.History`, which keeps every Program and every rewrite.

Times are processor seconds of the thread (other programs' turns do not count); ratios are to the first way, round by
round, with 95 % bootstrap intervals of their median. The last column is counted instead of compared, which noise cannot
hide: events, times what it takes to hand one through the compiler's own observers to nobody. Exit status 1 when hooks
cost 2 % of building or more beyond the interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import graphopt
from benchmarks.harness import Timing, interleave, paired
from benchmarks.pipelines import FULL, TINY, DiffusersPipeline, diffusers_pipelines
from graphopt.compile import compiled_calls
from graphopt.debug.history import History
from graphopt.ir.driver import Observers
from graphopt.ir.rewrite import Observer

BOUND = 0.02  # of the time of a build
_HOOKS = [name for name in vars(Observer) if not name.startswith("_")]


class Straight(Observers):
    """Observers whose events go to whoever listens, without passing through anything."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        flat: list[Observer] = []
        for observer in observers:
            flat += observer.observers if isinstance(observer, Observers) else [observer]
        super().__init__(flat)
        for name in _HOOKS:
            heard = [o for o in flat if getattr(type(o), name) is not getattr(Observer, name)]
            setattr(self, name, _together([getattr(observer, name) for observer in heard], name == "allows"))


def _together(calls: Sequence[Callable[..., Any]], answer: bool) -> Callable[..., Any]:
    if len(calls) == 1:
        return calls[0]
    if not calls:
        return (lambda *args: True) if answer else (lambda *args: None)

    def both(*args: Any) -> None:
        for call in calls:
            call(*args)

    return both


class Counting(Observer):
    """Counts the events that it is told of."""

    def __init__(self) -> None:
        self.events = Counter[str]()

    def allows(self, pass_: Any, match: Any) -> bool:
        self.events["allows"] += 1
        return True


def _counted(name: str) -> Any:
    def call(self: Counting, *args: Any) -> None:
        self.events[name] += 1

    return call


for _name in _HOOKS:
    if _name != "allows":
        setattr(Counting, _name, _counted(_name))


@dataclass(frozen=True)
class Row:
    """One pipeline.

    Attributes
    ----------
    nodes : of all its captured Programs.
    events : that an observer is told of in one build of all.
    event : processor seconds that handing one event on takes.
    timings : without hooks, observers off, History.
    """

    pipeline: str
    nodes: int
    events: int
    event: float
    timings: tuple[Timing, ...]

    @property
    def share(self) -> float:
        """What handing events on takes of building."""
        return self.events * self.event / self.timings[0].seconds


def measure(entry: DiffusersPipeline, rounds: int) -> Row:
    """Compile a pipeline once, then build its modules again, in all three ways."""
    pipe = entry.make()
    graphopt.compile(pipe, target="eager")
    entry.call(pipe, 0, 2)
    made = [
        (call._builder, variant.built, variant.relations) for call in compiled_calls(pipe) for variant in call.variants
    ]

    def seconds(observers: Sequence[Observer]) -> float:
        start = time.thread_time()
        for builder, built, relations in made:
            with mock.patch.object(builder, "observers", observers):
                builder.build(built.captured, relations, built.target)
        return time.thread_time() - start

    def without(given: None) -> float:
        with without_hooks():
            return seconds(())

    counting = Counting()
    seconds([counting])
    ways = {"without hooks": without, "observers off": lambda given: seconds(()),
            "History": lambda given: seconds([History()])}  # fmt: skip
    times = interleave(ways, lambda number: None, rounds=rounds, warm_up=1)
    base = times["without hooks"]
    return Row(
        entry.name,
        sum(len(built.captured.graph.nodes) for _, built, _ in made),
        sum(counting.events.values()),
        event_seconds(),
        tuple(paired(name, some, base) for name, some in times.items()),
    )


def event_seconds(count: int = 2000) -> float:
    """Processor seconds of handing an event on to nobody, as deep as the compiler's observers are nested."""
    observer = Observers((Observer(), Observers((Observer(),))))
    best = float("inf")
    for _ in range(20):
        start = time.thread_time()
        for _ in range(count):
            observer.rewritten(None, None, None)  # type: ignore[arg-type]
        best = min(best, (time.thread_time() - start) / count)
    return best


@contextmanager
def without_hooks() -> Iterator[None]:
    """Compile as if there were no hooks."""
    places = [sys.modules[name] for name in ("graphopt.compile", "graphopt.ir.driver")]
    with mock.patch.object(places[0], "Observers", Straight), mock.patch.object(places[1], "Observers", Straight):
        yield


def table(rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [
        "| pipeline | nodes | events | building, s | observers off | History | µs per event | events, of building |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        without, *others = row.timings
        cells = [f"{t.ratio:.4f} ({t.low:.4f} to {t.high:.4f})" for t in others]
        figures = (row.pipeline, row.nodes, row.events, f"{without.seconds:.2f}", *cells, f"{row.event * 1e6:.2f}",
                   f"{row.share:.3%}")  # fmt: skip
        lines.append(f"| {' | '.join(map(str, figures))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="pipelines by name")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="small tensors only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = diffusers_pipelines(TINY if options.tiny else FULL)
    names = options.models or (["dit-s/2", "sd3-like"] if options.tiny else ["emoji-unet", "emoji-dit"])
    rows = [measure(known[name], options.rounds) for name in names]
    print(table(rows))
    print(f"{options.rounds} rounds; ratios to building without hooks, processor time.")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return int(any(row.timings[1].low >= 1 + BOUND for row in rows))


if __name__ == "__main__":
    sys.exit(main())
