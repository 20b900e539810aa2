"""Programs kept from one process to the next: as captured, and as the passes left them.

A Program is found under a digest of all that it follows from. For a captured one that is the module's state and the
code that a call of it runs (`graphopt.capture.fingerprint`), the call's form and the roles of its arguments; for one
after passes, the Program before them and the passes with their options. Where any of this cannot be told, or a Program
has no form as bytes, it is made anew each time. What is found is checked as everything compiled is: its first result is
compared with the module's own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch

from graphopt import artifacts
from graphopt.capture.calls import Call
from graphopt.capture.fingerprint import Executed, fingerprint
from graphopt.capture.guards import call_state
from graphopt.debug.statistics import PassRecord
from graphopt.errors import GraphoptError
from graphopt.ir import products, stored
from graphopt.ir.program import Kept, Program, Role
from graphopt.ir.relations import Boundary, Relation, Taken
from graphopt.ir.rewrite import Pass, spell

Passed = tuple[Program, Boundary, list[PassRecord]]
# Of an entry of another form.
_DAMAGE = (GraphoptError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SyntaxError, AssertionError)


def captured(
    module: torch.nn.Module, executed: Executed | None, call: Call, roles: Mapping[str, Role], name: str,
    capture: Callable[[], Program],
) -> Program:  # fmt: skip
    """The Program of a call: that of an earlier process, or captured now and kept.

    Parameters
    ----------
    executed : the code that the call has run; None where nobody looked: then nothing is looked up or kept.
    capture : makes the Program.
    """
    if executed is None:
        return capture()
    sources = artifacts.sources("ir", "capture", "models")
    about = (sources, call.signature, call_state(), tuple(sorted(roles.items())), name)
    key = None if sources is None else fingerprint(module, executed, *about)
    if key is None:
        return capture()
    if known := _find(key):
        return known[0]
    program = capture()
    if not program.constants:  # which may be tensors that someone else holds and writes to
        _keep(key, program, {})
    return program


def passed(
    program: Program, relations: Sequence[Relation], passes: Sequence[Pass], run: Callable[[], Passed]
) -> Passed:
    """The Program after passes, its boundary, and what each pass did: of an earlier process, or now, and kept.

    Parameters
    ----------
    program : as captured.
    relations : that the passes may assume.
    run : specialises and runs the passes.
    """
    key = _key(program, relations, passes)
    if key and (known := _find(key)):
        after, about = known
        boundary = Boundary(tuple(Taken(*entry) for entry in about["boundary"]))
        return after, boundary, [PassRecord(**_record(entry)) for entry in about["records"]]
    after, boundary, records = run()
    if key and not any(record.error for record in records):
        taken = [astuple(entry) for entry in boundary.inputs]
        _keep(key, after, {"records": [vars(record) for record in records], "boundary": taken})
    return after, boundary, records


def _key(program: Program, relations: Sequence[Relation], passes: Sequence[Pass]) -> str | None:
    """None where passes are not graphopt's own: what their code is, or what they read, cannot be told."""
    about = artifacts.sources("ir", "passes"), _cpu()
    own = all(type(entry).__module__.startswith("graphopt.passes.") for entry in passes)
    if artifacts.folder() is None or not own or program.constants or None in about:
        return None
    try:
        digest = program.kept.digest if program.kept else _digest(stored.write(program))
    except GraphoptError:
        return None
    names = [(spell(entry), entry.accuracy) for entry in passes]
    return _digest(repr((about, torch.__version__, call_state()[:3], relations, names, digest)).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cpu() -> tuple[Any, ...]:
    """What passes ask of the CPU."""
    asked = products.supported(), products.in_torch(), products.of_float16_in_torch()
    return torch.backends.cpu.get_cpu_capability(), torch.ops.mkldnn._is_mkldnn_bf16_supported(), *asked


def _keep(key: str, program: Program, about: Mapping[str, Any]) -> None:
    try:
        content = json.dumps(about).encode() + b"\n" + stored.write(program)
    except (GraphoptError, TypeError):  # symbolic numbers of FLOPs, too
        return
    artifacts.write(key, artifacts.PROGRAM, content)


def forget(keys: Collection[str]) -> None:
    """Remove what turned out to be wrong."""
    for key in keys:
        artifacts.remove(key, artifacts.PROGRAM)


def _find(key: str) -> tuple[Program, dict[str, Any]] | None:
    """The Program that is kept under a key, and what is noted about it; None where there is no such entry."""
    content = artifacts.read(key, artifacts.PROGRAM)
    if content is None:
        return None
    line, _, rest = content.partition(b"\n")
    try:
        program, about = stored.read(rest), json.loads(line)
    except _DAMAGE:
        return None
    program.kept = Kept(key, _digest(rest))
    return program, about


def _record(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `PassRecord`, as they were before they were JSON."""
    pairs = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
    return {**entry, **pairs, "refusals": Counter(entry["refusals"])}
