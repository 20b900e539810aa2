"""What graphopt did to a model and what it saved, as plain data; `graphopt.report` makes it, the CLI shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx

from graphopt.debug.alike import alike
from graphopt.debug.figures import counted, duration, scaled, weights_alone
from graphopt.debug.statistics import PassRecord
from graphopt.ir.cost import nbytes, program_cost, stage_costs
from graphopt.ir.program import Program, val
from graphopt.ir.stages import COMMON, STEP, WEIGHTS, Stage, placement
from graphopt.runtime.evict import outcome
from graphopt.runtime.forms import names
from graphopt.runtime.installed import Installed, Variant
from graphopt.runtime.loop_report import LoopReport, loops_of
from graphopt.runtime.race import Race
from graphopt.runtime.replay import Replay, Replays

_REASONS = 2  # of a pass that held back, in the text


@dataclass
class StageReport:
    """One stage of one variant: its work per evaluation, where it runs, and how often its kept results served."""

    name: str
    target: str
    nodes: int
    flops: Any
    bytes: Any
    weight_bytes: Any
    hits: int = 0
    misses: int = 0
    entries: int = 0
    kept_bytes: int = 0


@dataclass
class ContenderReport:
    """A target that was measured on the example inputs, or left out for a reason.

    `seconds` are the median of its calls, `faster` and `interval` compare them with the module's own as in
    `VariantReport`.
    """

    target: str
    seconds: float | None = None
    faster: float | None = None
    interval: tuple[float, float] | None = None
    left_out: str | None = None

    def __str__(self) -> str:
        if self.faster is None or self.seconds is None or self.interval is None:
            return f"{self.target} left out: {self.left_out}"
        low, high = self.interval
        return f"{self.target} {duration(self.seconds)}, {self.faster:.2f} times as fast ({low:.2f} to {high:.2f})"


@dataclass
class VariantReport:
    """One captured Program of a module.

    `name` says what tells it from the module's other variants: shapes, dtypes and values of arguments, what is assumed
    of them, or the state of torch; empty where there is no other.

    `faster` is the original's time over the compiled call's where the two were measured (target ``auto``, or several),
    the median of pairs of calls, and `interval` the range of that median: above 1 the compiled call is faster. `target`
    was to build the step; `contenders` are all that could have, and `original_seconds` is the median of the module's
    own calls beside them, None where nothing was measured.

    Of the weights (in bytes) that any stage reads, those are idle that the step does not, neither as they are nor
    folded or packed by the weights stage: only what is computed once per request or schedule needs them.
    """

    inputs: dict[str, str]
    captured_nodes: int
    captured_flops: Any
    captured_bytes: Any
    weight_bytes: Any
    idle_weight_bytes: Any
    stages: list[StageReport]
    passes: list[PassRecord]
    seconds: float
    faster: float | None
    interval: tuple[float, float] | None
    runs: str
    relations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    target: str = ""
    original_seconds: float | None = None
    contenders: list[ContenderReport] = field(default_factory=list)
    name: str = ""

    def measured(self) -> str | None:
        """What was measured, in a line; None where nothing was."""
        if self.original_seconds is None:
            return None
        return "; ".join([f"measured: original {duration(self.original_seconds)}", *map(str, self.contenders)])


@dataclass
class EvictionReport:
    """Bytes of a module's weights, of those evicted now, and by reason of those that stayed in memory."""

    weight_bytes: int
    evicted_bytes: int
    stayed: dict[str, int]

    def __str__(self) -> str:
        stayed = sorted(self.stayed.items(), key=lambda item: -item[1])
        reasons = "; ".join(f"{scaled(size, 'B')} stayed: {reason}" for reason, size in stayed)
        of = f"{scaled(self.evicted_bytes, 'B')} of {scaled(self.weight_bytes, 'B')} of weights"
        return f"evicted: {of}" + (f" ({reasons})" if reasons else "")


@dataclass
class GuidanceReport:
    """Calls held back until the weights of their guidance branches were known, their branches, and those computed."""

    calls: int
    branches: int
    computed: int

    def __str__(self) -> str:
        return (
            f"guidance: {self.branches - self.computed} of {self.branches} branches in "
            f"{counted(self.calls, 'call')} had no weight and were left out"
        )


@dataclass
class ModuleReport:
    """One compiled module: its variants, its calls, and how many of them the module served itself, by reason.

    A call is offered to the first variant first; later ones assume less, or serve other calls.

    `eviction` is None unless weights that no step reads were to be evicted, `guidance` unless calls were held back
    until the weights of their guidance branches were known.
    """

    name: str
    module: str
    calls: int
    variants: list[VariantReport]
    asides: dict[str, int]
    eviction: EvictionReport | None = None
    guidance: GuidanceReport | None = None


