"""Attention written out and as one operation: milliseconds of both by shape, and the bytes of the scores.

    python -m benchmarks.attention                   (some minutes on two cores)
    python -m benchmarks.attention --generated       (the kernels of the target `tvm` by width; three minutes)

Written out as in the `AttnProcessor` of diffusers: ``baddbmm``, softmax, ``bmm``. The last column is the time of
``scaled_dot_product_attention`` over the time written out: below 1 the pass `fuse_attention` pays.

With ``--generated`` one line per width of a head: the share of the peak that the kernels of one head reach, for
self-attention and for 77 keys, with the least time of many calls; peak and kernels are measured in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product

import torch

from benchmarks.harness import Timing, race

MAX_BYTES = 1 << 29  # of scores
WIDTHS = (16, 32, 40, 64, 72, 80, 128)
SHAPES = ((256, 256), (512, 1024), (1024, 77))  # queries and keys
WORK = 1 << 33  # multiply-adds per contender and shape, from 5 to 50 rounds


def written(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Product, softmax, product."""
    q, k, v = given
    base = torch.empty(*q.shape[:2], k.shape[1])
    return torch.bmm(torch.baddbmm(base, q, k.transpose(1, 2), beta=0, alpha=0.3).softmax(-1), v)


def fused(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What `fuse_attention` puts in its place."""
    q, k, v = (each[None] for each in given)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)


def pair(heads: int, queries: int, keys: int, width: int) -> list[Timing]:
    """Both forms, paired."""
    given = tuple(torch.randn(heads, rows, width) for rows in (queries, keys, keys))
    rounds = min(50, max(5, WORK // (2 * heads * queries * keys * width)))
    return race({"written": written, "fused": fused}, lambda number: given, rounds=rounds)


def shapes() -> Iterator[tuple[int, int, int, int]]:
    """Heads (times batch), queries, keys and width: cross-attention to 8 and 77 keys, and self-attention."""
    for heads, queries, width in product((8, 16, 32), (64, 256, 1024, 4096), (8, 16, 32, 64, 128)):
        for keys in sorted({8, 77, queries}):
            if 4 * heads * queries * keys <= MAX_BYTES:
                yield heads, queries, keys, width


def share(queries: int, keys: int, width: int, rounds: int = 40) -> float:
    """Of the peak, what the generated kernels of one head reach."""
    from graphopt.targets.tvm import attention, build, isa
    from graphopt.targets.tvm.emit import Buffer, Emitter, Expr
    from graphopt.targets.tvm.timing import peak

    tensors = [torch.randn(rows, width) for rows in (queries, keys, keys, queries)]

    def load(place: int) -> attention.Load:
        def element(emitter: Emitter, buffers: Sequence[Buffer], index: attention.Index, lanes: int) -> Expr:
            return emitter.load(buffers[place], index[2] * width + index[3], lanes)

        return element

    def store(emitter: Emitter, buffers: Sequence[Buffer], index: attention.Index, number: Expr) -> None:
        emitter.store(buffers[3], index[2] * width + index[3], number)

    cpu, shape = isa.detect(), attention.Shape(1, 1, 1, queries, keys, width, width)
    kernels, floats = attention.kernels(
        "attention",
        cpu,
        shape,
        scale=width**-0.5,
        causal=False,
        mask=None,
        arguments=["float32"] * 4,
        query=load(0),
        key=load(1),
        value=load(2),
        store=store,
    )
    tensors.append(torch.empty(floats))
    table = torch.tensor([tensor.data_ptr() for tensor in tensors])
    library = build.Library(cpu, [[build.Call(kernel, 0) for kernel in kernels]])
    least, most = float("inf"), 0.0
    for _ in range(rounds):
        for _ in range(10):
            start = time.perf_counter()
            library.run(0, table.data_ptr())
            least = min(least, time.perf_counter() - start)
        peak.cache_clear()
        most = max(most, peak())
    return 4 * queries * keys * width / least / most


def generated() -> None:
    """Print one line per width."""
    print("width" + "".join(f"{f'{queries} x {keys}':>12}" for queries, keys in SHAPES))
    for width in WIDTHS:
        print(f"{width:5}" + "".join(f"{share(queries, keys, width):12.2f}" for queries, keys in SHAPES), flush=True)


def main() -> None:
    """Print one line per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", action="store_true", help="shares of the peak of generated kernels")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, float32")
    if options.generated:
        return generated()
    print("heads queries  keys width  scores KiB  written ms   fused ms  ratio (95 % interval)")
    for heads, queries, keys, width in shapes():
        one, two = pair(heads, queries, keys, width)
        size, interval = 4 * heads * queries * keys / 1024, f"{two.ratio:.2f} ({two.low:.2f} to {two.high:.2f})"
        times = f"{one.seconds * 1e3:11.3f} {two.seconds * 1e3:10.3f}"
        print(f"{heads:5} {queries:7} {keys:5} {width:5} {size:11.0f} {times}  {interval}", flush=True)


if __name__ == "__main__":
    main()
