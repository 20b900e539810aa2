"""Whole pipelines around one denoiser, with all relations between their calls relied on: bit for bit the original's."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

import graphopt
from graphopt.ir.relations import Constant, Paired, Repeated
from tests.soundness import tiny
from tests.soundness.tiny import embeddings, generate

STEPS = 5
_MODULE_CALL = torch.nn.Module.__call__


def relations(pipe: Any) -> set[Any]:
    variants = tiny.denoiser(pipe)._compiled_call_impl.variants
    return {entry for variant in variants for entry in variant.relations}


def both(pipes: tuple[Any, Any], work: Callable[[Any], Any], *, times: int = 2) -> None:
    """The same work with each pipeline, `times` over, from the same random numbers."""
    for _ in range(times):
        results = []
        for pipe in pipes:
            torch.manual_seed(0)
            results.append(_flat(work(pipe)))
        for theirs, ours in zip(*results, strict=True):
            assert torch.equal(ours, theirs)
    assert torch.nn.Module.__call__ is _MODULE_CALL
    assert _get_current_dispatch_mode() is None


def _flat(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else [t for entry in results for t in _flat(entry)]


def callback(function: Callable[[Any, int, dict[str, Any]], Any], *names: str) -> dict[str, Any]:
    """Arguments of a call for a callback after each step."""

    def edit(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        function(pipe, step, values)
        return values

    return {"callback_on_step_end": edit, "callback_on_step_end_tensor_inputs": ["latents", *names]}


@pytest.fixture(scope="module")
def diffusion() -> tuple[Any, Any]:
    return tiny.pair(tiny.stable_diffusion, tiny.EXPLOITING)


# -- samplers --------------------------------------------------------------------------------------------------------

SAMPLERS: dict[str, dict[str, Any]] = {
    "HeunDiscreteScheduler": {}, "KDPM2DiscreteScheduler": {}, "PNDMScheduler": {}, "LCMScheduler": {},
    "UniPCMultistepScheduler": {}, "EulerAncestralDiscreteScheduler": {}, "DPMSolverMultistepScheduler": {},
}  # fmt: skip


@contextlib.contextmanager
def sampler(pipe: Any, name: str, **options: Any) -> Iterator[None]:
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(before.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = before


def test_samplers_in_turn(diffusion: tuple[Any, Any]) -> None:
    def work(pipe: Any) -> Any:
        results = []
        for name in (*SAMPLERS, "HeunDiscreteScheduler", "PNDMScheduler"):
            with sampler(pipe, name, **({"skip_prk_steps": False} if name == "PNDMScheduler" else {})):
                results += [generate(pipe, num_inference_steps=STEPS, prompt=prompt) for prompt in (1, 3)]
        with sampler(pipe, "PNDMScheduler", skip_prk_steps=True):
            results.append(generate(pipe, num_inference_steps=STEPS))
        return results

    both(diffusion, work)
    assert Repeated("sample", 2) in relations(diffusion[1])


def test_shortened_schedules(diffusion: tuple[Any, Any]) -> None:
    def work(pipe: Any) -> Any:
        other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        return [
            generate_from(other, image=picture(seed), strength=strength)
            for seed, strength in ((0, 0.5), (1, 0.5), (0, 1.0), (0, 0.75), (0, 0.5))
        ]

    both(diffusion, work, times=1)


def picture(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def generate_from(pipe: Any, *, seed: int = 0, prompt: int = 1, **changes: Any) -> torch.Tensor:
    """A run of a pipeline that takes no height and width."""
    call: dict[str, Any] = {
        "prompt_embeds": embeddings(prompt), "negative_prompt_embeds": embeddings(2), "num_inference_steps": STEPS,
        "output_type": "latent", "generator": torch.Generator().manual_seed(seed),
    }  # fmt: skip
    image: torch.Tensor = pipe(**{**call, **changes}).images
    return image


# -- threads and nesting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled_anew", [True, False])
def test_threads_with_a_pipeline_each(diffusion: tuple[Any, Any], compiled_anew: bool) -> None:
    original = diffusion[0]
    shared = tiny.compiled(tiny.stable_diffusion(), tiny.EXPLOITING) if compiled_anew else diffusion[1]
    requests: list[dict[str, Any]] = [
        {"prompt": 1, "num_inference_steps": 4, "guidance_scale": 3.0},
        {"prompt": 5, "num_inference_steps": 6, "guidance_scale": 6.0, "seed": 4},
    ]
    pipes = []
    for name in ("EulerDiscreteScheduler", "DDIMScheduler"):
        pipe = diffusers.StableDiffusionPipeline(**shared.components, requires_safety_checker=False)
        pipe.scheduler = getattr(diffusers, name).from_config(shared.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.progress_bar = type(shared.progress_bar)(pipe, pipe.progress_bar, [shared.unet._compiled_call_impl])
        pipes.append((name, pipe))
    expected = []
    for (name, _), request in zip(pipes, requests, strict=True):
        with sampler(original, name):
            expected.append(generate(original, **request))
    for _ in range(3):
        found: dict[int, torch.Tensor] = {}
        together = threading.Barrier(2)

        def work(number: int, found: dict[int, Any] = found, together: threading.Barrier = together) -> None:
            together.wait()
            found[number] = generate(pipes[number][1], **requests[number])

        workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        off = [(found[number] - theirs).abs().max().item() for number, theirs in enumerate(expected)]
        assert all(torch.equal(found[n], theirs) for n, theirs in enumerate(expected)), f"off by {off}"
    assert torch.nn.Module.__call__ is _MODULE_CALL
    assert shared.unet._compiled_call_impl.loop is not None


def test_a_pipeline_inside_a_step_of_another(diffusion: tuple[Any, Any]) -> None:
    def work(pipe: Any) -> Any:
        inner = []

        def nested(pipe: Any, step: int, values: dict[str, Any]) -> None:
            if step in (0, 2):
                with sampler(pipe, "DDIMScheduler"):
                    scale = pipe._guidance_scale
                    inner.append(generate(pipe, prompt=7, seed=step, num_inference_steps=2))
                    pipe._guidance_scale = scale

        return [generate(pipe, num_inference_steps=STEPS, **callback(nested)), *inner]

    both((tiny.stable_diffusion(), diffusion[1]), work)


# -- callbacks and exceptions ----------------------------------------------------------------------------------------


def _swap(pipe: Any, step: int, values: dict[str, Any]) -> None:
    if step == 1:
        values["prompt_embeds"] = values["prompt_embeds"].flip(0)
    if step == 2:
        values["prompt_embeds"].numpy()[:] *= 1.5


def _unguided(pipe: Any, step: int, values: dict[str, Any]) -> None:
    if step == 2:
        pipe._guidance_scale = 0.0
        values["prompt_embeds"] = values["prompt_embeds"][-1:]


def _interrupt(pipe: Any, step: int, values: dict[str, Any]) -> None:
    pipe._interrupt = step == 1


def _restart(pipe: Any, step: int, values: dict[str, Any]) -> None:
    pipe._interrupt = False
    values["latents"] = values["latents"].double().float() if step != 1 else values["latents"].mul_(0.5)


@pytest.mark.parametrize("edit", [_swap, _unguided, _interrupt, _restart])
def test_callbacks(diffusion: tuple[Any, Any], edit: Any) -> None:
    def work(pipe: Any) -> Any:
        return [generate(pipe, num_inference_steps=STEPS, **callback(edit, "prompt_embeds")), generate(pipe)]

    both(diffusion, work)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, StopIteration])
@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_raises(diffusion: tuple[Any, Any], error: type[BaseException], first: bool) -> None:
    compiled = diffusion[1]
    if first:  # so that the run that raises is recorded
        for entry in compiled.progress_bar.installed:
            entry.loop = None

    def broken(pipe: Any, step: int, values: dict[str, Any]) -> None:
        if step == 2:
            raise error("broken off")

    def work(pipe: Any) -> Any:
        expected = error if error is not StopIteration else (StopIteration, RuntimeError)
        with pytest.raises(expected) as caught:
            generate(pipe, num_inference_steps=STEPS, **callback(broken))
        assert caught.type is error
        assert torch.nn.Module.__call__ is _MODULE_CALL
        assert _get_current_dispatch_mode() is None
        return [generate(pipe, prompt=4, num_inference_steps=STEPS)]

    both(diffusion, work)
    assert compiled.unet._compiled_call_impl.loop is not None


# -- recording -------------------------------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Doubling(TorchDispatchMode):
    """A mode that changes what an operator gives: nothing that was kept without it may be used."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.ops.aten.silu.default else result


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _forget(pipe: Any) -> None:
    """So that the next run is recorded."""
    if isinstance(bar := pipe.__dict__.get("progress_bar"), graphopt.runtime.sampler.ProgressWatch):
        for entry in bar.installed:
            entry.loop = None


