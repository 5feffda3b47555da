"""Run lowered programs on Triton's interpreter: numpy arrays stand for the memory of a GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codegen_harness import guarded
from lowering_harness import POISON, Memory

triton = pytest.importorskip("triton", reason="pip install triton")

from triton_interpreter import corrected, libdevice

from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.indexing import expr_dim
from trustformers_ir.codegen.program import Program
from trustformers_ir.codegen.triton.emit import Emitted, emit
from trustformers_ir.codegen.triton.module import module_text
from trustformers_ir.codegen.triton.optable import TYPES
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.device import Condition
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import Choice, ScheduleKey

FOLDER = tempfile.TemporaryDirectory(prefix="tfir-triton-")  # Triton reads functions from files; gone when the process ends


class Array:
    """What Triton's interpreter asks of a tensor, for a numpy array."""

    def __init__(self, array: np.ndarray, dtype: DType) -> None:
        self.array = array
        self.dtype = getattr(triton.language, TYPES[dtype].removeprefix("tl."))

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Storage:
        return _Storage(self.array)

    def new_empty(self, *_: Any, **__: Any) -> Array:
        return self

    def set_(self, *_: Any) -> Array:
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(s // max(self.array.itemsize, 1) for s in self.array.strides)


class _Storage:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def cpu(self) -> _Storage:
        return self

    def copy_(self, _: Any) -> None:
        """Memory is shared: there is nothing to copy back."""


def loaded(text: str) -> Any:
    """A file of Triton functions as a module, to be interpreted."""
    path = Path(FOLDER.name) / f"kernels_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.libdevice = libdevice
    return module


class Runner:
    """The ``main`` of one module."""

    def __init__(self, module: Module, program: Program, emitted: Sequence[Emitted], functions: Sequence[Any]) -> None:
        self.module, self.program, self.emitted, self.functions = module, program, emitted, functions

    def __call__(self, inputs: Sequence[np.ndarray], dims: Mapping[str, int]) -> list[np.ndarray]:
        memory = Memory(self.module, inputs, dims)
        status = np.zeros(2, np.int64)
        for call, e, function in zip(self.program.calls, self.emitted, self.functions, strict=True):
            if not holds(call.when, dims):
                continue
            programs = evaluate(expr_dim(e.programs), dims)
            if not programs:
                continue
            arrays = [Array(memory[a], a.type.dtype) for a in call.arguments]
            for buffer, size in e.memory:
                count = evaluate(expr_dim(size), dims) * programs * buffer.dtype.itemsize
                arrays.append(Array(guarded(np.full(count, POISON, np.uint8)), buffer.dtype))
            extra = [Array(status, DType.i64)] if e.checks else []
            with corrected():
                function[(programs,)](*arrays, *[dims[s] for s in e.kernel.symbols], *extra, triton.language.int32)
        if status[0]:
            raise IndexError(f"{self.program.sites[int(status[0]) - 1]}: index {status[1]}")
        return memory.outputs(self.program)


def holds(when: Condition | None, dims: Mapping[str, int]) -> bool:
    """Whether a call is made with those dims."""
    return when is None or (when.above < evaluate(when.size, dims) and (when.most is None or evaluate(when.size, dims) <= when.most))


def interpret_modules(
    modules: Sequence[Module], machine: BlockMachine | None = None, table: Mapping[ScheduleKey, Choice] | None = None
) -> list[Runner]:
    """Each module's ``main``. The modules are changed (operations are wrapped into regions)."""
    programs, kernels = [], []
    for n, module in enumerate(modules):
        program = lower_function(module, module.main, machine or BlockMachine(), table=table)
        facts = symbol_facts(module.facts)
        programs.append(program)
        kernels.append([emit(c.kernel, f"kernel_{n}_{k}", facts) for k, c in enumerate(program.calls)])
    file = loaded(module_text([k for mine in kernels for k in mine]))
    return [Runner(m, p, k, [getattr(file, e.name) for e in k]) for m, p, k in zip(modules, programs, kernels, strict=True)]
