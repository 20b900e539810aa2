"""Weights that no step reads leave memory; to the user, and to every bit, they are where they were."""

from __future__ import annotations

import copy
import errno
import gc
import io
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graphopt
from graphopt.compile import compiled_calls
from graphopt.runtime import evict, mapped
from graphopt.runtime.evict import Eviction
from graphopt.runtime.mapped import Mapping, mapping_of
from graphopt.runtime.memo import digest
from graphopt.runtime.weights import _memory
from tests.soundness.tiny import HoistEverything

pytestmark = pytest.mark.skipif(mapped.unsupported() is not None, reason=str(mapped.unsupported()))

CAN_SCAN = mapped._can_scan()
WIDE = 256  # 256 KiB per weight
Make = Callable[[], torch.nn.Module]


class Net(torch.nn.Module):
    """`text` is read once per request, `modulate` once per timestep, `mix` at every step."""

    def __init__(self, **kind: Any) -> None:
        super().__init__()
        self.text = torch.nn.Linear(WIDE, WIDE, **kind)
        self.modulate = torch.nn.Linear(WIDE, WIDE, **kind)
        self.mix = torch.nn.Linear(WIDE, WIDE, **kind)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        scale = self.modulate(timestep.to(sample.dtype).expand(1, WIDE) / 1000)
        return self.mix(sample) * scale + self.text(encoder_hidden_states)


def net(kind: type[torch.nn.Module] = Net, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(**options).eval().requires_grad_(False)


CONDITION = torch.randn(3, WIDE, generator=torch.Generator().manual_seed(5))


def call(module: torch.nn.Module, time: float = 500, condition: torch.Tensor = CONDITION) -> torch.Tensor:
    weight = next(module.parameters())
    x = torch.linspace(-1, 1, 3 * WIDE).reshape(3, WIDE).to(weight.dtype)
    with torch.no_grad():
        result: torch.Tensor = module(x, torch.tensor(time), condition.to(weight.dtype))
    return result


def compiled(module: Any, **options: Any) -> Any:
    options = {"evict": "file", "target": "eager", "pipeline": [HoistEverything()], "strict": True, **options}
    graphopt.compile(module, **options)
    call(module, 900)
    return module


def evicted(module: torch.nn.Module) -> set[str]:
    return {name for name, value in module.state_dict(keep_vars=True).items() if mapping_of(value) is not None}


def stayed(module: Any) -> dict[str, int]:
    found = graphopt.report(module).modules[0].eviction
    assert found is not None
    return found.stayed


def resident(*tensors: torch.Tensor) -> int:
    """Bytes in memory of the mappings of some tensors, as the kernel counts."""
    text = Path("/proc/self/smaps").read_text()
    total = 0
    for mapping in {id(found): found for t in tensors if (found := mapping_of(t)) is not None}.values():
        block = re.search(rf"^{mapping.start:x}-.*?^Rss: +(\d+) kB", text, re.MULTILINE | re.DOTALL)
        assert block is not None
        total += int(block[1]) * 1024
    return total


IDLE = {"text.weight", "modulate.weight"}


def test_what_the_step_does_not_read_is_evicted() -> None:
    module, original = net(), net()
    before = {name: id(value) for name, value in module.named_parameters()}
    compiled(module)
    assert evicted(module) == IDLE
    assert {name: id(value) for name, value in module.named_parameters()} == before
    for time in (800, 700, 600):
        assert torch.equal(call(module, time), call(original, time))
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in module.state_dict().items())
    report = graphopt.report(module)
    found = report.modules[0].eviction
    assert found is not None
    assert found.evicted_bytes == 2 * WIDE * WIDE * 4
    assert found.weight_bytes == 3 * (WIDE + 1) * WIDE * 4
    assert found.stayed == {"the step reads them": (WIDE + 1) * WIDE * 4, "smaller than 65536 bytes": 2 * WIDE * 4}
    assert "evicted: 524 kB of 790 kB of weights (263 kB stayed: the step reads them;" in str(report)
    assert report.to_dict()["modules"][0]["eviction"]["evicted_bytes"] == found.evicted_bytes


def test_nothing_is_evicted_unasked() -> None:
    module = compiled(net(), evict=None)
    assert evicted(module) == set()
    assert graphopt.report(module).modules[0].eviction is None


