"""The trained pipelines that ship with graphopt."""

from __future__ import annotations

from pathlib import Path

from graphopt.errors import UsageError, nearest

_MODELS = Path(__file__).parent / "models"


def bundled(name: str) -> Path:
    """The folder of a pipeline that ships with graphopt, for ``DiffusionPipeline.from_pretrained``.

    Parameters
    ----------
    name : ``emoji-unet`` (a `StableDiffusionPipeline`) or ``emoji-dit`` (a `PixArtAlphaPipeline`).

    Raises
    ------
    UsageError : there is no such pipeline.
    """
    known = sorted(entry.parent.name for entry in _MODELS.glob("*/model_index.json"))
    if name not in known:
        raise UsageError(f"no bundled pipeline is called '{name}'", hint=nearest(name, known))
    return _MODELS / name
