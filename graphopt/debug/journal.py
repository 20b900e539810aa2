"""A compilation as a folder: a dump after each pass, and a journal that says how to make them again.

``journal.json`` holds no times, addresses or folders of the machine: the same request gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from graphopt.debug.diff import KINDS, difference
from graphopt.debug.dumps import CONSTANTS, save_constants, source, text
from graphopt.debug.history import Compilation, Place, Snapshot
from graphopt.errors import UsageError
from graphopt.ir.cost import StageCost, foldable, stage_costs
from graphopt.plugins import spelled

JOURNAL = "journal.json"


def write(compilation: Compilation, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the dumps and the journal of a compilation, and return the journal.

    Parameters
    ----------
    folder : made where there is none; what an earlier trace left in it goes. See `check_folder`.
    about : how to make it again; JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in _dumps(folder):
        file.unlink()
    (folder / CONSTANTS).unlink(missing_ok=True)
    entries = entries_of(compilation)
    for snapshot, entry in zip(compilation.snapshots, entries, strict=True):
        content = text(snapshot.program)
        (folder / entry["file"]).write_text(content, encoding="utf-8")
        entry["sha256"] = _digest(content)
    constants = {name: value for shot in compilation.snapshots for name, value in shot.program.constants.items()}
    save_constants(constants, folder)
    relations = [str(known) for known in compilation.captured.relations]
    journal = {**about, "module": compilation.name, "relations": relations, "dumps": entries}
    (folder / JOURNAL).write_text(json.dumps(journal, indent=2) + "\n", encoding="utf-8")
    return journal


def entries_of(compilation: Compilation) -> list[dict[str, Any]]:
    """What each pass did, as JSON; the captured Program first."""
    found = [_entry(compilation.snapshots[0])]
    for before, after in pairwise(compilation.snapshots):
        entry = _entry(after)
        entry["changes"] = dict.fromkeys(KINDS, 0)
        if before.program is not after.program:
            entry["changes"] |= difference(before.program, after.program).counts
        found.append(entry)
    return found


def _entry(snapshot: Snapshot) -> dict[str, Any]:
    reasons: dict[str, list[Place]] = defaultdict(list)
    for held in snapshot.held:
        reasons[held.reason].append(held.place)
    return {
        "file": f"{snapshot.slug}.py",
        "name": spelled(snapshot.pass_) if snapshot.pass_ is not None else snapshot.name,
        "accuracy": snapshot.accuracy or None,
        "fired": [
            {**vars(entry.place), "removed": list(entry.removed), "added": list(entry.added)}
            for entry in snapshot.fired
        ],
        "refusals": [
            {"reason": reason, "places": [vars(place) for place in places]}
            for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1]))
        ],
        "changes": None,
        "stages": {name: cost_of(cost) for name, cost in stage_costs(snapshot.program).items() if cost.nodes},
        "weights_alone": cost_of(foldable(snapshot.program)),
        "error": snapshot.error,
    }


def cost_of(stage: StageCost) -> dict[str, Any]:
    """The work of a stage as JSON: nodes, FLOPs, bytes moved, bytes of weights."""
    amounts = {"flops": stage.cost.flops, "bytes": stage.cost.bytes, "weight_bytes": stage.weight_bytes}
    return {"nodes": stage.nodes, **{name: number(amount) for name, amount in amounts.items()}}


def number(amount: Any) -> int | str:
    """An amount as JSON has it: symbolic ones as text."""
    return amount if isinstance(amount, int) else int(amount) if getattr(amount, "is_Integer", False) else str(amount)


def check_folder(folder: Path, *, force: bool = False) -> None:
    """Raise UsageError where writing a trace would destroy anything but an earlier trace that was not edited."""
    if force or not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError("this is a file, and dumps need a folder", where=str(folder))
    mine = {*_dumps(folder), folder / JOURNAL, folder / CONSTANTS}
    others = sorted(file.name for file in folder.iterdir() if file not in mine and file.name != "__pycache__")
    if others:
        what = f"the folder holds something else: {', '.join(others[:3])}{' …' if len(others) > 3 else ''}"
        raise UsageError(what, where=str(folder), hint="name another folder, or write into it with --force")
    if edited := [file.name for file in _dumps(folder) if is_edited(file)]:
        what = f"the folder holds dumps that were edited: {', '.join(edited)}"
        raise UsageError(what, where=str(folder), hint="name another folder, or lose the edits with --force")


def is_edited(dump: Path) -> bool:
    """Whether a dump is not as `write` left it, or no journal says so."""
    journal = beside(dump)
    known = {entry["file"]: entry.get("sha256") for entry in journal["dumps"]} if journal is not None else {}
    return known.get(dump.name) != _digest(source(dump))


def beside(dump: Path) -> dict[str, Any] | None:
    """The journal in the folder of a dump; None where there is none. Raises UsageError where it cannot be read."""
    file = dump.parent / JOURNAL
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"the journal cannot be read: {error}", where=str(file),
                         hint="graphopt trace writes it beside its dumps") from error  # fmt: skip
    if not isinstance(found, dict) or not {"pipeline", "request", "module", "dumps"} <= found.keys():
        raise UsageError("this is no journal of graphopt trace", where=str(file))
    return dict(found)


def rest(journal: Mapping[str, Any], dump: Path) -> list[str]:
    """The passes after a dump, as the command line spells them. Raises UsageError for a file that is not listed."""
    files = [entry["file"] for entry in journal["dumps"]]
    if dump.name not in files:
        hint = f"name the passes; the journal knows {files[0]} to {files[-1]}"
        raise UsageError(f"the journal does not list {dump.name}", where=str(dump.parent / JOURNAL), hint=hint)
    return [entry["name"] for entry in journal["dumps"][files.index(dump.name) + 1 :]]


def _dumps(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9][0-9]_*.py"))


def dumps_in(folder: Path) -> list[Path]:
    """The numbered dumps of a folder, in order. Raises UsageError where there are none."""
    if found := _dumps(folder):
        return found
    raise UsageError("there are no dumps in this folder", where=str(folder), hint="graphopt trace PIPELINE -o DIR")


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def step_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes, FLOPs and bytes of the step in a journal's entry."""
    step: dict[str, Any] = entry["stages"].get("step", {"nodes": 0, "flops": 0, "bytes": 0})
    return step
