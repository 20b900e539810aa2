"""Meters on powercap trees and an NVML made for the test, and the estimate."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphopt.energy import EstimateMeter, NvmlMeter, RaplMeter, SumMeter, Unavailable, best_meter
from graphopt.energy import estimate as estimates
from graphopt.errors import GraphoptError, UsageError


def zone(root: Path, folder: str, name: str, microjoules: int, span: int = 262_143_328_850) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """Two sockets, of which the first shows all zones that exist."""
    zones = {
        "package": ("intel-rapl:0", "package-0", 5_000_000),
        "core": ("intel-rapl:0:0", "core", 1_000_000),
        "dram": ("intel-rapl:0:1", "dram", 2_000_000),
        "second": ("intel-rapl:1", "package-1", 7_000_000),
        "platform": ("intel-rapl:2", "psys", 9_000_000),
    }
    (tmp_path / "intel-rapl").mkdir()
    found = {key: zone(tmp_path, *values) for key, values in zones.items()}
    return {"root": tmp_path, **found}


def test_rapl_sums_packages_and_memory_and_nothing_twice(machine: dict[str, Path]) -> None:
    meter = RaplMeter(machine["root"])
    with meter:
        (machine["package"] / "energy_uj").write_text("6500000")
        (machine["core"] / "energy_uj").write_text("2000000")
        (machine["dram"] / "energy_uj").write_text("2250000")
        (machine["second"] / "energy_uj").write_text("8000000")
        (machine["platform"] / "energy_uj").write_text("90000000")
    assert meter.reading.joules == pytest.approx(1.5 + 0.25 + 1.0)
    assert meter.reading.measured
    assert meter.reading.seconds > 0
    assert meter.reading.source == "RAPL counters (package and dram, 2 packages; the whole machine)"


def test_rapl_counts_through_the_end_of_its_range(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, span=10_000_000) / "energy_uj"
    meter = RaplMeter(tmp_path)
    with meter:
        counter.write_text("500000")
    assert meter.reading.joules == pytest.approx(1.5)
    with meter:
        counter.write_text("700000")
    assert meter.reading.joules == pytest.approx(0.2)


def test_amd_has_packages_without_memory(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    assert RaplMeter(tmp_path).source == "RAPL counters (package; the whole machine)"


def test_idle_power_is_taken_off_where_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj"
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        counter.write_text(str(int(20e6 * clock[0])))

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = RaplMeter(tmp_path)
    with meter:
        sleep(1.0)
    assert meter.reading.above_idle is None
    assert meter.measure_idle(2.0) == pytest.approx(20.0)
    with meter:
        sleep(1.0)
        counter.write_text(str(int(counter.read_text()) + 30_000_000))
    assert meter.reading.joules == pytest.approx(50.0)
    assert meter.reading.above_idle == pytest.approx(30.0)


def test_rapl_says_why_it_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="no powercap tree"):
        RaplMeter(tmp_path / "absent")
    with pytest.raises(Unavailable, match=r"no processor package(.|\n)*zones: none"):
        RaplMeter(tmp_path)
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (path / "energy_uj").write_text("nonsense")
    with pytest.raises(Unavailable, match="cannot be read"):
        RaplMeter(tmp_path)
    read = Path.read_text

    def forbidden(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(Unavailable, match=r"may not be read(.|\n)*chmod a\+r"):
        RaplMeter(tmp_path)


class FakeNvml:
    """Two GPUs whose counters the test sets, in mJ."""

    class NVMLError(Exception):
        pass

    def __init__(self, *counters: int, fails: str = "") -> None:
        self.counters, self.fails = list(counters), fails

    def nvmlInit(self) -> None:
        if self.fails == "driver":
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.counters)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.fails == "counter":
            raise self.NVMLError("Not Supported")
        return self.counters[handle]


def test_nvml_sums_gpus() -> None:
    nvml = FakeNvml(1_000, 2_000)
    meter, first = NvmlMeter(nvml=nvml), NvmlMeter([0], nvml=nvml)
    with meter, first:
        nvml.counters = [1_500, 2_250]
    assert meter.reading.joules == pytest.approx(0.75)
    assert meter.reading.source == "NVML energy counter (GPU 0, GPU 1)"
    assert first.reading.joules == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (FakeNvml(1, fails="driver"), "Driver Not Loaded"),
        (FakeNvml(1, fails="counter"), "Not Supported"),
        (FakeNvml(), "no GPU"),
    ],
)
def test_nvml_says_why_it_cannot_work(nvml: FakeNvml, reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        NvmlMeter(nvml=nvml)


def test_estimate_is_processor_time_by_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "process_time", iter([10.0, 12.5]).__next__)
    used = iter([(1.0, 0.0), (1.5, 0.25)])

    def usage(who: int) -> SimpleNamespace:
        user, system = next(used)
        return SimpleNamespace(ru_utime=user, ru_stime=system)

    monkeypatch.setattr(resource, "getrusage", usage)
    with EstimateMeter(4.0) as meter:
        pass
    assert meter.reading.joules == pytest.approx(4.0 * (2.5 + 0.75))
    assert not meter.reading.measured
    assert meter.reading.source == "estimate: CPU-seconds of the process × 4 W per core"


def test_coefficient_of_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(estimates.VARIABLE, raising=False)
    assert EstimateMeter().watts == estimates.DEFAULT_WATTS
    monkeypatch.setenv(estimates.VARIABLE, "3.5")
    assert EstimateMeter().watts == 3.5
    assert EstimateMeter(2.0).watts == 2.0
    monkeypatch.setenv(estimates.VARIABLE, "many")
    with pytest.raises(UsageError, match="no number of watts"):
        EstimateMeter()
    with pytest.raises(UsageError, match="positive"):
        EstimateMeter(-1.0)


def test_reading_before_a_window_is_an_error() -> None:
    with pytest.raises(GraphoptError, match="nothing yet"):
        _ = EstimateMeter().reading


def test_best_meter_takes_what_works_and_says_why_not_the_rest(machine: dict[str, Path], tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    measured = best_meter(powercap=machine["root"])
    assert isinstance(measured.meter, RaplMeter)
    assert measured.unavailable == {}
    estimated = best_meter(powercap=absent, watts_per_core=2.0)
    assert isinstance(estimated.meter, EstimateMeter)
    assert "no powercap tree" in estimated.unavailable["RAPL"]


def test_best_meter_of_a_gpu(machine: dict[str, Path], tmp_path: Path) -> None:
    absent, nvml = tmp_path / "absent", FakeNvml(1_000)
    assert isinstance(best_meter("cuda:0", powercap=absent, nvml=nvml).meter, NvmlMeter)
    both = best_meter("cuda", powercap=machine["root"], nvml=nvml).meter
    assert isinstance(both, SumMeter)
    assert both.measured
    with both:
        nvml.counters = [3_000]
        (machine["package"] / "energy_uj").write_text("6000000")
    assert both.reading.joules == pytest.approx(2.0 + 1.0)
    alone = best_meter("cuda", powercap=absent, nvml=FakeNvml(fails="driver"))
    assert alone.meter.source.endswith("the GPU is not in it")
    assert set(alone.unavailable) == {"NVML", "RAPL"}
