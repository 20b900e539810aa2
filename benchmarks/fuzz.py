"""Random graphs through every pass in random legal orders: wrong results and crashes, counted. There should be none.

    python -m benchmarks.fuzz --graphs 20000 --seed 0 --processes 2      (20 minutes to two hours)
    python -m benchmarks.fuzz --only 1234                                 one seed, as the run above had it

A seed names a graph (`graphopt.testing.random_graph`), an order of passes with their options
(`graphopt.testing.random_sequence`) and the numbers that go in. `graphopt.testing.check_sequence` says what is checked
after each pass and at the end. One graph in 32 has symbolic sizes; three in eight have relations between their inputs,
as guidance and inpainting give them.

The run goes on where it stopped (``--state``), also after Ctrl-C, and tries what failed again. Each failure leaves a
file in ``--cases``: the seed, the passes that are needed for it, and the smallest graph that still fails. Exit status 1
when there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import random
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from graphopt.errors import GraphoptError, UsageError
from graphopt.ir.printer import dump
from graphopt.ir.program import Program, remembering
from graphopt.ir.rewrite import Pass, spell
from graphopt.passes import (
    PASSES,
    ComposeLinears,
    FoldScales,
    FoldUpdates,
    FuseAttention,
    NarrowProducts,
    PackWeights,
    ShareRepeats,
    SplitConcat,
    Upcast,
    Winograd,
)
from graphopt.testing import check_sequence, minimise, random_graph, random_sequence
from graphopt.testing.minimise import shortest

_CHUNK = 20  # seeds handed to a process at once

# Passes weigh what a rewrite saves; small graphs save little.
EAGER: tuple[Pass, ...] = (
    ComposeLinears(calls=1 << 40),
    FoldScales(layer_norms=True),
    FoldUpdates(min_saved=1),
    FuseAttention(min_bytes=0),
    PackWeights(min_flops=0),
    ShareRepeats(flops_per_byte=1e-3, dispatch_bytes=0),
    SplitConcat(flops_per_byte=1e-3, dispatch_bytes=0),
    Upcast(always=True),
    NarrowProducts(always=True),
    Winograd(min_gain=0.0),
)


@dataclass(frozen=True)
class Case:
    """What a seed stands for."""

    seed: int
    program: Program
    passes: list[Pass]


def case(seed: int) -> Case:
    """The graph of a seed, of 10 to 20 operations, and its passes."""
    chance = random.Random(seed)
    kind = chance.randrange(32)
    program = random_graph(chance.randrange, 10 + chance.randrange(11), symbolic=kind == 0, related=0 < kind < 13)
    return Case(seed, program, random_sequence(chance.randrange, PASSES, EAGER))


@dataclass
class Tally:
    """Counts over graphs.

    Attributes
    ----------
    graphs : that were run; `unusable` those of them that torch itself could not run.
    passes : passes that were run, repetitions included.
    fired : graphs that a pass changed, by pass.
    uncertain : results judged by what rounding has to be expected to do, see `graphopt.testing.Ran`.
    failures : seed → first line of the error.
    """

    graphs: int = 0
    unusable: int = 0
    symbolic: int = 0
    operations: int = 0
    passes: int = 0
    uncertain: int = 0
    seconds: float = 0.0
    fired: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        for entry in fields(self):
            mine, more = getattr(self, entry.name), getattr(other, entry.name)
            setattr(self, entry.name, mine | more if type(mine) is dict else mine + more)


AnyTally = TypeVar("AnyTally", bound=Tally)


# -- one seed --------------------------------------------------------------------------------------------------------


def run(seed: int, folder: Path | None) -> Tally:
    """Run one seed; a failure is minimised and written to `folder`."""
    tally, start = Tally(graphs=1), time.process_time()
    found: Case | None = None
    try:
        found = case(seed)
        sizes = [size for node in found.program.placeholders for size in node.meta["val"].shape]
        tally.symbolic = any(isinstance(size, torch.SymInt) for size in sizes)
        tally.operations, tally.passes = len(list(found.program.calls())), len(found.passes)
        ran = check_sequence(found.passes, found.program, seed=seed)
        tally.fired.update(dict.fromkeys(ran.fired, 1))
        tally.uncertain = ran.uncertain
    except UsageError:
        tally.unusable = 1
    except GraphoptError as error:
        tally.failures[str(seed)] = _first_line(error)
        if folder is not None and found is not None:
            _write(folder, found, error)
    except Exception:
        tally.failures[str(seed)] = traceback.format_exc().strip().splitlines()[-1]
        if folder is not None:
            (folder / f"{seed}.txt").write_text(traceback.format_exc())
    tally.seconds = time.process_time() - start
    return tally


def _first_line(error: Exception) -> str:
    where = getattr(error, "where", "")
    return f"{str(error).splitlines()[0]} ({where})"


def _signature(error: Exception) -> tuple[str, str]:
    """What makes two failures the same: the pass, and the message without numbers and names of nodes."""
    text = re.sub(r"'[^']*'|[-+]?\d[\d.e+-]*|\(.*?\)|\[.*?\]", "#", str(error).splitlines()[0])
    return re.split(r"[{,]", getattr(error, "where", ""))[0], text


def _error(passes: Sequence[Pass], program: Program, seed: int) -> Exception | None:
    try:
        check_sequence(passes, program, seed=seed)
    except UsageError:
        return None
    except Exception as error:
        return error
    return None


def _write(folder: Path, found: Case, error: GraphoptError) -> None:
    wanted = _signature(error)

    def fails(passes: Sequence[Pass], program: Program) -> bool:
        error = _error(passes, program, found.seed)
        return error is not None and _signature(error) == wanted

    passes = shortest(found.passes, lambda fewer: fails(fewer, found.program))
    program = minimise(found.program, lambda smaller: fails(passes, smaller), attempts=200)
    passes = shortest(passes, lambda fewer: fails(fewer, program))
    last = _error(passes, program, found.seed) or error
    order = ", ".join(map(spell, passes))
    report = "\n".join(f"# {line}".rstrip() for line in f"seed {found.seed}\npasses: {order}\n\n{last}".splitlines())
    (folder / f"{found.seed}.py").write_text(f"{dump(program)}\n\n{report}\n")


# -- many seeds ------------------------------------------------------------------------------------------------------


def _work(pipe: Connection, run: Callable[[int], Tally]) -> None:
    """A process: receives lists of seeds, answers after each seed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settings()
    gc.freeze()  # torch's own objects, which a collection need not go through
    gc.set_threshold(20_000, 20, 50)
    with contextlib.suppress(EOFError), remembering():
        while (seeds := pipe.recv()) is not None:
            for seed in seeds:
                pipe.send(run(seed))


