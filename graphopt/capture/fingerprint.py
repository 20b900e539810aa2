"""What a capture depends on, as a digest that another process can compare: the module's state and the code that it ran.

`graphopt.capture.guards` compares a module with itself by identity. Here everything is told by contents: classes and
functions by name, place and source file, attributes by value, tensors by shape. Which code a call runs is seen, not
guessed: the module is called once in the sight of Python's profiler. Every function that ran is part of the digest,
with its file and the variables around it that it names, and so are the user's own files that it can reach. Whatever
cannot be told makes the digest impossible: then nothing is kept, and nothing is used that was.
"""

from __future__ import annotations

import _thread
import enum
import functools
import gc
import hashlib
import inspect
import os
import sys
import threading
import types
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
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
# What reads files, and what has other threads work.
_OUTSIDE_CALLS = (open, os.open, os.read, _thread.start_new_thread)
_OUTSIDE_CODE = frozenset({
    os._Environ.__getitem__.__code__, threading.Thread.start.__code__, ThreadPoolExecutor.submit.__code__,
})  # fmt: skip
_SILENT = frozenset({"logging", "re", "typing", "abc", "torch"})  # whose objects decide nothing that a forward computes
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
            types.ClassMethodDescriptorType, types.MethodWrapperType)  # fmt: skip
_MACHINERY = (types.GetSetDescriptorType, types.MemberDescriptorType, property, *_BUILTIN)
_BASES = (int, float, complex, str, bytes)  # of classes whose objects are numbers or texts
_MOST = 1000  # entries of a collection that are looked at


class Unknown(Exception):
    """Something that a digest cannot tell from something else."""


