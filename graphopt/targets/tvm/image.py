"""Machine code that lies in memory as it will run, but for some addresses: made of an object file, loaded by a copy.

LLVM writes relocatable objects, which a linker would make a shared library of for the system to load. This module needs
neither: sections are laid one after the other once, and what refers from one to another is settled then, since code
counts distances and not addresses. What is left for loading are `slots`: eight bytes each that take an address.

Source of the format and of the formulas of relocations: System V Application Binary Interface, AMD64 Architecture
Processor Supplement, chapter 4.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import host

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_PAGE = 4096
LINE = 64  # bytes of a line of the cache
# A team lies in a line: a table of pointers, the number of parts of a kernel's tasks, and a counter for each part.
_TEAM, _COUNTERS = "<qi", 16
PARTS = (LINE - _COUNTERS) // 4
_SECTION = "<IIQQQQIIQQ"
_SYMTAB, _RELA, _NOBITS = 2, 4, 8  # kinds of sections
_WRITE, _ALLOC, _TLS = 1, 2, 1024  # flags of sections
_ABS64, _PC32, _PLT32, _GOT = 1, 2, 4, (9, 41, 42)  # kinds of relocations


@dataclass(frozen=True)
class Image:
    """Machine code and what it needs at loading.

    Attributes
    ----------
    content : all bytes.
    writable : where memory begins that code writes into; what lies before is read and executed alone.
    symbols : where functions begin.
    slots : where addresses go: of a symbol elsewhere in the process, or of a byte of this image.
    """

    content: bytes
    writable: int
    symbols: dict[str, int]
    slots: tuple[tuple[int, str | int], ...]


class MachineCode:
    """An image in memory, ready to run; gone with this object.

    Raises LookupError where the process lacks a function that the code calls.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._memory = mmap.mmap(-1, len(image.content), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(image.content)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for offset, target in image.slots:
            pointer = self._start + target if isinstance(target, int) else host.address(target)
            struct.pack_into("<Q", self._memory, offset, pointer)
        _make_executable(self._start, image.writable)

    def address(self, symbol: str) -> int:
        """Of a function."""
        return self._start + self._image.symbols[symbol]

    def function(self, symbol: str) -> Any:
        """A function of a pointer and of how many threads it may use; Python's other threads run while it does."""
        return _FUNCTION(self.address(symbol))

    def kernel(self, symbol: str) -> Callable[[int], None]:
        """A kernel by itself, as a function of the address where its pointers lie."""
        parallel, kernel = _PARALLEL(host.address("GOMP_parallel")), self.address(symbol)

        def run(pointers: int) -> None:
            threads = torch.get_num_threads()
            team = (ctypes.c_uint8 * LINE)()
            struct.pack_into(_TEAM, team, 0, pointers, min(threads, PARTS))
            parallel(kernel, ctypes.addressof(team), threads, 0)

        return run


def _make_executable(start: int, size: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC
    if library.mprotect(*arguments):
        raise OSError(ctypes.get_errno(), "the system lets no generated code run (mprotect)")


class _Section(NamedTuple):
    """The fields of a section header, in order."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int


class _Relocation(NamedTuple):
    """What goes to an offset of a section: a function of a symbol's place and an addend."""

    section: int
    offset: int
    kind: int
    symbol: _Symbol
    addend: int


class _Object:
    """A relocatable ELF object for x86-64.

    Attributes
    ----------
    loaded : numbers of the sections that lie in memory at run time.
    """

    def __init__(self, file: bytes) -> None:
        if file[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", file, 16) != (1, 62):
            raise ValueError("not a relocatable object for x86-64")
        self.file = file
        (start,), (count, names) = struct.unpack_from("<Q", file, 40), struct.unpack_from("<HH", file, 60)
        size = struct.calcsize(_SECTION)
        self.sections = [_Section(*struct.unpack_from(_SECTION, file, start + size * at)) for at in range(count)]
        (table,) = (section for section in self.sections if section.kind == _SYMTAB)
        self.symbols = [
            _Symbol(self._text(table.link, name), section, value)
            for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", self.bytes_of(table))
        ]
        self.loaded = [
            number
            for number, section in enumerate(self.sections)
            if section.flags & _ALLOC and self._text(names, section.name) != ".eh_frame"  # nothing unwinds
        ]
        if any(self.sections[number].flags & _TLS for number in self.loaded):
            raise ValueError("variables of threads cannot be loaded")

    def bytes_of(self, section: _Section) -> bytes:
        if section.kind == _NOBITS:
            return bytes(section.size)
        return self.file[section.offset : section.offset + section.size]

    def relocations(self) -> Iterator[_Relocation]:
        """Those of what is loaded."""
        for section in self.sections:
            if section.kind == _RELA and section.info in self.loaded:
                for offset, info, addend in struct.iter_unpack("<QQq", self.bytes_of(section)):
                    yield _Relocation(section.info, offset, info & 0xFFFFFFFF, self.symbols[info >> 32], addend)

    def _text(self, strings: int, offset: int) -> str:
        start = self.sections[strings].offset + offset
        return self.file[start : self.file.index(0, start)].decode()


def linked(file: bytes) -> Image:
    """The image of a relocatable ELF object for x86-64, whose code is independent of its position and within 2 GiB.

    Raises
    ------
    ValueError : the file is no such object, or has something in it that LLVM does not write for kernels.
    """
    read = _Object(file)
    relocations = list(read.relocations())
    content, starts = bytearray(), dict[int, int]()

    def align(size: int) -> int:
        content.extend(bytes(-len(content) % size))
        return len(content)

    def lay(writable: bool) -> None:
        for number in read.loaded:
            section = read.sections[number]
            if bool(section.flags & _WRITE) is writable:
                starts[number] = align(max(section.alignment, 1))
                content.extend(read.bytes_of(section))

    lay(writable=False)
    # Functions elsewhere may be too far for a call, which goes to a jump in here: jmp [rip + distance to a slot].
    calls = {entry.symbol.name for entry in relocations if entry.kind == _PLT32 and not entry.symbol.section}
    stubs = {name: align(8) + 8 * place for place, name in enumerate(sorted(calls))}
    content.extend(bytes(8 * len(stubs)))
    writable = align(_PAGE)
    lay(writable=True)
    slots = dict[str | int, int]()

    def target(symbol: _Symbol) -> str | int:
        if not symbol.section:
            return symbol.name
        if symbol.section not in starts:
            raise ValueError(f"'{symbol.name}' lies in no section that is loaded")
        return starts[symbol.section] + symbol.value

    def slot(of: str | int) -> int:
        if of not in slots:
            slots[of] = align(8)
            content.extend(bytes(8))
        return slots[of]

    for name, place in stubs.items():
        struct.pack_into("<Hi", content, place, 0x25FF, slot(name) - (place + 6))
    fixed = list[tuple[int, str | int]]()
    for section, offset, kind, symbol, addend in relocations:
        place, of = starts[section] + offset, target(symbol)
        if kind == _ABS64 and (isinstance(of, int) or not addend):
            fixed.append((place, of + addend if isinstance(of, int) else of))
        elif kind in _GOT:
            struct.pack_into("<i", content, place, slot(of) + addend - place)
        elif kind in (_PC32, _PLT32) and (isinstance(of, int) or of in stubs):
            near = of if isinstance(of, int) else stubs[of]
            struct.pack_into("<i", content, place, near + addend - place)
        else:
            raise ValueError(f"a relocation of kind {kind} for '{symbol.name}' is not known")
    names = {s.name: starts[s.section] + s.value for s in read.symbols if s.name and s.section in starts}
    # TVM's code finds its runtime's functions through variables, which its own loader would set.
    runtime = [(at, name.removeprefix("__")) for name, at in names.items() if name.startswith("__TVM")]
    filled = *((place, of) for of, place in slots.items()), *fixed, *runtime
    return Image(bytes(content), writable, names, tuple(filled))
