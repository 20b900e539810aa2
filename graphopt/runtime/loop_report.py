"""What a recorded trajectory looked like, and what became of the relations between its calls, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from graphopt.ir.loop import LoopProgram
from graphopt.ir.program import val
from graphopt.ir.relations import Constant, Paired, Relation, Repeated
from graphopt.ir.update import Update
from graphopt.runtime.installed import Installed, Variant


@dataclass
class RelationReport:
    """One relation between a module's calls.

    Attributes
    ----------
    module, what : of which module's arguments, and what it says.
    seen : how it is known: the line whose operations prove it for the recorded run, or ``in values``.
    fate : what was made of it: ``used``, or why not.
    holds : how it is known to hold at a call.
    """

    module: str
    what: str
    seen: str
    fate: str
    holds: str = ""


@dataclass
class LoopReport:
    """One recorded trajectory.

    Attributes
    ----------
    sampler : name of the sampler.
    calls : how often each module was called, in the order of their first calls.
    period : after how many calls the operations between them repeat; 0 when they do not.
    irregular : calls after which other operations run (warm-up of multistep solvers).
    calls_per_timestep : states in a row at one timestep.
    operations : between two states, in a regular step.
    update : what a step does to the state, as a formula; empty when it is not linear.
    folded : operations that the formula stands for.
    guidance : how the branches of a call are combined → in how many calls.
    relations : found and refused.
    """

    sampler: str
    calls: dict[str, int]
    period: int
    irregular: int
    calls_per_timestep: int
    operations: int
    update: str = ""
    folded: int = 0
    guidance: dict[str, int] = field(default_factory=dict)
    relations: list[RelationReport] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A summary."""
        calls = ", ".join(f"{count} of {name}" for name, count in self.calls.items())
        found = [f"loop of {self.sampler}: calls in one run: {calls}"]
        if self.period:
            each = f"{self.operations} operations between two steps"
            odd = f", {self.irregular} irregular" if self.irregular else ""
            found.append(f"  repeats after {self.period} call{'s' * (self.period > 1)}{odd}; {each}")
        else:
            found.append("  no two steps run the same operations")
        if self.calls_per_timestep > 1:
            found.append(f"  the solver calls the model on up to {self.calls_per_timestep} states per timestep")
        if self.update:
            found.append(f"  a step, folded from {self.folded} operations: {self.update}")
        found += [f"  guidance: {combined}, in {count} calls" for combined, count in self.guidance.items()]
        for entry in self.relations:
            holds = f"; {entry.holds}" if entry.holds else ""
            found.append(f"  {entry.module}: {entry.what} ({entry.seen}): {entry.fate}{holds}")
        return found


def loops_of(installed: Sequence[Installed]) -> list[LoopReport]:
    """The recorded trajectories of these modules."""
    loops = {id(entry.loop): entry.loop for entry in installed if entry.loop is not None}
    return [_loop(loop, [entry for entry in installed if entry.loop is loop]) for loop in loops.values()]


def _loop(loop: LoopProgram, installed: Sequence[Installed]) -> LoopReport:
    named = {entry.name for entry in installed}
    calls = Counter(call.module for call in loop.calls if call.module in named)
    guidance = Counter(_sum(loop.step_calls[k].module, g.weights) for k, g in loop.guidance.items())
    made = LoopReport(
        loop.name, dict(calls), loop.period, len(loop.irregular), loop.calls_per_timestep, _operations(loop),
        guidance=dict(guidance), relations=list(_relations(loop, installed)),
    )  # fmt: skip
    if loop.update is not None and loop.update[1].folded > 1:
        made.update, made.folded = _formula(loop, loop.update[1]), loop.update[1].folded
    return made


def _operations(loop: LoopProgram) -> int:
    """Operations on tensors between two states, in the middle of the run."""
    if len(loop.steps) < 2:
        return 0
    step = loop.steps[(len(loop.steps) - 1) // 2]
    return sum(isinstance(val(node), torch.Tensor) for k in step for node in loop.segments[k] if _computes(node))


def _computes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _formula(loop: LoopProgram, update: Update) -> str:
    """``x' = 1.02 x − 0.14 unet[0]``."""
    names = _names(loop, update)
    return "x' = " + _terms((weight, names[node]) for node, weight in update.coefficients().items())


def _sum(module: str, weights: Sequence[float]) -> str:
    """``−6.5·unet[0] + 7.5·unet[1]``: the parts of a batch, by their position."""
    return _terms((weight, f"{module}[{k}]") for k, weight in enumerate(weights))


def _terms(terms: Iterable[tuple[float, str]]) -> str:
    texts = [f"{'−' if weight < 0 else '+'} {abs(weight):.4g}·{name}" for weight, name in terms]
    first, *rest = texts or [""]
    return " ".join([first.removeprefix("+ ").replace("− ", "−"), *rest])


def _names(loop: LoopProgram, update: Update) -> dict[fx.Node, str]:
    """What terms are called: x for the state, predictions by module and branch, noise, and earlier values."""
    calls = {call.node: call.module for call in loop.calls}
    found: dict[fx.Node, str] = {}
    for node in update.terms:
        source, inner = node, ""
        while source.op == "call_function" and source not in calls and not _computes(source):
            inner = f"[{source.args[1]}]"
            source = source.all_input_nodes[0]
            if source.target is torch.ops.aten.split.Tensor:
                source = source.all_input_nodes[0]
                while source not in calls and source.all_input_nodes:
                    source = source.all_input_nodes[0]
                break
        if source in calls:
            name = calls[source] + inner
            again = sum(other.partition(" ")[0] == name for other in found.values())
            found[node] = f"{name} (call {again + 1})" if again else name
        elif "rand" in str(node.target):
            found[node] = "noise"
        else:
            found[node] = "x" if "x" not in found.values() else f"earlier{sum('earlier' in n for n in found.values())}"
    return found


def _relations(loop: LoopProgram, installed: Iterable[Installed]) -> Iterable[RelationReport]:
    for entry in installed:
        proved = {finding.what: finding for finding in loop.findings if finding.module == entry.name}
        known: dict[Relation, str] = {}
        for variant in reversed(entry.variants):  # the newest stands in front
            known.update(dict.fromkeys(variant.built.unused, "no pass gains anything from it"))
            fate = f"not relied on any more: it {variant.refuted}" if variant.refuted else "used"
            known.update(dict.fromkeys(variant.relations, fate))
        for relation, fate in known.items():
            finding = proved.pop(relation, None)
            seen = f"proved by {finding.source}" if finding is not None and finding.source else "seen in values"
            yield RelationReport(entry.name, str(relation), seen, fate, _holds(relation, entry.variants, fate))
        roles = {e.path: e.role for variant in entry.variants for e in variant.arguments}
        for what, finding in proved.items():
            if roles.get(getattr(what, "path", "")) in ("condition", "time") and not finding.against:
                continue  # what the role of the argument says already
            why = finding.against or "not needed: no part of the step depends on it alone"
            yield RelationReport(entry.name, str(what), f"recorded at {finding.source}", f"refused: {why}")


def _holds(relation: Relation, variants: Sequence[Variant], fate: str) -> str:
    if fate != "used":
        return ""
    if isinstance(relation, Repeated):
        unequal = sum(v.unequal for v in variants if relation in v.relations)
        other = f", {unequal} calls were otherwise" if unequal else ""
        return f"compared at every call{other}"
    if isinstance(relation, Constant | Paired):
        return "kept under contents"
    return "kept under contents, as a condition"
