"""Start-up: what `import graphopt` adds to `import torch`, and how compile time grows with the number of nodes.

    python -m benchmarks.startup

Imports are timed in fresh processes, interleaved. Compile time is from the first call of a DiT with 2 to 24 blocks
(384 wide, 256 tokens, batch 2) to its result, on the eager target, with the share of every part; the line of least
squares through all points shows whether it grows linearly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

import graphopt

# The door opens lazily: the second figure is that of the first use, when the compiler itself is imported.
IMPORT = """
import time, torch
start = time.perf_counter(); import graphopt; door = time.perf_counter(); graphopt.compile
print(door - start, time.perf_counter() - start)
"""


def import_seconds(runs: int) -> list[tuple[float, float]]:
    """Seconds of `import graphopt`, and of that and `graphopt.compile`, once torch is imported; fresh processes."""
    found = []
    for _ in range(runs):
        process = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        door, compiler = map(float, process.stdout.split())
        found.append((door, compiler))
    return found


def compile_seconds(blocks: int) -> dict[str, Any]:
    """Seconds from nothing to the first result of a DiT with `blocks` blocks."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=blocks, sample_size=32
    ).eval()
    call = {
        "hidden_states": torch.randn(2, 4, 32, 32),
        "timestep": torch.tensor([7, 7]),
        "class_labels": torch.tensor([207, 1000]),
        "return_dict": False,
    }
    start = time.perf_counter()
    graphopt.compile(model, target="eager", inputs=call)
    spent = time.perf_counter() - start
    variant = graphopt.report(model).modules[0].variants[0]
    return {
        "blocks": blocks,
        "nodes": variant.captured_nodes,
        "seconds": spent,
        "passes": sum(record.seconds for record in variant.passes),
    }


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for the import")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    imports = import_seconds(options.runs)
    for what, times in zip(("import graphopt", "and graphopt.compile"), zip(*imports, strict=True), strict=True):
        print(f"{what} beyond import torch: median {statistics.median(times):.3f} s, most {max(times):.3f} s")
    print()
    compile_seconds(1)  # first use of torch.export loads much of torch
    rows = [compile_seconds(blocks) for blocks in (2, 4, 8, 12, 16, 24)]
    print("| blocks | nodes captured | seconds to compile | of which passes | ms per node |\n|---|---|---|---|---|")
    for row in rows:
        per_node = row["seconds"] / row["nodes"] * 1e3
        print(f"| {row['blocks']} | {row['nodes']} | {row['seconds']:.2f} | {row['passes']:.2f} | {per_node:.2f} |")
    nodes, seconds = (np.array([row[key] for row in rows], dtype=float) for key in ("nodes", "seconds"))
    slope, offset = np.polyfit(nodes, seconds, 1)
    power = np.polyfit(np.log(nodes), np.log(seconds), 1)[0]
    fit = 1 - np.var(seconds - slope * nodes - offset) / np.var(seconds)
    print(f"\nlinear fit: {slope * 1e3:.2f} ms per node + {offset:.2f} s, R² = {fit:.4f}; growth as nodes^{power:.2f}")
    if options.json:
        options.json.write_text(json.dumps({"import": imports, "compile": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
