"""``graphopt.compile``: capture → passes → stages → build → install, on one screen."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch.utils._pytree import tree_leaves

from graphopt import pipelines, plugins
from graphopt.capture.calls import Call, CallTaker
from graphopt.capture.export import capture
from graphopt.capture.fingerprint import Executed
from graphopt.capture.loop import record
from graphopt.capture.roles import NUMBERS_AS_TENSORS, check_roles, explicit, observe, roles_by_name
from graphopt.debug.statistics import Statistics
from graphopt.errors import TargetError, UsageError, nearest
from graphopt.ir.driver import Observers, check_order, run_pipeline
from graphopt.ir.program import Program, Role
from graphopt.ir.relations import Relation, specialise
from graphopt.ir.rewrite import Observer, Pass, check_is_pass
from graphopt.ir.stages import Part, split
from graphopt.ir.verify import Examples
from graphopt.runtime import race, shelf
from graphopt.runtime.evict import Eviction, bring_back
from graphopt.runtime.installed import Built, Installed
from graphopt.runtime.kept import Captures
from graphopt.runtime.race import Choice
from graphopt.runtime.replay import Replays
from graphopt.runtime.report import Report, report_of
from graphopt.runtime.sampler import ProgressWatch, Sampler, adopt, modules_of, recorded_run, roles_of
from graphopt.targets import TARGETS, Kernel, Target

T = TypeVar("T")
TargetLike: TypeAlias = str | Target | Sequence[str | Target]
Example: TypeAlias = tuple[str, torch.nn.Module, tuple[Any, ...], dict[str, Any]]  # a module and arguments for it
# Components of a diffusers pipeline that are called once or more per step, in the order of the report.
_DENOISERS = ("unet", "unet_2", "transformer", "transformer_2", "transformer_3", "controlnet", "prior", "decoder")
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")


def compile(
    x: T, *, inputs: Any = None, roles: Mapping[str, str] | None = None, target: TargetLike = "auto",
    pipeline: Sequence[Pass] | str | None = None, strict: bool = False, max_bytes: int = 1 << 30,
    observers: Sequence[Observer] = (), evict: Any = None, pure: bool = False,
) -> T:  # fmt: skip
    """Compile a diffusion model in place; use it exactly as before.

    Parameters
    ----------
    x : a diffusers pipeline (its denoisers, ControlNets, VAE decoder and text encoders are compiled), an
        ``nn.Module``, a ``torch.export.ExportedProgram`` (its module is compiled and returned), or a sampling function
        of your own: any callable, whose modules are found by recording one run of it with `inputs`.
    inputs : example calls, to compile now instead of at the first call. For a pipeline: a dict of call arguments. For
        a sampling function, which needs them, or a module: a tuple or dict of arguments. For a module also recorded
        requests (a list of at least two lists of at least three such calls each) from which the roles of an unknown
        module's arguments are observed; in a recorded run they follow from where values come from.
    roles : role by argument name (``condition``, ``time`` or ``state``), over what is known or observed.
    target : ``eager``, ``inductor``, ``tvm``, or a `Target`; of several, the first call finds the fastest by
        measurement, and leaves a module alone that none of them makes faster. ``auto`` are ``eager`` and, where it is
        installed and a call takes 5 ms or more, ``tvm``.
    pipeline : passes in order, or the name of a pipeline, for all targets; what suits each target when left out.
    strict : raise what goes wrong (capture, passes, builds) instead of warning and running the module itself.
    max_bytes : most bytes that kept results of one stage of one module may take.
    observers : see every pass, rewrite and refusal.
    evict : ``"file"`` moves weights that no step reads from memory to a file (a `pathlib.Path`: in this folder), from
        which they are read again when needed; by default all stay. They can be read and written as before.
    pure : for a sampling function: its results depend on its arguments, on the weights of the modules it calls and on
        random generators only, and it does nothing else. What it does around its modules is then recorded and run again
        without it; see `graphopt.runtime.replay`. Where a function that reads anything else that changes (a global
        number, an attribute that is assigned anew) is called pure, results are wrong.

    Returns
    -------
    The same object (for an exported program its module, for a function one that runs it). Undo with
    `graphopt.restore`; see what was done with `graphopt.report`. When compiling raises, everything is as it was before.

    Raises
    ------
    UsageError : `x` is nothing graphopt can compile, or an argument is not understood.
    RoleError : a role or an argument named in `roles` does not exist.
    """
    return _compile(
        x, inputs=inputs, roles=roles, target=target, pipeline=pipeline, strict=strict, max_bytes=max_bytes,
        observers=observers, evict=evict, pure=pure,
    )  # fmt: skip


def try_out(x: T, passes: Sequence[Pass], observers: Sequence[Observer], captures: Captures) -> T:
    """Compile as `compile` does, for the eager target, in a search for the fault among passes or rewrites.

    The first call is not compared with the module's own result: wrong code stays in use, and a failure of it is raised.
    What `captures` has kept from earlier compilations of the same object is not captured again; new ones are put there.
    """
    return _compile(x, target="eager", pipeline=passes, observers=observers, check=False, captures=captures)


def _compile(
    x: T, *, inputs: Any = None, roles: Mapping[str, str] | None = None, target: TargetLike = "auto",
    pipeline: Sequence[Pass] | str | None = None, strict: bool = False, max_bytes: int = 1 << 30,
    observers: Sequence[Observer] = (), evict: Any = None, pure: bool = False, check: bool = True,
    captures: Captures | None = None,
) -> T:  # fmt: skip
    if isinstance(x, torch.export.ExportedProgram):
        x, inputs = _exported(x, inputs)  # type: ignore[assignment]
    choice, passes = _choice(target), _pipeline(pipeline)
    for observer in observers:
        if not isinstance(observer, Observer):
            raise UsageError(f"{observer!r} is not a graphopt.Observer", where="observers")
    if max_bytes < 0:
        raise UsageError(f"max_bytes is {max_bytes}", hint="bytes that kept results may take: 0 or more")
    eviction = Eviction.of(evict)
    sampler, examples = _recorded(x, inputs, pure, strict)
    found = [(name, module) for name, module, _, _ in examples] if sampler else list(modules(x))
    _check_inputs(x, inputs)
    takers = [(CallTaker(m.forward, NUMBERS_AS_TENSORS), CallTaker(m.forward)) for _, m in found]
    check_roles(roles or {}, [with_numbers.parameters for with_numbers, _ in takers])
    installed = []
    for (name, module), pair in zip(found, takers, strict=True):
        known = roles_of(sampler.loop, name) if sampler else None if _is_pipeline(x) else _observed(inputs, pair[0])
        builder = _Builder(module, name, known, roles or {}, passes, choice, strict, observers, captures)
        if eviction is not None:  # code for a new prompt would keep its weights in memory, packed
            builder.often -= {"request_schedule"}
        options: dict[str, Any] = {"max_bytes": max_bytes, "strict": strict, "check": check}
        installed.append(Installed(module, name, builder, pair, eviction=eviction, **options))
    bar = vars(x).get("progress_bar") if _is_pipeline(x) else None
    try:
        for entry in installed:
            entry.module._compiled_call_impl = entry
        if sampler:
            sampler.installed = installed
            if sampler.replays:
                sampler.replays.names = {entry.module: entry.name for entry in installed}
            adopt(sampler.loop, installed)
        if _is_pipeline(x):
            _watch(x, installed)
        _warm_up(x, inputs, installed, examples)
    except BaseException:
        for entry in installed:
            _put_back(entry.module, entry.before)
            bring_back(entry.module)
        if _is_pipeline(x):
            _put_bar_back(x, bar)
        raise
    for entry in installed:  # an earlier compilation has had its day
        if isinstance(entry.before, Installed):
            entry.before = entry.before.before
            if eviction is None:
                bring_back(entry.module)
    return sampler or x  # type: ignore[return-value]


def _recorded(x: Any, inputs: Any, pure: bool, strict: bool) -> tuple[Sampler | None, list[Example]]:
    """One recorded run of a sampling function, and each module that it called with its first arguments."""
    if isinstance(x, torch.nn.Module | type) or _is_pipeline(x) or not callable(x):
        if pure:
            raise UsageError(f"a {type(x).__name__} is no sampling function", where="pure", hint="leave pure out")
        return None, []
    function = x.function if isinstance(x, Sampler) else x
    what = getattr(function, "__name__", type(function).__name__)
    if inputs is None:
        hint = "graphopt.compile(sample, inputs=(...)): arguments for one run, which is recorded"
        raise UsageError(f"the sampling function {what} needs example arguments", where="inputs", hint=hint)
    args, kwargs = _arguments(inputs)
    replays = Replays(function, pipelines.loop, strict=strict) if pure else None
    with _random_numbers_kept(inputs):
        if replays:  # which serve calls under the same gradient mode as the first
            recording = replays.first(args, kwargs)
        else:
            with torch.no_grad(), record() as recording:
                function(*args, **kwargs)
    sampler = Sampler(function, recording.program(what), replays)
    found = [(name, module, *recording.examples[name]) for name, module in modules_of(recording)]
    if not found:
        hint = "it must call an nn.Module with weights in the thread that calls it"
        raise UsageError(f"{what} called no module that could be compiled", where="one run with inputs", hint=hint)
    return sampler, found


def _watch(pipe: Any, installed: Sequence[Installed]) -> None:
    """See the runs of a pipeline from now on, by its progress bar."""
    bar = pipe.progress_bar
    pipe.progress_bar = ProgressWatch(pipe, bar.inner if isinstance(bar, ProgressWatch) else bar, installed)


def _put_bar_back(pipe: Any, bar: Any) -> None:
    if bar is None:
        pipe.__dict__.pop("progress_bar", None)
    else:
        pipe.progress_bar = bar


def _put_back(module: torch.nn.Module, call: Any) -> None:
    if call is None:
        module.__dict__.pop("_compiled_call_impl", None)
    else:
        module._compiled_call_impl = call


# Stages that a new prompt runs at every step.
_EVERY_STEP = frozenset({"request_schedule", "common", "step"})


class _Builder:
    """From one call to a `Built`; asked when no variant serves, or when more was learnt of the calls."""

    def __init__(
        self, module: torch.nn.Module, name: str, observed: Mapping[str, Role] | None, roles: Mapping[str, str],
        passes: Sequence[Pass] | None, choice: Choice, strict: bool, observers: Sequence[Observer],
        captures: Captures | None,
    ) -> None:  # fmt: skip
        self.module, self.name, self.observed, self.roles = module, name, observed, roles
        self.passes, self.choice, self.strict, self.observers = passes, choice, strict, observers
        self.captures = captures
        self.often = _EVERY_STEP  # stages that the target builds

    def _order(self, target: Target) -> Sequence[Pass]:
        """The passes that the user gave, else those that suit a target."""
        return pipelines.PIPELINES[target.pipeline] if self.passes is None else self.passes

    @property
    def exploits(self) -> tuple[type, ...]:
        passes = itertools.chain(*map(self._order, self.choice.targets))
        return tuple({kind for pass_ in passes for kind in pass_.exploits})

    def capture(self, call: Call, taker: CallTaker, executed: Executed | None) -> Program:
        """The Program of a call, with its roles."""
        paths = [p for p, leaf in zip(taker.paths(call), call.leaves, strict=True) if isinstance(leaf, torch.Tensor)]
        # Of the roles named by the user those of arguments that this call passes: optional ones may be left out.
        passed = {path.partition(".")[0] for path in paths}
        mine = {name: role for name, role in self.roles.items() if name.partition(".")[0] in passed}
        roles = explicit(mine, paths, {**roles_by_name(paths), **(self.observed or {})})
        anew = functools.partial(capture, self.module, taker, call, roles, self.name)
        if self.captures is None:
            return shelf.captured(self.module, executed, call, roles, self.name, anew)
        return self.captures.of(self.module, call, roles, self.name, anew)

    def build(self, captured: Program, relations: Sequence[Relation], target: Target) -> Built:
        """Passes, stages and kernels; relations that no pass gains anything from are not assumed."""
        passes = self._order(target)
        start = time.perf_counter()
        observer, run = Observers(self.observers), functools.partial(self._passed, captured, relations, passes)
        program, boundary, records = run() if self.observers else shelf.passed(captured, relations, passes, run)
        used = {k for pass_, r in zip(passes, records, strict=True) if r.fired for k in pass_.exploits}
        unused = tuple(entry for entry in relations if type(entry) not in used)
        if unused:
            built = self.build(captured, [entry for entry in relations if entry not in unused], target)
            built.unused += unused
            built.seconds["passes"] += time.perf_counter() - start - sum(built.seconds.values())
            return built
        parts = split(program)
        observer.program_ends(program, parts)
        built = Built(program, parts, [], [], target, captured, boundary, passes=records)
        built.seconds["passes"] = time.perf_counter() - start
        for part in parts:
            kernel, name = self._build(part, target, built.notes, observer)
            built.kernels.append(kernel)
            built.targets.append(name)
        built.seconds["code"] = time.perf_counter() - start - built.seconds["passes"]
        return built

    def _passed(self, captured: Program, relations: Sequence[Relation], passes: Sequence[Pass]) -> shelf.Passed:
        """The Program after passes, how its inputs come out of the arguments, and what each pass did."""
        specialised, boundary = specialise(captured, relations)
        statistics = Statistics()
        observer = Observers((statistics, *self.observers))
        observer.program_begins(specialised)
        program = run_pipeline(passes, specialised, observer, strict=self.strict)
        return program, boundary, statistics.records

    def _build(self, part: Part, wanted: Target, notes: list[str], observer: Observer) -> tuple[Kernel, str]:
        """The wanted target builds what runs as often as the step; for the rest, generating code is not worth it."""
        eager = TARGETS["eager"]
        examples = Examples([node.meta["val"] for node in part.graph.find_nodes(op="placeholder")])
        for target in (wanted, eager) if part.name in self.often else (eager,):
            observer.build_begins(part, target.name)
            try:
                kernel = target.build(part, examples)
            except TargetError as error:
                observer.build_fails(part, target.name, error)
                if self.strict or target is eager:
                    raise
                notes.append(str(error))
            else:
                observer.build_ends(part, target.name)
                break
        return kernel, target.name


def restore(x: Any) -> None:
    """Undo `compile`: the module or every component of the pipeline runs as if graphopt had never seen it."""
    _check_compiled(x)
    for _, module in modules(x):
        if isinstance(module._compiled_call_impl, Installed):
            _put_back(module, module._compiled_call_impl.before)
            bring_back(module)
    if isinstance(x, Sampler):
        x.replays = None
    if isinstance(watch := getattr(x, "__dict__", {}).get("progress_bar"), ProgressWatch):
        own = getattr(watch.inner, "__func__", None) is type(x).progress_bar
        _put_bar_back(x, None if own else watch.inner)


def report(x: Any) -> Report:
    """What graphopt did to a compiled pipeline or module, up to now.

    Raises UsageError when nothing in `x` is compiled.
    """
    return report_of(compiled_calls(x), x.replays if isinstance(x, Sampler) else None)


def compiled_calls(x: Any) -> list[Installed]:
    """The compiled calls of a compiled pipeline or module, in the order of the report.

    Raises UsageError when nothing in `x` is compiled.
    """
    _check_compiled(x)
    found = [module._compiled_call_impl for _, module in modules(x)]
    if not any(isinstance(entry, Installed) for entry in found):
        raise UsageError(f"this {type(x).__name__} is not compiled", hint="call graphopt.compile(x) first")
    return [entry for entry in found if isinstance(entry, Installed)]


def _check_compiled(x: Any) -> None:
    """Raise UsageError for a sampling function itself, where what `compile` returned for it is asked for."""
    if callable(x) and not isinstance(x, torch.nn.Module | type | Sampler) and not _is_pipeline(x):
        hint = "fast = graphopt.compile(sample, inputs=(...)), then graphopt.report(fast)"
        raise UsageError(f"this {type(x).__name__} is not what graphopt.compile returned", hint=hint)


def _is_pipeline(x: Any) -> bool:
    # By name: to look the class up would import the part of diffusers that a module alone does without.
    known = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(x).__mro__}
    return ("diffusers", "DiffusionPipeline") in known


def modules(x: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules of `x` that are compiled, with their names."""
    if isinstance(x, torch.nn.Module):
        yield type(x).__name__, x
        return
    if isinstance(x, Sampler):
        yield from ((entry.name, entry.module) for entry in x.installed)
        return
    if not _is_pipeline(x):
        raise UsageError(
            f"cannot compile a {type(x).__name__}",
            hint="give a diffusers pipeline, an nn.Module, a torch.export.ExportedProgram or a sampling function",
        )
    components = x.components
    for name in (*_DENOISERS, *_ENCODERS):
        if isinstance(components.get(name), torch.nn.Module):
            yield name, components[name]
    decoder = getattr(components.get("vae"), "decoder", None)
    if isinstance(decoder, torch.nn.Module):
        yield "vae.decoder", decoder