class Executed:
    """The code that the calling thread runs meanwhile, as a context manager.

    Attributes
    ----------
    complete : whether all was seen that what it does depends on. It is not where another profiler is at work, where a
        file or the environment is read, and where another thread is given something to do.
    """

    def __init__(self) -> None:
        self.complete = False
        self._collects = False
        self._seen: dict[types.CodeType, tuple[dict[str, Any], dict[str, Any]]] = {}

    def __enter__(self) -> Executed:
        self.complete = sys.getprofile() is None
        if self.complete:
            self._collects = gc.isenabled()
            gc.disable()  # what a collection happens to finalise is no part of the call
            sys.setprofile(self._see)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.complete:
            self.complete = sys.getprofile() == self._see
            if self.complete:
                sys.setprofile(None)
            if self._collects:
                gc.enable()

    def _see(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            self.complete = self.complete and argument not in _OUTSIDE_CALLS
            return
        code = frame.f_code
        if event == "call" and code not in self._seen:
            enclosed = {name: frame.f_locals.get(name) for name in code.co_freevars}
            self._seen[code] = frame.f_globals, enclosed
            self.complete = self.complete and code not in _OUTSIDE_CODE

    def functions(self) -> list[tuple[types.CodeType, dict[str, Any], dict[str, Any]]]:
        """Functions that ran, their global variables and those of closures: not torch's, Python's or graphopt's own."""
        found = [
            (code, variables, enclosed)
            for code, (variables, enclosed) in self._seen.items()
            if foreign_name(variables.get("__name__")) and not _is_standard(code.co_filename)
        ]
        return sorted(found, key=lambda entry: (entry[0].co_filename, entry[0].co_firstlineno, entry[0].co_name))


def fingerprint(module: torch.nn.Module, executed: Executed, *about: Any) -> str | None:
    """A digest of a module's state, of the code that a call of it has run, and of further values.

    None where it cannot be told: an object whose state is out of sight, a profiler in the way.
    """
    if not executed.complete:
        return None
    try:
        return hashlib.sha256(repr(_Description(module).of(executed, about)).encode()).hexdigest()
    except (Unknown, RecursionError, RuntimeError, ValueError, TypeError, AttributeError):  # of objects that are odd
        return None


class _Description:
    """A module and values around it as nested tuples of texts and numbers, without addresses."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parts = list(module.modules())
        self._places: dict[int, int] = {id(part): place for place, part in enumerate(self._parts)}
        self._held: list[Any] = []  # so that no address is used twice
        self._files: dict[str, str] = {}
        self._classes: dict[type, Any] = {}
        self._modules = set[str]()

    def of(self, executed: Executed, about: Any) -> Any:
        functions = executed.functions()
        ran = [self._ran(*entry) for entry in functions]
        parts = [self._part(part) for part in self._parts]
        state = self._value(about)
        names = {str(variables.get("__name__")) for _, variables, _ in functions}
        self._follow_imports({*names, *(kind.__module__ for kind in self._classes)})
        classes = sorted(self._classes.values())
        return parts, state, classes, ran, sorted(self._files.items()), _versions()

    def _ran(self, code: types.CodeType, variables: dict[str, Any], enclosed: dict[str, Any]) -> Any:
        """A function that ran, and the variables around it that it names."""
        texts = [entry for entry in code.co_consts if isinstance(entry, str)]
        names = [*code.co_names, *filter(str.isidentifier, texts)]
        self._follow_imports({text for text in texts if text in sys.modules})
        globals_ = sorted({name: variables[name] for name in names if name in variables}.items())
        around = [(name, self._around(value, names)) for name, value in globals_]
        # What encloses a function may be made by the call itself: of that only what is plain.
        return self._code(code), around, [(name, _plain(value)) for name, value in sorted(enclosed.items())]

    def _around(self, value: Any, names: Sequence[str], depth: int = 4) -> Any:
        """A variable by its contents; a module or class as far as attributes of these names go."""
        kind = type(value)
        if isinstance(value, types.ModuleType | type):
            if isinstance(value, type):
                self._class(value)
            found = {name: inspect.getattr_static(value, name, None) for name in sorted({*names}) if depth}
            known = [(name, entry) for name, entry in found.items() if _is_read(entry, value)]
            return _named(kind), [(name, self._around(entry, names, depth - 1)) for name, entry in known]
        if isinstance(value, functools._lru_cache_wrapper):
            return self._around(value.__wrapped__, names, depth)
        if kind.__module__.partition(".")[0] in _SILENT and not isinstance(value, torch.Tensor | torch.nn.Module):
            return _named(kind)
        if isinstance(value, torch.Tensor | np.ndarray):  # numbers may be read from it, however many they are
            return _numbers(value)
        return self._value(value)

    def _follow_imports(self, names: set[str]) -> None:
        """Note the files of modules of these names, and of what they import, as far as nobody installed them.

        Whatever a function reads of another file in a way that cannot be seen, by name or through a cache, is in there.
        """
        waiting = list(names)
        while waiting:
            module = sys.modules.get(waiting.pop())
            path = getattr(module, "__file__", None)
            if module is None or not path or path in self._modules or not foreign_name(module.__name__):
                continue
            self._modules.add(path)
            if in_package(path) != Path(path).name or _is_standard(path):
                continue  # installed: its version stays, and what runs of it was noted
            self._files[path] = _digest_of(path)
            for value in list(vars(module).values()):
                name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
                waiting += [name] if isinstance(name, str) else []

    def _part(self, part: torch.nn.Module) -> Any:
        self._class(type(part))
        if any(part.__dict__[name] for name in HOOKS):
            raise Unknown("hooks")
        state = [
            (name, self._value(value))
            for name, value in part.__dict__.items()
            if name not in SKIPPED and name not in TABLES and name not in HOOKS
        ]
        children = [(name, self._value(child)) for name, child in part._modules.items()]
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
            return _named(kind), value.name, self._value(value.value)
        if isinstance(value, type):
            self._class(value)
            return "class", _named(value)
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        if isinstance(value, _BUILTIN):
            owner = getattr(value, "__self__", None)
            of = None if owner is None or isinstance(owner, types.ModuleType) else self._value(owner)
            home = getattr(value, "__objclass__", getattr(value, "__module__", None))
            return "builtin", str(home), value.__qualname__, of
        if kind in (range, slice, type(Ellipsis), type(NotImplemented)) or isinstance(value, PurePath):
            return kind.__name__, repr(value)
        place = self._once(value)
        return place, _named(kind), self._inside(value, kind)

    def _inside(self, value: Any, kind: type) -> Any:
        """What an object holds."""
        if is_read_by_value(value):
            return _numbers(value)
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
        if any(vars(base).get("__slots__") for base in kind.__mro__ if foreign(base)):
            raise Unknown(f"{_named(kind)} has slots")
        if isinstance(value, list | tuple | set | frozenset | dict | deque):
            inner = self._elements(value)
        elif isinstance(value, _BASES):
            inner = next(base.__repr__(value) for base in _BASES if isinstance(value, base))
        elif isinstance(value, torch.nn.Module):
            return self._part(value)
        elif not (foreign(kind) and hasattr(value, "__dict__")):
            raise Unknown(f"a {_named(kind)}")
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
                    around = [content_of(cell) for cell in value.__closure__ or ()]
                    around += [value.__defaults__, value.__kwdefaults__]
                    described.append((name, f"{self._code(value.__code__)} {_plain(around)}"))
                elif not name.startswith("__") and not isinstance(value, _MACHINERY):
                    described.append((name, repr(self._value(value))))
            self._classes[base] = _named(base), tuple(sorted(described))

    def _code(self, code: types.CodeType) -> tuple[str, str, int]:
        """Name and place of a function, and a digest of its code: its file, which is noted, may be another by now."""
        path = code.co_filename
        if path not in self._files:
            self._files[path] = _digest_of(path)
        return in_package(path), f"{code.co_name} {_digest(code)}", code.co_firstlineno


def _is_read(value: Any, owner: Any) -> bool:
    """Whether an attribute of a module or class may be something that a function reads, rather than code."""
    if value is None or isinstance(value, types.FunctionType | types.BuiltinFunctionType | property | staticmethod):
        return False
    if isinstance(value, type) or not foreign_name(getattr(owner, "__module__", None) or owner.__name__):
        return type(value) in SCALARS or isinstance(value, types.ModuleType)
    return not isinstance(value, classmethod | types.GetSetDescriptorType | types.MemberDescriptorType)


def _plain(value: Any, depth: int = 4) -> str:
    """Numbers and texts, and collections of them, by value; anything else by its class."""
    kind = type(value)
    if kind in SCALARS:
        return repr(value)
    if depth and kind in (tuple, list, dict, set, frozenset) and len(value) <= _MOST:
        entries = value.items() if kind is dict else value
        found = [_plain(entry, depth - 1) for entry in entries]
        return f"{kind.__name__} {sorted(found) if kind in (set, frozenset) else found}"
    return kind.__name__


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _form(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape
    if value.layout != torch.strided:
        raise Unknown(f"a tensor of layout {value.layout}")
    kind = _named(type(value))
    return kind, str(value.dtype), tuple(value.shape), tuple(value.stride()), str(value.device)


def _numbers(value: Any) -> Any:
    """A tensor or array with its numbers."""
    return _form(value), hashlib.sha256(contents(value)).hexdigest()


def _digest_of(path: str) -> str:
    """A digest of a source file; empty where there is none."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
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
