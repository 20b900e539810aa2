"""The compiled call that stands in for a module's own: guards, variants, memoised stages, and stepping aside.

Installed through ``module._compiled_call_impl``, so that the module stays the same object of the same class. Whatever
the call cannot serve exactly as the module would goes to the module itself, counted by reason.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from graphopt import artifacts
from graphopt.capture.calls import Call, CallTaker
from graphopt.capture.fingerprint import Executed
from graphopt.capture.guards import ModuleGuard, call_state, interference, outside, watched
from graphopt.capture.relations import Watch, repeated
from graphopt.capture.tracing import tracing
from graphopt.debug.figures import duration
from graphopt.debug.statistics import PassRecord
from graphopt.errors import CaptureError, UsageError, VerificationError
from graphopt.ir.accuracy import relative_error
from graphopt.ir.loop import LoopProgram
from graphopt.ir.program import Input, Program
from graphopt.ir.relations import Boundary, Relation, Repeated
from graphopt.ir.stages import Part
from graphopt.ir.verify import evaluate
from graphopt.runtime import evict, race, shelf
from graphopt.runtime.branches import Branches
from graphopt.runtime.forms import Form, form, why
from graphopt.runtime.gate import GATE
from graphopt.runtime.guidance import Guided, resolve
from graphopt.runtime.memo import Key, Memo, key_part, private
from graphopt.runtime.race import ORIGINAL, Choice, Contest, Race
from graphopt.runtime.trajectory import Trajectories
from graphopt.runtime.weights import Weights
from graphopt.targets import KeepsWeights, Kernel, Target

_MAX_VARIANTS = 32
_ONE_STATE = 2  # entries of the common stage: a state serves the branches of one step, and a thread beside this one
_WATCHES = 4  # runs that are watched for relations between their calls
_PATIENCE = 2  # changes of a part that was thought to stay the same
_capturing = threading.local()
_LOG = logging.getLogger("graphopt")  # at level INFO it says what is compiled, why, and what that took

Pick = Callable[[list[Any]], tuple[Any, ...]]  # a stage's arguments, from all values that are known


@dataclass
class Built:
    """A Program after its passes, cut into stages and built.

    Attributes
    ----------
    program : after all passes.
    parts : its stages in the order of computation, the step last.
    kernels : one callable per part.
    targets : the name of the target that built each part.
    target : what was to build the step.
    captured : the Program before its passes, about the call's own arguments.
    boundary : how the inputs of `program` come out of the arguments.
    unused : relations that hold but that no pass gained anything from.
    passes : what each pass did.
    notes : anything the user should know (a part that fell back to the eager target, and why).
    seconds : that went into ``passes`` and ``code``, and into the ``capture`` of the first that was built of it.
    """

    program: Program
    parts: list[Part]
    kernels: list[Kernel]
    targets: list[str]
    target: Target
    captured: Program
    boundary: Boundary
    unused: tuple[Relation, ...] = ()
    passes: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def fell_back(self) -> bool:
        """Whether the target could not build the step."""
        return self.targets[-1] != self.target.name

    @property
    def kept(self) -> tuple[str, ...]:
        """What of it an earlier process has made."""
        found = {
            "captured graph": bool(self.captured.kept),
            "graph after passes": bool(self.program.kept),
            "code": any(getattr(kernel, "kept", False) for kernel in self.kernels),
        }
        return tuple(what for what, kept in found.items() if kept)


@dataclass(frozen=True)
class Own:
    """A call that the module has served itself before it is captured.

    Attributes
    ----------
    args, kwargs : of the call, these very objects.
    seconds : that it took.
    before, after : states of the random generators; `after` is None where it drew no numbers.
    """

    call: Call
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    seconds: float
    before: list[torch.Tensor]
    after: list[torch.Tensor] | None


class _NotNow(Exception):
    """Other threads run modules and would not make room for a capture."""


class Builder(Protocol):
    """What makes a `Built`; given by `graphopt.compile`.

    Attributes
    ----------
    exploits : the kinds of relations that its passes can use.
    choice : the targets that it builds for.
    """

    @property
    def exploits(self) -> tuple[type, ...]: ...

    @property
    def choice(self) -> Choice: ...

    def capture(self, call: Call, taker: CallTaker, executed: Executed | None) -> Program: ...

    def build(self, captured: Program, relations: Sequence[Relation], target: Target) -> Built: ...


class Variant:
    """One captured Program of a module: the calls it serves, the state of the module it needs, and its memos."""

    def __init__(self, installed: Installed, signature: Any, form: Form, built: Built, seconds: float) -> None:
        self.signature, self.form, self.built, self.seconds = signature, form, built, seconds
        self.guard = ModuleGuard(installed.module)
        self.used = installed.calls  # the call it served last
        self.checked = False  # whether its first result was compared with the module's own
        self.race: Race | None = None
        self.contest = Contest()
        self.rivals: tuple[Target, ...] = ()  # targets that it has to be compared with
        self.wrong: str | None = None  # why the compiled result was rejected, when it was
        self.stale: list[str] = []  # keys of what an earlier process has kept and is wrong by now
        self.refuted: str | None = None  # why its relations are not relied on any more
        self.unequal = 0  # calls whose arguments did not consist of the parts it takes
        program = built.program
        self.inputs = program.inputs
        self.weights = Weights(installed.module, [i for i in program.inputs if i.role == "weight"], program.constants)
        self.arguments: list[Input] = [entry for entry in built.captured.inputs if entry.role != "weight"]
        self._conditions = [k for k, entry in enumerate(self.arguments) if entry.role == "condition"]
        self._times = [k for k, entry in enumerate(self.arguments) if entry.role == "time"]
        self.memos = {
            part.name: Memo(installed.max_bytes, _ONE_STATE if part.name == "common" else None)
            for part in built.parts[:-1]
        }
        self._plans = self._gather()
        kernels: list[object] = [*self.built.kernels]
        self._keeping = [kernel for kernel in kernels if isinstance(kernel, KeepsWeights)]
        self._constants = self._constant_inputs()
        self._flat = _gives_a_tuple(program)
        self.tried: set[Relation] = set()  # relations that it was built with, or could not gain from
        self._watches = _WATCHES if installed.exploits else 0
        self._local = threading.local()

    @property
    def relations(self) -> tuple[Relation, ...]:
        """What its Program assumes of the arguments."""
        return self.built.program.relations

    def _constant_inputs(self) -> list[int]:
        """Positions (among all inputs) of what is kept as a condition although its argument is state."""
        taken, weights = self.built.boundary.inputs, len(self.inputs) - len(self.built.boundary.inputs)
        return [
            weights + k
            for k, entry in enumerate(self.inputs[weights:])
            if entry.role == "condition" and self.arguments[taken[k].argument].role == "state"
        ]

    def _gather(self) -> list[tuple[Pick, list[int]]]:
        """For each part, how to pick its arguments from the values known so far, and which arguments key its memo."""
        where = {entry.name: position for position, entry in enumerate(self.inputs)}
        needs = {entry.name: {entry.name} if entry.role != "weight" else set() for entry in self.inputs}
        plans = []
        for part in self.built.parts:
            keyed = set[str]().union(*(needs[name] for name in part.reads))
            plans.append((_picker([where[name] for name in part.reads]), [where[name] for name in sorted(keyed)]))
            if part.name != "step":
                known = len(where)
                where.update({name: known + k for k, name in enumerate(part.gives)})
                needs.update(dict.fromkeys(part.gives, keyed))
        return plans

    @property
    def trajectories(self) -> Trajectories:
        """The sampling runs that the calling thread is in."""
        if not hasattr(self._local, "trajectories"):
            self._local.trajectories = Trajectories()
        return self._local.trajectories  # type: ignore[no-any-return]

    @property
    def watching(self) -> bool:
        """Whether the calling thread still compares the calls of a run."""
        return self._watches > 0

    def watch(self, tensors: list[torch.Tensor]) -> tuple[Relation, ...]:
        """What the first calls of a run have shown to hold between them; nothing as long as it is not known.

        Some runs are watched, not just the first: it may have been one without guidance.
        """
        if getattr(self._local, "watch", None) is None:
            self._local.watch = Watch([e.path for e in self.arguments], [e.role for e in self.arguments])
        found: tuple[Relation, ...] | None = self._local.watch.see(tensors)
        if found is None:
            return ()
        self._local.watch = None
        self._watches -= 1
        return found

    def later(self, call: Call, moves: int) -> list[Any]:
        """The leaves of a call further along the schedule: times moved a little, everything else the same."""
        given = [k for k, leaf in enumerate(call.leaves) if isinstance(leaf, torch.Tensor)]
        moved, leaves = {given[k] for k in self._times}, list(call.leaves)
        for k in moved:
            leaf = leaves[k]
            # An expanded time stays expanded: strides belong to the signature, and another one would be captured.
            once = leaf[tuple(0 if stride == 0 else slice(None) for stride in leaf.stride())]
            step = once.new_tensor(moves) if not once.is_floating_point() else once.abs() * (moves / 64)
            # Whole numbers only go down: a module may not know larger ones. At the end of the schedule they stay.
            beyond = once + step if once.is_floating_point() else once.clone()
            new = once - step if bool((once >= step).all()) else beyond
            strides = iter(new.stride())
            leaves[k] = new.as_strided(leaf.shape, [stride and next(strides) for stride in leaf.stride()])
        return leaves

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Work on a copy of what is kept: calls that nobody asked for are not counted, and leave nothing behind."""
        kept, self.memos = self.memos, {name: memo.copy() for name, memo in self.memos.items()}
        try:
            yield
        finally:
            self.memos = kept

    def not_what_it_was(self, call: Call, expected: Any) -> list[str]:
        """Keys of the Programs of an earlier process that do not give what the module does."""
        built, weights, found = self.built, self.weights.read(), list[str]()
        for program, tensors in ((built.captured, call.tensors), (built.program, built.boundary.take(call.tensors))):
            if program.kept:
                try:
                    with torch.no_grad():
                        results = evaluate(program, [*weights, *tensors])
                    wrong = disagreement([value for value in results if value is not None], expected)
                except Exception as error:
                    wrong = str(error)
                found += [program.kept.key] if wrong else []
        return found

    def forget(self) -> None:
        """Drop all that is kept."""
        for memo in self.memos.values():
            memo.clear()
        for kernel in self._keeping:
            kernel.weights_are(None)

    def serves(self, signature: Any) -> bool:
        if self.signature != signature or self.refuted:
            return False
        if self.lost:
            return True  # what is left to the module is right whatever has become of the module
        if not self.guard.holds():
            self.weights.let_go()
            return False
        return self.weights.fit(self.guard.generation)

    @property
    def lost(self) -> bool:
        """Whether calls are left to the module, because they were not faster or not right."""
        return self.wrong is not None or (self.race is not None and not self.race.won)

    def run(self, call: Call) -> Any:
        """What the module would return for this call.

        Not while another thread captures: torch.export turns oneDNN off for the process, and results would be rounded
        otherwise.
        """
        with GATE.running():
            return self._run(call)

    def _run(self, call: Call) -> Any:
        generation = self.guard.generation
        weights = self.weights.read(generation)
        values = [*weights, *self.built.boundary.take(call.tensors)]
        tensors = call.tensors
        if len(self._plans) > 1 or self._keeping:
            conditions, times = ([tensors[k] for k in kind] for kind in (self._conditions, self._times))
            epoch = self.trajectories.step(weights, conditions, times)
            places = self.trajectories.places
        for keeping in self._keeping:
            keeping.weights_are(epoch, None if places is None else (generation, places))
        if len(self._plans) > 1:
            keys: dict[int, tuple[Any, torch.Tensor | None]] = {}
            stages = zip(self.memos.values(), self.built.kernels, self._plans, strict=False)
            for memo, kernel, (pick, keyed) in stages:
                for position in keyed:
                    if position not in keys:
                        keys[position] = key_part(values[position])
                held = tuple(place for k in keyed if (place := keys[k][1]) is not None)
                key = Key((epoch, *(keys[k][0] for k in keyed)), held)
                values.extend(self._kept(memo, key, kernel, pick, values, weights, tensors))
            if self._constants:
                self._doubt([keys[k][0] for k in self._constants if k in keys])
        with torch.no_grad():
            results = self.built.kernels[-1](*self._plans[-1][0](values))
        spec = self.built.program.out_spec
        return tuple(results) if self._flat or spec is None else tree_unflatten(list(results), spec)

    def _doubt(self, keys: list[Any]) -> None:
        """Give up on parts that were thought to stay the same and change in the middle of a run."""
        if not hasattr(self._local, "constants"):
            self._local.constants = weakref.WeakKeyDictionary()
        trajectory = self.trajectories.current
        before, changes = self._local.constants.get(trajectory, (keys, 0))
        if trajectory.index == 0:
            changes = 0
        elif before != keys:
            changes += 1
        self._local.constants[trajectory] = keys, changes
        if changes >= _PATIENCE:
            self.refuted = f"changed {changes} times in the middle of a run"
            self.forget()  # it serves no more

    @staticmethod
    def _kept(
        memo: Memo, key: Key, kernel: Kernel, pick: Pick, values: list[Any], weights: Sequence[Any], tensors: list[Any]
    ) -> tuple[Any, ...]:
        """What a stage gives: kept, or computed now and kept."""
        moded = torch._C._len_torch_dispatch_stack() > 0  # a dispatch mode may change what operators do
        known = None if moded else memo.get(key, weights)
        if known is None:
            # Kept values must be usable in later calls, which may not be in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                known = private(kernel(*pick(values)), tensors)
            if not moded:
                memo.put(key, known, weights)
        return known


