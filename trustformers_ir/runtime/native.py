"""Object code in this process: linked, called, and unmapped.

On Linux and x86-64 our own linker does it (``linker.py``). What that does not read, code for other architectures among it, LLVM's links (``jit.py``),
which costs memory and time. Code is unmapped when its :class:`NativeLibrary` is garbage: whoever has a thread in it, or an address of it, keeps
the library. When the interpreter goes down nothing is unmapped, since threads may still be parked in code.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from trustformers_ir.ir.diagnostics import Code, InternalError
from trustformers_ir.ir.machine import architecture
from trustformers_ir.runtime.elf import UnknownForm
from trustformers_ir.runtime.jit import link_with_llvm
from trustformers_ir.runtime.linker import link_objects


class LinkError(InternalError):
    """The object code is not any, or lacks a symbol: a defect of the compiler, unless the code comes from a file."""


class NativeLibrary:
    """Object files linked into the process; gives the addresses of their symbols. Any number of threads may link at once."""

    def __init__(self, objects: Sequence[bytes], symbols: Sequence[str]) -> None:
        try:
            self._addresses, unmap = _linked(objects, symbols)
        except (ValueError, OSError) as error:
            raise LinkError.of(Code.LINK_FAILED, f"linking failed: {error}") from error
        weakref.finalize(self, unmap).atexit = False

    def address(self, symbol: str) -> int:
        """Where the symbol lies; ``KeyError`` when it was not asked for at linking."""
        return self._addresses[symbol]

    def function(self, symbol: str, result: Any, *arguments: Any) -> Any:
        """A ctypes function, which keeps the library. It releases the interpreter lock while it runs."""
        function = ctypes.CFUNCTYPE(result, *arguments)(self._addresses[symbol])
        function.library = self  # type: ignore[attr-defined]
        return function


def _linked(objects: Sequence[bytes], symbols: Sequence[str]) -> tuple[dict[str, int], Callable[[], None]]:
    """The addresses of the symbols, and what unmaps the code."""
    if sys.platform == "linux" and architecture() == "x86_64":
        try:
            image = link_objects(objects, symbols)
            return image.addresses, image.pages.unmap
        except UnknownForm:  # whatever is wrong with it, LLVM says so
            pass
    return link_with_llvm(objects, symbols)


def link(objects: Sequence[bytes], symbols: Sequence[str]) -> NativeLibrary:
    """Links object files into this process and looks up ``symbols``. ``LinkError`` when that cannot be."""
    return NativeLibrary(objects, symbols)
