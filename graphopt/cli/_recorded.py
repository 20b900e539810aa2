"""What the stages of a compiled module are given in a run: for the verbs that time them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli._app import phase
from graphopt.cli._history import check_module, module_named
from graphopt.errors import GraphoptError, UsageError

if TYPE_CHECKING:
    from graphopt.cli._request import Session
    from graphopt.debug.profile import Recorded
    from graphopt.runtime.installed import Installed
    from graphopt.targets.tvm.running import Code


def recorded(session: Session, module: str | None) -> tuple[str, list[str], list[Recorded]]:
    """A module's name, those of the others that ran, and the stages of the variant that ran most in a second run."""
    from contextlib import ExitStack

    from graphopt.compile import compiled_calls
    from graphopt.debug.profile import recording

    calls = compiled_calls(session.pipe)
    found: dict[str, list[list[Recorded]]] = {entry.name: [] for entry in calls}
    with ExitStack() as stack, phase("sampling again, recorded"):
        for entry in calls:
            for variant in entry.variants:
                variant.forget()  # so that stages that are kept run as well
                built = variant.built
                found[entry.name].append(stack.enter_context(recording(built.parts, built.kernels, built.targets)))
        session.sample()
    ran = {name: max(some, key=_steps) for name, some in found.items() if any(map(_steps, some))}
    name = module_named(module, session, found)
    if name not in ran:
        raise _not_compiled(next(entry for entry in calls if entry.name == name))
    return name, [other for other in ran if other != name], ran[name]


def generated(session: Session, module: str | None) -> tuple[str, list[str], Recorded, Code]:
    """As `recorded`, of a pipeline compiled now for the target tvm: the step alone, and its code.

    Raises
    ------
    UsageError : the step runs on another target.
    """
    from graphopt.targets.tvm.running import Code

    check_module(session, module)
    session.compile()
    with phase("compiling and sampling"):
        session.sample()
    name, others, stages = recorded(session, module)
    step = stages[-1]
    if not isinstance(step.kernel, Code):
        raise UsageError(f"the step of {name} runs on {step.target}", where="--module",
                         hint="graphopt report PIPELINE --target tvm says why")  # fmt: skip
    return name, others, step, step.kernel


def _steps(stages: list[Recorded]) -> int:
    return stages[-1].calls if stages and stages[-1].part.name == "step" else 0


def _not_compiled(entry: Installed) -> GraphoptError:
    reasons = dict.fromkeys((*entry.asides, *(failure[1] for failure in entry.failures.values())))
    what = f"{entry.name} made no compiled call in the second run: {'; '.join(reasons) or 'it was not called'}"
    return GraphoptError(what, where="--module", hint="graphopt report shows which modules run compiled")
