"""A compiled module that can be called.

``Executable(compiled)`` costs nothing; the object code is linked and the weights are laid out by ``prepare()`` or the first call. A call
checks its inputs, binds the dim symbols, and makes one native call on all workers. What follows from the shapes of the inputs (dims, sizes,
the call structure) is computed once per combination of shapes and kept.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.abi import ABI_VERSION, POOL_SYMBOLS, CompiledModule, Entry, Manifest, Port
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, InternalError, Where
from trustformers_ir.ir.dims import Dim, Facts, SymbolFact, evaluate, parse_dim
from trustformers_ir.ir.types import TensorType
from trustformers_ir.runtime import container, memory
from trustformers_ir.runtime.arguments import Array, defaults_of, dtype_of, is_tensor, ready, tensor_dtype
from trustformers_ir.runtime.machine import check_target
from trustformers_ir.runtime.manifest import quantization
from trustformers_ir.runtime.native import link
from trustformers_ir.runtime.prediction import known_rates, predict
from trustformers_ir.runtime.profile import Profile
from trustformers_ir.runtime.workers import Workers, survive_fork, thread_count

MAX_PLANS = 1024  # combinations of shapes remembered per entry
ALONE_BELOW = 100_000  # flops, and bytes: so little work is done by the calling thread before another one would be awake


class Executable:
    """A compiled module: ``exe(*inputs, **named)`` calls its first entry, ``exe.run(..., entry=name)`` any other.

    numpy arrays give numpy arrays; if any input is a torch tensor, torch tensors come out. One output comes as it is, several as a tuple. Any
    number of Python threads may call; calls are done one after the other, each on all workers. A signal handler or a ``__del__`` that calls the
    executable whose call it interrupts gets ``CALL_IN_CALL``: it would wait for itself, and there is one arena.
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
        """``threads``: None takes ``TFIR_THREADS`` or the CPUs of this process. ``parse(text, resolve=…)`` reads the text of the
        graph, for ``module``. ``weights``: the weights section where it is in memory already; else it is made from ``compiled.weights``.
        ``family``: the module for each of its targets, best first; ``compiled`` is the one of them that is executed, ``save`` writes all."""
        self.compiled = compiled
        self.family = tuple(family) or (compiled,)
        self.threads = thread_count(threads)
        self._parse = parse
        self._weights = weights
        self._workers: Workers | None = None
        self._preparing = threading.Lock()
        self._inside: set[int] = set()  # the threads that prepare, run or close this executable, or wait for their turn to
        self._arena = memory.Growing("the arena")
        self._scratch = memory.Growing("the scratch space")
        self._status = (ctypes.c_int64 * 2)()
        self._addresses: dict[str, int] = {}
        self._lasted: dict[str, int] = {}  # nanoseconds of the last native call of each entry
        self._calls = {e.name: _Callable(self, e) for e in compiled.manifest.entries}
        if not self._calls:
            raise InternalError.of(Code.INTERNAL, "a compiled module without an entry")
        self._first = next(iter(self._calls.values()))
        survive_fork(self)

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        return self.compiled.manifest

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs of the first entry."""
        return self._first.entry.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs of the first entry."""
        return self._first.entry.outputs

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the entries."""
        return tuple(self._calls)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets that there is code for, best first; ``manifest.target`` is the one that is executed."""
        return tuple(m.manifest.target.name for m in self.family)

    @property
    def symbols(self) -> dict[str, SymbolFact]:
        """The dim symbols and what their values may be."""
        return dict(self.manifest.symbols)

    @property
    def graph(self) -> str:
        """The optimised graph as text."""
        return self.compiled.graph

    @functools.cached_property
    def module(self) -> Any:
        """The optimised graph with its weights, read from its text. ``USAGE`` where nobody gave ``parse``."""
        if self._parse is None:
            raise CompilerError.of(Code.USAGE, "the runtime cannot read a graph", help="load the artifact with trustformers_ir.load, or see .graph")
        return self._parse(self.graph, resolve=self._resolve)

    def _resolve(self, digest: str, type: TensorType) -> np.ndarray | None:
        """The array of a weight that the graph names by its digest."""
        name = self._names.get(digest)
        stored = next((w for w in self.manifest.weights if w.name == name), None)
        return None if stored is None else memory.typed_view(memory.weight_bytes(stored, self.compiled.weights[stored.name]), type)

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """Names of the weights by their digests."""
        return {self.compiled.digest(w.name): w.name for w in self.manifest.weights}

    def report(self, dims: Mapping[str, int] | None = None, **named: int) -> dict[str, object]:
        """What the compiler did and what a call costs, as plain data: ``report(batch=1, seq=128)``.

        Costs that depend on dims are texts, or numbers when the dims are given. ``arena_bytes`` is then exactly what such a call allocates.
        ``predicted_ms`` (of an entry, and ``predicted_us`` and ``bound`` of its kernels) is there when all dims are given and the rates of this
        machine are known for so many threads: ``tfc bench`` measures them once. How far it may be off: ``docs/performance.md``.
        """
        m = self.manifest
        dims = {**(dims or {}), **named} if dims is not None or named else None
        rates = known_rates(self.threads) if dims is not None and all(name in dims for name, _ in m.symbols) else None

        def shown(dim: Dim) -> object:
            return dim if isinstance(dim, int) else str(dim) if dims is None else _value(dim, dims)

        entries: dict[str, dict[str, object]] = {}
        for e in m.entries:
            kernels: list[dict[str, object]] = [
                {"symbol": k.symbol, "label": k.label, "location": k.location, "flops": shown(k.flops), "bytes": shown(k.bytes)} for k in e.kernels
            ]
            entries[e.name] = {
                "inputs": {p.name: str(p.type) for p in e.inputs},
                "outputs": {p.name: str(p.type) for p in e.outputs},
                "kernels": kernels,
                "flops": shown(self._calls[e.name].costs[0]),
                "barriers": e.barriers,
                "arena_bytes": shown(e.arena_bytes),
                "scratch_bytes_per_thread": shown(e.scratch_bytes),
                "last_call_ms": self._lasted[e.name] / 1e6 if e.name in self._lasted else None,
                "predicted_ms": None,
            }
            if rates is not None and dims is not None:
                roofs = predict(e, dims, rates)
                for row, roof in zip(kernels, roofs, strict=True):
                    row |= {"predicted_us": roof.seconds * 1e6, "bound": roof.bound}
                entries[e.name]["predicted_ms"] = sum(r.seconds for r in roofs) * 1e3
        told = quantization(m.metadata)
        return {
            **self.compiled.report,
            **({} if told is None else {"quantization": told}),
            "name": m.name,
            "compiler": m.compiler,
            "target": m.target.name,
            "targets": list(self.targets),
            "threads": self.threads,
            "weights": len(m.weights),
            "weight_bytes": sum(w.bytes for w in m.weights),
            "code_bytes": len(self.compiled.code),
            "entries": entries,
        }

    def __repr__(self) -> str:
        ports = ", ".join(f"{p.name}: {p.type}" for p in self.inputs)
        return f"<Executable {self.manifest.name}({ports}) for {self.manifest.target.name}, {self.threads} threads>"

    # -- what it does ------------------------------------------------------------------------------------------------

    def __call__(self, /, *inputs: Any, **named: Any) -> Any:
        return self._first(inputs, named)

    def run(self, /, *inputs: Any, entry: str | None = None, **named: Any) -> Any:
        """Calls ``entry`` (None: the first). ``UNKNOWN_ENTRY`` when there is none of that name."""
        if entry is None:
            return self._first(inputs, named)
        if entry not in self._calls:
            message = f"there is no entry '{entry}'"
            raise CompilerError.of(Code.UNKNOWN_ENTRY, message, help=f"the entries are {', '.join(self._calls)}")
        return self._calls[entry](inputs, named)

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
            container.write(self.family, path, self._makers(), durable)

    def _makers(self) -> dict[str, Callable[[], np.ndarray]]:
        """What gives the bytes of each weight of the family: the block in memory has those of the code that is executed."""
        block = self._weights
        makers = {name: make for m in self.family for name, make in m.weights.items()}
        return makers | ({w.name: functools.partial(block.array, w) for w in self.manifest.weights} if block is not None else {})

    def annotate(self, more: Mapping[str, object]) -> None:
        """Adds to what ``report()`` says."""
        self.compiled = dataclasses.replace(self.compiled, report={**self.compiled.report, **more})

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
        called = self._first if entry is None else self._calls[entry]
        return called.profile(inputs, named)

    def _run(self, entry: Entry, plan: _Plan, inputs: list[int], outputs: list[int], profile: int = 0) -> tuple[int, int]:
        """One native call; gives the status words."""
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
                return status[0], status[1]
        finally:
            self._inside.discard(me)

    @functools.cached_property
    def _status_address(self) -> int:
        return ctypes.addressof(self._status)


