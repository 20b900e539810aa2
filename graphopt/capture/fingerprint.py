"""What a capture depends on, as a digest that another process can compare: the module's state and the code that it ran.

`graphopt.capture.guards` compares a module with itself by identity. Here everything is told by contents: classes and
functions by name, place and source file, attributes by value, tensors by shape. Which code a call runs is seen, not
guessed: the module is called once in the sight of Python's profiler, and every file in which something ran, every
function and every plain global variable that one of them names is part of the digest. Whatever cannot be told makes
the digest impossible: then nothing is kept, and nothing is used that was.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import threading
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphopt.capture.export import in_package
from graphopt.capture.guards import (
    HOOKS,
    SCALARS,
    SKIPPED,
    TABLES,
    content_of,
    contents,
    foreign,
    foreign_name,
    is_read_by_value,
)  # fmt: skip

# Of configurations, lists that diffusers makes of sets: in another order in each process.
_SETS = frozenset({"_use_default_values"})


class Unknown(Exception):
    """Something that a digest cannot tell from something else."""


class Executed:
    """The code that the calling thread runs meanwhile, as a context manager.

    Attributes
    ----------
    complete : whether all was seen. It is not where another profiler is at work.
    """

    def __init__(self) -> None:
        self.complete = False
        self._seen: dict[types.CodeType, dict[str, Any]] = {}

    def __enter__(self) -> Executed:
        self.complete = sys.getprofile() is None
        if self.complete:
            sys.setprofile(self._see)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.complete:
            self.complete = sys.getprofile() == self._see
            sys.setprofile(None)

    def _see(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code not in self._seen:
            self._seen[frame.f_code] = frame.f_globals

    def functions(self) -> Iterator[tuple[types.CodeType, dict[str, Any]]]:
        """Functions that ran, with their global variables: those of torch, of Python and of graphopt left out."""
        for code, variables in self._seen.items():
            if foreign_name(variables.get("__name__")) and not _is_standard(code.co_filename):
                yield code, variables


def fingerprint(module: torch.nn.Module, executed: Executed, *about: Any) -> str | None:
    """A digest of a module's state, of the code that a call of it has run, and of further values.

    None where it cannot be told: an object whose state is out of sight, a profiler in the way.
    """
    if not executed.complete:
        return None
    try:
        return hashlib.sha256(repr(_Description(module).of(executed, about)).encode()).hexdigest()
    except Unknown:
        return None


class _Description:
    """A module and values around it as nested tuples of texts and numbers, without addresses."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parts = list(module.modules())
        self._places: dict[int, int] = {id(part): place for place, part in enumerate(self._parts)}
        self._held: list[Any] = []  # so that no address is used twice
        self._files: dict[str, str] = {}
        self._classes: dict[type, Any] = {}

    def of(self, executed: Executed, about: Any) -> Any:
        ran = sorted(self._ran(code, variables) for code, variables in executed.functions())
        parts = [self._part(part) for part in self._parts]
        state = self._value(about)
        classes = sorted(self._classes.values())
        return parts, state, classes, ran, sorted(self._files.items()), _versions()

    def _ran(self, code: types.CodeType, variables: dict[str, Any]) -> Any:
        """A function that ran, and the plain global variables that it names."""
        named = ((name, variables[name]) for name in code.co_names if name in variables)
        plain = tuple((name, repr(value)) for name, value in named if type(value) in SCALARS)
        return self._code(code), plain

    def _part(self, part: torch.nn.Module) -> Any:
        self._class(type(part))
        if any(part.__dict__[name] for name in HOOKS):
            raise Unknown("hooks")
        state = [
            (name, self._value(value))
            for name, value in part.__dict__.items()
            if name not in SKIPPED and name not in TABLES and name not in HOOKS
        ]
        children = [(name, self._places.get(id(child))) for name, child in part._modules.items()]
        weights = [
            (name, self._weight(value)) for table in (part._parameters, part._buffers) for name, value in table.items()
        ]
        return _named(type(part)), state, children, weights

    def _weight(self, value: torch.Tensor | None) -> Any:
        """The form of a parameter or buffer; the place of its first occurrence tells those that are one."""
        return None if value is None else (self._once(value), _form(value))

    def _once(self, value: Any) -> int:
        self._held.append(value)
        return self._places.setdefault(id(value), len(self._places))

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind in SCALARS or kind in (torch.layout, torch.memory_format):
            return kind.__name__, repr(value)
        if id(value) in self._places:
            return "again", self._places[id(value)]
        if kind in (tuple, frozenset):
            return kind.__name__, self._elements(value)
        if isinstance(value, enum.Enum):
            return _named(kind), value.name
        if isinstance(value, type):
            self._class(value)
            return "class", _named(value)
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        if isinstance(value, types.BuiltinFunctionType):
            return "builtin", value.__module__, value.__qualname__
        place = self._once(value)
        return place, _named(kind), self._inside(value, kind)

    def _inside(self, value: Any, kind: type) -> Any:
        """What an object holds."""
        if is_read_by_value(value):
            return _form(value), hashlib.sha256(contents(value)).hexdigest()
        if isinstance(value, torch.Tensor):
            return _form(value)  # it enters the graph as an input
        if isinstance(value, types.FunctionType):
            if not foreign_name(value.__module__):
                return value.__module__, value.__qualname__
            cells = [content_of(cell) for cell in value.__closure__ or ()]
            return self._code(value.__code__), *map(self._value, (cells, value.__defaults__, value.__kwdefaults__))
        if isinstance(value, types.MethodType):
            return self._value(value.__func__), self._value(value.__self__)
        if isinstance(value, functools.partial):
            return self._value((value.func, value.args, value.keywords))
        inner: Any = None
        if isinstance(value, list | tuple | set | frozenset | dict | deque):
            inner = self._elements(value)
        elif not isinstance(value, torch.nn.Module) and not (foreign(kind) and hasattr(value, "__dict__")):
            raise Unknown(f"a {kind.__module__}.{kind.__qualname__}")
        if isinstance(value, torch.nn.Module):
            return self._part(value)
        if foreign(kind):
            self._class(kind)
            attributes = sorted(vars(value).items()) if hasattr(value, "__dict__") else []
            return inner, [(name, self._entry(name, entry)) for name, entry in attributes]
        return inner

    def _elements(self, value: Any) -> Any:
        if isinstance(value, dict):
            return [(self._value(key), self._entry(key, entry)) for key, entry in value.items()]
        found = [self._value(entry) for entry in value]
        return sorted(found, key=repr) if isinstance(value, set | frozenset) else found

    def _entry(self, key: Any, entry: Any) -> Any:
        return self._value(frozenset(entry) if key in _SETS and isinstance(entry, list) else entry)

    def _class(self, kind: type) -> None:
        """Methods and plain attributes of a class and of its bases."""
        for base in kind.__mro__:
            if base in self._classes or not foreign(base):
                continue
            self._classes[base] = ()
            described = []
            for name, value in vars(base).items():
                if isinstance(value, staticmethod | classmethod):
                    value = value.__func__
                if isinstance(value, property):
                    value = value.fget
                if isinstance(value, types.FunctionType):
                    described.append((name, str(self._code(value.__code__))))
                elif type(value) in SCALARS and not name.startswith("__"):
                    described.append((name, repr(value)))
            self._classes[base] = _named(base), tuple(sorted(described))

    def _code(self, code: types.CodeType) -> tuple[str, str, int]:
        """Name and place of a function, its file noted; its code itself where it comes from none."""
        path = code.co_filename
        if path not in self._files:
            self._files[path] = _digest_of(path)
        name = getattr(code, "co_qualname", code.co_name)  # from Python 3.11 on
        return in_package(path), name if self._files[path] else f"{name} {_digest(code)}", code.co_firstlineno


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _form(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape
    if value.layout != torch.strided:
        raise Unknown(f"a tensor of layout {value.layout}")
    kind = _named(type(value))
    return kind, str(value.dtype), tuple(value.shape), tuple(value.stride()), str(value.device)


_digests: dict[str, tuple[tuple[int, int], str]] = {}
_digests_lock = threading.Lock()


def _digest_of(path: str) -> str:
    """A digest of a source file; empty where there is none."""
    try:
        status = Path(path).stat()
        known = _digests.get(path)
        stamp = (status.st_mtime_ns, status.st_size)
        if known is None or known[0] != stamp:
            known = stamp, hashlib.sha256(Path(path).read_bytes()).hexdigest()
            with _digests_lock:
                _digests[path] = known
        return known[1]
    except OSError:
        return ""


def _digest(code: types.CodeType) -> str:
    """A digest of a function's code, inner functions included."""
    found = hashlib.sha256(code.co_code)
    found.update(repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(_digest(constant).encode())
        else:
            told = sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
            found.update(f"{type(constant).__name__} {told}".encode())
    return found.hexdigest()


@functools.cache
def _standard() -> tuple[str, ...]:
    import sysconfig

    paths = sysconfig.get_paths()
    return tuple(paths[name] for name in ("stdlib", "platstdlib"))


def _is_standard(path: str) -> bool:
    """Whether a file belongs to Python itself."""
    return path.startswith(("<frozen", *_standard())) and "site-packages" not in path and "dist-packages" not in path


def _versions() -> Any:
    return sys.version, torch.__version__, torch.version.git_version, np.__version__
