"""``graphopt cache``: the folder in which Programs and generated code are kept."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli._app import AsJson, Debug, out
from graphopt.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from graphopt.artifacts import Artifact

Action = Annotated[str | None, typer.Argument(metavar="[clear]", help="Remove all that is kept.")]


def cache(action: Action = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show where captured graphs and generated code are kept from one process to the next, and how much; or clear it.

    GRAPHOPT_CACHE_DIR names another folder, GRAPHOPT_CACHE_BYTES the most that it may hold; with GRAPHOPT_CACHE=0 there
    is none.

    For example:

        graphopt cache

        graphopt cache clear
    """
    if action not in (None, "clear"):
        raise UsageError(f"'{action}' is nothing that it can do", where="graphopt cache",
                         hint=nearest(action, ("clear",)))  # fmt: skip
    from graphopt import artifacts

    folder = artifacts.folder()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", where="graphopt cache",
                         hint="GRAPHOPT_CACHE_DIR names another")  # fmt: skip
    if artifacts.most_bytes() is None:
        given = os.environ["GRAPHOPT_CACHE_BYTES"]
        raise UsageError(f"'{given}' is not a number of bytes", where="GRAPHOPT_CACHE_BYTES",
                         hint="1073741824, which it is by default, for a GiB")  # fmt: skip
    try:
        found = artifacts.clear() if action == "clear" else artifacts.kept()
    except OSError as error:
        raise UsageError(f"not all of it could be removed: {error}", where="graphopt cache clear",
                         hint="what could be is gone; GRAPHOPT_CACHE_DIR names another folder") from None  # fmt: skip
    if as_json:
        made = {
            "folder": None if folder is None else str(folder),
            "cleared": action == "clear",
            "programs": sum(artifact.kind == artifacts.PROGRAM for artifact in found),
            "codes": sum(artifact.kind == artifacts.CODE for artifact in found),
            "bytes": sum(artifact.bytes for artifact in found),
        }
        typer.echo(json.dumps(made, indent=2))
    else:
        _show(folder, found, action == "clear")


def _show(folder: Path | None, found: Sequence[Artifact], cleared: bool) -> None:
    from rich.text import Text

    from graphopt.artifacts import PROGRAM, TUNED
    from graphopt.debug.figures import counted, scaled

    if folder is None:
        out().print("Nothing is kept: GRAPHOPT_CACHE=0, or there is no folder for it.")
        return
    programs = sum(artifact.kind == PROGRAM for artifact in found)
    size = scaled(sum(artifact.bytes for artifact in found), "B")
    what = f"{counted(programs, 'graph')}, code of {counted(len(found) - programs, 'stage')}, {size}"
    if not folder.exists():
        what = "nothing is kept yet"
    what = f"removed {what}" if cleared else what
    out().print(Text.assemble((str(folder), "bold"), f": {what}"), soft_wrap=True)
    if (tuned := folder / TUNED).exists():
        size = scaled(tuned.stat().st_size, "B")
        out().print(f"What graphopt tune found, {size}, stays: graphopt tune --again measures anew.", soft_wrap=True)
