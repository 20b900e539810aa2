"""Random graphs through a target: wrong results and crashes, counted. There should be none.

    python -m benchmarks.fuzz_targets --target tvm --graphs 5000 --seed 0 --processes 2      (20 minutes to an hour)
    python -m benchmarks.fuzz_targets --only 1234                                            one seed of it

A seed names a graph (`graphopt.testing.random_graph`; every second one is of the wider kind), whether the pipeline that
suits the target rewrites it first (one in four), and the numbers that go in. `check` says what is checked. The run goes
on where it stopped, and each failure leaves the smallest graph that still fails in ``--cases``, as with
`benchmarks.fuzz`.
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import fuzz
from graphopt.errors import GraphoptError, TargetError
from graphopt.ir.driver import run_pipeline
from graphopt.ir.printer import dump
from graphopt.ir.program import Program
from graphopt.ir.stages import split
from graphopt.ir.verify import compare, evaluate, spread, steps
from graphopt.pipelines import PIPELINES
from graphopt.targets import Eager, Target
from graphopt.testing import minimise, random_graph
from graphopt.testing.sequences import numbers


@dataclass
class Tally(fuzz.Tally):
    """Counts over graphs.

    Attributes
    ----------
    refused : stages that the target does not take, which run on the eager target.
    left : graphs in which an operator stays with torch, by operator, for targets that say so.
    """

    refused: int = 0
    left: Counter[str] = field(default_factory=Counter)


class Built:
    """A Program of which every stage is built by a target.

    Attributes
    ----------
    kernels : of the stages, in order.
    refused : reasons for which the target took a stage not; it then runs on the eager target.
    """

    def __init__(self, target: Target, program: Program, inputs: Sequence[Any]) -> None:
        self.inputs = [entry.name for entry in program.inputs]
        self.kernels: list[Callable[..., tuple[Any, ...]]] = []
        self.refused: list[str] = []
        self._parts = split(program)
        values = dict(zip(self.inputs, inputs, strict=True))
        for part in self._parts:
            arguments = [values[name] for name in part.reads]
            try:
                kernel = target.build(part, arguments)
            except TargetError as error:
                if "writes into its argument" not in str(error):
                    raise
                self.refused.append(str(error))
                kernel = Eager().build(part, arguments)
            self.kernels.append(kernel)
            if part is not self._parts[-1]:
                with torch.no_grad():
                    values.update(zip(part.gives, kernel(*arguments), strict=True))

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        values = dict(zip(self.inputs, inputs, strict=True))
        results: tuple[Any, ...] = ()
        with torch.no_grad():
            for part, kernel in zip(self._parts, self.kernels, strict=True):
                results = kernel(*(values[name] for name in part.reads))
                values.update(zip(part.gives, results, strict=False))
        return list(results)


def check(built: Built, program: Program, inputs: Sequence[Any], *, strided: bool = True) -> str | None:
    """What is wrong with the results for some inputs, by `compare` against eager; None if nothing is.

    Further: strides are those of eager (with `strided`), nothing is written to the inputs, and results share memory
    with inputs only where those of eager do.
    """
    before = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
    torch.manual_seed(0)
    results = built(inputs)
    torch.manual_seed(0)
    want = evaluate(program, before)
    wrong = compare(before, list(inputs), "bitwise")
    if wrong:
        return f"an input was written to: {wrong}"
    torch.manual_seed(0)
    exact = evaluate(program, before, double=True)
    wrong = compare(want, results, "rounding", exact)
    if wrong:
        torch.manual_seed(0)
        wrong = compare(want, results, "rounding", exact, expected=spread(program, before))
    if wrong:
        return wrong
    for place, (old, new) in enumerate(zip(want, results, strict=True)):
        if isinstance(old, torch.Tensor):
            # Stages keep copies, which need not lie as what they are copies of.
            if strided and len(built.kernels) == 1 and steps(old) != steps(new):
                return f"result {place}: strides {new.stride()} instead of {old.stride()}"
            if _storages([new]) & _storages(inputs) and not _storages([old]) & _storages(before):
                return f"result {place} lies in an input's memory"
    return None


def _storages(values: Sequence[Any]) -> set[int]:
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.numel()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


# -- one seed --------------------------------------------------------------------------------------------------------


def case(seed: int, target: Target) -> Program:
    """The graph of a seed, of 10 to 20 operations."""
    chance = random.Random(seed)
    size, related = 10 + chance.randrange(11), chance.randrange(3) == 0
    wider = chance.randrange(2) == 0
    program = random_graph(chance.randrange, size, symbolic=False, related=related, wider=wider)
    return run_pipeline(PIPELINES[target.pipeline], program) if chance.randrange(4) == 0 else program


def failure(program: Program, target: Target, seed: int, tally: Tally) -> str | None:
    """What is wrong with a Program on a target, for numbers that are not the first ones that it gets."""
    inputs, others = _numbers(program, seed), _numbers(program, seed, more=1)
    try:
        torch.manual_seed(0)
        evaluate(program, inputs)
    except Exception:
        tally.unusable = 1
        return None
    built = Built(target, program, inputs)
    tally.refused = len(built.refused)
    plans = [kernel.builder.plan for kernel in built.kernels if hasattr(kernel, "builder")]
    tally.left.update({str(node.target) for plan in plans for node in plan.left})
    built(others)
    return check(built, program, inputs)


def _numbers(program: Program, seed: int, more: int = 0) -> list[Any]:
    """Inputs for a seed; finite ones for transposed convolutions and attention.

    A target's may multiply the zeros around an input, as torch's other convolutions do; torch's transposed ones do not,
    which shows where a weight is not finite. And with AVX-512 torch's attention is 0 for a query whose scores are all
    not a number.
    """
    found, aten = numbers(program, seed, more), torch.ops.aten
    if any(program.calls(aten.conv_transpose2d.input, aten.scaled_dot_product_attention.default)):
        found = [value.nan_to_num_(1.0, 2.0, -2.0) if isinstance(value, torch.Tensor) else value for value in found]
    return found


def run(seed: int, name: str, folder: Path | None) -> Tally:
    """Run one seed on the target of that name; a failure is minimised and written to `folder`."""
    from graphopt.targets import TARGETS

    tally, start, target = Tally(graphs=1), time.process_time(), TARGETS[name]
    program = case(seed, target)
    tally.operations = len(list(program.calls()))
    reason = _reason(program, target, seed, tally)
    if reason is not None:
        tally.failures[str(seed)] = reason.splitlines()[0]
        if folder is not None:
            _write(folder, program, target, seed, reason)
    tally.seconds = time.process_time() - start
    return tally


def _reason(program: Program, target: Target, seed: int, tally: Tally) -> str | None:
    try:
        return failure(program, target, seed, tally)
    except GraphoptError as error:
        return f"{error}\n{''.join(traceback.format_exception(error.__cause__ or error))}"
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"


def _signature(reason: str) -> str:
    """What makes two failures the same: the message without numbers and names of nodes."""
    return re.sub(r"'[^']*'|[-+]?\d[\d.e+-]*|\(.*?\)|\[.*?\]|%\w+", "#", reason.splitlines()[0])


def _write(folder: Path, program: Program, target: Target, seed: int, reason: str) -> None:
    def fails(smaller: Program) -> bool:
        found = _reason(smaller, target, seed, Tally())
        return found is not None and _signature(found) == _signature(reason)

    smallest = minimise(program, fails, attempts=100)
    last = _reason(smallest, target, seed, Tally()) or reason
    report = "\n".join(f"# {line}".rstrip() for line in f"seed {seed}\n\n{last}".splitlines())
    (folder / f"{seed}.py").write_text(f"{dump(smallest)}\n\n{report}\n")


# -- many seeds ------------------------------------------------------------------------------------------------------


def table(tally: Tally) -> str:
    """Counts as Markdown."""
    usable = tally.graphs - tally.unusable
    lines = [
        f"{tally.graphs} graphs, {tally.operations / max(1, usable):.1f} operations each; "
        f"{tally.seconds / max(1, tally.graphs):.2f} s of one core a graph",
        f"wrong results or crashes: {len(tally.failures)}; graphs that torch could not run: {tally.unusable}; "
        f"stages that the target did not take: {tally.refused}",
        "",
        "| operator that stays with torch | graphs |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in tally.left.most_common()),
        "",
        *(f"seed {seed}: {reason}" for seed, reason in sorted(tally.failures.items(), key=lambda e: int(e[0]))),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    from graphopt.targets import TARGETS

    parser = fuzz.parser(__doc__, "fuzz_targets")
    parser.add_argument("--target", choices=sorted(TARGETS), default="tvm", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    os.environ["GRAPHOPT_CACHE"] = "0"  # of worker processes, too: no graph comes twice
    return fuzz.go(options, partial(run, name=options.target, folder=options.cases), Tally(), table)


if __name__ == "__main__":
    sys.exit(main())
