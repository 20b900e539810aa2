"""What a target is: it turns the graph of one stage into a callable, and says whether it can run here at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import torch

from ..ir.stages import Part

Kernel: TypeAlias = Callable[..., tuple[Any, ...]]


@runtime_checkable
class KeepsWeights(Protocol):
    """A kernel that keeps what it makes of weights, in another order for example.

    A tensor's address and version tell it of writes that torch knows of. Of others (``.data +=``, ``.numpy()``) only
    the runtime knows, which digests the contents of all weights where a trajectory begins.
    """

    def weights_are(self, epoch: object, places: object = None) -> None:
        """Called before a call: as long as epochs are equal, so are the contents of weights.

        Parameters
        ----------
        places : as long as they are equal, the model's weights are the same tensors, in the same memory, of the same
            strides, and torch knows of no write to them. None where that is not known.
        """


@runtime_checkable
class PacksWeights(KeepsWeights, Protocol):
    """A kernel that reads some of its arguments only to pack them: between changes of weights it needs no originals."""

    def packs(self) -> frozenset[int]:
        """Positions of the arguments that it reads for nothing else."""


class Target(ABC):
    """Part → callable. Stateless; subclasses are registered in `graphopt.targets.TARGETS` or by entry point.

    A kernel takes the values named by ``part.reads`` in order and returns those named by ``part.gives`` (for the step:
    the Program's results) as a tuple. It must not write into its arguments, nor keep them; what it makes of weights it
    may keep as a `KeepsWeights`.
    """

    name: ClassVar[str]
    pipeline: ClassVar[str] = "exact"  # the named pipeline that suits it

    def unavailable(self, device: torch.device) -> str | None:
        """Why this target cannot run on `device` here, or None when it can."""
        return None

    @abstractmethod
    def build(self, part: Part, examples: Sequence[Any]) -> Kernel:
        """Code for one stage.

        Parameters
        ----------
        examples : values for ``part.reads``, of the shapes, dtypes, devices and strides that the kernel will be given.
            `graphopt.compile` gives `graphopt.ir.verify.Examples`, which makes each anew whenever it is asked for.

        Raises
        ------
        TargetError : the part cannot be built; the caller falls back to the eager target and reports it.
        """
