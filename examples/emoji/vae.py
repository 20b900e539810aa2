"""Train the small AutoencoderKL (64×64 RGB → 16×16×4) that both pipelines share.

    python vae.py OUT --seconds 2100

Resumes from OUT/state.pt. Writes OUT/vae, a diffusers folder in half precision with a measured `scaling_factor`, and
OUT/reconstructions.png: originals in rows 1 and 3. `vae/` beside this file was trained so, on two threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from tqdm import tqdm

from data import render

BATCH = 32
LEARNING_RATE = 6e-4


def augment(x: torch.Tensor) -> torch.Tensor:
    """Shift, scale, mirror and mix the colours of a batch at random, white outside."""
    n = len(x)
    scale = torch.empty(n).uniform_(0.9, 1.25)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * mirror, scale
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-0.12, 0.12)
    y = F.grid_sample(x - 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) + 1
    mix = torch.eye(3).expand(n, 3, 3) + 0.12 * torch.randn(n, 3, 3) * (torch.rand(n, 1, 1) < 0.5)
    return (1 - torch.einsum("nij,njhw->nihw", mix, 1 - y)).clamp(-1, 1)


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pixels, of their differences to neighbours and of coarse averages."""
    edges = (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    coarse = sum(((F.avg_pool2d(y, k) - F.avg_pool2d(x, k)).abs().mean() for k in (4, 8)), torch.zeros(()))
    return (y - x).abs().mean() + 0.5 * edges + 0.5 * coarse


def train(out: Path, seconds: float) -> None:
    """Train until `seconds` of training time are spent, then write the folder and the picture."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    data = render().pictures
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=True,
    )
    params = list(vae.parameters())
    print(f"{len(data)} pictures, {sum(p.numel() for p in params) / 1e6:.2f} M parameters", flush=True)
    opt = torch.optim.AdamW(params, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = [p.detach().clone() for p in params]
    step, spent, average = 0, 0.0, 0.0
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True)
        vae.load_state_dict(state["vae"])
        opt.load_state_dict(state["opt"])
        step, spent, ema = state["step"], state["spent"], state["ema"]
        torch.manual_seed(step)
    start = time.monotonic() - spent
    bar = tqdm(total=round(seconds), initial=round(spent), unit="s", mininterval=20)
    while (spent := time.monotonic() - start) < seconds:
        x = augment(data[torch.randint(0, len(data), (BATCH,))])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y, kl = y.float(), posterior.kl().mean() / (4 * 16 * 16)
        opt.zero_grad()
        (reconstruction_loss(y, x) + 1e-4 * kl).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        fall = 1.0 if spent < 0.6 * seconds else max(0.02, (1 - spent / seconds) / 0.4)
        for group in opt.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 200) * fall
        opt.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - min(0.998, (1 + step) / (10 + step)))
        average += ((y - x).abs().mean().item() - average) * max(0.02, 1 / step)
        bar.update(round(spent) - bar.n)
        if step % 100 == 0:
            bar.write(f"step {step} at {spent:.0f} s: mean absolute error {average:.4f}, KL {kl.item():.2f}")
        if step % 500 == 0:
            state = {"vae": vae.state_dict(), "opt": opt.state_dict(), "step": step, "spent": spent, "ema": ema}
            torch.save(state, out / "state.new")
            (out / "state.new").replace(out / "state.pt")
    bar.close()
    with torch.no_grad():
        for parameter, mean in zip(params, ema, strict=True):
            parameter.copy_(mean)
    finish(vae.eval(), data, out)
    print(f"{step} steps in {spent:.0f} s")


@torch.no_grad()
def finish(vae: AutoencoderKL, data: torch.Tensor, out: Path) -> None:
    """Measure the scaling factor and the reconstruction of 32 pictures; write the folder and the picture."""
    latents = torch.cat([vae.encode(x).latent_dist.mode() for x in data.split(128)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    pick = torch.linspace(0, len(data) - 1, 32).long()
    y = torch.cat([vae.decode(latents[i : i + 1]).sample for i in pick]).clamp(-1, 1)
    psnr = -10 * torch.log10(((y - data[pick]) ** 2).mean((1, 2, 3)) / 4).mean()
    print(f"scaling factor {vae.config.scaling_factor}, mean PSNR of 32 reconstructions {psnr:.2f} dB")
    rows = torch.stack([data[pick].view(2, 16, 3, 64, 64), y.view(2, 16, 3, 64, 64)], 1).reshape(4, 16, 3, 64, 64)
    grid = ((rows + 1) * 127.5).round().byte().permute(0, 3, 1, 4, 2).reshape(4 * 64, 16 * 64, 3)
    Image.fromarray(grid.numpy()).save(out / "reconstructions.png")
    vae.half().save_pretrained(out / "vae")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=2100.0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seconds)


if __name__ == "__main__":
    main()
