"""Weights of matrix products go into the panel layout that the micro-kernel reads.

Before::

    %w = weight {name = "dense.weight"} : f32[384, 1536]
    %y = matmul(%x, %w) : f32[batch, seq, 1536]

After::

    %w = weight {name = "dense.weight.panels48"} : f32[1536, 384]{panels 48}
    %y = linear(%x, %w, none) : f32[batch, seq, 1536]

The weight of a ``linear_int8`` goes into panels that are four deep, ``{panels 48 4}``: one 64-byte vector holds four neighbouring k of
16 columns, which is what the instructions for products of bytes read. So do the codes of a ``linear_blocks_int8``, and of an ``expert_blocks_int8``,
each matrix by itself; what belongs to its groups goes
into panels of the same width. These are 16 wide: an output needs a sum in integers and one in f32. A table of vectors in blocks that such a product
reads as well is packed once, for both.

Packing runs when the bytes are first asked for, weight by weight. A weight that is used in another way as well is kept beside its packed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.block_formats import PLANES
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.blocks import DEEP
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.types import ROW_MAJOR, Panels, TensorType
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import derived, weight_of

LANES = 16  # panels are whole vectors of 16 columns
PACKED = (DType.f32, DType.f16, DType.bf16)
DEPTH_INT8 = 4  # bytes of one 32-bit lane


@dataclass(frozen=True)
class PackWeights(Pass):
    """``width`` is the number of columns of a full panel; matrices with fewer columns get a narrower one."""

    width: int = 48

    name = "pack_weights"
    summary = "put weights of matrix products into panels"
    requires = frozenset({"flat"})
    ensures = frozenset({"packed"})

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every ``linear``, ``matmul`` and ``linear_int8`` whose right side is a weight."""
        for function in module.functions.values():
            for operation in function.body:
                if isinstance(operation.op, (ops.Linear, ops.MatMul)):
                    self._product(module, operation, log)
                elif isinstance(operation.op, ops.LinearInt8):
                    self._product_int8(module, operation, log)
                elif isinstance(operation.op, ops.LinearBlocksInt8 | ops.ExpertBlocksInt8):
                    self._product_blocks(module, operation, log)
            for operation in function.body:
                if isinstance(operation.op, ops.EmbeddingBlocks):
                    self._table(module, operation, log)

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
        packed = self._packed(module, weight, transposed=isinstance(operation.op, ops.MatMul))
        builder = Builder.before(module, operation)
        bias = operation.operands[2] if isinstance(operation.op, ops.Linear) else None
        result = builder(ops.Linear(), x, builder(ops.WeightOp(packed.name)), bias)
        operation.replace_with([result])
        log.count("weights packed")

    def _product_int8(self, module: Module, operation: Operation, log: PassLog) -> None:
        q, right = operation.inputs[0], operation.inputs[3]
        if right.type.layout != ROW_MAJOR:
            return
        weight = weight_of(module, right)
        if weight is None:
            log.miss("packed", "linear_int8: the weight is computed")
            return
        if q.type.rank < 2 or 0 in right.type.shape:
            log.miss("packed", f"linear_int8: {q.type} by {right.type} has no panel kernel")
            return
        if not rewriting.allowed():
            return
        packed = self._packed(module, weight, depth=DEPTH_INT8)
        operation.set_operand(3, Builder.before(module, operation)(ops.WeightOp(packed.name)))
        log.count("weights packed")

    def _product_blocks(self, module: Module, operation: Operation, log: PassLog) -> None:
        assert isinstance(operation.op, ops.LinearBlocksInt8 | ops.ExpertBlocksInt8)
        name, first = operation.op.mnemonic, operation.op.planes_at
        planes = {n: v for n, v in enumerate(operation.operands) if v is not None and n in range(first, first + len(PLANES))}
        weights = {n: weight_of(module, v) for n, v in planes.items()}
        if any(v.type.layout != ROW_MAJOR for v in planes.values()):
            return
        q = operation.inputs[0]
        if None in weights.values():
            log.miss("packed", f"{name}: a plane is computed")
            return
        if operation.result.type.rank < 2 or 0 in planes[first].type.shape or operation.op.run % DEPTH_INT8:
            log.miss("packed", f"{name}: {q.type} in groups of {operation.op.group} has no panel kernel")
            return
        if not rewriting.allowed():
            return
        builder = Builder.before(module, operation)
        for n, weight in weights.items():
            assert weight is not None
            packed = self._packed(module, weight, depth=DEPTH_INT8 if PLANES[n - first] in DEEP else 1, widest=LANES)
            operation.set_operand(n, builder(ops.WeightOp(packed.name)))
        log.count("weights packed")

    def _table(self, module: Module, operation: Operation, log: PassLog) -> None:
        """A table that is the weight of a product as well (the logits of tied embeddings) is read where that lies, so it is there once. A row is in
        pieces of four bytes then, which costs some cache misses."""
        packed = {w.origin: w for w in module.weights.values() if w.origin and w.origin[0] == "packed"}
        found: dict[int, Weight] = {}
        for n, value in enumerate(operation.operands[: len(PLANES)]):
            weight = None if value is None else weight_of(module, value)
            if value is None:
                continue
            lifted = next((w for w in module.weights.values() if w.origin == ("unsigned", weight)), weight)
            twin = packed.get(("packed", False, lifted))
            if weight is None or twin is None:
                return
            found[n] = twin
        if not rewriting.allowed():
            return
        builder = Builder.before(module, operation)
        for n, twin in found.items():
            operation.set_operand(n, builder(ops.WeightOp(twin.name)))
        log.count("tables read where a product has them")

    def _packed(self, module: Module, weight: Weight, *, transposed: bool = False, depth: int = 1, widest: int = 1 << 16) -> Weight:
        *several, rows, columns = weight.type.shape
        n, k = (columns, rows) if transposed else (rows, columns)
        assert isinstance(n, int)
        layout = Panels(min(self.width, widest, -(-n // LANES) * LANES), depth)
        name = f"{weight.name}.{'transposed.' if transposed else ''}panels{layout.width}" + (f"x{depth}" if depth > 1 else "")
        type = TensorType((*several, n, k), weight.type.dtype, layout)
        return derived(module, name, type, _packer(weight, transposed, layout), ("packed", transposed, weight))


def _packer(weight: Weight, transposed: bool, layout: Panels) -> Callable[[], np.ndarray]:
    return lambda: pack_panels(weight.data.T if transposed else weight.data, layout.width, layout.depth)
