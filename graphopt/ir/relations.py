"""What is known about the arguments of a denoiser's calls beyond their shapes, and how a Program comes to know it.

A sampler calls its denoiser on ``torch.cat([latents] * 2)`` (classifier-free guidance), or on
``torch.cat([latents, mask, image], dim=1)`` (inpainting, image-to-video, control). Those concatenations lie outside the
denoiser, but what they say about its argument can be said inside: `specialise` replaces the argument by its parts and
puts the concatenation in front of the graph. Passes then see where a value comes from, and nothing else is special.

At run time a `Boundary` compares repeated parts bit for bit, so that a relation is used only where it holds, and takes
the parts out of the arguments of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import fx

from graphopt.ir.layout import refresh
from graphopt.ir.program import Input, Program, Role, val

aten = torch.ops.aten

BRANCHES = (2, 3)  # guidance doubles the batch, or the calls; edits guided by an image and a text treble it


@dataclass(frozen=True)
class Repeated:
    """``argument = cat([part] * times)`` along the first dimension, at every call."""

    path: str
    times: int

    def __str__(self) -> str:
        return f"{self.path} is {self.times} equal parts"


@dataclass(frozen=True)
class Unchanged:
    """The argument keeps its values from call to call of a run: a condition, whatever its name says."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} stays the same"


@dataclass(frozen=True)
class Constant:
    """Entries `start` to `stop` along `dim` keep their values from call to call of a run."""

    path: str
    dim: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.path}[{':, ' * self.dim}{self.start}:{self.stop}] stays the same"


@dataclass(frozen=True)
class Paired:
    """Calls come in groups of `calls` on one state and time: guidance branches, called one after the other."""

    calls: int

    def __str__(self) -> str:
        return f"{self.calls} calls share one state and time"


Relation: TypeAlias = Repeated | Unchanged | Constant | Paired
RELATIONS: dict[str, type[Relation]] = {kind.__name__: kind for kind in (Repeated, Unchanged, Constant, Paired)}


@dataclass(frozen=True)
class Taken:
    """One input of a specialised Program: which argument it comes from, and which part of it it is."""

    argument: int  # position among the tensors of the call
    times: int = 1
    dim: int = 0
    start: int = 0
    stop: int | None = None

    def part(self, base: torch.Tensor) -> torch.Tensor:
        return base if self.stop is None else base.narrow(self.dim, self.start, self.stop - self.start)


