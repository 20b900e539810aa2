"""The command-line application and how it fails: one clear message on stderr, a traceback only with ``--debug``."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from graphopt.errors import GraphoptError, UsageError, nearest

FAILURE, USAGE, INTERRUPTED = 1, 2, 130


class Group(TyperGroup):
    """Turns errors into messages and exit codes: 2 for the user's, 130 for an interrupt, 1 for all others."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        _quieten()
        try:
            return super().invoke(ctx)
        except GraphoptError as error:
            if debugging(ctx):
                raise
            complain(error.what, error.where, error.hint)
            raise typer.Exit(USAGE if isinstance(error, UsageError) else FAILURE) from None
        except KeyboardInterrupt:
            if debugging(ctx):
                traceback.print_exc()
            errors().print("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if debugging(ctx) or isinstance(error, BrokenPipeError) or _is_click(error):
                raise
            first = str(error).strip().splitlines() or [""]
            complain(f"{type(error).__name__}: {first[0]}", "", "run the same command with --debug for the traceback")
            raise typer.Exit(FAILURE) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does, but a command that there is not is an error that names those there are."""
        if args and not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            hint = f"{nearest(args[0], self.commands)}; graphopt --help says what each does"
            raise UsageError(f"there is no command '{args[0]}'", where="graphopt", hint=hint)
        return super().resolve_command(ctx, args)


def _is_click(error: BaseException) -> bool:
    """Whether it is one of typer's own ways out (Exit, Abort) which are RuntimeErrors too."""
    return type(error).__module__.split(".")[0] in ("typer", "click")


def debugging(ctx: typer.Context) -> bool:
    return bool((ctx.find_root().obj or {}).get("debug"))


def _remember(ctx: typer.Context, value: bool) -> bool:
    root = ctx.find_root()
    root.obj = {"debug": value or bool((root.obj or {}).get("debug"))}
    return value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember, is_eager=True, help="Show the traceback of an error.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]


def complain(what: str, where: str = "", hint: str = "") -> None:
    """Print what went wrong, where, and what to do next, on stderr."""
    console = errors()
    console.print(Text.assemble(("error: ", "bold red"), what))
    for label, text in (("where", where), ("next", hint)):
        if text:
            console.print(Text.assemble((f"  {label + ':':7}", "dim"), text))


def note(text: str) -> None:
    """Something the user should know, on stderr, so that standard output stays what was asked for."""
    errors().print(Text.assemble(("note: ", "bold yellow"), text))


def check_output(path: Path, *, folder: bool = False) -> None:
    """Raise UsageError where a file, or a folder, could not be written: before what takes long, not after."""
    hint = "name another place with --output"
    if path.exists() and path.is_dir() != folder:
        what = "this is a file, and a folder is needed" if folder else "this is a folder, and a file is needed"
        raise UsageError(what, where=str(path), hint=hint)
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if there != path and not there.is_dir():
        raise UsageError(f"{there} is a file, not a folder", where=str(path), hint=hint)
    if not os.access(there, os.W_OK):
        raise UsageError(f"{there} cannot be written to", where=str(path), hint=hint)


def out() -> Console:
    """Standard output. A file or a pipe has no width of its own: it gets 100 columns, or as many as COLUMNS says."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 100
    return Console(highlight=False, soft_wrap=False, width=width)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class _Told(logging.Handler):
    """Gives messages to a function."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """What graphopt logs of compilations goes to `say`."""
    logger, handler = logging.getLogger("graphopt"), _Told(say)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def phase(text: str) -> Iterator[Callable[[str], None] | None]:
    """What is being done, on stderr: a spinner on a terminal, with what is being compiled; a plain line elsewhere.

    On a terminal it gives a function that shows how far it has come, behind the text; elsewhere None.
    """
    console = errors()
    if console.is_terminal:

        def line(detail: str) -> Text:
            return Text(f"{text}{': ' * bool(detail)}{detail}", no_wrap=True, overflow="ellipsis")

        with console.status(line("")) as status:

            def say(detail: str) -> None:
                status.update(line(detail))

            with told(say):
                yield say
    else:
        console.print(Text(text))
        yield None


def _quieten() -> None:
    """Only what graphopt has to say: libraries report errors, not what they would like to have installed."""
    for variable in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("diffusers", "transformers", "huggingface_hub"):
        if name in sys.modules:
            logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(diffusers|transformers|huggingface_hub)")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