@dataclass
class ReplayReport:
    """One recording of a sampling function that is run instead of it.

    Attributes
    ----------
    calls : of modules that it makes.
    operations : around the modules in one run, before → after.
    steps : of the loop; 1 where there is none.
    update : what a step does to the state: the number of operations, and of the tensors that they combine.
    runs : how often it ran.
    passes : what each pass did.
    note : why it is not used, if it is not.
    """

    calls: int
    operations: tuple[int, int]
    steps: int
    update: tuple[int, int] | None
    runs: int
    passes: list[PassRecord]
    note: str = ""

    def __str__(self) -> str:
        before, after = (count / self.steps for count in self.operations)
        update = ", update of {} operations over {} tensors".format(*self.update) if self.update else ""
        state = f"not used: {self.note}" if self.note else counted(self.runs, "run")
        return (
            f"{counted(self.calls, 'module call')}, {before:.1f} → {after:.1f} operations around the modules per step"
            f"{update}; {state}"
        )


@dataclass
class Report:
    """What `graphopt.report` returns; ``str(report)`` is a summary, `to_dict` the whole as plain data.

    Of a sampling function that is replayed, `replays` are its recordings, and `left` are the calls that it served
    itself, by reason.
    """

    modules: list[ModuleReport]
    loops: list[LoopReport] = field(default_factory=list)
    replays: list[ReplayReport] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, lists, strings and numbers; sizes that are symbolic become strings."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    def stage(self, module: str, stage: str) -> StageReport:
        """The stage of a module's newest variant. Raises KeyError when there is none."""
        for entry in self.modules:
            if entry.name == module and entry.variants:
                return next(s for s in entry.variants[0].stages if s.name == stage)
        raise KeyError((module, stage))

    def __str__(self) -> str:
        lines = []
        for module in self.modules:
            served = module.calls - sum(module.asides.values())
            lines.append(f"{module.name} ({module.module}): {counted(module.calls, 'call')}, {served} by graphopt")
            lines += [
                f"  left to the module, {counted(count, 'time')}: {reason}" for reason, count in module.asides.items()
            ]
            lines += [f"  {entry}" for entry in (module.eviction, module.guidance) if entry]
            for variant in module.variants:
                lines += [f"  variant: {variant.name}"] * bool(variant.name)
                lines += [f"  {line}" for line in _variant_lines(variant)]
                if module.name == module.module and len(variant.inputs) > 1 and {*variant.inputs.values()} == {"state"}:
                    last = list(variant.inputs)[-1].partition(".")[0]
                    lines.append(
                        "    hint: every input is taken for state, so that nothing is kept between calls; name what "
                        f"stays the same during a request, such as roles={{'{last}': 'condition'}}"
                    )
        lines += [line for loop in self.loops for line in loop.lines()]
        lines += [f"replay: {entry}" for entry in self.replays]
        lines += [f"  left to the function, {counted(count, 'time')}: {reason}" for reason, count in self.left.items()]
        return "\n".join(lines)


def _variant_lines(variant: VariantReport) -> list[str]:
    lines = [f"{counted(variant.captured_nodes, 'node')} captured; {variant.runs}"]
    lines += [f"  {line}" for line in [variant.measured()] if line]
    if variant.inputs:
        lines.append("  inputs: " + ", ".join(f"{path} ({role})" for path, role in variant.inputs.items()))
    if variant.relations:
        lines.append("  assumes: " + "; ".join(variant.relations))
    for stage in variant.stages:
        kept = ""
        if stage.name != "step":
            hits = f"{counted(stage.hits, 'hit')}, {counted(stage.misses, 'miss', 'es')}"
            kept = f"  {hits}; {counted(stage.entries, 'entry', 'entries')} of {scaled(stage.kept_bytes, 'B')}"
        work = f"{counted(stage.nodes, 'node'):>10} {scaled(stage.flops, 'FLOP'):>11}"
        lines.append(f"  {stage.name:16} {stage.target:8} {work}{kept}")
    for record in variant.passes:
        lines += [f"  {line}" for line in _pass_lines(record)]
    return [*lines, *(f"  note: {note}" for note in variant.notes)]


def _pass_lines(record: PassRecord) -> list[str]:
    """What a pass did and saved of the step, and why it held back; nothing of one that found nothing."""
    lines = []
    if record.error:
        first, *rest = record.error.splitlines()
        lines += [f"pass {record.name} was rolled back: {first}", *rest]
    if record.fired:
        lines.append(f"{record.name} fired {counted(record.fired, 'time')}: {_saving(record)}")
        if remark := weights_alone(record.once_flops, record.once_bytes):
            lines.append(f"  {remark}")
    if record.refusals:
        found = alike(record.refusals) if len(record.refusals) > _REASONS else record.refusals
        often = [f"{count} × {reason}" if len(found) > 1 else reason for reason, count in found.most_common(_REASONS)]
        often += [f"{counted(len(found) - _REASONS, 'more reason')}"] * (len(found) > _REASONS)
        lines.append(f"{record.name} refused {counted(found.total(), 'time')}: {'; '.join(often)}")
    return lines


