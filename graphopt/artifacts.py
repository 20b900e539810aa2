"""The folder in which captured Programs and generated code are kept from one process to the next.

The folder is ``$GRAPHOPT_CACHE_DIR``, else ``$XDG_CACHE_HOME/graphopt``, else ``~/.cache/graphopt``. It holds at most
``$GRAPHOPT_CACHE_BYTES`` (1 GiB): what was not used for longest goes. ``GRAPHOPT_CACHE=0`` does without it.

An entry is a file: a SHA-256 digest and the content that it is of. Files appear whole or not at all, and several
processes may use the folder. What is in it is run as machine code: the folder and its files must belong to this user,
and no one else may write there. Whatever is wrong with it, compilation goes on: what was kept is then made again, and a
`RuntimeWarning` says why, once a process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BYTES = 1 << 30
TUNED = "tuned-1.sqlite"  # what `graphopt tune` found, see `graphopt.targets.tvm.tuned`; the number is the tables'
CODE, PROGRAM = "code", "program"  # what an entry is: a stage's machine code, a Program with what was made of it
_KEPT = re.compile(rf"[0-9a-f]{{64}}\.({CODE}|{PROGRAM})")
_PART = re.compile(r"graphopt-\w+\.part")  # other files are not ours
_LEFT_OVER = 3600  # seconds after which what is still being written never will be
_warned: list[str] = []


@dataclass(frozen=True)
class Artifact:
    """A file of the folder.

    Attributes
    ----------
    used : when it was last read or written, in seconds since the epoch.
    kind : `CODE` or `PROGRAM`.
    """

    path: Path
    bytes: int
    used: float
    kind: str


def folder() -> Path | None:
    """Where code is kept, whether or not there is such a folder yet; None where it is not."""
    if os.environ.get("GRAPHOPT_CACHE") == "0":
        return None
    if given := os.environ.get("GRAPHOPT_CACHE_DIR"):
        with contextlib.suppress(RuntimeError):  # a user whom nobody knows
            return Path(given).expanduser().absolute()
        _warn(f"there is no folder {given}")
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "graphopt"
    except RuntimeError:  # nobody's home
        _warn("this user has no home; set GRAPHOPT_CACHE_DIR")
        return None


def read(key: str, kind: str) -> bytes | None:
    """What is kept under a key, if it is, whole, and no one else's."""
    place = folder()
    if place is None:
        return None
    path = place / f"{key}.{kind}"
    try:
        if why := unsafe(place, place.stat()):
            _warn(why)
            return None
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if why := unsafe(path, os.fstat(file.fileno())):
                _warn(why)
                return None
            digest, content = file.read(hashlib.sha256().digest_size), file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(f"{error}")
        return None
    if hashlib.sha256(content).digest() != digest:
        with contextlib.suppress(OSError):
            path.unlink()
        warnings.warn(f"{path} is damaged; it is made again", RuntimeWarning, stacklevel=2)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return content


def write(key: str, kind: str, content: bytes) -> None:
    """Keep content under a key, and let go of what was not used for longest if there is too much now."""
    place = folder()
    if place is None:
        return
    try:
        make(place)
        if why := unsafe(place, place.stat()):
            _warn(why)
            return
        descriptor, name = tempfile.mkstemp(".part", "graphopt-", place)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            Path(name).replace(place / f"{key}.{kind}")
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        _bound(place)
    except OSError as error:
        _warn(f"{error}")


def sources(*folders: str) -> str | None:
    """A digest of graphopt's own code in some of its folders; None where sources were not installed."""
    found = [(folder, _sources(folder)) for folder in sorted(folders)]
    return hashlib.sha256(repr(found).encode()).hexdigest() if any(digest for _, digest in found) else None


@cache
def _sources(folder: str) -> str | None:
    package = Path(__file__).parent
    files = sorted((package / folder).rglob("*.py"))
    found = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        found.update(f"{file.relative_to(package)} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest() if files else None


def remove(key: str, kind: str) -> None:
    """Remove what is kept under a key, if it is."""
    place = folder()
    if place is not None:
        with contextlib.suppress(OSError):
            (place / f"{key}.{kind}").unlink()


def most_bytes() -> int | None:
    """The most that the folder may hold; None where ``GRAPHOPT_CACHE_BYTES`` is no number."""
    try:
        return int(os.environ.get("GRAPHOPT_CACHE_BYTES", BYTES))
    except ValueError:
        return None


def kept() -> list[Artifact]:
    """What is kept, the last used first."""
    place = folder()
    return sorted(_files(place, _KEPT), key=lambda artifact: -artifact.used) if place else []


def clear() -> list[Artifact]:
    """Remove all that is kept, and give it back as `kept` does.

    Raises
    ------
    OSError : a file cannot be removed.
    """
    found, place = kept(), folder()
    for artifact in [*found, *(_files(place, _PART) if place else ())]:
        artifact.path.unlink(missing_ok=True)
    return found


def make(place: Path) -> None:
    """Make the folder, if there is none.

    Raises
    ------
    OSError : it cannot be made.
    """
    place.parent.mkdir(exist_ok=True)  # ~/.cache; but no home is made for a user who has none
    place.mkdir(mode=0o700, exist_ok=True)


def unsafe(path: Path, status: os.stat_result) -> str | None:
    """Why a file or folder is not to be trusted: it is another user's, or others may write there. None if it is."""
    if status.st_uid != os.geteuid():
        return f"{path} belongs to another user (uid {status.st_uid}); set GRAPHOPT_CACHE_DIR"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {path}; run chmod go-w {path}"
    return None


def _files(place: Path, names: re.Pattern[str]) -> list[Artifact]:
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for entry in os.scandir(place):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                if names.fullmatch(entry.name):
                    status, kind = entry.stat(follow_symlinks=False), entry.name.rpartition(".")[2]
                    found.append(Artifact(Path(entry.path), status.st_size, status.st_mtime, kind))
    return found


def _bound(place: Path) -> None:
    """Remove what was not used for longest, and what was never written to its end."""
    files = sorted(_files(place, _KEPT), key=lambda artifact: artifact.used)
    total, most = sum(artifact.bytes for artifact in files), _most()
    gone = [artifact for artifact in _files(place, _PART) if artifact.used < time.time() - _LEFT_OVER]
    for artifact in files:
        if total <= most:
            break
        gone.append(artifact)
        total -= artifact.bytes
    for artifact in gone:
        artifact.path.unlink(missing_ok=True)


def _most() -> int:
    most = most_bytes()
    if most is None:
        _warn(f"GRAPHOPT_CACHE_BYTES is '{os.environ['GRAPHOPT_CACHE_BYTES']}', not a number of bytes")
    return most or 0


def _warn(why: str) -> None:
    """Say once a process why something is not kept, or not as asked for."""
    _warned.append(why)
    if len(_warned) == 1:
        warnings.warn(f"not everything is kept for later processes: {why}", RuntimeWarning, stacklevel=3)
