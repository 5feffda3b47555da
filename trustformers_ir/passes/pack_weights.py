"""Weights of matrix products go into the panel layout that the micro-kernel reads.

Before::

    %w = weight {name = "dense.weight"} : f32[384, 1536]
    %y = matmul(%x, %w) : f32[batch, seq, 1536]

After::

    %w = weight {name = "dense.weight.panels48"} : f32[1536, 384]{panels 48}
    %y = linear(%x, %w, none) : f32[batch, seq, 1536]

Packing runs when the bytes are first asked for, weight by weight. A weight that is used in another way as well is kept beside its packed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.types import ROW_MAJOR, Panels, TensorType
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import derived, weight_of

LANES = 16  # panels are whole vectors of 16 columns
PACKED = (DType.f32, DType.f16, DType.bf16)


@dataclass(frozen=True)
class PackWeights(Pass):
    """``width`` is the number of columns of a full panel; matrices with fewer columns get a narrower one."""

    width: int = 48

    name = "pack_weights"
    summary = "put weights of matrix products into panels"
    requires = frozenset({"flat"})
    ensures = frozenset({"packed"})

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every ``linear`` and ``matmul`` whose right side is a weight."""
        for function in module.functions.values():
            for operation in function.body:
                if isinstance(operation.op, (ops.Linear, ops.MatMul)):
                    self._product(module, operation, log)

    def _product(self, module: Module, operation: Operation, log: PassLog) -> None:
        x, right = operation.inputs[:2]
        if right.type.layout != ROW_MAJOR:
            return
        weight = weight_of(module, right)
        if weight is None:
            log.miss("packed", f"{operation.op.mnemonic}: the right side is computed")
            return
        if right.type.rank != 2 or right.type.dtype not in PACKED or x.type.rank < 2 or 0 in right.type.shape:
            log.miss("packed", f"{operation.op.mnemonic}: {x.type} by {right.type} has no panel kernel")
            return
        if not rewriting.allowed():
            return
        packed = self._packed(module, weight, isinstance(operation.op, ops.MatMul))
        builder = Builder.before(module, operation)
        bias = operation.operands[2] if isinstance(operation.op, ops.Linear) else None
        result = builder(ops.Linear(), x, builder(ops.WeightOp(packed.name)), bias)
        operation.replace_with([result])
        log.count("weights packed")

    def _packed(self, module: Module, weight: Weight, transposed: bool) -> Weight:
        rows, columns = weight.type.shape
        n, k = (columns, rows) if transposed else (rows, columns)
        assert isinstance(n, int)
        width = min(self.width, -(-n // LANES) * LANES)
        name = f"{weight.name}.{'transposed.' if transposed else ''}panels{width}"
        return derived(module, name, TensorType((n, k), weight.type.dtype, Panels(width)), _packer(weight, transposed, width))


def _packer(weight: Weight, transposed: bool, width: int) -> Callable[[], np.ndarray]:
    return lambda: pack_panels(weight.data.T if transposed else weight.data, width)
