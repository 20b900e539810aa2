"""Captured Programs kept from one compilation to the next of the same modules, as a search among passes needs them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch

from graphopt.capture.calls import Call
from graphopt.capture.guards import ModuleGuard, call_state
from graphopt.ir.program import Program, Role
from graphopt.runtime.weights import Weights


class Captures:
    """What was captured, for compiling the same object again with other passes; see `graphopt.compile.try_out`.

    A Program is used again for a call that it was captured for, with the same roles, as long as the module's state
    outside its tensors is as it was, and the shapes, strides, dtypes and devices of its weights are. Weights are inputs
    of a Program: their values may change.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[ModuleGuard, Weights, Program]] = {}

    def of(
        self, module: torch.nn.Module, call: Call, roles: Mapping[str, Role], name: str, capture: Callable[[], Program]
    ) -> Program:
        """The Program of a call of `module` with these roles, under this name: kept, or captured now and kept."""
        key = (module, name, frozenset(roles.items()), call.signature, call_state())
        known = self._kept.get(key)
        if known is None or not (known[0].holds() and known[1].fit()):
            program = capture()
            weights = [entry for entry in program.inputs if entry.role == "weight"]
            known = self._kept[key] = ModuleGuard(module), Weights(module, weights, program.constants), program
        return known[2]