@pytest.mark.parametrize("mode", [Counting, Doubling, Functions])
def test_modes_around_a_run(diffusion: tuple[Any, Any], mode: Any) -> None:
    def work(pipe: Any) -> Any:
        _forget(pipe)
        with mode():
            first = generate(pipe)
        _forget(pipe)
        return [first, generate(pipe)]

    both(diffusion, work)


class Shifting(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func is torch.nn.functional.silu else result


@pytest.mark.parametrize("mode", [Counting, Doubling, Functions, Shifting])
def test_modes_around_the_first_run(mode: Any) -> None:
    """What a mode does to operators does not become part of what is compiled."""
    pipes = tiny.pair(tiny.stable_diffusion, tiny.EXPLOITING)

    def work(pipe: Any) -> Any:
        with mode():
            first = generate(pipe)
        return [first, generate(pipe), generate(pipe)]

    both(pipes, work, times=1)
    compiled = pipes[1].unet._compiled_call_impl
    assert sum(compiled.asides.values()) > 0
    assert all(mode.__name__ in reason for reason in compiled.asides)
    assert compiled.variants and all(variant.checked for variant in compiled.variants)


@pytest.mark.parametrize("mode", [Counting, Doubling, Functions])
def test_modes_inside_a_run(diffusion: tuple[Any, Any], mode: Any) -> None:
    def work(pipe: Any) -> Any:
        _forget(pipe)
        with contextlib.ExitStack() as stack:

            def edit(pipe: Any, step: int, values: dict[str, Any]) -> None:
                if step == 1:
                    stack.enter_context(mode())
                if step == 3:
                    stack.close()

            first = generate(pipe, num_inference_steps=STEPS, **callback(edit))
        return [first, generate(pipe)]

    both(diffusion, work)


def test_a_mode_that_outlives_the_run(diffusion: tuple[Any, Any]) -> None:
    def work(pipe: Any) -> Any:
        _forget(pipe)
        with contextlib.ExitStack() as stack:

            def edit(pipe: Any, step: int, values: dict[str, Any]) -> None:
                if step == 1:
                    stack.enter_context(Doubling())  # type: ignore[no-untyped-call]

            first = generate(pipe, num_inference_steps=STEPS, **callback(edit))
            second = torch.nn.functional.silu(first)
            third = generate(pipe)
        return [first, second, third, generate(pipe)]

    both(diffusion, work)


def test_a_recorded_run_is_as_one_that_is_not(diffusion: tuple[Any, Any]) -> None:
    compiled = diffusion[1]
    for name in ("DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"):
        with sampler(compiled, name):
            _forget(compiled)
            recorded = generate(compiled, num_inference_steps=STEPS)
            assert compiled.unet._compiled_call_impl.loop is not None
            assert torch.equal(generate(compiled, num_inference_steps=STEPS), recorded)


def test_others_that_replace_the_call_of_modules(diffusion: tuple[Any, Any]) -> None:
    compiled, seen = diffusion[1], []

    def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return _MODULE_CALL(module, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "__call__", counted)
        _forget(compiled)
        generate(compiled)
        assert compiled.unet in seen
        assert torch.nn.Module.__call__ is counted
    assert torch.nn.Module.__call__ is _MODULE_CALL
    _forget(compiled)
    patch = pytest.MonkeyPatch()

    def edit(pipe: Any, step: int, values: dict[str, Any]) -> None:
        if step == 1:
            below = torch.nn.Module.__call__
            patch.setattr(torch.nn.Module, "__call__", lambda module, *a, **k: below(module, *a, **k))

    expected = generate(diffusion[0])
    assert torch.equal(generate(compiled, **callback(edit)), expected)
    assert torch.equal(generate(compiled), expected)
    patch.undo()
    _forget(compiled)
    assert torch.equal(generate(compiled), expected)
    assert torch.nn.Module.__call__ is _MODULE_CALL


def test_restored_and_compiled_in_the_middle_of_a_run() -> None:
    original, compiled = tiny.pair(tiny.stable_diffusion, tiny.EXPLOITING)

    def edit(pipe: Any, step: int, values: dict[str, Any]) -> None:
        if pipe is compiled and step == 1:
            graphopt.restore(pipe)
        if pipe is compiled and step == 3:
            tiny.compiled(pipe)

    both((original, compiled), lambda pipe: generate(pipe, num_inference_steps=STEPS, **callback(edit)))
    graphopt.restore(compiled)
    assert "progress_bar" not in compiled.__dict__
    assert "_compiled_call_impl" not in compiled.unet.__dict__


class Barred(diffusers.StableDiffusionPipeline):
    """Its bar is iterated over."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for _ in self.progress_bar([1, 2]):
            result = super().__call__(*args, **kwargs)
        return result


def test_bars_of_the_user() -> None:
    pipe = tiny.stable_diffusion()
    expected = generate(pipe)
    shown = []
    bar = pipe.progress_bar

    def mine(*args: Any, **kwargs: Any) -> Any:
        shown.append(kwargs)
        return bar(*args, **kwargs)

    pipe.progress_bar = mine
    tiny.compiled(pipe)
    twin = copy.deepcopy(pipe)
    assert torch.equal(generate(pipe), expected)
    assert torch.equal(generate(twin), expected)
    assert len(shown) == 2
    graphopt.restore(pipe)
    assert pipe.progress_bar is mine
    tiny.compiled(pipe)
    pipe.progress_bar = mine
    assert torch.equal(generate(pipe), expected)
    graphopt.restore(pipe)
    assert pipe.progress_bar is mine


def test_a_bar_that_is_iterated_over() -> None:
    pipe = Barred(**tiny.stable_diffusion().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    expected = generate(pipe)
    tiny.compiled(pipe)
    assert torch.equal(generate(pipe), expected)
    assert torch.equal(generate(pipe), expected)


def test_copies_before_and_after_the_first_run(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion()
    expected = generate(pipe)
    tiny.compiled(pipe)
    for _ in ("before", "after"):
        for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
            assert torch.equal(generate(twin), expected)
            with pytest.raises(graphopt.GraphoptError):
                graphopt.report(twin)
            assert "progress_bar" not in twin.__dict__ or twin.progress_bar.__self__ is twin
        pipe.save_pretrained(tmp_path)
        assert torch.equal(generate(pipe), expected)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(generate(loaded), expected)


# -- further channels ------------------------------------------------------------------------------------------------


def inpaint() -> Any:
    parts = {**tiny.stable_diffusion().components, "unet": tiny.unet(in_channels=9)}
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def mask(side: int) -> torch.Tensor:
    found = torch.zeros(1, 1, 16, 16)
    found[..., :side] = 1
    return found


def _mask_by_callback(pipe: Any, step: int, values: dict[str, Any]) -> None:
    if step == 1:
        values["mask"] = 1 - values["mask"]
    if step == 2:
        values["masked_image_latents"].mul_(0.5)
    if step == 3:
        np.negative(values["masked_image_latents"].numpy(), out=values["masked_image_latents"].numpy())


def test_inpainting() -> None:
    pipes = inpaint(), tiny.compiled(inpaint())

    def work(pipe: Any) -> Any:
        results = [
            generate_from(pipe, image=picture(image), mask_image=mask(side), height=16, width=16, strength=strength)
            for image, side, strength in ((0, 4, 1.0), (0, 4, 1.0), (0, 9, 1.0), (1, 9, 1.0), (0, 4, 0.6))
        ]
        for _ in range(2):
            edited = callback(_mask_by_callback, "mask", "masked_image_latents")
            results.append(generate_from(pipe, image=picture(0), mask_image=mask(4), height=16, width=16, **edited))
        results.append(generate_from(pipe, image=picture(0), mask_image=mask(4), height=16, width=16))
        results.append(
            generate_from(pipe, image=picture(0), mask_image=mask(4), height=16, width=16, guidance_scale=1.0)
        )
        return results

    both(pipes, work, times=1)
    assert {Repeated("sample", 2), Constant("sample", 1, 4, 9)} <= relations(pipes[1])


def edited_by_instruction() -> Any:
    parts = {**tiny.stable_diffusion().components, "unet": tiny.unet(in_channels=8)}
    parts.pop("image_encoder", None)
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_three_guidance_branches() -> None:
    pipes = edited_by_instruction(), tiny.compiled(edited_by_instruction())

    def dimmed(pipe: Any, step: int, values: dict[str, Any]) -> None:
        if step == 2:
            values["image_latents"] = values["image_latents"] * 0.5
        if step == 3:
            values["image_latents"].add_(1)

    def work(pipe: Any) -> Any:
        return [
            *(generate_from(pipe, image=picture(image), image_guidance_scale=1.5) for image in (0, 0, 1)),
            generate_from(pipe, image=picture(0), image_guidance_scale=1.5, **callback(dimmed, "image_latents")),
            generate_from(pipe, image=picture(0), image_guidance_scale=1.5),
        ]

    both(pipes, work, times=1)
    # The third branch has no image: only parts of the argument are repeated.
    assert Constant("sample", 1, 4, 8) in relations(pipes[1])


# -- control ---------------------------------------------------------------------------------------------------------


def control_net(seed: int) -> Any:
    torch.manual_seed(seed)
    found = diffusers.ControlNetModel.from_unet(
        tiny.unet(mid_block_type="UNetMidBlock2DCrossAttn"), conditioning_embedding_out_channels=(8, 8)
    )
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found.eval().requires_grad_(False)


def controlled(*seeds: int) -> Any:
    parts = {**tiny.stable_diffusion().components, "unet": tiny.unet(mid_block_type="UNetMidBlock2DCrossAttn")}
    nets = [control_net(seed) for seed in seeds]
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=nets[0] if len(nets) == 1 else nets, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_control() -> None:
    pipes = controlled(4), tiny.compiled(controlled(4))

    def work(pipe: Any) -> Any:
        image, results = picture(0), []

        def edit(pipe: Any, step: int, values: dict[str, Any]) -> None:
            if step == 1:
                values["image"] = values["image"] * 0.5
            if step == 2:
                values["image"].mul_(0.5)
            if step == 3:
                values["image"].numpy()[:] += 0.25

        for change in (
            {}, {"image": picture(1)}, {"controlnet_conditioning_scale": 0.5},
            {"control_guidance_start": 0.3, "control_guidance_end": 0.7}, callback(edit, "image"), {},
        ):  # fmt: skip
            results.append(generate(pipe, **{"image": image, "num_inference_steps": STEPS, **change}))
        image.mul_(0.5)
        return [*results, generate(pipe, image=image, num_inference_steps=STEPS)]

    both(pipes, work, times=1)
    assert pipes[1].controlnet._compiled_call_impl.variants


def test_guess_mode() -> None:
    pipes = controlled(4), tiny.compiled(controlled(4))
    both(
        pipes,
        lambda pipe: [
            generate(pipe, image=picture(k), num_inference_steps=STEPS, guess_mode=guess)
            for k, guess in ((0, True), (1, True), (0, False))
        ],
        times=1,
    )


def test_several_controls() -> None:
    pipes = controlled(4, 5), tiny.compiled(controlled(4, 5))
    both(
        pipes,
        lambda pipe: [
            generate(pipe, image=[picture(a), picture(b)], num_inference_steps=3, controlnet_conditioning_scale=scale)
            for a, b, scale in ((0, 1, [1.0, 0.5]), (1, 0, [1.0, 0.5]), (0, 1, [0.2, 0.5]))
        ],
        times=1,
    )


# -- separate branches -----------------------------------------------------------------------------------------------


def flow() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=tiny.WIDTH, freq_dim=16, ffn_dim=16, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = diffusers.WanPipeline(
        transformer=transformer.eval().requires_grad_(False), vae=autoencoder.eval(), tokenizer=None,
        text_encoder=None, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def film(pipe: Any, *, prompt: int = 1, negative: int = 2, seed: int = 0, **changes: Any) -> torch.Tensor:
    call: dict[str, Any] = {
        "prompt_embeds": embeddings(prompt), "negative_prompt_embeds": embeddings(negative), "height": 16, "width": 16,
        "num_frames": 5, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
    }  # fmt: skip
    frames: torch.Tensor = pipe(**{**call, **changes}).frames
    return frames


def test_a_pipeline_with_separate_branches() -> None:
    pipes = flow(), tiny.compiled(flow())

    def unguided(pipe: Any, step: int, values: dict[str, Any]) -> None:
        pipe._guidance_scale = 1.0 if step in (1, 2) else 4.0

    def work(pipe: Any) -> Any:
        longer = torch.cat([embeddings(2), embeddings(5)[:, :2]], 1)
        return [
            *(film(pipe, prompt=prompt, seed=seed) for prompt, seed in ((1, 0), (1, 3), (4, 0))),
            film(pipe, negative_prompt_embeds=longer),
            film(pipe, **callback(unguided)),
            film(pipe, guidance_scale=1.0),
            film(pipe),
        ]

    both(pipes, work, times=1)
    assert Paired(2) in relations(pipes[1])
