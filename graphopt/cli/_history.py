"""The way of one module through the passes: what `trace` and `explain` look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.errors import GraphoptError, UsageError, nearest

if TYPE_CHECKING:
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

    history = History()
    session.run(observers=[history], target="eager")
    return newest(history, module, session)


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