def test_memory_is_given_back_and_stays_so() -> None:
    module = compiled(net())
    assert resident(*module.parameters()) == 0
    for time in (800, 700, 600):
        call(module, time)  # fills the table of the schedule
    assert resident(*module.parameters()) > 0
    for _ in range(3):
        for time in (900, 800, 700, 600):
            call(module, time)
    assert resident(*module.parameters()) == 0


def test_folded_weights_are_evicted_and_views_are_not() -> None:
    class Folds(Net):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            folded = self.text.weight @ self.modulate.weight
            return sample @ folded + sample @ self.mix.weight.t() + timestep

    module, original = compiled(net(Folds)), net(Folds)
    assert evicted(module) == IDLE
    assert stayed(module)["the step reads them"] == WIDE * WIDE * 4
    assert torch.equal(call(module, 3), call(original, 3))


def test_packed_weights_are_evicted() -> None:
    """The target tvm reads weights in an order of its own: of the originals it needs none until they change."""
    pytest.importorskip("tvm")
    module, original = compiled(net(), target="tvm"), net()
    assert evicted(module) == IDLE | {"mix.weight"}

    def same() -> None:
        for time in (800, 700, 600):
            torch.testing.assert_close(call(module, time), call(original, time))

    same()
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in module.state_dict().items())
    for model in (module, original):
        model.mix.weight.data[1:].mul_(2)  # counted in no version, and not in its first bytes
    same()
    for model in (module, original):
        model.mix.weight.data = model.mix.weight * 3
    same()
    graphopt.restore(module)
    assert not evicted(module) and torch.equal(module.mix.weight, original.mix.weight)


