"""The compiled call that stands in for a module's own: guards, variants, memoised stages, and stepping aside.

Installed through ``module._compiled_call_impl``, so that the module stays the same object of the same class. Whatever
the call cannot serve exactly as the module would goes to the module itself, counted by reason.
"""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from graphopt.capture.calls import Call, CallTaker
from graphopt.capture.guards import HookWatch, ModuleGuard, call_state, outside
from graphopt.debug.statistics import PassRecord
from graphopt.errors import CaptureError, GraphoptError
from graphopt.ir.program import Program
from graphopt.ir.stages import Part, split
from graphopt.runtime.memo import Memo, key_of
from graphopt.runtime.weights import Trajectory, Weights
from graphopt.targets import Kernel

_MAX_VARIANTS = 32
_capturing = threading.local()


@dataclass
class Built:
    """A Program after its passes, cut into stages and built.

    Attributes
    ----------
    program : after all passes.
    parts : its stages in the order of computation, the step last.
    kernels : one callable per part.
    targets : the name of the target that built each part.
    captured : the Program before its passes.
    passes : what each pass did.
    notes : anything the user should know (a part that fell back to the eager target, and why).
    """

    program: Program
    parts: list[Part]
    kernels: list[Kernel]
    targets: list[str]
    captured: Program
    passes: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Race:
    """Original against compiled on the example inputs, in pairs: seconds each, and the interval of their ratio."""

    original: float
    compiled: float
    low: float
    high: float
    pairs: int

    @property
    def won(self) -> bool:
        """Whether the compiled call is faster beyond the interval."""
        return self.high < 1.0


