"""What pointers of kernels show to, and launches: all that a call needs to know of kernels. Imports no TVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import fx
from torch.nn.functional import pad

from ...ir.program import val


@dataclass(frozen=True)
class Panels:
    """A weight packed in panels of so many outputs: the columns of a linear layer, the channels of a convolution.

    Attributes
    ----------
    group : terms of a sum that lie together, of weights of narrow numbers.
    """

    weight: fx.Node
    size: int
    group: int = field(default=1, kw_only=True)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight's numbers in the order in which the kernel reads them."""
        return packed(weight, self.size, self.group)

    @property
    def numbers(self) -> int:
        """Of the weight, that are packed."""
        return int(val(self.weight).numel())


@dataclass(frozen=True)
class Turned(Panels):
    """The part of a transposed convolution's weight that some outputs read: inputs and outputs changed places.

    Attributes
    ----------
    rows, columns : of the filter, those that are read.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        return packed(weight.transpose(0, 1)[:, :, list(self.rows)][..., list(self.columns)], self.size, self.group)

    @property
    def numbers(self) -> int:
        channels, outputs, *_ = val(self.weight).shape
        return int(channels * outputs) * len(self.rows) * len(self.columns)


@dataclass(frozen=True)
class Taps(Panels):
    """A filter, tap by tap: [N / size rounded up, taps, K · size rounded up to whole vectors], for N outputs, K inputs.

    Attributes
    ----------
    lanes : of a vector.
    """

    lanes: int

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        taps = _panels(weight.flatten(2), self.size).permute(0, 3, 2, 1).flatten(2)
        return pad(taps, (0, -taps.shape[2] % self.lanes)).contiguous()


@dataclass(frozen=True)
class Scratch:
    """Memory in between two kernels, by number."""

    number: int
    floats: int


Place: TypeAlias = fx.Node | Panels | Scratch


@dataclass(frozen=True)
class Launch:
    """A kernel by name, and what its pointers show to.

    Attributes
    ----------
    computes : nodes whose values the kernel computes, or, where several kernels do so together, the last of them.
    """

    kernel: str
    pointers: tuple[Place, ...]
    computes: tuple[fx.Node, ...] = ()

    @property
    def name(self) -> str:
        """The kernel's name as users see it."""
        return self.kernel.removeprefix("graphopt_")


def packed(weight: torch.Tensor, columns: int, group: int = 1) -> torch.Tensor:
    """A weight, [N, K, *taps], in panels, [N / columns, K / group · taps, columns, group].

    Quotients are rounded up, and there are zeros where there is none. Panels of single terms have no last dimension.
    """
    if group > 1:
        weight = pad(weight.reshape(*weight.shape[:2], -1), (0, 0, 0, -weight.shape[1] % group))
        weight = weight.unflatten(1, (-1, group)).transpose(2, 3)
    found = _panels(weight.flatten(1), columns)
    panels = (found if group == 1 else found.unflatten(2, (-1, group))).transpose(1, 2)
    return panels.clone(memory_format=torch.contiguous_format)


def _panels(weight: torch.Tensor, size: int) -> torch.Tensor:
    """[N / size rounded up, size, *rest] of [N, *rest]: a view, or a copy with zeros where there is none."""
    count, rest = -(-weight.shape[0] // size), weight.shape[1:]
    if count * size != weight.shape[0]:
        whole = weight.new_empty(count * size, *rest)
        whole[: weight.shape[0]] = weight
        whole[weight.shape[0] :] = 0
        weight = whole
    return weight.reshape(count, size, *rest)


def size_of(place: Place) -> int:
    """Bytes that a place takes."""
    if isinstance(place, Panels):
        return int(val(place.weight).element_size()) * place.numbers
    if isinstance(place, Scratch):
        return 4 * place.floats
    value = val(place)
    return int(value.element_size()) * spanned(value.shape, value.stride())


def spanned(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Numbers from the first to the last of a tensor that is not empty."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
