"""Train a pipeline's denoiser and text encoder, from noise to emoji, in a given number of seconds.

    python train.py unet OUT --seconds 6000
    python train.py dit OUT --seconds 6000

One thread each. Resumes from OUT/state.pt, which is written every two minutes; the learning rate is a function of the
elapsed share of the time, so that a run ends annealed however fast the machine is. `export.py` turns OUT/state.pt into
a diffusers folder at any time.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PixArtAlphaPipeline
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

import build
from data import render

SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Settings:
    """How one of the two pipelines is trained; `learning_rate` is AdamW's peak."""

    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    caption_dropout: float = 0.1
    ema: float = 0.999
    warmup_steps: int = 200
    hold: float = 0.35  # share of the time before the learning rate starts to fall


SETTINGS = {
    "unet": Settings(batch=32, learning_rate=6e-4),
    "dit": Settings(batch=32, learning_rate=6e-4),
}


@torch.no_grad()
def cached_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, [n, 4, 16, 16] each, of the VAE's posterior, scaled for the denoiser."""
    means, stds = [], []
    for chunk in pictures.split(128):
        posterior = vae.encode(chunk).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    scale = vae.config.scaling_factor
    return torch.cat(means) * scale, torch.cat(stds) * scale


def tokenized(name: str, tokenizer: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [variants, n + 1, length]; the last row is the empty caption of guidance.

    Stable Diffusion pads to the tokenizer's full length and attends to the padding; PixArt masks it, so that it is cut
    to the longest caption here. PixArt's pipeline may clean a caption: both forms are variants.
    """
    if name == "unet":
        variants, length = [captions], tokenizer.model_max_length
    else:
        clean = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)._text_preprocessing  # a method without components
        variants = [captions, clean(list(captions), clean_caption=True)]
        length = max(len(row) for variant in variants for row in tokenizer(variant).input_ids)
    ids, masks = [], []
    for variant in variants:
        tokens = tokenizer(
            [*variant, ""], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids.append(tokens.input_ids)
        masks.append(tokens.attention_mask)
    return torch.stack(ids), torch.stack(masks)


def schedule(share: float, step: int, settings: Settings) -> float:
    """The learning rate's factor after `share` of the time: warm-up in steps, a plateau, a fall to 2 %."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    fall = 1.0 if share < settings.hold else max(0.02, (1 - share) / (1 - settings.hold))
    return warm * fall


def train(name: str, out: Path, seconds: float, settings: Settings) -> None:
    """Train `name` until `seconds` of training time are spent, counting those before a resumption."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    data = render()
    vae = AutoencoderKL.from_pretrained(build.VAE)
    mean, std = cached_latents(vae, data.pictures)
    if not (out / "tokenizer").exists():
        build.tokenizer(name, data.captions).save_pretrained(out / "tokenizer")
    parts = build.build(name, build.load_tokenizer(name, out / "tokenizer"))
    ids, masks = tokenized(name, parts.tokenizer, data.captions)
    alphas = build.scheduler().alphas_cumprod
    modules = torch.nn.ModuleDict({"denoiser": parts.denoiser, "text": parts.text}).train()
    parts.denoiser.set_attn_processor(AttnProcessor())  # its backward is twice as fast here as the fused kernel's
    params = list(modules.parameters())
    ema = [p.detach().clone() for p in params]
    opt = torch.optim.AdamW(
        params, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
    )
    step, spent, average = 0, 0.0, 1.0
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True)
        modules.load_state_dict(state["modules"])
        opt.load_state_dict(state["optimizer"])
        ema, step, spent, average = state["ema"], state["step"], state["spent"], state["average"]
        torch.manual_seed(step)
    sizes = ", ".join(f"{n} {sum(p.numel() for p in m.parameters()) / 1e6:.2f} M" for n, m in modules.items())
    print(f"{name}: {len(data.captions)} pictures; {sizes} parameters; from step {step} at {spent:.0f} s", flush=True)

    def save() -> None:
        state = {
            "modules": modules.state_dict(),
            "optimizer": opt.state_dict(),
            "ema": ema,
            "step": step,
            "spent": spent,
            "average": average,
        }
        torch.save(state, out / "state.new")
        (out / "state.new").replace(out / "state.pt")

    start = saved_at = time.monotonic()
    start -= spent
    bar = tqdm(total=round(seconds), initial=round(spent), unit="s", mininterval=20, dynamic_ncols=False)
    while (spent := time.monotonic() - start) < seconds:
        factor = schedule(spent / seconds, step, settings)
        for group in opt.param_groups:
            group["lr"] = settings.learning_rate * factor
        pick = torch.randint(len(mean), (settings.batch,))
        x = mean[pick] + std[pick] * torch.randn_like(mean[pick])
        t = torch.randint(1000, (settings.batch,))
        signal, noise = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        eps = torch.randn_like(x)
        noisy, velocity = signal * x + noise * eps, signal * eps - noise * x
        row = torch.where(torch.rand(settings.batch) < settings.caption_dropout, len(mean), pick)
        variant = torch.randint(len(ids), (settings.batch,))
        tokens, mask = ids[variant, row], masks[variant, row]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if name == "unet":
                embedded = parts.text(tokens)[0]
                prediction = parts.denoiser(noisy, t, embedded, return_dict=False)[0]
            else:
                embedded = parts.text(tokens, attention_mask=mask)[0]
                prediction = parts.denoiser(noisy, embedded, t, {}, encoder_attention_mask=mask, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), velocity)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - min(settings.ema, (1 + step) / (10 + step)))
        average += (loss.item() - average) * max(0.005, 1 / step)
        bar.update(round(spent) - bar.n)
        if step % 50 == 0:
            bar.write(f"step {step} at {spent:.0f} s: loss {average:.4f}, learning rate × {factor:.3f}")
        if time.monotonic() - saved_at > SAVE_EVERY:
            save()
            saved_at = time.monotonic()
    save()
    bar.close()
    print(f"{name}: {step} steps in {spent:.0f} s, loss {average:.4f}", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=build.NAMES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=6000.0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--learning-rate", type=float)
    arguments = vars(parser.parse_args())
    name, out, seconds = arguments.pop("name"), arguments.pop("out"), arguments.pop("seconds")
    settings = replace(SETTINGS[name], **{k: v for k, v in arguments.items() if v is not None})
    train(name, out, seconds, settings)


if __name__ == "__main__":
    main()
