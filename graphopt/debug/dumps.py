"""Programs as files that run, can be edited, and are read back: ``018_hoist.py``, with constants beside them.

>>> from graphopt.debug.dumps import load, save
>>> from graphopt.testing import sketch
>>> save(sketch("return (x,)", x="f32[3]").program, Path("000_captured.py"))  # doctest: +SKIP
>>> load(Path("000_captured.py")).inputs[0].name  # doctest: +SKIP
'x'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from graphopt.debug.numbered import near_dump
from graphopt.errors import UsageError
from graphopt.ir.printer import dump
from graphopt.ir.program import Program
from graphopt.ir.reader import parse

CONSTANTS = "constants.safetensors"

# Imported only where the file is run, so that reading it as a module costs nothing.
MAIN = """

if __name__ == "__main__":
    from graphopt.cli.dumps import evaluate

    evaluate(program, __file__)
"""


def text(program: Program) -> str:
    """The file of a dump: the Program, then what runs it on seeded inputs."""
    return dump(program) + MAIN


def save(program: Program, path: Path) -> None:
    """Write a Program; the tensors that the model held outside its weights go to `CONSTANTS` beside it."""
    path.write_text(text(program), encoding="utf-8")
    save_constants(program.constants, path.parent)


def save_constants(constants: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write constants by placeholder name, where there are any. Their strides are those of the dump that reads them."""
    if constants:
        save_file({name: _plain(value) for name, value in constants.items()}, folder / CONSTANTS)


def load(path: Path) -> Program:
    """Read a dump, constants included.

    Raises
    ------
    UsageError : there is no such file, it is no dump, a line of it cannot be read, or constants are missing.
    """
    program = read(path)
    program.constants = load_constants(program, path)
    return program


def read(path: Path) -> Program:
    """Read a dump without the values of its constants. Raises UsageError as `load` does."""
    return parse(source(path), str(path))


def source(path: Path) -> str:
    """The text of a dump. Raises UsageError where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise UsageError("this is a folder, not a dump", where=str(path), hint="give one of its files") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = near_dump(path) if isinstance(error, FileNotFoundError) else "graphopt trace writes dumps"
        raise UsageError(f"the dump cannot be read: {reason}", where=str(path), hint=hint) from None


def load_constants(program: Program, path: Path) -> dict[str, torch.Tensor]:
    """The constants that a Program takes, from beside its dump, with the strides that the dump records."""
    wanted = {
        e.name: n for e, n in zip(program.inputs, program.placeholders, strict=True) if is_constant(e.role, e.path)
    }
    if not wanted:
        return {}
    file = path.parent / CONSTANTS
    try:
        found = load_file(file)
        return {name: _laid_out(found[name], node.meta["val"]) for name, node in wanted.items()}
    except (OSError, SafetensorError, KeyError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"constants of the dump cannot be read: {what}", where=str(file),
                         hint="keep the file that graphopt trace wrote beside its dumps") from error  # fmt: skip


def is_constant(role: str, path: str) -> bool:
    """Whether an input is a tensor that the model held outside its parameters and buffers: a weight without a path."""
    return role == "weight" and not path


def _plain(value: torch.Tensor) -> torch.Tensor:
    """On the CPU, contiguous, and in memory of its own: what the format can hold."""
    return value.detach().to("cpu").contiguous().clone()


def _laid_out(found: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if tuple(found.shape) != tuple(like.shape) or found.dtype != like.dtype:
        raise UsageError(f"a constant is {found.dtype} {tuple(found.shape)}, not {like.dtype} {tuple(like.shape)}")
    if found.stride() == like.stride() or 0 in like.stride():
        return found.to(like.device)
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device).copy_(found)
