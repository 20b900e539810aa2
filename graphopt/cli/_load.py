"""A diffusers pipeline from what the user wrote: a bundled name, a folder, a hub id, or ``module:factory``."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphopt.bundle import bundled
from graphopt.errors import GraphoptError, UsageError, nearest

DTYPES = ("float32", "bfloat16", "float16")
_TEXT_TO_IMAGE = ("StableDiffusionPipeline", "PixArtAlphaPipeline")  # the bundled ones: known without diffusers


def check(name: str, call: dict[str, Any] | None = None, *, dtype: str | None = None) -> None:
    """What can be known to be wrong before any weight is read, as far as possible before torch is imported.

    Raises
    ------
    UsageError : there is no such pipeline; or, where it is a folder, its class does not take the arguments `call`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'", where="--dtype", hint=nearest(dtype, DTYPES))
    if _is_factory(name):
        return
    place, is_folder = _place(name)
    if call is None or not is_folder:
        return
    try:
        kind = json.loads((Path(place) / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # loading it says what is wrong
    if kind in _TEXT_TO_IMAGE and all(call.get(key) is None for key in ("prompt", "prompt_embeds")):
        raise _no_prompt(kind)
    import diffusers

    if isinstance(found := getattr(diffusers, str(kind), None), type):
        _check_call(found, {key: value for key, value in call.items() if value is not None})


def load(name: str, *, dtype: str | None = None) -> Any:
    """The pipeline called `name`, its progress bar off.

    Raises
    ------
    UsageError : there is no such thing, or it is no pipeline; the message says what was tried.
    """
    check(name, dtype=dtype)
    pipe = _from_factory(name, dtype) if _is_factory(name) else _from_pretrained(*_place(name), dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _is_factory(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.]+:[\w.]+", name)) and not Path(name).exists()


def _place(name: str) -> tuple[str, bool]:
    """What to give to ``from_pretrained``, and whether it is a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UsageError(
                "this folder is no diffusers pipeline: it has no model_index.json",
                where=str(path),
                hint="give the folder that save_pretrained() wrote, not one of its components",
            )
        return str(path), True
    if path.is_file():
        raise UsageError("this is a file, not the folder of a pipeline", where=str(path), hint="give its folder")
    try:
        return str(bundled(name)), True
    except UsageError as error:
        if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
            return name, False
        close, _, known = error.hint.rpartition("one of: ")
        raise UsageError(
            f"there is no pipeline '{name}'",
            where="looked for a bundled pipeline and for a folder",
            hint=f"{close.rstrip('(')}give a bundled one ({known.rstrip(')')}), a folder, owner/name on the hub, "
            "or module:factory",
        ) from None


def _from_pretrained(place: str, is_folder: bool, dtype: str | None) -> Any:
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    options = {} if dtype is None else {"torch_dtype": getattr(torch, dtype)}
    try:
        return DiffusionPipeline.from_pretrained(place, use_safetensors=True, local_files_only=is_folder, **options)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        if is_folder:
            raise UsageError(
                f"this folder cannot be loaded as a diffusers pipeline: {reason}",
                where=place,
                hint="its components must be there as model_index.json lists them, weights as .safetensors",
            ) from error
        raise UsageError(
            f"'{place}' is no folder here, and cannot be had from the hub: {reason}",
            where="PIPELINE",
            hint="check the name and the network, or give a folder",
        ) from error


def imported(name: str, suits: Callable[[Any], bool] = callable) -> Any:
    """What ``module:attribute`` names, looked for in the current folder and among installed packages.

    Raises
    ------
    UsageError : there is no such module, or nothing of that name in it; the hint names what `suits`.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"module '{module_name}' cannot be imported: "
            + (str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"),
            where=name,
            hint="it is looked for in the current folder and among installed packages",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if suits(value) and not key.startswith("_")]
            raise UsageError(f"module '{module_name}' has no '{part}'", where=name, hint=nearest(part, known))
        found = getattr(found, part)
    return found


def _from_factory(name: str, dtype: str | None) -> Any:
    from diffusers import DiffusionPipeline

    factory = imported(name)
    if not callable(factory):
        raise UsageError(f"'{name.partition(':')[2]}' is a {type(factory).__name__}, not a function", where=name)
    try:
        pipe = factory()
    except GraphoptError:
        raise
    except Exception as error:
        raise UsageError(f"the factory raised {type(error).__name__}: {error}", where=name) from error
    if not isinstance(pipe, DiffusionPipeline):
        raise UsageError(f"the factory returned a {type(pipe).__name__}, not a diffusers pipeline", where=name)
    if dtype is not None:
        import torch

        pipe.to(dtype=getattr(torch, dtype))
    return pipe


def call_arguments(pipe: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `wanted` that were given (are not None), checked against what the pipeline takes.

    PixArt's tables of resolutions begin at 256 pixels and refuse smaller models, for which they are switched off.
    """
    given = {key: value for key, value in wanted.items() if value is not None}
    taken = _check_call(type(pipe), given)
    if "use_resolution_binning" in taken and "use_resolution_binning" not in given:
        side = getattr(getattr(pipe, "transformer", None), "config", {}).get("sample_size") or 0
        if side * getattr(pipe, "vae_scale_factor", 8) < 256:
            given["use_resolution_binning"] = False
    return given


def _check_call(kind: Any, given: dict[str, Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters that a pipeline's class takes in a call. Raises UsageError where `given` does not fit them."""
    taken = inspect.signature(kind.__call__).parameters
    for key in given:
        if key not in taken:
            known = [name for name in taken if name not in ("self", "args", "kwargs")]
            raise UsageError(f"{kind.__name__} takes no argument '{key}'", where="its call", hint=nearest(key, known))
    needed = "prompt" in taken and taken["prompt"].default in (None, inspect.Parameter.empty)
    if needed and not any(key in given for key in ("prompt", "prompt_embeds")):
        raise _no_prompt(kind.__name__)
    return taken


def _no_prompt(kind: str) -> UsageError:
    return UsageError(f"{kind} needs a prompt", hint="--prompt 'a red apple'")


def device_of(pipe: Any) -> str:
    """``cpu`` or ``cuda``: where its denoiser runs."""
    return str(getattr(pipe, "device", "cpu")).split(":")[0]


def network_name(pipe: Any) -> str:
    """The component that is called once or more per step."""
    return next((name for name in ("unet", "transformer", "prior", "decoder") if getattr(pipe, name, None)), "")
