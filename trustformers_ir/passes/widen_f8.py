"""Products of 8-bit floats where no instruction multiplies them: their numbers in f32, and weights in bf16, which holds every f8e4m3.

Before::

    %y = linear_f8(%q, %s, %c, %t, %bias) : f32[batch, seq, 1536]

After::

    %x = cast(%q) {dtype = f32} : f32[batch, seq, 384]
    %w = weight {name = "inner.weight.f8.bf16"} : bf16[1536, 384]
    %r = linear(%x, %w) : f32[batch, seq, 1536]
    %f = mul(%s, %t) : f32[batch, seq, 1536]
    %v = mul(%r, %f) : f32[batch, seq, 1536]
    %y = add(%v, %bias) : f32[batch, seq, 1536]

Every operation is one that ``linear_f8`` is defined by, in its order; the products have the kernels of ``linear``.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import converted, derived, weight_of


@dataclass(frozen=True)
class WidenF8(Pass):
    """No options."""

    name = "widen_f8"
    summary = "compute products of 8-bit floats in f32"
    requires = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every ``linear_f8``."""
        wide: dict[Value, Value] = {}
        for function in module.functions.values():
            for operation in list(function.body):
                if isinstance(operation.op, ops.LinearF8) and rewriting.allowed():
                    operation.replace_with([_widened(module, operation, wide)])
                    log.count("products of 8-bit floats in f32")


def _widened(module: Module, o: Operation, wide: dict[Value, Value]) -> Value:
    q, scale, codes, steps, bias = o.operands
    assert q is not None and scale is not None and codes is not None and steps is not None
    builder = Builder.before(module, o)
    if q not in wide:
        wide[q] = builder(ops.Cast(DType.f32), q)
    weight = weight_of(module, codes)
    if weight is None:
        matrix = builder(ops.Cast(DType.f32), codes)
    else:
        type = weight.type.with_dtype(DType.bf16)
        narrow = derived(module, f"{weight.name}.bf16", type, lambda: converted(weight.data, DType.bf16), (ops.Cast(DType.bf16), weight))
        matrix = builder(ops.WeightOp(narrow.name))
    y = builder(ops.Mul(), builder(ops.Linear(), wide[q], matrix, None), builder(ops.Mul(), scale, steps))
    return y if bias is None else builder(ops.Add(), y, bias)
