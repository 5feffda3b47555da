"""Core ML packages: the program out of the graph, in f32 or f16, with dims that stay dynamic; a folder that appears whole.

A function with states, what a decoder has read, becomes a model with states: packages for iOS 18, whose callers keep them between calls.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml import rules_contract, rules_elementwise, rules_nn, rules_shape
from trustformers_ir.codegen.export.coreml.emitter import STORED, Emitter
from trustformers_ir.codegen.export.coreml.package import MARKER, coremltools_module, settle
from trustformers_ir.codegen.export.coreml.ranges import look_at_ranges
from trustformers_ir.codegen.export.coreml.weights import WEIGHTS_KEY, WeightForm
from trustformers_ir.codegen.export.written import Wide, Written
from trustformers_ir.ir.atomic import atomic_folder
from trustformers_ir.ir.core import Function, Module
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.version import VERSION

assert rules_contract and rules_elementwise and rules_nn and rules_shape  # imported for their rules
KINDS = {"constexpr_affine_dequantize": "int8", "constexpr_blockwise_shift_scale": "int4", "constexpr_lut_to_dense": "palette4"}
MOST = 1 << 20  # a dim without a bound: the format wants one
_CLEANUP = ("const_elimination", "noop_elimination", "dead_code_elimination", "dedup_op_and_var_names")
_NARROW = ("add_fp16_cast", "const_elimination", "cast_optimization", "dead_code_elimination")
_LAST = ("const_deduplication", "dead_code_elimination")


def write_coreml(path: str, module: Module, *, dtype: DType = DType.f16, weights: WeightForm | None = None, seed: int = 0) -> Written:
    """Writes the function ``main`` of ``module`` as a package. ``CompilerError`` with all ops that have no form there; nothing is left half-written.

    ``dtype``: what floats of f32 are computed in, f16 or f32. ``weights``: what matrices are kept in, None for numbers. ``seed``: of the inputs on
    which ranges are looked at.
    """
    ct = coremltools_module()
    with atomic_folder(path, marker=MARKER) as folder:
        program, inputs, places = _program(ct, module, weights)
        wide: tuple[Wide, ...] = ()
        narrow = None
        if dtype is DType.f16:
            wide, kept = look_at_ranges(program.functions["main"], module, places, seed)
            narrow = kept
        model = _converted(ct, program, inputs, narrow)
        model.short_description = module.metadata.get("architecture", module.main.name)
        model.version = VERSION
        for key, value in module.metadata.items():
            model.user_defined_metadata[key] = value
        if weights is not None:
            model.user_defined_metadata[WEIGHTS_KEY] = weights.value
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".coreml.") as scratch:  # coremltools insists on the ending
            made = Path(scratch) / "made.mlpackage"
            model.save(os.fspath(made))
            for entry in made.iterdir():
                entry.rename(folder / entry.name)
        settle(folder)
        function = model._mil_program.functions["main"]
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        return Written((path,), size, _kinds(function), sum(o.op_type != "const" for o in function.operations), wide)


def _program(ct: Any, module: Module, weights: WeightForm | None) -> tuple[Any, list[Any], dict[str, str]]:
    """The program in f32, its inputs as the format describes them, and where in the source each op comes from."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function as MilFunction
    from coremltools.converters.mil.mil import Program

    main = module.main
    _check_arguments(main)
    ranges = _ranges_of_dims(ct, module)
    types, specs = [], {}
    for name, v in zip(argument_names(main), main.args, strict=True):
        if v in main.next_states:
            specs[name] = mb.state_tensor_placeholder(v.type.concrete({}), _builtin(np.float16))
            continue
        stored = np.int32 if v.type.dtype is DType.bool else STORED[v.type.dtype]
        shape = [ranges[d] if not isinstance(d, int) else d for d in v.type.shape] or [1]
        types.append(ct.TensorType(name=name, shape=shape, dtype=stored))
        given = [d if isinstance(d, int) else d.symbol for d in shape]
        specs[name] = mb.placeholder(shape=given, dtype=_builtin(stored), allow_rank0_input=False)
    program = Program()
    with MilFunction(specs, opset_version=_target(ct, main, weights)) as function:
        emitter = Emitter(mb, module, main, list(function.inputs.values()), weights)
        function.set_outputs(emitter.run())
    program.add_function("main", function)
    return program, types, emitter.places


