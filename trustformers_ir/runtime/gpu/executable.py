"""A compiled module that a GPU executes, by the plan in its code section (``code.py``).

A call binds its inputs as on CPUs (``entry_call.py``), turns the plan into launches for its shapes (``steps.py``), once for each combination,
and puts them on a stream (``lane.py``), from the second call on as one graph.

* Arrays of the CPU are copied to the GPU and results back, on a stream of our own; the call returns when they are there. Four such calls of
  different threads run at once.
* Tensors of torch that lie on the GPU are read where they are, results are new tensors there, and everything happens on the stream on which torch
  works, whose allocator lends the memory. Such a call waits for the GPU only to look whether an index was out of range, which models with
  embeddings check; with ``wait_for_checks = False`` it does not, and :meth:`GpuExecutable.synchronize` reports what went wrong.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.abi import CompiledModule, Entry, Manifest, Port
from trustformers_ir.ir.device import POINTER_ALIGNMENT, DeviceModule
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.runtime import memory
from trustformers_ir.runtime.arguments import Array, address_of, is_tensor
from trustformers_ir.runtime.entry_call import Bound, EntryCall
from trustformers_ir.runtime.gpu import code
from trustformers_ir.runtime.gpu.devices import open_driver
from trustformers_ir.runtime.gpu.driver import Driver, Function
from trustformers_ir.runtime.gpu.lane import Block, DriverMemory, Lane, Lanes
from trustformers_ir.runtime.gpu.states import DeviceArray, DeviceCaches
from trustformers_ir.runtime.gpu.steps import Sizes, Steps, steps_of
from trustformers_ir.runtime.profile import Profile
from trustformers_ir.runtime.records import Broken
from trustformers_ir.runtime.runnable import Runnable


class Resident:
    """What of a module lies on the GPU: weights, the kernels that were used, lanes."""

    def __init__(self, driver: Driver, compiled: CompiledModule, device: DeviceModule, weights: Block | None) -> None:
        self.driver, self.compiled, self.device = driver, compiled, device
        self.lanes = Lanes(driver)
        self._functions: dict[tuple[int, bool], Function] = {}
        self._lock = threading.Lock()
        self._users = 0
        self._left = threading.Condition()
        self._own = weights is None
        if weights is not None:
            self.weights = weights
            return
        with driver.current():
            self.weights = _uploaded(driver, compiled)

    def function(self, number: int, wide: bool) -> Function:
        """A kernel, loaded when it is first used."""
        with self._lock:
            found = self._functions.get((number, wide))
            if found is None:
                kernel = self.device.kernels[number]
                binary = kernel.wide if wide else kernel.narrow
                machine = b"" if binary is None else code.code_of(self.compiled.code, binary)
                found = self._functions[number, wide] = self.driver.kernel(kernel, binary, machine, self.device.text, wide)
            return found

    def enter(self) -> None:
        """Somebody uses it, until ``leave``."""
        with self._left:
            self._users += 1

    def leave(self) -> None:
        with self._left:
            self._users -= 1
            self._left.notify_all()

    def close(self) -> None:
        """Gives everything back when the last user has left."""
        with self._left:
            self._left.wait_for(lambda: not self._users)
        with self.driver.current():
            self.lanes.close()
            if self._own:
                self.weights.release()
            self.driver.unload()


def _uploaded(driver: Driver, compiled: CompiledModule) -> Block:
    """The weights section on the GPU; one weight at a time is held besides."""
    manifest = compiled.manifest
    block = DriverMemory(driver).take(memory.section_bytes(manifest.weights))
    stream = driver.stream()
    try:
        for w in manifest.weights:
            data = memory.weight_bytes(w, compiled.weights[w.name])
            if data.size:
                driver.copy_in(block.address + w.offset, data.ctypes.data, data.size, stream)
                driver.wait(stream)
    except BaseException:
        block.release()
        raise
    finally:
        driver.end_stream(stream)
    return block


class GpuExecutable(Runnable):
    """A compiled module on a GPU. Any number of Python threads may call, and calls on different streams run at once."""

    def __init__(
        self,
        compiled: CompiledModule,
        *,
        parse: Callable[..., Any] | None = None,
        family: Sequence[CompiledModule] = (),
        driver: Driver | None = None,
        where: Where | None = None,
        weights: Block | None = None,
    ) -> None:
        """``driver``: the GPU; None finds the one that the code is for when the first call needs it. ``where``: the file of the code, for errors;
        ``ARTIFACT_CODE`` where the code is broken. ``weights``: those of another executable of the same module, which is closed later. The rest as
        ``Runnable`` has it."""
        self.device = device_module(compiled.code, compiled.manifest, where)
        self.wait_for_checks = True
        self.threads = 1
        super().__init__(compiled, parse, family)
        self._driver = driver
        self._weights = weights
        self._resident: Resident | None = None
        self._preparing = threading.Lock()
        self._inside: set[int] = set()  # the threads that call or close this executable

    def _callable(self, entry: Entry) -> _GpuCall:
        return _GpuCall(self, entry)

    def _told(self) -> Mapping[str, object]:
        kernels = self.device.kernels
        rows = {
            k.name: {"warps": k.narrow.warps, "shared": k.narrow.shared, "registers": k.narrow.registers, "spilled": k.narrow.spilled}
            for k in kernels
            if k.narrow is not None
        }
        return {"device": None if self._driver is None else self._driver.title, "device_kernels": rows}

    def __repr__(self) -> str:
        ports = ", ".join(f"{p.name}: {p.type}" for p in self.inputs)
        return f"<GpuExecutable {self.manifest.name}({ports}) for {self.manifest.target.name}>"

    @property
    def driver(self) -> Driver:
        """The GPU. ``ARTIFACT_TARGET`` where there is none for the code."""
        if self._driver is None:
            self._driver = open_driver(self.manifest.target)
        return self._driver

    def prepare(self) -> Resident:
        """Uploads the weights, unless that is done. ``ARTIFACT_TARGET`` when there is no such GPU."""
        with self.used() as resident:
            return resident

    @property
    def weights(self) -> Block:
        """The weights section on the GPU, uploaded now unless it is there. Builds of one module can share it."""
        return self.prepare().weights

    @contextlib.contextmanager
    def used(self) -> Iterator[Resident]:
        """What lies on the GPU, uploaded now unless it is there, and there at least as long as the context lasts."""
        with self._preparing:
            resident = self._resident
            if resident is None:
                resident = self._resident = Resident(self.driver, self.compiled, self.device, self._weights)
            resident.enter()
        try:
            yield resident
        finally:
            resident.leave()

    def profile(self, /, *inputs: Any, entry: str | None = None, **named: Any) -> Profile:
        """Calls ``entry`` with inputs copied to the GPU, kernel by kernel, and says how long each took there. The whole is longer than a call, which
        is one graph and has no pauses between kernels."""
        called = self.called(entry)
        assert isinstance(called, _GpuCall)
        called(inputs, named)  # loads the kernels, and raises what there is to raise
        return called.profile(inputs, named)

    def save(self, path: str | os.PathLike[str], *, embed_weights: bool = False, durable: bool = True) -> None:
        if os.path.splitext(path)[1] in (".so", ".o"):
            message = "shared libraries and object files are of code for CPUs alone"
            raise CompilerError.of(Code.USAGE, message, Where(file=os.fspath(path)), "name it *.tfc")
        super().save(path, embed_weights=embed_weights, durable=durable)

    def synchronize(self) -> None:
        """Waits for all calls, and raises what calls that did not wait found out of range."""
        if self._resident is None:
            return
        driver = self.driver
        problem: CompilerError | None = None
        with self.used() as resident, driver.current():
            for lane in resident.lanes.all():
                with lane.lock:
                    lane.ask_status()
                    driver.wait(lane.stream)
                    site, index = lane.status()
                if site:
                    problem = problem or self._first.out_of_range(site, index, {})
        if problem is not None:
            raise problem

    def caches(self, ports: Sequence[Port]) -> DeviceCaches:
        return DeviceCaches(self, ports)

    @contextlib.contextmanager
    def lane(self) -> Iterator[Lane]:
        """A stream of our own, for who copies on the GPU."""
        with self.used() as resident, resident.driver.current(), _borrowed(resident.lanes, resident.lanes.own()) as lane:
            yield lane

    def close(self) -> None:
        """Gives back what lies on the GPU. The next call uploads the weights again."""
        with self.entered():
            with self._preparing:
                resident, self._resident = self._resident, None
            if resident is not None:
                resident.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Notes that this thread is inside; ``CALL_IN_CALL`` when it is already, in what it interrupts: it would wait for itself."""
        me = threading.get_ident()
        if me in self._inside:
            raise CompilerError.of(Code.CALL_IN_CALL, f"'{self.manifest.name}' is called by what interrupts a call of it on the same thread")
        self._inside.add(me)
        try:
            yield
        finally:
            self._inside.discard(me)


