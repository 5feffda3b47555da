"""Run lowered programs without planner, entry or runtime: each buffer is a numpy array that ends at a forbidden page.

Many modules can share one LLVM module, which is what makes thousands of small cases affordable.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
from codegen_harness import guarded

from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import parse
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.indexing import expr_dim
from trustformers_ir.codegen.lower.schedules import MachineShape
from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.schedule_table import Choice, ScheduleKey
from trustformers_ir.runtime.native import NativeLibrary, link

POISON = 0xA5  # what memory holds before it is written


class Memory:
    """The buffers of one call of a program, made when they are first asked for; each ends at a forbidden page."""

    def __init__(self, module: Module, inputs: Sequence[np.ndarray], dims: Mapping[str, int]) -> None:
        self.module, self.inputs, self.dims = module, inputs, dims
        self.known: dict[tuple[Storage, int | str], np.ndarray] = {}

    def __getitem__(self, ref: BufferRef) -> np.ndarray:
        key = (ref.storage, ref.key)
        if key not in self.known:
            if ref.storage is Storage.INPUT:
                self.known[key] = guarded(np.ascontiguousarray(self.inputs[int(ref.key)]))
            elif ref.storage is Storage.WEIGHT:
                self.known[key] = guarded(np.ascontiguousarray(self.module.weights[str(ref.key)].data))
            else:
                shape = tuple(evaluate(d, self.dims) for d in ref.type.layout.storage(ref.type.shape))
                count = int(np.prod(shape, dtype=np.int64)) * ref.type.dtype.itemsize
                self.known[key] = guarded(np.full(count, POISON, np.uint8)).view(ref.type.dtype.numpy).reshape(shape)
        return self.known[key]

    def outputs(self, program: Program) -> list[np.ndarray]:
        """What the program has left in its outputs."""
        found = []
        for i, port in enumerate(program.outputs):
            shape = tuple(evaluate(d, self.dims) for d in port.type.layout.storage(port.type.shape))
            found.append(np.array(self.known.get((Storage.OUTPUT, i), np.empty(0, port.type.dtype.numpy))).reshape(shape))
        return found


class Runner:
    """The compiled ``main`` of one module."""

    def __init__(self, module: Module, program: Program, names: Sequence[str], library: NativeLibrary) -> None:
        self.module, self.program = module, program
        self.symbols = sorted(module.facts.symbols)
        p, i = ctypes.c_void_p, ctypes.c_int64
        self.functions = [library.function(n, None, p, p, i, i, p, p) for n in names]

    def __call__(self, inputs: Sequence[np.ndarray], dims: Mapping[str, int], workers: int = 1) -> list[np.ndarray]:
        """The outputs. Every worker does its share of every kernel, one after the other."""
        memory = Memory(self.module, inputs, dims)
        values = (ctypes.c_int64 * max(len(self.symbols), 1))(*[dims[s] for s in self.symbols])
        status = np.zeros(2, np.int64)
        for function, call in zip(self.functions, self.program.calls, strict=True):
            arrays = [memory[a] for a in call.arguments]
            pointers = (ctypes.c_void_p * max(len(arrays), 1))(*[a.ctypes.data for a in arrays])
            scratch = _scratch(call, dims)
            for worker in range(workers):
                scratch[:] = POISON
                function(pointers, values, worker, workers, scratch.ctypes.data, status.ctypes.data)
        if status[0]:
            site = self.program.sites[int(status[0]) - 1]
            raise IndexError(f"{site}: index {status[1]}")
        return memory.outputs(self.program)


def _scratch(call: KernelCall, dims: Mapping[str, int]) -> np.ndarray:
    size = (evaluate(expr_dim(call.kernel.scratch_bytes), dims) + 63) // 64 * 64
    return guarded(np.zeros(size, np.uint8))  # ends at a page, so its start is aligned as well


def compile_modules(
    modules: Sequence[Module],
    target: str = "host",
    machine: MachineShape | None = None,
    tables: Sequence[Mapping[ScheduleKey, Choice]] = (),
) -> list[Runner]:
    """Each module's ``main``, compiled in one go. The modules are changed (operations are wrapped into regions). ``tables``: schedules for each."""
    machine_target = parse(target)
    shape = machine or MachineShape(registers=machine_target.registers)
    programs, functions, names = [], [], []
    for n, module in enumerate(modules):
        program = lower_function(module, module.main, shape, table=tables[n] if tables else None)
        symbols = sorted(module.facts.symbols)
        facts = symbol_facts(module.facts)
        mine = [f"tfir_kernel_{n}_{k}" for k in range(len(program.calls))]
        functions += [emit_kernel(c.kernel, symbols, name, facts, machine_target.features) for name, c in zip(mine, program.calls, strict=True)]
        programs.append(program)
        names.append(mine)
    library = link([compile_object(module_text(functions), machine_target)], [n for mine in names for n in mine])
    return [Runner(m, p, n, library) for m, p, n in zip(modules, programs, names, strict=True)]
