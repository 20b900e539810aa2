"""What runs when a dump is run: ``python DIR/018_hoist.py``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from graphopt.cli._app import complain, out
from graphopt.errors import GraphoptError


def evaluate(function: Callable[..., Any], file: str) -> None:
    """Call the function of a dump on seeded inputs, and print each result: shape, dtype, mean, and a checksum.

    It is the very function of the file that runs, so that ``print(linear.mean())`` may be put between its lines.
    Weights are random numbers of a sensible size: results say whether two dumps compute the same, not what the model
    draws.
    """
    try:
        _evaluate(function, Path(file))
    except GraphoptError as error:
        complain(error.what, error.where, error.hint)
        raise SystemExit(2) from None


def _evaluate(function: Callable[..., Any], path: Path) -> None:
    import torch
    from torch.utils._pytree import tree_leaves

    from graphopt.debug.dumps import load_constants, source
    from graphopt.debug.figures import duration
    from graphopt.ir.notation import describe
    from graphopt.ir.reader import parse_inputs
    from graphopt.ir.verify import example_inputs

    program = parse_inputs(source(path), path.name)
    program.constants = load_constants(program, path)
    inputs = example_inputs(program)
    with torch.no_grad():
        function(*inputs)  # the first call warms up
        start = time.perf_counter()
        results = tree_leaves(function(*inputs), is_leaf=lambda value: value is None)
        seconds = time.perf_counter() - start
    console = out()
    console.print(Text.assemble((program.name, "bold"), f" of {path.name}, {len(inputs)} seeded inputs"))
    for number, value in enumerate(results):
        console.print(Text(f"  result {number}: {describe(value)}{summary(value)}"))
    console.print(Text(f"  {duration(seconds)}", style="dim"))


def summary(value: Any) -> str:
    """Mean and checksum of a tensor; a value of any other kind as it is."""
    import torch
    import xxhash

    if not isinstance(value, torch.Tensor):
        return "" if value is None else f" {value}"
    plain = torch.view_as_real(value) if value.is_complex() else value
    mean = plain.double().mean().item() if plain.numel() else float("nan")
    held = plain.detach().cpu().contiguous()
    digest = xxhash.xxh3_64_hexdigest(held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b"")
    return f"  mean {mean:.6g}  checksum {digest}"
