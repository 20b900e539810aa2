"""Joules of work that is counted, not run: what it takes at the limits of a core."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphopt.energy.estimate import EstimateMeter

# One core of the processor whose specification `DEFAULT_WATTS` comes from, AMD EPYC 9554: 3.1 GHz × 32 float32 FLOPs a
# cycle, and 460.8 GB/s of memory shared by 64 cores. Their ratio is near the 10 FLOPs per byte that passes price with.
FLOPS_PER_SECOND = 99.2e9
BYTES_PER_SECOND = 7.2e9


@dataclass(frozen=True)
class WorkEstimate:
    """A roofline (Williams et al., 2009) times watts per core: an estimate, never more.

    An operation takes as long as its FLOPs or its bytes do, whichever is longer, and a core that waits for memory draws
    as much as one that computes. It sees neither caches nor what a kernel really reaches.

    Attributes
    ----------
    watts : W per busy core, as `EstimateMeter` has it (GRAPHOPT_WATTS_PER_CORE, else 6).
    flops_per_second, bytes_per_second : what one core does at most.
    """

    watts: float = field(default_factory=lambda: EstimateMeter().watts)
    flops_per_second: float = FLOPS_PER_SECOND
    bytes_per_second: float = BYTES_PER_SECOND

    def joules(self, flops: float, bytes: float) -> float:
        """Of one operation, in J."""
        return self.watts * max(flops / self.flops_per_second, bytes / self.bytes_per_second)

    @property
    def source(self) -> str:
        """What is computed, and from what, in words."""
        return (
            f"estimate: {self.watts:g} W per core × the longer of FLOPs at {self.flops_per_second / 1e9:g} G/s "
            f"and bytes at {self.bytes_per_second / 1e9:g} GB/s"
        )
