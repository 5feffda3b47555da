"""A GPU that is none: plans run as they do on a GPU, through the same arena, streams and graphs, and each kernel through Triton's interpreter on the
memory of the CPU. For debugging and for tests: a kernel takes seconds where a GPU takes microseconds.

For tests it can be ``lazy``: who forgets to wait for a stream then gets what was there before. Fresh memory holds the bytes ``ff``, which are NaN,
and lies between guards that are looked at when it goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.ir import env
from trustformers_ir.ir.device import DeviceCode, DeviceKernel
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime.gpu.corrections import Libdevice, corrected
from trustformers_ir.runtime.gpu.driver import Function, Work, failed
from trustformers_ir.runtime.memory import check_size, no_memory

GUARD, FRESH = 0xA5, 0xFF
GUARD_BYTES = 256
_TYPES = {
    DType.bool: "int1",
    DType.f8e4m3: "uint8",
    DType.f16: "float16",
    DType.bf16: "bfloat16",
    DType.f32: "float32",
    DType.f64: "float64",
}
_one = threading.RLock()  # the interpreter has one place for the number of the program, and is corrected while it runs


class Interpreter:
    """The driver (``driver.py``)."""

    chip = "triton:interpreter"
    title = "Triton's interpreter"
    torch_device = "cpu"

    def __init__(self, lazy: bool = False) -> None:
        """``lazy``: nothing is done when it is asked for, but when its stream is waited for."""
        self.lazy = lazy
        self._blocks: dict[int, np.ndarray] = {}
        self._streams: dict[int, list[Callable[[], object]]] = {0: []}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._torch = threading.local()
        self.launches = 0  # that were done

    def current(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def kernel(self, kernel: DeviceKernel, code: DeviceCode | None, binary: bytes, text: str, wide: bool) -> Function:
        module = _loaded(text)
        function = getattr(module, kernel.name, None)
        if function is None:
            raise CompilerError.of(Code.ARTIFACT_CODE, f"the text has no function '{kernel.name}'", help="compile the model again")
        return Function((function, wide), kernel, code, 0)

    # -- memory --------------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        check_size(size, "the memory of the interpreter")
        try:
            block = np.full(size + 3 * GUARD_BYTES, GUARD, np.uint8)
        except MemoryError:
            raise no_memory(f"{size} bytes, which the system refuses") from None
        address = -(-(block.ctypes.data + GUARD_BYTES) // GUARD_BYTES) * GUARD_BYTES
        begin = address - block.ctypes.data
        block[begin : begin + size] = FRESH
        with self._lock:
            self._blocks[address] = block[: begin + size + GUARD_BYTES]
        return address

    def free(self, address: int) -> None:
        with self._lock:
            block = self._blocks.pop(address)
        begin = address - block.ctypes.data
        if (block[:begin] != GUARD).any() or (block[-GUARD_BYTES:] != GUARD).any():
            raise InternalError.of(Code.INTERNAL, "a kernel wrote beside the memory that it was given")

    @property
    def blocks(self) -> int:
        """How many blocks of memory are lent."""
        return len(self._blocks)

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        kept = ctypes.string_at(source, size)
        self._ask(stream, lambda: ctypes.memmove(to, kept, size))

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        self.copy(to, source, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._ask(stream, lambda: ctypes.memmove(to, source, size))

    def clear(self, to: int, size: int, stream: int) -> None:
        self._ask(stream, lambda: ctypes.memset(to, 0, size))

    # -- streams -------------------------------------------------------------------------------------------------------

    def stream(self) -> int:
        with self._lock:
            number = next(self._numbers)
            self._streams[number] = []
        return number

    def end_stream(self, stream: int) -> None:
        self.wait(stream)
        with self._lock:
            del self._streams[stream]

    def _ask(self, stream: int, what: Callable[[], object]) -> None:
        with self._lock:
            if stream not in self._streams:
                raise failed("work for a stream", f"there is no stream {stream}")
            self._streams[stream].append(what)
        if not self.lazy:
            self.wait(stream)

    def wait(self, stream: int) -> None:
        with _one:
            with self._lock:
                todo, self._streams[stream][:] = list(self._streams[stream]), []
            for what in todo:
                what()

    # -- launches ------------------------------------------------------------------------------------------------------

    def launch(self, work: Work, stream: int) -> None:
        values = list(work.values)
        self._ask(stream, lambda: self._run(work.function, work.programs, values))

    def _run(self, function: Function, programs: int, values: Sequence[int]) -> None:
        import triton.language as tl

        (call, wide), kernel = function.handle, function.kernel
        dtypes = [*kernel.buffers, *(m.dtype for m in kernel.memory)]
        arguments: list[Any] = [Pointer(values[n], DType[d]) for n, d in enumerate(dtypes)]
        arguments += values[len(arguments) : len(arguments) + len(kernel.symbols)]
        if kernel.checks:
            arguments.append(Pointer(values[len(arguments)], DType.i64))
        with corrected():
            call[(programs,)](*arguments, tl.int64 if wide else tl.int32)
        self.launches += 1

    def timed(self, works: Sequence[Work], stream: int) -> list[float]:
        seconds = []
        for work in works:
            self.wait(stream)
            started = time.perf_counter()
            self.launch(work, stream)
            self.wait(stream)
            seconds.append(time.perf_counter() - started)
        return seconds

    def graph(self, works: Sequence[Work]) -> _Graph:
        return _Graph(self, works)

    # -- torch: its tensors on the CPU are those of this GPU -----------------------------------------------------------

    def owns(self, tensor: Any) -> bool:
        return bool(tensor.device.type == "cpu")

    def torch_stream(self) -> int:
        return getattr(self._torch, "stream", 0)

    def use_stream(self, stream: int) -> None:
        """The stream on which torch is said to work in this thread."""
        self._torch.stream = stream

    def unload(self) -> None:
        """There is nothing that could be given back."""


class _Graph:
    def __init__(self, driver: Interpreter, works: Sequence[Work]) -> None:
        self.driver = driver
        self.nodes = [(w.function, w.programs, list(w.values)) for w in works]

    def update(self, number: int, work: Work) -> None:
        self.nodes[number] = (work.function, work.programs, list(work.values))

    def launch(self, stream: int) -> None:
        nodes = list(self.nodes)
        for node in nodes:
            self.driver._ask(stream, functools.partial(self.driver._run, *node))

    def close(self) -> None:
        self.nodes = []


# --- what Triton wants -------------------------------------------------------------------------------------------------------------


class Pointer:
    """What the interpreter asks of a tensor, for an address."""

    def __init__(self, address: int, dtype: DType) -> None:
        import triton.language as tl

        self.address = address
        self.dtype = getattr(tl, _TYPES.get(dtype) or dtype.numpy.name)

    def data_ptr(self) -> int:
        return self.address

    def untyped_storage(self) -> Pointer:
        return self

    def cpu(self) -> Pointer:
        return self

    def copy_(self, _: Any) -> None:
        """Memory is shared: there is nothing to copy back."""

    def new_empty(self, *_: Any, **__: Any) -> Pointer:
        return self

    def set_(self, *_: Any) -> Pointer:
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return ()

    def stride(self) -> tuple[int, ...]:
        return ()


@functools.cache
def _folder() -> Any:
    return tempfile.TemporaryDirectory(prefix="tfir-triton-")  # Triton reads functions from files; gone when the process ends


def check_triton() -> None:
    """``MISSING_DEPENDENCY`` without Triton, ``USAGE`` where it was imported to compile."""
    if importlib.util.find_spec("triton") is None:
        raise CompilerError.of(Code.MISSING_DEPENDENCY, "kernels are interpreted by Triton", help="install it: pip install triton")
    if "triton" not in sys.modules:
        env.interpret_triton()
    import triton
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(triton.language.sum, InterpretedFunction):
        raise CompilerError.of(Code.USAGE, "Triton was imported before, to compile and not to interpret", help="start with TRITON_INTERPRET=1")


@functools.cache
def _loaded(text: str) -> Any:
    """A file of Triton functions as a module, to be interpreted."""
    check_triton()
    path = Path(_folder().name) / f"kernels_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    path.write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.libdevice = Libdevice()  # type: ignore[attr-defined]
    return module
