"""The two pipelines, untrained: tokenizers from the captions, small text encoders, denoisers, one scheduler.

Everything here is a stock class of diffusers or transformers, so that the folders load without this repository.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

VAE = Path(__file__).parent / "vae"
VOCABULARY = 2048
MAX_TOKENS = 32
LATENT = 16  # the latent's height and width: 64 pixels through a VAE of factor 4
NAMES = ("unet", "dit")


def scheduler() -> DDIMScheduler:
    """DDIM with v-prediction; trailing timesteps, so that sampling starts at the noise that training ends at."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # not used by trailing timesteps; the pipeline warns about any other value
        timestep_spacing="trailing",
    )


def clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind (lower case, `</w>` ends a word), learnt from the captions."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - len(alphabet),
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    tokens += [f"{letter}</w>" for letter in sorted(alphabet) if f"{letter}</w>" not in state["vocab"]]
    vocabulary = {token: index for index, token in enumerate([*tokens, start, end])}
    merges = [tuple(m) for m in state["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def t5_tokenizer(captions: list[str]) -> T5Tokenizer:
    """A unigram tokenizer of T5's kind, learnt from the captions as they are and in lower case.

    `PixArtAlphaPipeline` puts a prompt in lower case, whichever way it cleans it.
    """
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(captions + [c.lower() for c in captions], trainer)
    vocabulary = [(token, score) for token, score in json.loads(unigram.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=MAX_TOKENS)


@dataclass(frozen=True)
class Parts:
    """What is trained: `denoiser` and `text`; and `tokenizer`, which is learnt before."""

    denoiser: UNet2DConditionModel | PixArtTransformer2DModel
    text: CLIPTextModel | T5EncoderModel
    tokenizer: CLIPTokenizer | T5Tokenizer


def unet(tokenizer: CLIPTokenizer) -> Parts:
    """A Stable Diffusion U-Net on 16×16 latents, text at 8×8 and 4×4, and a causal CLIP text encoder."""
    width = 192
    denoiser = UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=(2, 4, 6),  # diffusers counts heads here: each is 32 wide
        use_linear_projection=True,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return Parts(denoiser, text, tokenizer)


def dit(tokenizer: T5Tokenizer) -> Parts:
    """A PixArt-α transformer of 64 latent patches and a T5 text encoder."""
    width = 192
    denoiser = PixArtTransformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        num_attention_heads=8,
        attention_head_dim=32,
        cross_attention_dim=256,
        caption_channels=width,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    initialize(denoiser)
    text = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_heads=6,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return Parts(denoiser, text, tokenizer)


@torch.no_grad()
def initialize(denoiser: PixArtTransformer2DModel) -> None:
    """Start as DiT does: Xavier matrices without bias, small modulation, and nothing out of the last layer."""
    for module in denoiser.transformer_blocks.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                module.bias.zero_()
    torch.nn.init.normal_(denoiser.adaln_single.linear.weight, std=0.02)
    denoiser.adaln_single.linear.bias.zero_()
    denoiser.proj_out.weight.zero_()
    denoiser.proj_out.bias.zero_()


def tokenizer(name: str, captions: list[str]) -> Any:
    """The tokenizer of the pipeline `name`, learnt from the captions.

    The tokenizers library breaks ties by chance: learn it once and keep it with the weights.
    """
    if name not in NAMES:
        raise ValueError(f"no pipeline called {name!r}: choose one of {', '.join(NAMES)}")
    return clip_tokenizer(captions) if name == "unet" else t5_tokenizer(captions)


def load_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer that was saved in `folder`."""
    return (CLIPTokenizer if name == "unet" else T5Tokenizer).from_pretrained(folder)


def build(name: str, tokenizer: Any) -> Parts:
    """The parts of the pipeline `name`, one of `NAMES`, with fresh weights from torch's global generator."""
    return unet(tokenizer) if name == "unet" else dit(tokenizer)


def assemble(parts: Parts) -> DiffusionPipeline:
    """The stock pipeline of these parts, the shared VAE and the scheduler."""
    vae = AutoencoderKL.from_pretrained(VAE)
    if isinstance(parts.text, CLIPTextModel):
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=parts.text,
            tokenizer=parts.tokenizer,
            unet=parts.denoiser,
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    return PixArtAlphaPipeline(
        vae=vae,
        text_encoder=parts.text,
        tokenizer=parts.tokenizer,
        transformer=parts.denoiser,
        scheduler=scheduler(),
    )
