"""Memory that the system hands out: files of unknown origin, mapping them, whole or in parts, and reading no more of them than is there. Only
ordinary files are mapped: a pipe would block, and a device has no size. And giving back what is free."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where


class MappedFile(mmap.mmap):
    """A file that was mapped here, to be read only: its pages can always be had again. Of maps that others made that is not known."""


class OpenFile:
    """An ordinary file of ``size`` bytes that is open for reading, and of which parts are mapped for as long as somebody looks at them.

    Who reads a model of 24 GB tensor by tensor needs the addresses of one part at a time, and has its pages alone. The file stays the one that was
    opened, whatever happens to its name.
    """

    def __init__(self, path: Path, place: str, kind: str, least: int, short: Callable[[int], CompilerError]) -> None:
        self._place = place
        self._descriptor, self.size = _opened(path, place, kind, least, short)
        self._parts: weakref.WeakValueDictionary[tuple[int, int], MappedFile] = weakref.WeakValueDictionary()
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from ``begin`` to ``end``; fewer where the file ends before."""
        parts: list[bytes] = []
        while begin < end and (part := os.pread(self._descriptor, min(end - begin, 1 << 26), begin)):
            parts.append(part)
            begin += len(part)
        return b"".join(parts)

    def part(self, begin: int, end: int) -> tuple[MappedFile, int]:
        """A map that holds the bytes from ``begin`` to ``end``, and where ``begin`` lies in it. Whoever asks for a part that is mapped gets that
        map; it goes away with the last view of it."""
        found = self._parts.get((begin, end))
        start = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        if found is None:
            found = _mapped(self._descriptor, end - start, self._place, start)
            self._parts[begin, end] = found
        return found, begin - start


def map_file(path: Path, place: str, kind: str, least: int, short: Callable[[int], CompilerError]) -> MappedFile:
    """The whole file. ``place`` names it in errors: ``FILE_NOT_FOUND``, ``UNREADABLE``, or ``short(size)``
    when it has less than ``least`` bytes."""
    descriptor, size = _opened(path, place, kind, least, short)
    try:
        return _mapped(descriptor, size, place)
    finally:
        os.close(descriptor)


def _opened(path: Path, place: str, kind: str, least: int, short: Callable[[int], CompilerError]) -> tuple[int, int]:
    """The descriptor of a file, and how many bytes it has."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{place}' does not exist", Where(file=place), "look at the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{place}': {reason}", Where(file=place), "look at its permissions") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CompilerError.of(Code.UNREADABLE, f"'{place}' is not an ordinary file", Where(file=place), f"give a {kind} file")
        if status.st_size < least:
            raise short(status.st_size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def _mapped(descriptor: int, length: int, place: str, offset: int = 0) -> MappedFile:
    try:
        return MappedFile(descriptor, length, access=mmap.ACCESS_READ, offset=offset)
    except (OSError, ValueError) as error:  # ValueError: the file has become shorter
        reason = error.strerror if isinstance(error, OSError) else error
        raise CompilerError.of(Code.UNREADABLE, f"cannot map '{place}': {reason}", Where(file=place)) from None


def backing(array: object) -> MappedFile | None:
    """The file mapped here that an array is a view of; None for any other array."""
    while array is not None and not isinstance(array, MappedFile):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array


def let_go(files: Iterable[MappedFile]) -> None:
    """Takes the pages of mapped files out of this process's memory. They stay in the page cache and come back when they are read again."""
    for data in files:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system has it; a map may be closed
            data.madvise(mmap.MADV_DONTNEED)


def read_most(stream: BinaryIO, limit: int) -> bytes:
    """What is left of a file, but at most ``limit`` bytes and one more, which tells that there are too many. ``stream.read(limit)`` itself
    would allocate ``limit`` bytes before it reads the first."""
    parts: list[bytes] = []
    left = limit + 1
    while left and (part := stream.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it for later (glibc). After a compilation of BERT-base that is 19 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
