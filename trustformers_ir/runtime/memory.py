"""Aligned memory for native code: the arena and the scratch space, which grow on demand, and the block that holds the weights."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trustformers_ir.ir.abi import ALIGNMENT, StoredWeight
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.machine import memory
from trustformers_ir.ir.mapped import backing, give_back, let_go
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.types import TensorType

PIECE = 4 << 20


def check_size(size: int, what: str) -> None:
    """``OUT_OF_MEMORY`` for a size that this machine cannot have, before anything is allocated."""
    if not 0 <= size <= memory():
        shown = f"{size} bytes" if abs(size) < 1 << 64 else "more than 2**64 bytes"
        raise no_memory(f"{what} needs {shown}; there are {memory()}")


def no_memory(message: str) -> CompilerError:
    return CompilerError.of(Code.OUT_OF_MEMORY, message, help="give smaller inputs, or run where there is more memory")


def bytes_of(shape: Sequence[int], dtype: DType) -> int:
    """The bytes of a contiguous array."""
    return math.prod(shape) * dtype.itemsize


def aligned(size: int) -> int:
    """``size`` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Growing:
    """A block of memory, aligned, that is replaced by a larger one when a larger one is needed. Its content is lost then."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.size = -1
        self.address = 0
        self._block: np.ndarray | None = None

    def grow(self, size: int) -> None:
        """Makes the block at least ``size`` bytes long; ``OUT_OF_MEMORY`` when that cannot be."""
        if size <= self.size:
            return
        check_size(size, self.what)
        self._block, self.size = None, -1  # the old block goes before the new one comes
        try:
            block = np.empty(size + ALIGNMENT, np.uint8)
        except MemoryError:
            raise no_memory(f"{self.what} needs {size} bytes, which the system refuses") from None
        self._block, self.size = block, size
        self.address = aligned(block.ctypes.data)


class Weights:
    """The weights section of a module in memory: ``address`` is its first byte, and ``owner`` keeps it alive."""

    def __init__(self, owner: np.ndarray) -> None:
        self.bytes = owner
        self.address = owner.ctypes.data

    def array(self, weight: StoredWeight) -> np.ndarray:
        """A view of one weight, in the shape of its storage."""
        return stored_view(self.bytes, weight)


def stored_view(section: np.ndarray, weight: StoredWeight) -> np.ndarray:
    """A view of one weight in the bytes of the section, in the shape of its storage."""
    return typed_view(section[weight.offset : weight.offset + weight.bytes], weight.type)


def typed_view(raw: np.ndarray, type: TensorType) -> np.ndarray:
    """Contiguous bytes (``u8[bytes]``, or an array of the same dtype) as an array of a static type, in the shape of its storage."""
    return raw.view(type.dtype.numpy).reshape(type.stored.concrete({}))


def weight_bytes(weight: StoredWeight, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The bytes of a weight as the kernels read them, ``u8[weight.bytes]``. ``InternalError`` when the array is not what was announced."""
    array = np.asarray(make())
    if array.dtype != weight.type.dtype.numpy or array.nbytes != weight.bytes:
        message = f"weight '{weight.name}' is {array.dtype}{list(array.shape)}; announced was {weight.type} of {weight.bytes} bytes"
        raise InternalError.of(Code.INTERNAL, message, Where(tensor=weight.name))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def section_bytes(weights: Sequence[StoredWeight]) -> int:
    """The length of the weights section."""
    return max((w.offset + w.bytes for w in weights), default=0)


def materialise(
    weights: Sequence[StoredWeight], makers: Mapping[str, Callable[[], np.ndarray]], after: Callable[[], None] | None = None
) -> Weights:
    """All weights in one page-aligned block, each at its offset; one weight at a time is held besides, of a mapped file ``PIECE`` bytes. ``after`` is
    called when one is made, and after each ``PIECE`` bytes. ``OUT_OF_MEMORY``."""
    size = section_bytes(weights)
    check_size(size, "the block of weights")
    try:
        area = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError, ValueError):
        raise no_memory(f"the block of weights needs {size} bytes, which the system refuses") from None
    with contextlib.suppress(OSError, AttributeError):  # large pages are two to four times as fast to fill, where there are any
        area.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(area, np.uint8, size)
    for done, weight in enumerate(weights):
        note("weights", done, len(weights))
        data = weight_bytes(weight, makers[weight.name])
        file = backing(data)
        if after is not None:
            after()
        for at in range(0, weight.bytes, PIECE):
            part = data[at : at + PIECE]
            block[weight.offset + at : weight.offset + at + len(part)] = part
            if file is not None:
                let_go((file,))
            if after is not None:
                after()
    give_back()  # the last weight that was made
    if weights:
        note("weights", len(weights), len(weights))
    block.flags.writeable = False
    return Weights(block)