class Merged(torch.nn.Module):
    """Three layers of one input, which become one: of a weight that is computed of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(WIDE, WIDE) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.query(x) * self.key(x) + self.value(x)
        return result


def test_computed_weights_that_are_packed_are_evicted() -> None:
    pytest.importorskip("tvm")
    torch.manual_seed(0)
    module, x = Merged().eval(), torch.randn(64, WIDE)
    original = copy.deepcopy(module)
    graphopt.compile(module, inputs=(x,), target="tvm", roles={"x": "state"}, evict="file", strict=True)
    (variant,) = compiled_calls(module)[0].variants

    def computed() -> torch.Tensor:
        weight: torch.Tensor
        (weight,) = (value for value in variant.memos["weights"].kept()[-1] if value.ndim == 2)
        return weight

    def same() -> None:
        with torch.no_grad():
            torch.testing.assert_close(module(x), original(x))

    assert computed().shape == (3 * WIDE, WIDE) and mapping_of(computed()) is not None
    assert len(evicted(module)) == 3
    same()
    for model in (module, original):
        model.key.weight.data[1:].mul_(2)
    same()
    assert torch.equal(computed()[WIDE : 2 * WIDE], original.key.weight)
    graphopt.restore(module)
    same()


def test_stable_after_the_first_step() -> None:
    module = compiled(net())
    (variant,) = module._compiled_call_impl.variants
    places = [value.data_ptr() for value in module.parameters()]
    for _ in range(2):
        for time in (900, 800, 700):
            call(module, time)
    counts = {name: memo.misses for name, memo in variant.memos.items()}
    for _ in range(3):
        for time in (900, 800, 700):
            call(module, time)
    assert {name: memo.misses for name, memo in variant.memos.items()} == counts
    assert counts["schedule"] == 3
    assert counts["request"] == 1
    assert [value.data_ptr() for value in module.parameters()] == places
    assert len(module._compiled_call_impl.variants) == 1


def test_evicted_weights_are_not_read_to_digest_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module, read = compiled(net()), list[int]()

    def noted(tensor: torch.Tensor) -> memoryview:
        read.append(tensor.data_ptr())
        return _memory(tensor)

    monkeypatch.setattr("graphopt.runtime.weights._memory", noted)
    for _ in range(2):
        for time in (900, 800):
            call(module, time)
    assert module.mix.weight.data_ptr() in read
    assert module.text.weight.data_ptr() not in read


WRITES: dict[str, Callable[[Any], object]] = {
    "in place": lambda weight: weight.mul_(1.5),
    "data": lambda weight: weight.data.add_(0.25),
    "numpy": lambda weight: weight.detach().numpy().__iadd__(0.125),
    "the last element, behind torch's back": lambda weight: weight.detach().numpy().__setitem__((-1, -1), 7.0),
    "other data": lambda weight: setattr(weight, "data", weight.data * 2),
    "copied": lambda weight: weight.copy_(torch.ones_like(weight)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("which", ["text", "modulate", "mix"])
@pytest.mark.parametrize("scan", [True, False])
def test_writes_between_and_inside_runs(write: str, which: str, scan: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_can_scan", lambda: scan and CAN_SCAN)
    module, original = compiled(net()), net()
    moments = {800, 850} if which != "mix" or "last" not in write else {850}  # an ordinary weight: from the next run on
    for time in (900, 800, 700, 850, 750, 650):
        if time in moments:
            for which_one in (module, original):
                with torch.no_grad():
                    WRITES[write](getattr(which_one, which).weight)
        assert torch.equal(call(module, time), call(original, time)), time
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in module.state_dict().items())
    graphopt.restore(module)
    assert evicted(module) == set()
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in module.state_dict().items())
    assert torch.equal(call(module), call(original))


def test_writes_are_found_page_by_page() -> None:
    weights = [torch.randn(n * 1024) for n in (1, 3, 70, 2)]
    mapping = Mapping.of(weights, Path(tempfile.gettempdir()))
    views = [mapping.tensor(k) for k in range(4)]
    assert mapping.written() == frozenset()
    assert all(torch.equal(view, weight) for view, weight in zip(views, weights, strict=True) if view is not None)
    assert mapping.written() == frozenset()
    for scan in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mapped, "_can_scan", lambda scan=scan: scan and CAN_SCAN)
            assert views[2] is not None and views[1] is not None
            views[2][1::2048] = 3  # more ranges of pages than one answer of the kernel holds
            views[1][-1] = 4
            assert mapping.written() == {1, 2}
            mapping.page_out()
            assert mapping.written() == {1, 2}
            assert views[2][1] == 3 and views[1][-1] == 4 and views[2][2] == weights[2][2]


def test_unreadable_page_tables_count_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    module, original = compiled(net()), net()

    def unreadable(start: int, size: int) -> list[tuple[int, int]]:
        raise PermissionError

    monkeypatch.setattr(mapped, "_written_pages", unreadable)
    for time in (900, 800, 700, 600):
        for each in (module, original):
            each.text.weight.data.add_(1)
        assert torch.equal(call(module, time), call(original, time))


@pytest.mark.parametrize("reason", ["no such kernel", None])
def test_refused_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    monkeypatch.setattr(mapped, "unsupported", lambda: reason)
    module = net()
    if reason:
        with pytest.warns(RuntimeWarning, match="keeps its weights in memory: no such kernel"):
            compiled(module)
        assert stayed(module)[reason] == 2 * WIDE * WIDE * 4
    else:
        compiled(module)
    assert evicted(module) == (set() if reason else IDLE)


# -- which weights stay -----------------------------------------------------------------------------------------------


def test_tied_parameters_stay_tied() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.modulate.weight = self.text.weight

    module, original = compiled(net(Tied)), net(Tied)
    assert module.modulate.weight is module.text.weight
    assert evicted(module) == IDLE
    for each in (module, original):
        each.text.weight.data.mul_(2)
    assert torch.equal(call(module), call(original))
    graphopt.restore(module)
    assert module.modulate.weight is module.text.weight


def test_views_of_one_memory_stay() -> None:
    class Slices(Net):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.randn(2 * WIDE, WIDE)
            self.text.weight, self.modulate.weight = map(torch.nn.Parameter, whole.chunk(2))

    module = compiled(net(Slices))
    assert evicted(module) == set()
    assert stayed(module)["they do not fill the memory they lie in"] == 2 * WIDE * WIDE * 4


@pytest.mark.parametrize("hold", ["data", "numpy", "storage", "twin"])
def test_memory_that_somebody_else_holds_stays(hold: str) -> None:
    module, original = net(), net()
    ways: dict[str, Callable[[torch.nn.Parameter], Any]] = {
        "data": lambda weight: weight.data,
        "numpy": lambda weight: weight.detach().numpy(),
        "storage": lambda weight: weight.untyped_storage(),
        "twin": lambda weight: torch.nn.Parameter(weight.data, requires_grad=False),
    }
    held = [ways[hold](each.text.weight) for each in (module, original)]
    compiled(module)
    assert evicted(module) == {"modulate.weight"}
    assert stayed(module)["other tensors share their memory"] == WIDE * WIDE * 4
    for each in held:
        each.fill_(0) if hold != "numpy" else each.fill(0)
    assert torch.equal(call(module, 3), call(original, 3))
    assert not module.text.weight.any()


def test_an_alias_of_an_evicted_weight_stays_one() -> None:
    module = compiled(net())
    alias = module.text.weight.data
    graphopt.restore(module)
    alias.fill_(3)
    assert bool((module.text.weight == 3).all())
    assert evicted(module) == {"text.weight"}
    del alias
    graphopt.restore(module)
    evict.bring_back(module)
    assert evicted(module) == set()
    assert bool((module.text.weight == 3).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    module, original = compiled(net().to(dtype)), net().to(dtype)
    assert evicted(module) == IDLE
    assert module.text.weight.dtype == dtype
    assert torch.equal(call(module), call(original))


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(1024, dtype=torch.int8), torch.arange(1024) % 3 == 0, torch.randn(8, 128, dtype=torch.complex64),
        torch.randn(1024).to(torch.float8_e4m3fn), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        torch.randn(32, 64).t(), torch.randn(1), torch.randn(())
    ],
    ids=lambda value: f"{value.dtype}-{tuple(value.shape)}",
)  # fmt: skip
def test_bytes_strides_and_digests(value: torch.Tensor) -> None:
    mapping = Mapping.of([torch.randn(7), value], Path(tempfile.gettempdir()))
    moved = mapping.tensor(1)
    assert moved is not None
    assert (moved.dtype, moved.shape, moved.stride()) == (value.dtype, value.shape, value.stride())
    assert moved.untyped_storage().tolist() == value.untyped_storage().tolist()
    watch = mapped.Watch([value, moved, moved.reshape(-1)[:1]])
    assert watch.digests.get(1) == digest(value)
    assert 0 not in watch.digests
    assert (2 in watch.digests) == (value.shape == (1,))


class Odd(Net):
    none: torch.Tensor
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("none", torch.empty(0, 4))
        self.register_buffer("table", torch.randn(WIDE, WIDE))
        self.text.weight.data = self.text.weight.data.t()
        self.modulate.weight.data = self.modulate.weight.data[:, :1].expand(WIDE, WIDE)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        result = super().forward(sample, timestep, encoder_hidden_states @ self.table)
        return result + self.none.sum()


def test_odd_weights() -> None:
    module, original = compiled(net(Odd)), net(Odd)
    assert evicted(module) == {"text.weight", "table"}
    assert module.text.weight.stride() == (1, WIDE)
    assert torch.equal(call(module), call(original))
    graphopt.restore(module)
    assert evicted(module) == set()
    assert (module.text.weight.stride(), module.modulate.weight.stride()) == ((1, WIDE), (WIDE, 0))


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module, original = net(), net()
        compiled(module)
        assert evicted(module) == IDLE
        assert module.text.weight.is_inference()
        for time in (800, 700, 600):
            for each in (module, original):
                each.text.weight.mul_(1.5)
            assert torch.equal(call(module, time), call(original, time))
    graphopt.restore(module)
    assert module.text.weight.is_inference()
    assert torch.equal(module.text.weight, original.text.weight)


def test_compiled_in_inference_mode() -> None:
    module, original = net(), net()
    with torch.inference_mode():
        compiled(module)
    assert evicted(module) == IDLE
    assert not module.text.weight.is_inference()
    with torch.no_grad():
        for each in (module, original):
            each.text.weight.add_(1)
    assert torch.equal(call(module), call(original))


def test_weights_that_require_gradients() -> None:
    module, original = compiled(net().requires_grad_()), net().requires_grad_()
    assert evicted(module) == IDLE
    results = []
    for each in (module, original):
        each(torch.ones(3, WIDE), torch.tensor(3), CONDITION).sum().backward()
        results.append(each.text.weight.grad)
        with torch.no_grad():
            each.text.weight -= 0.1 * each.text.weight.grad
    assert torch.equal(*results)
    assert torch.equal(call(module), call(original))


def test_tensors_of_their_own_kind_stay() -> None:
    class Marked(torch.nn.Parameter):
        pass

    module = net()
    module.text.weight = Marked(module.text.weight.data, requires_grad=False)
    compiled(module)
    assert evicted(module) == {"modulate.weight"}
    assert stayed(module)["Marked is a tensor of its own kind"] == WIDE * WIDE * 4


def test_what_any_module_reads_in_its_step_stays() -> None:
    class Other(Net):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            return self.text(sample)

    first, second = net(), net(Other)
    second.text = first.text
    compiled(second, evict=None)
    compiled(first)
    assert evicted(first) == {"modulate.weight"}
    graphopt.restore(first)
    graphopt.restore(second)
    compiled(first)
    assert evicted(first) == IDLE
    original = net(Other)
    compiled(second, evict=None)  # reads it in its step from now on
    assert evicted(first) == {"modulate.weight"}
    assert torch.equal(call(second), call(original))
    assert torch.equal(call(first), call(net()))


def test_a_later_variant_brings_back_what_its_step_reads() -> None:
    class Switch(Net):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            if encoder_hidden_states.shape[0] == 1:
                return self.text(sample) + self.modulate(encoder_hidden_states)
            return super().forward(sample, timestep, encoder_hidden_states)

    module, original = compiled(net(Switch)), net(Switch)
    assert evicted(module) == IDLE
    for _ in range(2):
        for condition in (CONDITION[:1], CONDITION):
            assert torch.equal(call(module, 3, condition), call(original, 3, condition))
        assert evicted(module) == {"modulate.weight"}


def test_all_stay_while_a_variant_is_left_to_the_module() -> None:
    module = compiled(net())
    variant = module._compiled_call_impl.variants[0]
    variant.wrong = "it is"
    evict.settle(module._compiled_call_impl)
    assert evicted(module) == set()
    variant.wrong = None
    evict.settle(module._compiled_call_impl)
    assert evicted(module) == IDLE


def test_the_smallest_size_is_an_option() -> None:
    assert evicted(compiled(net(), evict=Eviction(min_bytes=0))) == {*IDLE, "text.bias", "modulate.bias"}
    assert evicted(compiled(net(), evict=Eviction(min_bytes=1 << 20))) == set()


# -- everything a user does with weights ------------------------------------------------------------------------------


def test_state_dict_copies_and_pickles(tmp_path: Path) -> None:
    module, original = compiled(net()), net()
    state = original.state_dict()
    torch.save(module.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    pickled = pickle.loads(pickle.dumps(module.text))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    whole = torch.load(stream, weights_only=False)
    twin = copy.deepcopy(module)
    for found in (loaded, twin.state_dict(), whole.state_dict()):
        assert all(torch.equal(found[name], value) for name, value in state.items())
        assert all(mapping_of(value) is None for value in found.values())
    assert torch.equal(pickled.weight, state["text.weight"])
    twin.text.weight.data.zero_()
    module.load_state_dict({name: value * 2 for name, value in state.items()})
    original.load_state_dict({name: value * 2 for name, value in state.items()})
    assert torch.equal(call(module), call(original))


def test_other_dtypes_and_memory_formats() -> None:
    module, original = compiled(net()), net()
    for each in (module, original):
        each.to(torch.float64)
    assert torch.equal(call(module), call(original))
    assert evicted(module) == IDLE  # after the first call of the new variant
    for each in (module, original):
        each.to(torch.float32)
    assert torch.equal(call(module), call(original))


def test_compiled_again_without_eviction() -> None:
    module = compiled(net())
    compiled(module, evict=None)
    assert evicted(module) == set()
    compiled(module)
    assert evicted(module) == IDLE
    graphopt.restore(module)
    assert evicted(module) == set()
    assert "_compiled_call_impl" not in module.__dict__


def test_threads_run_while_weights_move() -> None:
    module, original = net(), net()
    graphopt.compile(module, target="eager", pipeline=[HoistEverything()], strict=True, evict="file")
    expected = {time: call(original, time) for time in (900, 800, 700)}
    wrong, done = list[float](), threading.Event()

    def work() -> None:
        while not done.is_set():
            for time, result in expected.items():
                if not torch.equal(call(module, time), result):
                    wrong.append(time)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(30):
        evict.settle(module._compiled_call_impl)
        evict.bring_back(module)
    done.set()
    for worker in workers:
        worker.join()
    assert not wrong
    call(module)
    assert not evict._graves
    assert not evict._calls


def test_memory_lives_until_calls_in_flight_have_ended() -> None:
    module, entered, leave = net(), threading.Event(), threading.Event()

    def work() -> None:
        with evict.Calling():
            entered.set()
            leave.wait(60)

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait(60)
    compiled(module)
    assert len(evict._graves) == 2
    call(module)
    assert len(evict._graves) == 2
    leave.set()
    worker.join()
    assert not evict._graves


def test_a_forked_process_has_weights_of_its_own() -> None:
    module, original = compiled(net()), net()
    call(module, 800)
    mapping, array = mapping_of(module.text.weight), module.text.weight.detach().numpy()
    assert mapping is not None

    def work() -> None:  # without torch's kernels, whose threads no fork survives
        array[-1, -1] += 1
        os._exit(len(mapping.written()))

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 1
    assert torch.equal(module.text.weight, original.text.weight)
    assert mapping.written() == frozenset()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    module = compiled(net(), evict=tmp_path)
    assert evicted(module) == IDLE
    assert list(tmp_path.iterdir()) == []
    count = len(mapped.mappings())
    del module
    gc.collect()
    assert len(mapped.mappings()) < count


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("where", ["posix_fallocate", "fsync", "preadv"])
def test_a_file_that_cannot_be_written(where: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise OSError(error, os.strerror(error))

    module, original = net(), net()
    monkeypatch.setattr(os, where, fails)
    with pytest.warns(RuntimeWarning, match=re.escape(os.strerror(error))):
        compiled(module)
    assert evicted(module) == set()
    assert any(os.strerror(error) in reason for reason in stayed(module))
    assert torch.equal(call(module), call(original))


def test_what_reads_back_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    spoilt = list[int]()

    def spoils(file: int, buffers: Any, offset: int) -> int:
        count = preadv(file, buffers, offset)
        if not spoilt:
            buffers[0][0] ^= 1
            spoilt.append(offset)
        return count

    monkeypatch.setattr(os, "preadv", spoils)
    module, original = compiled(net()), net()
    assert len(evicted(module)) == 1
    assert stayed(module)["another thread wrote them meanwhile"] == WIDE * WIDE * 4
    assert torch.equal(call(module), call(original))


def test_folders(tmp_path: Path) -> None:
    for given in (tmp_path / "absent", "disk", 3):
        with pytest.raises(graphopt.GraphoptError, match="evict"):
            graphopt.compile(net(), evict=given)
    gone = tmp_path / "gone"
    gone.mkdir()
    module = net()
    graphopt.compile(module, target="eager", pipeline=[HoistEverything()], evict=gone)
    gone.rmdir()
    with pytest.warns(RuntimeWarning, match="keeps its weights in memory"):
        call(module)
    assert evicted(module) == set()


def test_files_that_are_memory_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mapped, "_MEMORY", mapped._MEMORY | {_kind_of(tmp_path)})
    with pytest.warns(RuntimeWarning, match="take memory themselves"):
        module = compiled(net(), evict=tmp_path)
    assert evicted(module) == set()


def _kind_of(folder: Path) -> str:
    found = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    kinds = {"ext2/ext3": "ext4", "overlayfs": "overlay"}
    return kinds.get(found.stdout.strip(), found.stdout.strip())


def test_an_error_of_ours_does_not_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(Mapping, "of", fails)
    module, original = net(), net()
    with pytest.warns(RuntimeWarning, match="evicting raised RuntimeError: ours"):
        compiled(module, strict=False)
    assert torch.equal(call(module), call(original))
    with pytest.raises(RuntimeError, match="ours"):
        compiled(net())


def test_the_process_ends_quietly() -> None:
    text = (
        "import warnings; warnings.simplefilter('error', ResourceWarning)\n"
        "from tests.runtime import test_evict as t\n"
        "kept = t.compiled(t.net())\n"
        "assert t.evicted(kept) == t.IDLE\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
