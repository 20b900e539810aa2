"""How long each kernel of a stage takes, and what this machine's cores reach at most."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from ...ir import products
from ...ir.cost import node_cost
from ...ir.effects import is_view
from .build import Call, Library
from .dot import BFLOAT16, FLOAT32, Dot
from .emit import Buffer, Emitter, Expr, kernel
from .isa import detect
from .places import Launch, size_of
from .running import Code
from .tile import tile


@dataclass(frozen=True)
class KernelTime:
    """A kernel, all calls of a step together.

    Attributes
    ----------
    seconds : of all calls.
    flops : of the nodes that it computes; 0 where another kernel of the same nodes counts them.
    bytes : that the arguments of its calls have; what several arguments share is counted several times.
    computes : the operators, in order; empty where it lays out what the next kernel reads.
    multiplies : what its products are of, f32 or bf16.
    """

    name: str
    calls: int
    seconds: float
    flops: int
    bytes: int
    computes: str
    multiplies: str = FLOAT32.name

    def to_dict(self, peaks: Mapping[str, float]) -> dict[str, Any]:
        """Plain data, with peaks by what is multiplied."""
        return {**asdict(self), "share_of_peak": self.share(peaks)}

    def share(self, peaks: Mapping[str, float]) -> float:
        """Of the peak of what is multiplied."""
        return self.flops / self.seconds / peaks[self.multiplies]


def measure(code: Code, values: Sequence[Any], rounds: int) -> list[KernelTime]:
    """The kernels of a stage, the slowest first, each timed on what it is given when the stage is given `values`."""
    found: dict[str, list[tuple[Launch, float]]] = {}
    for launch, seconds in code.timed(values, rounds):
        found.setdefault(launch.name, []).append((launch, seconds))
    times = [
        KernelTime(
            name,
            len(some),
            sum(seconds for _, seconds in some),
            sum(int(node_cost(node).flops) for launch, _ in some for node in launch.computes),
            sum(size_of(place) for launch, _ in some for place in launch.pointers),
            _operators(some[0][0]),
            _dot(some[0][0]).name,
        )
        for name, some in found.items()
    ]
    return sorted(times, key=lambda entry: -entry.seconds)


def _operators(launch: Launch) -> str:
    names = [getattr(node.target, "_opname", str(node.target)) for node in launch.computes if not is_view(node)]
    return " + ".join(reversed(names))


def _dot(launch: Launch) -> Dot:
    return BFLOAT16 if any(node.target in products.NARROW.values() for node in launch.computes) else FLOAT32


def peaks(kernels: Sequence[KernelTime]) -> dict[str, float]:
    """The peak of each kind of product among some kernels, and of float32, in FLOP/s.

    Measured again, since something else may have run beside it the first time: the larger one holds.
    """
    used = {FLOAT32.name, *(entry.multiplies for entry in kernels)}
    return {dot.name: max(peak(dot), peak.__wrapped__(dot)) for dot in (FLOAT32, BFLOAT16) if dot.name in used}


@cache
def bandwidth(size: int, threads: int) -> float:
    """Bytes per second that torch's threads read together, each a piece of so many bytes again and again."""
    isa = detect()
    sums = 8
    vectors = max(1, size // (4 * isa.lanes * sums))
    floats, repeats = vectors * sums * isa.lanes, max(1, (64 << 20) // size)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        with emitter.loop(repeats) as _:
            totals = [emitter.register(emitter.spread(0.0, isa.lanes)) for _ in range(sums)]
            with emitter.loop(vectors) as vector:
                for place, total in enumerate(totals):
                    at = task * floats + (vector * sums + place) * isa.lanes
                    emitter.put(total, emitter.get(total) + emitter.load(buffers[0], at, isa.lanes))
            for place, total in enumerate(totals):
                emitter.store(buffers[1], (task * sums + place) * isa.lanes, emitter.get(total))

    library = Library(isa, [[Call(kernel("graphopt_stream", isa, ["float32"] * 2, threads, body), 0)]])
    memory = torch.ones(threads * floats), torch.empty(threads * sums * isa.lanes)
    return threads * floats * 4 * repeats / _least(library, memory)


@cache
def peak(dot: Dot = FLOAT32) -> float:
    """FLOP/s of all of torch's threads: multiplying and adding in registers, what is read lying in the first cache."""
    isa, terms, repeats = detect(), 256, 64
    rows, columns = isa.tile
    vectors, tasks = columns // isa.lanes, 8 * torch.get_num_threads()

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        with emitter.loop(repeats) as _:
            sums = tile(
                emitter,
                rows,
                vectors,
                terms,
                lambda row, k: emitter.load(buffers[0], k * rows + row),
                lambda k, vector: emitter.load(buffers[1], k * columns + vector * isa.lanes, isa.lanes),
                dot,
            )
            for place, total in enumerate(value for row in sums for value in row):
                emitter.store(buffers[2], task * (rows * columns) + place * isa.lanes, total)

    library = Library(isa, [[Call(kernel("graphopt_peak", isa, [dot.stored, dot.stored, "float32"], tasks, body), 0)]])
    memory = torch.ones(terms * rows), torch.ones(terms * columns), torch.empty(tasks * rows * columns)
    return 2 * rows * columns * terms * dot.terms * repeats * tasks / _least(library, memory)


def _least(library: Library, memory: Sequence[torch.Tensor]) -> float:
    """The least seconds of several calls of a library of one sequence, whose pointers show to these tensors."""
    table = np.array([tensor.data_ptr() for tensor in memory])
    times = []
    for _ in range(9):
        start = time.perf_counter()
        library.run(0, table.ctypes.data)
        times.append(time.perf_counter() - start)
    return min(times)
