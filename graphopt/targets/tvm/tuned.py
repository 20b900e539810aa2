"""What was measured on this machine to be faster than what formulas say: a database of schedules. Imports no TVM.

It lies in the folder of `artifacts` and obeys its rules: it must be this user's, and no one else may write there. Rows
hold for the CPU, the compiler and the sources of schedules that they were measured with, and for a number of threads.
Whatever is wrong with the database, formulas hold, and a `RuntimeWarning` says why, once a process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ... import artifacts
from . import host
from .schedule import TORCH, Choice, Schedule

NAME = artifacts.TUNED
_PATIENCE = 10  # seconds to wait for another process that writes
# What decides how fast a schedule is.
_SOURCES = (
    "attention", "build", "contraction", "conv", "dot", "emit", "gemm", "image", "isa", "operators", "plan", "reading",
    "schedule", "stage", "tile", "tiling", "vectormath", "winograd",
)  # fmt: skip
_TABLES = """
CREATE TABLE IF NOT EXISTS kernels (
    machine TEXT, threads INTEGER, kernel TEXT, choice TEXT, tried INTEGER, finished INTEGER, default_seconds REAL,
    seconds REAL, PRIMARY KEY (machine, threads, kernel));
CREATE TABLE IF NOT EXISTS stages (stage TEXT PRIMARY KEY, kernels TEXT);
"""
_warned: list[str] = []


@dataclass(frozen=True)
class Found:
    """What a search knows of a kernel.

    Attributes
    ----------
    choice : the fastest so far; None for what formulas say.
    tried : how many candidates were measured.
    finished : whether those were all.
    default_seconds, seconds : of the formulas' schedule, and of the choice.
    """

    choice: Choice | None
    tried: int
    finished: bool
    default_seconds: float
    seconds: float


def path() -> Path | None:
    """Where the database is, whether or not there is one yet; None where none is kept."""
    place = artifacts.folder()
    return None if place is None else place / NAME


def choices(threads: int) -> dict[str, Choice]:
    """By kernel, what was faster than the formulas' schedule on so many threads."""
    return {kernel: found.choice for kernel, found in known(threads).items() if found.choice is not None}


def known(threads: int) -> dict[str, Found]:
    """All that is known of kernels on so many threads of this machine."""
    columns = "kernel, choice, tried, finished, default_seconds, seconds"
    rows = _read(f"SELECT {columns} FROM kernels WHERE machine = ? AND threads = ?", (machine(), threads))
    made = {}
    for kernel, choice, tried, finished, *seconds in rows:
        with contextlib.suppress(TypeError, ValueError):  # what cannot be read is as if it was never found
            made[kernel] = Found(_choice(choice), int(tried), bool(finished), *map(float, seconds))
    return made


def keep(threads: int, kernel: str, found: Found) -> None:
    """Write down what a search knows of a kernel.

    Raises
    ------
    OSError : it cannot be written.
    """
    text = None if found.choice is None else json.dumps(_plain(found.choice))
    row = machine(), threads, kernel, text, found.tried, found.finished, found.default_seconds, found.seconds
    _write([("INSERT OR REPLACE INTO kernels VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)])


def forget(threads: int, kernels: Collection[str]) -> None:
    """Let go of what is known of kernels.

    Raises
    ------
    OSError : the database cannot be written.
    """
    where = "DELETE FROM kernels WHERE machine = ? AND threads = ? AND kernel = ?"
    _write([(where, (machine(), threads, kernel)) for kernel in kernels])


def kernels_of(stage: str) -> list[str] | None:
    """The kernels of a stage for which there are choices, by the stage's key; None where that is not known yet."""
    for (text,) in _read("SELECT kernels FROM stages WHERE stage = ?", (stage,)):
        with contextlib.suppress(TypeError, ValueError):
            return [str(kernel) for kernel in json.loads(text)]
    return None


def remember(stage: str, kernels: Collection[str]) -> None:
    """Note the kernels of a stage, so that the next process can tell which choices its code was made with."""
    try:
        _write([("INSERT OR REPLACE INTO stages VALUES (?, ?)", (stage, json.dumps(sorted(kernels))))])
    except OSError as error:
        _warn(str(error))


def _plain(choice: Choice) -> object:
    return TORCH if choice == TORCH else dataclasses.asdict(choice)


def _choice(text: str | None) -> Choice | None:
    if text is None:
        return None
    value = json.loads(text)
    if value == TORCH:
        return TORCH
    made = Schedule(**value)
    if not all(type(number) is int and number > 0 for number in value.values()):
        raise ValueError(text)
    return made


@cache
def machine() -> str | None:
    """A digest of the CPU, the compiler and the schedules' sources; None where one of them cannot be told."""
    files = [Path(__file__).with_name(f"{name}.py") for name in _SOURCES]
    known = host.cpu(), host.compiler(), all(file.is_file() for file in files) or None
    if None in known:
        return None
    return hashlib.sha256(repr((known, torch.__version__, [file.read_bytes() for file in files])).encode()).hexdigest()


# -- the file --------------------------------------------------------------------------------------------------------


def _read(query: str, values: Sequence[object]) -> list[Any]:
    """Rows; none where there is no database, or none that may be trusted."""
    file = path()
    if file is None or None in values or not file.exists():
        return []
    try:
        if why := _unsafe(file):
            _warn(why)
            return []
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", timeout=_PATIENCE, uri=True)) as database:
            return database.execute(query, values).fetchall()
    except (OSError, sqlite3.Error) as error:
        _warn(f"{file}: {error}; if it is damaged, remove it and tune again")
        return []


def _write(statements: Sequence[tuple[str, Sequence[object]]]) -> None:
    file = path()
    if file is None:
        raise OSError("there is no folder to write to: GRAPHOPT_CACHE=0, or this user has no home")
    if machine() is None:
        raise OSError("it cannot be told which CPU and compiler these are")
    artifacts.make(file.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
    if why := _unsafe(file):
        raise OSError(why)
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_PATIENCE)) as database, database:
            database.executescript(_TABLES)
            for text, values in statements:
                database.execute(text, values)
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}; if it is damaged, remove it and tune again") from error


def _unsafe(file: Path) -> str | None:
    if file.is_symlink():
        return f"{file} is a symbolic link"
    return artifacts.unsafe(file.parent, file.parent.stat()) or artifacts.unsafe(file, file.stat())


def _warn(why: str) -> None:
    """Say once a process why what was measured is not used."""
    _warned.append(why)
    if len(_warned) == 1:
        warnings.warn(f"what was tuned is not used: {why}", RuntimeWarning, stacklevel=3)