class Variant:
    """One captured Program of a module: the calls it serves, the state of the module it needs, and its memos."""

    def __init__(self, installed: Installed, call: Call, built: Built, seconds: float) -> None:
        self.signature, self.built, self.seconds = (call.signature, call_state()), built, seconds
        self.guard = ModuleGuard(installed.module)
        self.race: Race | None = None
        self.wrong: str | None = None  # why the compiled result was rejected, when it was
        program = built.program
        self.inputs = program.inputs
        self.weights = Weights(installed.module, [i for i in program.inputs if i.role == "weight"], program.constants)
        given = [entry.role for entry in program.inputs if entry.role != "weight"]
        self._conditions = [k for k, role in enumerate(given) if role == "condition"]
        self._times = [k for k, role in enumerate(given) if role == "time"]
        self.memos = {part.name: Memo(installed.max_bytes) for part in built.parts[:-1]}
        self._plans = self._gather()
        self._local = threading.local()

    def _gather(self) -> list[tuple[Callable[[list[Any]], tuple[Any, ...]], list[int]]]:
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
    def trajectory(self) -> Trajectory:
        """This thread's."""
        if not hasattr(self._local, "trajectory"):
            self._local.trajectory = Trajectory()
        return self._local.trajectory  # type: ignore[no-any-return]

    def serves(self, signature: Any) -> bool:
        return bool(self.signature == signature) and self.guard.holds()

    def run(self, call: Call) -> Any:
        """What the module would return for this call."""
        tensors, weights = call.tensors, self.weights.read()
        values = [*weights, *tensors]
        if len(self._plans) > 1:
            epoch = self.trajectory.step(
                weights, [tensors[k] for k in self._conditions], [tensors[k] for k in self._times]
            )
            for part, kernel, (pick, keyed) in zip(self.built.parts[:-1], self.built.kernels, self._plans, strict=False):
                key, memo = key_of([values[k] for k in keyed], epoch), self.memos[part.name]
                known = memo.get(key)
                if known is None:
                    known = self._compute(kernel, pick(values))
                    memo.put(key, known)
                values.extend(known)
        with torch.no_grad():
            results = self.built.kernels[-1](*self._plans[-1][0](values))
        spec = self.built.program.out_spec
        return tuple(results) if spec is None else tree_unflatten(list(results), spec)

    @staticmethod
    def _compute(kernel: Kernel, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        # Kept values must be usable in later calls, which may not be in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return tuple(kernel(*arguments))


def _picker(positions: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(positions) == 1:
        return lambda values: (values[positions[0]],)
    return itemgetter(*positions) if positions else lambda values: ()


class Installed:
    """The compiled call of one module.

    Parameters
    ----------
    module : what is compiled; it is not changed.
    build : makes a `Built` from a captured call; given by `graphopt.compile`.
    max_bytes : bound of each memo.
    race : measure the first call of each variant against the module itself, and leave it to the module when the
        compiled call is not faster.
    strict : raise what goes wrong in compilation instead of warning and stepping aside.
    """

    def __init__(
        self, module: torch.nn.Module, name: str, build: Callable[[Call, CallTaker], Built], takers: Sequence[CallTaker],
        *, max_bytes: int, race: bool, strict: bool,
    ) -> None:  # fmt: skip
        self.module, self.name, self.max_bytes, self.race, self.strict = module, name, max_bytes, race, strict
        self._build, self._takers = build, takers
        self.variants: list[Variant] = []
        self.failures: dict[Any, tuple[ModuleGuard, str]] = {}
        self.asides: Counter[str] = Counter()
        self.calls = 0
        self._lock = threading.RLock()
        self._watch: HookWatch | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Exactly what ``module(*args, **kwargs)`` returns without graphopt, up to the accuracy of the passes."""
        if getattr(_capturing, "active", False):
            return self.module._call_impl(*args, **kwargs)
        self.calls += 1
        try:
            found = self._serve(args, kwargs)
        except CaptureError as error:
            if self.strict:
                raise
            found = str(error.what)
        if isinstance(found, str):
            self.asides[found] += 1
            return self.module._call_impl(*args, **kwargs)
        variant, call = found
        if self.race and variant.race is None:
            return self._first(variant, call, args, kwargs)
        if variant.race is not None and not variant.race.won:
            return self.module._call_impl(*args, **kwargs)
        if variant.wrong:
            return self.module._call_impl(*args, **kwargs)
        return variant.run(call)

    def _serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Variant, Call] | str:
        """The variant for this call, captured if need be; or why the module must serve it itself."""
        reason = self._hooks() or outside(self.module, [t for t in tree_flatten((args, kwargs))[0] if _is_tensor(t)])
        if reason:
            return reason
        for taker in self._takers:
            call = taker.take(args, kwargs)
            signature = (call.signature, call_state())
            for variant in self.variants:
                if variant.serves(signature):
                    return variant, call
        return self._capture(args, kwargs)

    def _hooks(self) -> str | None:
        # Submodules come and go (adapters); then no variant's guard holds, and `_capture` renews the watch.
        self._watch = self._watch or HookWatch(self.module)
        return self._watch.found()

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Variant, Call] | str:
        with self._lock:
            self._watch = HookWatch(self.module)
            reason = self._watch.found()
            if reason:
                return reason
            error: CaptureError | None = None
            for taker in self._takers:
                call = taker.take(args, kwargs)
                signature = (call.signature, call_state())
                for variant in self.variants:  # another thread may have been faster
                    if variant.serves(signature):
                        return variant, call
                failed = self.failures.get(signature)
                if failed and failed[0].holds():
                    return failed[1]
                start = time.perf_counter()
                _capturing.active = True
                try:
                    built = self._build(call, taker)
                except CaptureError as caught:
                    error = error or caught
                    continue
                finally:
                    _capturing.active = False
                variant = Variant(self, call, built, time.perf_counter() - start)
                self.variants = [*self.variants[-_MAX_VARIANTS + 1 :], variant]
                return variant, call
            assert error is not None
            if self.strict:
                raise error
            self.failures[(self._takers[0].take(args, kwargs).signature, call_state())] = (
                ModuleGuard(self.module),
                error.what,
            )
            warnings.warn(f"graphopt: {self.name} runs uncompiled: {error}", RuntimeWarning, stacklevel=4)
            return error.what

    def _first(self, variant: Variant, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first call of a variant: both ways, compared in value and in time."""
        with self._lock, torch.random.fork_rng(devices=_devices(call)):
            expected = self.module._call_impl(*args, **kwargs)
            try:
                result = variant.run(call)
            except GraphoptError:
                raise
            except Exception as error:
                if self.strict:
                    raise
                variant.wrong = f"the compiled call raised {type(error).__name__}: {error}"
            else:
                variant.wrong = _disagreement(expected, result)
            if variant.wrong:
                warnings.warn(f"graphopt: {self.name} runs uncompiled: {variant.wrong}", RuntimeWarning, stacklevel=4)
                variant.race = Race(0.0, 0.0, 1.0, 1.0, 0)
                return expected
            variant.race = _race(lambda: self.module._call_impl(*args, **kwargs), variant, call)
        return result if variant.race.won else expected


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _devices(call: Call) -> list[torch.device]:
    return list({tensor.device for tensor in call.tensors if tensor.device.type == "cuda"})


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def _disagreement(expected: Any, result: Any) -> str | None:
    """Why a compiled result cannot be right: a coarse check that catches wrong code, not rounding."""
    ours, theirs = (
        [v for v in tree_flatten(value)[0] if _is_tensor(v)] for value in (result, expected)
    )
    if len(ours) != len(theirs):
        return f"it returned {len(ours)} tensors instead of {len(theirs)}"
    for new, old in zip(ours, theirs, strict=True):
        if new.shape != old.shape or new.dtype != old.dtype:
            return f"it returned {new.dtype} {tuple(new.shape)} instead of {old.dtype} {tuple(old.shape)}"
        if not old.dtype.is_floating_point:
            if not torch.equal(new, old):
                return "an integer result differs"
            continue
        finite = old.isfinite()
        if not bool(finite.any()):
            continue
        scale = old[finite].abs().max().double().item()
        off = (new[finite].double() - old[finite].double()).abs().max().item()
        if not off <= _TOLERANCE.get(old.dtype, 1e-3) * max(scale, 1e-6):
            return f"its result is off by {off:.3g} where values reach {scale:.3g}"
    return None


def _race(original: Callable[[], Any], variant: Variant, call: Call) -> Race:
    """Pairs of runs, the schedule's table cleared each time, until the interval of the ratio is clear or 3 s are gone."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + 3.0
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 25 and not _clear(times)):
        pair = []
        for run in (original, lambda: variant.run(call)) if len(times) % 2 else (lambda: variant.run(call), original):
            for name in ("schedule", "request_schedule"):
                if name in variant.memos:
                    variant.memos[name].clear()
            _synchronise(call)
            start = time.perf_counter()
            run()
            _synchronise(call)
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]) if len(times) % 2 else (pair[1], pair[0]))
    low, high = _interval(times)
    return Race(statistics.median(a for a, _ in times), statistics.median(b for _, b in times), low, high, len(times))


def _synchronise(call: Call) -> None:
    if any(tensor.device.type == "cuda" for tensor in call.tensors):
        torch.cuda.synchronize()


def _interval(times: list[tuple[float, float]]) -> tuple[float, float]:
    """An interval for the median of compiled / original that holds in about nine of ten cases (order statistics)."""
    ratios = sorted(compiled / original for original, compiled in times)
    n = len(ratios)
    cut = max(0, int(n / 2 - 0.82 * n**0.5))
    return ratios[cut], ratios[n - 1 - cut]


def _clear(times: list[tuple[float, float]]) -> bool:
    low, high = _interval(times)
    return high < 1.0 or low > 1.0

