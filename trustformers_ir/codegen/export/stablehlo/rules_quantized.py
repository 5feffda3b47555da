"""8-bit codes in StableHLO: what the definitions round once, is computed in f64, where the products are exact."""

from __future__ import annotations

from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, X, rule
from trustformers_ir.codegen.export.stablehlo.rules_elementwise import converted
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE
from trustformers_ir.ir.rounding import LARGEST_F8


def _steps(e: Emitter, x: X, scale: X) -> X:
    """``f64``: x by ``1 / scale``, rounded to a whole number; 0 where it is none."""
    inverse = e.cast(e.spread(e("divide", 1, scale), x.shape), DType.f64)
    steps = e("round_nearest_even", e("multiply", e.cast(x, DType.f64), inverse))
    return e.select(e.compare("NE", steps, steps), 0, steps)


def _codes(e: Emitter, x: X, scale: X, zero: X | None) -> X:
    """``u8``: steps from a zero point, within 0 and 255."""
    steps = _steps(e, x, scale)
    if zero is not None:
        steps = e("add", steps, e.cast(e.spread(zero, x.shape), DType.f64))
    return e.cast(e("minimum", e("maximum", steps, 0), 255), DType.u8)


@rule(ops.QuantizeDynamic)
def _quantize_dynamic(e: Emitter, o: Operation) -> list[X]:
    x = e.operand(o, 0)
    low = e("minimum", e.reduce("minimum", x, [-1], True), 0)
    high = e("maximum", e.reduce("maximum", x, [-1], True), 0)
    between = e("divide", e("subtract", e("multiply", high, 0.5), e("multiply", low, 0.5)), 127.5)
    scale = e("maximum", between, SMALLEST_SCALE)
    zero = e.cast(_codes(e, e("negate", low), scale, None), DType.i32)
    return [_codes(e, x, scale, zero), scale, zero]


@rule(ops.QuantizeStatic)
def _quantize_static(e: Emitter, o: Operation) -> X:
    x, scale, zero = (e.operand(o, n) for n in range(3))
    return _codes(e, x, scale, e("minimum", e("maximum", zero, 0), 255))


@rule(ops.LinearInt8)
def _linear_int8(e: Emitter, o: Operation) -> X:
    """Sums of i32, which are exact."""
    q, scale, zero, weight, weight_scale, weight_sum = (e.operand(o, n) for n in range(6))
    shape = o.result.type.shape
    total = e.dot(e.cast(q, DType.i32), e.cast(weight, DType.i32), [], [(q.rank - 1, 1)])
    total = e("subtract", total, e("multiply", e.spread(zero, shape), e.spread(weight_sum, shape)))
    return _scaled(e, e.cast(total, DType.f32), scale, weight_scale, None if o.operands[6] is None else e.operand(o, 6))


def _scaled(e: Emitter, total: X, scale: X, weight_scale: X, bias: X | None) -> X:
    """Sums by the scales of rows and of outputs."""
    y = e("multiply", total, e("multiply", e.spread(scale, total.shape), e.spread(weight_scale, total.shape)))
    return y if bias is None else e("add", y, e.spread(bias, total.shape))


@rule(ops.QuantizeGroups)
def _quantize_groups(e: Emitter, o: Operation) -> list[X]:
    assert isinstance(o.op, ops.QuantizeGroups)
    x, (codes, scales, *_) = e.operand(o, 0), (r.type for r in o.results)
    groups = e.reshape(x, (*scales.shape, o.op.group))
    scale = e("maximum", e("divide", e.reduce("maximum", e("abs", groups), [-1]), 127), SMALLEST_SCALE)
    steps = _steps(e, groups, e.reshape(scale, (*scale.shape, 1)))
    total = e.reduce("add", e.cast(steps, DType.i32), [-1])
    q = e.reshape(e.cast(steps, DType.i8), codes.shape)
    return [q, scale, total, e("multiply", e.cast(total, DType.f32), scale)]


@rule(ops.DequantizeGroups)
def _dequantize_groups(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.DequantizeGroups)
    q, scale = e.operand(o, 0), e.wide(o, 1)
    shape = (*scale.shape, o.op.group)
    numbers = e.cast(e.reshape(q, shape), DType.f32)
    return e.reshape(e("multiply", numbers, e.spread(e.reshape(scale, (*scale.shape, 1)), shape)), q.shape)


@rule(ops.QuantizeF8)
def _quantize_f8(e: Emitter, o: Operation) -> list[X]:
    x = e.wide(o, 0)
    largest = e("maximum", e.reduce("maximum", e("abs", x), [-1], True), 0)
    scale = e("maximum", e("divide", largest, LARGEST_F8), SMALLEST_SCALE)
    return [converted(e, e("multiply", x, e.spread(e("divide", 1, scale), x.shape)), DType.f8e4m3), scale]


@rule(ops.LinearF8)
def _linear_f8(e: Emitter, o: Operation) -> X:
    q, scale, weight, weight_scale = (e.operand(o, n) for n in range(4))
    sums = e.dot(e.cast(q, DType.f32), e.cast(weight, DType.f32), [], [(q.rank - 1, 1)])
    return _scaled(e, sums, scale, weight_scale, None if o.operands[4] is None else e.operand(o, 4))
