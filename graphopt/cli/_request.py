"""One short sampling run of a compiled pipeline: what all verbs that look into the compiler have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import phase
from graphopt.cli.run import Arguments, call_values

if TYPE_CHECKING:
    from graphopt.ir.rewrite import Observer, Pass

Prompt = Annotated[str, typer.Option(help="The prompt of the sampling run.")]
Steps = Annotated[int, typer.Option(min=1, help="Sampling steps of the run.")]
Seed = Annotated[int, typer.Option(help="Of the run's noise.")]
Pixels = Annotated[int | None, typer.Option(min=1, help="In pixels; else the pipeline's own.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
TargetName = Annotated[str, typer.Option("--target", help="auto, eager, inductor, or a plug-in's.")]
PassPipeline = Annotated[str | None, typer.Option("--pass-pipeline", help="Passes, such as exact or none.")]
OnePass = Annotated[
    list[str] | None,
    typer.Option("--pass", help="A pass with options, name{option=value}, for the one in the pipeline or after it."),
]
PROMPT, STEPS, SEED, TARGET = "a red apple", 4, 0, "auto"

__all__ = ["PROMPT", "SEED", "STEPS", "TARGET", "Arguments", "Dtype", "OnePass", "PassPipeline", "Pixels", "Prompt",
           "Request", "Seed", "Session", "Steps", "TargetName"]  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asked for; checked as far as possible before torch is imported.

    Raises
    ------
    UsageError : an unknown pipeline, target, pass, option or dtype.
    """

    pipeline: str
    prompt: str = PROMPT
    steps: int = STEPS
    seed: int = SEED
    height: int | None = None
    width: int | None = None
    arg: tuple[str, ...] = ()
    dtype: str | None = None
    target: str = TARGET
    pass_pipeline: str | None = None
    passes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from graphopt.cli._load import check
        from graphopt.cli._options import check_names

        call_values(list(self.arg))
        check_names(self.target, self.pass_pipeline, self.passes)
        check(self.pipeline, dtype=self.dtype)

    def open(self) -> Session:
        """Load the pipeline."""
        import inspect

        from graphopt import pipelines
        from graphopt.cli._load import call_arguments, load
        from graphopt.cli._options import passes_named, target_named

        target = target_named(self.target)
        suits = "exact" if isinstance(target, str) else target.pipeline
        passes = passes_named(self.pass_pipeline, self.passes, suits)
        if passes is None:
            passes = pipelines.PIPELINES[suits]
        pipe = load(self.pipeline, dtype=self.dtype)
        call: dict[str, Any] = {"num_inference_steps": self.steps, "height": self.height, "width": self.width}
        call |= call_values(list(self.arg))
        if "prompt" in inspect.signature(pipe.__call__).parameters:
            call.setdefault("prompt", self.prompt)
        return Session(self, pipe, call_arguments(pipe, call), target, passes)


@dataclass(frozen=True)
class Session:
    """A loaded diffusers pipeline, the arguments of its call, and how to compile it.

    `passes` are those that the user asked for, else those that suit the target.
    """

    request: Request
    pipe: Any
    arguments: dict[str, Any]
    target: Any
    passes: tuple[Pass, ...]

    def compile(self, *, observers: Sequence[Observer] = (), **options: Any) -> None:
        """Compile the pipeline; nothing runs yet. `options` of `graphopt.compile` go over what the user asked for."""
        import graphopt

        chosen = {"target": self.target, "pipeline": self.passes, **options}
        graphopt.compile(self.pipe, observers=observers, **chosen)

    def sample(self, **call: Any) -> Any:
        """What the pipeline returns for the user's request, with `call` over its arguments."""
        import torch

        generator = torch.Generator().manual_seed(self.request.seed)
        with torch.no_grad():
            return self.pipe(**{**self.arguments, "generator": generator, **call})

    def run(self, *, observers: Sequence[Observer] = (), **options: Any) -> Any:
        """Compile and sample once, saying so on stderr; on a terminal also which module and pass is at work."""
        with phase("compiling and sampling") as say:
            watching = list(observers)
            if say is not None:
                from graphopt.cli._progress import Progress

                watching.append(Progress(say, len(self.passes)))
            self.compile(observers=watching, **options)
            return self.sample()

    @property
    def title(self) -> str:
        return f"{self.request.pipeline} ({type(self.pipe).__name__}, {self.request.steps} steps)"
