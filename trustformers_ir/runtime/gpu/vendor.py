"""The driver of a real GPU, through the library of its maker: CUDA's driver interface, or HIP, which mirrors it.

The context is the device's primary one, which torch uses too, so memory and streams can be exchanged with it; it is made current for the time
of a call and what was current before comes back. A child of ``fork`` cannot use a GPU of its parent and is told so.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from trustformers_ir.ir.device import DeviceCode, DeviceKernel
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime.gpu.driver import Function, Work, failed
from trustformers_ir.runtime.gpu.tables import SIGNATURES, Table

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_UNASKED = 48 << 10  # bytes that a program can have without being asked for (CUDA C++ Programming Guide, section on shared memory)
_NOT_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the stream 0
_PROPERTIES_BYTES = 1 << 14  # more than hipDeviceProp_t has in any version; its fields move from one to the next


class NoDevice(Exception):
    """There is no GPU of that maker here; the message says why, to go on after a semicolon."""


class Library:
    """The functions of a maker's library, by what they do. What they return is checked."""

    def __init__(self, table: Table, path: str | None = None) -> None:
        self.table = table
        library = next((found for name in ([path] if path else table.libraries) if (found := _opened(name)) is not None), None)
        if library is None:
            raise NoDevice(f"this machine has no driver of {table.maker} ({table.libraries[0]} cannot be loaded)")
        self._functions: dict[str, Any] = {}
        for role, names in table.names.items():
            found = next((getattr(library, name) for name in names if hasattr(library, name)), None)
            if found is None:
                raise NoDevice(f"the driver of {table.maker} is too old: it has no {names[-1]}")
            found.argtypes, found.restype = SIGNATURES[role], ctypes.c_char_p if role == "hip_error" else ctypes.c_int
            self._functions[role] = found

    def __call__(self, role: str, *arguments: Any) -> None:
        """``OUT_OF_MEMORY`` or ``DEVICE_FAILED`` unless it gives 0."""
        status = self._functions[role](*arguments)
        if status:
            if status == self.table.out_of_memory:
                message = f"the GPU has no memory left: {self.table.names[role][0]} says {self.told(status)}"
                raise CompilerError.of(Code.OUT_OF_MEMORY, message, help="give smaller inputs, or free what else uses the GPU")
            raise failed(self.table.names[role][0], self.told(status))

    def asked(self, role: str, *arguments: Any, kind: Any = ctypes.c_void_p) -> Any:
        """What a function writes through its first argument."""
        out = kind()
        self(role, ctypes.addressof(out), *arguments)
        return out.value

    def told(self, status: int) -> str:
        """An error in the driver's words."""
        if "hip_error" in self._functions:
            text = self._functions["hip_error"](status)
        else:
            out = ctypes.c_char_p()
            text = out.value if self._functions["cuda_error"](status, ctypes.addressof(out)) == 0 else None
        return f"{text.decode(errors='replace') if text else 'an unknown error'} (error {status})"


