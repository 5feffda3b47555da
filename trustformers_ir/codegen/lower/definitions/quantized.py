"""Pointwise definitions of 8-bit codes and of their products."""

from __future__ import annotations

import functools

from trustformers_ir.codegen.kernel_ir.nodes import (
    LANES,
    SEQ,
    VECTOR,
    Axis,
    Const,
    Expr,
    Reduce,
    binary,
    cast,
    const,
    fma,
    maximum,
    minimum,
    reduce,
    select,
    unary,
)
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE

#: Added to a number below 2**22 it leaves an integer in the low bits of the sum, rounded to nearest, ties to even (Hacker's Delight, 2013, 17-4).
MAGIC = 1.5 * 2**23

#: Parts of a row whose smallest and largest elements are looked for side by side. Each is a chain of some four cycles per vector (Zen 5); codes of
#: BERT-base took 1.33 ms with one part (one thread, 25 calls), 0.98 with four.
PARTS = 4


def _code(x: Expr, inverse: Expr, zero: Expr) -> Expr:
    """``clip(round(x * inverse) + zero, 0, 255)`` as i32, NaN giving 0: one fused multiply-add, two bounds, one subtraction.

    The bounds are on the sum, whose order is that of the integer in it. A comparison with NaN is false, so NaN is cut to the lower one.
    """
    low = MAGIC - zero
    total = fma(x, inverse, MAGIC)
    total = select(total > low, total, low)
    high = low + 255.0
    total = select(total < high, total, high)
    return unary("bits", total) - unary("bits", low)


def _row(d: Definer, o: Operation, index: Index) -> tuple[Expr, Expr, Expr]:
    """(scale, its reciprocal, zero) of the row of ``index``. All its folds have one axis: they run in one loop."""
    x, row = o.inputs[0], index[:-1]
    columns = x.type.shape[-1]
    parts = PARTS if isinstance(columns, int) and columns % (PARTS * LANES) == 0 else 1
    part = dim_expr(columns // parts)
    axis = d.once((o, row), lambda: Axis("r", part, VECTOR))
    assert isinstance(axis, Axis)

    def end(kind: str) -> Expr:
        folds = [reduce(kind, axis, d.at(x, (*row, axis + part * n))) for n in range(parts)]
        return functools.reduce(functools.partial(binary, kind), folds)

    low, high = (d.once((o, row, kind), lambda kind=kind: end(kind)) for kind in ("min", "max"))  # type: ignore[misc]
    low, high = minimum(low, 0.0), maximum(high, 0.0)
    scale = maximum((high * 0.5 - low * 0.5) / 127.5, SMALLEST_SCALE)
    inverse = Const(1, DType.f32) / scale
    return scale, inverse, _code(-low, inverse, Const(0, DType.f32))


@define(ops.QuantizeDynamic)
def _quantize_dynamic(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    scale, inverse, zero = _row(d, o, index)
    if result:
        return scale if result == 1 else zero
    return cast(_code(d.at(o.inputs[0], index), inverse, cast(zero, DType.f32)), DType.u8)


@define(ops.QuantizeStatic)
def _quantize_static(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x, scale, zero = (d.operand(o, n, index) for n in range(3))
    return cast(_code(x, Const(1, DType.f32) / scale, cast(minimum(maximum(zero, 0), 255), DType.f32)), DType.u8)


@define(ops.LinearInt8)
def _linear_int8(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    q, scale, zero, weight, weight_scale, weight_sum, bias = o.operands
    assert q is not None and scale is not None and zero is not None and weight is not None and weight_scale is not None and weight_sum is not None
    k = Axis("k", dim_expr(q.type.shape[-1]), SEQ)
    total: Expr = Reduce("sum", (k,), cast(d.at(q, (*index[:-1], k)), DType.i32) * cast(d.at(weight, (index[-1], k)), DType.i32))
    row, column = (*index[:-1], const(0))[len(index) - scale.type.rank :], index[-1:]
    total = total - d.at(zero, row) * d.at(weight_sum, column)
    step = d.at(scale, row) * d.at(weight_scale, column)
    y = cast(total, DType.f32) * step
    return y if bias is None else y + d.at(bias, column)
