"""Modules with habits of their own, and tiny models of diffusers and transformers: compiled equals eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import transformers

import graphopt
from tests.soundness import tiny


def _compiled(module: torch.nn.Module) -> torch.nn.Module:
    return graphopt.compile(module, target="eager", pipeline=[tiny.HoistEverything()])


def _asides(module: torch.nn.Module) -> list[str]:
    return list(graphopt.report(module).modules[0].asides)


class Constant(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((3,), 2.0)
        self.factor = torch.nn.Linear(1, 1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample * (self.scale + 1) * timestep + torch.tensor([1.0, 2.0, 3.0])


@torch.no_grad()
def test_a_constant_is_read_as_it_is_now() -> None:
    module, x, t = _compiled(Constant()), torch.ones(2, 3), torch.tensor(2.0)
    reference = Constant()
    for edit in (
        lambda m: None, lambda m: m.scale.mul_(3), lambda m: m.scale.numpy().fill(7),
        lambda m: setattr(m, "scale", torch.ones(3)),
    ):  # fmt: skip
        edit(module), edit(reference)
        for _ in range(2):
            assert torch.equal(module(x, t), reference(x, t))


@torch.no_grad()
def test_statistics_that_a_model_updates_cannot_be_captured() -> None:
    module: Any = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).train()
    reference: Any = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).train()
    _compiled(module)
    with pytest.warns(RuntimeWarning, match="changes .*running_mean.* while it runs"):
        assert torch.equal(module(torch.ones(2, 3)), reference(torch.ones(2, 3)))
    assert torch.equal(module[0].running_mean, reference[0].running_mean)
    assert module[0].num_batches_tracked == 1
    module.eval(), reference.eval()
    assert torch.equal(module(torch.ones(2, 3)), reference(torch.ones(2, 3)))


@torch.no_grad()
def test_random_numbers_are_drawn_as_by_the_original() -> None:
    module, reference = (torch.nn.Sequential(torch.nn.Dropout(0.5)).train() for _ in range(2))
    _compiled(module)
    results = []
    for which in (reference, module):
        torch.manual_seed(0)
        results.append(torch.stack([*(which(torch.ones(4, 4)) for _ in range(3)), torch.rand(4, 4)]))
    assert torch.equal(*results)
    assert len({tuple(row.flatten().tolist()) for row in results[1][:3]}) == 3


class Counting(torch.nn.Module):
    def __init__(self, cache: bool) -> None:
        super().__init__()
        self.count, self.cache = 0, cache
        self.table: Any = None

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        if self.cache:
            self.table = torch.arange(3.0) if self.table is None else self.table
            result: torch.Tensor = sample + self.table
            return result
        self.count += 1
        return sample + self.count


@torch.no_grad()
def test_a_model_that_counts_its_calls_runs_itself() -> None:
    module = _compiled(Counting(cache=False))
    assert [module(torch.zeros(1)).item() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert any("attributes" in reason for reason in _asides(module))


@torch.no_grad()
def test_a_model_that_fills_a_cache_is_captured() -> None:
    module = _compiled(Counting(cache=True))
    for value in (1.0, 2.0, 3.0, 4.0):
        assert torch.equal(module(torch.full((3,), value)), torch.arange(3.0) + value)
    assert graphopt.report(module).modules[0].variants


class Aliasing(torch.nn.Module):
    """Returns its argument, its weight and views of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        c = encoder_hidden_states
        return sample + c.t(), c.t(), self.weight.t() * 1, torch.nn.functional.dropout(c, 0.5, False).reshape(4)


@torch.no_grad()
def test_writing_into_arguments_and_results_reaches_nothing_that_is_kept() -> None:
    module, reference = _compiled(Aliasing()), Aliasing()
    x, c = torch.ones(2, 2), torch.arange(4.0).view(2, 2)
    for _ in range(3):
        expected = [value.clone() for value in reference(x, c)]
        results = module(x, c.clone())
        assert all(map(torch.equal, results, expected))
        for value in results:
            value.mul_(7)
    given = c.clone()
    module(x, given)
    given.zero_()
    assert all(map(torch.equal, module(x, c.clone()), reference(x, c)))


@torch.no_grad()
def test_function_transforms_run_the_module() -> None:
    module, reference = _compiled(torch.nn.Linear(3, 3)), torch.nn.Linear(3, 3)
    reference.load_state_dict(module.state_dict())
    x = torch.ones(4, 3)
    module(x)
    mapped = torch.func.vmap(module)(x)
    assert torch.allclose(mapped, torch.func.vmap(reference)(x))
    assert any("function transform" in reason for reason in _asides(module))


def test_an_exported_program_is_compiled() -> None:
    linear = torch.nn.Linear(3, 3).requires_grad_(False)
    module = graphopt.compile(torch.export.export(linear, (torch.ones(2, 3),)), target="eager")
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(module(x), linear(x))
    assert graphopt.report(module).modules[0].variants


# -- models of diffusers and transformers ----------------------------------------------------------------------------

