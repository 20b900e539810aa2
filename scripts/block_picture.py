"""Draw docs/images/hoist.svg: a transformer block before and after the pass hoist.

    python scripts/block_picture.py

The block is one of diffusers', with attention over a prompt. Needs graphopt's extra `viz` and Graphviz.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from diffusers.models.attention import BasicTransformerBlock

import graphopt
from graphopt.debug.history import Compilation, History
from graphopt.debug.viz.dot import picture

ROOT = Path(__file__).parents[1]


def compiled() -> Compilation:
    """The block, compiled for 64 positions of an image and 8 of a prompt."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(32, 4, 8, cross_attention_dim=48).eval()
    call = {"hidden_states": torch.randn(2, 64, 32), "encoder_hidden_states": torch.randn(2, 8, 48)}
    history = History()
    graphopt.compile(block, inputs=call, target="eager", observers=[history])
    return history.last(type(block).__name__)


def main() -> int:
    """Write the picture."""
    warnings.simplefilter("ignore")
    drawn = picture(compiled(), after="hoist", compare=True, depth=0, format="svg")
    path = ROOT / "docs" / "images" / "hoist.svg"
    path.write_bytes(drawn)
    print(f"{path.relative_to(ROOT)}: {len(drawn) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