def _exported(program: torch.export.ExportedProgram, inputs: Any) -> tuple[torch.nn.Module, Any]:
    """The module of an exported program, and its own example inputs unless others are given.

    Its hooks and guards go: they would keep graphopt aside. What they check stays: sizes that the program was exported
    for are no other sizes' program.
    """
    inner = program.module(check_guards=False)
    for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
        hooks.clear()
    signature = inspect.signature(inner.forward)
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves(tuple(signature.bind(*args, **kwargs).arguments.values()))
        for node, leaf in zip(nodes, leaves, strict=False):
            sizes = getattr(node.meta.get("val"), "shape", ())
            if isinstance(leaf, torch.Tensor) and (
                leaf.ndim != len(sizes)
                or any(isinstance(n, int) and n != given for n, given in zip(sizes, leaf.shape, strict=True))
            ):
                raise ValueError(
                    f"'{node.name}' has shape {tuple(leaf.shape)}; the program was exported for {tuple(sizes)}"
                )
        return self.program(*args, **kwargs)

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    module: torch.nn.Module = type("Exported", (torch.nn.Module,), {"forward": forward})()
    module.program = inner
    module.training = inner.training
    if inputs is None and program.example_inputs is not None:
        args, kwargs = program.example_inputs
        inputs = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    return module, inputs