def _settings() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


class _Worker:
    def __init__(self, run: Callable[[int], Tally]) -> None:
        self.run, self.seeds = run, list[int]()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, self.run), daemon=True)
        self.process.start()
        other.close()

    def give(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.pipe.send(seeds)


def run_all(seeds: Sequence[int], processes: int, run: Callable[[int], Tally], tally: Tally, done: Any) -> None:
    """Run seeds on several processes; one that dies counts as a failure of the seed at hand."""
    rest = list(reversed(seeds))
    workers = [_Worker(run) for _ in range(min(processes, -(-len(rest) // _CHUNK)))]
    busy: dict[Any, _Worker] = {}

    def feed(worker: _Worker) -> None:
        if rest:
            worker.give([rest.pop() for _ in range(min(_CHUNK, len(rest)))])
            busy[worker.pipe] = worker

    for worker in workers:
        feed(worker)
    while busy:
        for pipe in wait(list(busy)):
            worker = busy.pop(pipe)
            seed = worker.seeds.pop(0)
            try:
                answer = worker.pipe.recv()
                busy[pipe] = worker
            except EOFError:
                worker.process.join()
                answer = type(tally)(graphs=1, failures={str(seed): f"the process died with {worker.process.exitcode}"})
                worker.start()
                if worker.seeds:
                    worker.give(worker.seeds)
                    busy[worker.pipe] = worker
            tally.add(answer)
            done(seed)
            if not worker.seeds:
                busy.pop(worker.pipe, None)
                feed(worker)
    for worker in workers:
        worker.pipe.send(None)
        worker.process.join()


class _State:
    """The seeds that were run and the counts, in a file that is replaced as a whole.

    Those that failed are run again by whoever reads it.
    """

    def __init__(self, path: Path, first: int, tally: Tally) -> None:
        self.path, self.first = path, first
        self.tally, self.done = tally, set[int]()
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["seed"] != first:
                raise SystemExit(f"{path} is of a run from seed {kept['seed']}: remove it, or name another --state")
            self.done = {seed for low, high in kept["done"] for seed in range(low, high)}
            for entry in fields(tally):
                setattr(tally, entry.name, type(getattr(tally, entry.name))(kept["tally"][entry.name]))
            self.done -= set(map(int, self.tally.failures))
            self.tally.graphs -= len(self.tally.failures)
            self.tally.failures = {}

    def save(self) -> None:
        ranges: list[list[int]] = []
        for seed in sorted(self.done):
            if ranges and ranges[-1][1] == seed:
                ranges[-1][1] += 1
            else:
                ranges.append([seed, seed + 1])
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"seed": self.first, "done": ranges, "tally": vars(self.tally)}, indent=1))
        draft.replace(self.path)


def table(tally: Tally) -> str:
    """Counts as Markdown."""
    usable = tally.graphs - tally.unusable
    lines = [
        f"{tally.graphs} graphs ({tally.symbolic} with symbolic sizes), {tally.operations / max(1, usable):.1f} "
        f"operations each; {tally.passes} passes run; {tally.seconds / max(1, tally.graphs):.3f} s of one core a graph",
        f"wrong results or crashes: {len(tally.failures)}; graphs that torch could not run: {tally.unusable}; results "
        f"judged by expected rounding: {tally.uncertain}",
        "",
        "| pass | graphs it changed |",
        "|---|---|",
    ]
    lines += [f"| `{kind().name}` | {tally.fired[kind().name]} |" for kind in PASSES]
    lines += [
        "",
        *(f"seed {seed}: {reason}" for seed, reason in sorted(tally.failures.items(), key=lambda e: int(e[0]))),
    ]
    return "\n".join(lines)


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options of a run over seeds, of which `name` names the files."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--graphs", type=int, default=1000, help="how many seeds to run (default: %(default)s)")
    found.add_argument("--seed", type=int, default=0, help="the first of them (default: %(default)s)")
    found.add_argument("--processes", type=int, default=1, help="(default: %(default)s)")
    found.add_argument(
        "--state", type=Path, default=Path(f"{name}.json"), help="where the run goes on (default: %(default)s)"
    )
    found.add_argument("--cases", type=Path, default=Path(f"{name}_cases"), help="for failures (default: %(default)s)")
    found.add_argument(
        "--only", type=int, metavar="SEED", action="append", help="run these seeds, here, and nothing else"
    )
    return found


def go(
    options: argparse.Namespace, run: Callable[[int], AnyTally], tally: AnyTally, table: Callable[[AnyTally], str]
) -> int:
    """Run the seeds that the options of `parser` name, print the table of their counts, and give the exit status.

    Parameters
    ----------
    run : one seed; processes get it pickled.
    tally : empty; filled here.
    """
    options.cases.mkdir(parents=True, exist_ok=True)
    if options.only:
        _settings()
        for seed in options.only:
            tally.add(run(seed))
        print(table(tally))
        return 1 if tally.failures else 0
    state = _State(options.state, options.seed, tally)
    seeds = [seed for seed in range(options.seed, options.seed + options.graphs) if seed not in state.done]
    shown = time.monotonic()

    def done(seed: int) -> None:
        nonlocal shown
        state.done.add(seed)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            state.save()
            print(f"{len(state.done)} of {options.graphs} graphs, {len(tally.failures)} failures", file=sys.stderr)

    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        run_all(seeds, options.processes, run, tally, done)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        state.save()
    print(table(tally))
    return 1 if tally.failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parser(__doc__, "fuzz").parse_args(arguments)
    return go(options, partial(run, folder=options.cases), Tally(), table)


if __name__ == "__main__":
    sys.exit(main())
