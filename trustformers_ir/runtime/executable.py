"""A compiled module that CPUs execute.

``Executable(compiled)`` costs nothing; the object code is linked and the weights are laid out by ``prepare()`` or the first call. A call
checks its inputs, binds the dim symbols, and makes one native call on all workers. What follows from the shapes of the inputs (dims, sizes,
the call structure) is computed once per combination of shapes and kept.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.abi import ABI_VERSION, POOL_SYMBOLS, CompiledModule, Entry
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError, Where
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.runtime import memory
from trustformers_ir.runtime.arguments import Array, address_of
from trustformers_ir.runtime.entry_call import Bound, EntryCall
from trustformers_ir.runtime.native import link
from trustformers_ir.runtime.prediction import known_rates, predict
from trustformers_ir.runtime.profile import Profile
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.runtime.targets import check_target
from trustformers_ir.runtime.workers import Workers, survive_fork, thread_count

ALONE_BELOW = 100_000  # flops, and bytes: so little work is done by the calling thread before another one would be awake


class Executable(Runnable):
    """A compiled module on the CPUs of this machine.

    Any number of Python threads may call; calls are done one after the other, each on all workers. A signal handler or a ``__del__`` that calls
    the executable whose call it interrupts gets ``CALL_IN_CALL``: it would wait for itself, and there is one arena.
    """

    def __init__(
        self,
        compiled: CompiledModule,
        threads: int | None = None,
        *,
        parse: Callable[..., Any] | None = None,
        weights: memory.Weights | None = None,
        family: Sequence[CompiledModule] = (),
    ) -> None:
        """``threads``: None takes ``TFIR_THREADS`` or the CPUs of this process. ``weights``: the weights section where it is in memory already;
        else it is made from ``compiled.weights``. The rest as ``Runnable`` has it."""
        self.threads = thread_count(threads)
        super().__init__(compiled, parse, family)
        self._weights = weights
        self._workers: Workers | None = None
        self._preparing = threading.Lock()
        self._inside: set[int] = set()  # the threads that prepare, run or close this executable, or wait for their turn to
        self._arena = memory.Growing("the arena")
        self._scratch = memory.Growing("the scratch space")
        self._status = (ctypes.c_int64 * 2)()
        self._addresses: dict[str, int] = {}
        survive_fork(self)

    def _callable(self, entry: Entry) -> _Callable:
        return _Callable(self, entry)

    def _told(self) -> Mapping[str, object]:
        return {"threads": self.threads}

    def _predicted(self, entry: Entry, dims: Mapping[str, int]) -> tuple[Sequence[Mapping[str, object]], float] | None:
        rates = known_rates(self.threads)
        if rates is None:
            return None
        roofs = predict(entry, dims, rates)
        return [{"predicted_us": r.seconds * 1e6, "bound": r.bound} for r in roofs], sum(r.seconds for r in roofs) * 1e3

    def __repr__(self) -> str:
        ports = ", ".join(f"{p.name}: {p.type}" for p in self.inputs)
        return f"<Executable {self.manifest.name}({ports}) for {self.manifest.target.name}, {self.threads} threads>"

    def prepare(self) -> Workers:
        """Links the code and lays out the weights, unless that is done. ``ARTIFACT_TARGET`` when the code is for another machine."""
        if self._workers is not None:
            return self._workers
        me = threading.get_ident()
        if me in self._inside:
            raise self._inside_already()
        try:
            self._inside.add(me)
            return self._prepared()
        finally:
            self._inside.discard(me)

    def _inside_already(self) -> CompilerError:
        message = f"'{self.manifest.name}' is called by what interrupts a call of it on the same thread"
        return CompilerError.of(Code.CALL_IN_CALL, message)

    def _prepared(self) -> Workers:
        with self._preparing:
            if self._workers is None:
                m = self.manifest
                if m.abi != ABI_VERSION:
                    message = f"the code follows version {m.abi} of the calling convention; this runtime has version {ABI_VERSION}"
                    raise CompilerError.of(Code.ARTIFACT_VERSION, message, help="compile the model again")
                check_target(m.target)
                linked = link([self.compiled.code], [*POOL_SYMBOLS, *dict.fromkeys(e.symbol for e in m.entries)])
                self._addresses = {e.name: linked.address(e.symbol) for e in m.entries}
                if self._weights is None:
                    self._weights = memory.materialise(m.weights, self.compiled.weights)
                self._workers = Workers(linked, self.threads)
            return self._workers

    def save(self, path: str | os.PathLike[str], *, embed_weights: bool = False, durable: bool = True) -> None:
        """Writes the module, by the end of the name: ``*.so``, a shared library with its C header (``runtime/library.py``; ``embed_weights``
        puts the weights into it instead of into a file beside it); ``*.o``, the object code alone; anything else is an artifact, which
        ``runtime.artifact.load`` reads back. Files are written whole or not at all; ``durable`` waits for the disk to have an artifact."""
        kind = os.path.splitext(path)[1]
        if embed_weights and kind != ".so":
            raise CompilerError.of(Code.USAGE, "weights are embedded in shared libraries alone", Where(file=os.fspath(path)), "name it *.so")
        if kind == ".so":
            from trustformers_ir.runtime import library

            library.write(self.family, path, self._makers(), embed_weights, ALONE_BELOW)
        elif kind == ".o":
            if len(self.family) > 1:
                message = f"an object file holds the code of one target, not of {', '.join(self.targets)}"
                raise CompilerError.of(Code.USAGE, message, Where(file=os.fspath(path)), "choose one target, or write a .so or a .tfc file")
            with atomic_output(path) as stream:
                stream.write(self.compiled.code)
        else:
            super().save(path, durable=durable)

    def _weight_makers(self) -> Mapping[str, Callable[[], np.ndarray]]:
        block = self._weights  # has those of the code that is executed
        return {w.name: functools.partial(block.array, w) for w in self.manifest.weights} if block is not None else {}

    def weight(self, name: str) -> np.ndarray:
        """A stored weight as the kernels read it, read-only. ``KeyError`` for an unknown name."""
        stored = next((w for w in self.manifest.weights if w.name == name), None)
        if stored is None:
            raise KeyError(name)
        return self.weights.array(stored)

    @property
    def weights(self) -> memory.Weights:
        """The weights section, which is laid out now unless that is done. Builds of one module can share it."""
        self.prepare()
        assert self._weights is not None
        return self._weights

    def close(self) -> None:
        """Ends the worker threads. The next call starts new ones."""
        if self._workers is None:
            return
        me = threading.get_ident()
        if me in self._inside:
            raise self._inside_already()
        try:
            self._inside.add(me)
            self._workers.close()
        finally:
            self._inside.discard(me)

    def after_fork(self) -> None:
        """In a child: of the threads that were inside there is the one that forked."""
        self._preparing = threading.Lock()
        self._inside &= {threading.get_ident()}

    def profile(self, /, *inputs: Any, entry: str | None = None, **named: Any) -> Profile:
        """Calls ``entry`` once, as :meth:`run` does, and says when each worker did what."""
        self.run(*inputs, entry=entry, **named)  # warms up, and raises what there is to raise
        called = self.called(entry)
        assert isinstance(called, _Callable)
        return called.profile(inputs, named)

    def _run(self, entry: Entry, plan: _Plan, inputs: list[int], outputs: list[int], profile: int = 0) -> tuple[int, int, Sequence[int]]:
        """One native call; gives the status words, and the dims where the code computes some."""
        me = threading.get_ident()
        if me in self._inside:
            raise self._inside_already()
        try:  # noted before a lock is taken, forgotten after it is given back: no interruption finds a lock of this thread and not its name
            self._inside.add(me)
            workers = self._workers or self._prepared()
            assert self._weights is not None
            with workers.lock:
                if plan.arena_bytes > self._arena.size:
                    self._arena.grow(plan.arena_bytes)
                if plan.stride * self.threads > self._scratch.size:
                    self._scratch.grow(plan.stride * self.threads)
                plan.inputs[:] = inputs
                plan.outputs[:] = outputs
                plan.call[3:] = [self._weights.address, self._arena.address, self._status_address, profile]
                status = self._status
                status[0] = 0
                started = time.perf_counter_ns()
                workers.run(self._addresses[entry.name], plan.address, self._scratch.address, plan.stride, plan.alone)
                self._lasted[entry.name] = time.perf_counter_ns() - started
                return status[0], status[1], list(plan.dims) if plan.computes else ()
        finally:
            self._inside.discard(me)

    @functools.cached_property
    def _status_address(self) -> int:
        return ctypes.addressof(self._status)


class _Plan:
    """What follows from the shapes of the inputs. ``inputs``, ``outputs`` and ``call`` are filled in for each call, under the workers' lock."""

    def __init__(self, bound: Bound, dims: Sequence[int], counts: tuple[int, int], arena_bytes: int, stride: int) -> None:
        self.bound = bound
        self.arena_bytes = arena_bytes
        self.stride = stride
        self.dims = (ctypes.c_int64 * max(len(dims), 1))(*dims)
        self.inputs: Any = (ctypes.c_int64 * counts[0])()
        self.outputs: Any = (ctypes.c_int64 * counts[1])()
        self.call: Any = (ctypes.c_int64 * 7)(*map(ctypes.addressof, (self.dims, self.inputs, self.outputs)))
        self.address = ctypes.addressof(self.call)
        self.alone = False
        self.computes = False