def _choice(target: TargetLike) -> Choice:
    """What is to build steps."""
    if isinstance(target, Target):
        return Choice((target,))
    if target == "auto":
        return Choice((TARGETS["eager"], TARGETS["tvm"]), measured=True, shortest=race.SHORTEST)
    if isinstance(target, str):
        return Choice((_target(target),))
    given: Any = target
    if not isinstance(given, Sequence) or not given:
        hint = "target='auto', or the fastest of several: target=('tvm', 'eager')"
        raise UsageError(f"{target!r} is no target", where="target", hint=hint)
    found = tuple(entry if isinstance(entry, Target) else _target(entry) for entry in target)
    for name, count in Counter(entry.name for entry in found).items():
        if count > 1:
            raise UsageError(f"'{name}' is there {count} times", where="target", hint="name each target once")
    return Choice(found, measured=True)


def _target(name: Any) -> Target:
    """The target of a name. Raises TargetError where it cannot run here."""
    if not isinstance(name, str):
        raise UsageError(f"{name!r} is neither a name nor a graphopt.Target", where="target")
    if name == "auto":
        raise UsageError("'auto' is none of several targets", where="target", hint="target='auto' alone")
    known = TARGETS if name in TARGETS else plugins.targets()
    if name not in known:
        raise UsageError(f"unknown target '{name}'", hint=nearest(name, (*known, "auto")))
    reason = known[name].unavailable(torch.device("cpu"))
    if reason:
        raise TargetError(f"target '{name}' cannot run here: {reason}", hint="use target='auto' or 'eager'")
    return known[name]


