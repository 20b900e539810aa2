"""Schedules that are chosen by measurement: the database, what lookups change, the search and its candidates."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from graphopt import artifacts
from graphopt.ir.stages import split
from graphopt.targets.tvm import conv, isa, tiling, tuned, tuning, winograd
from graphopt.targets.tvm.running import Code
from graphopt.targets.tvm.schedule import TORCH, Choice, Schedule, Space, cycles
from graphopt.targets.tvm.tuned import Found
from graphopt.testing import trace

r = torch.randn
FAST = Found(Schedule(2, 1, 1 << 18), 3, False, 2e-3, 1e-3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of this test alone, in a process that has not warned yet."""
    place = tmp_path / "cache"
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(place))
    for name in ("GRAPHOPT_CACHE", "GRAPHOPT_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(artifacts, "_warned", [])
    monkeypatch.setattr(tuned, "_warned", [])
    return place


def network(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Any:
    """Two layers that share their kernels, and one that does not."""
    y = F.gelu(F.linear(x, w, b)) + x
    y = F.gelu(F.linear(y, w, b)) + y
    return F.linear(y, w)


GIVEN = r(13, 24), r(24, 24) / 5, r(24)
(PART,) = split(trace(network, *GIVEN).program)


def code(choices: dict[str, Choice] | None = None) -> Code:
    return Code(None, PART.graph, GIVEN, PART.root, choices)


def check(made: Code) -> None:
    torch.testing.assert_close(made(*GIVEN)[0], network(*GIVEN), rtol=1e-5, atol=1e-5)


def threads() -> int:
    return torch.get_num_threads()


# -- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [None, TORCH, Schedule(3, 2, 7)])
def test_what_is_written_is_read(choice: Choice | None, folder: Path) -> None:
    assert tuned.known(1) == {} and not folder.exists()
    found = Found(choice, 4, True, 2.0, 1.0)
    tuned.keep(1, "a", Found(TORCH, 1, False, 3.0, 2.0))
    tuned.keep(1, "a", found)
    tuned.keep(2, "b", FAST)
    assert tuned.known(1) == {"a": found} and tuned.known(2) == {"b": FAST} and tuned.known(3) == {}
    assert tuned.choices(1) == ({} if choice is None else {"a": choice})
    assert (folder / tuned.NAME).stat().st_mode & 0o077 == 0
    tuned.forget(1, ["a", "c"])
    assert tuned.known(1) == {} and tuned.known(2) == {"b": FAST}


def test_stages(folder: Path) -> None:
    assert tuned.kernels_of("x") is None and not folder.exists()
    tuned.remember("x", ["b", "a"])
    assert tuned.kernels_of("x") == ["a", "b"] and tuned.kernels_of("y") is None


def test_rows_hold_for_the_machine_that_they_were_measured_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.keep(1, "a", FAST)
    monkeypatch.setattr(tuned, "machine", lambda: "another")
    assert tuned.known(1) == {}
    monkeypatch.setattr(tuned, "machine", lambda: None)
    assert tuned.known(1) == {}
    with pytest.raises(OSError, match="which CPU and compiler"):
        tuned.keep(1, "a", FAST)


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"rows": 1}', '{"rows": 1, "vectors": 0, "work": 1}',
                                  '{"rows": 1, "vectors": 1.5, "work": 1}', '"eager"'])  # fmt: skip
def test_rows_that_cannot_be_read_do_not_count(text: str, folder: Path) -> None:
    tuned.keep(1, "a", FAST)
    tuned.keep(1, "b", FAST)
    with contextlib.closing(sqlite3.connect(folder / tuned.NAME)) as database, database:
        database.execute("UPDATE kernels SET choice = ? WHERE kernel = 'a'", (text,))
    assert tuned.known(1) == {"b": FAST}


def test_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", "0")
    assert tuned.path() is None and tuned.known(1) == {}
    with pytest.raises(OSError, match="no folder to write to"):
        tuned.keep(1, "a", FAST)


def others_may_write(file: Path) -> None:
    file.chmod(0o666)


