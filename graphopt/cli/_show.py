"""Reports as tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graphopt.debug.figures import counted, scaled, weights_alone
from graphopt.debug.statistics import PassRecord
from graphopt.ir.cost import StageCost
from graphopt.runtime.report import ModuleReport, Report, VariantReport


def table(title: str, *columns: str, left: Sequence[str] = ()) -> Table:
    """A table whose columns are numbers, right-aligned, except the first and those named in `left`."""
    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=False
    )
    for position, column in enumerate(columns):  # what does not fit is folded, the widest column first; nothing is cut
        text = position == 0 or column in left
        made.add_column(column, justify="left" if text else "right", overflow="fold")
    return made


def remark(console: Console, text: str | Text) -> None:
    """Print a paragraph, indented as the tables are."""
    console.print(Padding(Text.from_markup(text) if isinstance(text, str) else text, (0, 0, 0, 2)))


def show_modules(console: Console, report: Report, *, full: bool) -> None:
    """Stages and passes of every module; without `full`, passes only of those called once or more per step."""
    stages = table("Stages", "stage", "target", "nodes", "FLOPs", "bytes", "weights", "kept", "hits",
                   left=("target",))  # fmt: skip
    for module in report.modules:
        for variant in module.variants[:1]:
            stages.add_row(Text(module.name, style="bold"))
            for stage in variant.stages:
                asked = stage.hits + stage.misses
                memo = (scaled(stage.kept_bytes, "B"), f"{stage.hits} of {asked}" if asked else "·")
                stages.add_row(
                    Padding(Text(stage.name.replace("_", " × "), overflow="fold"), (0, 0, 0, 2)),
                    stage.target,
                    str(stage.nodes),
                    scaled(stage.flops),
                    scaled(stage.bytes, "B"),
                    scaled(stage.weight_bytes, "B"),
                    *(("", "") if stage.name == "step" else memo),
                )
    console.print(stages)
    remark(console, "[dim]FLOPs and bytes moved are per evaluation of a stage. Hits: how often what is kept served.[/]")
    for module in report.modules:
        for variant in module.variants[:1]:
            if variant.name:
                remark(console, Text(f"Of {module.name} the newest variant is shown: {variant.name}", style="dim"))
    console.print()
    denoisers = [module for module in report.modules if "encoder" not in module.name and "decoder" not in module.name]
    for module in report.modules if full else denoisers or report.modules[:1]:
        for variant in module.variants[:1]:
            console.print(_passes(module.name, variant.passes))
    console.print(fates(report.modules))


def _passes(name: str, records: Sequence[PassRecord]) -> Group:
    """A row per pass with the step as it left it; under the table the most frequent reason why each one held back."""
    made = table(f"Passes on {name}: the step after each", "pass", "accuracy", "fired", "refused", "nodes",
                 "FLOPs", "bytes", left=("accuracy",))  # fmt: skip
    reasons = list[Text]()
    for first in [record for record in records if not record.error][:1]:
        made.add_row(Text("as captured", style="dim"), "", "", "", str(first.nodes[0]), scaled(first.flops[0]),
                     scaled(first.bytes[0], "B"))  # fmt: skip
    for record in records:
        refused = sum(record.refusals.values())
        made.add_row(
            record.name,
            record.accuracy,
            "[red]failed[/]" if record.error else str(record.fired),
            str(refused or "·"),
            *work_after(record.nodes, record.flops, record.bytes),
        )
        if record.error:
            reasons.append(Text(f"{record.name} was rolled back: {record.error.splitlines()[0]}", style="red"))
        if what := weights_alone(record.once_flops, record.once_bytes):
            reasons.append(Text.assemble(f"{record.name}: ", (what, "dim")))
        for reason, count in record.refusals.most_common(1):
            often = f"{count} of {refused}" if count < refused else f"{refused}"
            reasons.append(Text.assemble(f"{record.name} refused {often}: ", (reason, "dim")))
    return Group(made, *(Padding(reason, (0, 0, 0, 2)) for reason in reasons), "")


def work_after(nodes: tuple[Any, Any], flops: tuple[Any, Any], moved: tuple[Any, Any]) -> tuple[str, str, str]:
    """Cells of a pass: nodes, FLOPs and bytes, each before and after it."""
    return _after(nodes, str), _after(flops, scaled), _after(moved, lambda value: scaled(value, "B"))


def _after(pair: tuple[Any, Any], text: Callable[[Any], str]) -> str:
    """What is left, or the change in per cent where the figure looks the same; a dot where nothing changed."""
    if pair[0] == pair[1]:
        return "·"
    if text(pair[0]) == text(pair[1]) and pair[0]:
        return f"{pair[1] / pair[0] - 1:+.2%}"
    return text(pair[1])


def stage_changes(
    costs: Mapping[str, tuple[StageCost, StageCost]], joules: Mapping[str, tuple[float, float]] | None = None
) -> Table:
    """The work of each stage that has any, before → after; with `joules` (an estimate) where they are given."""
    made = table("Work per stage, before → after", "stage", "nodes", "FLOPs", "bytes", "weights",
                 *["joules (estimate)"] * bool(joules))  # fmt: skip
    for name, (was, now) in costs.items():
        if was.nodes or now.nodes:
            made.add_row(
                Text(name.replace("_", " × ")),
                _change(was.nodes, now.nodes, str),
                _change(was.cost.flops, now.cost.flops, scaled),
                _change(was.cost.bytes, now.cost.bytes, lambda value: scaled(value, "B")),
                _change(was.weight_bytes, now.weight_bytes, lambda value: scaled(value, "B")),
                *([_change(*joules[name], small_joules)] if joules else []),
            )
    return made


def small_joules(value: float) -> str:
    """``1.23 mJ``; estimates of a single stage are small."""
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g} {prefix}J"
    return f"{value * 1e9:.3g} nJ" if value else "0 J"


def _change(before: Any, now: Any, text: Callable[[Any], str]) -> str:
    """``1.7 G → 1.6 G`` with the change in per cent below; the figure alone where it stays the same."""
    if before == now:
        return text(before)
    known = isinstance(before, int | float) and isinstance(now, int | float) and before
    return f"{text(before)} → {text(now)}" + (f"\n{100 * (now / before - 1):+.3g} %" if known else "")


def fates(modules: Sequence[ModuleReport]) -> Text:
    """One line per module: how many calls ran compiled, or why not."""
    lines = []
    for module in modules:
        served = module.calls - sum(module.asides.values())
        lines.append(Text.assemble((module.name, "bold"), f" ({module.module}): {fate(module, served)}"))
        lines += [Text(f"  {variant.name}: {way(variant)}") for variant in module.variants if variant.name]
        lines += [Text(f"  left to the module {count}×: {reason}") for reason, count in module.asides.items()]
        lines += [Text(f"  {text}") for text in dict.fromkeys(entry.measured() for entry in module.variants) if text]
        lines += [Text(f"  note: {text}") for variant in module.variants for text in variant.notes]
    return Text("\n").join(lines)


def fate(module: ModuleReport, served: int) -> str:
    if not module.variants:
        return f"{counted(module.calls, 'call')}, none captured"
    found = f"{served} of {module.calls} calls in {counted(len(module.variants), 'variant')}"
    return found if len(module.variants) > 1 else f"{found}; {way(module.variants[0])}"


def way(variant: VariantReport) -> str:
    """How a variant runs, its race in numbers a reader knows."""
    return variant.runs


def show_weights(console: Console, report: Report) -> None:
    """Bytes of weights, and of those that the step does not read."""
    rows = table("Weights", "module", "in all", "read by the step", "not read by the step", "share")
    for module in report.modules:
        for variant in module.variants[:1]:
            total, idle = variant.weight_bytes, variant.idle_weight_bytes
            share = f"{idle / total:.1%}" if total else "·"
            rows.add_row(module.name, scaled(total, "B"), scaled(total - idle, "B"), scaled(idle, "B"), share)
    console.print()
    console.print(rows)
    remark(
        console,
        "[dim]What the step does not read is needed once per request or schedule only.[/]",
    )
    for module in report.modules:
        if module.eviction:
            remark(console, Text(f"{module.name}, {module.eviction}"))
    console.print()


def show_loops(console: Console, report: Report) -> None:
    """Recorded runs: their calls, what a step does around them, and relations between calls."""
    for loop in report.loops:
        first, *rest = loop.lines()[: -len(loop.relations) or None]
        console.print(Text(first[0].upper() + first[1:], style="bold"))
        for line in rest:
            remark(console, Text(line.strip()))
        if loop.relations:
            rows = table("Relations between calls", "module", "relation", "known by", "fate",
                         left=("relation", "known by", "fate"))  # fmt: skip
            for entry in loop.relations:
                fate = "; ".join(filter(None, (entry.fate, entry.holds)))
                rows.add_row(entry.module, entry.what, _short(entry.seen), fate)
            console.print(rows)
        console.print()


def _short(seen: str) -> str:
    """``proved by pipeline_flux.py:901``: without folders, which do not fit into a column."""
    return re.sub(r"\S*/", "", seen)


def show_inputs(console: Console, report: Report) -> None:
    """Roles of the inputs, of each module's newest variant."""
    rows = table("Inputs", "module", "input", "role", left=("input", "role"))
    for module in report.modules:
        for variant in module.variants[:1]:
            for k, (path, role) in enumerate(variant.inputs.items()):
                rows.add_row(module.name if k == 0 else "", path, role)
    console.print(rows)
