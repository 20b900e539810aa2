"""One runner, and bundled pipelines that are read from disk once."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import graphopt
from graphopt.cli import _load
from graphopt.cli.main import app

Run = Callable[..., Result]


def invoke(*arguments: str) -> Result:
    """Calls the command line in this process; a crash that reaches the user as a traceback fails the test."""
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, list(arguments))
    if "--debug" not in arguments:
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
    return result


@pytest.fixture
def run() -> Run:
    """See `invoke`."""
    return invoke


@pytest.fixture(scope="session")
def read_once() -> Iterator[None]:
    """Pipelines are read once per session; every command gets a shallow copy whose modules are not compiled."""
    original = _load._from_pretrained
    cached = functools.cache(original)

    def load(place: str, is_folder: bool, dtype: str | None) -> Any:
        pipe = cached(place, is_folder, dtype)
        fresh = type(pipe)(**{name: _clone(part) for name, part in pipe.components.items()})
        graphopt.restore(fresh)
        return fresh

    _load._from_pretrained = load
    yield
    _load._from_pretrained = original


def _clone(part: Any) -> Any:
    import torch

    if not isinstance(part, torch.nn.Module):
        return copy.copy(part)
    return copy.deepcopy(part)


def parsed(result: Result) -> Any:
    """The JSON on standard output, which holds nothing else."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