def device_module(section: bytes, manifest: Manifest, where: Where | None = None) -> DeviceModule:
    """The plan and kernels in a code section. ``ARTIFACT_CODE``."""
    try:
        return code.decode(section, manifest)
    except Broken as error:
        place = where or Where()
        shown = Where(file=place.file, offset=None if place.offset is None else place.offset + error.offset)
        raise CompilerError.of(Code.ARTIFACT_CODE, f"the code cannot be used: {error}", shown, "compile the model again") from None


@dataclass(frozen=True)
class _Plan:
    """What follows from the shapes of a call."""

    bound: Bound
    steps: Steps
    sizes: Sizes


class _GpuCall(EntryCall[_Plan]):
    """One entry of an executable."""

    def __init__(self, executable: GpuExecutable, entry: Entry) -> None:
        super().__init__(executable.manifest, entry)
        self.executable = weakref.proxy(executable)
        self.function = next(f for f in executable.device.functions if f.name == entry.name)

    @functools.cached_property
    def devices(self) -> tuple[str, ...]:
        return ("cpu", self.executable.driver.torch_device)

    def __call__(self, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        exe = self.executable
        with exe.entered(), exe.used() as resident:
            plan, arrays = self.prepared(given, named)
            started = time.perf_counter_ns()
            if any(is_tensor(a) and resident.driver.owns(a) for a in arrays):
                results, status = self.on_torch(resident, plan, arrays)
            else:
                results, status = self.on_host(resident, plan, arrays)
            exe._lasted[self.entry.name] = time.perf_counter_ns() - started
        if status[0]:
            raise self.out_of_range(*status, plan.bound.env)
        return results[0] if len(results) == 1 else tuple(results)

    def profile(self, given: tuple[Any, ...], named: dict[str, Any]) -> Profile:
        exe = self.executable
        with exe.entered(), exe.used() as resident:
            driver = resident.driver
            plan, arrays = self.prepared(given, named)
            arrays = [a.cpu() if is_tensor(a) else a for a in arrays]
            with driver.current(), _borrowed(resident.lanes, resident.lanes.own()) as lane:
                inputs, outputs = self.buffers(driver, lane, plan, arrays)
                seconds = lane.timed(plan.steps, resident.weights.address, inputs, outputs, resident.function)
        times = np.zeros((1, len(self.entry.kernels), 3))
        took = dict(zip((s.launch for s in plan.steps.steps), seconds, strict=True))
        end = 0.0
        for n in range(len(self.entry.kernels)):
            begin, end = end, end + took.get(n, 0.0)
            times[0, n] = begin, begin, end
        return Profile(self.entry, times, np.zeros(times.shape[:2], np.int64), end, dict(plan.bound.env))

    def plan(self, arrays: Sequence[Array]) -> _Plan:
        bound = self.bound(arrays, (self.entry.arena_bytes,))
        inputs = tuple(memory.bytes_of(a.shape, p.type.dtype) for a, p in zip(arrays, self.entry.inputs, strict=True))
        sizes = Sizes(inputs, tuple(memory.bytes_of(shape, dtype) for shape, dtype in bound.results))
        steps = steps_of(self.function, self.executable.device.kernels, self.manifest.weights, self.entry, bound.env, sizes)
        return _Plan(bound, steps, sizes)

    def state(self, x: Any, port: Port) -> Any:
        if isinstance(x, DeviceArray):
            return x
        if is_tensor(x) and self.executable.driver.owns(x) and x.data_ptr() % POINTER_ALIGNMENT:
            message = f"'{port.name}' is a state, which a call writes in place, and begins at an address that is no multiple of {POINTER_ALIGNMENT}"
            raise CompilerError.of(Code.INPUT_STATE, message, Where(tensor=port.name), "give a tensor of its own: x.clone()")
        return super().state(x, port)

    def fixed(self, arrays: Sequence[Any]) -> tuple[list[Array], Callable[[], None]]:
        exe = self.executable
        plan, known = self.prepared(tuple(arrays), {})
        results = self.host_outputs(plan.bound)

        def call() -> None:
            with exe.entered(), exe.used() as resident:
                _, status = self.on_host(resident, plan, known, results)
            if status[0]:
                raise self.out_of_range(*status, plan.bound.env)

        return results, call

    # -- where arrays are --------------------------------------------------------------------------------------------

    def on_host(
        self, resident: Resident, plan: _Plan, arrays: Sequence[Array], known: list[Array] | None = None
    ) -> tuple[list[Array], tuple[int, int]]:
        """Results as arrays of the CPU, in those that are ``known`` if there are any. States that are arrays of the CPU are copied there and back."""
        driver = resident.driver
        if known is None:
            self.check_outputs(plan.bound)
        results = self.host_outputs(plan.bound) if known is None else known
        with driver.current(), _borrowed(resident.lanes, resident.lanes.own()) as lane:
            inputs, outputs = self.buffers(driver, lane, plan, arrays)
            lane.run(plan.steps, resident.weights.address, inputs, outputs, resident.function)
            if plan.steps.checks:
                lane.ask_status()
            for result, source, size in zip(results, outputs, plan.sizes.outputs, strict=True):
                if size:
                    driver.copy_out(address_of(result), source, size, lane.stream)
            for n in range(self.first_state, len(arrays)):
                if not isinstance(arrays[n], DeviceArray) and plan.sizes.inputs[n]:
                    driver.copy_out(address_of(arrays[n]), inputs[n], plan.sizes.inputs[n], lane.stream)
            driver.wait(lane.stream)
            return results, lane.status() if plan.steps.checks else (0, 0)

    def on_torch(self, resident: Resident, plan: _Plan, arrays: Sequence[Array]) -> tuple[list[Array], tuple[int, int]]:
        """Results as tensors on the GPU, in the order of the stream on which torch works."""
        driver = resident.driver
        device = next(a.device for a in arrays if is_tensor(a) and driver.owns(a))
        for a, port in list(zip(arrays, self.entry.inputs, strict=True))[self.first_state :]:
            if not isinstance(a, DeviceArray) and not (is_tensor(a) and driver.owns(a)):
                message = f"'{port.name}' is a state in the memory of the CPU, and other inputs lie on the GPU"
                raise CompilerError.of(Code.INPUT_STATE, message, Where(tensor=port.name), "keep states there too: torch.zeros(…, device='cuda')")
        wait = plan.steps.checks and self.executable.wait_for_checks
        with driver.current(), _borrowed(resident.lanes, resident.lanes.of_torch(driver.torch_stream(), device)) as lane:
            inputs = [
                self.tensor_place(driver, lane, n, a, size) if is_tensor(a) and driver.owns(a) else self.staged(driver, lane, n, a, size)
                for n, (a, size) in enumerate(zip(arrays, plan.sizes.inputs, strict=True))
            ]
            results = self.device_outputs(plan.bound, device)
            lane.run(plan.steps, resident.weights.address, inputs, [t.data_ptr() for t in results], resident.function)
            if wait:
                lane.ask_status()
                driver.wait(lane.stream)
            return results, lane.status() if wait else (0, 0)

    def buffers(self, driver: Driver, lane: Lane, plan: _Plan, arrays: Sequence[Array]) -> tuple[list[int], list[int]]:
        """Buffers of the lane with the arrays, which are of the CPU, and for the outputs."""
        inputs = [self.staged(driver, lane, n, a, size) for n, (a, size) in enumerate(zip(arrays, plan.sizes.inputs, strict=True))]
        return inputs, [lane.buffer("output", n, size) for n, size in enumerate(plan.sizes.outputs)]

    def staged(self, driver: Driver, lane: Lane, number: int, array: Array, size: int) -> int:
        """An array of the CPU, copied into a buffer of the lane; one that lies on the GPU stays where it is."""
        if isinstance(array, DeviceArray):
            return array.address
        place = lane.buffer("input", number, size)
        if size:
            driver.copy_in(place, address_of(array), size, lane.stream)
        return place

    def tensor_place(self, driver: Driver, lane: Lane, number: int, tensor: Any, size: int) -> int:
        """Where a tensor on the GPU lies; where a copy lies, if it begins at an address that kernels do not take."""
        address = int(tensor.data_ptr())
        if address % POINTER_ALIGNMENT == 0:
            return address
        place = lane.buffer("input", number, size)
        if size:
            driver.copy(place, address, size, lane.stream)
        return place

    def device_outputs(self, bound: Bound, device: Any) -> list[Array]:
        """Fresh tensors on the GPU. ``OUT_OF_MEMORY``."""
        torch = sys.modules["torch"]
        try:
            return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in bound.arrays]
        except (MemoryError, RuntimeError):
            raise self.no_outputs(bound) from None


@contextlib.contextmanager
def _borrowed(lanes: Lanes, lane: Lane) -> Iterator[Lane]:
    try:
        yield lane
    finally:
        lanes.give_back(lane)
