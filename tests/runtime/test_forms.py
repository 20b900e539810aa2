"""Variants are told apart by what differs in their calls, and what is compiled is logged with the reason."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import graphopt
from graphopt.capture.calls import CallTaker
from graphopt.capture.guards import CALL_STATE, call_state
from graphopt.runtime.forms import form, names, why
from tests.racing import let_win


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, ctx: torch.Tensor, double: bool = False) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) + ctx
        return result * 2 if double else result


def forms(*calls: tuple[Any, ...]) -> list[dict[str, str]]:
    taker = CallTaker(Scaled().forward)
    return [form(taker, taker.take(call, {}), call_state()) for call in calls]


def test_a_form() -> None:
    x = torch.zeros(2, 4)
    (found,) = forms((x, x, True))
    assert found["x"] == "x f32[2, 4]"
    assert found["ctx"] == "ctx is x"
    assert found["double"] == "double=True"
    assert found["default dtype"] == "default dtype torch.float32"
    assert len(CALL_STATE) == len(call_state()) and set(CALL_STATE) < set(found)


def test_names_have_only_what_differs() -> None:
    x, half = torch.zeros(2, 4), torch.zeros(1, 4, dtype=torch.float16)
    assert names(forms((x, x.clone()))) == [""]
    assert names([]) == []
    assert names(forms((x, x.clone()), (half, x))) == ["x f32[2, 4]", "x f16[1, 4]"]
    assert names(forms((x, half), (x, half, True))) == ["no double", "double=True"]
    assert names(forms((x, half), (x, half), (half, half.clone()))) == [
        "x f32[2, 4], number 1 of 2", "x f32[2, 4], number 2 of 2", "x f16[1, 4]",
    ]  # fmt: skip
    assert names(forms((x, half), (x, half))) == ["number 1 of 2", "number 2 of 2"]


def test_a_long_name_is_cut() -> None:
    some = [{f"residuals.{k}": f"residuals.{k} f32[{n}]" for k in range(6)} for n in (1, 2)]
    assert names(some)[0] == ", ".join(f"residuals.{k} f32[1]" for k in range(4)) + ", 2 more"


def test_why() -> None:
    first, same, other = forms(*[(torch.zeros(n, 4), torch.zeros(4)) for n in (2, 2, 3)])
    assert why(first, []) == "first call"
    assert why(other, [first]) == "new: x f32[3, 4]"
    assert why(other, [{**first, "ctx": "ctx f16[4]"}, first]) == "new: x f32[3, 4]"
    assert "has changed" in why(same, [first, other])


def calls(module: torch.nn.Module, *sizes: int) -> None:
    with torch.no_grad():
        for n in sizes:
            module(torch.randn(n, 4), torch.randn(4))


def test_the_report_tells_variants_apart() -> None:
    module = graphopt.compile(Scaled().eval(), target="eager")
    calls(module, 2)
    assert [entry.name for entry in graphopt.report(module).modules[0].variants] == [""]
    assert "variant" not in str(graphopt.report(module))
    calls(module, 3)
    report = graphopt.report(module)
    assert [entry.name for entry in report.modules[0].variants] == ["x f32[3, 4]", "x f32[2, 4]"]
    assert "  variant: x f32[3, 4]\n" in str(report)
    assert report.to_dict()["modules"][0]["variants"][0]["name"] == "x f32[3, 4]"


def test_what_is_compiled_is_logged(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    module = graphopt.compile(Scaled().eval(), target="eager")
    with caplog.at_level(logging.INFO, logger="graphopt"):
        calls(module, 2, 2, 3)
    begins, ends, again, _ = [record.getMessage() for record in caplog.records]
    assert begins == "Scaled: compiling Scaled: first call"
    assert ends.startswith("Scaled: compiled for target eager in ") and "(capture " in ends
    assert ends.endswith("; nothing was in the cache")
    assert again == "Scaled: compiling Scaled: new: x f32[3, 4]"
    assert {record.name for record in caplog.records} == {"graphopt"}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="graphopt"):
        twin = Scaled().eval()
        twin.load_state_dict(module.state_dict())
        calls(graphopt.compile(twin, target="eager"), 2)
    assert "from the cache: captured graph, graph after passes" in caplog.text
    assert not any(capsys.readouterr())


def test_nothing_is_said_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    calls(graphopt.compile(Scaled().eval(), target="eager"), 2)
    assert not any(capfd.readouterr())


def test_a_race_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    let_win(monkeypatch, "eager")
    with caplog.at_level(logging.INFO, logger="graphopt"):
        calls(graphopt.compile(Scaled().eval(), target=("eager",)), 2)
    assert "measuring which is fastest: original, eager" in caplog.text
    assert "from now on runs eager" in caplog.text
