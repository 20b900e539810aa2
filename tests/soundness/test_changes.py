"""Whatever a user changes between or inside calls, a compiled pipeline gives what the original gives, bit for bit.

Every case runs the same function on an original and on a compiled pipeline, after a first run of each that filled all
memos. The second thing checked is that no stage is computed again without need, and every stage is when there is.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

import graphopt
from tests.soundness import tiny
from tests.soundness.tiny import STEPS, denoiser, embeddings, generate

NOTHING = {"weights": 0, "request": 0, "schedule": 0, "request_schedule": 0}
NEW_PROMPT = {"weights": 0, "request": 1, "schedule": 0}
ALL_ANEW = {"weights": 1, "request": 1, "schedule": STEPS}


@dataclass(frozen=True)
class Change:
    """A thing that changes: returns what to compare. `computed`: how often each stage is then computed, if known."""

    run: Callable[[Any], Any]
    computed: dict[str, int] | None
    everywhere: bool  # also for the transformer pipeline

    def __repr__(self) -> str:
        return self.run.__name__


CHANGES: list[Change] = []


def change(computed: dict[str, int] | None = None, *, everywhere: bool = False) -> Callable[[Any], Any]:
    def register(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        CHANGES.append(Change(run, computed, everywhere))
        return run

    return register


# -- arguments of the call -------------------------------------------------------------------------------------------


@change(NOTHING, everywhere=True)
def nothing(pipe: Any) -> Any:
    return generate(pipe)


@change(NOTHING, everywhere=True)
def another_seed(pipe: Any) -> Any:
    return generate(pipe, seed=7)


@change(NEW_PROMPT, everywhere=True)
def another_prompt(pipe: Any) -> Any:
    return generate(pipe, prompt=11)


@change(NEW_PROMPT, everywhere=True)
def another_negative_prompt(pipe: Any) -> Any:
    return generate(pipe, negative=12)


@change(NOTHING)
def guidance_scale(pipe: Any) -> Any:
    return generate(pipe, guidance_scale=2.5)


@change(everywhere=True)
def guidance_off_and_on(pipe: Any) -> Any:
    return [generate(pipe, guidance_scale=1.0), generate(pipe), generate(pipe, guidance_scale=1.0, prompt=3)]


@change({"weights": 0, "request": 0, "schedule": 4}, everywhere=True)
def number_of_steps(pipe: Any) -> Any:
    return generate(pipe, num_inference_steps=5)  # 1, 201, …, 801, of which 1 is also among 1, 334, 667


@change(everywhere=True)
def a_list_of_timesteps(pipe: Any) -> Any:
    with _with_scheduler(pipe, "DDPMScheduler"):
        return generate(pipe, timesteps=[901, 401, 101])


@change()
def a_list_of_sigmas(pipe: Any) -> Any:
    with _with_scheduler(pipe, "EulerDiscreteScheduler"):
        return generate(pipe, sigmas=[12.0, 3.0, 0.5])


@change(everywhere=True)
def height_and_width(pipe: Any) -> Any:
    return [generate(pipe, height=24), generate(pipe)]


@change(everywhere=True)
def batch_and_images_per_prompt(pipe: Any) -> Any:
    return [generate(pipe, batch=2), generate(pipe, num_images_per_prompt=2), generate(pipe)]


@change(NOTHING)
def eta(pipe: Any) -> Any:
    return generate(pipe, eta=0.7)


@change(NOTHING)
def latents_given(pipe: Any) -> Any:
    return generate(pipe, latents=torch.ones(1, 4, 8, 8))


@change(NOTHING)
def tuple_instead_of_output(pipe: Any) -> Any:
    return pipe(
        prompt_embeds=embeddings(1), negative_prompt_embeds=embeddings(2), num_inference_steps=STEPS, height=16,
        width=16, guidance_scale=4.0, output_type="latent", return_dict=False,
        generator=torch.Generator().manual_seed(0),
    )[0]  # fmt: skip


@change()
def prompts_of_text(pipe: Any) -> Any:
    negatives = [None, "red"]
    return [
        generate(pipe, text=text, negative_prompt=negative) for text in ("a dog", "a cat") for negative in negatives
    ]


@change()
def images_instead_of_latents(pipe: Any) -> Any:
    return [generate(pipe, output_type="pt", seed=seed) for seed in (0, 1)]


@change()
def scale_of_cross_attention(pipe: Any) -> Any:
    return [generate(pipe, cross_attention_kwargs={"scale": scale}) for scale in (1.0, 0.5)]


# -- schedulers ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _with_scheduler(pipe: Any, name: str, **options: Any) -> Iterator[None]:
    previous = pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(previous.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = previous


def _scheduler(name: str) -> None:
    def run(pipe: Any) -> Any:
        options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
        with _with_scheduler(pipe, name, **options):
            result = generate(pipe), generate(pipe, prompt=5)
        return [*result, generate(pipe)]

    run.__name__ = name
    change(everywhere=name in ("EulerDiscreteScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"))(run)


for _name in (
    "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler", "LCMScheduler",
):  # fmt: skip
    _scheduler(_name)


@change()
def prediction_type(pipe: Any) -> Any:
    with _with_scheduler(pipe, "DDIMScheduler", prediction_type="v_prediction"):
        return generate(pipe)


# -- embeddings and weights, written by every way there is -----------------------------------------------------------


def _called_with(pipe: Any, condition: torch.Tensor, time: Any = 500) -> torch.Tensor:
    """One bare call of the denoiser on the very tensor given."""
    x = torch.ones(1, 4, 8, 8)
    time = torch.tensor([time]) if not hasattr(pipe, "unet") and not torch.is_tensor(time) else time
    with torch.no_grad():
        output: torch.Tensor = denoiser(pipe)(x, encoder_hidden_states=condition, timestep=time).sample
    return output


@change(everywhere=True)
def embeddings_in_place(pipe: Any) -> Any:
    condition, results = embeddings(1), []
    kept = condition.clone()
    for edit in (
        lambda: None,
        lambda: condition.mul_(2),
        lambda: condition.data.add_(1),
        lambda: np.multiply(condition.numpy(), 3, out=condition.numpy()),
        lambda: condition[0, 0].zero_(),
        lambda: condition.copy_(kept),
        lambda: None,
    ):
        edit()
        results.append(_called_with(pipe, condition))
    results.append(_called_with(pipe, kept))
    condition.zero_()
    return [*results, _called_with(pipe, kept), _called_with(pipe, kept.clone())]


def _weight(pipe: Any, name: str = "") -> torch.nn.Parameter:
    """A weight of the request stage (the projection of the prompt to keys)."""
    for key, parameter in denoiser(pipe).named_parameters():
        if key.endswith(name or "attn2.to_k.weight"):
            return parameter  # type: ignore[no-any-return]
    raise KeyError(name)


@change(ALL_ANEW, everywhere=True)
def weights_in_place(pipe: Any) -> Any:
    with torch.no_grad():
        _weight(pipe).mul_(1.5)
    return generate(pipe)


@change(ALL_ANEW, everywhere=True)
def weights_through_data(pipe: Any) -> Any:
    _weight(pipe).data += 0.25
    return generate(pipe)


@change(ALL_ANEW)
def weights_through_numpy(pipe: Any) -> Any:
    array = _weight(pipe, "time_embedding.linear_1.weight").detach().numpy()
    array += 0.125
    return generate(pipe)


@change()
def weights_through_data_between_schedules_on_one_condition(pipe: Any) -> Any:
    condition, results = embeddings(1), []
    for times in ((900, 600, 300), (850, 550, 250), (850,), (850,)):
        _weight(pipe).data += 0.25
        results += [_called_with(pipe, condition, torch.tensor(time)) for time in times]
    return results


@change()
def a_view_of_weights_that_moved_and_was_written(pipe: Any) -> Any:
    parameter, condition = _weight(pipe), embeddings(1)
    first = _called_with(pipe, condition)
    old = parameter.data
    parameter.data = old.clone()
    old.zero_()  # whoever kept a view of it now reads zeros, and the contents of the weights are as before
    return [first, _called_with(pipe, condition)]


@change(ALL_ANEW)
def weights_loaded(pipe: Any) -> Any:
    state = {key: value * 0.9 for key, value in denoiser(pipe).state_dict().items()}
    denoiser(pipe).load_state_dict(state)
    return generate(pipe)


@change(ALL_ANEW)
def weights_loaded_by_assignment(pipe: Any) -> Any:
    state = {key: value * 0.9 for key, value in denoiser(pipe).state_dict().items()}
    denoiser(pipe).load_state_dict(state, assign=True)
    denoiser(pipe).requires_grad_(False)
    return generate(pipe)


@change(ALL_ANEW)
def a_parameter_replaced(pipe: Any) -> Any:
    for module in denoiser(pipe).modules():
        if getattr(module, "to_k", None) is not None:
            module.to_k.weight = torch.nn.Parameter(module.to_k.weight * 2, requires_grad=False)
    return generate(pipe)


@change()
def a_bias_given_and_taken(pipe: Any) -> Any:
    layer = next(module.to_k for module in denoiser(pipe).modules() if getattr(module, "to_k", None) is not None)
    layer.bias = torch.nn.Parameter(torch.ones(layer.out_features), requires_grad=False)
    first = generate(pipe)
    layer.bias = None
    return [first, generate(pipe)]


@change()
def dtype_there_and_back(pipe: Any) -> Any:
    denoiser(pipe).to(torch.bfloat16).to(torch.float32)
    return generate(pipe)


@change()
def float64_and_back(pipe: Any) -> Any:
    module = denoiser(pipe).to(torch.float64)
    with torch.no_grad():
        call = (torch.ones(1, 4, 8, 8, dtype=torch.float64), 3, embeddings(1).double())
        first = module(*call).sample
    module.to(torch.float32)
    return [first, generate(pipe)]


@change()
def channels_last(pipe: Any) -> Any:
    denoiser(pipe).to(memory_format=torch.channels_last)
    first = generate(pipe)
    denoiser(pipe).to(memory_format=torch.contiguous_format)
    return [first, generate(pipe)]


@change()
def weights_by_callback(pipe: Any) -> Any:
    parameter = _weight(pipe)
    kept = parameter.clone()

    def edit(pipe: Any, step: int, time: Any, values: Any) -> Any:
        parameter.copy_(kept * (step + 2))
        return values

    result = generate(pipe, callback_on_step_end=edit)
    with torch.no_grad():
        parameter.copy_(kept)
    return [result, generate(pipe)]


# -- callbacks -------------------------------------------------------------------------------------------------------


def _edit(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def edit(pipe: Any, step: int, time: Any, values: Any) -> Any:
        values[name] = function(values[name])
        return values

    return edit


@change(NOTHING)
def latents_by_callback(pipe: Any) -> Any:
    return generate(pipe, callback_on_step_end=_edit("latents", lambda value: value * 0.5))


@change()
def embeddings_by_callback(pipe: Any) -> Any:
    names, function = ["prompt_embeds"], _edit("prompt_embeds", lambda value: value * 1.5)
    in_place = _edit("prompt_embeds", lambda value: value.mul_(1.5))
    return [
        generate(pipe, callback_on_step_end=edit, callback_on_step_end_tensor_inputs=names)
        for edit in (function, in_place)
    ]


@change()
def guidance_off_by_callback(pipe: Any) -> Any:
    def edit(pipe: Any, step: int, time: Any, values: Any) -> Any:
        pipe._guidance_scale = 0.0
        values["prompt_embeds"] = values["prompt_embeds"][-1:]
        return values

    return generate(pipe, callback_on_step_end=edit, callback_on_step_end_tensor_inputs=["prompt_embeds"])


@change()
def freeu_by_callback(pipe: Any) -> Any:
    def edit(pipe: Any, step: int, time: Any, values: Any) -> Any:
        pipe.enable_freeu(0.9, 0.2, 1.2, 1.4) if step == 0 else pipe.disable_freeu()
        return values

    return [generate(pipe, callback_on_step_end=edit), generate(pipe)]


# -- adapters and the module's own state -----------------------------------------------------------------------------


def _adapter(pipe: Any, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipe.unet.add_adapter(config, name)
    pipe.unet.requires_grad_(False)


@change()
def adapters(pipe: Any) -> Any:
    results = []
    _adapter(pipe, "a", 1)
    results.append(generate(pipe))
    pipe.unet.set_adapters(["a"], [0.5])
    results.append(generate(pipe))
    pipe.unet.fuse_lora()
    results.append(generate(pipe))
    pipe.unet.unfuse_lora()
    results.append(generate(pipe))
    _adapter(pipe, "b", 2)
    pipe.unet.set_adapters(["a", "b"], [0.3, 0.8])
    results.append(generate(pipe))
    pipe.unet.delete_adapters("b")
    pipe.unet.set_adapters(["a"], [1.0])
    results.append(generate(pipe))
    pipe.unet.disable_adapters()
    results.append(generate(pipe))
    pipe.unet.unload_lora()
    return [*results, generate(pipe)]


@change()
def freeu(pipe: Any) -> Any:
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    first = generate(pipe)
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.8)
    second = generate(pipe)
    pipe.disable_freeu()
    return [first, second, generate(pipe)]


@change()
def attention_processors(pipe: Any) -> Any:
    pipe.unet.set_attn_processor(AttnProcessor())
    first = generate(pipe)
    pipe.enable_attention_slicing(1)
    second = generate(pipe)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    return [first, second, generate(pipe)]


@change()
def fused_projections(pipe: Any) -> Any:
    pipe.unet.fuse_qkv_projections()
    first = generate(pipe)
    pipe.unet.unfuse_qkv_projections()
    return [first, generate(pipe)]


@change()
def training_and_evaluation(pipe: Any) -> Any:
    denoiser(pipe).train()
    first = generate(pipe)
    denoiser(pipe).eval()
    return [first, generate(pipe)]


@change()
def a_scalar_attribute(pipe: Any) -> Any:
    block = next(module for module in pipe.unet.modules() if hasattr(module, "output_scale_factor"))
    kept = block.output_scale_factor
    block.output_scale_factor = 2.0
    first = generate(pipe)
    block.output_scale_factor = kept
    return [first, generate(pipe)]


@change()
def a_buffer_added(pipe: Any) -> Any:
    pipe.unet.register_buffer("extra", torch.ones(1))
    first = generate(pipe)
    del pipe.unet.extra
    return [first, generate(pipe)]


@change()
def hooks(pipe: Any) -> Any:
    results = []
    for module in (pipe.unet, pipe.unet.conv_in):
        handle = module.register_forward_hook(
            lambda m, i, out: (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2
        )
        results.append(generate(pipe))
        handle.remove()
        results.append(generate(pipe))
    return results


@change()
def a_replaced_forward(pipe: Any) -> Any:
    layer = pipe.unet.conv_in
    original = layer.forward
    layer.forward = lambda x: original(x) * 0.5
    first = generate(pipe)
    del layer.forward
    return [first, generate(pipe)]


@change()
def a_class_with_another_forward(pipe: Any) -> Any:
    kind = type(pipe.unet.conv_norm_out)
    original = kind.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", lambda self, x: original(self, x) * 0.5)
        first = generate(pipe)
    return [first, generate(pipe)]


# -- how it is called ------------------------------------------------------------------------------------------------


@change()
def inference_mode(pipe: Any) -> Any:
    with torch.inference_mode():
        first = generate(pipe, prompt=21), generate(pipe, guidance_scale=1.0, height=24, width=24)
    return [*(value.clone() for value in first), generate(pipe, prompt=21)]


@change()
def autocast(pipe: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        first = generate(pipe)
    return [first, generate(pipe)]


@change()
def default_dtype(pipe: Any) -> Any:
    torch.set_default_dtype(torch.float64)
    try:
        first = _called_with(pipe, embeddings(1).float())
    except (RuntimeError, graphopt.GraphoptError):  # the model cannot; strict compilation says so in its own words
        first = torch.zeros(1, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    return [first, generate(pipe)]


@change()
def gradients(pipe: Any) -> Any:
    condition = embeddings(1).requires_grad_()
    out = pipe.unet(torch.ones(1, 4, 8, 8), 5, condition).sample
    out.square().sum().backward()
    assert condition.grad is not None
    return [out.detach(), condition.grad, _called_with(pipe, embeddings(1), 5)]


@change()
def positional_and_keyword_arguments(pipe: Any) -> Any:
    x, time, condition = torch.ones(1, 4, 8, 8), torch.tensor(40), embeddings(1)
    with torch.no_grad():
        return [
            pipe.unet(x, time, condition).sample,
            pipe.unet(sample=x, encoder_hidden_states=condition, timestep=time).sample,
            pipe.unet(x, time, encoder_hidden_states=condition, return_dict=False)[0],
        ]


@change()
def python_numbers_as_timesteps(pipe: Any) -> Any:
    return [_called_with(pipe, embeddings(1), time) for time in (700, 300, 300.5, -0.0, 0.0, 700, torch.tensor(700))]


@change()
def threads(pipe: Any) -> Any:
    results: dict[int, torch.Tensor] = {}

    def work(prompt: int) -> None:
        with torch.no_grad():
            for time in (900, 500, 100):
                results[prompt + time] = pipe.unet(torch.ones(1, 4, 8, 8), time, embeddings(prompt)).sample
                results[-prompt - time] = pipe.unet(torch.ones(prompt, 4, 8, 8), 5, embeddings(1, prompt)).sample

    workers = [threading.Thread(target=work, args=(prompt,)) for prompt in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 12
    return [results[key] for key in sorted(results)]


@change()
def two_pipelines_that_share_a_denoiser(pipe: Any) -> Any:
    other = diffusers.StableDiffusionPipeline.from_pipe(pipe)
    other.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    other.set_progress_bar_config(disable=True)
    return [generate(which, prompt=prompt) for prompt in (1, 2) for which in (pipe, other)]


@change()
def a_copy_goes_its_own_way(pipe: Any) -> Any:
    twin = copy.deepcopy(pipe)
    _weight(twin).data *= 3
    shallow = pickle.loads(pickle.dumps(pipe.unet))
    return [generate(twin), generate(pipe), _called_with(twin, embeddings(1)), type(shallow) is type(pipe.unet)]


def _passes(pipe: Any) -> Any:
    return pipe.unet._compiled_call_impl._builder.passes


@change()
def compiled_twice(pipe: Any) -> Any:
    if pipe.unet.__dict__.get("_compiled_call_impl") is not None:
        tiny.compiled(pipe, _passes(pipe))
        assert type(pipe.unet) is diffusers.UNet2DConditionModel
    return [generate(pipe), generate(pipe, prompt=6)]


# -- other pipelines around the same denoiser ------------------------------------------------------------------------


def _picture() -> torch.Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _around(kind: Any, pipe: Any, **components: Any) -> Any:
    other = kind(**pipe.components, **components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


@change()
def image_to_image(pipe: Any) -> Any:
    other = _around(diffusers.StableDiffusionImg2ImgPipeline, pipe)
    embeds = {"prompt_embeds": embeddings(1), "negative_prompt_embeds": embeddings(2)}
    return [
        other(image=_picture(), strength=strength, num_inference_steps=4, output_type="latent", **embeds,
              generator=torch.Generator().manual_seed(0)).images
        for strength in (0.5, 1.0, 0.75)
    ]  # fmt: skip


@change()
def inpainting(pipe: Any) -> Any:
    other = _around(diffusers.StableDiffusionInpaintPipeline, pipe)
    results = []
    for side in (4, 9):
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., :side] = 1
        results.append(
            other(image=_picture(), mask_image=mask, prompt_embeds=embeddings(1), negative_prompt_embeds=embeddings(2),
                  num_inference_steps=2, height=16, width=16, output_type="latent",
                  generator=torch.Generator().manual_seed(0)).images
        )  # fmt: skip
    return results


@change()
def control_net(pipe: Any) -> Any:
    torch.manual_seed(4)
    control = diffusers.ControlNetModel.from_unet(
        tiny.unet(mid_block_type="UNetMidBlock2DCrossAttn"), conditioning_embedding_out_channels=(8, 8)
    )
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    unet = tiny.unet(mid_block_type="UNetMidBlock2DCrossAttn")
    components = {**pipe.components, "unet": unet}
    other = diffusers.StableDiffusionControlNetPipeline(
        **components, controlnet=control.eval().requires_grad_(False), requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    if pipe.unet.__dict__.get("_compiled_call_impl") is not None:
        tiny.compiled(other, _passes(pipe))
    return [
        generate(other, image=_picture() * light, controlnet_conditioning_scale=scale, num_inference_steps=2)
        for light, scale in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.7))
    ]


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["unet", "dit"])
def pipes(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return (request.param, *tiny.pair(tiny.stable_diffusion if request.param == "unet" else tiny.pixart))


@pytest.mark.parametrize("case", CHANGES, ids=repr)
def test_change(pipes: tuple[str, Any, Any], case: Change) -> None:
    kind, original, compiled = pipes
    if kind == "dit" and not case.everywhere:
        pytest.skip("this change is of the U-Net's pipeline")
    check(original, compiled, case)


@pytest.fixture(scope="module")
def exploiting() -> tuple[Any, Any]:
    """As `pipes`, and relations between calls are found and relied on."""
    return tiny.pair(tiny.stable_diffusion, tiny.EXPLOITING)


@pytest.fixture(scope="module")
def exploiting_transformer() -> tuple[Any, Any]:
    return tiny.pair(tiny.pixart, tiny.EXPLOITING)


# In the default run those changes that relations between calls have to do with; they are few, for captures take long.
_OF_LOOPS = {
    "nothing", "guidance_off_by_callback", "latents_by_callback", "embeddings_by_callback", "weights_by_callback",
    "batch_and_images_per_prompt", "threads", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
}  # fmt: skip
_RELATED = [pytest.param(c, marks=[] if repr(c) in _OF_LOOPS else [pytest.mark.slow], id=repr(c)) for c in CHANGES]


@pytest.mark.parametrize("case", _RELATED)
def test_change_with_relations(exploiting: tuple[Any, Any], case: Change) -> None:
    check(*exploiting, case)
    assert any(variant.relations for variant in denoiser(exploiting[1])._compiled_call_impl.variants)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CHANGES if case.everywhere], ids=repr)
def test_change_of_a_transformer_with_relations(exploiting_transformer: tuple[Any, Any], case: Change) -> None:
    check(*exploiting_transformer, case)


def check(original: Any, compiled: Any, case: Change) -> None:
    """The same function on both, after a run that filled all memos."""
    generate(original)
    generate(compiled)
    before = tiny.misses(compiled)
    torch.manual_seed(0)
    expected = case.run(original)
    torch.manual_seed(0)
    actual = case.run(compiled)
    _assert_equal(actual, expected)
    if case.computed is not None:
        computed = {stage: count - before[stage] for stage, count in tiny.misses(compiled).items()}
        assert {stage: computed[stage] for stage in case.computed} == case.computed


def _assert_equal(actual: Any, expected: Any) -> None:
    if not isinstance(expected, list):
        actual, expected = [actual], [expected]
    for position, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        if isinstance(theirs, torch.Tensor):
            off = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else ours.shape
            assert torch.equal(ours, theirs), f"result {position} is off by {off}"
        else:
            assert ours == theirs


def test_every_run_is_told_apart() -> None:
    # The cases above prove nothing if a tiny model ignores its inputs.
    pipe = tiny.stable_diffusion()
    first = generate(pipe)
    for change_of in ({"prompt": 11}, {"negative": 12}, {"num_inference_steps": 4}, {"seed": 3}):
        assert not torch.equal(first, generate(pipe, **change_of))


def test_enough_changes() -> None:
    assert len(CHANGES) >= 45


def test_saved_and_restored(tmp_path: Path) -> None:
    original, compiled = tiny.pair(tiny.stable_diffusion)
    state = {key: value.clone() for key, value in compiled.unet.state_dict().items()}
    expected = generate(original)
    assert torch.equal(generate(compiled), expected)
    compiled.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(generate(loaded), expected)
    with contextlib.suppress(graphopt.GraphoptError):
        graphopt.report(loaded)
        pytest.fail("a loaded pipeline is not compiled")
    graphopt.restore(compiled)
    assert all("_compiled_call_impl" not in module.__dict__ for module in compiled.unet.modules())
    assert all(torch.equal(value, state[key]) for key, value in compiled.unet.state_dict().items())
    assert torch.equal(generate(compiled), expected)
