"""``graphopt run --from DUMP``: a dump in place of the passes that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, UsageError, nearest

if TYPE_CHECKING:
    from graphopt.debug.given import Given
    from graphopt.debug.history import History
    from graphopt.ir.rewrite import Observer, Pass

REST = "rest"


@dataclass(frozen=True)
class Start:
    """A dump that was read, and what its journal says of the run it was made in.

    Attributes
    ----------
    pipeline, request : as the journal has them, the user's choice over it.
    passes : the dump, and what follows it.
    history : sees what becomes of it.
    """

    dump: Path
    pipeline: str
    request: Mapping[str, Any]
    passes: tuple[Pass, ...]
    history: History
    edited: bool

    @property
    def given(self) -> Given:
        first: Any = self.passes[0]
        return first  # type: ignore[no-any-return]

    @property
    def observers(self) -> tuple[Observer, ...]:
        from graphopt.debug.given import Boundary

        return (Boundary(self.given), self.history)

    @property
    def warms_up(self) -> bool:
        """Whether the dump assumes what only some calls of a run can show, so that it serves from the next run on."""
        from graphopt.ir.relations import Repeated

        return any(not isinstance(known, Repeated) for known in self.given.program.relations)

    def value(self, name: str, chosen: Any) -> Any:
        """What the user chose, else what the journal has."""
        return self.request.get(name) if chosen is None else chosen

    def check(self) -> None:
        """Raise an error where the dump was not used in the run that has been."""
        name = self.given.program.name
        mine = [entry for entry in self.history.compilations if entry.name == name]
        if not mine:
            known = sorted({entry.name for entry in self.history.compilations})
            raise UsageError(f"this pipeline runs no module '{name}', of which the dump is", where=str(self.dump),
                             hint=nearest(name, known))  # fmt: skip
        if any(entry.snapshots[1].fired and not entry.snapshots[1].error for entry in mine):
            return
        for entry in mine:
            if entry.snapshots[1].error:
                raise GraphoptError(f"the dump was rolled back: {entry.snapshots[1].error}", where=str(self.dump))
        from graphopt.debug.given import check
        from graphopt.ir.relations import specialise

        relations = self.given.program.relations
        check(specialise(mine[-1].captured, relations)[0], self.given)
        assumed = ", ".join(map(str, relations)) or "nothing"
        raise GraphoptError(f"no call was as the dump assumes: {assumed}", where=str(self.dump),
                            hint="sample as it was when the dump was made; the journal beside it says how")  # fmt: skip

    def served(self) -> str:
        """How the dump was used, in words."""
        state = "edited" if self.edited else "as it was written"
        after = f", then {', '.join(entry.name for entry in self.passes[1:])}" if self.passes[1:] else ""
        return f"{self.given.program.name} ran {self.dump} ({state}){after}"


def start(dump: Path, then: str | None, pipeline: str | None) -> Start:
    """Read a dump and its journal; nothing is loaded yet.

    Raises
    ------
    UsageError : the dump cannot be read, or no journal says of which pipeline it is.
    """
    from graphopt.cli._options import passes_named
    from graphopt.debug import journal as journals
    from graphopt.debug.given import Given
    from graphopt.debug.history import History

    given = Given(str(dump))
    name = given.program.name
    journal = journals.beside(dump)
    if journal is not None and journal["module"] != name:
        raise UsageError(f"the dump is of '{name}', and its journal of '{journal['module']}'", where=str(dump),
                         hint="dumps of each module have a folder of their own")  # fmt: skip
    if journal is None and pipeline is None:
        raise UsageError("no journal beside the dump says of which pipeline it is", where=str(dump),
                         hint="graphopt run PIPELINE --from DUMP")  # fmt: skip
    if then == REST:
        if journal is None:
            raise UsageError("no journal beside the dump says which passes remain", where="--then", hint="name them")
        then = ",".join(journals.rest(journal, dump)) or "none"
    follow = passes_named(then) or ()
    request = journal["request"] if journal is not None else {}
    chosen = pipeline or (journal or {})["pipeline"]
    return Start(dump, chosen, request, (given, *follow), History(), journal is None or journals.is_edited(dump))
