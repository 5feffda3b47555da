"""Operations on constants are evaluated now, with the reference semantics.

Before::

    %1 = iota() size=4 dtype=f32
    %2 = constant() value=0.5
    %3 = mul(%1, %2)
    %4 = expand(%2) shape=[n, 8]
    %5 = exp(%4)

After::

    %3 = constant() value=[0.0, 0.5, 1.0, 1.5]
    %6 = constant() value=1.6487213
    %5 = expand(%6) shape=[n, 8]

A constant of equal elements is one element and an ``expand``, so elementwise operations on such constants are evaluated whatever their size,
and nothing grows. Other results are written down up to ``max_elements``. An ``expand`` or ``iota`` by itself stays: it is cheaper than bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from trustformers_ir.ir import rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops import Constant, DimSize, Expand, Iota, Literal, WeightOp
from trustformers_ir.ir.rewriting import constant_of, erase_dead, splat_of
from trustformers_ir.ir.schema import FusionKind
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.manager import Pass, PassLog


@dataclass(frozen=True)
class ConstantFold(Pass):
    """Evaluates what depends on nothing but constants; ``max_elements`` bounds the constants that are made."""

    max_elements: int = 1024

    name = "constant_fold"
    summary = "evaluate operations on constants"

    def run(self, module: Module, log: PassLog) -> None:
        for operation in module.walk():
            if operation.block is None or isinstance(operation.op, (Constant, Expand, Iota, WeightOp)):
                continue
            if operation.op.terminator or operation.op.has_body:
                continue
            results = self._results(operation, module, log)
            if results is None or not rewriting.allowed():
                continue
            build = Builder.before(module, operation)
            sources = [v.producer for v in operation.inputs if v.producer is not None]
            log.count(operation.op.mnemonic)
            operation.replace_with([_written(build, array, r.type) for array, r in zip(results, operation.results, strict=True)])
            erase_dead(sources)

    def _results(self, operation: Operation, module: Module, log: PassLog) -> tuple[np.ndarray, ...] | None:
        """The values of the results; arrays without axes stand for the same element everywhere."""
        op, types = operation.op, [r.type for r in operation.results]
        if isinstance(op, DimSize):
            low, high = module.facts.bounds(op.size)
            return (np.asarray(int(low)).astype(op.dtype.numpy),) if low == high else None
        if not operation.inputs:
            return None
        if op.fusion is FusionKind.ELEMENTWISE:
            splats = [splat_of(v) for v in operation.inputs]
            if all(s is not None for s in splats):
                scalar = [TensorType((), t.dtype) for t in types]
                operand_types = [TensorType((), v.type.dtype) for v in operation.inputs]
                return evaluate_operation(op, splats, scalar, {}, operand_types)
        arrays = [None if v is None else self._known(v) for v in operation.operands]
        if any(a is None and v is not None for a, v in zip(arrays, operation.operands, strict=True)):
            return None
        if not all(t.is_static for t in types):
            return None
        if (size := sum(prod(t.concrete({})) for t in types)) > self.max_elements:
            log.miss(op.mnemonic, f"the result has {size} elements, more than {self.max_elements}")
            return None
        try:
            return evaluate_operation(op, arrays, types, {}, operation.operand_types)
        except IndexError as error:
            log.miss(op.mnemonic, f"it fails: {error}")
        except KeyError as error:  # an attribute has a symbol although no type has
            log.miss(op.mnemonic, f"the dim {error} is not known")
        return None

    def _known(self, value: Value) -> np.ndarray | None:
        """The elements of a constant that may be looked at: not too many of them."""
        operation = value.producer
        if operation is None or not value.type.is_static:
            return None
        if isinstance(operation.op, Constant):
            return operation.op.value.array
        shape = value.type.concrete({})
        if prod(shape) > self.max_elements:
            return None
        if isinstance(operation.op, Iota):
            return evaluate_operation(operation.op, (), [value.type])[0]
        if isinstance(operation.op, Expand):
            below = self._known(operation.inputs[0])
            return None if below is None else np.broadcast_to(below, shape)
        return None


def _written(build: Builder, array: np.ndarray, type: TensorType) -> Value:
    """The constant: one element repeated where all are alike, bit for bit."""
    literal = Literal.of(array)
    return build(Constant(literal)) if literal.splat is None else constant_of(build, array.reshape(-1)[0], type)
