"""One short sampling run of a compiled pipeline: what all verbs that look into the compiler have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli._app import phase
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.ir.rewrite import Observer, Pass

WHICH = "A bundled name, a folder, a hub id, or module:factory."
Name = Annotated[str, typer.Argument(metavar="PIPELINE", help=WHICH)]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", help="An argument of the pipeline's call, key=value with a JSON value; repeat for more."),
]
Evict = Annotated[bool, typer.Option("--evict", help="Move weights that no step reads from memory to a file.")]
Prompt = Annotated[str, typer.Option(help="The prompt of the sampling run.")]
Steps = Annotated[int, typer.Option(min=1, help="Sampling steps of the run.")]
Seed = Annotated[int, typer.Option(help="Of the run's noise.")]
Pixels = Annotated[int | None, typer.Option(min=1, help="In pixels; else the pipeline's own.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
TargetName = Annotated[
    str,
    typer.Option("--target", help="eager, inductor, tvm, a plug-in's; the fastest of several: tvm,eager; or auto."),
]
Watched = Annotated[
    str,
    typer.Option("--target", help="eager, inductor, tvm, or a plug-in's; auto is eager here: no race with the module."),
]
PassPipeline = Annotated[str | None, typer.Option("--pass-pipeline", help="Passes, such as exact or none.")]
OnePass = Annotated[
    list[str] | None,
    typer.Option("--pass", help="A pass with options, name{option=value}, for the one in the pipeline or after it."),
]
PROMPT, STEPS, SEED = "a red apple", 4, 0
TARGET = "auto"  # of what makes images, and reports on that
WATCHED = "eager"  # of what looks at programs: nothing that is shown depends on which code was faster today


def watched(target: str) -> str:
    """The target that builds what is looked at."""
    return WATCHED if target == "auto" else target


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

    def order(self) -> tuple[Pass, ...]:
        """The passes that the user asked for, else those that suit the target."""
        from graphopt import pipelines
        from graphopt.cli._options import passes_named

        passes = passes_named(self.pass_pipeline, self.passes, self.suited())
        return pipelines.PIPELINES[self.suited()] if passes is None else passes

    def suited(self) -> str:
        """The name of the pipeline that suits the target."""
        from graphopt.cli._options import suits, target_named

        return suits(target_named(self.target))

    def options(self) -> list[str]:
        """What differs from the defaults, as the command line has it."""
        found = list[str]()
        for entry in fields(self)[1:]:
            value, name = getattr(self, entry.name), {"passes": "pass"}.get(entry.name, entry.name.replace("_", "-"))
            if entry.name == "target":
                value = None if watched(value) == WATCHED else value
            for one in value if isinstance(value, tuple) else [value] * (value not in (None, entry.default)):
                found += [f"--{name}", str(one)]
        return found

    def open(self) -> Session:
        """Load the pipeline."""
        import inspect

        from graphopt.cli._load import call_arguments, load
        from graphopt.cli._options import target_named

        target, passes = target_named(self.target), self.order()
        pipe = load(self.pipeline, dtype=self.dtype)
        call: dict[str, Any] = {"num_inference_steps": self.steps, "height": self.height, "width": self.width}
        call |= call_values(list(self.arg))
        if "prompt" in inspect.signature(pipe.__call__).parameters:
            call.setdefault("prompt", self.prompt)
        return Session(self, pipe, call_arguments(pipe, call), target, passes)


@dataclass(frozen=True)
class Session:
    """A loaded diffusers pipeline, the arguments of its call, and how to compile it.

    `passes` are those that the user asked for, else those that suit the target (of several: the first).
    """

    request: Request
    pipe: Any
    arguments: dict[str, Any]
    target: Any
    passes: tuple[Pass, ...]

    def compile(self, *, observers: Sequence[Observer] = (), **options: Any) -> None:
        """Compile the pipeline; nothing runs yet. `options` of `graphopt.compile` go over what the user asked for."""
        import graphopt

        asked = self.request.pass_pipeline is not None or self.request.passes
        chosen = {"target": self.target, "pipeline": self.passes if asked else None, **options}
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

                watching.append(Progress(say))
            self.compile(observers=watching, **options)
            return self.sample()

    @property
    def title(self) -> str:
        return f"{self.request.pipeline} ({type(self.pipe).__name__}, {self.request.steps} steps)"


def call_values(texts: list[str] | None) -> dict[str, Any]:
    """``key=value`` arguments; a value that is not JSON is taken as text."""
    found: dict[str, Any] = {}
    for text in texts or []:
        key, mark, value = text.partition("=")
        if not mark or not key.strip().isidentifier():
            raise UsageError(f"'{text}' is not key=value", where="--arg", hint="--arg 'class_labels=[207]'")
        try:
            found[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            if value[:1] in ("[", "{", '"'):
                raise UsageError(f"'{value}' is not valid JSON", where=f"--arg {key}") from None
            found[key.strip()] = value
    return found