def _opened(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


class VendorDriver:
    """The driver (``driver.py``) of device 0; ``CUDA_VISIBLE_DEVICES`` and its like choose which one that is. ``NoDevice`` where there is none."""

    torch_device = "cuda"  # torch for AMD calls it that, too

    def __init__(self, table: Table, path: str | None = None) -> None:
        self.table = table
        self._call = call = Library(table, path)
        self._process = os.getpid()
        try:
            call("init", 0)
            count = call.asked("device_count", kind=ctypes.c_int)
        except CompilerError as error:
            raise NoDevice(f"its {table.maker} driver finds no GPU: {error.diagnostics[0].message}") from None
        if not count:
            raise NoDevice(f"its {table.maker} driver finds no GPU")
        self.ordinal = 0
        self._device = call.asked("device", self.ordinal, kind=ctypes.c_int)
        name = ctypes.create_string_buffer(256)
        call("device_name", ctypes.addressof(name), len(name), self._device)
        self.title = name.value.decode(errors="replace")
        self.chip = self._chip()
        self._context = call.asked("context_retain", self._device) if "context_retain" in table.names else None
        self._modules: list[int] = []

    def _chip(self) -> str:
        call = self._call
        if self.table.kind == "cuda":
            major, minor = (call.asked("attribute", a, self._device, kind=ctypes.c_int) for a in (_MAJOR, _MINOR))
            return f"cuda:sm_{major}{minor}"
        told = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        call("properties", ctypes.addressof(told), self._device)
        found = re.search(rb"gfx[0-9a-f]+", told.raw)
        return f"rocm:{found[0].decode() if found else 'unknown'}"

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise failed("a call in a forked child", "a GPU cannot be used by children of the process that opened it; start them with spawn")
        call = self._call
        if self._context is not None:
            call("context_push", self._context)
            try:
                yield
            finally:
                call.asked("context_pop")
            return
        before = call.asked("device_get", kind=ctypes.c_int)
        call("device_set", self.ordinal)
        try:
            yield
        finally:
            call("device_set", before)

    # -- code ----------------------------------------------------------------------------------------------------------

    def kernel(self, kernel: DeviceKernel, code: DeviceCode | None, binary: bytes, text: str, wide: bool) -> Function:
        if code is None:
            message = f"there is no machine code of kernel '{kernel.name}', only its text"
            raise CompilerError.of(Code.ARTIFACT_CODE, message, help="compile the model for this GPU")
        call = self._call
        try:
            module = call.asked("module_load", binary)
            self._modules.append(module)
            handle = call.asked("function", module, kernel.symbol.encode())
            if code.shared > _SHARED_UNASKED and "function_attribute" in self.table.names:
                call("function_attribute", handle, _DYNAMIC_SHARED, code.shared)
        except CompilerError as error:
            if Code.OUT_OF_MEMORY in error.codes:
                raise
            message = f"the machine code of kernel '{kernel.name}' cannot be used: {error.diagnostics[0].message}"
            raise CompilerError.of(Code.ARTIFACT_CODE, message, help="compile the model again") from None
        return Function(handle, kernel, code, code.warps * self.table.warp)

    def unload(self) -> None:
        while self._modules:
            self._call("module_unload", self._modules.pop())

    # -- memory --------------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        return int(self._call.asked("allocate", size))

    def free(self, address: int) -> None:
        self._call("free", address)

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("copy_in", to, source, size, stream)

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("copy_out", to, source, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("copy", to, source, size, stream)

    def clear(self, to: int, size: int, stream: int) -> None:
        self._call("clear", to, 0, size, stream)

    # -- streams and launches ------------------------------------------------------------------------------------------

    def stream(self) -> int:
        return int(self._call.asked("stream_create", _NOT_BLOCKING))

    def end_stream(self, stream: int) -> None:
        self._call("stream_destroy", stream)

    def wait(self, stream: int) -> None:
        self._call("stream_wait", stream)

    def launch(self, work: Work, stream: int) -> None:
        f = work.function
        assert f.code is not None
        self._call("launch", f.handle, work.programs, 1, 1, f.threads, 1, 1, f.code.shared, stream, ctypes.addressof(work.pointers), None)

    def timed(self, works: Sequence[Work], stream: int) -> list[float]:
        """By events between the launches, which the GPU stamps when it gets to them."""
        call = self._call
        events: list[int] = []
        try:
            for _ in range(len(works) + 1):
                events.append(call.asked("event_create", 0))
            call("event_record", events[0], stream)
            for work, event in zip(works, events[1:], strict=True):
                self.launch(work, stream)
                call("event_record", event, stream)
            self.wait(stream)
            spans = itertools.pairwise(events)
            return [call.asked("event_seconds", a, b, kind=ctypes.c_float) * 1e-3 for a, b in spans]  # the driver counts in milliseconds
        finally:
            for event in events:
                call("event_destroy", event)

    def graph(self, works: Sequence[Work]) -> _Graph:
        return _Graph(self._call, works)

    # -- torch ---------------------------------------------------------------------------------------------------------

    def owns(self, tensor: Any) -> bool:
        return bool(tensor.device.type == self.torch_device and tensor.device.index == self.ordinal)

    def torch_stream(self) -> int:
        return int(sys.modules["torch"].cuda.current_stream(self.ordinal).cuda_stream)


class _Graph:
    """A chain of kernel nodes."""

    def __init__(self, call: Library, works: Sequence[Work]) -> None:
        self._call = call
        self._nodes: list[int] = []
        self._exec: int | None = None
        self._graph: int | None = call.asked("graph_create", 0)
        try:
            for work in works:
                before = (ctypes.c_void_p * 1)(*self._nodes[-1:])
                node, parameters = ctypes.c_void_p(), self._parameters(work)
                count = min(len(self._nodes), 1)
                call("graph_add", ctypes.addressof(node), self._graph, ctypes.addressof(before), count, ctypes.addressof(parameters))
                assert node.value is not None
                self._nodes.append(node.value)
            self._exec = call.asked("graph_instantiate", self._graph, 0)
        except BaseException:
            self.close()
            raise

    def _parameters(self, work: Work) -> ctypes.Structure:
        f = work.function
        assert f.code is not None
        triple = ctypes.c_uint * 3
        return self._call.table.node(
            func=f.handle,
            grid=triple(work.programs, 1, 1),
            block=triple(f.threads, 1, 1),
            shared=f.code.shared,
            params=ctypes.addressof(work.pointers),
        )

    def update(self, number: int, work: Work) -> None:
        parameters = self._parameters(work)
        self._call("graph_update", self._exec, self._nodes[number], ctypes.addressof(parameters))

    def launch(self, stream: int) -> None:
        self._call("graph_launch", self._exec, stream)

    def close(self) -> None:
        if self._exec is not None:
            self._call("graph_exec_destroy", self._exec)
        if self._graph is not None:
            self._call("graph_destroy", self._graph)
        self._exec = self._graph = None
