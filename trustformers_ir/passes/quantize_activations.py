"""Products by weights in blocks take 8-bit activations: each activation is quantized once, in groups as large as those of the weight.

Before::

    %y = linear_blocks(%x, %c, %s, %l, none, none, none) {format = q4_1, group = 32} : f32[batch, seq, 1536]

After::

    %q, %a, %b, %t = quantize_groups(%x) {group = 32} : i8[batch, seq, 576], f32[batch, seq, 18], i32[batch, seq, 18], f32[batch, seq, 18]
    %y = linear_blocks_int8(%q, %a, %b, %t, %c, %s, %l, none, none, none) {format = q4_1, group = 32} : f32[batch, seq, 1536]

That is what llama.cpp computes as well (its Q8_0, Q8_1 and Q8_K activations), and what CPUs have instructions for. It moves results: an element of x
by at most 1/254 of the largest one in its group. Products of f16 and bf16 activations stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.block_formats import FORMATS, FormatRow, unsigned
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import derived, weight_of

PRODUCTS = (ops.LinearBlocks, ops.ExpertBlocks)
Quantized = dict[tuple[Value, int], list[Value]]


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """No options."""

    name = "quantize_activations"
    summary = "give products by weights in blocks 8-bit activations"
    requires = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        for function in module.functions.values():
            known: Quantized = {}
            for operation in list(function.body):
                if not isinstance(operation.op, PRODUCTS):
                    continue
                reason = self.refused(module, operation)
                if reason is not None:
                    log.miss("8-bit activations", reason)
                elif rewriting.allowed():
                    operation.replace_with([self.product(module, operation, known)])
                    log.count("products by 8-bit activations")
            log.count("activations quantized", len(known))

    def refused(self, module: Module, o: Operation) -> str | None:
        """Why a product stays as it is."""
        assert isinstance(o.op, PRODUCTS)
        x, codes = o.inputs[:2]
        if x.type.dtype is not DType.f32:
            return f"the activation is {x.type.dtype}"
        if not o.op.row.paired and weight_of(module, codes) is None:
            return "the codes have a sign and are no weight"
        return None

    def product(self, module: Module, o: Operation, known: Quantized) -> Value:
        """The product in integers, before ``o``."""
        assert isinstance(o.op, PRODUCTS)
        x, codes, *planes = o.operands
        assert x is not None and codes is not None
        builder = Builder.before(module, o)
        key = (x, o.op.group)
        if key not in known:
            known[key] = list(builder.create(ops.QuantizeGroups(o.op.group), x).results)
        weight = weight_of(module, codes)
        if not o.op.row.paired and weight is not None:
            codes = builder(ops.WeightOp(_unsigned(module, weight, FORMATS[o.op.format]).name))
        kind = ops.LinearBlocksInt8 if isinstance(o.op, ops.LinearBlocks) else ops.ExpertBlocksInt8
        return builder(kind(o.op.format, o.op.group), *known[key], codes, *planes)


def _unsigned(module: Module, weight: Weight, row: FormatRow) -> Weight:
    """A plane of codes without their signs."""

    def make() -> np.ndarray:
        return unsigned(row, weight.data)

    return derived(module, f"{weight.name}.unsigned", weight.type.with_dtype(DType.u8), make, ("unsigned", weight))
