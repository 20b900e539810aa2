"""Captured Programs kept from one compilation to the next of the same modules, as a search among passes needs them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from graphopt.capture.calls import Call
from graphopt.capture.guards import ModuleGuard, call_state
from graphopt.ir.program import Program


class Captures:
    """What `graphopt.compile` captured, for compiling the same object again with other passes and the same roles.

    A Program is used again for a call that it was captured for, as long as the module's state outside its tensors is as
    it was. Weights are inputs of a Program: their values may change.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[ModuleGuard, Program]] = {}

    def of(self, module: torch.nn.Module, call: Call, capture: Callable[[], Program]) -> Program:
        """The Program of a call of `module`: kept, or captured now and kept."""
        key = (module, call.signature, call_state())
        known = self._kept.get(key)
        if known is None or not known[0].holds():
            program = capture()
            known = self._kept[key] = ModuleGuard(module), program
        return known[1]
