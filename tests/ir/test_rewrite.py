from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from graphopt.errors import PassError, VerificationError
from graphopt.ir.driver import Observers, check_order, run_pass, run_pipeline
from graphopt.ir.printer import dump
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Accuracy, Match, Observer, Pass, Refusal, spell
from graphopt.ir.verify import Verification
from graphopt.testing import Recorder, check_pass, sketch

aten = torch.ops.aten


@dataclass(frozen=True)
class SinToCos(Pass):
    """Wrong on purpose: same shapes, other numbers."""

    broken: str = ""
    limit: int = 9

    requires: ClassVar[tuple[str, ...]] = ("sines",)

    def find(self, program: Program) -> Iterable[Match]:
        for node in program.calls(aten.sin.default):
            yield Match(node)
            yield Match(node)  # void once the first has fired

    def legal(self, program: Program, match: Match) -> Refusal | None:
        return Refusal("a sine of an input", match.root) if match.root.args[0] in program.placeholders else None

    def rewrite(self, program: Program, match: Match) -> None:
        if self.broken == "raises":
            raise ValueError("no cosine at hand")
        if self.broken == "shape":
            program.output.args = (tuple(program.placeholders) * 2,)
        program.replace(match.root, program.call(aten.cos.default, match.root.args[0], before=match.root))


@dataclass(frozen=True)
class MakeSines(Pass):
    """Ensures that there are sines, by believing it."""

    ensures: ClassVar[tuple[str, ...]] = ("sines",)

    def find(self, program: Program) -> Iterable[Match]:
        return ()

    def rewrite(self, program: Program, match: Match) -> None:
        raise AssertionError


def example() -> Program:
    body = "a = ops.aten.sin.default(x)\nb = ops.aten.sin.default(a)\nc = ops.aten.sin.default(b)\nreturn (c,)"
    return sketch(body, x="f32[3]").program


def test_fires_where_legal_and_records_the_rest_once() -> None:
    program, recorder, other = example(), Recorder(), Recorder()
    before = dump(program)
    after = run_pass(SinToCos(), program, Observers([recorder, other]))
    assert recorder.fired == other.fired == [("sin_to_cos", "b"), ("sin_to_cos", "c")]
    assert [(refusal.reason, refusal.node.name) for _, refusal in recorder.refusals] == [("a sine of an input", "a")]
    assert dump(program) == before
    assert [node.meta.get("rules") for node in after.calls()] == [None, ("sin_to_cos",), ("sin_to_cos",)]


@pytest.mark.parametrize(("broken", "error"), [("raises", "no cosine at hand"), ("shape", "the number of results")])
def test_a_failing_pass_is_rolled_back(broken: str, error: str) -> None:
    program = example()
    pipeline = (MakeSines(), SinToCos(broken))
    with pytest.raises(PassError, match=error):
        run_pipeline(pipeline, program, strict=True)
    with pytest.warns(RuntimeWarning, match="'sin_to_cos' was rolled back"):
        after = run_pipeline(pipeline, program)
    assert dump(after) == dump(program)


def test_order() -> None:
    check_order((MakeSines(), SinToCos()))
    with pytest.raises(PassError, match="this order is legal: make_sines → sin_to_cos"):
        check_order((SinToCos(), MakeSines()))
    with pytest.raises(PassError, match="add a pass that ensures 'sines'"):
        check_order((SinToCos(),))


def test_spelling() -> None:
    assert spell(SinToCos()) == "sin_to_cos"
    assert spell(SinToCos("shape", limit=3)) == "sin_to_cos{broken='shape',limit=3}"


def test_check_pass_sees_wrong_numbers() -> None:
    with pytest.raises(VerificationError, match="not bitwise"):
        check_pass(SinToCos(), example())


class Order(Observer):
    """Notes which methods are called, and vetoes rewrites of nodes by name."""

    def __init__(self, *vetoed: str) -> None:
        self.calls: list[str] = []
        self.vetoed = vetoed

    def allows(self, pass_: Pass, match: Match) -> bool:
        self.calls.append(f"allows {match.root.name}")
        return match.root.name not in self.vetoed

    def rewrites(self, pass_: Pass, match: Match) -> None:
        self.calls.append(f"rewrites {match.root.name}")

    def rewritten(self, pass_: Pass, match: Match, program: Program) -> None:
        program.graph.lint()
        self.calls.append("rewritten")

    def checks(self, pass_: Pass, before: Program, after: Program) -> None:
        self.calls.append("checks")

    def pass_ends(self, pass_: Pass, before: Program, after: Program, fired: int) -> None:
        self.calls.append(f"ends {fired}")


def test_observers_see_all_and_each_can_veto_a_rewrite() -> None:
    seeing, vetoing = Order(), Order("b")
    after = run_pass(SinToCos(), example(), Observers([seeing, vetoing]))
    again = ["allows b", "allows b"]  # found twice, and once more in the sweep that finds nothing else to do
    assert seeing.calls == [*again, "allows c", "rewrites c", "rewritten", *again, "checks", "ends 1"]
    assert vetoing.calls == seeing.calls
    assert [node.target for node in after.calls()].count(torch.ops.aten.cos.default) == 1


def test_an_observer_can_have_a_pass_rolled_back() -> None:
    class Strict(Observer):
        def checks(self, pass_: Pass, before: Program, after: Program) -> None:
            raise VerificationError("not to my taste")

    with pytest.warns(RuntimeWarning, match="not to my taste"):
        after = run_pipeline((MakeSines(), SinToCos()), example(), Strict())
    assert dump(after) == dump(example())


def test_values_are_verified_on_demand() -> None:
    run_pass(SinToCos(), example())  # its numbers are wrong, its structure is right
    with pytest.raises(VerificationError, match="not bitwise"):
        run_pass(SinToCos(), example(), Verification(values=True))


