"""The ``graphopt`` command: one verb per file."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli._app import Debug, Group
from graphopt.cli.bisect import bisect
from graphopt.cli.cache import cache
from graphopt.cli.demo import demo
from graphopt.cli.diff import diff
from graphopt.cli.explain import explain
from graphopt.cli.filmstrip import filmstrip
from graphopt.cli.graph import graph
from graphopt.cli.kernels import kernels
from graphopt.cli.passes import passes
from graphopt.cli.profile import profile
from graphopt.cli.report import report
from graphopt.cli.run import run
from graphopt.cli.trace import trace
from graphopt.cli.tune import tune

app = typer.Typer(
    cls=Group,
    name="graphopt",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from graphopt import __version__

        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Give graphopt a diffusion model, and get the same images for less energy.

    Start with: graphopt demo
    """


for verb in (demo, run, report, explain, graph, profile, kernels, tune, trace, diff, bisect, filmstrip, passes, cache):
    app.command()(verb)
