"""Runs a module with the reference semantics of its ops: slow, obvious, and what every faster path is compared with.

Floating arrays are widened to float64 (complex128) before an op and rounded once to the result type after it; ops marked ``exact`` see the
stored values. ``wide=True`` never rounds: a float64 run of the whole graph, the yardstick of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.core import Block, Function, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError, Where
from trustformers_ir.ir.dims import evaluate as evaluate_dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.check import Check
from trustformers_ir.ir.ops.data import WeightOp
from trustformers_ir.ir.ops.nonzero import NonZero
from trustformers_ir.ir.ops.region import Fused
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.schema import EvalContext, Op, widen
from trustformers_ir.ir.types import TensorType


def evaluate(
    module: Module,
    *inputs: Any,
    function: str | None = None,
    dims: Mapping[str, int] | None = None,
    wide: bool = False,
    **named: Any,
) -> Any:
    """The results of a function of ``module`` (``main`` by default): one array, or a tuple when there are several.

    Inputs are given in order, by argument name, or both. ``dims`` gives symbols that no input shape determines.
    Raises ``CompilerError`` for inputs that do not fit the argument types and for an index out of range.
    """
    if function is not None and function not in module.functions:
        names = ", ".join(module.functions)
        raise CompilerError.of(Code.UNKNOWN_ENTRY, f"the module has no function '{function}'", help=f"it has: {names}")
    target = module.main if function is None else module.functions[function]
    arrays, env = bind_arguments(module, target, inputs, named, dims, wide)
    results = run_block(target.body, arrays, env, module.weights, wide)
    return results[0] if len(results) == 1 else tuple(results)


def bind_arguments(
    module: Module, function: Function, inputs: Sequence[Any], named: Mapping[str, Any], dims: Mapping[str, int] | None = None, wide: bool = False
) -> tuple[list[np.ndarray], dict[str, int]]:
    """The arrays of the function's arguments, and the dims that their shapes give. Raises as :func:`evaluate` does."""
    names_and_args = list(zip(argument_names(function), function.args, strict=True))
    given = _match(names_and_args, inputs, named)
    arrays = [_argument(name, a.type.dtype, x, wide) for (name, a), x in zip(names_and_args, given, strict=True)]
    shaped = [Shaped(name, a.type.stored.shape, x.shape) for (name, a), x in zip(names_and_args, arrays, strict=True)]
    return arrays, dict(bind_dims(shaped, module.facts, dims))


def evaluate_operation(
    op: Op,
    arrays: Sequence[np.ndarray | None],
    result_types: Sequence[TensorType],
    dims: Mapping[str, int] | None = None,
    operand_types: Sequence[TensorType | None] = (),
    wide: bool = False,
) -> tuple[np.ndarray, ...]:
    """One op without a body on actual arrays, rounded to ``result_types``: what constant folding and conformance tests call.

    Raises ``IndexError`` for an index out of range, and ``InternalError`` when a result does not have its inferred shape.
    """
    context = EvalContext(dims or {}, tuple(result_types), tuple(operand_types))
    values = [None if a is None else (a if op.exact else widen(a)) for a in arrays]
    with np.errstate(all="ignore"):
        out = op.reference(context, *values)
        results = out if isinstance(out, tuple) else (out,)
        if len(results) != len(result_types):
            message = f"{op.mnemonic} gave {len(results)} results, {len(result_types)} were inferred"
            raise InternalError.of(Code.INTERNAL, message)
        return tuple(_finish(op, r, t, context.dims, wide) for r, t in zip(results, result_types, strict=True))


def run_block(
    block: Block, arrays: Sequence[np.ndarray], dims: Mapping[str, int], weights: Mapping[str, Weight], wide: bool = False
) -> list[np.ndarray]:
    """What the block's terminator hands out. A value is dropped after its last use."""
    live: dict[Value, np.ndarray] = dict(zip(block.args, arrays, strict=True))
    pending = {v: len(v.uses) for v in block.args}
    for operation in block:
        operands = [None if v is None else live[v] for v in operation.operands]
        if operation.op.terminator:
            return [a for a in operands if a is not None]
        results = run_operation(operation, operands, dims, weights, wide)
        for v in operation.inputs:
            pending[v] -= 1
            if not pending[v]:
                del live[v]
        for value, array in zip(operation.results, results, strict=True):
            if value.uses:
                live[value], pending[value] = array, len(value.uses)
    raise InternalError.of(Code.INTERNAL, "a block without a terminator was run")


