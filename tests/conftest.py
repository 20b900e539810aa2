"""Options, seeds and fixtures of all tests."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

# Tests use what ships with graphopt: a download is a bug. Set before anything imports huggingface_hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy as np
import pytest
import torch

from tests.goldens import Golden, case_name

# Workers of pytest-xdist share the cores that one process would have.
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

# A compiler's examples take as long as they take. CI repeats the same ones, so that a red run can be repeated.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files with the texts of this run")
    parser.addoption("--slow", action="store_true", help="run slow tests as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless they are asked for by `--slow`, by `-m …slow…` or by their name."""
    named = any("::" in argument for argument in config.args)
    if config.getoption("--slow") or "slow" in config.getoption("-m") or named:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Generated code of tests is kept with them, and not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers in every test, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares a text with the golden file of this test; see tests/goldens.py."""
    return Golden(request.path, case_name(request.node.name), request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def _generate_nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Target auto generates code only where a test wants it to, however long calls take on the machine of the test."""
    monkeypatch.setattr("graphopt.runtime.race.SHORTEST", float("inf"))
