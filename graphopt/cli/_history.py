"""The way of one module through the passes: what `trace` and `explain` look at."""

from __future__ import annotations

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
    from graphopt.cli._load import network_name
    from graphopt.debug.history import History

    history = History()
    session.run(observers=[history], target="eager")
    return newest(history, module, network_name(session.pipe))


def newest(history: History, module: str | None, network: str) -> Compilation:
    """How `module`, by default the `network` that denoises, was compiled last. Raises as `compilation` does."""
    name, known = module or network, {entry.name for entry in history.compilations}
    if module is None and name not in known:
        raise GraphoptError(f"the {name or 'denoiser'} was not compiled", hint=f"--module; {nearest(name, known)}")
    if name not in known:
        raise UsageError(f"no module '{name}' was compiled", where="--module", hint=nearest(name, known))
    return history.last(name)
