"""Tensors that live in a private mapping of a nameless file, and which of their pages were written since.

A page of such a mapping that nobody has written is the file's: the kernel may drop it and read it again. A write goes
to a copy of the page that belongs to this process alone. So a tensor in a mapping is as good as any other, and as long
as none of its pages is such a copy, its contents are those that were written out, whoever may have looked at it: which
`/proc/self/pagemap` tells without reading a single one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from graphopt.runtime.memo import digest

_PAGE = mmap.PAGESIZE
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4, which Python does not name; it loses nothing, written pages go to swap
_FILLING = 3  # trajectories: those of a variant's check and measurement, and the first whole one
_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})  # file systems whose files are memory


class Mapping(mmap.mmap):
    """Some tensors' bytes in one file, each at the start of a page, mapped privately.

    Alive as long as one of its tensors is. The file has no name from the start: nobody else can open, truncate or
    forget to delete it.

    Raises OSError when the file cannot be written.
    """

    start: int
    _starts: int = 0
    _tensors: list[torch.Tensor]  # without contents: kinds only
    _offsets: list[int]
    _digests: list[bytes | None]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], folder: Path) -> Mapping:
        """Write out `tensors`, on the CPU, each of which fills its storage."""
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.untyped_storage().nbytes() // _PAGE) * _PAGE
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, end)  # a full disk says so here, not page by page
            for tensor, offset in zip(tensors, offsets, strict=True):
                file.seek(offset)
                file.write(_bytes(tensor).numpy().data)
            file.flush()
            os.fsync(file.fileno())
            made = cls(file.fileno(), end, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            made.start = torch.frombuffer(made, dtype=torch.uint8, count=1).data_ptr()
            made._offsets, made._tensors = offsets, [torch.empty_like(tensor, device="meta") for tensor in tensors]
            made._digests = [_verified(file.fileno(), *pair) for pair in zip(tensors, offsets, strict=True)]
            os.posix_fadvise(file.fileno(), 0, end, os.POSIX_FADV_DONTNEED)
        global _known
        with _lock:
            _known = (*(ref for ref in _known if ref() is not None), weakref.ref(made))
        return made

    def tensor(self, position: int) -> torch.Tensor | None:
        """The tensor in its new place; None when the file did not hold what the tensor held when it was read back."""
        if self._digests[position] is None:
            return None
        kind = self._tensors[position]
        size = kind.numel() * kind.element_size()
        memory = torch.frombuffer(self, dtype=torch.uint8, count=size, offset=self._offsets[position])
        return torch.empty(0, dtype=kind.dtype).set_(memory.untyped_storage(), 0, kind.shape, kind.stride())

    def known(self, tensor: torch.Tensor, written: frozenset[int]) -> bytes | None:
        """The digest of a tensor that lies here as it was written out, if it does; `written` as of `self.written`."""
        offset = tensor.data_ptr() - self.start
        position = int(np.searchsorted(self._offsets, offset))
        if position == len(self._offsets) or self._offsets[position] != offset or position in written:
            return None
        kind = self._tensors[position]
        same = (kind.shape, kind.stride(), kind.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        return self._digests[position] if same and not tensor.is_conj() and not tensor.is_neg() else None

    def written(self) -> frozenset[int]:
        """Positions of the tensors of which a page may have been written since they were laid here."""
        try:
            pages = _written_pages(self.start, len(self))
        except (OSError, ValueError):  # ValueError: fewer entries than pages
            return frozenset(range(len(self._offsets)))
        if not pages:
            return frozenset()
        found = set[int]()
        for first, last in pages:  # a page is of one tensor, a range of pages of several
            low, high = np.searchsorted(self._offsets, [first, last - 1], side="right")
            found.update(range(int(low) - 1, int(high)))
        return frozenset(found)

    def page_out(self) -> None:
        """Give the pages that were read back to the kernel at once; nothing that was written is lost."""
        self._starts = 0
        self._advise()

    def trajectory_starts(self) -> None:
        """Page out what the first trajectories read to fill tables; later on the kernel knows best what is read."""
        if self._starts < _FILLING:
            self._starts += 1
            self._advise()

    def _advise(self) -> None:
        with contextlib.suppress(OSError):
            self.madvise(_PAGEOUT)


_known: tuple[weakref.ref[Mapping], ...] = ()
_lock = threading.Lock()


def mappings() -> list[Mapping]:
    """All that are alive."""
    return [found for ref in _known if (found := ref()) is not None]


def mapping_of(tensor: torch.Tensor) -> Mapping | None:
    """The mapping that a tensor's memory lies in."""
    if not _known or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return None
    place = tensor.untyped_storage().data_ptr()
    return next((found for found in mappings() if found.start <= place < found.start + len(found)), None)


