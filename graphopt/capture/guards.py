"""Whether a module is still as it was when its Program was captured: everything but the values of its tensors.

An exported graph has the module's Python state baked in: training flags, attention processors, FreeU's scales, active
adapters, submodules. `ModuleGuard` remembers that state and compares it before every call, in tens of microseconds, so
that a change between two steps of one run is seen as well.
"""

from __future__ import annotations

import copy
from operator import itemgetter
from typing import Any

import torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Machinery of nn.Module that does not decide what forward computes, or that is compared on its own.
_SKIPPED = frozenset(
    {
        "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook", "_compiled_call_impl",
        "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
        "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", *_HOOKS,
    }
)  # fmt: skip
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


class ModuleGuard:
    """A snapshot of a module tree's Python state that can say whether it still holds."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._types = [(part, type(part)) for part in module.modules()]
        self._entries: list[tuple[dict[str, Any], int, Any, Any]] = []
        for part in module.modules():
            self._remember(part.__dict__, skip=_SKIPPED)
            for table in ("_modules", "_parameters", "_buffers"):
                members: dict[str, Any] = part.__dict__[table]
                if members:
                    kept = members if table == "_modules" else dict.fromkeys(members)
                    self._entries.append((members, len(members), *_getter(kept, identity=table == "_modules")))

    def _remember(self, state: dict[str, Any], skip: frozenset[str] = frozenset()) -> None:
        kept = {key: value for key, value in state.items() if key not in skip}
        getter, values = _getter(kept, identity=False)
        self._entries.append((state, len(state), getter, values))
        for value in kept.values():
            if not isinstance(value, torch.nn.Module | torch.Tensor | type) and not _is_plain(value):
                inner = getattr(value, "__dict__", None)
                if inner and type(value).__module__.partition(".")[0] not in ("torch", "builtins"):
                    self._remember(inner)

    def holds(self) -> bool:
        """Whether nothing but tensor values has changed since the snapshot."""
        for part, kind in self._types:
            if type(part) is not kind:
                return False
        for state, size, getter, values in self._entries:
            if len(state) != size:
                return False
            if getter is not None:
                try:
                    if getter(state) != values:
                        return False
                except (KeyError, RuntimeError, ValueError):
                    return False  # a member is gone, or is now something that cannot be compared
        return True


class _Is:
    """Equal to one object alone: compares by identity where a value has no cheap or safe equality."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return other is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _getter(state: dict[str, Any], *, identity: bool) -> tuple[Any, Any]:
    """A function that reads the remembered keys, and what it must return."""
    if not state:
        return None, None
    expected = [_Is(value) if identity else _expected(value) for value in state.values()]
    if all(value is None for value in state.values()) and not identity:
        # Only the names matter (parameters and buffers: their values are compared elsewhere).
        names = tuple(state)
        return (lambda live: tuple(live)), names
    keys = tuple(state)
    return itemgetter(*keys), expected[0] if len(keys) == 1 else tuple(expected)


def _expected(value: Any) -> Any:
    return _Exactly(copy.deepcopy(value)) if _is_plain(value) else _Is(value)


class _Exactly:
    """Equal to values of the same type that compare equal (True is not 1 here)."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return other is self.value or (type(other) is type(self.value) and other == self.value)

    def __hash__(self) -> int:
        return 0


def _is_plain(value: Any) -> bool:
    """Values compared by content: scalars, and lists, tuples, sets and dicts of these."""
    if type(value) in _PLAIN:
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_plain, value))
    return type(value) is dict and all(map(_is_plain, value.values()))


class HookWatch:
    """Whether anything besides ``forward`` would run in a call: hooks on any submodule, or a replaced ``forward``."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._hooks = [part.__dict__[name] for part in module.modules() for name in _HOOKS]
        self._states = [part.__dict__ for part in module.modules()]

    def found(self) -> str | None:
        """What was found, or None."""
        if any(map(len, self._hooks)):
            return "hooks are registered on the module or its submodules"
        for state in self._states:
            if "forward" in state:
                return "the forward of the module or of a submodule was replaced"
        registry = torch.nn.modules.module
        if registry._global_forward_hooks or registry._global_forward_pre_hooks:
            return "global module hooks are registered"
        return None


def call_state() -> tuple[Any, ...]:
    """Global state that decides which kernels torch picks; part of what a Program is captured under."""
    return (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        torch.get_default_dtype(),
    )


def outside(module: torch.nn.Module, tensors: list[torch.Tensor]) -> str | None:
    """Why a call cannot be served by a captured Program whatever it was captured from, or None."""
    if torch.is_grad_enabled() and (
        any(tensor.requires_grad for tensor in tensors) or any(weight.requires_grad for weight in module.parameters())
    ):
        return "gradients are recorded (wrap the call in torch.no_grad())"
    device = tensors[0].device.type if tensors else "cpu"
    if torch.is_autocast_enabled(device):
        return "autocast is active"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "another compiler is tracing"
    return None
