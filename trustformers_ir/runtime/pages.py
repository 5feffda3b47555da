"""Pages of memory for machine code. They are written first and protected then: no page can ever be written and executed at the same time."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os

import numpy as np

READ, EXECUTE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_EXEC
_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


@functools.cache
def _system() -> ctypes.CDLL:
    """The C library, told what mmap, mprotect and munmap take."""
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes, library.mmap.restype = (pointer, size, number, number, number, ctypes.c_long), pointer
    library.mprotect.argtypes, library.mprotect.restype = (pointer, size, number), number
    library.munmap.argtypes, library.munmap.restype = (pointer, size), number
    return library


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Pages:
    """``size`` bytes of zeros, rounded up to pages, that can be written until :meth:`protect`. They stay until :meth:`unmap`, even when this object
    is garbage: threads may be in them. ``OSError`` when there is no memory."""

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        found = _system().mmap(None, self.size, _WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if found is None or found == ctypes.c_void_p(-1).value:
            raise _failed()
        self.address = int(found)

    def write(self, offset: int, data: np.ndarray) -> None:
        """Copies contiguous bytes, ``u8[n]``, to ``offset``."""
        if not 0 <= offset <= self.size - data.nbytes:
            raise IndexError(f"{data.nbytes} bytes at {offset} of {self.size}")
        ctypes.memmove(self.address + offset, data.ctypes.data, data.nbytes)

    def protect(self, offset: int, size: int, access: int) -> None:
        """Gives whole pages another access: ``READ`` or ``EXECUTE``. ``OSError`` where the system does not allow it."""
        if size and _system().mprotect(self.address + offset, size, access):
            raise _failed()

    def unmap(self) -> None:
        """Gives the pages back. Nobody may be in them, or come back to them."""
        _system().munmap(self.address, self.size)
