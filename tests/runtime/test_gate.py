"""A capture waits for threads that run modules, and they for it; nobody waits for ever."""

from __future__ import annotations

import threading
import time

from graphopt.runtime.gate import Gate


def test_one_captures_while_nobody_else_runs() -> None:
    gate, inside, overlaps = Gate(), [0, 0], []

    def work(seed: int) -> None:
        for k in range(40):
            if (k + seed) % 4:
                with gate.running(), gate.running():
                    inside[0] += 1
                    overlaps.append(inside[1] > 0)
                    time.sleep(0.0002)
                    inside[0] -= 1
            else:
                with gate.capturing() as free:
                    assert free
                    inside[1] += 1
                    overlaps.append(inside[0] > 0 or inside[1] > 1)
                    time.sleep(0.0002)
                    inside[1] -= 1

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(overlaps) == 120
    assert not any(overlaps)


def test_a_thread_may_enter_again() -> None:
    gate = Gate()
    with gate.running(), gate.capturing() as free, gate.running():
        assert free


def test_impatience() -> None:
    gate, entered, done = Gate(), threading.Event(), threading.Event()

    def work() -> None:
        with gate.running():
            entered.set()
            done.wait(60)

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait(60)
    with gate.capturing(patience=0.01) as free:
        assert not free
    done.set()
    worker.join()
    with gate.capturing(patience=0.01) as free:
        assert free