def _picker(positions: list[int]) -> Pick:
    if len(positions) == 1:
        return lambda values: (values[positions[0]],)
    return itemgetter(*positions) if positions else lambda values: ()


def _gives_a_tuple(program: Program) -> bool:
    """Whether the results as they come are what the module returns."""
    if program.out_spec is None:
        return True
    numbers = list(range(program.out_spec.num_leaves))
    built = tree_unflatten(numbers, program.out_spec)
    return type(built) is tuple and built == tuple(numbers)


class Installed:
    """The compiled call of one module.

    Parameters
    ----------
    module : what is compiled; it is not changed.
    builder : makes a `Built` from a captured call.
    max_bytes : bound of each memo.
    strict : raise what goes wrong in compilation instead of warning and stepping aside.
    check : leave calls to the module where the first compiled result cannot be right. Else whatever was compiled is
        served, and what goes wrong in building or running it is raised.
    eviction : whether and where to evict weights that no step reads.
    """

    def __init__(
        self, module: torch.nn.Module, name: str, builder: Builder, takers: Sequence[CallTaker], *, max_bytes: int,
        strict: bool, check: bool = True, eviction: evict.Eviction | None = None,
    ) -> None:  # fmt: skip
        self.module, self.name, self.max_bytes, self.strict = module, name, max_bytes, strict
        self.check, self.raises = check, strict or not check
        self.before = module.__dict__.get("_compiled_call_impl")  # what `graphopt.restore` brings back
        self._builder, self.takers = builder, takers
        self.variants: list[Variant] = []
        self._last: Variant | None = None
        self.failures: dict[Any, tuple[ModuleGuard, str]] = {}
        self.asides: Counter[str] = Counter()
        self.calls = 0
        self.loop: LoopProgram | None = None  # a trajectory that called the module, recorded
        self.branches = Branches(name)
        self._unstable: Counter[Any] = Counter()
        self._local = threading.local()  # its `own`: what the calling thread has let the module compute beforehand
        self._lock = threading.RLock()
        self.eviction, self.stayed = eviction, Counter[str]()
        evict.register(self)

    @property
    def exploits(self) -> tuple[type, ...]:
        """The kinds of relations between calls that the passes can use."""
        return self._builder.exploits

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Exactly what ``module(*args, **kwargs)`` returns without graphopt, up to the accuracy of the passes."""
        if getattr(_capturing, "active", False):
            return self.module._call_impl(*args, **kwargs)
        if Guided.made:
            args, kwargs = resolve((args, kwargs))
        with evict.Calling():
            try:
                return self._call(args, kwargs)
            finally:
                self._local.own = None

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, hold: bool = True) -> Any:
        self.calls += hold  # a call held back was counted when it was made
        try:
            found = self._serve(args, kwargs)
        except CaptureError as error:
            if self.strict:
                raise
            found = error.what
        if isinstance(found, str):
            return self._aside(found, args, kwargs)
        variant, call = found
        if variant.watching or not variant.checked:
            if (reason := watched()) and not variant.checked:
                return self._aside(reason, args, kwargs)
            variant = variant if reason else self._look(variant, call)
        if not variant.checked:
            return self._first(variant, call, args, kwargs)
        if variant.wrong:
            return self._aside(variant.wrong, args, kwargs)
        if variant.race is not None and not variant.race.won:
            return self._aside("measured, and not faster than the module itself", args, kwargs)
        try:
            if hold and self.loop is not None and (times := self.branches.times(self.loop)):
                held = self._hold(variant, call, times)
                if held is not None:
                    return held
            return variant.run(call)
        except Exception as error:
            if self.raises:
                raise
            reason = f"the compiled call raised {type(error).__name__}: {_first_line(error)}"
            result = self._aside(reason, args, kwargs)  # raises what is the caller's own fault
            self._reject(variant, reason)
            return result

    def _hold(self, variant: Variant, call: Call, times: int) -> Any:
        """The result of a call on guidance branches, computed when it is known which of them have weights.

        None where the call cannot be held back.
        """
        state, versions = call_state(), Weights.versions(variant.weights.read(variant.guard.generation))
        if versions is None:
            return None  # nobody could tell whether they were written to

        def run(call: Call, leaves: list[Any]) -> Any:
            with evict.Calling(), torch._C._DisableAutocast():  # as now: under autocast no call is served
                return self._call(*self.takers[0].rebuild(leaves, call.spec), hold=False)

        def same() -> bool:
            if not variant.guard.holds() or call_state() != state:
                return False
            now = Weights.versions(variant.weights.read(variant.guard.generation))
            if now is None:
                return False
            return now == versions or (now[1] == versions[1] and all(map(evict.moved, versions[0], now[0])))

        return self.branches.hold(variant.built.captured, call, times, run, same)

    def _aside(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own call."""
        self.asides[reason] += 1
        return self._original(args, kwargs)

    def _original(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module returns; computed once, where this call was run before it was captured."""
        own = self._own(args, kwargs)
        self._local.own = None
        if own is not None:
            if own.after is not None:
                _set_random_state(own.call, own.after)
            return own.result
        with GATE.running():
            return self.module._call_impl(*args, **kwargs)

    def _own(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Own | None:
        """The result of a call that the module has served already, if it was this one."""
        own: Own | None = getattr(self._local, "own", None)
        return own if own is not None and own.args is args and own.kwargs is kwargs else None

    def _run_seen(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Executed | None:
        """The code that the module's own call runs; None where the module changes by it.

        The result is kept for whoever asks for it (`_original`).
        """
        guard, before, start = ModuleGuard(self.module), _random_state(call), time.perf_counter()
        _capturing.active = True  # compiled modules inside serve themselves: their code counts
        try:
            with GATE.running(), Executed() as executed:
                result = self.module._call_impl(*args, **kwargs)
        finally:
            _capturing.active = False
        seconds, after = time.perf_counter() - start, _random_state(call)
        drew = not all(map(torch.equal, before, after))
        self._local.own = Own(call, args, kwargs, result, seconds, before, after if drew else None)
        if drew:
            _set_random_state(call, before)
        return executed if guard.holds() else None

    def _reject(self, variant: Variant, reason: str) -> None:
        variant.wrong = reason
        warnings.warn(f"graphopt: {self.name} runs uncompiled: {reason}", RuntimeWarning, stacklevel=5)

    def _serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Variant, Call] | str:
        """The variant for this call, captured if need be; or why the module must serve it itself."""
        try:
            calls = [self.takers[0].take(args, kwargs)]
        except TypeError:
            return "the arguments do not fit the module's forward"  # which will say so itself
        reason = outside(self.module, calls[0].tensors)
        if reason:
            return reason
        with GATE.running():  # a capture sets flags of the process
            state = call_state()
        for taker in self.takers:
            if len(self.takers) > 1 and taker is not self.takers[0]:
                calls.append(taker.take(args, kwargs))
            for variant in self.variants:
                if variant.serves((calls[-1].signature, state)):
                    if variant.built.boundary.fits(calls[-1].tensors):
                        self._serves_now(variant)
                        return variant, calls[-1]
                    variant.unequal += 1
            if calls[0].numbers == 0:
                break  # all takers take such a call alike
        return self._capture(calls, state, args, kwargs)

    def _serves_now(self, variant: Variant) -> None:
        """Note which variant serves; others keep no weights alive that the module may have exchanged since."""
        variant.used = self.calls
        if self._last is not variant:
            if self._last is not None:
                self._last.weights.let_go()
            self._last = variant

    def _capture(
        self, calls: list[Call], state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Variant, Call] | str:
        with self._lock:
            failed = self.failures.get((calls[0].signature, state))
            if failed and failed[0].holds():
                return failed[1]
            for call in calls:  # another thread may have been faster
                for variant in self.variants:
                    if variant.serves((call.signature, state)) and variant.built.boundary.fits(call.tensors):
                        return variant, call
            reason = interference(self.module) or watched()
            if reason:
                return reason
            if any(self._unstable[call.signature, state] > 1 for call in calls):
                return "the module changes its own attributes whenever it runs"
            arguments = form(self.takers[0], calls[0], state)
            reason = why(arguments, [variant.form for variant in self.variants])
            _LOG.info("%s: compiling %s: %s", self.name, type(self.module).__name__, reason)
            executed = None
            if artifacts.folder() is not None:
                executed = self._run_seen(calls[0], args, kwargs)
                if executed is None:  # it may have filled a cache, once
                    self._unstable[calls[0].signature, state] += 1
                    return "the module changed its own attributes by this call"
            error: CaptureError | None = None
            for taker, call in zip(self.takers, calls, strict=False):
                start = time.perf_counter()
                _capturing.active = True
                try:
                    built = self._built(call, taker, executed)
                except _NotNow:
                    return "other threads run modules while this call would have to be captured"
                except CaptureError as caught:
                    error = error or caught
                    continue
                except Exception as caught:
                    if self.raises or isinstance(caught, UsageError):
                        raise
                    what = f"compiling it raised {type(caught).__name__}: {_first_line(caught)}"
                    error = error or CaptureError(
                        what, where=self.name, hint="strict=True raises it with its traceback"
                    )
                    continue
                finally:
                    _capturing.active = False
                arguments = form(taker, call, state)
                variant = Variant(self, (call.signature, call_state()), arguments, built, time.perf_counter() - start)
                self._told(variant)
                variant.rivals = self._builder.choice.targets[1:]
                self._add(variant)
                return variant, call
            assert error is not None
            if self.strict:
                raise error
            self.failures[calls[0].signature, state] = (ModuleGuard(self.module), error.what)
            warnings.warn(f"graphopt: {self.name} runs uncompiled: {error}", RuntimeWarning, stacklevel=5)
            return error.what

    def _built(self, call: Call, taker: CallTaker, executed: Executed | None) -> Built:
        """A call captured and built, with the relations that can be seen in it alone.

        Raises _NotNow when other threads would not make room for the capture.
        """
        with GATE.capturing() as free:
            if not free:
                raise _NotNow
            start = time.perf_counter()
            with tracing():
                captured = self._builder.capture(call, taker, executed)
            seconds = time.perf_counter() - start
        relations: tuple[Relation, ...] = ()
        if Repeated in self.exploits:
            given = [entry for entry in captured.inputs if entry.role != "weight"]
            relations = repeated(call.tensors, [entry.path for entry in given], [entry.role for entry in given])
        with tracing():  # targets trace too
            built = self._builder.build(captured, relations, self._builder.choice.targets[0])
        built.seconds["capture"] = seconds
        return built

    def _told(self, variant: Variant) -> None:
        """Log what a compilation took."""
        built = variant.built
        spent = [(what, built.seconds[what]) for what in ("capture", "passes", "code") if what in built.seconds]
        parts = ", ".join(f"{what} {duration(seconds)}" for what, seconds in spent)
        kept = f"from the cache: {', '.join(built.kept)}" if built.kept else "nothing was in the cache"
        took = duration(variant.seconds)
        _LOG.info("%s: compiled for target %s in %s (%s); %s", self.name, built.target.name, took, parts, kept)

    def _add(self, variant: Variant) -> None:
        """Serve calls with this variant from now on, in front of those that assume less."""
        if len(self.variants) >= _MAX_VARIANTS:
            oldest = min(self.variants, key=lambda known: known.used)
            self.variants = [known for known in self.variants if known is not oldest]
        self.variants = [variant, *self.variants]

    def _look(self, variant: Variant, call: Call) -> Variant:
        """The variant to serve a call with: one that assumes more, where the calls so far have shown more."""
        new = [entry for entry in variant.watch(call.tensors) if type(entry) in self.exploits]
        new = [entry for entry in new if entry not in variant.relations and entry not in variant.tried]
        if not new or variant.lost:
            return variant
        variant.tried.update(new)
        with self._lock:
            _LOG.info("%s: compiling again: its calls have shown that %s", self.name, _listed(new))
            start = time.perf_counter()
            try:
                with tracing():  # targets trace too
                    assumed = (*variant.relations, *new)
                    built = self._builder.build(variant.built.captured, assumed, variant.built.target)
            except Exception as error:
                if self.raises:
                    raise
                variant.built.notes.append(
                    f"building with what calls share raised {type(error).__name__}: {_first_line(error)}"
                )
                return variant
            variant.built.unused = tuple(dict.fromkeys((*variant.built.unused, *built.unused)))
            if {*built.program.relations} <= {*variant.relations}:
                _LOG.info("%s: no pass gains from that, and nothing changes", self.name)
                return variant
            better = Variant(self, variant.signature, variant.form, built, time.perf_counter() - start)
            self._told(better)
            better.tried = set(variant.tried)
            better.rivals = () if variant.checked else variant.rivals  # else the target is known
            self._add(better)
            variant.forget()  # it may serve again, and would compute it again
        return better if better.built.boundary.fits(call.tensors) else variant

    def _first(self, variant: Variant, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first call of a variant; other threads wait for it."""
        with self._lock:
            if not variant.checked:
                result = self._both(variant, call, args, kwargs)
                evict.settle(self)
                return result
        return self(*args, **kwargs)

    def _both(self, variant: Variant, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Module and compiled call, compared in value and, where the target is chosen by measurement, in time."""
        with torch.random.fork_rng(devices=_devices(call)):
            own = self._own(args, kwargs)
            before = _random_state(call) if own is None else own.before
            start = time.perf_counter()
            expected = self._original(args, kwargs)
            spent = time.perf_counter() - start if own is None else own.seconds
            after = _random_state(call)
            result = expected
            if not variant.guard.holds():
                # The module changed its own attributes. It may be a cache made at the first call: capture once more.
                self.variants = [other for other in self.variants if other is not variant]
                self._unstable[variant.signature] += 1
            else:
                again = functools.partial(self._seconds, call, lambda: self._original(args, kwargs))
                contenders, results = [variant, *self._rivals(variant, call, again, spent)], []
                for contender in contenders:
                    _set_random_state(call, before)
                    results.append(self._checked(contender, call, expected))
                result = next((found for found in results if found is not None), expected)
                self._settle(contenders, call)
        _set_random_state(call, after)  # as if the module had run once
        return result

    @staticmethod
    def _seconds(call: Call, run: Callable[[], Any]) -> float:
        """How long a call takes."""
        _synchronise(call)
        start = time.perf_counter()
        run()
        _synchronise(call)
        return time.perf_counter() - start

    def _rivals(self, variant: Variant, call: Call, again: Callable[[], float], spent: float) -> Iterator[Variant]:
        """Variants as this one, built by the other targets; which are left out, and why, is noted with this one.

        Parameters
        ----------
        again : seconds of another call of the module.
        spent : of its first one, which may have had to warm up.
        """
        shortest, left = self._builder.choice.shortest, variant.contest.left_out
        for _ in range(2 if variant.rivals and shortest else 0):
            spent = min(spent, again()) if spent >= shortest else spent
        devices = {tensor.device for tensor in (*call.tensors, *variant.weights.read())}
        for target in variant.rivals:
            reasons = [target.unavailable(device) for device in devices]
            if spent < shortest:
                reasons.insert(0, f"a call of the module takes less than {1e3 * shortest:g} ms")
            if reason := next(filter(None, reasons), None):
                left[target.name] = reason
                continue
            _LOG.info("%s: compiling for target %s, to compare", self.name, target.name)
            start, relations = time.perf_counter(), (*variant.relations, *variant.built.unused)
            try:
                with tracing():  # targets trace too
                    built = self._builder.build(variant.built.captured, relations, target)
            except Exception as error:
                if self.raises:
                    raise
                left[target.name] = f"building raised {type(error).__name__}: {_first_line(error)}"
                continue
            if built.fell_back:
                left[target.name] = "; ".join(built.notes)
                continue
            rival = Variant(self, variant.signature, variant.form, built, time.perf_counter() - start)
            self._told(rival)
            rival.tried = set(variant.tried)
            yield rival

    def _settle(self, contenders: Sequence[Variant], call: Call) -> None:
        """Of variants that serve the same calls keep one: the fastest that is right, where that is measured."""
        first = kept = contenders[0]
        right = [entry for entry in contenders if not entry.wrong]
        right = [entry for entry in right if not entry.built.fell_back] or right
        if not right:
            if stale := {key for entry in contenders for key in entry.stale}:
                return self._forget(stale, contenders, str(first.wrong))
            self._reject(first, str(first.wrong))
        elif self._builder.choice.measured:
            kept = self._fastest(right, call, first)
        for entry in contenders:
            entry.checked = True  # another thread may have found it
            if right and entry not in right:
                self._leave_out(kept, entry)
            if entry is not kept or entry.lost:
                entry.forget()
        kept.seconds = sum(entry.seconds for entry in contenders)
        self._serve_with(kept, contenders)
        self._weigh(kept)

    def _forget(self, kept: Collection[str], contenders: Sequence[Variant], reason: str) -> None:
        """Let go of what an earlier process has kept: it does not compute what the module does now."""
        shelf.forget(kept)
        for entry in contenders:
            entry.forget()
        self.variants = [known for known in self.variants if not any(known is entry for entry in contenders)]
        what = f"graphopt: {self.name} is captured again: what an earlier process kept of it is not what it is now"
        warnings.warn(f"{what}: {reason}", RuntimeWarning, stacklevel=7)

    def _serve_with(self, variant: Variant, instead: Sequence[Variant]) -> None:
        """Have one variant stand for whichever of some is among those that serve."""
        self.variants = [variant if any(known is entry for entry in instead) else known for known in self.variants]

    def _leave_out(self, kept: Variant, other: Variant) -> None:
        """Note why a target takes no part; what it built wrong is worth a warning."""
        name = other.built.target.name
        kept.contest.left_out[name] = other.wrong or "; ".join(other.built.notes)
        if other.wrong:
            what = f"graphopt: {self.name} runs without target {name}: {other.wrong}"
            warnings.warn(what, RuntimeWarning, stacklevel=7)

    def _fastest(self, contenders: Sequence[Variant], call: Call, first: Variant) -> Variant:
        """Of variants that serve the same calls, the one that takes the smallest share of the module's own time.

        Whole calls over successive times, as in a sampling run. The schedule's table is cleared before each call, as if
        no other run had filled it: what it saves from run to run comes on top.
        """
        named, taker = {entry.built.target.name: entry for entry in contenders}, self.takers[0]
        _LOG.info("%s: measuring which is fastest: %s", self.name, ", ".join((ORIGINAL, *named)))

        def run(name: str, number: int) -> float:
            args, kwargs = taker.rebuild(first.later(call, number), call.spec)
            if name == ORIGINAL:
                return self._seconds(call, lambda: self.module._call_impl(*args, **kwargs))
            variant = named[name]
            self._serve_with(variant, contenders)
            for stage in ("schedule", "request_schedule"):
                if stage in variant.memos:
                    variant.memos[stage].clear()

            def served() -> Any:
                found = self._serve(args, kwargs)
                return variant.run(call if isinstance(found, str) else found[1])

            return self._seconds(call, served)

        with contextlib.ExitStack() as stack:
            stack.callback(self._serve_with, first, contenders)
            for entry in contenders:
                stack.enter_context(entry.apart())
            first.contest.add(race.rounds(list(named), run))
        kept = named[first.contest.fastest]
        kept.race, kept.contest = first.contest.races[first.contest.fastest], first.contest
        _LOG.info("%s: from now on runs %s", self.name, kept.built.target.name if kept.race.won else ORIGINAL)
        return kept

    def _weigh(self, variant: Variant) -> None:
        """Drop a variant that assumes more than another and is lost where the other is not."""
        others = [known for known in self.variants if known.signature == variant.signature and not known.lost]
        if variant.lost and others:
            self.variants = [known for known in self.variants if known is not variant]
            others[0].built.unused = tuple(dict.fromkeys((*others[0].built.unused, *variant.relations)))
            if variant.relations:
                others[0].built.notes.append(f"assuming that {_listed(variant.relations)} did not pay")

    def _checked(self, variant: Variant, call: Call, expected: Any) -> Any:
        """The compiled result; None, and a note why with the variant, when it cannot be right."""
        before = _random_state(call)
        try:
            result = variant.run(call)
        except Exception as error:
            if self.raises:
                raise
            variant.wrong = f"the compiled call raised {type(error).__name__}: {_first_line(error)}"
            result = None
        else:
            lossy = any(record.fired and record.accuracy == "lossy" for record in variant.built.passes)
            variant.wrong = disagreement(expected, result, values=not lossy) if self.check else None
        if variant.wrong:
            _set_random_state(call, before)
            variant.stale = variant.not_what_it_was(call, expected)
        if variant.wrong and self.strict:
            shelf.forget(variant.stale)
            raise VerificationError(f"the compiled {self.name} is wrong: {variant.wrong}", where="its first call")
        return None if variant.wrong else result


def _listed(relations: Sequence[Relation]) -> str:
    return ", ".join(map(str, relations))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _random_state(call: Call) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _devices(call))]


def _set_random_state(call: Call, state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, entry in zip(_devices(call), state[1:], strict=True):
        torch.cuda.set_rng_state(entry, device)


def _devices(call: Call) -> list[torch.device]:
    return list({tensor.device for tensor in call.tensors if tensor.device.type == "cuda"})


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def disagreement(expected: Any, result: Any, *, values: bool = True) -> str | None:
    """Why a compiled result cannot be right: a coarse check that catches wrong code, not rounding.

    Without `values` only of its form: what a lossy pass may do to values is not for this check to say.
    """
    ours, theirs = ([v for v in tree_flatten(value)[0] if _is_tensor(v)] for value in (result, expected))
    if len(ours) != len(theirs):
        return f"it returned {len(ours)} tensors instead of {len(theirs)}"
    for new, old in zip(ours, theirs, strict=True):
        if new.shape != old.shape or new.dtype != old.dtype:
            return f"it returned {new.dtype} {tuple(new.shape)} instead of {old.dtype} {tuple(old.shape)}"
        if not values:
            continue
        if not old.dtype.is_floating_point:
            if not torch.equal(new, old):
                return "an integer result differs"
            continue
        finite = old.isfinite()
        if not torch.equal(finite, new.isfinite()):
            return "it is finite where the module's result is not, or the other way round"
        if not bool(finite.any()):
            continue
        off = relative_error(old[finite], new[finite], least=1e-6)
        if not off <= _TOLERANCE.get(old.dtype, 1e-3):
            scale = old[finite].abs().max().item()
            return f"its result is off by {off * max(scale, 1e-6):.3g} where values reach {scale:.3g}"
    return None


def _synchronise(call: Call) -> None:
    if any(tensor.device.type == "cuda" for tensor in call.tensors):
        torch.cuda.synchronize()
