"""Which relations hold between the arguments of a sampler's calls, seen in the first calls of a run.

What is seen in a few calls may be chance. A `Repeated` argument is compared at every call; a `Constant` part is a
condition, kept under its contents like any other; what `Paired` calls share is kept under the contents of their state.
So a relation that does not hold on costs speed, never correctness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from graphopt.ir.program import Role
from graphopt.ir.relations import BRANCHES, Constant, Paired, Relation, Repeated, Unchanged, bits, repeats

# Where features lie, by rank: of vectors, of tokens, of images, of videos with channels or frames first. Whole numbers
# have none: they name tokens or classes, and what a prompt is filled up with says nothing about the next one.
_FEATURES: dict[int, tuple[int, ...]] = {2: (1,), 3: (2,), 4: (1,), 5: (1, 2)}


def repeated(tensors: Sequence[torch.Tensor], paths: Sequence[str], roles: Sequence[Role]) -> tuple[Repeated, ...]:
    """The arguments of one call that consist of as many equal parts as its state does.

    A state of one value throughout (zeros, as in example calls) says nothing.
    """
    state = [tensor for tensor, role in zip(tensors, roles, strict=True) if role == "state" and tensor.ndim > 1]
    for times in BRANCHES:
        if any(repeats(tensor, times) and not _uniform(tensor) for tensor in state):
            return tuple(
                Repeated(path, times) for tensor, path in zip(tensors, paths, strict=True) if repeats(tensor, times)
            )
    return ()


@dataclass
class Watch:
    """What stays the same from call to call of one variant in one thread.

    `see` looks at one call after the other and answers with the relations once two moves to a new state were seen (or
    three, where groups of calls on one state are of other sizes: the first may have begun before), or after `patience`
    calls; None before that. State and times are copied for as long as it takes, not longer.
    """

    paths: Sequence[str]
    roles: Sequence[Role]
    patience: int = 8
    _last: list[torch.Tensor] = field(default_factory=list)
    _same: dict[int, torch.Tensor | None] = field(default_factory=dict)  # state → entries that never changed
    _whole: set[int] = field(default_factory=set)  # states of whole numbers
    _moves: int = 0
    _groups: list[int] = field(default_factory=lambda: [1])  # calls on each state so far
    _calls: int = 0

    def see(self, tensors: Sequence[torch.Tensor]) -> tuple[Relation, ...] | None:
        """Compare a call with the one before."""
        self._calls += 1
        if self._last:
            self._compare(tensors)
        complete = self._groups[:-1]
        if self._moves >= 3 or (self._moves == 2 and complete[0] == complete[1]):
            self._last = []
            return (*repeated(tensors, self.paths, self.roles), *self._found())
        if self._calls >= self.patience:
            self._last = []
            return ()
        # A condition that is written to in between looks the same, which costs no more than a relation not found.
        self._last = [t if role == "condition" else t.clone() for t, role in zip(tensors, self.roles, strict=True)]
        return None

    def _compare(self, tensors: Sequence[torch.Tensor]) -> None:
        changed = [not _equal(new, old) for new, old in zip(tensors, self._last, strict=True)]
        by_role = {role: {c for c, r in zip(changed, self.roles, strict=True) if r == role} for role in self.roles}
        if True not in by_role.get("state", set()) and True not in by_role.get("time", set()):
            self._groups[-1] += True in by_role.get("condition", set())
            return
        if True not in by_role.get("state", set()):
            return  # another time alone: no step of a sampler
        self._moves += 1
        self._groups.append(1)
        for position, (new, old, role) in enumerate(zip(tensors, self._last, self.roles, strict=True)):
            if role != "state":
                continue
            if not (new.is_floating_point() or new.is_complex()):
                self._whole.add(position)
            same = bits(new) == bits(old)
            before = self._same.get(position)
            self._same[position] = same if before is None else same & before

    def _found(self) -> Iterator[Relation]:
        for position, same in self._same.items():
            assert same is not None
            if bool(same.all()):
                yield Unchanged(self.paths[position])
                continue
            for dim in _FEATURES.get(same.ndim, ()) if position not in self._whole else ():
                ranges = list(_runs(same, dim))
                if ranges:
                    yield from (Constant(self.paths[position], dim, *found) for found in ranges)
                    break
        first, *others = self._groups[:-1]
        if len(set(others)) == 1 and first <= others[0] > 1:
            yield Paired(others[0])


def _runs(same: torch.Tensor, dim: int) -> Iterator[tuple[int, int]]:
    """Ranges of indices along `dim` whose entries never changed."""
    others = [d for d in range(same.ndim) if d != dim]
    flags = [*(same.all(dim=others) if others else same).tolist(), False]
    start = None
    for index, flag in enumerate(flags):
        if flag and start is None:
            start = index
        elif not flag and start is not None:
            yield start, index
            start = None


def _uniform(tensor: torch.Tensor) -> bool:
    flat = bits(tensor).flatten()
    return bool((flat == flat[0]).all())


def _equal(new: torch.Tensor, old: torch.Tensor) -> bool:
    return new.shape == old.shape and torch.equal(bits(new), bits(old))
