"""Attention written out and as one operation: milliseconds of both by shape, and the bytes of the scores.

    python -m benchmarks.attention                   (some minutes on two cores)

Written out as in the `AttnProcessor` of diffusers: ``baddbmm``, softmax, ``bmm``. The last column is the time of
``scaled_dot_product_attention`` over the time written out: below 1 the pass `fuse_attention` pays.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from benchmarks.harness import Timing, race

MAX_BYTES = 1 << 29  # of scores
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


def main() -> None:
    """Print one line per shape."""
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, float32")
    print("heads queries  keys width  scores KiB  written ms   fused ms  ratio (95 % interval)")
    for heads, queries, keys, width in shapes():
        one, two = pair(heads, queries, keys, width)
        size, interval = 4 * heads * queries * keys / 1024, f"{two.ratio:.2f} ({two.low:.2f} to {two.high:.2f})"
        times = f"{one.seconds * 1e3:11.3f} {two.seconds * 1e3:10.3f}"
        print(f"{heads:5} {queries:7} {keys:5} {width:5} {size:11.0f} {times}  {interval}", flush=True)


if __name__ == "__main__":
    main()