def test_an_accuracy_that_is_none_or_an_option_is_refused_where_it_is_written() -> None:
    with pytest.raises(PassError, match="did you mean 'rounding'"):
        type("Sloppy", (SinToCos,), {"accuracy": "rouding"})
    with pytest.raises(PassError, match="annotated as an option"):
        type("Sloppy", (SinToCos,), {"accuracy": "rounding", "__annotations__": {"accuracy": "str"}})
    with pytest.raises(PassError, match=r"spreads is annotated as an option[^!]*spreads: ClassVar\[bool\] = True"):
        type("Sloppy", (SinToCos,), {"spreads": True, "__annotations__": {"spreads": "bool"}})


@dataclass(frozen=True)
class Lossy(SinToCos):
    accuracy: ClassVar[Accuracy] = "lossy"


def test_a_lossy_pass_may_change_values() -> None:
    after = run_pass(Lossy(), example(), Verification(values=True), check=False)
    assert dump(after) != dump(example())
    check_pass(Lossy(), example())


@dataclass(frozen=True)
class Unrunnable(SinToCos):
    """Makes an operation that raises when its shapes are inferred anew."""

    def rewrite(self, program: Program, match: Match) -> None:
        super().rewrite(program, match)
        node = next(iter(program.calls(aten.cos.default)))
        node.target = aten.reshape.default
        node.args = (node.args[0], [-7])


def test_a_result_that_cannot_be_checked_is_the_fault_of_the_pass() -> None:
    with pytest.raises(VerificationError, match="cannot be checked: RuntimeError"):
        run_pass(Unrunnable(), example())


@pytest.mark.parametrize("error", [ValueError("mine"), PassError("mine")], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "method", ["pass_begins", "allows", "rewrites", "rewritten", "refuses", "checks", "pass_ends", "pass_fails"]
)
def test_what_an_observer_raises_goes_to_the_caller(method: str, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    observer = Recorder()
    setattr(observer, method, fails)
    pipeline = (MakeSines(), SinToCos("raises" if method == "pass_fails" else ""))
    if method == "checks" and isinstance(error, PassError):
        with pytest.warns(RuntimeWarning, match="was rolled back: mine"):
            assert dump(run_pipeline(pipeline, example(), observer)) == dump(example())
        return
    with pytest.raises(type(error)) as raised:
        run_pipeline(pipeline, example(), observer)
    assert raised.value is error


def test_an_error_names_the_line_of_the_pass() -> None:
    with pytest.raises(PassError, match=r"where: test_rewrite.py:\d+ in rewrite, program '") as raised:
        run_pass(SinToCos("raises"), run_pass(MakeSines(), example()))
    assert isinstance(raised.value.__cause__, ValueError)


@dataclass(frozen=True)
class Needs(Pass):
    """Never fires; `a` needs and gives other things than `b`."""

    what: str = ""

    find = MakeSines.find
    rewrite = MakeSines.rewrite

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.what.partition(">")[0].split())

    @property
    def ensures(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.what.partition(">")[2].split())


def test_an_order_is_found_where_the_first_that_ensures_something_needs_it_itself() -> None:
    first, second, third = (Needs(what) for what in ("y > x", "x > y", " > x"))
    order = " → ".join(spell(pass_) for pass_ in (third, second, first))
    with pytest.raises(PassError) as raised:
        check_order((first, second, third))
    assert f"this order is legal: {order}" in str(raised.value)
    check_order((third, second, first))
    with pytest.raises(PassError, match="add a pass that ensures 'y'"):
        check_order((first, second))


@dataclass(frozen=True)
class Careless(Pass):
    """Gives back whatever it is told to."""

    found: Any = None
    answer: Any = None
    made: Any = None

    def find(self, program: Program) -> Any:
        return [Match(node) for node in program.calls()] if self.found is None else self.found

    def legal(self, program: Program, match: Match) -> Any:
        return self.answer

    def rewrite(self, program: Program, match: Match) -> Any:
        return self.made


@pytest.mark.parametrize(
    ("careless", "what", "hint"),
    [
        ({"answer": True}, r"'careless': legal returned True \(bool\)", "None to rewrite here, or Refusal"),
        ({"answer": False}, r"legal returned False \(bool\)", "None to rewrite here, or Refusal"),
        ({"answer": "no"}, r"legal returned 'no' \(str\)", "None to rewrite here, or Refusal"),
        ({"answer": Refusal("no", None)}, r"legal returned Refusal\('no' \(str\), None\)", "a node of the program"),  # type: ignore[arg-type]
        ({"found": 3}, r"find returned 3 \(int\)", r"yield Match\(node\)"),
        ({"found": [3]}, r"find gave 3 \(int\)", r"Match\(node\)"),
        ({"made": "new"}, r"rewrite returned 'new' \(str\)", "program.replace"),
    ],
)
def test_what_a_pass_should_not_return_is_named(careless: dict[str, Any], what: str, hint: str) -> None:
    program = sketch("y = ops.aten.sin.default(x)\nreturn (y,)", x="f32[3]").program
    with pytest.raises(PassError, match=what) as caught:
        run_pass(Careless(**careless), program)
    assert re.search(hint, caught.value.hint) and caught.value.where.startswith("Careless.")
    with pytest.warns(RuntimeWarning, match="'careless' was rolled back"):
        assert run_pipeline((Careless(**careless),), program) is program


def test_a_find_that_forgot_to_yield() -> None:
    class Forgetful(Careless):
        def find(self, program: Program) -> Any:
            return None

    with pytest.raises(PassError, match="find returned None"):
        run_pass(Forgetful(), sketch("return (x,)", x="f32[3]").program)
