"""Runs beside each other, in turn and broken off: each gives what the original gives, bit for bit.

Modules are compiled so that all relations between calls are relied on and all that can be kept is kept.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import graphopt
from graphopt.ir.relations import Constant, Paired, Repeated, Unchanged
from graphopt.runtime.trajectory import run
from tests.soundness import tiny
from tests.soundness.tiny import Small, embeddings

TIMES = (900.0, 700.0, 500.0, 300.0, 100.0)


def latents(seed: int = 0, batch: int = 1, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def guided(
    model: Any, x: torch.Tensor, prompts: torch.Tensor, times: Sequence[float] = TIMES, scale: float = 3.0
) -> Iterator[torch.Tensor]:
    """A sampler that calls the model on a guidance batch; yields after each step."""
    for time in torch.tensor(times):
        plain, conditional = model(torch.cat([x] * 2), time, prompts).chunk(2)
        x = x - 0.1 * (plain + scale * (conditional - plain))
        yield x


def separate(
    model: Any, x: torch.Tensor, branches: Sequence[torch.Tensor], times: Sequence[float] = TIMES,
    order: Callable[[int], Sequence[int]] = lambda step: (0, 1),
) -> Iterator[torch.Tensor]:  # fmt: skip
    """A sampler that calls the model once for each branch, in the order that `order` gives for a step."""
    for step, time in enumerate(torch.tensor(times)):
        found = {branch: model(x, time.expand(1), branches[branch]) for branch in order(step)}
        plain = found.get(0, torch.zeros_like(x))
        x = x - 0.1 * (plain + 3 * (found.get(1, plain) - plain))
        yield x


def painted(
    model: Any, x: torch.Tensor, prompts: torch.Tensor, rest: torch.Tensor, times: Sequence[float] = TIMES,
    edit: Callable[[int, torch.Tensor], torch.Tensor] = lambda step, rest: rest,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """A sampler that joins further channels to the state at each step, as inpainting does."""
    for step, time in enumerate(torch.tensor(times)):
        joined = torch.cat([torch.cat([x] * 2), torch.cat([rest] * 2)], dim=1)
        plain, conditional = model(joined, time, prompts).chunk(2)
        x, rest = x - 0.1 * (plain + 3.0 * (conditional - plain)), edit(step, rest)
        yield x


def last(steps: Iterator[torch.Tensor]) -> torch.Tensor:
    return list(steps)[-1]


def relations(model: Any) -> set[Any]:
    return {entry for variant in model._compiled_call_impl.variants for entry in variant.relations}


def pair(channels: int = 4) -> tuple[Any, Any]:
    return Small(channels), tiny.compiled(Small(channels))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def both(models: tuple[Any, Any], work: Callable[[Any], Any]) -> None:
    """The same work with each model, twice over."""
    for _ in range(2):
        for theirs, ours in zip(*(_flat(work(model)) for model in models), strict=True):
            assert torch.equal(ours, theirs)


def _flat(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else [t for entry in results for t in _flat(entry)]


# -- what is relied on -----------------------------------------------------------------------------------------------


def test_relations_are_found_and_counted() -> None:
    models = pair()
    both(models, lambda model: last(guided(model, latents(), embeddings(1, 2))))
    assert relations(models[1]) == {Repeated("sample", 2)}
    models = pair()
    both(models, lambda model: last(separate(model, latents(), [embeddings(1), embeddings(2)])))
    assert relations(models[1]) == {Paired(2)}
    common = models[1]._compiled_call_impl.variants[0].memos["common"]
    before = common.hits, common.misses
    last(separate(models[1], latents(8), [embeddings(1), embeddings(2)]))
    assert (common.hits - before[0], common.misses - before[1]) == (len(TIMES), len(TIMES))
    models = pair(9)
    both(models, lambda model: last(painted(model, latents(), embeddings(1, 2), latents(3, channels=5))))
    assert relations(models[1]) == {Repeated("sample", 2), Constant("sample", 1, 4, 9)}


def test_an_unchanged_state() -> None:
    models = pair()

    def work(model: Any) -> Any:
        x, still = latents(), latents(5)
        results = []
        for value in (still, latents(6)):
            for time, prompt in zip(TIMES, range(5), strict=True):
                results.append(model(value, torch.tensor(time), embeddings(prompt)))
        return [*results, last(guided(model, x, embeddings(1, 2)))]

    both(models, work)


class Two(torch.nn.Module):
    """Two states, one of which stays the same in a run."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small(4)

    def forward(self, sample: Any, other: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return self.inner(sample, timestep, encoder_hidden_states) + self.inner.enter(other)[:, :4].tanh()


def test_a_state_that_stays_the_same_for_a_run() -> None:
    models: tuple[Any, Any] = Two().eval(), tiny.compiled(Two().eval(), roles={"other": "state"})

    def work(model: Any) -> Any:
        results = []
        for seed in (3, 4):
            x, other = latents(), latents(seed)
            for step, time in enumerate(torch.tensor(TIMES)):
                if seed == 4 and step == 2:
                    other.mul_(2)
                if seed == 4 and step == 3:
                    other.numpy()[:] += 1
                x = x - 0.1 * model(x, other, time, embeddings(1))
                results.append(x)
        return results

    both(models, work)
    assert any(isinstance(entry, Unchanged) for entry in relations(models[1]))


# -- equal halves ----------------------------------------------------------------------------------------------------


def _zeros(sign: float) -> torch.Tensor:
    return torch.full((1, 4, 8, 8), 0.0).copysign(torch.tensor(sign))


@pytest.mark.parametrize(
    "halves",
    [
        (latents(), latents(1)),
        (latents(), latents().index_fill(3, torch.tensor([7]), 9.0)),
        (_zeros(1.0), _zeros(-1.0)),
        (torch.full((1, 4, 8, 8), torch.nan), torch.full((1, 4, 8, 8), torch.nan)),
        (torch.full((1, 4, 8, 8), torch.nan), -torch.full((1, 4, 8, 8), torch.nan)),
    ],
    ids=["others", "one column", "signs of zero", "not a number", "signs of nan"],
)
def test_halves_that_are_equal_at_first(halves: tuple[torch.Tensor, torch.Tensor]) -> None:
    models, prompts = pair(), embeddings(1, 2)
    for batch in (torch.cat([latents()] * 2), torch.cat(halves), torch.cat([latents(7)] * 2), torch.cat(halves)):
        theirs, ours = (model(batch, torch.tensor(500.0), prompts) for model in models)
        assert torch.equal(theirs.view(torch.int32), ours.view(torch.int32))
    assert Repeated("sample", 2) in relations(models[1])


def test_batches_of_several_prompts_and_of_identical_images() -> None:
    def work(model: Any) -> Any:
        two = torch.cat([latents(1), latents(2)])
        results = [last(guided(model, two, embeddings(1, 4))), last(guided(model, latents(), embeddings(1, 2)))]
        for batch in (two, torch.cat([latents()] * 2), two.flip(0), latents().expand(2, -1, -1, -1)):
            results += [model(batch, torch.tensor(time), embeddings(3, 2)) for time in TIMES]
        return results

    both(pair(), work)


def test_three_branches() -> None:
    def work(model: Any) -> Any:
        x, results = latents(), []
        for time in torch.tensor(TIMES):
            batch = torch.cat([torch.cat([x] * 3), torch.cat([latents(5), latents(5), torch.zeros_like(x)])], 1)
            x = x - 0.1 * model(batch, time, embeddings(1, 3)).mean(0, keepdim=True)
            results.append(x)
        return results

    both(pair(8), work)


# -- trajectories in turn --------------------------------------------------------------------------------------------


def interleaved(runs: Sequence[Iterator[torch.Tensor]], between: Callable[[int], None] = lambda step: None) -> Any:
    results: list[torch.Tensor] = []
    for step, entries in enumerate(zip(*runs, strict=True)):
        results += entries
        between(step)
    return results


@pytest.mark.parametrize("prompts", [(1, 1), (1, 2), (1, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("times", ["same", "other", "reversed"])
@pytest.mark.parametrize("sampler", [guided, separate, painted])
def test_interleaved(sampler: Any, prompts: tuple[int, ...], times: str) -> None:
    schedules = {
        "same": itertools.repeat(TIMES), "other": ([t + 7 * k for t in TIMES] for k in itertools.count()),
        "reversed": itertools.cycle([TIMES, TIMES[::-1]]),
    }[times]  # fmt: skip
    plan = [(seed, prompt, list(next(iter(schedules)))) for seed, prompt in enumerate(prompts)]
    same = embeddings(1)

    def work(model: Any) -> Any:
        runs = []
        for seed, prompt, schedule in plan:
            condition = same if prompt == 1 else embeddings(prompt)
            arguments: list[Any] = [model, latents(seed)]
            arguments += (
                [[condition, embeddings(9)]] if sampler is separate else [torch.cat([embeddings(9), condition])]
            )
            arguments += [latents(seed + 50, channels=5)] if sampler is painted else []
            runs.append(sampler(*arguments, times=schedule))
        return interleaved(runs)

    both(pair(9 if sampler is painted else 4), work)


@pytest.mark.parametrize("sampler", [guided, separate])
@pytest.mark.parametrize("inside", [False, True])
def test_interleaved_with_weights_edited_in_between(sampler: Any, inside: bool) -> None:
    models = pair()
    kept = copy.deepcopy(models[0].state_dict())

    def work(model: Any) -> Any:
        model.load_state_dict(kept)

        def edit(step: int) -> None:
            if step == 0:
                model.tokens.weight.mul_(1.5)
            elif step == 1:
                model.enter.weight.data += 0.25
            elif step == 2:
                model.time.weight.data = model.time.weight.data * 2
            else:
                model.tokens.bias.numpy()[:] += 0.5

        conditions = [embeddings(1), embeddings(2)] if sampler is separate else embeddings(1, 2)
        runs = [sampler(model, latents(seed), conditions) for seed in (1, 2)]
        if inside:
            with run():
                return interleaved(runs, edit)
        return interleaved(runs, edit)

    both(models, work)


# -- separate branches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        lambda step: (0, 1) if step < 2 else (1, 0),
        lambda step: (0, 1) if step % 2 else (1,),
        lambda step: (1, 0) if step in (0, 1, 4) else (1,),
        lambda step: (0, 1, 0),
    ],
    ids=["swapped", "every other", "only at both ends", "twice"],
)
def test_orders_of_separate_branches(order: Any) -> None:
    branches = [embeddings(1), embeddings(2)]
    both(pair(), lambda model: [last(separate(model, latents(), branches, order=order)) for _ in range(3)])


def test_separate_branches_with_other_numbers_of_tokens() -> None:
    branches = [embeddings(1)[:, :3], embeddings(2)]
    models = pair()
    both(models, lambda model: [last(separate(model, latents(seed), branches)) for seed in (1, 2)])


def test_a_state_written_to_between_separate_branches() -> None:
    def work(model: Any) -> Any:
        x, results, branches = latents(), [], [embeddings(1), embeddings(2)]
        for step, time in enumerate(torch.tensor(TIMES * 2)):
            found = []
            for branch in branches:
                found.append(model(x, time.expand(1), branch))
                if step == 4:
                    x.data.mul_(0.5)
                if step == 5:
                    x.numpy()[:] += 0.25
                if step == 6:
                    x[0, 0].zero_()
            x = x - 0.1 * found[1]
            results += [x.clone(), *found]
        return results

    models = pair()
    both(models, work)
    assert Paired(2) in relations(models[1])


def test_what_a_branch_returns_may_be_written_to() -> None:
    def work(model: Any) -> Any:
        x, branches, results = latents(), [embeddings(1), embeddings(2)], []
        for time in torch.tensor(TIMES):
            plain = model(x, time.expand(1), branches[0])
            plain.mul_(2)
            conditional = model(x, time.expand(1), branches[1])
            x = x.sub_(conditional.sub_(plain).mul_(0.1))
            results.append(x.clone())
        return results

    both(pair(), work)


# -- further channels ------------------------------------------------------------------------------------------------


def _edit_by(change: Callable[[torch.Tensor], Any], at: Sequence[int]) -> Callable[[int, torch.Tensor], torch.Tensor]:
    def edit(step: int, rest: torch.Tensor) -> torch.Tensor:
        if step in at:
            changed = change(rest)
            return changed if changed is not None else rest
        return rest

    return edit


def _by_numpy(rest: torch.Tensor) -> None:
    rest.numpy()[0, 0] += 1


@pytest.mark.parametrize("at", [(2,), (1, 3), (1, 2, 3), (4,)])
@pytest.mark.parametrize(
    "change",
    [lambda rest: rest * 2, lambda rest: rest.mul_(2), lambda rest: rest.data.add_(1), _by_numpy],
    ids=["another", "in place", "data", "numpy"],
)
def test_channels_that_change_in_the_middle(change: Any, at: Sequence[int]) -> None:
    models = pair(9)

    def work(model: Any) -> Any:
        quiet = last(painted(model, latents(), embeddings(1, 2), latents(3, channels=5)))
        edit = _edit_by(change, at)
        edited = list(painted(model, latents(), embeddings(1, 2), latents(3, channels=5), edit=edit))
        others = [last(painted(model, latents(), embeddings(1, 2), latents(s, channels=5))) for s in (3, 4)]
        return [quiet, *edited, *others]

    both(models, work)


def test_channels_that_keep_changing_are_given_up() -> None:
    models = pair(9)
    edit = _edit_by(lambda rest: rest + 1, (0, 1, 2, 3))
    both(models, lambda model: last(painted(model, latents(), embeddings(1, 2), latents(3, channels=5))))
    both(models, lambda model: last(painted(model, latents(), embeddings(1, 2), latents(3, channels=5), edit=edit)))
    refuted = [variant.refuted for variant in models[1]._compiled_call_impl.variants]
    assert "changed 2 times in the middle of a run" in refuted
    kept = [len(memo) for v in models[1]._compiled_call_impl.variants if v.refuted for memo in v.memos.values()]
    assert kept and not any(kept)
    count = len(refuted)
    both(models, lambda model: last(painted(model, latents(), embeddings(1, 2), latents(3, channels=5), edit=edit)))
    assert len(models[1]._compiled_call_impl.variants) == count


def test_channels_of_runs_in_turn_are_not_given_up() -> None:
    models = pair(9)
    both(models, lambda model: last(painted(model, latents(), embeddings(1, 2), latents(3, channels=5))))

    def work(model: Any) -> Any:
        conditions = [embeddings(1, 2), embeddings(5, 2)]
        return interleaved(
            [painted(model, latents(), conditions[k], latents(k, channels=5)) for k in (0, 1)], lambda step: None
        )

    both(models, work)
    assert not any(variant.refuted for variant in models[1]._compiled_call_impl.variants)


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [guided, separate, painted])
def test_threads_on_one_module(sampler: Any) -> None:
    models = pair(9 if sampler is painted else 4)

    def one(model: Any, number: int) -> Any:
        conditions = [embeddings(number), embeddings(9)] if sampler is separate else embeddings(number, 2)
        more = [latents(number, channels=5)] if sampler is painted else []
        times = torch.linspace(900, 100, 4 + number).tolist()
        return last(sampler(model, latents(number), conditions, *more, times=times))

    expected = [one(models[0], number) for number in range(3)]
    for _ in range(3):
        found: dict[int, list[torch.Tensor]] = {}
        together = threading.Barrier(3)

        def work(number: int, found: dict[int, Any] = found, together: threading.Barrier = together) -> None:
            together.wait()
            with torch.no_grad():
                found[number] = [one(models[1], number) for _ in range(2)]

        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for number, theirs in enumerate(expected):
            assert all(torch.equal(ours, theirs) for ours in found[number])


# -- restored and copied ---------------------------------------------------------------------------------------------


def test_restored_in_the_middle_of_a_run() -> None:
    def work(model: Any) -> Any:
        steps, results = guided(model, latents(), embeddings(1, 2)), []
        for step, x in enumerate(steps):
            results.append(x)
            if step == 2:
                graphopt.restore(model)
        return results

    models = pair()
    both(models, work)
    assert "_compiled_call_impl" not in models[1].__dict__


def test_a_sampler_that_raises_and_runs_again() -> None:
    models = pair()

    def work(model: Any) -> Any:
        first = guided(model, latents(), embeddings(1, 2))
        next(first), next(first)
        with pytest.raises(KeyboardInterrupt):
            first.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        return last(guided(model, latents(), embeddings(4, 2)))

    both(models, work)