class _Plan:
    """What follows from the shapes of the inputs. ``inputs``, ``outputs`` and ``call`` are filled in for each call, under the workers' lock."""

    def __init__(self, dims: Sequence[int], counts: tuple[int, int], arena_bytes: int, stride: int) -> None:
        self.arena_bytes = arena_bytes
        self.stride = stride
        self.dims = (ctypes.c_int64 * max(len(dims), 1))(*dims)
        self.inputs: Any = (ctypes.c_int64 * counts[0])()
        self.outputs: Any = (ctypes.c_int64 * counts[1])()
        self.call: Any = (ctypes.c_int64 * 7)(*map(ctypes.addressof, (self.dims, self.inputs, self.outputs)))
        self.address = ctypes.addressof(self.call)
        self.results: tuple[tuple[tuple[int, ...], Any], ...] = ()
        self.tensors = False
        self.alone = False


class _Callable:
    """One entry of an executable."""

    def __init__(self, executable: Executable, entry: Entry) -> None:
        self.executable = weakref.proxy(executable)
        self.entry = entry
        self.facts = Facts(dict(executable.manifest.symbols))
        self.names = {p.name: i for i, p in enumerate(entry.inputs)}
        self.plans: dict[tuple[object, ...], _Plan] = {}

    def __call__(self, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        plan, inputs, arrays = self.prepared(given, named)
        results, outputs = self.allocate(plan)
        site, index = self.executable._run(self.entry, plan, inputs, outputs)
        del arrays  # until here they had to live
        if site:
            raise self.out_of_range(site, index, plan)
        return results[0] if len(results) == 1 else tuple(results)

    def profile(self, given: tuple[Any, ...], named: dict[str, Any]) -> Profile:
        plan, inputs, arrays = self.prepared(given, named)
        results, outputs = self.allocate(plan)
        workers = 1 if plan.alone else self.executable.threads
        stamps = np.zeros((workers, len(self.entry.kernels), 4), np.int64)
        started = time.perf_counter_ns()
        self.executable._run(self.entry, plan, inputs, outputs, stamps.ctypes.data)
        elapsed = time.perf_counter_ns() - started
        del arrays, results
        env = dict(zip((name for name, _ in self.executable.manifest.symbols), plan.dims, strict=False))
        return Profile.of(self.entry, stamps, elapsed, env)

    def prepared(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[_Plan, list[int], list[Array]]:
        """What follows from the shapes, the addresses of the inputs, and the arrays that own them."""
        ports = self.entry.inputs
        if named or len(given) != len(ports):
            given = self.arranged(given, named)
        arrays: list[Array] = []
        key: list[object] = []
        for n, x in enumerate(given):
            if type(x) is not np.ndarray or not x.flags.carray or not x.dtype.isnative:
                x = ready(x, ports[n])
            arrays.append(x)
            key += (x.shape, x.dtype)
        known = tuple(key)
        plan = self.plans.get(known)
        if plan is None:
            plan = self.plan(arrays)
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()
            self.plans[known] = plan
        return plan, [x.ctypes.data if type(x) is np.ndarray else x.data_ptr() for x in arrays], arrays

    @functools.cached_property
    def costs(self) -> tuple[Dim, Dim]:
        """Flops and bytes of one call."""
        kernels = self.entry.kernels
        return sum((k.flops for k in kernels), start=0), sum((k.bytes for k in kernels), start=0)

    def arranged(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """All inputs in the order of the ports. ``INPUT_NAME`` or ``INPUT_COUNT`` when they are not the ones that are taken."""
        ports = self.entry.inputs
        takes = f"'{self.entry.name}' takes {', '.join(f'{p.name}: {p.type}' for p in ports) or 'no inputs'}"
        with Collector() as problems:
            if len(given) > len(ports):
                problems.add(Code.INPUT_COUNT, f"{len(given)} inputs were given, {len(ports)} are taken", help=takes)
            for name in named:
                if name not in self.names:
                    problems.add(Code.INPUT_NAME, f"there is no input '{name}'", Where(tensor=name), takes)
                elif self.names[name] < len(given):
                    problems.add(Code.INPUT_NAME, f"input '{name}' is given twice, by position and by name", Where(tensor=name), takes)
            missing = [p.name for p in ports[len(given) :] if p.name not in named and p.name not in self.defaults]
            if missing:
                problems.add(Code.INPUT_COUNT, f"{len(missing)} of {len(ports)} inputs are missing: {', '.join(missing)}", help=takes)
        found = {p.name: x for p, x in zip(ports, given, strict=False)} | dict(named)
        return tuple(found[p.name] if p.name in found else self.filled(p, found) for p in ports)

    @functools.cached_property
    def defaults(self) -> dict[str, int]:
        """Inputs that may be left out, with the number that then fills them: ``default.<name>`` of the metadata."""
        return defaults_of(self.executable.manifest, self.entry.inputs)

    def filled(self, port: Port, found: Mapping[str, Any]) -> np.ndarray:
        """The default of an input, in the shape that the other inputs give it."""
        others = [(p, np.shape(found[p.name])) for p in self.entry.inputs if p.name in found]
        env = bind_dims([Shaped(p.name, p.type.shape, shape) for p, shape in others if len(shape) == p.type.rank], self.facts)
        try:
            shape = port.type.concrete(env)
        except KeyError as error:
            message = f"input '{port.name}' was left out, and no other input gives the dim {error}"
            raise CompilerError.of(Code.INPUT_COUNT, message, Where(tensor=port.name), "give it") from None
        return np.full(shape, self.defaults[port.name], port.type.dtype.numpy)

    def plan(self, arrays: Sequence[Array]) -> _Plan:
        """Checks the arrays against the ports and computes all that follows from their shapes."""
        entry = self.entry
        with Collector() as problems:
            for port, array in zip(entry.inputs, arrays, strict=True):
                if dtype_of(array) is not port.type.dtype:
                    message = f"input '{port.name}' has the dtype {dtype_of(array) or array.dtype}; {port.type.dtype} is taken"
                    problems.add(Code.INPUT_DTYPE, message, Where(tensor=port.name), f"convert it first; the input is declared as {port.type}")
            shapes = [Shaped(p.name, p.type.shape, tuple(a.shape)) for p, a in zip(entry.inputs, arrays, strict=True)]
            bound = bind_dims(shapes, self.facts)
        try:
            env = {name: fact.low for name, fact in self.facts.symbols.items() if fact.low == fact.high} | bound
            results = [(p.type.concrete(env), p.type.dtype) for p in entry.outputs]
            arena, scratch = evaluate(entry.arena_bytes, env), evaluate(entry.scratch_bytes, env)
            cost = max(evaluate(d, env) for d in self.costs)
        except KeyError as error:
            raise CompilerError.of(Code.INPUT_SHAPE, f"no input determines the dim {error} of '{entry.name}'") from None
        except (ArithmeticError, ValueError):  # a division by a dim that is zero, a number too long to print
            raise CompilerError.of(Code.INPUT_SHAPE, f"the sizes of '{entry.name}' cannot be computed from these shapes") from None
        if any(not 0 <= n < 1 << 62 for n in env.values()) or any(n < 0 for shape, _ in results for n in shape):
            raise CompilerError.of(Code.DIM_RANGE, f"impossible sizes: {', '.join(f'{k} = {v}' for k, v in env.items())}")
        for port, (shape, dtype) in zip(entry.outputs, results, strict=True):
            memory.check_size(math.prod(shape) * dtype.itemsize, f"output '{port.name}'")
        memory.check_size(arena, "the arena")
        memory.check_size(scratch, "the scratch space")
        memory.check_size(memory.aligned(scratch) * self.executable.threads, "the scratch space")
        dims = [env.get(name, fact.low) for name, fact in self.executable.manifest.symbols]
        plan = _Plan(dims, (len(arrays), len(results)), arena, memory.aligned(scratch))
        plan.alone = bool(entry.kernels) and cost < ALONE_BELOW
        plan.tensors = any(map(is_tensor, arrays))
        plan.results = tuple((shape, tensor_dtype(dtype) if plan.tensors else dtype.numpy) for shape, dtype in results)
        return plan

    def allocate(self, plan: _Plan) -> tuple[list[Array], list[int]]:
        """Fresh outputs, not initialised, and their addresses."""
        try:
            if plan.tensors:
                torch = sys.modules["torch"]
                tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in plan.results]
                return tensors, [t.data_ptr() for t in tensors]
            arrays = [np.empty(shape, dtype) for shape, dtype in plan.results]
            return arrays, [a.ctypes.data for a in arrays]
        except (MemoryError, RuntimeError, ValueError):
            sizes = ", ".join(f"{p.name}: {list(shape)}" for p, (shape, _) in zip(self.entry.outputs, plan.results, strict=True))
            raise memory.no_memory(f"the outputs cannot be allocated ({sizes})") from None

    def out_of_range(self, number: int, index: int, plan: _Plan) -> CompilerError:
        """The error that the status word ``number`` stands for."""
        m = self.executable.manifest
        if not 1 <= number <= len(m.sites):
            return CompilerError.of(Code.INDEX_OUT_OF_RANGE, f"an index is out of range: {index}")
        site = m.sites[number - 1]
        env = dict(zip((name for name, _ in m.symbols), plan.dims, strict=False))
        try:
            bound = evaluate(parse_dim(site.bound), env)
            shown = f"{site.bound} = {bound}" if site.bound != str(bound) else site.bound
        except (ValueError, KeyError, ArithmeticError):
            shown = site.bound
        place = re.fullmatch(r"(.+):([0-9]{1,9})( in .*)?", site.location)
        where = Where(file=place[1], line=int(place[2]), op=site.op) if place else Where(file=site.location or None, op=site.op)
        message = f"{site.op}: {site.what} is {index}, out of range of a size of {shown}"
        return CompilerError.of(Code.INDEX_OUT_OF_RANGE, message, where, "indices count from 0; negative ones count from the end")


def _value(dim: Dim, dims: Mapping[str, int]) -> object:
    try:
        return evaluate(dim, dims)
    except KeyError:
        return str(dim)
