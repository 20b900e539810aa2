"""Train the judge on real renders, blurred, shifted and recoloured, and measure it on renders it never saw.

    python train_judge.py OUT --seconds 480      # writes OUT/model.safetensors, OUT/config.json, OUT/evaluation.json

It never sees a generated picture nor the VAE: `evaluation.json` also measures it on the VAE's reconstructions of the
data, which is the best that a pipeline with this VAE can reach. Resumes from OUT/state.pt.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

import build
from data import Emoji, render
from judge import Judge, embed, frechet, load, verdict, words

TRAINING_SIZES = (64, 96)  # pixels at which the training pictures are rendered, before they are resized to 64
HELD_OUT = ((48, (0, 0)), (80, (5, -4)), (128, (-6, 3)))  # sizes and shifts that training never uses
CLUSTERS, CLUSTER = 12, 8  # a batch is runs of neighbours in Unicode's order: the hardest negatives
LEARNING_RATE = 2e-3


def at_64(data: Emoji) -> torch.Tensor:
    """Resize the pictures to 64×64."""
    if data.pictures.shape[-1] == 64:
        return data.pictures
    resized = [F.interpolate(c, (64, 64), mode="bilinear", antialias=True) for c in data.pictures.split(512)]
    return torch.cat(resized)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of `sigma` pixels, at most 2."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, 7)
    x = F.conv2d(F.pad(x, (3, 3, 0, 0), mode="replicate"), taps, groups=3)
    return F.conv2d(F.pad(x, (0, 0, 3, 3), mode="replicate"), taps.transpose(2, 3), groups=3)


def augment(x: torch.Tensor) -> torch.Tensor:
    """Shift, scale, recolour, soften and add noise; never mirror: a left arrow is not a right arrow."""
    n = len(x)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.empty(n).uniform_(0.85, 1.2)
    theta[:, 1, 1] = theta[:, 0, 0] * torch.empty(n).uniform_(0.95, 1.05)
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-0.14, 0.14)
    x = F.grid_sample(x - 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) + 1
    jitter = (torch.rand(n, 1, 1) < 0.7).float()
    mix = torch.eye(3) + 0.05 * torch.randn(n, 3, 3) * jitter
    x = 1 - torch.einsum("nij,njhw->nihw", mix, 1 - x) * torch.empty(n, 1, 1, 1).uniform_(0.85, 1.15)
    parts = []
    for part in x.chunk(6):  # one softness for each part of the batch, in an order that the caller has shuffled
        kind = torch.rand(()).item()
        if kind < 0.4:
            part = blur(part, 0.3 + 1.3 * torch.rand(()).item())
        elif kind < 0.7:
            size = int(torch.randint(28, 60, ()))
            small = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
            part = F.interpolate(small, (64, 64), mode="bicubic")
        parts.append(part)
    x = torch.cat(parts)
    x = x + torch.randn_like(x) * torch.empty(n, 1, 1, 1).uniform_(0, 0.08) * (torch.rand(n, 1, 1, 1) < 0.5)
    coarse = F.interpolate(torch.randn(n, 3, 16, 16), (64, 64), mode="bilinear")  # a VAE's errors are not white noise
    x = x + coarse * torch.empty(n, 1, 1, 1).uniform_(0, 0.12) * (torch.rand(n, 1, 1, 1) < 0.5)
    return x.clamp(-1, 1)


def batch_rows(n: int) -> torch.Tensor:
    """Distinct rows of a batch: `CLUSTERS` runs of `CLUSTER` neighbours, shuffled."""
    starts = torch.randperm(n // CLUSTER)[:CLUSTERS] * CLUSTER + torch.randint(CLUSTER, ())
    rows = (starts.unsqueeze(1) + torch.arange(CLUSTER)).flatten() % n
    return rows[torch.randperm(len(rows))]


def train(out: Path, seconds: float) -> None:
    """Train until `seconds` of training time are spent and write the judge of the averaged weights."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    data = render()
    pictures = torch.stack([at_64(render(size)) for size in TRAINING_SIZES])
    vocabulary = sorted({word for caption in data.captions for word in words(caption)})
    judge = Judge(vocabulary, data.names, max(len(words(c)) for c in data.captions))
    tokens = judge.tokens(data.captions)
    params = list(judge.parameters())
    print(f"{sum(p.numel() for p in params) / 1e6:.2f} M parameters, {len(vocabulary)} words", flush=True)
    opt = torch.optim.AdamW(params, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    ema = [p.detach().clone() for p in params]
    step, spent, average = 0, 0.0, {"contrast": 0.0, "subgroup": 0.0}
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True)
        judge.load_state_dict(state["judge"])
        opt.load_state_dict(state["opt"])
        ema, step, spent = state["ema"], state["step"], state["spent"]
        torch.manual_seed(step)

    def save() -> None:
        state = {"judge": judge.state_dict(), "opt": opt.state_dict(), "ema": ema, "step": step, "spent": spent}
        torch.save(state, out / "state.new")
        (out / "state.new").replace(out / "state.pt")

    start = saved_at = time.monotonic()
    start -= spent
    bar = tqdm(total=round(seconds), initial=round(spent), unit="s", mininterval=20)
    while (spent := time.monotonic() - start) < seconds:
        factor = min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * spent / seconds)))
        for group in opt.param_groups:
            group["lr"] = LEARNING_RATE * factor
        rows = batch_rows(len(tokens))
        x = augment(pictures[torch.randint(len(pictures), rows.shape), rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = judge.features(x)
            seen = judge.picture_out(features).float()
            guess = judge.subgroup_out(features).float()
            read = judge.embed_captions(tokens[rows])
        logits = F.normalize(seen, dim=1) @ read.float().T / judge.log_temperature.clamp(-4.6, 0).exp()
        target = torch.arange(len(rows))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        subgroup = F.cross_entropy(guess, data.labels[rows], label_smoothing=0.05)
        (contrast + subgroup).backward()
        torch.nn.utils.clip_grad_norm_(params, 2.0)
        opt.step()
        opt.zero_grad()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - min(0.995, (1 + step) / (10 + step)))
        for key, value in (("contrast", contrast), ("subgroup", subgroup)):
            average[key] += (value.item() - average[key]) * max(0.02, 1 / step)
        bar.update(round(spent) - bar.n)
        if step % 100 == 0:
            bar.write(f"step {step} at {spent:.0f} s: " + ", ".join(f"{k} {v:.3f}" for k, v in average.items()))
        if time.monotonic() - saved_at > 120:
            save()
            saved_at = time.monotonic()
    save()
    bar.close()
    with torch.no_grad():
        for parameter, mean in zip(params, ema, strict=True):
            parameter.copy_(mean)
        judge.train()
        for module in judge.modules():  # the averaged weights need batch statistics of their own
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        for _ in range(60):
            rows = batch_rows(len(tokens))
            judge.features(augment(pictures[torch.randint(len(pictures), rows.shape), rows]))
    judge.save(out)
    print(f"{step} steps in {spent:.0f} s", flush=True)
    (out / "training.json").write_text(json.dumps({"steps": step, "seconds": round(spent)}) + "\n")


@torch.no_grad()
def evaluate(out: Path) -> None:
    """Measure the judge in `out` on held-out renders and on the VAE's reconstructions; write `evaluation.json`."""
    torch.manual_seed(1)
    judge, data = load(out), render()
    every = torch.arange(len(data.captions))
    real = embed(judge, data.pictures)
    result: dict[str, object] = json.loads((out / "training.json").read_text())

    def measure(name: str, pictures: torch.Tensor) -> None:
        features = embed(judge, pictures)
        figures = asdict(verdict(judge, features, every, data.labels, data.captions))
        figures["frechet_distance"] = abs(frechet(features, real))  # never −0
        result[name] = {key: round(value, 4) for key, value in figures.items()}
        print(name, result[name], flush=True)

    measure("training renders", data.pictures)
    for size, shift in HELD_OUT:
        x = at_64(render(size, shift))
        gain = torch.empty(len(x), 3, 1, 1).uniform_(0.88, 1.12)
        offset = torch.empty(len(x), 3, 1, 1).uniform_(-0.08, 0)
        measure(f"held-out renders at {size} px, shifted by {shift}, recoloured", (x * gain + offset).clamp(-1, 1))
    vae = AutoencoderKL.from_pretrained(build.VAE).eval()
    rebuilt = [vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) for x in data.pictures.split(128)]
    measure("VAE reconstructions", torch.cat(rebuilt))
    (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Read the command line, train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(arguments.out, arguments.seconds)
    evaluate(arguments.out)


if __name__ == "__main__":
    main()
