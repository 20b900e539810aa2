"""Words of memory: what is read is what objects say of themselves, and every change of it is seen."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from graphopt.capture import tags
from graphopt.capture.guards import ModuleGuard
from graphopt.capture.words import Words, place_of_tag, places_of_shell


class Plain:
    pass


class Other:
    pass


class Ordered(OrderedDict[str, int]):
    pass


def test_memory_of_a_tensor() -> None:
    tensor = torch.arange(6)
    words = Words([tensor.data_ptr() + 8 * k for k in (4, 1)], tensor)
    assert words.read() == tensor[[1, 4]].numpy().tobytes()  # by rising address
    tensor.numpy()[4] = 9
    assert words.read() == tensor[[1, 4]].numpy().tobytes()


def test_the_tag_of_a_dict_is_the_word_there() -> None:
    if (place := place_of_tag()) is None:
        pytest.skip("this Python keeps tags elsewhere")
    held: list[dict[Any, Any]] = [{}, {"a": 1}, Plain().__dict__, torch.nn.Linear(1, 1).__dict__]
    for entry in held:
        words = Words([id(entry) + place], entry)
        for value in range(3):
            (tag,) = tags.tags([entry])
            assert int.from_bytes(words.read(), "little") == tag
            entry["value"] = value


@pytest.mark.parametrize("owner", [Plain(), Ordered(a=1), torch.nn.Linear(1, 1)], ids=lambda o: type(o).__name__)
def test_another_dict_or_class_of_an_object_is_seen(owner: Any) -> None:
    places = places_of_shell(owner)
    if places is None:
        pytest.skip("this Python lays objects out otherwise")
    words = Words([id(owner) + place for place in places], owner)
    before = words.read()
    owner.new = 1
    assert words.read() == before
    owner.__dict__ = dict(owner.__dict__)
    assert (changed := words.read()) != before
    if type(owner) is Plain:
        object.__setattr__(owner, "__class__", Other)
        assert words.read() != changed


def test_without_a_place_for_tags_dicts_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.capture.guards.place_of_tag", lambda: None)
    module: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    guard = ModuleGuard(module)
    assert guard.holds()
    generation = guard.generation
    assert guard.holds()
    assert guard.generation is generation
    module[1].register_forward_hook(lambda *_: None).remove()
    assert guard.holds()
    module[1].inplace = True
    assert not guard.holds()
