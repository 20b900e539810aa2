"""How much of a step the TVM target can run: the share of nodes and of FLOPs per model, and what is left to torch.

    python -m benchmarks.coverage                    models, diffusers pipelines and tiny ones of every family
    python -m benchmarks.coverage --tiny             without the large models; pipelines as small as their tests'
    python -m benchmarks.coverage --only flux wan    those whose names have one of these parts

No time is measured. Each model is captured on its first call and rewritten by the pipeline `generated`; a step of it
runs on torch, so that pipelines go on. What is counted is the step's graph: views and what splits a tensor count as no
node, and what has no floating-point operations as a node alone (`graphopt.ir.cost`).
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

import graphopt
from benchmarks.families import families
from benchmarks.models import Denoiser, denoisers, more_models
from benchmarks.pipelines import FULL, TINY, DiffusersPipeline, diffusers_pipelines
from graphopt.ir.cost import node_cost
from graphopt.ir.stages import Part
from graphopt.targets import Eager
from graphopt.targets.base import Kernel


@dataclass
class Coverage:
    """Of one model: nodes and FLOPs of its step, and what the target leaves to torch.

    Attributes
    ----------
    left : operators by name: nodes and FLOPs.
    error : why there is nothing to count.
    """

    name: str
    nodes: int = 0
    flops: int = 0
    left: dict[str, tuple[int, int]] = field(default_factory=dict)
    error: str | None = None

    @property
    def generated(self) -> tuple[float, float]:
        """Shares of nodes and of FLOPs that the target runs."""
        nodes, flops = (sum(entry[place] for entry in self.left.values()) for place in (0, 1))
        return 1 - nodes / max(1, self.nodes), 1 - flops / max(1, self.flops)


class Planning(Eager):
    """The eager target, which counts what the TVM target would do with each stage."""

    name: ClassVar[str] = "planning"
    pipeline: ClassVar[str] = "generated"

    def __init__(self, found: Coverage) -> None:
        self.found = found

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        add(self.found, part.graph)
        return super().build(part, examples)


def add(found: Coverage, graph: torch.fx.Graph) -> None:
    """Count a stage's graph."""
    from graphopt.targets.tvm.operators import SPLITS, view_source
    from graphopt.targets.tvm.plan import plan

    nodes, flops = Counter[str](), Counter[str]()
    for node in plan(graph).left:
        nodes[_name(node)] += 1
        flops[_name(node)] += int(node_cost(node).flops)
    for name, count in nodes.items():
        before = found.left.get(name, (0, 0))
        found.left[name] = before[0] + count, before[1] + flops[name]
    for node in graph.nodes:
        if node.op == "call_function" and node.target not in SPLITS and view_source(node) is None:
            found.nodes += 1
            found.flops += int(node_cost(node).flops)


def _name(node: torch.fx.Node) -> str:
    """An operator's name, and the dtype of its result where that is not float32."""
    value = node.meta.get("val")
    dtype = getattr(value, "dtype", torch.float32)
    name = str(node.target).removeprefix("aten.")
    return name if dtype == torch.float32 else f"{name} ({str(dtype).removeprefix('torch.')})"


def of_module(name: str, make: Callable[[], tuple[torch.nn.Module, Any]]) -> Coverage:
    """The coverage of a module's step."""
    found = Coverage(name)
    module, call = make()
    graphopt.compile(module.eval(), target=Planning(found), inputs=dict(call), strict=True)
    return found


def of_pipeline(entry: DiffusersPipeline) -> Coverage:
    """The coverage of all modules of a diffusers pipeline together."""
    found = Coverage(entry.name)
    pipe = graphopt.compile(entry.make(), target=Planning(found), strict=True)
    entry.call(pipe, 0, 2)
    return found


def _denoiser(entry: Denoiser) -> tuple[torch.nn.Module, Any]:
    return entry.make(), entry.call(0)


def models(tiny: bool) -> Iterator[tuple[str, Callable[[], Coverage]]]:
    """What is counted: names, and what counts it."""
    for name, entry in ({} if tiny else {**denoisers(), **more_models()}).items():
        yield name, partial(of_module, name, partial(_denoiser, entry))
    for name, pipe in diffusers_pipelines(TINY if tiny else FULL).items():
        yield f"{name} (pipeline)", partial(of_pipeline, pipe)
    for name, make in families().items():
        yield name, partial(of_module, name, make)


def counted(name: str, count: Callable[[], Coverage]) -> Coverage:
    """What `count` gives, under this name, or why it gives nothing."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            found = count()
            found.name = name
            return found
    except Exception as error:
        traceback.print_exc()
        return Coverage(name, error=f"{type(error).__name__}: {error}".splitlines()[0])


def markdown(rows: Sequence[Coverage]) -> str:
    """A table per model, and one of what is left over all of them."""
    lines = ["| model | nodes | of which tvm | MFLOP | of which tvm | left to torch |", "|---|---|---|---|---|---|"]
    models_with = Counter[str]()
    total: dict[str, tuple[int, int]] = {}
    for row in rows:
        models_with.update(list(row.left))
        nodes, flops = row.generated
        left = ", ".join(f"{count} {name}" for name, (count, _) in sorted(row.left.items())) or "nothing"
        what = row.error or left
        lines.append(f"| {row.name} | {row.nodes} | {nodes:.1%} | {row.flops / 1e6:.1f} | {flops:.3%} | {what} |")
        for name, (count, work) in row.left.items():
            before = total.get(name, (0, 0))
            total[name] = before[0] + count, before[1] + work
    lines += ["", "| left to torch | models | nodes | MFLOP |", "|---|---|---|---|"]
    for name, count in models_with.most_common():
        lines.append(f"| {name} | {count} | {total[name][0]} | {total[name][1] / 1e6:.3f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="no large models")
    parser.add_argument("--only", nargs="+", metavar="PART", help="those whose names have one of these parts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts")
    options = parser.parse_args(arguments)
    chosen = [
        (name, count)
        for name, count in models(options.tiny)
        if options.only is None or any(part.lower() in name.lower() for part in options.only)
    ]
    rows = []
    for name, count in chosen:
        rows.append(counted(name, count))
        print(f"{name}: {rows[-1].error or rows[-1].left}", file=sys.stderr, flush=True)
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    sys.exit(main())
