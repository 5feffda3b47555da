"""Linking object code into this process, and calling it.

Needs llvmlite's JIT linker only; the compiler is not imported. Code is unmapped when its :class:`NativeLibrary` is garbage: whoever has a
thread in it, or an address of it, keeps the library. When the interpreter goes down nothing is unmapped, since threads may still be parked in code.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from trustformers_ir.ir.diagnostics import Code, InternalError

_counter = itertools.count()
_lock = threading.RLock()  # a library may become garbage, and be unmapped, while the same thread links another
_linked: dict[int, tuple[Any, Any]] = {}  # what LLVM has mapped for each library. Not in the finalizers: those let go of it at exit


def _after_fork() -> None:
    """In a child nobody would release the lock if another thread of the parent held it."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _binding() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    return llvm


class LinkError(InternalError):
    """The object code is not any, or lacks a symbol: a defect of the compiler, unless the code comes from a file."""


class NativeLibrary:
    """Object files linked into the process; gives the addresses of their symbols."""

    def __init__(self, objects: Sequence[bytes], symbols: Sequence[str]) -> None:
        llvm = _binding()
        with _lock:
            machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
            jit = llvm.create_lljit_compiler(machine)
            builder = llvm.JITLibraryBuilder()
            for image in objects:
                builder.add_object_img(image)
            for s in symbols:
                builder.export_symbol(s)
            number = next(_counter)
            try:
                library = builder.add_current_process().link(jit, f"tfir{number}")
                self._addresses = {s: int(library[s]) for s in symbols}
            except (RuntimeError, KeyError) as error:
                raise LinkError.of(Code.LINK_FAILED, f"linking failed: {error}") from error
            _linked[number] = jit, library
            weakref.finalize(self, _unmap, number).atexit = False

    def address(self, symbol: str) -> int:
        """Where the symbol lies; ``KeyError`` when it was not asked for at linking."""
        return self._addresses[symbol]

    def function(self, symbol: str, result: Any, *arguments: Any) -> Any:
        """A ctypes function, which keeps the library. It releases the interpreter lock while it runs."""
        function = ctypes.CFUNCTYPE(result, *arguments)(self._addresses[symbol])
        function.library = self  # type: ignore[attr-defined]
        return function


def _unmap(number: int) -> None:
    with _lock:
        jit, library = _linked.pop(number)
        library.close()
        jit.close()


def link(objects: Sequence[bytes], symbols: Sequence[str]) -> NativeLibrary:
    """Links object files into this process and looks up ``symbols``. ``LinkError`` when that cannot be."""
    return NativeLibrary(objects, symbols)
