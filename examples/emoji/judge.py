"""The judge: one embedding of pictures and captions, and a guess at the subgroup. It shares nothing with the pipelines.

It looks at 64×64 pictures, was trained on real renders only (`train_judge.py`), and answers three questions about a
generated picture: is it of its caption's subgroup, is its caption the nearest of all, and how far is the distribution
of the generated pictures' features from the real ones' (a Fréchet distance).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = Path(__file__).parent / "judge"
WORD = re.compile(r"[^\W_]+|[^\w\s]")


def words(caption: str) -> list[str]:
    """The caption's words and signs in lower case: `flag: Åland Islands` is `flag`, `:`, `åland`, `islands`."""
    return WORD.findall(caption.lower())


class Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut; `stride` 2 halves the picture."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        shortcut = self.shortcut(F.avg_pool2d(x, 2) if self.stride == 2 else x)
        return F.relu(y + shortcut)


class Judge(nn.Module):
    """A small residual network for pictures, a two-layer transformer over words for captions, a subgroup head."""

    def __init__(self, vocabulary: list[str], names: list[str], length: int) -> None:
        super().__init__()
        self.vocabulary, self.names, self.length = vocabulary, names, length
        self.index = {word: i + 2 for i, word in enumerate(vocabulary)}  # 0 pads, 1 is an unknown word
        stages = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()]
        for inputs, outputs in ((32, 64), (64, 128), (128, 256)):
            stages += [Residual(inputs, outputs, 2)]
        self.picture = nn.Sequential(*stages, Residual(256, 256, 1))
        self.picture_out = nn.Linear(256, 128)
        self.subgroup_out = nn.Linear(256, len(names))
        self.embedding = nn.Embedding(len(vocabulary) + 2, 128)
        self.position = nn.Parameter(0.02 * torch.randn(length, 128))
        layer = nn.TransformerEncoderLayer(128, 4, 384, 0.0, batch_first=True, norm_first=True)
        self.caption = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.caption_out = nn.Linear(128, 128)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """Word indices, int64 [n, length]."""
        rows = torch.zeros(len(captions), self.length, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            ids = [self.index.get(word, 1) for word in words(caption)][: self.length]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return rows

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pooled features, [n, 256], of pictures [n, 3, 64, 64] in [-1, 1]: what the Fréchet distance compares."""
        return cast(torch.Tensor, self.picture(pictures).mean((2, 3)))

    def embed_captions(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit vectors, [n, 128], of `tokens`."""
        padding = tokens == 0
        padding[:, 0] = False
        y = self.caption(self.embedding(tokens) + self.position, src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(2)
        return F.normalize(self.caption_out((y * keep).sum(1) / keep.sum(1)), dim=1)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` (half precision) and `config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        config = {"vocabulary": self.vocabulary, "names": self.names, "length": self.length}
        (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path = FOLDER) -> Judge:
    """The trained judge, in evaluation mode and single precision."""
    judge = Judge(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    judge.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return judge.eval()


@dataclass(frozen=True)
class Verdict:
    """Shares of the pictures, in [0, 1]: right subgroup; own caption nearest; own caption among the five nearest."""

    subgroup_accuracy: float
    retrieval_top1: float
    retrieval_top5: float


@torch.no_grad()
def embed(judge: Judge, pictures: torch.Tensor) -> torch.Tensor:
    """`Judge.features` in batches."""
    return torch.cat([judge.features(chunk) for chunk in pictures.split(128)])


@torch.no_grad()
def verdict(
    judge: Judge, features: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, all_captions: list[str]
) -> Verdict:
    """Judge pictures by their `features`: picture i was drawn for `all_captions[rows[i]]`, of class `labels[i]`."""
    captions = torch.cat([judge.embed_captions(t) for t in judge.tokens(all_captions).split(512)])
    similarity = F.normalize(judge.picture_out(features), dim=1) @ captions.T
    nearest = similarity.topk(5).indices == rows.unsqueeze(1)
    guess = judge.subgroup_out(features).argmax(1)
    return Verdict(
        (guess == labels).float().mean().item(),
        nearest[:, 0].float().mean().item(),
        nearest.any(1).float().mean().item(),
    )


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """The Fréchet distance between Gaussians fitted to the features `a` [n, d] and `b` [m, d] (Heusel et al., 2017)."""
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    cross = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float(gap + cov_a.trace() + cov_b.trace() - 2 * cross)
