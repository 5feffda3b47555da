"""Casts and views of weights, and weights that lie side by side, become weights: what is constant is computed once, at build time.

Before::

    %1 = weight {name = "dense.weight"} : f32[384, 1536]
    %2 = cast(%1) {dtype = bf16} : bf16[384, 1536]
    %3 = transpose(%2) {perm = [1, 0]} : bf16[1536, 384]

After::

    %3 = weight {name = "dense.weight.bf16.transpose_1_0"} : bf16[1536, 384]

The bytes are made when they are first asked for, one weight at a time. ``constant_fold`` does the same for small inline constants, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import converted, derived, weight_of

DIRECT = (DType.f16, DType.bf16, DType.f32)


@dataclass(frozen=True)
class FoldWeights(Pass):
    """Folds ``cast``, ``transpose``, ``reshape`` and ``concat`` of row-major weights."""

    name = "fold_weights"
    summary = "compute casts and views of weights at build time"
    requires = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        """Operations come in order, so chains fold link by link."""
        for function in module.functions.values():
            for operation in function.body:
                name = _name(operation)
                weights = [w for v in operation.inputs if (w := weight_of(module, v)) is not None] if name else []
                if not weights or len(weights) < len(operation.inputs) or not operation.result.type.is_static or not rewriting.allowed():
                    continue
                make, origin = _folder(weights, operation), (operation.op, *weights)
                folded = derived(module, f"{weights[0].name}.{name}", operation.result.type, make, origin)
                operation.replace_with([Builder.before(module, operation)(ops.WeightOp(folded.name))])
                log.count(f"{operation.op.mnemonic} of a weight")


def _name(operation: Operation) -> str:
    """What is appended to the weight's name; nothing for an operation that is not folded."""
    match operation.op:
        case ops.Cast(dtype):
            return dtype.name
        case ops.Transpose(perm):
            return "transpose_" + "_".join(map(str, perm))
        case ops.Reshape(shape):
            return "reshape_" + "_".join(map(str, shape))
        case ops.Concat(axis):
            return f"concat_{axis}_of_{len(operation.inputs)}"
    return ""


def _folder(weights: Sequence[Weight], operation: Operation) -> Callable[[], np.ndarray]:
    op, operands, result = operation.op, [v.type for v in operation.inputs], operation.result.type
    if isinstance(op, ops.Cast) and operands[0].dtype in DIRECT and op.dtype in DIRECT:
        return lambda: converted(weights[0].data, op.dtype)

    def fold() -> np.ndarray:
        (array,) = evaluate_operation(op, [w.data for w in weights], [result], {}, operands)
        return array

    return fold