def argument_names(function: Function) -> list[str]:
    """The names under which arguments can be given: their own, or ``arg<i>``."""
    return [a.name or f"arg{i}" for i, a in enumerate(function.args)]


def result_names(function: Function) -> list[str]:
    """The names of the results: their own, or ``output<i>``."""
    return [v.name or f"output{i}" for i, v in enumerate(function.outputs)]


def _match(arguments: list[tuple[str, Value]], inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    names = [name for name, _ in arguments]
    signature = ", ".join(f"{name}: {a.type}" for name, a in arguments) or "no inputs"
    if len(inputs) > len(names):
        raise CompilerError.of(Code.INPUT_COUNT, f"{len(inputs)} inputs were given, the function takes {len(names)}", help=signature)
    values = dict(zip(names, inputs, strict=False))
    for name, value in named.items():
        if name not in names or name in values:
            problem = "is given twice" if name in values else "is not one of the function's inputs"
            raise CompilerError.of(Code.INPUT_NAME, f"'{name}' {problem}", help=signature)
        values[name] = value
    missing = [name for name in names if name not in values]
    if missing:
        raise CompilerError.of(Code.INPUT_COUNT, f"inputs are missing: {', '.join(missing)}", help=signature)
    return [values[name] for name in names]


def _argument(name: str, dtype: DType, value: Any, wide: bool) -> np.ndarray:
    array = np.asarray(value)
    try:
        have = DType.from_numpy(array.dtype)
    except KeyError:
        raise CompilerError.of(
            Code.INPUT_DTYPE, f"input '{name}' has dtype {array.dtype}, which is no tensor", Where(tensor=name)
        ) from None
    if have is not dtype and not (wide and have is _widest(dtype)):
        raise CompilerError.of(Code.INPUT_DTYPE, f"input '{name}' has dtype {have}, not {dtype}", Where(tensor=name), f"cast it to {dtype}")
    return widen(array) if wide else array


def run_operation(
    operation: Operation, operands: list[np.ndarray | None], dims: Mapping[str, int], weights: Mapping[str, Weight], wide: bool
) -> Sequence[np.ndarray]:
    """The results of an operation that is no terminator, on the arrays of its operands. Raises ``CompilerError`` with its place."""
    op = operation.op
    if isinstance(op, Fused):
        assert operation.body is not None
        return run_block(operation.body, [a for a in operands if a is not None], dims, weights, wide)
    where = _place(operation)
    if isinstance(op, WeightOp):
        try:
            data = weights[op.name].data
        except LookupError:
            help = "load the module together with its weights"
            raise CompilerError.of(Code.MISSING_BYTES, f"the bytes of weight '{op.name}' were not given", where, help) from None
        return (_finish(op, data, operation.result.type, dims, wide),)
    if isinstance(op, NonZero):
        assert isinstance(dims, dict) and operands[0] is not None
        dims[op.symbol] = int(np.count_nonzero(operands[0]))
    try:
        return evaluate_operation(op, operands, [r.type for r in operation.results], dims, operation.operand_types, wide)
    except IndexError as error:
        if isinstance(op, Check):
            raise CompilerError.of(Code.INPUT_VALUE, str(error), where) from None
        raise CompilerError.of(Code.INDEX_OUT_OF_RANGE, str(error), where, "an index lies in -size .. size - 1") from None
    except KeyError as error:
        message = f"the dim {error} is determined by no input"
        raise CompilerError.of(Code.INPUT_SHAPE, message, where, "give its value: evaluate(…, dims={…})") from None


def _place(operation: Operation) -> Where:
    loc = operation.loc
    return Where(op=operation.op.mnemonic) if loc is None else Where(loc.file, loc.line, op=operation.op.mnemonic)


def _widest(dtype: DType) -> DType:
    return DType.f64 if dtype.is_float else DType.c128 if dtype.is_complex else dtype


def _finish(op: Op, result: Any, type: TensorType, dims: Mapping[str, int], wide: bool) -> np.ndarray:
    array = round_to(result, _widest(type.dtype) if wide else type.dtype)
    expected = tuple(evaluate_dim(d, dims) for d in type.stored.shape)
    if array.shape != expected:
        message = f"{op.mnemonic} gave shape {list(array.shape)} where {type} = {list(expected)} was inferred"
        raise InternalError.of(Code.INTERNAL, message)
    return array
