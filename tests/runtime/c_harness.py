"""Calls libraries that were compiled for C, through ctypes, as a C program would."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime.c_tables import C_TYPES
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.library import library_name

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler: apt-get install gcc libc6-dev")
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
DTYPES = list(C_TYPES)


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 1024)]


class Options(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int),
        ("spin_us", ctypes.c_int),
        ("check_weights", ctypes.c_int),
        ("weights", ctypes.c_char_p),
        ("target", ctypes.c_char_p),
    ]


class Failed(Exception):
    """A code that is not 0, and the message that came with it."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message.decode()}")
        self.code = error.code


class Library:
    """A library with its header beside it; ``rank`` is the largest rank of its inputs and outputs."""

    def __init__(self, path: Path, module: CompiledModule) -> None:
        self.entries = module.manifest.entries
        self.rank = max([1, *(p.type.rank for e in self.entries for p in (*e.inputs, *e.outputs))])
        self.native = ctypes.CDLL(str(path))
        self.prefix = library_name(path)

        class Input(ctypes.Structure):
            _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int), ("rank", ctypes.c_int), ("shape", ctypes.c_int64 * self.rank)]

        class Output(ctypes.Structure):
            _fields_ = [("data", ctypes.c_void_p), ("capacity", ctypes.c_size_t), ("bytes", ctypes.c_size_t), *Input._fields_[1:]]

        self.Input, self.Output = Input, Output
        for name in ("code_text", "target"):
            self.function(name).restype = ctypes.c_char_p

    def function(self, name: str) -> Any:
        return getattr(self.native, f"{self.prefix}_{name}")

    def checked(self, name: str, *arguments: Any) -> None:
        error = Error()
        code = self.function(name)(*arguments, ctypes.byref(error))
        assert code == error.code and (code == 0) == (error.message == b"")
        if code:
            raise Failed(error)

    def session(self, **options: Any) -> Session:
        return Session(self, options)

    def input(self, value: Any) -> Any:
        """An array; a shape (with the dtype of an array of nothing); None for an input that is left out; a ready structure."""
        if isinstance(value, self.Input):
            return value
        if value is None:
            return self.Input(None, 0, -1)
        shape = (ctypes.c_int64 * self.rank)(*value.shape[: self.rank])
        return self.Input(value.ctypes.data, DTYPES.index(DType.from_numpy(value.dtype)), value.ndim, shape)

    def infer(self, *values: Any, entry: int = 0) -> list[tuple[int, ...]]:
        """The shapes of the outputs."""
        inputs = (self.Input * max(len(values), 1))(*map(self.input, values))
        outputs = (self.Output * len(self.entries[entry].outputs))()
        self.checked("infer", entry, inputs, len(values), outputs, len(outputs))
        return [tuple(o.shape[: o.rank]) for o in outputs]


class Session:
    def __init__(self, library: Library, options: Mapping[str, Any]) -> None:
        self.library = library
        self.handle = ctypes.c_void_p()
        encoded = {k: os.fsencode(v) if isinstance(v, str | Path) else v for k, v in options.items()}
        library.checked("create", ctypes.byref(Options(**encoded)), ctypes.byref(self.handle))

    def __call__(self, *values: Any, entry: int = 0) -> list[np.ndarray]:
        """Runs on arrays of the size that the library asks for; first without any room, which has to be refused."""
        library, ports = self.library, self.library.entries[entry].outputs
        inputs = (library.Input * max(len(values), 1))(*map(library.input, values))
        outputs = (library.Output * len(ports))()
        spare = np.empty(64, np.uint8)
        for o in outputs:
            o.data = -(-spare.ctypes.data // 16) * 16
        try:
            self.run(entry, inputs, len(values), outputs)
            assert all(o.bytes == 0 for o in outputs)
        except Failed as failure:
            if failure.code != 5019:
                raise
        arrays = [np.full(tuple(o.shape[: o.rank]), 7, p.type.dtype.numpy) for o, p in zip(outputs, ports, strict=True)]
        for o, a in zip(outputs, arrays, strict=True):
            o.data, o.capacity = a.ctypes.data, a.nbytes
        self.run(entry, inputs, len(values), outputs)
        return arrays

    def run(self, entry: int, inputs: Any, count: int, outputs: Any) -> None:
        self.library.checked("run", self.handle, entry, inputs, count, outputs, len(outputs))

    @property
    def target(self) -> str:
        return str(self.library.function("target")(self.handle).decode())

    def close(self) -> None:
        self.library.function("destroy")(self.handle)
        self.handle = ctypes.c_void_p()


def build(module: CompiledModule | Sequence[CompiledModule], path: Path, **options: Any) -> Library:
    """The library of a module (of the same module for several targets, best first)."""
    family = [module] if isinstance(module, CompiledModule) else list(module)
    Executable(family[0], 1, family=family).save(path, **options)
    return Library(path, family[0])
