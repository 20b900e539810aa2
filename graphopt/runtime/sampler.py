"""Samplers as a whole: where a run begins and ends, and the recording of the first one."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from graphopt.capture.loop import Recording, active, record
from graphopt.ir.loop import LoopProgram
from graphopt.ir.program import Role
from graphopt.runtime.installed import Installed
from graphopt.runtime.replay import Replays
from graphopt.runtime.trajectory import run


@contextlib.contextmanager
def recorded_run(installed: Sequence[Installed], name: str) -> Iterator[Recording | None]:
    """One run of a sampler; the first one with a call of a module in it is recorded for these modules."""
    if active() or any(entry.loop is not None for entry in installed):
        with run():
            yield None
        return
    with run(), record({entry.module: entry.name for entry in installed}) as recording:
        yield recording
    adopt(recording.program(name), installed)


def adopt(loop: LoopProgram, installed: Sequence[Installed]) -> None:
    """Let modules know of a recorded trajectory that calls them; one that cannot be made sense of is left out."""
    called = {call.module for call in loop.calls}
    try:
        for entry in installed:
            if entry.name in called:
                entry.branches.times(loop)  # now, and not in the middle of the next run
                entry.loop = loop
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        warnings.warn(f"graphopt: the loop of {loop.name} could not be read: {what}", RuntimeWarning, stacklevel=4)


class ProgressWatch:
    """Stands in for a diffusers pipeline's ``progress_bar``: what happens while the bar is shown is one run.

    ``with self.progress_bar(total=…)`` surrounds the loop in nearly all of diffusers' pipelines. The bar itself is the
    pipeline's own.

    Parameters
    ----------
    pipe : the pipeline; `inner` its own method, or what a user had put in its place.
    """

    def __init__(self, pipe: Any, inner: Callable[..., Any], installed: Sequence[Installed]) -> None:
        self.pipe, self.inner, self.installed = pipe, inner, list(installed)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bar = self.inner(*args, **kwargs)
        if args or kwargs.get("iterable") is not None or not self.installed:
            return bar  # iterated over: nobody says when the run is left
        return _Bar(bar, recorded_run(self.installed, type(self.pipe).__name__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the pipeline is not compiled: its bar is just its bar, or a copy of what a user had put there."""
        return copy.deepcopy(self.inner, memo)

    def __reduce__(self) -> Any:
        return _itself, (self.inner,)


def _itself(bar: Any) -> Any:
    return bar


class _Bar:
    """A progress bar that begins and ends a run with it."""

    def __init__(self, bar: Any, scope: contextlib.AbstractContextManager[Any]) -> None:
        self._bar, self._scope = bar, scope

    def __enter__(self) -> Any:
        entered = self._bar.__enter__()
        self._scope.__enter__()
        return entered

    def __exit__(self, *error: Any) -> Any:
        self._scope.__exit__(*error)
        return self._bar.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


class Sampler:
    """A sampling function whose modules are compiled; called like the function itself.

    Attributes
    ----------
    function : as it was given.
    installed : the compiled modules it was seen to call.
    loop : the trajectory that was recorded.
    replays : what is run instead of the function, where it is pure.
    """

    def __init__(self, function: Callable[..., Any], loop: LoopProgram, replays: Replays | None = None) -> None:
        self.function, self.loop, self.replays = function, loop, replays
        self.installed: list[Installed] = []
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with run():
            return (self.replays or self.function)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<compiled {self.function!r}>"


def roles_of(loop: LoopProgram, module: str) -> Mapping[str, Role]:
    """Roles of a module's arguments by where their values come from.

    What the loop computes from results of the model or from chance is ``state``; of the rest, what takes a new value in
    (nearly) every step is ``time``, and what is used again, or computed again from the same, is a ``condition``.
    """
    calls = [call for call in loop.step_calls if call.module == module]
    found: dict[str, Role] = {}
    for path, node in calls[len(calls) // 2].arguments.items() if calls else ():
        values = {loop.values[call.arguments[path]] for call in calls if path in call.arguments}
        if node in loop.moving:
            found[path] = "state"
        else:
            found[path] = "time" if len(values) > max(1, len(calls) // 3) else "condition"
    return found


def modules_of(recording: Recording) -> list[tuple[str, torch.nn.Module]]:
    """The modules with weights that a recorded sampler called, in order of their first call."""
    return [(name, module) for name, module in recording.modules.items() if any(True for _ in module.parameters())]