def _saving(record: PassRecord) -> str:
    """``saves 2 MFLOP, 12 MB of the step``, ``adds`` where it prepares a later pass; symbolic amounts as they were
    and are.
    """
    saved, added, unknown = list[str](), list[str](), list[str]()
    for (was, now), unit in ((record.flops, "FLOP"), (record.bytes, "B")):
        if not all(isinstance(amount, int | float) for amount in (was, now)):
            unknown += [f"{was} → {scaled(now, unit)}"] * (was != now)
        elif was != now:
            (saved if was > now else added).append(scaled(abs(was - now), unit))
    parts = [f"saves {', '.join(saved)} of the step"] * bool(saved)
    parts += [f"adds {', '.join(added)} to {'it' if saved else 'the step'}"] * bool(added)
    return "; ".join([*parts, *unknown]) or "the step's work is the same"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def report_of(installed: Sequence[Installed], replays: Replays | None = None) -> Report:
    """The report of compiled modules, and of the function around them, as they are now."""
    report = Report([_module(entry) for entry in installed], loops_of(installed))
    if replays:
        report.replays = [_replay(entry) for entry in replays.known.values() if isinstance(entry, Replay)]
        report.left = dict(replays.asides)
    return report


def _replay(entry: Replay) -> ReplayReport:
    loop, update = entry.loop, entry.loop.update
    return ReplayReport(
        calls=len(loop.calls),
        operations=entry.operations,
        steps=max(1, len(loop.steps)),
        update=(update[1].folded, len(update[1].terms)) if update else None,
        runs=entry.runs,
        passes=entry.passes,
        note=entry.wrong or "",
    )


def _module(entry: Installed) -> ModuleReport:
    forms = [{**variant.form, "assumes": _assumed(variant)} for variant in entry.variants]
    variants = [_variant(variant, name) for variant, name in zip(entry.variants, names(forms), strict=True)]
    found = outcome(entry)
    eviction = EvictionReport(*found) if found else None
    held = entry.branches.counts
    guidance = GuidanceReport(held.calls, held.branches, held.computed) if held.calls else None
    return ModuleReport(
        entry.name, type(entry.module).__name__, entry.calls, variants, dict(entry.asides), eviction, guidance
    )


def _assumed(variant: Variant) -> str:
    return f"assuming {'; '.join(map(str, variant.relations)) or 'nothing of its arguments'}"


def _variant(variant: Variant, name: str) -> VariantReport:
    built, stages = variant.built, []
    costs = stage_costs(built.program)
    for part, target in zip(built.parts, built.targets, strict=True):
        cost, memo = costs[part.name], variant.memos.get(part.name)
        stage = StageReport(part.name, target, cost.nodes, cost.cost.flops, cost.cost.bytes, cost.weight_bytes)
        if memo is not None:
            stage.hits, stage.misses, stage.entries, stage.kept_bytes = memo.hits, memo.misses, len(memo), memo.bytes
        stages.append(stage)
    before, race, contest = program_cost(built.captured), variant.race, variant.contest
    contenders = [ContenderReport(name, found.seconds, *_faster(found)) for name, found in contest.races.items()]
    contenders += [ContenderReport(name, left_out=reason) for name, reason in contest.left_out.items()]
    weights, idle = _weights(built.program)
    return VariantReport(
        inputs={entry.path: entry.role for entry in built.program.inputs if entry.role != "weight"},
        captured_nodes=len(list(built.captured.calls())),
        captured_flops=before.flops,
        captured_bytes=before.bytes,
        weight_bytes=weights,
        idle_weight_bytes=idle,
        stages=stages,
        passes=built.passes,
        seconds=variant.seconds,
        faster=_faster(race)[0] if race else None,
        interval=_faster(race)[1] if race else None,
        runs=_runs(variant),
        relations=list(map(str, variant.relations)),
        notes=built.notes,
        target=built.target.name,
        original_seconds=contest.original or None,
        contenders=contenders,
        name=name,
    )


def _faster(race: Race) -> tuple[float, tuple[float, float]]:
    """How many times as fast as the original, and the interval."""
    return 1 / race.ratio, (1 / race.high, 1 / race.low)


def _weights(program: Program) -> tuple[Any, Any]:
    """Bytes of the weights that stages read, and of those among them that the step does not."""
    readers: dict[fx.Node, set[Stage]] = {}  # the stages beyond the weights stage that a value goes to
    for node in reversed(program.graph.nodes):
        placed = {user: placement(user) for user in node.users}
        readers[node] = set().union(*(readers[user] if at == WEIGHTS else {at} for user, at in placed.items()))
    nodes = zip(program.placeholders, program.inputs, strict=True)
    read = {node: readers[node] for node, entry in nodes if entry.role == "weight" and readers[node]}
    idle = [node for node, to in read.items() if not to & {STEP, COMMON}]
    return sum(nbytes(val(node)) for node in read), sum(nbytes(val(node)) for node in idle)


def _runs(variant: Variant) -> str:
    if variant.wrong:
        return f"left to the module: {variant.wrong}"
    race = variant.race
    if race is None:
        return "runs compiled"
    by = f" by {variant.built.targets[-1]}"
    interval = f"interval {1 / race.high:.2f} to {1 / race.low:.2f}"
    if not race.won and race.low < 1:
        return f"no clear difference, so the original runs ({interval})"
    times = f"{1 / race.ratio:.2f} times as fast"
    if race.won:
        return f"runs compiled{by}: {times} as the original ({interval})"
    return f"the original runs: compiled{by} is {times} ({interval})"
