"""Trajectories: which sampling run a call belongs to, and where in it.

Whatever is kept from call to call without being keyed by contents belongs to a trajectory: one thread, one branch (a
request's conditions), one shape (a variant serves one), and calls whose times move on in one direction. Anything else,
be it a step back, an unknown time or another run in between, starts anew.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch

from graphopt.runtime.weights import Epoch

_MOST_TIMES = 64  # elements of a time input that are compared by value
_MOST_BRANCHES = 8  # runs of one thread at a time: guidance branches called one after the other, prompts in turn


_here = threading.local()
_runs = itertools.count(1)


@contextlib.contextmanager
def run() -> Iterator[None]:
    """One run of a sampler in the calling thread: what is called in here belongs to no other run."""
    before = getattr(_here, "run", None)
    _here.run = next(_runs)
    try:
        yield
    finally:
        _here.run = before


class Trajectory:
    """One sampling run as a thread sees it.

    A call continues the trajectory when it is in the same `run` as the call before (or both are in none), passes the
    very same condition objects (or, where a model has no conditions, times from the same schedule tensor), and its time
    is further along in the direction that the times went so far. Inside a `run` a time may also be repeated, as solvers
    of higher order do.

    Attributes
    ----------
    index : calls of this trajectory before the last one.
    started : how many trajectories began here so far.
    """

    def __init__(self) -> None:
        self.index = 0
        self.started = 0
        self._run: int | None = None
        self._conditions: list[weakref.ref[torch.Tensor]] = []
        self._schedule: list[torch.Tensor] = []  # views held, so that no other schedule can come to lie there
        self._times: list[list[float]] | None = None
        self._places: set[bytes] = set()
        self._falling: bool | None = None

    def enter(self, conditions: Sequence[torch.Tensor], times: Sequence[torch.Tensor]) -> bool:
        """Whether a call continues the trajectory; otherwise it begins a new one."""
        here = getattr(_here, "run", None)
        moves = self._further(times, stays=here is not None and here == self._run)
        if self.started and here == self._run and moves and self._same_objects(conditions, times):
            self.index += 1
            return True
        self.index, self.started, self._run = 0, self.started + 1, here
        self._falling, self._places = None, set(map(_place, times))
        self._conditions, self._schedule = [weakref.ref(tensor) for tensor in conditions], list(times)
        return False

    def _same_objects(self, conditions: Sequence[torch.Tensor], times: Sequence[torch.Tensor]) -> bool:
        if conditions:
            return len(conditions) == len(self._conditions) and all(
                new is old() for new, old in zip(conditions, self._conditions, strict=True)
            )
        return bool(times) and all(
            _schedule(new) == _schedule(old) != 0 for new, old in zip(times, self._schedule, strict=True)
        )

    def _further(self, times: Sequence[torch.Tensor], *, stays: bool) -> bool:
        """Whether the times moved on, in the direction of the moves before, or stay where they may; remembers them."""
        if not times or not all(time.is_cpu and time.numel() <= _MOST_TIMES for time in times):
            # Reading a time would stop the device: a place in memory that this trajectory has not seen yet.
            self._times, places = None, list(map(_place, times))
            new = bool(places) and not self._places.issuperset(places)
            self._places.update(places)
            return new
        before, self._times = self._times, list(map(_numbers, times))
        if before is None or list(map(len, before)) != list(map(len, self._times)):
            return False
        was, now = (list(itertools.chain.from_iterable(numbers)) for numbers in (before, self._times))
        falls, rises = all(map(operator.le, now, was)), all(map(operator.ge, now, was))
        if falls and rises and stays:
            return True
        if falls == rises or (self._falling is not None and falls != self._falling):
            return False  # no move, a mixed one, or a turn
        self._falling = falls
        return True


class Trajectories:
    """The trajectories of one thread in one variant, one per branch, the least recently used forgotten.

    Guidance branches that are called one after the other, and prompts sampled in turn, each go on where they were.

    Attributes
    ----------
    current : the trajectory of the last call.
    """

    def __init__(self) -> None:
        self.current = Trajectory()
        self._forgotten = 0
        self._epoch = Epoch()
        self._known: OrderedDict[tuple[int, ...], Trajectory] = OrderedDict()

    def step(
        self, weights: Sequence[torch.Tensor], conditions: Sequence[torch.Tensor], times: Sequence[torch.Tensor]
    ) -> bytes:
        """Enter a call; the epoch of the weights for it, digested anew where a trajectory begins."""
        branch = tuple(map(id, conditions))  # an id may be given again: the trajectory compares the objects
        found = self._known.pop(branch, None)
        if found is None:
            if len(self._known) >= _MOST_BRANCHES:
                self._forgotten += self._known.popitem(last=False)[1].started
            found = Trajectory()
        self._known[branch] = self.current = found
        return self._epoch.of(weights, fresh=not found.enter(conditions, times))

    @property
    def places(self) -> object:
        """See `Epoch`: of the weights of the last call."""
        return self._epoch.places

    @property
    def started(self) -> int:
        """How many trajectories began so far."""
        return self._forgotten + sum(entry.started for entry in self._known.values())


def _numbers(time: torch.Tensor) -> list[float]:
    """The elements of a time."""
    if time.ndim > 1:
        time = time.reshape(-1)
    return time.tolist() if time.ndim else [time.item()]


def _place(time: torch.Tensor) -> bytes:
    return str((time.data_ptr(), time.shape, 0 if time.is_inference() else time._version)).encode()


def _schedule(time: torch.Tensor) -> int:
    """The address of the table a timestep is an entry of; 0 for a tensor of its own."""
    storage = time.untyped_storage()
    return storage.data_ptr() if storage.nbytes() > time.element_size() else 0
