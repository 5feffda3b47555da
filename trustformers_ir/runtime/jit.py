"""Linking by LLVM, for object code that our own linker does not read: that of other architectures and systems, and forms that our compiler
does not make. Needs llvmlite, which brings the whole of LLVM into the process: 45 MB of memory.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

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


def link_with_llvm(objects: Sequence[bytes], symbols: Sequence[str]) -> tuple[dict[str, int], Callable[[], None]]:
    """The addresses of the symbols, and what unmaps the code. ``ValueError`` when LLVM cannot link the objects."""
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
            addresses = {s: int(library[s]) for s in symbols}
        except (RuntimeError, KeyError) as error:
            raise ValueError(str(error)) from error
        _linked[number] = jit, library
    return addresses, functools.partial(_unmap, number)


def _unmap(number: int) -> None:
    with _lock:
        jit, library = _linked.pop(number)
        library.close()
        jit.close()
