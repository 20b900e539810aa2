"""Weights that no step reads leave memory: they live on in a private mapping of a file, read and written as before.

After the passes the step reads folded and packed copies of many weights, and others are needed once per request or
schedule only, whose results are kept. Such a weight stays the same Parameter object; only its memory is another: pages
of a file (`graphopt.runtime.mapped`), which the kernel drops and reads again as it sees fit. Everything goes on
working; reading such a weight is merely slower the first time. What was computed of weights goes the same way, where
the step reads it to be packed and for nothing else, or not at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from graphopt.errors import UsageError
from graphopt.ir.effects import is_view
from graphopt.ir.program import Program
from graphopt.ir.stages import COMMON, STEP, WEIGHTS, placement
from graphopt.runtime import mapped
from graphopt.runtime.gate import GATE
from graphopt.runtime.mapped import Mapping, mapping_of
from graphopt.runtime.memo import private
from graphopt.runtime.weights import let_go
from graphopt.targets import PacksWeights


class Variant(Protocol):
    """What eviction asks a variant of a module: which weights its step reads."""

    built: Any
    weights: Any
    memos: Any
    checked: bool

    @property
    def lost(self) -> bool: ...


class Installed(Protocol):
    """What eviction asks a compiled module."""

    module: torch.nn.Module
    name: str
    strict: bool
    eviction: Eviction | None
    stayed: Counter[str]
    variants: Any
    failures: Any


_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


@dataclass(frozen=True)
class Eviction:
    """What ``graphopt.compile(evict=...)`` asks for.

    Attributes
    ----------
    folder : where the file goes; None: the folder for temporary files, or /var/tmp where that one is memory.
    min_bytes : size of a weight below which a page more or less does not pay.
    """

    folder: Path | None = None
    min_bytes: int = 64 << 10

    @staticmethod
    def of(given: Any) -> Eviction | None:
        """Of ``"file"``, a folder, or None. Raises UsageError for anything else, and for a folder that is not there."""
        if given is None or isinstance(given, Eviction):
            return given
        if given == "file":
            return Eviction()
        if not isinstance(given, Path):
            raise UsageError(f"cannot evict to {given!r}", where="evict", hint="'file', a pathlib.Path, or None")
        if not given.is_dir():
            raise UsageError(f"there is no folder '{given}'", where="evict", hint="evict='file' picks one")
        return Eviction(given)

    def place(self) -> Path:
        """The folder. Raises OSError where there is none whose files are not memory."""
        folders = [Path(tempfile.gettempdir()), Path("/var/tmp")] if self.folder is None else [self.folder]
        for folder in folders:
            if folder.is_dir() and not mapped.in_memory(folder):
                return folder
        raise OSError(f"files in {folders[0]} take memory themselves; evict=pathlib.Path(...) names a folder on a disk")


# -- what is compiled in this process ---------------------------------------------------------------------------------

_installed: weakref.WeakSet[Installed] = weakref.WeakSet()
_lock = threading.RLock()


def register(installed: Installed) -> None:
    """Know of an `Installed`: what its steps read is not evicted, whoever else could do without."""
    with _lock:
        _installed.add(installed)


def settle(installed: Installed) -> None:
    """After a new variant: bring back what steps read now, evict what none does. Never fails but in strict mode."""
    if installed.eviction is None and not mapped.mappings():
        return
    try:
        with GATE.running(), _lock:  # no capture meanwhile: tracing looks at the memory of weights
            _settle(installed)
    except Exception as error:
        if installed.strict:
            raise
        _explain(installed, f"evicting raised {type(error).__name__}: {error}")


def _settle(installed: Installed) -> None:
    needed = _needed()
    weights = _weights(installed.module)
    own = set(map(id, weights))
    _bring_back([weight for weight in weights if id(weight) in needed])
    for mapping in mapped.mappings():  # the module itself ran, to check the variant
        mapping.page_out()
    if installed.eviction is None or not any(variant.checked and not variant.lost for variant in installed.variants):
        return
    chosen, stayed = list[torch.Tensor](), Counter[str]()
    let_go()
    for weight in weights:
        if mapping_of(weight) is None:
            reason = "the step reads them" if id(weight) in needed else _unfit(weight, installed.eviction)
            if reason:
                stayed[reason] += _nbytes(weight)
            else:
                chosen.append(weight)
    installed.stayed = stayed
    for variant in installed.variants:
        if variant.checked and not variant.lost:
            chosen += [value for value in _computed(variant) if not _unfit(value, installed.eviction)]
    if not chosen:
        return
    reason = mapped.unsupported()
    if reason is None:
        try:
            mapping = Mapping.of(chosen, installed.eviction.place())
        except OSError as error:
            reason = f"they could not be written: {error}"
    if reason is not None:
        stayed[reason] += sum(_nbytes(weight) for weight in chosen if id(weight) in own)
        _explain(installed, reason)
        return
    for position, weight in enumerate(chosen):
        # Once more: another thread may have taken a view of it meanwhile.
        changed = _unfit(weight, installed.eviction)
        if (changed or not _exchange(weight, _laid(mapping, position, weight))) and id(weight) in own:
            stayed[changed or "another thread wrote them meanwhile"] += _nbytes(weight)
    _reap()


def _laid(mapping: Mapping, position: int, weight: torch.Tensor) -> torch.Tensor | None:
    with torch.inference_mode(weight.is_inference()):
        return mapping.tensor(position)


def _explain(installed: Installed, reason: str) -> None:
    warnings.warn(f"graphopt: {installed.name} keeps its weights in memory: {reason}", RuntimeWarning, stacklevel=6)


def bring_back(module: torch.nn.Module) -> None:
    """All weights of a module in ordinary memory, as they are now.

    One whose memory other tensors share stays where it is, whole and writable: moving it would part them.
    """
    if mapped.mappings():
        with GATE.running(), _lock:
            _bring_back(_weights(module))


def _bring_back(weights: Iterable[torch.Tensor]) -> None:
    evicted = [weight for weight in weights if mapping_of(weight) is not None]
    if not evicted:
        return
    let_go()
    for weight in evicted:
        if not _shared(weight):
            with torch.inference_mode(weight.is_inference()):
                _exchange(weight, private([weight.detach()], [weight])[0])
    _reap()


def outcome(installed: Installed) -> tuple[int, int, dict[str, int]] | None:
    """Bytes of a module's weights, of those evicted now, and of those that stayed, by reason; None without eviction."""
    if installed.eviction is None:
        return None
    weights = _weights(installed.module)
    evicted = sum(_nbytes(weight) for weight in weights if mapping_of(weight) is not None)
    return sum(map(_nbytes, weights)), evicted, dict(installed.stayed)


