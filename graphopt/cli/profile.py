"""``graphopt profile``: where the time of a compiled module goes, next to what its cost model predicts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import AsJson, Debug, note, out, phase
from graphopt.cli._history import ModuleName, check_module
from graphopt.cli._recorded import recorded
from graphopt.cli._request import (
    PROMPT,
    SEED,
    STEPS,
    WATCHED,
    Arguments,
    Dtype,
    Name,
    OnePass,
    PassPipeline,
    Pixels,
    Prompt,
    Request,
    Seed,
    Steps,
    Watched,
    watched,
)  # fmt: skip

if TYPE_CHECKING:
    from graphopt.debug.machine import Machine
    from graphopt.debug.profile import Group, NodeTime, Recorded, StageTime

Repeats = Annotated[int, typer.Option(min=1, help="Rounds; each times every stage and every node once.")]
Top = Annotated[int, typer.Option(min=0, help="Slowest nodes to list.")]


def profile(
    pipeline: Name,
    module: ModuleName = None,
    repeats: Repeats = 20,
    top: Top = 10,
    prompt: Prompt = PROMPT,
    steps: Steps = STEPS,
    seed: Seed = SEED,
    height: Pixels = None,
    width: Pixels = None,
    arg: Arguments = None,
    dtype: Dtype = None,
    target: Watched = WATCHED,
    pass_pipeline: PassPipeline = None,
    one_pass: OnePass = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time every node and every stage of a compiled module, next to what the cost model predicts.

    Compiles the pipeline, samples twice, and times what the module's stages were given in the second run.

    For example:

        graphopt profile emoji-unet

        graphopt profile emoji-dit --target inductor --repeats 50

        graphopt profile path/to/folder --module vae.decoder --json | jq .seconds
    """
    request = Request(pipeline, prompt, steps, seed, height, width, tuple(arg or ()), dtype,
                      watched(target), pass_pipeline, tuple(one_pass or ()))  # fmt: skip
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    session = request.open()
    check_module(session, module)
    session.compile()
    with phase("compiling and sampling"):
        session.sample()
    name, others, stages = recorded(session, module)
    from graphopt.debug.machine import measure_machine
    from graphopt.debug.profile import main_dtype, measure

    with phase("measuring what this machine reaches"):
        machine = measure_machine(main_dtype(stages), _device(stages))
    with phase(f"timing {name}: {repeats} rounds"):
        found = Profile(name, machine, measure(stages, machine, repeats))
    if as_json:
        typer.echo(json.dumps({"pipeline": pipeline, "repeats": repeats, **found.to_dict()}, indent=2))
    else:
        _show(session.title, found, repeats, top)
        if load > 0.5:
            note(f"other programs kept this machine busy (load {load:.1f} per processor): times are unsteady")
        if others and module is None:
            note(f"--module takes the others, too: {', '.join(others)}")


