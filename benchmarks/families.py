"""Tiny models, one of each kind that diffusers has for images and videos: which operators they use is what counts.

Each is a module and the keyword arguments of one call. Weights are random, and none of them all zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch

from benchmarks.models import random_weights

Call = Mapping[str, Any]
_r = torch.randn
_TIME = torch.tensor([7])


class Decoder(torch.nn.Module):
    """Latents to images or videos: what an autoencoder does in a pipeline, as a module of its own."""

    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> Any:
        return self.vae.decode(latents, return_dict=False)[0]  # type: ignore[operator]


def families() -> dict[str, Callable[[], tuple[torch.nn.Module, Call]]]:
    """Makers by name."""
    return {
        "UNet2DConditionModel": lambda: _made(
            diffusers.UNet2DConditionModel, {"sample": _r(1, 4, 8, 8), "timestep": _TIME, **_text(16)},
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "CrossAttnUpBlock2D"),
        ),
        "UNet2DModel": lambda: _made(
            diffusers.UNet2DModel, {"sample": _r(1, 3, 8, 8), "timestep": _TIME},
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            downsample_type="resnet", upsample_type="resnet",
        ),
        "Kandinsky3UNet": lambda: _made(
            diffusers.Kandinsky3UNet,
            {"sample": _r(1, 4, 8, 8), "timestep": _TIME, **_text(8), "encoder_attention_mask": torch.ones(1, 5)},
            in_channels=4, time_embedding_dim=8, groups=2, attention_head_dim=4, layers_per_block=2,
            block_out_channels=(8, 16), cross_attention_dim=8, encoder_hid_dim=8,
        ),
        "StableCascadeUNet": lambda: _made(
            diffusers.StableCascadeUNet,
            {"sample": _r(1, 4, 8, 8), "timestep_ratio": torch.tensor([0.5]), "clip_text_pooled": _r(1, 1, 16)},
            in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, conditioning_dim=8,
            block_out_channels=(8, 16), num_attention_heads=(0, 2), down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1),
            block_types_per_layer=(
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            clip_text_in_channels=None, clip_text_pooled_in_channels=16, switch_level=(False,),
        ),
        "DiTTransformer2DModel": lambda: _made(
            diffusers.DiTTransformer2DModel,
            {"hidden_states": _r(1, 4, 8, 8), "timestep": _TIME, "class_labels": torch.tensor([3])},
            sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
            num_embeds_ada_norm=10, norm_num_groups=2,
        ),
        "PixArtTransformer2DModel": lambda: _made(
            diffusers.PixArtTransformer2DModel,
            {
                "hidden_states": _r(1, 4, 8, 8), "timestep": _TIME, **_text(8),
                "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            },
            sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
            cross_attention_dim=16, caption_channels=8, use_additional_conditions=False,
        ),
        "HunyuanDiT2DModel": lambda: _made(
            diffusers.HunyuanDiT2DModel,
            {
                "hidden_states": _r(1, 4, 8, 8), "timestep": torch.tensor([7.0]), "encoder_hidden_states": _r(1, 5, 8),
                "text_embedding_mask": torch.ones(1, 5), "encoder_hidden_states_t5": _r(1, 3, 8),
                "text_embedding_mask_t5": torch.ones(1, 3), "image_meta_size": _r(1, 6), "style": torch.tensor([0]),
                "image_rotary_emb": (_r(16, 8), _r(16, 8)),
            },
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4, hidden_size=16, text_len=5,
            text_len_t5=3, activation_fn="gelu-approximate",
        ),
        "SD3Transformer2DModel": lambda: _made(
            diffusers.SD3Transformer2DModel,
            {
                "hidden_states": _r(1, 4, 8, 8), "timestep": _TIME, **_text(16), "pooled_projections": _r(1, 8),
            },
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
            pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        "FluxTransformer2DModel": lambda: _made(
            diffusers.FluxTransformer2DModel,
            {
                "hidden_states": _r(1, 16, 4), **_text(16), "pooled_projections": _r(1, 8),
                "timestep": torch.tensor([0.7]), "guidance": torch.tensor([3.5]), "img_ids": torch.zeros(16, 3),
                "txt_ids": torch.zeros(5, 3),
            },
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
            guidance_embeds=True,
        ),
        "AuraFlowTransformer2DModel": lambda: _made(
            diffusers.AuraFlowTransformer2DModel,
            {"hidden_states": _r(1, 4, 8, 8), "timestep": torch.tensor([0.7]), **_text(16)},
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16,
            out_channels=4, pos_embed_max_size=16,
        ),
        "SanaTransformer2DModel": lambda: _made(
            diffusers.SanaTransformer2DModel,
            {"hidden_states": _r(1, 4, 8, 8), "timestep": _TIME, **_text(8)},
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
            caption_channels=8,
        ),
        "Lumina2Transformer2DModel": lambda: _made(
            diffusers.Lumina2Transformer2DModel,
            {
                "hidden_states": _r(1, 4, 8, 8), "timestep": torch.tensor([0.7]), **_text(16),
                "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
            },
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=2, ffn_dim_multiplier=None, norm_eps=1e-5,
            scaling_factor=1.0, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=16,
        ),
        "CogView4Transformer2DModel": lambda: _made(
            diffusers.CogView4Transformer2DModel,
            {
                "hidden_states": _r(1, 4, 8, 8), "timestep": _TIME, **_text(16),
                "original_size": torch.tensor([[64.0, 64.0]]), "target_size": torch.tensor([[64.0, 64.0]]),
                "crop_coords": torch.tensor([[0.0, 0.0]]),
            },
            patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, out_channels=4,
            text_embed_dim=16, time_embed_dim=8, condition_dim=4, rope_axes_dim=(8, 8),
        ),
        "QwenImageTransformer2DModel": lambda: _made(
            diffusers.QwenImageTransformer2DModel,
            {
                "hidden_states": _r(1, 16, 16), "timestep": torch.tensor([0.7]), **_text(16),
                "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.int64), "img_shapes": [[(1, 4, 4)]],
            },
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        ),
        "UVit2DModel": lambda: _made(
            diffusers.UVit2DModel,
            {
                "input_ids": torch.randint(0, 16, (1, 4, 4)), "encoder_hidden_states": _r(1, 5, 8),
                "pooled_text_emb": _r(1, 8), "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]]),
            },
            hidden_size=16, use_bias=False, hidden_dropout=0.0, cond_embed_dim=8, micro_cond_encode_dim=2,
            micro_cond_embed_dim=10, encoder_hidden_size=8, vocab_size=17, codebook_size=16, in_channels=16,
            block_out_channels=16, num_res_blocks=1, downsample=True, upsample=True, block_num_heads=2,
            num_hidden_layers=1, num_attention_heads=2, attention_dropout=0.0, intermediate_size=32,
            layer_norm_eps=1e-6, ln_elementwise_affine=True, sample_size=8,
        ),
        "UNet3DConditionModel": lambda: _made(
            diffusers.UNet3DConditionModel,
            {"sample": _r(1, 4, 3, 8, 8), "timestep": _TIME, **_text(8)},
            sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8,
            attention_head_dim=4, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        "UNetSpatioTemporalConditionModel": lambda: _made(
            diffusers.UNetSpatioTemporalConditionModel,
            {
                "sample": _r(1, 2, 4, 8, 8), "timestep": _TIME, "encoder_hidden_states": _r(1, 1, 8),
                "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
            },
            sample_size=8, in_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=8,
            num_attention_heads=8, addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        ),
        "UNetMotionModel": lambda: _made(
            diffusers.UNetMotionModel,
            {"sample": _r(1, 4, 3, 8, 8), "timestep": _TIME, "encoder_hidden_states": _r(3, 5, 8)},
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            num_attention_heads=2, motion_num_attention_heads=2,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        ),
        "CogVideoXTransformer3DModel": lambda: _made(
            diffusers.CogVideoXTransformer3DModel,
            {"hidden_states": _r(1, 2, 4, 8, 8), "timestep": _TIME, **_text(8)},
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=4,
            text_embed_dim=8, num_layers=1, sample_width=8, sample_height=8, sample_frames=5, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=5,
        ),
        "WanTransformer3DModel": lambda: _made(
            diffusers.WanTransformer3DModel, {"hidden_states": _r(1, 4, 2, 8, 8), "timestep": _TIME, **_text(16)},
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
        ),
        "HunyuanVideoTransformer3DModel": lambda: _made(
            diffusers.HunyuanVideoTransformer3DModel,
            {
                "hidden_states": _r(1, 4, 2, 8, 8), "timestep": _TIME, **_text(16), "pooled_projections": _r(1, 8),
                "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]), "guidance": torch.tensor([3.5]),
            },
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
            text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
        ),
        "LTXVideoTransformer3DModel": lambda: _made(
            diffusers.LTXVideoTransformer3DModel,
            {
                "hidden_states": _r(1, 18, 4), "timestep": _TIME, **_text(16), "num_frames": 2, "height": 3, "width": 3,
                "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
            },
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=1, caption_channels=16,
        ),
        "MochiTransformer3DModel": lambda: _made(
            diffusers.MochiTransformer3DModel,
            {
                "hidden_states": _r(1, 4, 2, 8, 8), "timestep": _TIME, "encoder_hidden_states": _r(1, 5, 16),
                "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]).bool(),
            },
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
            in_channels=4, text_embed_dim=16, time_embed_dim=4, activation_fn="swiglu", max_sequence_length=5,
        ),
        "CosmosTransformer3DModel": lambda: _made(
            diffusers.CosmosTransformer3DModel,
            {
                "hidden_states": _r(1, 4, 2, 8, 8), "timestep": _TIME, **_text(16), "fps": 30,
                "attention_mask": torch.ones(1, 5),
            },
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, mlp_ratio=2,
            text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2),
            concat_padding_mask=False,
        ),
        "LatteTransformer3DModel": lambda: _made(
            diffusers.LatteTransformer3DModel,
            {"hidden_states": _r(1, 4, 2, 8, 8), "timestep": _TIME, **_text(8)},
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            out_channels=8, caption_channels=8, cross_attention_dim=16, norm_type="ada_norm_single", video_length=2,
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_elementwise_affine=False,
            attention_bias=True,
        ),
        "AutoencoderKL": lambda: _decoder(
            diffusers.AutoencoderKL, _r(1, 4, 8, 8), block_out_channels=(8, 8), norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "AutoencoderTiny": lambda: _decoder(
            diffusers.AutoencoderTiny, _r(1, 4, 8, 8), encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ),
        "AutoencoderDC": lambda: _decoder(
            diffusers.AutoencoderDC, _r(1, 4, 4, 4), in_channels=3, latent_channels=4, attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ),
        "VQModel": lambda: _decoder(
            diffusers.VQModel, _r(1, 3, 8, 8), block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3,
            num_vq_embeddings=16,
        ),
        "AutoencoderKLTemporalDecoder": lambda: _temporal(),
        "AutoencoderKLCogVideoX": lambda: _decoder(
            diffusers.AutoencoderKLCogVideoX, _r(1, 4, 2, 4, 4), block_out_channels=(8, 8, 8, 8), latent_channels=4,
            layers_per_block=1, norm_num_groups=2,
        ),
        "AutoencoderKLWan": lambda: _decoder(
            diffusers.AutoencoderKLWan, _r(1, 4, 2, 4, 4), base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1],
            num_res_blocks=1, temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        "AutoencoderKLHunyuanVideo": lambda: _decoder(
            diffusers.AutoencoderKLHunyuanVideo, _r(1, 4, 2, 4, 4), latent_channels=4, block_out_channels=(8, 8, 8, 8),
            layers_per_block=1, norm_num_groups=4,
        ),
        "AutoencoderKLLTXVideo": lambda: _decoder(
            diffusers.AutoencoderKLLTXVideo, _r(1, 8, 2, 4, 4), latent_channels=8, block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        ),
        "AutoencoderKLMochi": lambda: _decoder(
            diffusers.AutoencoderKLMochi, _r(1, 4, 2, 4, 4), latent_channels=4, encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5, out_channels=3,
        ),
    }  # fmt: skip


def _text(width: int) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": _r(1, 5, width)}


def _made(kind: Any, call: Call, **config: Any) -> tuple[torch.nn.Module, Call]:
    plain = {"return_dict": False} if "return_dict" in inspect.signature(kind.forward).parameters else {}
    return random_weights(kind, **config), {**call, **plain}


def _decoder(kind: Any, latents: torch.Tensor, **config: Any) -> tuple[torch.nn.Module, Call]:
    return Decoder(random_weights(kind, **config)).eval(), {"latents": latents}


def _temporal() -> tuple[torch.nn.Module, Call]:
    vae: Any = random_weights(
        diffusers.AutoencoderKLTemporalDecoder, block_out_channels=(32, 32), latent_channels=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
    )  # fmt: skip
    call = {"sample": _r(2, 4, 8, 8), "image_only_indicator": torch.zeros(1, 2), "num_frames": 2}
    return vae.decoder, call