@dataclass(frozen=True)
class Boundary:
    """How the inputs of a Program come out of the tensors of a call.

    Attributes
    ----------
    inputs : one `Taken` per input of the Program that is no weight, in order.
    """

    inputs: tuple[Taken, ...]
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        whole = all(taken.times == 1 and taken.stop is None for taken in self.inputs)
        object.__setattr__(self, "plain", whole)

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the arguments consist of the equal parts that the Program takes one of."""
        if self.plain:
            return True
        counts = {taken.argument: taken.times for taken in self.inputs}
        return all(count == 1 or repeats(tensors[argument], count) for argument, count in counts.items())

    def take(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The Program's inputs; the arguments must fit."""
        if self.plain:
            return list(tensors)
        found = []
        for taken in self.inputs:
            base = tensors[taken.argument]
            found.append(taken.part(base[: base.shape[0] // taken.times] if taken.times > 1 else base))
        return found


def repeats(tensor: torch.Tensor, times: int) -> bool:
    """Whether a tensor consists of `times` parts along its first dimension that are equal in every bit."""
    if tensor.ndim == 0 or tensor.shape[0] == 0 or tensor.shape[0] % times:
        return False
    if tensor.stride(0) == 0:
        return True  # expanded: all rows are one
    if tensor.dtype in _PLAIN and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() and not tensor.is_neg():
        # As below, without the operators, which cost more than the contents of a latent.
        data = (tensor.detach() if tensor.requires_grad else tensor).numpy().tobytes()
        return data == data[: len(data) // times] * times
    parts = bits(tensor).chunk(times)
    return all(torch.equal(parts[0], part) for part in parts[1:])


_PLAIN = frozenset({torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.bool})
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, so that NaN equals itself and 0.0 is not -0.0."""
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return tensor
    return tensor.view(_WORDS[tensor.element_size()])


def specialise(program: Program, relations: Sequence[Relation]) -> tuple[Program, Boundary]:
    """The Program with its arguments replaced by the parts that `relations` name, and the way to those parts.

    Relations about arguments that the Program does not have are left out. A part that stays the same has the role
    ``condition``, whatever the role of the whole.

    Raises
    ------
    PassError : an operation reads strides of an argument that its parts, put together, do not have.
    """
    program = program.copy()
    program.relations = tuple(relations)
    times = {known.path: known.times for known in relations if isinstance(known, Repeated)}
    unchanged = {known.path for known in relations if isinstance(known, Unchanged)}
    kept: dict[str, list[Constant]] = {}
    for relation in relations:
        if isinstance(relation, Constant):
            kept.setdefault(relation.path, []).append(relation)
    inputs: list[Input] = []
    taken: list[Taken] = []
    first = next((node for node in program.graph.nodes if node.op != "placeholder"), program.output)
    arguments = 0
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        if entry.role == "weight":
            inputs.append(entry)
            continue
        ranges, count = kept.get(entry.path, []), times.get(entry.path, 1)
        if entry.path in unchanged:
            entry, ranges = Input(entry.name, "condition", entry.path), []
        parts = [Taken(arguments, count, *cut) for cut in _cuts(val(node), ranges)]
        arguments += 1
        taken += parts
        inputs += [entry] if count == 1 and not ranges else _replace(program, node, entry, parts, ranges, first)
    program.inputs = tuple(inputs)
    return program, Boundary(tuple(taken))


def _cuts(value: Any, ranges: Sequence[Constant]) -> list[tuple[int, int, int | None]]:
    """``(dim, start, stop)`` of the parts in order, those between the ranges included."""
    if not ranges:
        return [(0, 0, None)]
    dim = ranges[0].dim
    edges = sorted({0, int(value.shape[dim]), *(edge for part in ranges for edge in (part.start, part.stop))})
    return [(dim, start, stop) for start, stop in pairwise(edges)]


def _replace(
    program: Program, node: fx.Node, entry: Input, parts: Sequence[Taken], ranges: Sequence[Constant], first: fx.Node
) -> list[Input]:
    """Placeholders for the parts of one argument, and the concatenations that give the argument back."""
    base, made, inputs = val(node), list[fx.Node](), list[Input]()
    count, stays = parts[0].times, {(part.start, part.stop) for part in ranges}
    rows = base[: base.shape[0] // count]
    for number, part in enumerate(parts):
        with program.graph.inserting_before(node):
            new = program.graph.placeholder(f"{node.name}_part{number if len(parts) > 1 else ''}")
        new.meta = {**node.meta, "val": part.part(rows)}
        made.append(new)
        role: Role = "condition" if (part.start, part.stop) in stays else entry.role
        inputs.append(Input(new.name, role, _path(entry.path, base, part)))
    readers = list(node.users)
    whole = made[0] if len(made) == 1 else program.call(aten.cat.default, made, parts[0].dim, before=first)
    if count > 1:
        whole = program.call(aten.cat.default, [whole] * count, before=first)
    for reader in readers:
        reader.replace_input_with(node, whole)
    program.graph.erase_node(node)
    if val(whole).stride() != base.stride():
        refresh(program, readers)
    return inputs


def _path(path: str, whole: torch.Tensor, part: Taken) -> str:
    """``sample[0:1, 4:9]``."""
    cuts = {0: f"0:{whole.shape[0] // part.times}"} if part.times > 1 else {}
    if part.stop is not None:
        cuts[part.dim] = f"{part.start}:{part.stop}"
    return f"{path}[{', '.join(cuts.get(dim, ':') for dim in range(max(cuts) + 1))}]"


def part_named(path: str, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of an input by its path, which may be that of a part, among arguments by theirs. Raises KeyError."""
    base, mark, cuts = path.removesuffix("]").rpartition("[")
    if path in arguments or not mark:
        return arguments[path]
    edges = [[int(edge) for edge in cut.split(":") if edge] for cut in cuts.split(", ")]
    return arguments[base][tuple(slice(*entry) if entry else slice(None) for entry in edges)]
