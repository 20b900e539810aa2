"""Keys tell apart what differs in a bit; memos are bounded, ordered by use, and safe to share between threads."""

from __future__ import annotations

import threading

import pytest
import torch

from graphopt.runtime.memo import Memo, digest, key_of, private


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (torch.ones(2, 3), torch.ones(3, 2)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
        (torch.tensor(1), torch.tensor(1, dtype=torch.int32)),
        (torch.ones(1), torch.tensor(1.0)),
        (torch.ones(0), torch.ones(0, 2)),
        (torch.tensor([1 + 2j]), torch.tensor([1 - 2j])),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 2j]).conj()),
        (torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2).t()),
        (0.0, -0.0),
        (1, 1.0),
        (1, True),
    ],
)
def test_different_keys(left: object, right: object) -> None:
    assert key_of([left]) != key_of([right])


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(float("nan")), torch.ones(0), torch.tensor(3), torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, 3).t(), torch.ones(1).expand(4), torch.tensor([True]), float("nan"), None, torch.arange(9)[1::3],
        torch.tensor([1 + 2j]).conj(),
    ],
)  # fmt: skip
def test_equal_keys(value: object) -> None:
    same = value.clone().as_strided(value.shape, value.stride()) if isinstance(value, torch.Tensor) and all(
        value.stride()
    ) and value.is_contiguous() else value  # fmt: skip
    assert key_of([value]).parts == key_of([same]).parts
    hash(key_of([value]).parts)


def test_digest_reads_logical_order() -> None:
    value = torch.arange(6.0).view(2, 3)
    assert digest(value) == digest(value.t().contiguous().t())
    assert digest(value) != digest(value.flip(0))


def test_hidden_writes_change_the_key() -> None:
    value = torch.ones(4)
    keys = [key_of([value]).parts]
    value.data.add_(1)
    keys.append(key_of([value]).parts)
    value.numpy()[0] = 9
    keys.append(key_of([value]).parts)
    assert len(set(keys)) == 3


def test_least_recently_used_goes_first() -> None:
    memo, keys = Memo(3 * 16), [key_of([k]) for k in range(4)]
    for key in keys[:3]:
        memo.put(key, (torch.ones(4),))
    assert memo.get(keys[0]) is not None
    memo.put(keys[3], (torch.ones(4),))
    assert [memo.get(key) is not None for key in keys] == [True, False, True, True]
    assert (memo.hits, memo.misses, memo.bytes, len(memo)) == (4, 1, 48, 3)


def test_the_newest_entry_is_kept_whatever_its_size() -> None:
    memo = Memo(10)
    memo.put(key_of([1]), (torch.ones(100),))
    memo.put(key_of([2]), (torch.ones(200),))
    assert memo.get(key_of([1])) is None
    assert memo.get(key_of([2])) is not None
    memo.clear()
    assert (memo.bytes, len(memo)) == (0, 0)


def test_the_same_key_twice_counts_once() -> None:
    memo = Memo(100)
    for _ in range(2):
        memo.put(key_of([1]), (torch.ones(4),))
    assert (memo.bytes, len(memo)) == (16, 1)


def test_values_that_share_memory_are_counted_once() -> None:
    memo, value = Memo(1000), torch.ones(4, 4)
    memo.put(key_of([1]), (value, value.t(), value[0]))
    assert memo.bytes == 64


def test_a_view_of_a_weight_serves_while_the_weight_lies_there() -> None:
    memo, weight = Memo(1000), torch.ones(4, 4)
    memo.put(key_of([1]), (weight.t(),), [weight])
    assert memo.bytes == 0
    assert memo.get(key_of([1]), [weight]) is not None
    assert memo.get(key_of([1]), [weight.clone()]) is None


def test_private_copies_what_a_caller_can_write() -> None:
    given, fresh = torch.arange(6.0).view(2, 3), torch.ones(2)
    view, expanded = given.t(), given[:1].expand(4, 3)
    kept = private((view, expanded, fresh, 3), [given])
    given.zero_()
    assert torch.equal(kept[0], torch.arange(6.0).view(2, 3).t())
    assert torch.equal(kept[1], torch.arange(3.0).expand(4, 3))
    assert (kept[0].stride(), kept[1].stride()) == (view.stride(), expanded.stride())
    assert kept[2] is fresh


def test_threads() -> None:
    memo = Memo(64)

    def work(seed: int) -> None:
        for k in range(300):
            key = key_of([(k * seed) % 7])
            values = memo.get(key)
            assert values is None or values[0][0] == (k * seed) % 7
            memo.put(key, (torch.full((4,), (k * seed) % 7),))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert memo.bytes == sum(entry.size for entry in memo._entries.values()) <= 64
    assert memo.hits + memo.misses == 900


def test_packed_weights_count_each() -> None:
    memo, packed = Memo(1 << 20), [torch.randn(8, 8).to_mkldnn() for _ in range(3)]
    memo.put(key_of([]), tuple(packed))
    assert memo.bytes == 3 * 8 * 8 * 4