def damaged(file: Path) -> None:
    file.write_bytes(b"no database, but long enough to be taken for one" * 9)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def linked(file: Path) -> None:
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (others_may_write, "others may write to"),
        (damaged, "not a database; if it is damaged, remove it"),
        (empty, "no such table"),
        (linked, "symbolic link"),
    ],
)
def test_a_database_that_cannot_be_used(harm: Any, words: str, folder: Path) -> None:
    identity = tune_one()
    harm(folder / tuned.NAME)
    with pytest.warns(RuntimeWarning, match=f"what was tuned is not used: .*{words}") as found:
        for _ in range(2):
            check(code())
    assert len(found) == 1 and identity not in tuned.choices(threads())


@pytest.mark.parametrize("harm", [others_may_write, damaged, linked])
def test_a_database_that_cannot_be_written(harm: Any, folder: Path) -> None:
    tuned.keep(1, "a", FAST)
    harm(folder / tuned.NAME)
    with pytest.raises(OSError, match=tuned.NAME):
        tuned.keep(1, "a", FAST)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_database_that_is_read_only(folder: Path) -> None:
    tune_one()
    (folder / tuned.NAME).chmod(0o400)
    with pytest.warns(RuntimeWarning, match="readonly"):
        check(code())
    with pytest.raises(OSError, match="readonly"):
        tuned.keep(1, "a", FAST)


# -- what is looked up -----------------------------------------------------------------------------------------------


def tune_one() -> str:
    """Choose another schedule for the kernel that two layers share; its identity."""
    builder = code({}).builder
    identities = [builder.identity(step) for step in builder.plan.steps]  # type: ignore[arg-type]
    assert len(identities) == 3 and len(set(identities)) == 2 and set(identities) == {*builder.spaces}
    schedule = builder.spaces[identities[0]].forms[0]
    tuned.keep(threads(), identities[0], Found(schedule, 1, False, 2.0, 1.0))
    return identities[0]


def test_a_choice_changes_the_code_and_not_the_results(folder: Path) -> None:
    plain = code()
    identity = tune_one()
    made = code()
    assert not made.kept and made.source("tir") != plain.source("tir")
    assert made.builder.choice(made.builder.plan.steps[0]) == tuned.choices(threads())[identity]  # type: ignore[arg-type]
    check(made)
    again = code()
    assert again.kept and "generated" not in vars(again)
    check(again)
    assert code({}).kept and code({}).source("tir") == plain.source("tir")
    tuned.forget(threads(), [identity])
    assert code().kept and code().source("tir") == plain.source("tir")


def test_other_kernels_choices_change_nothing(folder: Path) -> None:
    code()
    tuned.keep(threads(), "another", FAST)
    tuned.keep(threads() + 1, tune_one(), FAST)
    tuned.forget(threads(), [tune_one()])
    assert code().kept


def test_what_is_no_choice_is_not_taken(folder: Path) -> None:
    plain = code()
    for choice in (Schedule(64, 64, 1), Schedule(1, 1, 12345)):
        tuned.keep(threads(), tune_one(), Found(choice, 1, False, 2.0, 1.0))
        made = code()
        assert made.source("tir") == plain.source("tir")
        check(made)


def test_a_kernel_is_left_to_torch(folder: Path) -> None:
    identity = tune_one()
    tuned.keep(threads(), identity, Found(TORCH, 15, True, 2.0, 1.0))
    for kept in (False, True):
        made = code()
        assert made.kept is kept and made.packs() == frozenset()
        check(made)
        assert len(made.names()) == 1 and made.builder.measured == [TORCH, TORCH]


