"""Write a diffusers folder from a training checkpoint: averaged (EMA) weights in half precision, at any time.

    python export.py unet OUT ../../graphopt/models/emoji-unet

The folder is written beside its place and renamed into it, so that nobody reads half a file.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch

import build

KEPT = ("README.md", "evaluation.json")  # written by other scripts: an export leaves them where they are


def averaged(name: str, out: Path) -> tuple[build.Parts, int, float]:
    """The parts with the EMA weights of `out/state.pt`, the steps trained and the seconds spent."""
    state = torch.load(out / "state.pt", weights_only=True)
    parts = build.build(name, build.load_tokenizer(name, out / "tokenizer"))
    modules = torch.nn.ModuleDict({"denoiser": parts.denoiser, "text": parts.text})
    with torch.no_grad():
        for parameter, average in zip(modules.parameters(), state["ema"], strict=True):
            parameter.copy_(average)
    modules.eval()
    return parts, state["step"], state["spent"]


def export(name: str, out: Path, folder: Path) -> None:
    """Write the pipeline `name` of the checkpoint in `out` as `folder`."""
    parts, step, spent = averaged(name, out)
    pipeline = build.assemble(parts)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            for parameter in module.parameters():
                parameter.data = parameter.data.half()
    fresh, old = folder.with_name(f".{folder.name}-new"), folder.with_name(f".{folder.name}-old")
    pipeline.save_pretrained(fresh, safe_serialization=True)
    # transformers would load the text encoder in the files' precision, diffusers the rest in single precision: say
    # single precision for both. `torch_dtype=torch.float16` still loads everything in half.
    config = fresh / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    vae = fresh / "vae" / "config.json"
    vae.write_text(re.sub(r'  "_name_or_path": .*\n', "", vae.read_text()))  # where it lay is nobody's business
    for file in fresh.rglob("*.safetensors"):
        file.chmod(0o644)
    for kept in KEPT:
        if (folder / kept).exists():
            shutil.copy2(folder / kept, fresh / kept)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    print(f"{folder}: {step} steps, {spent:.0f} s, {size:.1f} MB")


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=build.NAMES)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    export(arguments.name, arguments.out, arguments.folder)


if __name__ == "__main__":
    main()
