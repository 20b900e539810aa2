"""What pointers of kernels show to, and launches: all that a call needs to know of kernels. Imports no TVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
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

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        """Of what a weight of this shape, [N, K, *taps], is packed to.

        [N / size, K / group · taps, size, group], quotients rounded up. Single terms have no last dimension.
        """
        outputs, inner, *taps = weight
        found = -(-outputs // self.size), -(-inner // self.group) * prod(taps), self.size
        return found if self.group == 1 else (*found, self.group)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight's numbers in the order in which the kernel reads them, and zeros where there is none.

        Written once, to where they stay: pages of new memory cost more than the copy.
        """
        made = weight.new_empty(self.shape(weight.shape))
        self._write(weight, made)
        return made

    def _write(self, weight: torch.Tensor, made: torch.Tensor) -> None:
        if self.group > 1:
            weight = pad(weight.reshape(*weight.shape[:2], -1), (0, 0, 0, -weight.shape[1] % self.group))
            weight = weight.unflatten(1, (-1, self.group)).transpose(2, 3).flatten(1, 2)
        else:
            weight = weight.flatten(1)
        _deal(weight, made.transpose(1, 2))

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

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        channels, outputs, *_ = weight
        return super().shape((outputs, channels, len(self.rows), len(self.columns)))

    def _write(self, weight: torch.Tensor, made: torch.Tensor) -> None:
        super()._write(weight.transpose(0, 1)[:, :, list(self.rows)][..., list(self.columns)], made)

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

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        outputs, inner, *taps = weight
        return -(-outputs // self.size), prod(taps), -(-inner * self.size // self.lanes) * self.lanes

    def _write(self, weight: torch.Tensor, made: torch.Tensor) -> None:
        read = weight.shape[1] * self.size
        made[..., read:] = 0
        _deal(weight.flatten(2), made[..., :read].unflatten(2, (-1, self.size)).permute(0, 3, 2, 1))


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


def _deal(weight: torch.Tensor, panels: torch.Tensor) -> None:
    """Write [N, *rest] to [N / size rounded up, size, *rest], with zeros where there is none."""
    whole, left = divmod(weight.shape[0], panels.shape[1])
    panels[:whole] = weight[: weight.shape[0] - left].unflatten(0, (whole, panels.shape[1]))
    if left:
        panels[whole, :left] = weight[weight.shape[0] - left :]
        panels[whole, left:] = 0


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