def test_convolutions_are_left_to_torch_with_what_comes_before_and_after(folder: Path) -> None:
    def function(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> Any:
        y = F.conv2d(x.sigmoid() + 1, w, padding=1).relu()
        return F.conv2d(y, v).flatten(1).softmax(-1), F.conv1d(x[:, :, 0], u).tanh()

    values = r(2, 3, 9, 9), r(5, 3, 3, 3), r(4, 5, 1, 1), r(5, 3, 3)
    (part,) = split(trace(function, *values).program)
    builder = Code(None, part.graph, values, part.root, {}).builder
    assert len(builder.spaces) == 3
    made = Code(None, part.graph, values, part.root, dict.fromkeys(builder.spaces, TORCH))
    assert not [name for name in made.names() if name.startswith(("conv", "pad"))]
    for got, expected in zip(made(*values), function(*values), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# -- the search ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No time is measured: every second candidate is faster, and few are tried."""
    answers = iter(range(1000))
    monkeypatch.setattr(tuning, "compared", lambda old, new: 1e-9 if next(answers) % 2 == 0 else None)
    monkeypatch.setattr("graphopt.targets.tvm.schedule._FORMS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_search_is_interrupted_and_resumed(folder: Path, quick: None) -> None:
    search = tuning.Search(code(), GIVEN)
    assert len(search.subjects) == 2 and sum(subject.calls for subject in search.subjects) == 3
    said: list[tuple[str, int]] = []

    def interrupted(subject: tuning.Subject, found: Found) -> None:
        said.append((subject.identity, found.tried))
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(60.0, interrupted)
    assert {identity: found.tried for identity, found in tuned.known(threads()).items()} == {said[0][0]: 3}
    check(code())
    tuning.Search(code(), GIVEN).run(60.0, lambda subject, found: said.append((subject.identity, found.tried)))
    sizes = {subject.identity: len(subject.space) for subject in search.subjects}
    assert len(said) == len(set(said)) == sum(sizes.values())
    assert {identity: found.tried for identity, found in tuned.known(threads()).items()} == sizes
    assert all(outcome.found and outcome.found.finished for outcome in search.outcomes())
    before = len(said)
    tuning.Search(code(), GIVEN).run(60.0, lambda subject, found: said.append((subject.identity, found.tried)))
    assert len(said) == before
    search.forget()
    assert tuned.known(threads()) == {}


def test_without_time_nothing_is_tried(folder: Path, quick: None) -> None:
    search = tuning.Search(code(), GIVEN)
    search.run(0.0, lambda subject, found: pytest.fail("tried"))
    assert [outcome.found for outcome in search.outcomes()] == [None, None]
    assert all(outcome.to_dict()["choice"] is None for outcome in search.outcomes())


def test_wrong_candidates_are_not_kept(folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_agree", lambda result, expected: False)
    search = tuning.Search(code(), GIVEN)
    with pytest.warns(RuntimeWarning, match="computes something else with"):
        search.run(60.0, lambda subject, found: None)
    assert tuned.choices(threads()) == {} and all(found.finished for found in tuned.known(threads()).values())


def test_results_that_differ_in_more_than_rounding_are_told() -> None:
    value = r(5, 7)
    assert tuning._agree(value * (1 + 1e-7), value)
    assert not tuning._agree(value + 1e-3, value)
    value[0, 0] = float("nan")
    assert tuning._agree(value.clone(), value) and not tuning._agree(torch.ones(5, 7), value)


def test_the_gain_of_whole_steps(folder: Path) -> None:
    tune_one()
    assert all(seconds > 0 for seconds in tuning.gain(code(), GIVEN, 1))


# -- candidates ------------------------------------------------------------------------------------------------------

SIZES = st.integers(1, 300)
CPUS = st.sampled_from([isa.Isa("a", 4, 16), isa.Isa("b", 8, 16), isa.Isa("c", 16, 32)])


def check_space(cpu: isa.Isa, space: Space) -> None:
    """All candidates fit, are each other's alternatives, and are what is taken from the database."""
    assert space.default in space and len(set(space.forms)) == len(space.forms) and space.default not in space.forms
    assert Schedule(99, 1, space.default.work) not in space and TORCH not in space and None not in space
    best = space.default
    for number in range(len(space)):
        candidate = space.candidate(number, best)
        assert isinstance(candidate, Schedule) and candidate in space and candidate != space.default
        assert candidate.rows * candidate.vectors + candidate.vectors + 1 <= cpu.registers
        best = candidate
        assert min(candidate.rows, candidate.vectors, candidate.work) > 0


@given(CPUS, SIZES, SIZES, SIZES, st.integers(1, 3))
def test_candidates_of_products(cpu: isa.Isa, rows: int, columns: int, terms: int, batch: int) -> None:
    space = tiling.choices(cpu, tiling.Product(rows, columns, terms, batch))
    check_space(cpu, space)
    assert all(form.rows <= rows for form in space.forms)


@given(CPUS, SIZES, SIZES, SIZES, st.integers(1, 8), st.integers(1, 6), st.integers(1, 1 << 23))
def test_cuts(cpu: isa.Isa, rows: int, columns: int, terms: int, high: int, wide: int, most: int) -> None:
    """Tasks cover all tiles and panels, none is empty, and they are no larger than asked for; runs cover all terms."""
    product, form = tiling.Product(rows, columns, 10 * terms), tiling.Tiles(high, wide, cpu.lanes)
    for found in (best := tiling.cut(cpu, product, form), tiling.cut(cpu, product, form, most)):
        assert (found.height - 1) * form.rows < rows <= found.down * found.height * form.rows
        assert (found.width - 1) * form.columns < columns <= found.across * found.width * form.columns
        assert (found.down - 1) * found.height * form.rows < rows
        assert (found.across - 1) * found.width * form.columns < columns
        assert (found.runs - 1) * found.terms < product.terms <= found.runs * found.terms
    assert found.work <= most or found.height == found.width == 1
    assert tiling.cut(cpu, product, form, best.work) == best, "the default's work gives the default"


def test_forms_leave_little_of_a_tile_without_use() -> None:
    """Of 32 rows, tiles of six would leave a seventh of the last one; of 512 they leave nearly nothing."""
    cpu = isa.Isa("b", 8, 16, 2)
    few, many, one = (tiling.formula(cpu, tiling.Product(rows, 1536, 192)) for rows in (32, 512, 1))
    assert (few.rows, few.vectors) == (4, 3) and (many.rows, many.vectors) == (6, 2) and one.rows == 1


@given(CPUS, SIZES, SIZES, st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]))
def test_candidates_of_convolutions(cpu: isa.Isa, channels: int, outputs: int, y: int, x: int, edge: int) -> None:
    source = conv.Source(0, 0, 0, tuple(range(edge * edge)), (y, x))
    check_space(cpu, conv.choices(cpu, conv.Sizes(2, channels, outputs), source))
    check_space(cpu, winograd.choices(winograd.Shape(cpu, 2, channels, (y, x), outputs, (1, 1), 4)))


@settings(max_examples=3)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.data())
def test_candidates_of_random_products_compute_the_same(rows: int, columns: int, terms: int, data: Any) -> None:
    """A linear layer, a product of computed factors and a convolution, each with a schedule drawn for it."""

    def function(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor) -> Any:
        y = F.linear(x, w).relu()
        return y, torch.matmul(x.exp(), w.mT), F.conv2d(x[None, None], f, padding=1) * 2

    values = r(rows, terms), r(columns, terms), r(5, 1, 3, 3)
    (part,) = split(trace(function, *values).program)
    spaces = Code(None, part.graph, values, part.root, {}).builder.spaces
    chosen: dict[str, Choice] = {}
    for identity, space in spaces.items():
        form = data.draw(st.sampled_from((space.default, *space.forms)))
        chosen[identity] = Schedule(form.rows, form.vectors, data.draw(st.sampled_from((form.work, *space.works))))
    made = Code(None, part.graph, values, part.root, chosen)
    for got, expected in zip(made(*values), function(*values), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_model_of_a_core() -> None:
    cpu = isa.Isa("b", 8, 16)
    assert cycles(cpu, 6, 2, 100) == 600
    assert cycles(cpu, 1, 1, 100) == 400, "a sum waits for itself"
    assert cycles(cpu, 14, 1, 100) == 750, "numbers are read for each row"