class _Callable(EntryCall[_Plan]):
    """One entry of an executable."""

    def __init__(self, executable: Executable, entry: Entry) -> None:
        super().__init__(executable.manifest, entry)
        self.executable = weakref.proxy(executable)

    def __call__(self, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        plan, arrays = self.prepared(given, named)
        results = self.host_outputs(plan.bound)
        site, index, dims = self.executable._run(self.entry, plan, list(map(address_of, arrays)), list(map(address_of, results)))
        del arrays  # until here they had to live
        if site:
            raise self.out_of_range(site, index, plan.bound.env)
        if dims:
            results = self.cut(results, plan.bound, dims)
        return results[0] if len(results) == 1 else tuple(results)

    def fixed(self, arrays: Sequence[np.ndarray]) -> tuple[list[Array], Callable[[], None]]:
        plan, ready = self.prepared(tuple(arrays), {})
        if any(a is not b for a, b in zip(arrays, ready, strict=True)):
            raise InternalError.of(Code.INTERNAL, f"an input of a fixed call of '{self.entry.name}' has to be converted")
        if plan.computes:
            message = f"'{self.entry.name}' has outputs whose sizes change from call to call"
            raise CompilerError.of(Code.NOT_BUILT, message, help="call it anew each time")
        results = self.host_outputs(plan.bound)
        inputs, outputs = [*map(address_of, arrays)], [*map(address_of, results)]
        kept = (list(arrays), results)  # live as long as their addresses are used

        def call() -> None:
            site, index, _ = self.executable._run(self.entry, plan, inputs, outputs)
            if site:
                raise self.out_of_range(site, index, plan.bound.env)
            assert kept

        return results, call

    def profile(self, given: tuple[Any, ...], named: dict[str, Any]) -> Profile:
        plan, arrays = self.prepared(given, named)
        results = self.host_outputs(plan.bound)
        workers = 1 if plan.alone else self.executable.threads
        stamps = np.zeros((workers, len(self.entry.kernels), 4), np.int64)
        started = time.perf_counter_ns()
        self.executable._run(self.entry, plan, list(map(address_of, arrays)), list(map(address_of, results)), stamps.ctypes.data)
        elapsed = time.perf_counter_ns() - started
        del arrays, results
        env = dict(zip((name for name, _ in self.manifest.symbols), plan.dims, strict=False))
        return Profile.of(self.entry, stamps, elapsed, env)

    def plan(self, arrays: Sequence[Array]) -> _Plan:
        entry = self.entry
        bound = self.bound(arrays, (entry.arena_bytes, entry.scratch_bytes))
        arena, scratch = bound.sizes
        self.check_outputs(bound)
        memory.check_size(arena, "the arena")
        memory.check_size(scratch, "the scratch space")
        memory.check_size(memory.aligned(scratch) * self.executable.threads, "the scratch space")
        plan = _Plan(bound, bound.dims(self.manifest), (len(arrays), len(bound.results)), arena, memory.aligned(scratch))
        plan.computes = bool(self.computed)
        plan.alone = bool(entry.kernels) and self.is_small(bound.env)
        return plan

    def is_small(self, env: Mapping[str, int]) -> bool:
        """Whether a call is too little work for several workers; known after the first large kernel of a large one. What an artifact says of its
        kernels may be nonsense: then it is not."""
        flops = bytes = 0
        try:
            for kernel in self.entry.kernels:
                flops += evaluate(kernel.flops, env)
                bytes += evaluate(kernel.bytes, env)
                if max(flops, bytes) >= ALONE_BELOW:
                    return False
        except (KeyError, ArithmeticError, ValueError):
            return False
        return True
