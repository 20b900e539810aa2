"""What generated code finds in the process that runs it, and what of this machine it depends on. Imports no TVM."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_OPENMP = "GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num"  # that generated code calls
# Of a processor in CPUINFO: from these LLVM tells its name, and thereby the instructions that it has.
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "stepping", "flags")


def openmp() -> str | None:
    """Why kernels cannot share torch's threads here, or None: generated code calls OpenMP as GCC does."""
    if not hasattr(ctypes.CDLL(None), _OPENMP[0]):
        for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            break
        else:
            return "torch comes with no OpenMP library of GCC's interface (libgomp), whose threads kernels share"
    homes = sorted({str(_home(symbol)) for symbol in _OPENMP})
    if len(homes) > 1:
        return f"functions of OpenMP come from several libraries, which know nothing of each other: {', '.join(homes)}"
    return None


class _Found(ctypes.Structure):
    """What `dladdr` tells: the file is the first of four pointers."""

    _fields_: ClassVar = [("file", ctypes.c_char_p), *((f"other{number}", ctypes.c_void_p) for number in range(3))]


def _home(symbol: str) -> str | None:
    """The file of the library that a function is from; None where there is none of this name."""
    process, found = ctypes.CDLL(None), _Found()
    if not hasattr(process, symbol) or not process.dladdr(getattr(process, symbol), ctypes.byref(found)):
        return None
    return os.fsdecode(found.file)


def address(symbol: str) -> int:
    """Of a function that generated code calls: of libgomp, the C library, or TVM's runtime.

    Raises
    ------
    LookupError : there is none of this name.
    """
    openmp()
    library = ctypes.CDLL(None)
    if not hasattr(library, symbol):
        library = _runtime()
    if not hasattr(library, symbol):
        raise LookupError(f"generated code calls {symbol}, which no library in this process has")
    return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0


@cache
def _runtime() -> ctypes.CDLL:
    """TVM's runtime: its library alone where it lies as in TVM's wheel, since importing TVM takes a second."""
    files = _libraries("tvm_ffi", "libtvm_ffi.so"), _libraries("tvm", "libtvm_runtime.so")
    if not all(file.is_file() for file in files):
        import tvm  # noqa: F401  # which loads it for all

        return ctypes.CDLL(None)
    return [ctypes.CDLL(str(file)) for file in files][-1]


def _libraries(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin if spec and spec.origin else package).parent / "lib" / name


@cache
def cpu() -> str | None:
    """What tells a kind of CPU from others; None where the system does not say."""
    known = _processor()
    if not known.keys() >= {*_CPU_FIELDS}:
        return None
    return "\n".join([*(known[name] for name in _CPU_FIELDS), str(l2_cache())])


@cache
def instructions() -> frozenset[str] | None:
    """Those that the system offers to programs, by Linux's names; None where it does not say."""
    flags = _processor().get("flags")
    return None if flags is None else frozenset(flags.split())


@cache
def l2_cache() -> int | None:
    """Bytes of the cache behind a core's first one, which it may share; None where the system does not say."""
    for folder in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        number, unit = size[:-1], _UNITS.get(size[-1:])
        if level == "2" and kind != "Instruction" and unit and number.isdecimal():
            return int(number) * unit
    return None


def _processor() -> dict[str, str]:
    """What the system says of the first processor."""
    try:
        first = CPUINFO.read_text().split("\n\n")[0]
    except OSError:
        return {}
    fields = [line.partition(":") for line in first.splitlines()]
    return {name.strip(): value.strip() for name, _, value in fields}


@cache
def compiler() -> str | None:
    """What tells a build of TVM, with the LLVM in it, from others; None where it is no wheel's."""
    try:
        versions = [importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")]
        status = _libraries("tvm", "libtvm_compiler.so").stat()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None
    return " ".join([*versions, str(status.st_size), str(status.st_mtime_ns)])
