"""Generated code is kept from one process to the next: what is read is what was written, for this machine and user."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm")

from graphopt import artifacts
from graphopt.ir.stages import split
from graphopt.targets.tvm import entry, host, isa
from graphopt.targets.tvm.image import linked
from graphopt.targets.tvm.running import Code
from graphopt.testing import trace
from tests.structure.checks import ROOT

r = torch.randn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of this test alone, in a process that has not warned yet."""
    place = tmp_path / "cache"
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(place))
    for name in ("GRAPHOPT_CACHE", "GRAPHOPT_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(artifacts, "_warned", [])
    return place


def network(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Any:
    """What has panels, a scratch, kernels that share code, an operation of torch's and results of several kinds."""
    y = F.gelu(F.linear(x, w, b)) + x
    y = F.gelu(F.linear(y, w, b)) + y
    ordered = torch.sort(y, dim=-1).values
    return F.softmax(ordered, -1), F.linear(y.transpose(0, 1), w), torch.exp(y)


GIVEN = r(24, 24), r(24, 24) / 5, r(24)
PROGRAM = trace(network, *GIVEN).program
(PART,) = split(PROGRAM)


def code(cpu: isa.Isa | None = None) -> Code:
    return Code(cpu, PART.graph, GIVEN, PART.root)


def check(made: Code) -> None:
    for _ in range(2):
        for got, expected in zip(made(*GIVEN), network(*GIVEN), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generating code fails."""

    def fail(*arguments: Any) -> None:
        raise AssertionError("code is generated")

    monkeypatch.setattr("graphopt.targets.tvm.generate.Generated.__init__", fail)


def test_the_second_time_nothing_is_generated(folder: Path, request: pytest.FixtureRequest) -> None:
    first = code()
    check(first)
    request.getfixturevalue("no_compiler")
    second = code()
    check(second)
    assert (first.kept, second.kept) == (False, True)
    assert first.plan == second.plan
    assert first.names() == second.names()
    (kept,) = artifacts.kept()
    assert kept.path.parent == folder and kept.bytes == kept.path.stat().st_size
    assert folder.stat().st_mode & 0o777 == 0o700


def test_kept_code_can_be_timed_and_read(folder: Path) -> None:
    first, second = code(), code()
    assert [launch.name for launch, _ in second.timed(GIVEN, 2)] == [launch.name for launch, _ in first.timed(GIVEN, 2)]
    assert all(seconds > 0 for _, seconds in second.timed(GIVEN, 1))
    assert "generated" not in vars(second)
    name = second.names()[0]
    assert second.source("tir", name) == first.source("tir", name)
    assert f"graphopt_{name}" in second.source("asm", name)
    assert [str(node) for node in second.builder.plan.left] == [str(node) for node in first.builder.plan.left]


KEY = entry.key(None, PROGRAM.graph, GIVEN)


def test_keys_differ_by_what_a_graph_computes() -> None:
    functions: list[Any] = [
        lambda x, w, b: (F.linear(x, w, b) * 2.0, x),
        lambda x, w, b: (F.linear(x, w, b) * 3.0, x),
        lambda x, w, b: (F.linear(x, w, b) * 2.0, b),
        lambda x, w, b: (F.linear(x, w) * 2.0, x),
        lambda x, w, b: (F.linear(x, w, b).tanh(), x),
        lambda x, w, b: (F.linear(x, w, b).cosh(), x),
    ]
    keys = {entry.key(None, trace(function, *GIVEN).program.graph, GIVEN) for function in functions}
    assert len(keys - {None, KEY}) == len(functions)


def test_keys_follow_strides_and_the_cpu_and_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = PROGRAM.graph
    assert entry.key(None, graph, GIVEN) == KEY
    renamed = trace(lambda first, second, third: network(first, second, third), *GIVEN).program.graph
    assert entry.key(None, renamed, GIVEN) == KEY
    found = {KEY, entry.key(None, graph, (r(24, 24).T, *GIVEN[1:])), entry.key(isa.of("x86-64"), graph, GIVEN)}
    for name in ("cpu", "compiler"):
        with monkeypatch.context() as patch:
            patch.setattr(host, name, lambda: "another")
            found.add(entry.key(None, graph, GIVEN))
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "sources", lambda *folders: "another")
        found.add(entry.key(None, graph, GIVEN))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "another")
        found.add(entry.key(None, graph, GIVEN))
    assert len(found) == 7 and None not in found


@pytest.mark.parametrize("name", ["cpu", "compiler"])
def test_code_of_another_machine_is_not_used(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code()
    monkeypatch.setattr(host, name, lambda: "another")
    assert not code().kept
    assert len(artifacts.kept()) == 2


@pytest.mark.parametrize("name", ["cpu", "compiler"])
def test_without_knowledge_of_the_machine_nothing_is_kept(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, name, lambda: None)
    check(code())
    assert not folder.exists()


def test_the_cpu_is_told_from_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(text: str) -> str | None:
        (tmp_path / "cpuinfo").write_text(text)
        host.cpu.cache_clear()
        return host.cpu()

    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    fields = "processor : 0\nvendor_id\t: V\ncpu family\t: 6\nmodel\t\t: 1\nstepping : 0\nflags\t\t: "
    assert told(fields + "fma avx2\ncpu MHz : 1\n\nprocessor : 1\n") == told(fields + "fma avx2\ncpu MHz : 2\n\n")
    assert told(fields + "fma avx2\n") != told(fields + "fma avx2 avx512f\n")
    assert told("Hardware: another kind\n") is None
    (tmp_path / "cpuinfo").unlink()
    host.cpu.cache_clear()
    assert host.cpu() is None
    monkeypatch.undo()
    host.cpu.cache_clear()


def test_an_unknown_cpu_gets_what_every_one_has(folder: Path) -> None:
    unknown = isa.of("no-such-cpu")
    assert (unknown.lanes, unknown.registers) == (4, 16)
    for kept in (False, True):
        made = code(cpu=unknown)
        check(made)
        assert made.kept is kept


# -- damage ----------------------------------------------------------------------------------------------------------


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, changed, lambda content: b""], ids=["cut", "changed", "empty"])
def test_a_damaged_entry_is_written_anew(damage: Any, folder: Path) -> None:
    code()
    (kept,) = artifacts.kept()
    content = kept.path.read_bytes()
    kept.path.write_bytes(damage(content))
    with pytest.warns(RuntimeWarning, match=f"{kept.path} is damaged"):
        made = code()
    check(made)
    assert not made.kept and kept.path.read_bytes() == content
    assert code().kept


# -- folders ---------------------------------------------------------------------------------------------------------


def warned_once(match: str) -> None:
    """Assert that code is generated, with one warning, although the program is built twice."""
    with pytest.warns(RuntimeWarning, match=match) as found:
        for _ in range(2):
            made = code()
            check(made)
            assert not made.kept
    assert len(found) == 1


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
@pytest.mark.parametrize("where", ["make", "write"])
def test_a_disk_that_is_full_or_read_only(
    number: int, words: str, where: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    if where == "make":
        monkeypatch.setattr(tempfile, "mkstemp", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    warned_once(words)
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    folder.mkdir(mode=0o500)
    warned_once("Permission denied")


def test_a_folder_that_is_a_file(folder: Path) -> None:
    folder.write_text("")
    warned_once("Not a directory")


def test_a_home_that_does_not_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAPHOPT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder / "nobody"))
    warned_once("No such file or directory")
    assert not folder.exists()


def test_a_folder_that_others_may_write(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    warned_once("others may write to .*chmod go-w")
    assert not list(folder.iterdir())


def test_a_file_that_others_may_write(folder: Path) -> None:
    code()
    (kept,) = artifacts.kept()
    kept.path.chmod(0o666)
    with pytest.warns(RuntimeWarning, match="others may write to"):
        assert not code().kept


def test_a_folder_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    warned_once(f"belongs to another user \\(uid {owner}\\)")


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    code()
    (kept,) = artifacts.kept()
    kept.path.rename(tmp_path / "elsewhere")
    kept.path.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match="symbolic link"):
        assert not code().kept


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("HOME", "/d")
    monkeypatch.delenv("GRAPHOPT_CACHE", raising=False)
    assert artifacts.folder() == Path("/a/b")
    monkeypatch.delenv("GRAPHOPT_CACHE_DIR")
    assert artifacts.folder() == Path("/c/graphopt")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert artifacts.folder() == Path("/d/.cache/graphopt")
    monkeypatch.setenv("GRAPHOPT_CACHE", "0")
    assert artifacts.folder() is None and artifacts.kept() == [] == artifacts.clear()


def test_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", "0")
    check(code())
    assert not folder.exists()


# -- how much --------------------------------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_BYTES", str(3 * (32 + 100)))
    for age, key in enumerate("abc"):
        artifacts.write(64 * key, artifacts.CODE, bytes(100))
        os.utime(folder / f"{64 * key}.code", (age, age))
    unfinished, recent, other = folder / "graphopt-x.part", folder / "graphopt-y.part", folder / "film.mkv.part"
    other.touch()
    os.utime(other, (0, 0))
    unfinished.touch()
    os.utime(unfinished, (0, 0))
    recent.touch()
    assert artifacts.read(64 * "a", artifacts.CODE) == bytes(100)
    artifacts.write(64 * "d", artifacts.CODE, bytes(100))
    assert {artifact.path.stem[0] for artifact in artifacts.kept()} == {"a", "c", "d"}
    assert recent.exists() and other.exists() and not unfinished.exists()
    artifacts.write(64 * "e", artifacts.CODE, bytes(1000))
    assert artifacts.kept() == []
    assert artifacts.read(64 * "a", artifacts.CODE) is None


def test_a_bound_that_is_no_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_BYTES", "much")
    with pytest.warns(RuntimeWarning, match="GRAPHOPT_CACHE_BYTES is 'much'"):
        artifacts.write("a", artifacts.CODE, b"")


def test_clearing(folder: Path) -> None:
    artifacts.write(64 * "a", artifacts.CODE, b"1")
    (folder / "graphopt-x.part").touch()
    others = {"someone's", "film.mkv.part", "thesis.code"}
    for name in others:
        (folder / name).touch()
    assert [artifact.path.name for artifact in artifacts.clear()] == [f"{64 * 'a'}.code"]
    assert {path.name for path in folder.iterdir()} == others


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 64])
def test_kept_code_runs_on_as_many_threads_as_torch_was_told(threads: int, folder: Path) -> None:
    code()
    before, made = torch.get_num_threads(), code()
    torch.set_num_threads(threads)
    try:
        check(made)
    finally:
        torch.set_num_threads(before)


# -- processes -------------------------------------------------------------------------------------------------------

# Without this module, which imports TVM.
PROCESS = """
import sys, torch
from graphopt.ir.stages import split
from graphopt.testing import trace
from graphopt.targets import TARGETS
torch.manual_seed(0)
given = torch.randn(9, 24), torch.randn(24, 24), torch.randn(24)
def network(x, w, b):
    return torch.nn.functional.silu(torch.nn.functional.linear(x, w, b)) + x
(part,) = split(trace(network, *given).program)
assert TARGETS["tvm"].unavailable(torch.device("cpu")) is None
made = TARGETS["tvm"].build(part, given)
torch.testing.assert_close(made(*given)[0], network(*given), rtol=1e-5, atol=1e-5)
print(made.kept, "tvm" in sys.modules)
if made.kept:
    made.source("asm")  # TVM can still be imported after
    torch.testing.assert_close(made(*given)[0], network(*given), rtol=1e-5, atol=1e-5)
"""


def process(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "GRAPHOPT_CACHE_DIR": str(folder), "PATH": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", PROCESS]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, cwd=ROOT, **pipes)


def output(started: subprocess.Popen[str]) -> str:
    found, errors = started.communicate(timeout=280)
    assert started.returncode == 0, errors
    return found.strip()


@pytest.mark.slow
def test_a_second_process_loads_no_compiler(folder: Path) -> None:
    assert output(process(folder)) == "False True"
    assert output(process(folder)) == "True False"


@pytest.mark.slow
def test_two_processes_fill_one_entry(folder: Path) -> None:
    started = [process(folder) for _ in range(2)]
    assert all(output(each) in ("False True", "True False") for each in started)
    assert [path.suffix for path in folder.iterdir()] == [".code"]
    assert output(process(folder)) == "True False"


# -- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [b"", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01" + bytes(60)])
def test_what_is_no_object_is_not_linked(file: bytes) -> None:
    with pytest.raises(ValueError, match="not a relocatable object for x86-64"):
        linked(file)


def test_functions_that_no_library_has_are_named() -> None:
    with pytest.raises(LookupError, match="generated code calls graphopt_nowhere"):
        host.address("graphopt_nowhere")
