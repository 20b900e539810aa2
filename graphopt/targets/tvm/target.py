"""The TVM target: kernels generated for the CPU at hand; what it has no kernels for stays with torch."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ...errors import TargetError
from ...ir.effects import has_effect
from ...ir.stages import Part
from ..base import Kernel, Target
from .host import openmp


class Tvm(Target):
    """Kernels written in TensorIR and compiled by LLVM, for float32 on x86 CPUs. Needs no compiler on the machine.

    Matrix products and convolutions with what follows them, attention, norms and pointwise operations are generated;
    whatever else there is stays with torch. Shapes are static.
    """

    name: ClassVar[str] = "tvm"
    pipeline: ClassVar[str] = "generated"

    def unavailable(self, device: torch.device) -> str | None:
        if importlib.util.find_spec("tvm") is None:
            return "TVM is not installed: pip install 'graphopt[tvm]'"
        if device.type != "cpu":
            return f"it generates code for the CPU, not for {device.type}"
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return f"it generates code for x86-64 under Linux, not for {platform.machine()} under {sys.platform}"
        return openmp()

    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        from .running import Code

        for node in part.graph.nodes:
            schema = getattr(node.target, "_schema", None)
            if has_effect(node) and schema is not None and schema.is_mutable:
                raise TargetError(
                    f"tvm cannot build stage '{part.name}': {node.target} writes into its argument",
                    where=node.name,
                    hint="the stage runs on the eager target",
                )
        try:
            return Code(None, part.graph, examples, part.root)
        except Exception as error:
            raise TargetError(
                f"tvm could not build stage '{part.name}': {type(error).__name__}: {str(error)[-300:]}",
                where=f"{len(part.graph.nodes)} nodes",
                hint="the stage runs on the eager target",
            ) from error
