"""Names of dumps, ``018_hoist.py``, without what reads them: no torch."""

from __future__ import annotations

import re
from pathlib import Path

from graphopt.errors import nearest


def near_dump(path: Path) -> str:
    """What may be meant by a dump that is not there: that of the same pass, or the one named most alike."""
    there = [file.name for file in sorted(path.parent.glob("[0-9][0-9][0-9]_*.py"))]
    name = re.sub(r"^\d+_", "", path.name)
    same = [found for found in there if found[4:] == name]
    if same:
        return f"did you mean {' or '.join(same)}?"
    close = nearest(path.name, there).partition(" (")[0]
    return close if close.startswith("did you mean") else "graphopt trace writes dumps"
