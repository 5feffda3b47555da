"""Pointwise definitions of 8-bit floats and of their products."""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.nodes import SEQ, VECTOR, Axis, Const, Expr, Reduce, cast, const, maximum, reduce, unary
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE
from trustformers_ir.ir.rounding import LARGEST_F8


@define(ops.QuantizeF8)
def _quantize_f8(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x, row = o.inputs[0], index[:-1]
    axis = d.once((o, row), lambda: Axis("r", dim_expr(x.type.shape[-1]), VECTOR))
    assert isinstance(axis, Axis)
    largest = d.once((o, row, "max"), lambda: maximum(reduce("max", axis, unary("abs", d.lifted(x, (*row, axis)))), 0.0))
    assert isinstance(largest, Expr)
    scale = maximum(largest / LARGEST_F8, SMALLEST_SCALE)
    if result:
        return scale
    return cast(d.lifted(x, index) * (Const(1, DType.f32) / scale), DType.f8e4m3)


@define(ops.LinearF8)
def _linear_f8(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    q, scale, weight, weight_scale, bias = o.operands
    assert q is not None and scale is not None and weight is not None and weight_scale is not None
    k = Axis("k", dim_expr(q.type.shape[-1]), SEQ)
    total: Expr = Reduce("sum", (k,), d.lifted(q, (*index[:-1], k)) * d.lifted(weight, (index[-1], k)))
    y = total * (d.at(scale, (*index[:-1], const(0))) * d.at(weight_scale, index[-1:]))
    return y if bias is None else y + d.at(bias, index[-1:])
