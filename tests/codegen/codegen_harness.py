"""Runs a kernel both ways: compiled for this machine and by the interpreter, and compares every bit.

Arrays handed to compiled code end right before a page that may not be touched, so a read or write past the end is a crash, not a coincidence.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence

import numpy as np

from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.kernel_ir.kernel import Kernel
from trustformers_ir.codegen.kernel_ir.nodes import Expr
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import Target, host
from trustformers_ir.runtime.native import link

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None)


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy that ends at a forbidden page."""
    size = max(array.nbytes, 1)
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 1) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert _libc.mprotect(ctypes.c_void_p(base + pages * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    out = np.frombuffer(area, np.uint8, array.nbytes, pages * PAGE - array.nbytes).view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


class Compiled:
    """One kernel, callable on arrays."""

    def __init__(self, kernel: Kernel, facts: SymbolFacts | None = None, target: Target | None = None) -> None:
        self.kernel = kernel
        self.symbols = list(kernel.symbols)
        target = target or host()
        self.text = module_text([emit_kernel(kernel, self.symbols, "k", facts, target.features)])
        library = link([compile_object(self.text, target)], ["k"])
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        self.function = library.function("k", None, pointer, pointer, word, word, pointer, pointer)

    def __call__(self, arrays: Sequence[np.ndarray], dims: Mapping[str, int] | None = None, workers: int = 1) -> np.ndarray:
        """Runs every worker in turn; gives the status words."""
        dims = dims or {}
        pointers = (ctypes.c_void_p * max(len(arrays), 1))(*[a.ctypes.data for a in arrays])
        values = (ctypes.c_int64 * max(len(self.symbols), 1))(*[dims[s] for s in self.symbols])
        status = np.zeros(2, np.int64)
        size = _evaluate(self.kernel.scratch_bytes, self.kernel, dims)
        scratch = np.zeros(size + 64, np.uint8)
        base = scratch.ctypes.data + (-scratch.ctypes.data) % 64
        for worker in range(workers):
            self.function(pointers, values, worker, workers, base, status.ctypes.data)
        return status


def _evaluate(e: Expr, kernel: Kernel, dims: Mapping[str, int]) -> int:
    from trustformers_ir.codegen.kernel_ir.interpret import _Environment

    empty = Kernel("size", (), ())
    return int(_Environment(empty, (), dims, None, False).value(e))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, but for what a NaN looks like."""
    nan = np.zeros(a.shape, bool) if a.dtype.kind in "iub" else np.isnan(a.astype(np.float64)) & np.isnan(b.astype(np.float64))
    raw = np.uint8 if a.dtype == bool else np.dtype(f"u{a.dtype.itemsize}")
    return bool((nan | (a.view(raw) == b.view(raw))).all())


def check(
    kernel: Kernel,
    arrays: Sequence[np.ndarray],
    dims: Mapping[str, int] | None = None,
    *,
    facts: SymbolFacts | None = None,
    workers: int = 1,
    compiled: Compiled | None = None,
    reference: Kernel | None = None,
) -> list[np.ndarray]:
    """Compiled and interpreted results of all arrays agree; gives the compiled ones. ``reference``: interpret another kernel instead."""
    mine = [guarded(np.ascontiguousarray(a)) for a in arrays]
    theirs = [np.ascontiguousarray(a).copy() for a in arrays]
    status = (compiled or Compiled(kernel, facts))(mine, dims, workers)
    expected = np.zeros(2, np.int64)
    interpret(reference or kernel, theirs, dims, expected)
    for n, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if not same_bits(a, b):
            nan = np.zeros(a.shape, bool) if a.dtype.kind in "iub" else np.isnan(a.astype(float)) & np.isnan(b.astype(float))
            bad = np.argwhere(~nan & (a.view(f"u{a.itemsize}") != b.view(f"u{a.itemsize}")))
            inputs = [x.reshape(-1)[np.ravel_multi_index(tuple(bad[0]), a.shape)] if x.shape == a.shape else "-" for x in arrays]
            raise AssertionError(
                f"array {n} differs at {len(bad)} places, first {bad[0]}: {a[tuple(bad[0])]!r} != {b[tuple(bad[0])]!r}, inputs {inputs}"
            )
    assert status[0] == expected[0], f"status {status} != {expected}"
    return [np.array(a) for a in mine]
