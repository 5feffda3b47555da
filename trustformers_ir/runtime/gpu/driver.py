"""What a GPU has to do for the runtime: a small protocol, implemented for CUDA and HIP by ``vendor.py`` and for Triton's interpreter by
``interpreter.py``.

Addresses and streams are numbers. Work on one stream runs in order; ``wait`` waits for all of it. Whoever calls anything but ``kernel`` is inside
``with driver.current()``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from trustformers_ir.ir.device import DeviceCode, DeviceKernel
from trustformers_ir.ir.diagnostics import Code, CompilerError


@dataclass(frozen=True)
class Function:
    """A kernel that is loaded: ``handle`` is the driver's own. ``code`` is None for the interpreter."""

    handle: Any
    kernel: DeviceKernel
    code: DeviceCode | None
    threads: int


class Work:
    """A launch with its arguments: ``values`` has a word of 8 bytes for each, ``pointers`` the place of each word, as drivers take them.

    A dim of 32 bits is the lower half of its word: machines with GPUs are little-endian.
    """

    __slots__ = ("function", "pointers", "programs", "values")

    def __init__(self, function: Function, programs: int, values: Sequence[int]) -> None:
        self.function = function
        self.programs = programs
        self.values: Any = (ctypes.c_uint64 * max(len(values), 1))(*values)
        base = ctypes.addressof(self.values)
        self.pointers: Any = (ctypes.c_void_p * max(len(values), 1))(*[base + 8 * n for n in range(len(values))])


class Graph(Protocol):
    """Launches that the driver keeps and repeats, one after the other."""

    def update(self, number: int, work: Work) -> None:
        """Other arguments for one of the launches, from the next ``launch`` on."""

    def launch(self, stream: int) -> None: ...

    def close(self) -> None: ...


class Driver(Protocol):
    """One GPU. Methods raise ``OUT_OF_MEMORY`` or ``DEVICE_FAILED``."""

    chip: str  # the name of its target: cuda:sm_90
    title: str  # what its maker calls it
    torch_device: str  # torch's name of the devices whose memory it shares

    def current(self) -> AbstractContextManager[None]: ...

    def kernel(self, kernel: DeviceKernel, code: DeviceCode | None, binary: bytes, text: str, wide: bool) -> Function:
        """Loads a kernel, of which there is ``binary`` code or the text of the file with it; ``wide``: the one with indices of 64 bits."""
        ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        """From the memory of the CPU, which may change as soon as this returns."""

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        """To the memory of the CPU, where it is after ``wait``."""

    def copy(self, to: int, source: int, size: int, stream: int) -> None: ...

    def clear(self, to: int, size: int, stream: int) -> None: ...

    def stream(self) -> int: ...

    def end_stream(self, stream: int) -> None: ...

    def wait(self, stream: int) -> None: ...

    def launch(self, work: Work, stream: int) -> None: ...

    def timed(self, works: Sequence[Work], stream: int) -> list[float]:
        """Launches one after the other and waits; the seconds that each took."""
        ...

    def graph(self, works: Sequence[Work]) -> Graph: ...

    def owns(self, tensor: Any) -> bool:
        """Whether a tensor of torch lies in the memory of this GPU."""

    def torch_stream(self) -> int:
        """The stream on which torch works in this thread."""

    def unload(self) -> None:
        """Gives back the code of all kernels."""


def failed(what: str, why: str) -> CompilerError:
    """The error of a call of the driver."""
    return CompilerError.of(Code.DEVICE_FAILED, f"{what}: {why}", help="if it comes again: TFIR_GPU=interpreter runs the same plan without a GPU")
