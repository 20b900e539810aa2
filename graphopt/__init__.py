"""graphopt: a graph-rewriting compiler for diffusion models. The same images, for less energy.

>>> import graphopt
>>> from diffusers import DiffusionPipeline
>>> pipe = DiffusionPipeline.from_pretrained(graphopt.bundled("emoji-unet"))
>>> pipe = graphopt.compile(pipe)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.lazy import open_lazily

if TYPE_CHECKING:
    from graphopt import pipelines
    from graphopt.bundle import bundled
    from graphopt.compile import compile, report, restore
    from graphopt.errors import GraphoptError
    from graphopt.ir.program import Program
    from graphopt.ir.rewrite import Match, Observer, Pass, Refusal
    from graphopt.targets import Target

__version__ = "0.1.0"
# fmt: off
__all__ = ["GraphoptError", "Match", "Observer", "Pass", "Program", "Refusal", "Target", "bundled", "compile",
           "pipelines", "report", "restore"]
_HOMES = {
    "GraphoptError": "errors", "Match": "ir.rewrite", "Observer": "ir.rewrite", "Pass": "ir.rewrite",
    "Program": "ir.program", "Refusal": "ir.rewrite", "Target": "targets", "bundled": "bundle", "compile": "compile",
    "pipelines": "pipelines", "report": "compile", "restore": "compile",
}
# fmt: on
open_lazily(__name__, _HOMES)
