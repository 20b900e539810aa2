"""Threads of generated code: as many as torch uses, from however many threads it is called, and none for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm import tirx

import graphopt
from graphopt.targets.tvm.build import Call, Library
from graphopt.targets.tvm.emit import Buffer, Emitter, Expr, kernel
from graphopt.targets.tvm.host import openmp
from graphopt.targets.tvm.isa import detect
from graphopt.targets.tvm.schedule import MANY

_TASKS = 256


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def library() -> Library:
    """One kernel, each of whose tasks notes how many threads OpenMP says that there are, and how deep regions lie."""
    assert openmp() is None

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        for place, function in enumerate(("omp_get_num_threads", "omp_get_level")):
            emitter.store(buffers[0], 2 * task + place, tirx.call_extern("int32", function))

    return Library(detect(), [[Call(kernel("graphopt_counting", detect(), ["int32"], _TASKS, body), 0)]])


def team(library: Library) -> tuple[int, int]:
    """Threads of a kernel, and the depth of OpenMP's regions in it; all tasks agree."""
    found = torch.zeros(_TASKS, 2, dtype=torch.int32)
    table = torch.tensor([found.data_ptr()])
    library.run(0, table.data_ptr())
    (each,) = {tuple(entry) for entry in found.tolist()}
    return each


def elsewhere(work: Callable[[], Any], count: int = 1) -> list[Any]:
    """What something gives in new threads, all at once."""
    found: list[Any] = []
    together = threading.Barrier(count)

    def run() -> None:
        together.wait()
        with torch.no_grad():
            found.append(work())

    workers = [threading.Thread(target=run) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_as_many_threads_as_torch_uses(threads: int, library: Library) -> None:
    torch.set_num_threads(threads)
    assert team(library) == (threads, 1)
    assert elsewhere(lambda: team(library)) == [(threads, 1)]  # where OpenMP's own number is another one


@pytest.mark.parametrize("alone", [False, True], ids=["in a sequence", "by itself"])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tasks", [1, MANY * 2 - 1, MANY * 2, 40])
def test_threads_that_take_the_next_task_early(tasks: int, threads: int, alone: bool) -> None:
    """Each task is done once; what is to come is what a single thread does next; of few tasks, a guess."""

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        emitter.store(buffers[0], 2 * task, emitter.load(buffers[0], 2 * task) + 1)
        emitter.store(buffers[0], 2 * task + 1, emitter.upcoming)

    made = Library(detect(), [[Call(kernel("graphopt_early", detect(), ["int32"], tasks, body, ahead=True), 0)]])
    found = torch.zeros(tasks, 2, dtype=torch.int32)
    table = torch.tensor([found.data_ptr()])
    torch.set_num_threads(threads)
    if alone:
        made._code.kernel("graphopt_early")(table.data_ptr())
    else:
        made.run(0, table.data_ptr())
    done, upcoming = found.T.tolist()
    assert done == [1] * tasks and all(0 <= number < tasks for number in upcoming)
    if threads == 1:
        assert upcoming == [*range(1, tasks), tasks - 1]
    elif tasks < MANY * threads:
        assert upcoming == [min(task + threads, tasks - 1) for task in range(tasks)]


def test_a_thread_of_python_has_its_own_number(library: Library) -> None:
    torch.set_num_threads(3)

    def two() -> tuple[int, int]:
        torch.set_num_threads(2)
        return team(library)

    assert elsewhere(two) == [(2, 1)]
    assert team(library)[0] == torch.get_num_threads() == 3


def test_one_thread_needs_no_openmp(library: Library) -> None:
    torch.set_num_threads(1)
    assert team(library) == (1, 0)


class Net(nn.Module):
    """More tasks than threads, in kernels of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.back = nn.Conv2d(4, 32, 3, padding=1), nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        result: torch.Tensor = nn.functional.layer_norm(tokens + self.back(self.wide(tokens).relu()), (32,))
        return result


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_threads_that_call_one_module_at_once(threads: int) -> None:
    torch.set_num_threads(threads)
    net, x = Net(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        expected = net(x)
        graphopt.compile(net, target="tvm", strict=True)(x)
        first = net(x)
    torch.testing.assert_close(first, expected)
    for found in elsewhere(lambda: [net(x) for _ in range(8)], 4):
        assert all(torch.equal(result, first) for result in found)
    assert not graphopt.report(net).modules[0].asides
