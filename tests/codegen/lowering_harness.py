"""Run a lowered program without planner, entry or runtime: each buffer is a numpy array, each kernel is called on one worker."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np

from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import parse
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.indexing import expr_dim
from trustformers_ir.codegen.lower.schedules import MachineShape
from trustformers_ir.codegen.program import BufferRef, Storage
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.runtime.native import link


def run_compiled(module: Module, inputs: Sequence[np.ndarray], dims: Mapping[str, int], target: str = "host", workers: int = 1) -> list[np.ndarray]:
    """Outputs of ``main`` through native code. The module is changed (operations are wrapped into regions)."""
    program = lower_function(module, module.main, MachineShape())
    symbols = sorted(module.facts.symbols)
    facts = {n: (f.low, f.high, f.divisor) for n, f in module.facts.symbols.items()}
    names = [f"tfir_kernel_{i}" for i in range(len(program.calls))]
    text = module_text([emit_kernel(c.kernel, symbols, n, facts) for n, c in zip(names, program.calls, strict=True)])
    library = link([compile_object(text, parse(target))], names)
    memory: dict[tuple[Storage, int | str], np.ndarray] = {}

    def array(ref: BufferRef) -> np.ndarray:
        key = (ref.storage, ref.key)
        if key not in memory:
            if ref.storage is Storage.INPUT:
                memory[key] = np.ascontiguousarray(inputs[int(ref.key)])
            elif ref.storage is Storage.WEIGHT:
                memory[key] = np.ascontiguousarray(module.weights[str(ref.key)].data)
            else:
                shape = tuple(evaluate(d, dims) for d in ref.type.layout.storage(ref.type.shape))
                memory[key] = np.empty(shape, ref.type.dtype.numpy)
        return memory[key]

    values = (ctypes.c_int64 * max(len(symbols), 1))(*[dims[s] for s in symbols])
    status = np.zeros(2, np.int64)
    for name, call in zip(names, program.calls, strict=True):
        scratch = np.empty(evaluate(expr_dim(call.kernel.scratch_bytes), dims) + 64, np.uint8)
        base = (scratch.ctypes.data + 63) // 64 * 64
        pointers = (ctypes.c_void_p * max(len(call.arguments), 1))(*[array(a).ctypes.data for a in call.arguments])
        p, i = ctypes.c_void_p, ctypes.c_int64
        function = library.function(name, None, p, p, i, i, p, p)
        for worker in range(workers):
            function(pointers, values, worker, workers, base, status.ctypes.data)
    assert status[0] == 0, f"index out of range at site {status[0] - 1}: {status[1]}"
    return [memory.get((Storage.OUTPUT, i), np.empty(0)) for i in range(len(program.outputs))]
