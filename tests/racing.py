"""Races whose winner is known, so that no test depends on how fast code is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from graphopt.runtime import race


def let_win(monkeypatch: pytest.MonkeyPatch, winner: str) -> list[tuple[str, ...]]:
    """Have a target, or the `race.ORIGINAL`, be the fastest whatever is measured; the targets of each race to come."""
    races: list[tuple[str, ...]] = []

    def rounds(targets: Sequence[str], run: Callable[[str, int], float]) -> list[dict[str, float]]:
        races.append(tuple(targets))
        names = (race.ORIGINAL, *targets)
        for number in (1, 2):
            assert all(run(name, number) > 0 for name in names)
        return [{name: 0.01 if name == winner else 0.02 if name == race.ORIGINAL else 0.03 for name in names}] * 5

    monkeypatch.setattr(race, "SHORTEST", 0.0)
    monkeypatch.setattr(race, "rounds", rounds)
    return races