KINDS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}


def kind(make: Callable[[], tuple[Any, dict[str, Any]]]) -> Callable[[], tuple[Any, dict[str, Any]]]:
    KINDS[make.__name__.strip("_")] = make
    return make


def _sample(side: int = 8) -> torch.Tensor:
    return torch.randn(1, 4, side, side)


@kind
def unet_2d() -> tuple[Any, dict[str, Any]]:
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, num_class_embeds=3,
    )  # fmt: skip
    return model, {"sample": _sample(), "timestep": 7, "class_labels": torch.tensor([1])}


@kind
def dit() -> tuple[Any, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=4, num_attention_heads=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    return model, {
        "hidden_states": _sample(), "timestep": torch.tensor([7]), "class_labels": torch.tensor([3]),
    }  # fmt: skip


@kind
def sd3() -> tuple[Any, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return model, {
        "hidden_states": _sample(), "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([7.0]),
    }  # fmt: skip


@kind
def flux() -> tuple[Any, dict[str, Any]]:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([0.7]), "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


@kind
def vae_decoder() -> tuple[Any, dict[str, Any]]:
    return tiny.vae().decoder, {"sample": _sample()}


@kind
def clip_text() -> tuple[Any, dict[str, Any]]:
    return tiny.text_encoder(50), {"input_ids": torch.randint(2, 50, (2, 7))}


@kind
def t5() -> tuple[Any, dict[str, Any]]:
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0
    )  # fmt: skip
    mask = torch.ones(2, 7, dtype=torch.int64)
    return transformers.T5EncoderModel(config), {"input_ids": torch.randint(2, 50, (2, 7)), "attention_mask": mask}


def _tensors(output: Any) -> list[torch.Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(output) if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", KINDS)
def test_compiled_equals_eager(name: str) -> None:
    model, call = KINDS[name]()
    model = model.eval().requires_grad_(False)
    moved = {
        name: value + 1 if name in ("timestep", "class_labels") else value.flip(-1) if torch.is_tensor(value) else value
        for name, value in call.items()
        if name != "attention_mask"
    }
    calls = [call, {**call, **moved}, call]
    with torch.no_grad():
        expected = [_tensors(model(**arguments)) for arguments in calls]
        graphopt.compile(model, target="eager", pipeline=[tiny.HoistEverything()], strict=True)
        for arguments, theirs in zip(calls, expected, strict=True):
            ours = _tensors(model(**arguments))
            assert len(ours) == len(theirs) > 0
            assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(expected[0][0], expected[1][0])
    (entry,) = graphopt.report(model).modules
    assert (entry.calls, len(entry.variants), entry.asides) == (3, 1, {})


class Sum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, sample: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        return sample * self.weight if other is None else sample * self.weight + other * 3


@torch.no_grad()
def test_one_tensor_as_two_arguments_is_not_two_tensors() -> None:
    module, reference = _compiled(Sum()), Sum()
    x, y = torch.randn(3), torch.randn(3)
    for pair in ((x, x), (x, y), (module.weight, y), (x, module.weight), (x, y)):
        assert torch.equal(module(*pair), reference(*pair))
    assert not _asides(module)


@torch.no_grad()
def test_an_argument_with_a_named_role_may_be_left_out() -> None:
    module = graphopt.compile(Sum(), target="eager", roles={"other": "condition"})
    assert torch.equal(module(torch.ones(3), torch.ones(3)), torch.full((3,), 4.0))
    assert torch.equal(module(torch.ones(3), None), torch.ones(3))
    assert not _asides(module)


@torch.library.custom_op("graphopt_tests::noise", mutates_args=())
def _noise(x: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(x)


@_noise.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Noisy(torch.nn.Module):
    def forward(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        noise: torch.Tensor = _noise(encoder_hidden_states)
        return sample + noise


@torch.no_grad()
def test_a_custom_operator_may_draw_random_numbers() -> None:
    module, x = _compiled(Noisy()), torch.ones(4)
    assert len({float(module(x, x).sum()) for _ in range(4)}) == 4


class Retyped(torch.nn.Module):
    def forward(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return encoder_hidden_states.sin().type_as(sample)


@torch.no_grad()
def test_writing_into_a_cast_that_casts_nothing_reaches_nothing_that_is_kept() -> None:
    module, x = _compiled(Retyped()), torch.ones(4)
    for _ in range(3):
        result = module(x, x)
        assert torch.equal(result, x.sin())
        result.zero_()


def test_an_exported_program_keeps_the_sizes_it_was_exported_for() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(0) / x.shape[0]

    module = graphopt.compile(torch.export.export(Mean(), (torch.ones(2, 4),)), target="eager")
    with torch.no_grad():
        assert torch.equal(module(torch.ones(2, 4)), torch.ones(4))
        with pytest.raises(ValueError, match=r"'x' has shape \(3, 4\); the program was exported for \(2, 4\)"):
            module(torch.ones(3, 4))  # by the module itself, before anything is captured
