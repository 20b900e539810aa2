"""The live weights of a module, read by reference at every call, and an epoch that changes whenever their values do."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash

from graphopt.ir.program import Input
from graphopt.runtime.memo import checksum, digest


class Weights:
    """The tensors behind a Program's weight inputs.

    Parameters
    ----------
    module : owner of parameters and buffers; they are looked up in its tables at every read, so that a replaced
        parameter is seen.
    inputs : the Program's weight inputs, in order.
    constants : tensors by placeholder name that the module holds as plain attributes.
    """

    def __init__(self, module: torch.nn.Module, inputs: Sequence[Input], constants: Mapping[str, torch.Tensor]) -> None:
        self._slots: list[tuple[dict[str, Any], str]] = []
        for entry in inputs:
            if entry.name in constants:
                self._slots.append(({"": constants[entry.name]}, ""))
                continue
            owner, _, leaf = entry.path.rpartition(".")
            part = module.get_submodule(owner)
            self._slots.append((part._parameters if leaf in part._parameters else part._buffers, leaf))

    def read(self) -> list[Any]:
        """The tensors as they are now, in order."""
        return [table[key] for table, key in self._slots]

    @staticmethod
    def versions(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        """Address and version of each tensor: cheap, and changed by every write that torch itself knows of."""
        return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]

    @staticmethod
    def epoch(tensors: Sequence[torch.Tensor]) -> bytes:
        """A digest of all contents: changed by every write, those behind torch's back included."""
        total = xxhash.xxh3_128()
        elsewhere = []
        for tensor in tensors:
            total.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            if tensor.device.type == "cpu":
                total.update(digest(tensor))
            else:
                elsewhere.append(checksum(tensor))
        if elsewhere:
            total.update(torch.stack(elsewhere).cpu().numpy().tobytes())
        return total.digest()


class Trajectory:
    """One sampling run as a thread sees it, as far as the weights are concerned.

    The contents of all weights are digested at the start of a trajectory; between its steps addresses and versions are
    compared. A call continues the trajectory when it passes the very same condition objects as the call before (or,
    where a model has no conditions, times from the same schedule tensor) and a time that the trajectory has not seen
    yet; anything else starts a new one.
    """

    def __init__(self) -> None:
        self._conditions: list[weakref.ref[torch.Tensor]] = []
        self._schedule: list[torch.Tensor] = []  # views held, so that no other schedule can come to lie there
        self._times: set[bytes] = set()
        self._versions: list[tuple[int, int]] = []
        self.epoch: bytes | None = None
        self.started = 0

    def step(self, weights: Sequence[torch.Tensor], conditions: list[torch.Tensor], times: list[torch.Tensor]) -> bytes:
        """The epoch of the weights for this call."""
        now = b"".join(map(_moment, times))
        continues = self.epoch is not None and now not in self._times and self._same_run(conditions, times)
        versions = Weights.versions(weights)
        if not continues:
            self._times, self.started = set(), self.started + 1
            self._conditions, self._schedule = [weakref.ref(tensor) for tensor in conditions], list(times)
        if not continues or versions != self._versions:
            self.epoch, self._versions = Weights.epoch(weights), versions
        self._times.add(now)
        assert self.epoch is not None
        return self.epoch

    def _same_run(self, conditions: list[torch.Tensor], times: list[torch.Tensor]) -> bool:
        if conditions:
            return len(conditions) == len(self._conditions) and all(
                new is old() for new, old in zip(conditions, self._conditions, strict=True)
            )
        return bool(times) and [_schedule(time) for time in times] == [_schedule(time) for time in self._schedule] != [0]


def _moment(time: torch.Tensor) -> bytes:
    return digest(time) if time.device.type == "cpu" else str((time.data_ptr(), time.shape)).encode()


def _schedule(time: torch.Tensor) -> int:
    """The address of the table a timestep is an entry of; 0 for a tensor of its own."""
    storage = time.untyped_storage()
    return storage.data_ptr() if storage.nbytes() > time.element_size() else 0
