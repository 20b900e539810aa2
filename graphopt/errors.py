"""Every error graphopt raises: what went wrong, where, and what to do next.

All derive from `GraphoptError`, so ``except graphopt.GraphoptError`` catches them and nothing else. A user's mistake is
one line on the command line, never a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraphoptError(Exception):
    """Base of all errors raised by graphopt.

    Parameters
    ----------
    what : one sentence saying what went wrong.
    where : the pass, node, argument or file concerned.
    hint : what to do next.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__("".join((what, f"\n  where: {where}" if where else "", f"\n  next:  {hint}" if hint else "")))


class UsageError(GraphoptError):
    """An argument that cannot be used: wrong kind of object, unknown name, missing file."""


class CaptureError(GraphoptError):
    """A model that could not be turned into a Program; the model itself keeps working as it was."""


class RoleError(UsageError):
    """Roles that do not fit the model's inputs."""


class PassError(GraphoptError):
    """A pass that raised, or that was put where its requirements are not met."""


class VerificationError(PassError):
    """A pass whose result is not a valid Program, or is not as accurate as the pass declares."""


class TargetError(GraphoptError):
    """A target that is unknown, unavailable here, or could not build a stage."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known value closest to `name`, and all of them when there are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = f"one of: {', '.join(known)}" if known else "there are none"
    return f"did you mean '{close[0]}'? ({listing})" if close else listing