class Watch:
    """Which of some tensors lie in mappings as they were written out: those need neither be read nor compared.

    Attributes
    ----------
    digests : their digests, by position.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.digests: dict[int, bytes] = {}
        self._written: dict[Mapping, frozenset[int]] = {}
        for position, tensor in enumerate(tensors if _known else ()):
            found = mapping_of(tensor)
            if found is not None:
                if found not in self._written:
                    self._written[found] = found.written()
                known = found.known(tensor, self._written[found])
                if known is not None:
                    self.digests[position] = known

    def same(self) -> bool:
        """Whether no more of them were written."""
        return all(found.written() == before for found, before in self._written.items())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The storage of a tensor as bytes."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _verified(file: int, tensor: torch.Tensor, offset: int) -> bytes | None:
    """The digest of what the file holds, None unless that is what the tensor holds now: another thread may write it."""
    now = _bytes(tensor)
    read = torch.empty_like(now)
    done = 0
    while done < len(read):
        count = os.preadv(file, [read.numpy().data[done:]], offset + done)
        if not count:
            return None
        done += count
    if not torch.equal(read, now):
        return None
    return digest(torch.empty(0, dtype=tensor.dtype).set_(read.untyped_storage(), 0, tensor.shape, tensor.stride()))


# -- which pages were written: include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst ----------------------

_IS_FILE, _IS_PRESENT, _IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("start", "end", "categories")]


class _Scan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages", "category_inverted",
            "category_mask", "category_anyof_mask", "return_mask",
        )
    ]  # fmt: skip


_PAGEMAP_SCAN = (3 << 30) | (ctypes.sizeof(_Scan) << 16) | (ord("f") << 8) | 16  # _IOWR('f', 16, struct pm_scan_arg)
_REGIONS = 64


def _written_pages(start: int, size: int) -> list[tuple[int, int]]:
    """Ranges of bytes from `start` whose pages are copies of this process's own, in memory or in swap."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)  # anew every time: after a fork it is another process's
    try:
        return _scanned(pagemap, start, size) if _can_scan() else _read(pagemap, start, size)
    finally:
        os.close(pagemap)


def _scanned(pagemap: int, start: int, size: int) -> list[tuple[int, int]]:
    """By the kernel (Linux 6.7), in microseconds."""
    import fcntl  # not on every system

    found, regions = [], (_Region * _REGIONS)()
    scan = _Scan(
        ctypes.sizeof(_Scan), 0, start, start + size, 0, ctypes.addressof(regions), _REGIONS, 0,
        _IS_FILE, _IS_FILE, _IS_PRESENT | _IS_SWAPPED, _IS_PRESENT | _IS_SWAPPED,
    )  # fmt: skip
    while True:
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, scan)
        found += [(region.start - start, region.end - start) for region in regions[:count]]
        if count < _REGIONS or scan.walk_end >= start + size:
            return found
        scan.start = scan.walk_end


def _read(pagemap: int, start: int, size: int) -> list[tuple[int, int]]:
    """From eight bytes per page."""
    entries = np.frombuffer(os.pread(pagemap, size // _PAGE * 8, start // _PAGE * 8), dtype=np.uint64)
    if len(entries) != size // _PAGE:
        raise ValueError("pagemap ends early")
    flags = entries >> np.uint64(61)  # bit 0: of a file, 1: swapped, 2: present
    own = np.flatnonzero((flags > 1) & (flags & np.uint64(1) == 0))
    return [(int(page) * _PAGE, (int(page) + 1) * _PAGE) for page in own]


@functools.cache
def _can_scan() -> bool:
    memory = mmap.mmap(-1, _PAGE)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        _scanned(pagemap, torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr(), _PAGE)
    except OSError:
        return False
    finally:
        os.close(pagemap)
    return True


@functools.cache
def unsupported() -> str | None:
    """Why mappings cannot be used on this system, or None; tried out once."""
    if not sys.platform.startswith("linux"):
        return "only Linux tells which pages of a mapping were written"
    try:
        with tempfile.TemporaryFile() as file:
            file.truncate(2 * _PAGE)
            probe = mmap.mmap(file.fileno(), 2 * _PAGE, flags=mmap.MAP_PRIVATE)
        start = torch.frombuffer(probe, dtype=torch.uint8, count=1).data_ptr()
        seen = [_written_pages(start, 2 * _PAGE)]
        probe[0] + probe[_PAGE]  # reading is no writing
        seen.append(_written_pages(start, 2 * _PAGE))
        probe[_PAGE] = 1
        seen.append(_written_pages(start, 2 * _PAGE))
    except (OSError, ValueError) as error:
        return f"this system does not tell which pages of a mapping were written: {error}"
    if seen != [[], [], [(_PAGE, 2 * _PAGE)]]:
        return "this system does not tell truly which pages of a mapping were written"
    return None


def in_memory(folder: Path) -> bool:
    """Whether files in `folder` take memory instead of disk, as far as that can be known."""
    device = folder.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            front, _, back = line.partition(" - ")
            if front.split()[2] == place:
                return back.split()[0] in _MEMORY
    return False
