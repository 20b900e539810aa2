"""The way of one module through the passes: what `trace` and `explain` look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import phase
from graphopt.errors import GraphoptError, UsageError, nearest

if TYPE_CHECKING:
    import torch

    from graphopt.cli._request import Session
    from graphopt.debug.history import Compilation, History

ModuleName = Annotated[
    str | None, typer.Option("--module", help="Which module; else the network that is called once or more per step.")
]


def compilation(session: Session, module: str | None) -> Compilation:
    """Compile the pipeline and sample once; how `module` (by default the denoiser) was compiled in the end.

    The eager target builds: passes do not depend on what is built, and nothing is measured, on which the relations that
    are made use of would depend.

    Raises
    ------
    UsageError : no module of that name was compiled.
    GraphoptError : the module could not be captured.
    """
    from graphopt.debug.history import History

    check_module(session, module)
    history = History()
    session.run(observers=[history], target="eager")
    return newest(history, module, session)


def check_module(session: Session, module: str | None) -> None:
    """Raise UsageError for a module that the pipeline does not have, before anything is compiled."""
    from graphopt.compile import modules

    known = [name for name, _ in modules(session.pipe)]
    if module is not None and module not in known:
        raise UsageError(f"there is no compiled module '{module}'", where="--module", hint=nearest(module, known))


def newest(history: History, module: str | None, session: Session) -> Compilation:
    """How `module`, by default the denoiser, was compiled last. Raises as `compilation` does."""
    return history.last(module_named(module, session, {entry.name for entry in history.compilations}))


def module_named(module: str | None, session: Session, known: Iterable[str]) -> str:
    """The module to look at: the user's choice, else the network that is called once or more per step.

    Raises
    ------
    UsageError : the user's choice is none of `known`.
    GraphoptError : the network is not.
    """
    from graphopt.cli._load import network_name

    known = list(known)
    name = module or network_name(session.pipe)
    if module is None and name not in known:
        raise GraphoptError(f"the {name or 'denoiser'} was not compiled", hint=f"--module; {nearest(name, known)}")
    if name not in known:
        raise UsageError(f"no module '{name}' was compiled", where="--module", hint=nearest(name, known))
    return name


def errors_of(session: Session, compilation: Compilation) -> dict[str, float]:
    """Sample once more, and how far the values of the compiled module are off in the first call (`measured.errors`).

    Raises GraphoptError where none of the compiled calls that are there is that of `compilation`, or it does not serve.
    """
    from graphopt.compile import compiled_calls
    from graphopt.debug.measured import errors

    variants = [v for entry in compiled_calls(session.pipe) for v in entry.variants if entry.name == compilation.name]
    variant = next((entry for entry in variants if entry.built.program is compilation.result), None)
    first: list[Any] = []
    if variant is not None:
        boundary = variant.built.boundary
        variant.built.boundary = _Taking(boundary, first)  # type: ignore[assignment]
        try:
            with phase("sampling once more, to measure errors"):
                session.sample()
        finally:
            variant.built.boundary = boundary
    if variant is None or not first:
        raise GraphoptError(f"{compilation.name} did not run as it was compiled last", where="--measure-error",
                            hint=f"graphopt report {session.request.pipeline} says how calls were served")  # fmt: skip
    with phase("running both graphs node by node"):
        return errors(compilation, [*variant.weights.read(variant.guard.generation), *first])


class _Taking:
    """A boundary that keeps a copy of what the first call gives to the Program."""

    def __init__(self, inner: Any, first: list[Any]) -> None:
        self.inner, self.first = inner, first

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        return bool(self.inner.fits(tensors))

    def take(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        taken: list[torch.Tensor] = self.inner.take(tensors)
        if not self.first:
            self.first.extend(tensor.clone() for tensor in taken)  # the sampler may write into it later
        return taken