def _target(ct: Any, main: Function, weights: WeightForm | None) -> Any:
    """The oldest system that can do it: 4 bits and states came with iOS 18."""
    return ct.target.iOS18 if main.states or weights in (WeightForm.INT4, WeightForm.PALETTE4) else ct.target.iOS17


def _builtin(stored: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return types.numpy_type_to_builtin_type(stored)


def _check_arguments(main: Function) -> None:
    problems = Collector()
    for name, v in zip(argument_names(main), main.args, strict=True):
        if v.type.dtype not in STORED:
            problems.add(Code.CANNOT_EXPORT, f"the input '{name}' is {v.type}, and Core ML computes in no {v.type.dtype}", Where())
        elif v in main.next_states and (v.type.dtype is not DType.f16 or any(not isinstance(d, int) for d in v.type.shape)):
            problems.add(Code.CANNOT_EXPORT, f"the state '{name}' is {v.type}, and states there are f16, of one size for good", Where())
        elif v.type.rank > 5:
            problems.add(Code.CANNOT_EXPORT, f"the input '{name}' is {v.type}, and arrays have at most 5 axes there", Where())
        elif any(d == 0 for d in v.type.shape):
            problems.add(Code.CANNOT_EXPORT, f"the input '{name}' is {v.type}, and Core ML has no empty arrays", Where())
    problems.check()


def _ranges_of_dims(ct: Any, module: Module) -> dict[Dim, Any]:
    """What each size of an input may be."""
    found: dict[Dim, Any] = {}
    for v in module.main.args:
        for d in v.type.shape:
            if not isinstance(d, int) and d not in found:
                low, high = module.facts.bounds(d)
                low = max(1, int(low))
                high = max(low, int(min(MOST, high)))
                found[d] = ct.RangeDim(lower_bound=low, upper_bound=high, default=low)
    return found


def _converted(ct: Any, program: Any, inputs: Sequence[Any], kept: set[str] | None) -> Any:
    """The model. ``kept``: what stays in f32 when the rest becomes f16; None when all does."""
    passes = [*_CLEANUP, *(_NARROW if kept is not None else ()), *_LAST]
    pipeline = ct.PassPipeline(pass_names=[f"common::{p}" for p in passes])
    precision: Any = ct.precision.FLOAT32
    if kept is not None:
        precision = ct.transform.FP16ComputePrecision(op_selector=lambda op: not any(o.name in kept for o in op.outputs))
    with _quiet():
        return ct.convert(
            program, convert_to="mlprogram", inputs=list(inputs), minimum_deployment_target=program.functions["main"].opset_version,
            compute_precision=precision, pass_pipeline=pipeline, skip_model_load=True,
        )  # fmt: skip


def _kinds(function: Any) -> dict[str, int]:
    """How many weights there are of each dtype, numbers and shapes left out."""
    kinds: Counter[str] = Counter()
    for op in function.operations:
        if op.op_type == "const" and getattr(op.val.val, "size", 0) > 10:
            if any(reader.op_type.startswith("constexpr") for reader in op.outputs[0].child_ops):
                continue  # codes, scales
            kinds[{"fp16": "f16", "fp32": "f32", "int32": "i32"}.get(_word(op.outputs[0]), _word(op.outputs[0]))] += 1
        elif op.op_type.startswith("constexpr"):
            kinds[KINDS[op.op_type]] += 1
    return dict(kinds)


def _word(v: Any) -> str:
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(v.dtype))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of progress and the warnings of another package."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
