"""Weights that a file holds in blocks of a few bits are read as they are: products and tables of vectors take codes in place of numbers.

Before, with a weight that a front end read from blocks (``Weight.blocks``)::

    %w = weight {name = "mlp.up_proj.weight"} : f32[1536, 576]
    %y = linear(%x, %w, none) : f32[batch, seq, 1536]

After::

    %c = weight {name = "mlp.up_proj.weight.q4_1.codes"} : u8[1536, 288]
    %s = weight {name = "mlp.up_proj.weight.q4_1.scale"} : f16[1536, 18]
    %l = weight {name = "mlp.up_proj.weight.q4_1.low"} : f16[1536, 18]
    %y = linear_blocks(%x, %c, %s, %l, none, none, none) {format = q4_1, group = 32} : f32[batch, seq, 1536]

No number changes but by the order of sums: the weights of ``linear_blocks`` are exactly those that the blocks stand for, and
``embedding_blocks`` gives the very bits. A weight that something else uses stays numbers there.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.block_formats import ACTIVATIONS, Blocks
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes.block_planes import BlockPlanes
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import weight_of


@dataclass(frozen=True)
class ReadBlocks(Pass):
    """No options."""

    name = "read_blocks"
    summary = "weights that a file holds in blocks are read as blocks"
    requires = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        if not any(w.blocks for w in module.weights.values()):
            return
        for function in module.functions.values():
            for operation in list(function.body):
                if isinstance(operation.op, (ops.Linear, ops.MatMul)):
                    made = self.product(module, operation)
                elif isinstance(operation.op, ops.ExpertMatMul):
                    made = self.experts(module, operation)
                elif isinstance(operation.op, ops.Embedding):
                    made = self.table(module, operation)
                else:
                    continue
                if made is not None:
                    operation.replace_with([made])
                    log.count(f"{operation.op.mnemonic} in blocks")

    def product(self, module: Module, o: Operation) -> Value | None:
        """The product by blocks, or None where it is none."""
        x, right = o.inputs[:2]
        found = _source(module, right)
        if found is None or len(found[1].shape) != 2 or x.type.dtype not in ACTIVATIONS or o.result.type.dtype is not x.type.dtype:
            return None
        weight, blocks = found
        if blocks.turned is not isinstance(o.op, ops.MatMul) or not isinstance(x.type.shape[-1], int) or not rewriting.allowed():
            return None
        bias = o.operands[2] if isinstance(o.op, ops.Linear) else None
        builder = Builder.before(module, o)
        planes = _planes(weight, blocks)
        return builder(ops.LinearBlocks(blocks.format, planes.group), x, *planes.operands(module, builder), bias)

    def experts(self, module: Module, o: Operation) -> Value | None:
        """The product of rows by chosen matrices in blocks, or None where it is none. Files have a row for each output of a matrix, the product reads
        a column: what stands between is a transposition."""
        x, right, experts = o.inputs
        turned = right.producer
        if turned is None or not isinstance(turned.op, ops.Transpose) or turned.op.perm != (0, 2, 1):
            return None
        found = _source(module, turned.inputs[0])
        if found is None or x.type.dtype not in ACTIVATIONS or not isinstance(x.type.shape[-1], int) or not rewriting.allowed():
            return None
        builder = Builder.before(module, o)
        planes = _planes(*found)
        return builder(ops.ExpertBlocks(found[1].format, planes.group), x, *planes.operands(module, builder), experts)

    def table(self, module: Module, o: Operation) -> Value | None:
        """The rows of a table in blocks, or None where it is none."""
        table, ids = o.inputs
        found = _source(module, table)
        if found is None or found[1].turned or len(found[1].shape) != 2 or not rewriting.allowed():
            return None
        weight, blocks = found
        builder = Builder.before(module, o)
        planes = _planes(weight, blocks)
        rows = builder(ops.EmbeddingBlocks(blocks.format, planes.group), *planes.operands(module, builder), ids)
        return rows if o.result.type.dtype is DType.f32 else builder(ops.Cast(o.result.type.dtype), rows)


def _source(module: Module, value: Value) -> tuple[Weight, Blocks] | None:
    """The weight in blocks that a value is, if need be in another dtype."""
    while value.producer is not None and isinstance(value.producer.op, ops.Cast):
        value = value.producer.inputs[0]
    weight = weight_of(module, value)
    return None if weight is None or weight.blocks is None else (weight, weight.blocks)


def _planes(weight: Weight, blocks: Blocks) -> BlockPlanes:
    name = f"{weight.name}.{blocks.format.value}"
    return BlockPlanes(name, blocks.format, blocks.shape, blocks.group, blocks.planes, ("blocks", weight))