def _pipeline(pipeline: Sequence[Pass] | str | None) -> tuple[Pass, ...] | None:
    """The passes that the user gives; None where they are to suit the target."""
    if pipeline is None:
        return None
    if isinstance(pipeline, str):
        if pipeline not in pipelines.PIPELINES:
            raise UsageError(f"unknown pipeline '{pipeline}'", hint=nearest(pipeline, pipelines.PIPELINES))
        return pipelines.PIPELINES[pipeline]
    chosen: Any = pipeline
    given: list[Any] = list(chosen) if isinstance(chosen, Iterable) else [chosen]
    for entry in given:
        check_is_pass(entry, "pipeline")
    pipeline = tuple(given)
    check_order(pipeline)
    return pipeline


def _observed(inputs: Any, taker: CallTaker) -> dict[str, Role] | None:
    """Roles observed from recorded requests, when `inputs` is such a recording."""
    if not _is_recording(inputs):
        return None
    return observe([[taker.take(*_arguments(call)) for call in calls] for calls in inputs], taker)


def _is_recording(inputs: Any) -> bool:
    return isinstance(inputs, list) and bool(inputs) and all(isinstance(calls, list) for calls in inputs)


def _arguments(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(call, dict):
        return (), call
    if isinstance(call, tuple):
        return call, {}
    raise UsageError(f"an example call must be a tuple or a dict, not {type(call).__name__}", where="inputs")


def _check_inputs(x: Any, inputs: Any) -> None:
    if inputs is None or (not isinstance(x, torch.nn.Module) and not _is_pipeline(x)):
        return
    if _is_pipeline(x):
        if not isinstance(inputs, Mapping):
            raise UsageError("inputs for a pipeline must be a dict of its call arguments", where="inputs")
        return
    calls = [call for request in inputs for call in request] if _is_recording(inputs) else [inputs]
    for call in calls:
        args, kwargs = _arguments(call)
        try:
            inspect.signature(x.forward).bind(*args, **kwargs)
        except TypeError as error:
            what = f"the example call does not fit {type(x).__name__}.forward: {error}"
            raise UsageError(what, where="inputs") from None


@contextlib.contextmanager
def _random_numbers_kept(inputs: Any) -> Iterator[None]:
    """Random numbers go on as if what runs in here had not run, those of generators among `inputs` too."""
    generators = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _warm_up(x: Any, inputs: Any, installed: Sequence[Installed], examples: Sequence[Example]) -> None:
    """Compile now, by running the example call."""
    if inputs is None:
        return
    with _random_numbers_kept(inputs), torch.no_grad():
        if examples:
            for _, module, args, kwargs in examples:
                module(*args, **kwargs)
        elif _is_pipeline(x):
            with recorded_run(installed, type(x).__name__):
                x(**inputs)
        else:
            args, kwargs = _arguments(inputs[0][0] if _is_recording(inputs) else inputs)
            x(*args, **kwargs)