@dataclass(frozen=True)
class Profile:
    """A module's times."""

    module: str
    machine: Machine
    stages: list[StageTime]

    @property
    def nodes(self) -> list[NodeTime]:
        return [node for stage in self.stages for node in stage.nodes]

    @property
    def step(self) -> StageTime:
        return self.stages[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `seconds` maps the names of nodes to their times."""
        from graphopt.debug.profile import grouped, misjudged, rank_correlation

        stages = [
            {
                "name": stage.name, "target": stage.target, "calls": stage.calls, "seconds": stage.seconds,
                "node_seconds": stage.node_seconds, "predicted_seconds": stage.predicted, "off": stage.off,
            }
            for stage in self.stages
        ]  # fmt: skip
        nodes = [{"stage": stage.name, **asdict(node)} for stage in self.stages for node in stage.nodes]
        return {
            "module": self.module,
            "machine": asdict(self.machine),
            "stages": stages,
            "operators": [_of_group(group) for group in grouped(self.step.nodes, lambda node: node.operator)],
            "submodules": [_of_group(group) for group in grouped(self.step.nodes, _submodule)],
            "nodes": nodes,
            "seconds": {node.node: node.seconds for node in self.nodes},
            "rank_correlation": rank_correlation(self.step.nodes),
            "misjudged": [group.name for group in misjudged(self.step.nodes)],
        }


def _of_group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name, "nodes": len(group.nodes), "seconds": group.seconds, "predicted_seconds": group.predicted,
        "flops": group.flops, "bytes": group.bytes,
    }  # fmt: skip


def _submodule(node: NodeTime) -> str:
    """``down_blocks.0.resnets.1`` of a deeper module: two levels, a list's index being part of its name."""
    from graphopt.debug.viz.fold import levels

    return ".".join(levels(node.module)[:2]) or "(model)"


def _device(stages: Sequence[Recorded]) -> Any:
    import torch

    tensors = [value for stage in stages for value in stage.arguments if isinstance(value, torch.Tensor)]
    return tensors[-1].device if tensors else torch.device("cpu")


# -- tables ------------------------------------------------------------------------------------------------------------


def _show(title: str, found: Profile, repeats: int, top: int) -> None:
    from rich.text import Text

    from graphopt.cli._show import remark
    from graphopt.debug.figures import scaled
    from graphopt.debug.profile import grouped

    machine, console = found.machine, out()
    console.rule(Text(f"{title}: {found.module}", style="bold"), align="left")
    remark(console, Text(
        f"This machine, {machine.threads} thread{'s' * (machine.threads > 1)}: {scaled(machine.flops, 'FLOP/s')} "
        f"(product of {machine.dtype} matrices), {scaled(machine.bytes, 'B/s')} (copy, read and written). "
        f"Predicted: the longer of FLOPs and bytes at these speeds. Times are medians of {repeats} rounds.",
    ))  # fmt: skip
    console.print()
    console.print(_stages(found.stages))
    for stage in found.stages:
        if stage.target != "eager":
            remark(console, Text(f"{stage.target} fuses nodes and can be timed only as a whole: times of nodes are "
                                 f"those of torch's own kernels on the same graph.", style="dim"))  # fmt: skip
    console.print(_agreement(found.stages))
    for name, key in (("operator", lambda node: node.operator), ("submodule", _submodule)):
        console.print()
        console.print(_groups(f"The step by {name}", name, grouped(found.step.nodes, key), found.step, top))
    console.print()
    if top:
        console.print(_slowest(found.step, top))
    console.print(_judgement(found.step))


def _stages(stages: Sequence[StageTime]) -> Any:
    from graphopt.cli._show import table
    from graphopt.debug.figures import duration

    rows = table("Stages", "stage", "target", "calls", "kernel", "its nodes", "predicted", "ratio", left=("target",))
    for stage in stages:
        rows.add_row(
            stage.name.replace("_", " × "),
            stage.target,
            str(stage.calls),
            duration(stage.seconds),
            duration(stage.node_seconds),
            duration(stage.predicted),
            _ratio(stage.seconds, stage.predicted),
        )
    return rows


def _agreement(stages: Sequence[StageTime]) -> Any:
    from rich.padding import Padding
    from rich.text import Text

    off = max(stage.off for stage in stages)
    text = "bit for bit" if off == 0 else f"but for {off:.1e} of the largest value"
    return Padding(
        Text(f"Run node by node, stages give the same results as their kernels, {text}.", style="dim"), (0, 2)
    )


def _groups(title: str, name: str, groups: Sequence[Group], step: StageTime, top: int) -> Any:
    from graphopt.cli._show import table
    from graphopt.debug.figures import duration, scaled

    rows = table(title, name, "nodes", "time", "share", "predicted", "ratio", "FLOP/s", "B/s")
    shown = groups[: max(top, 1)]
    for group in shown:
        rows.add_row(
            group.name,
            str(len(group.nodes)),
            duration(group.seconds),
            f"{group.seconds / step.node_seconds:.1%}",
            duration(group.predicted) if group.predicted else "·",
            _ratio(group.seconds, group.predicted),
            scaled(group.flops / group.seconds) if group.flops and group.seconds else "·",
            scaled(group.bytes / group.seconds) if group.bytes and group.seconds else "·",
        )
    if len(groups) > len(shown):
        rest = groups[len(shown) :]
        seconds = sum(group.seconds for group in rest)
        count = sum(len(group.nodes) for group in rest)
        rows.add_row(
            f"{len(rest)} others", str(count), duration(seconds), f"{seconds / step.node_seconds:.1%}", *"····"
        )
    return rows


def _slowest(step: StageTime, top: int) -> Any:
    from rich.text import Text

    from graphopt.cli._show import table
    from graphopt.debug.figures import duration, scaled

    rows = table(f"The {top} slowest nodes of the step", "node", "time", "ratio", "FLOP/s", "B/s")
    for node in sorted(step.nodes, key=lambda node: -node.seconds)[:top]:
        about = Text.assemble((node.node, "bold"), f"  {node.operator} → {node.shape}")
        for place in (node.module, node.source):
            about.append(f"\n{place}" if place else "", "dim")
        rows.add_row(about, duration(node.seconds), _ratio(node.seconds, node.predicted), scaled(node.flops_per_second),
                     scaled(node.bytes_per_second))  # fmt: skip
    return rows


def _judgement(step: StageTime) -> Any:
    from rich.padding import Padding
    from rich.text import Text

    from graphopt.debug.figures import duration
    from graphopt.debug.profile import misjudged, rank_correlation

    correlation = rank_correlation(step.nodes)
    lines = []
    if correlation is not None:
        lines.append(
            f"Rank correlation of measured and predicted times, over nodes that are no views: {correlation:.2f}"
        )
    for group in misjudged(step.nodes)[:3]:
        where = "longer" if group.seconds > group.predicted else "shorter"
        ratio = max(group.seconds, group.predicted) / max(min(group.seconds, group.predicted), 1e-12)
        by = duration(abs(group.seconds - group.predicted))
        lines.append(f"{group.name}: {by} {where} than predicted in all ({ratio:.1f} times)")
    if len(lines) > 1:
        lines.insert(1, "The model misjudges most:")
    return Padding(Text("\n".join(lines)), (0, 2))


def _ratio(measured: float, predicted: float) -> str:
    return f"{measured / predicted:.2f}" if predicted else "·"
