"""`Watch`: relations that the first calls of a run show in values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from graphopt.capture.relations import Watch, repeated
from graphopt.ir.program import Role
from graphopt.ir.relations import Constant, Paired, Repeated, Unchanged

PATHS = ("sample", "timestep", "prompt")
ROLES: tuple[Role, ...] = ("state", "time", "condition")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (1, 4, 2, 2))


def seen(calls: Iterable[tuple[torch.Tensor, float, torch.Tensor]]) -> tuple[int, Any]:
    """After how many calls the watch answers, and what; -1 when it does not."""
    watch = Watch(PATHS, ROLES)
    for number, (state, time, prompt) in enumerate(calls, start=1):
        found = watch.see([state, torch.tensor(time), prompt])
        if found is not None:
            return number, found
    return -1, None


PROMPT = torch.ones(1, 2)


def test_nothing_in_particular() -> None:
    assert seen((noise(), 9.0 - k, PROMPT) for k in range(9)) == (3, ())
    assert seen((noise(), 9.0 - k, PROMPT) for k in range(2)) == (-1, None)


def test_equal_parts() -> None:
    assert seen((torch.cat([noise()] * 2), float(-k), PROMPT) for k in range(9)) == (3, (Repeated("sample", 2),))
    assert seen((torch.cat([noise()] * 3), float(-k), PROMPT) for k in range(9)) == (3, (Repeated("sample", 3),))


def test_parts_that_stay_the_same() -> None:
    still = noise(1, 5, 2, 2)
    assert seen((torch.cat([noise(), still], 1), float(-k), PROMPT) for k in range(9)) == (
        3, (Constant("sample", 1, 4, 9),),
    )  # fmt: skip
    assert seen((torch.cat([still[:, :1], noise(), still[:, 1:]], 1), float(-k), PROMPT) for k in range(9)) == (
        3, (Constant("sample", 1, 0, 1), Constant("sample", 1, 5, 9)),
    )  # fmt: skip
    videos = noise(1, 3, 2, 2, 2)
    assert seen((torch.cat([noise(1, 3, 4, 2, 2), videos], 2), float(-k), PROMPT) for k in range(9)) == (
        3, (Constant("sample", 2, 4, 6),),
    )  # fmt: skip


def test_tokens_have_no_features() -> None:
    """What prompts of some lengths are filled up with is no part that stays the same in a run."""
    prompts = [torch.tensor([[5, 7, 9 + k, 0, 0, 0]]) for k in range(4)]
    assert seen((prompt, 0.0, PROMPT) for prompt in prompts) == (3, ())
    watch = Watch(("tokens", "sample"), ("state", "state"))
    answers = [watch.see([prompts[0], noise()]) for _ in range(3)]
    assert answers == [None, None, (Unchanged("tokens"),)]


def test_a_part_that_changed_once_does_not_stay_the_same() -> None:
    still = [noise(1, 1, 2, 2), noise(1, 1, 2, 2)]
    assert seen((torch.cat([noise(), still[k > 1]], 1), float(-k), PROMPT) for k in range(9)) == (3, ())


def test_separate_branches() -> None:
    prompts = [torch.ones(1, 2), torch.zeros(1, 2), torch.full((1, 2), 2.0)]
    for count in (2, 3):
        states = [noise() for _ in range(5)]
        calls = [(state, float(-k), prompt) for k, state in enumerate(states) for prompt in prompts[:count]]
        assert seen(calls) == (2 * count + 1, (Paired(count),))


def test_a_watch_that_begins_within_a_group() -> None:
    prompts = [torch.ones(1, 2), torch.zeros(1, 2), torch.full((1, 2), 2.0)]
    for count in (2, 3):
        states = [noise() for _ in range(5)]
        calls = [(state, float(-k), prompt) for k, state in enumerate(states) for prompt in prompts[:count]]
        assert seen(calls[count - 1 :]) == (2 * count + 2, (Paired(count),))


def test_branches_now_and_then_are_no_groups() -> None:
    states = [noise() for _ in range(5)]
    calls = [(s, float(-k), p) for k, s in enumerate(states) for p in ([PROMPT, PROMPT * 2] if k == 1 else [PROMPT])]
    assert seen(calls)[1] == ()


def test_a_state_that_never_changes_runs_out_of_patience() -> None:
    state = noise()
    assert seen((state, float(-k), PROMPT) for k in range(20)) == (8, ())
    assert seen((state, 1.0, PROMPT) for k in range(20)) == (8, ())


def test_one_of_two_states_stays_the_same() -> None:
    watch, still = Watch(("a", "b", "t"), ("state", "state", "time")), noise()
    answers = [watch.see([noise(), still, torch.tensor(float(k))]) for k in range(3)]
    assert answers == [None, None, (Unchanged("b"),)]


def test_a_state_written_in_place_is_another() -> None:
    state = noise()

    def calls() -> Iterable[tuple[torch.Tensor, float, torch.Tensor]]:
        for k in range(9):
            state.data.mul_(0.5)
            yield state, float(-k), PROMPT

    assert seen(calls()) == (3, ())


def test_signs_of_zero_and_nan() -> None:
    zeros = torch.zeros(1, 2, 2, 2)
    assert seen((torch.cat([noise(), zeros if k % 2 else -zeros], 1), float(-k), PROMPT) for k in range(9)) == (3, ())
    nan = zeros + torch.nan
    found = seen((torch.cat([noise(), nan], 1), float(-k), PROMPT) for k in range(9))
    assert found == (3, (Constant("sample", 1, 4, 6),))


def test_zeros_say_nothing_about_equal_parts() -> None:
    for value in (torch.zeros(2, 4), torch.ones(2, 4), torch.full((2, 4), torch.nan)):
        assert repeated([value], ["x"], ["state"]) == ()
    both = torch.cat([torch.arange(4.0)[None]] * 2)
    assert repeated([both, both, torch.tensor(1.0)], ["x", "c", "t"], ["state", "condition", "time"]) == (
        Repeated("x", 2), Repeated("c", 2),
    )  # fmt: skip
    assert repeated([both], ["c"], ["condition"]) == ()
