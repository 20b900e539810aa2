"""Threads of generated code: as many as torch uses, from however many threads it is called, and none for one."""

from __future__ import annotations

import os
import subprocess
import sys
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
@pytest.mark.parametrize("threads", [1, 2, 5, 30])
@pytest.mark.parametrize("tasks", [1, 2, 15, 40])
def test_each_task_is_done_once(tasks: int, threads: int, alone: bool) -> None:
    """And what is to come is the next one in order."""

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        emitter.store(buffers[0], 2 * task, emitter.load(buffers[0], 2 * task) + 1)
        emitter.store(buffers[0], 2 * task + 1, emitter.upcoming)

    made = Library(detect(), [[Call(kernel("graphopt_once", detect(), ["int32"], tasks, body), 0)]])
    found = torch.zeros(tasks, 2, dtype=torch.int32)
    table = torch.tensor([found.data_ptr()])
    torch.set_num_threads(threads)
    if alone:
        made._code.kernel("graphopt_once")(table.data_ptr())
    else:
        made.run(0, table.data_ptr())
    done, upcoming = found.T.tolist()
    assert done == [1] * tasks and upcoming == [*range(1, tasks), tasks - 1]


@pytest.mark.parametrize("threads", [1, 2, 3, 20])
def test_a_thread_does_its_own_part_first(threads: int) -> None:
    """In order; then what is left of others'. Those beyond twelve share parts."""
    tasks, parts = 240, min(threads, 12)

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        emitter.store(buffers[0], task, tirx.call_extern("int32", "omp_get_thread_num"))
        emitter.store(buffers[1], task, tirx.call_extern("float64", "omp_get_wtime"))

    made = Library(detect(), [[Call(kernel("graphopt_own", detect(), ["int32", "float64"], tasks, body), 0)]])
    who, when = torch.zeros(tasks, dtype=torch.int32), torch.zeros(tasks, dtype=torch.float64)
    table = torch.tensor([who.data_ptr(), when.data_ptr()])
    torch.set_num_threads(threads)
    for _ in range(20):
        made.run(0, table.data_ptr())
        for thread in range(threads):
            mine = (who == thread).nonzero().flatten()
            order = mine[when[mine].argsort(stable=True)].tolist()
            first = range(tasks * (thread % parts) // parts, tasks * (thread % parts + 1) // parts)
            own = [task for task in order if task in first]
            assert order[: len(own)] == own == sorted(own)


@pytest.mark.parametrize("threads", [2, 3, 20])
def test_kernels_of_a_sequence_wait_for_each_other(threads: int) -> None:
    """Each kernel reads what all threads wrote in the one before, in the other order."""
    tasks, rounds = 64, 40

    def body(emitter: Emitter, buffers: Sequence[Buffer], task: Expr) -> None:
        value = emitter.load(buffers[0], tasks - 1 - task)
        emitter.store(buffers[1], task, value + 1)

    made = kernel("graphopt_after", detect(), ["int32", "int32"], tasks, body)
    calls = Library(detect(), [[Call(made, 2 * number) for number in range(rounds)]])
    torch.set_num_threads(threads)
    for _ in range(20 if threads < 4 else 2):
        values = torch.zeros(rounds + 1, tasks, dtype=torch.int32)
        table = torch.tensor([values[row].data_ptr() for k in range(rounds) for row in (k, k + 1)])
        calls.run(0, table.data_ptr())
        assert values.tolist() == [[row] * tasks for row in range(rounds + 1)]


def test_a_thread_of_python_has_its_own_number(library: Library) -> None:
    torch.set_num_threads(3)

    def two() -> tuple[int, int]:
        torch.set_num_threads(2)
        return team(library)

    assert elsewhere(two) == [(2, 1)]
    assert team(library)[0] == torch.get_num_threads() == 3


_FEWER = """
import torch
from graphopt.targets.tvm.build import Call, Library
from graphopt.targets.tvm.emit import kernel
from graphopt.targets.tvm.isa import detect

def body(emitter, buffers, task):
    emitter.store(buffers[1], task, emitter.load(buffers[0], 63 - task) + 1)

made = kernel("graphopt_after", detect(), ["int32", "int32"], 64, body)
library = Library(detect(), [[Call(made, 2 * number) for number in range(10)]])
values = torch.zeros(11, 64, dtype=torch.int32)
table = torch.tensor([values[row].data_ptr() for k in range(10) for row in (k, k + 1)])
torch.set_num_threads(7)
library.run(0, table.data_ptr())
assert values.tolist() == [[row] * 64 for row in range(11)]
"""


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_fewer_threads_than_were_asked_for(limit: int) -> None:
    """OpenMP gives as many as it may: kernels do not wait for the others, whose tasks are done too."""
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit)}
    subprocess.run([sys.executable, "-c", _FEWER], env=environment, check=True, timeout=120)


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
