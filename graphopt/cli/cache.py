"""``graphopt cache``: the folder in which generated code is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli._app import AsJson, Debug, out
from graphopt.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from graphopt.targets.tvm.artifacts import Artifact

Action = Annotated[str | None, typer.Argument(metavar="[clear]", help="Remove all that is kept.")]


def cache(action: Action = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show where code that the TVM target generated is kept from one process to the next, and how much; or clear it.

    GRAPHOPT_CACHE_DIR names another folder, GRAPHOPT_CACHE_BYTES the most that it may hold; with GRAPHOPT_CACHE=0 there
    is none.

    For example:

        graphopt cache

        graphopt cache clear
    """
    if action not in (None, "clear"):
        raise UsageError(f"there is nothing to do named '{action}'", where="graphopt cache",
                         hint=nearest(action, ("clear",)))  # fmt: skip
    from graphopt.targets.tvm import artifacts

    folder = artifacts.folder()
    found = artifacts.clear() if action == "clear" else artifacts.kept()
    if as_json:
        made = {
            "folder": None if folder is None else str(folder),
            "cleared": action == "clear",
            "entries": len(found),
            "bytes": sum(artifact.bytes for artifact in found),
        }
        typer.echo(json.dumps(made, indent=2))
    else:
        _show(folder, found, action == "clear")


def _show(folder: Path | None, found: Sequence[Artifact], cleared: bool) -> None:
    from rich.text import Text

    from graphopt.debug.figures import scaled

    if folder is None:
        out().print("Generated code is not kept: GRAPHOPT_CACHE=0, or there is no folder for it.")
        return
    stages = f"{len(found)} stage" + ("" if len(found) == 1 else "s")
    size = scaled(sum(artifact.bytes for artifact in found), "B")
    what = f"removed code of {stages}, {size}" if cleared else f"code of {stages}, {size}"
    out().print(Text.assemble((str(folder), "bold"), f": {what}"), soft_wrap=True)