# -- which weights ----------------------------------------------------------------------------------------------------


def _weights(module: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each object once."""
    return list({id(weight): weight for weight in chain(module.parameters(), module.buffers())}.values())


def _needed() -> set[int]:
    """Ids of all weights that some step reads, of any compiled module; a call left to a module reads all of its."""
    found = set[int]()
    for entry in list(_installed):
        if entry.module.__dict__.get("_compiled_call_impl") is not entry:
            continue  # restored
        if entry.failures or any(variant.lost for variant in entry.variants):
            found.update(map(id, _weights(entry.module)))
        for variant in entry.variants:
            found.update(map(id, _read_by_step(variant)))
    return found


def _packed_by_step(variant: Variant) -> set[str]:
    """Names of values that the step reads to pack them, and for nothing else."""
    step, reads = variant.built.kernels[-1], variant.built.parts[-1].reads
    return {reads[position] for position in step.packs()} if isinstance(step, PacksWeights) else set()


def _computed(variant: Variant) -> Iterator[torch.Tensor]:
    """Values kept of weights alone that lie in memory, and that the step has packed or does not read."""
    reads = set(variant.built.parts[-1].reads) - _packed_by_step(variant)
    for part, memo in zip(variant.built.parts, variant.memos.values(), strict=False):
        for values in memo.kept() if part.stage == WEIGHTS else ():
            for name, value in zip(part.gives, values, strict=True):
                if name not in reads and isinstance(value, torch.Tensor) and mapping_of(value) is None:
                    yield value


def _read_by_step(variant: Variant) -> Iterator[torch.Tensor]:
    program = variant.built.program
    reads = names_read_by_step(program, _packed_by_step(variant))
    names = [entry.name for entry in program.inputs if entry.role == "weight"]
    with contextlib.suppress(KeyError):  # a weight is gone: the variant serves no more
        for name, weight in zip(names, variant.weights.read(), strict=True):
            if name in reads and isinstance(weight, torch.Tensor):
                yield weight


def names_read_by_step(program: Program, packed: Collection[str] = ()) -> set[str]:
    """Names of the weight inputs whose memory the step reads: as they are, or as a view that an earlier stage takes.

    Parameters
    ----------
    packed : names of values that the step reads once, to pack them.
    """
    memory = {node: {node.name} for node in program.placeholders}
    found = set[str]()
    for node in program.graph.nodes:
        step = node.op == "output" or (node.op == "call_function" and placement(node) in (STEP, COMMON))
        views = node.op == "call_function" and not step and is_view(node)
        memory.setdefault(node, set().union(*(memory[s] for s in node.all_input_nodes)) if views else set())
        if step:
            found.update(*(memory[source] for source in node.all_input_nodes if source.name not in packed))
    return found


def _unfit(weight: torch.Tensor, eviction: Eviction) -> str | None:
    """Why a weight stays although no step reads it."""
    if type(weight) not in _PLAIN:
        return f"{type(weight).__name__} is a tensor of its own kind"
    if weight.device.type != "cpu":
        return f"they are on {weight.device.type}; only memory of the CPU is evicted"
    if weight.layout is not torch.strided or weight.is_conj() or weight.is_neg():
        return "their layout is no plain one"
    if _nbytes(weight) < max(eviction.min_bytes, 1):
        return f"smaller than {eviction.min_bytes} bytes"
    dense = torch.empty_like(weight, device="meta").stride() == weight.stride()
    if not dense or weight.untyped_storage().nbytes() != _nbytes(weight):
        return "they do not fill the memory they lie in"
    if _shared(weight):
        return "other tensors share their memory"
    return None


def _shared(weight: torch.Tensor) -> bool:
    """Whether anybody else holds the memory of a weight: exchanged, it would no longer be the same memory."""
    return _holders(weight) != _holders(torch.empty(1))


def _holders(tensor: torch.Tensor) -> tuple[int, int]:
    """References to a tensor's memory, and to the object that stands for it in Python."""
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


def _nbytes(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()


# -- exchanging memory that other threads may be reading --------------------------------------------------------------


class Calling:
    """A compiled call in flight, as a context: memory that it may be reading is not freed before it ends."""

    __slots__ = ()

    def __enter__(self) -> None:
        _calls[id(self)] = threading.get_ident()

    def __exit__(self, *error: object) -> None:
        del _calls[id(self)]
        if _graves:
            _reap()


_calls: dict[int, int] = {}  # calls in flight → their threads
_moves: dict[int, int] = {}  # address of a weight before an exchange → after it
_graves_lock = threading.RLock()
_graves: list[tuple[torch.UntypedStorage, set[int]]] = []  # memory → the calls that may be reading it


def _exchange(weight: torch.Tensor, new: torch.Tensor | None) -> bool:
    """Give a weight other memory with the same contents.

    A kernel that another thread runs may hold the bare address of the old memory, so it lives until all calls of other
    threads that are in flight now have ended.
    """
    if new is None:
        return False
    old, me = weight.untyped_storage(), threading.get_ident()
    weight.data = new
    _moves[old.data_ptr()] = new.data_ptr()
    with _graves_lock:
        _graves.append((old, {call for call, thread in _calls.copy().items() if thread != me}))
    return True


def moved(before: int, now: int) -> bool:
    """Whether a weight that lay at one address lies at the other, by exchanges alone."""
    seen = set[int]()
    while before != now:
        if before in seen or before not in _moves:
            return False
        seen.add(before)
        before = _moves[before]
    return True


def _reap() -> None:
    with _graves_lock:
        before = len(_graves)
        _graves[:] = [(memory, calls) for memory, calls in _graves if not calls.isdisjoint(_calls)]
        if len(_graves) < before:
            _trim()


def _trim() -> None:
    """Have the C library give freed memory back to the kernel, where it can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
