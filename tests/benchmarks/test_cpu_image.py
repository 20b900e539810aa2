"""Contenders take the place of a pipeline's modules, and images that differ, or contenders that fail, are reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cpu_image, cpu_step
from benchmarks.cpu_image import Images, first_calls, grey_levels, image, install, markdown, measure, prompt
from benchmarks.cpu_step import Arguments, Install, Positional
from benchmarks.pipelines import DiffusersPipeline, diffusers_pipelines
from graphopt.compile import modules

BUNDLED = diffusers_pipelines()
PARTS = {"emoji-unet": "unet", "emoji-dit": "transformer"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=cpu_image.MODELS)
def entry(request: pytest.FixtureRequest) -> DiffusersPipeline:
    return BUNDLED[request.param]


@pytest.fixture(scope="module")
def calls(entry: DiffusersPipeline) -> dict[str, Arguments]:
    return first_calls(entry)


def contender(monkeypatch: pytest.MonkeyPatch, put: Install) -> str:
    """The name of a contender that is there on every machine and does this."""
    monkeypatch.setitem(cpu_step.CONTENDERS, "openvino", put)
    monkeypatch.setattr(cpu_image, "missing", lambda name: None)
    return "openvino"


def by_position(module: torch.nn.Module, example: Arguments, threads: int) -> None:
    """As OpenVINO is put in, with the module itself as what was converted."""
    own = torch.nn.Module()  # whose call is not replaced
    own.forward = module.forward
    positional = Positional(own, example)

    def call(*args: Any, **kwargs: Any) -> Any:
        return positional.rebuilt(positional(*positional.tensors((args, kwargs))))

    module._compiled_call_impl = call


def test_every_number_is_another_prompt() -> None:
    assert len({prompt(number) for number in range(1000)}) == 1000


def test_all_modules_are_called_with_something(entry: DiffusersPipeline, calls: dict[str, Arguments]) -> None:
    assert list(calls) == ["text_encoder", PARTS[entry.name], "vae.decoder"]
    assert {*calls} == {name for name, _ in modules(entry.make())}


def test_a_module_as_a_function_of_tensors(
    entry: DiffusersPipeline, calls: dict[str, Arguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pipe = contender(monkeypatch, by_position), entry.make()
    expected = image(entry, pipe, 1, 2)
    assert install(name, pipe, calls, threads=1) == []
    assert all(module._compiled_call_impl is not None for _, module in modules(pipe))
    assert grey_levels(image(entry, pipe, 1, 2), expected) == 0


def test_a_call_with_other_arguments_is_refused(calls: dict[str, Arguments]) -> None:
    args, kwargs = calls["text_encoder"]
    positional = Positional(torch.nn.Identity(), (args, kwargs))
    assert len(positional.tensors((args, kwargs))) == len(positional.places)
    for other in ((*args, None), kwargs), (args, kwargs | {"attention_mask": 1}):
        with pytest.raises(ValueError, match="converted for calls with other arguments"):
            positional.tensors(other)


def test_a_text_encoder_may_stay_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(module: torch.nn.Module, example: Arguments, threads: int) -> None:
        by_position(module, example, threads)
        if hasattr(module, "config") and "text" in type(module).__name__.lower():
            raise RuntimeError("no such operator\nin two lines")

    name = contender(monkeypatch, put)
    result = measure(BUNDLED["emoji-unet"], ["original", name], 2, steps=1, threads=1, warm_up=1)
    assert result.complaints("emoji-unet") == [] and result.off == {"original": 0, name: 0}
    assert result.eager == {"original": [], name: ["text_encoder (RuntimeError: no such operator)"]}
    assert [len(times) for times in result.times.values()] == [2, 2] and result.steps == 1
    table = markdown("emoji-unet", result, 1)
    assert table.count("\n| ") == 3 and "openvino leaves as it is: text_encoder (RuntimeError" in table


def test_other_images_and_failures_are_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    def brighter(module: torch.nn.Module, example: Arguments, threads: int) -> None:
        by_position(module, example, threads)
        inner: Any = module._compiled_call_impl
        if type(module).__name__ == "Decoder":
            module._compiled_call_impl = lambda *args, **kwargs: inner(*args, **kwargs) * 0.5

    def fail(module: torch.nn.Module, example: Arguments, threads: int) -> None:
        if type(module).__name__ == "Decoder":
            raise RuntimeError

    name = contender(monkeypatch, brighter)
    monkeypatch.setitem(cpu_step.CONTENDERS, "torch.compile", fail)
    result = measure(BUNDLED["emoji-unet"], ["original", name, "torch.compile"], 1, steps=1, threads=1, warm_up=1)
    off, failed = result.complaints("emoji-unet")
    assert off.startswith("emoji-unet, openvino: off by ") and off.endswith(" grey levels")
    assert failed == "emoji-unet, torch.compile: RuntimeError: "
    assert "**FAILED**" in markdown("emoji-unet", result, 1)


def test_differences_of_eight_bits_do_not_wrap_around() -> None:
    one, other = np.array([[0, 255]], np.uint8), np.array([[255, 254]], np.uint8)
    assert grey_levels(one, other) == 255
    assert Images(off={"tvm": 2.0, "exact": 3.0}).complaints("m") == ["m, exact: off by 3 grey levels"]


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_image, "missing", lambda name: "not here" if name == "openvino" else None)
    result = measure(BUNDLED["emoji-dit"], ["original", "openvino"], 1, steps=1, threads=1, warm_up=1)
    assert result.left_out == {"openvino": "not here"} and result.complaints("emoji-dit") == []
    assert "openvino left out: not here" in markdown("emoji-dit", result, 1)
