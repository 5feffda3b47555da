"""Quantized products as ONNX says them: ``QuantizeLinear`` and ``DequantizeLinear`` in front of a ``MatMul`` of floats (QDQ); runtimes with kernels
of whole numbers put these in the place of the three. Weights are initializers of 8 or 4 bits behind a ``DequantizeLinear``, by output (``axis``) or
in blocks along the terms (``block_size``, operator set 21).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.onnx.emitter import INT4, UINT4, Emitter, rule
from trustformers_ir.codegen.export.onnx.rules_nn import transposed
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import FORMATS, Format, unpair
from trustformers_ir.ir.core import Operation, Value, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE
from trustformers_ir.ir.types import ROW_MAJOR, TensorType

BLOCKED = 21  # the first operator set in which DequantizeLinear has blocks, and integers of 4 bits
LINEAR = (Format.Q8_0, Format.Q4_0, Format.INT4, Format.INT4_ZERO)  #: formats whose numbers are ``scale * (code - zero)`` with one scale for a group
MIDDLE = 128  # of the codes of activations


def _known_zero(v: Value) -> int | None:
    """A zero point that is one number of 0 … 255, and known."""
    known = v.op_as(ops.Constant)
    if known is None or not isinstance(known.op, ops.Constant) or known.op.value.array.size != 1:
        return None
    zero = int(known.op.value.array.reshape(-1)[0])
    return zero if 0 <= zero <= 255 else None


def _within(e: Emitter, x: str) -> str:
    """Codes of 8 bits, as floats."""
    return e("Min", e("Max", x, e.constant(0.0, DType.f32)), e.constant(255.0, DType.f32))


def _numbers(e: Emitter, q: str, scale: str, zero: str | None = None, dtype: DType = DType.f32, **attributes: int) -> str:
    """What codes stand for; in the dtype of the scale, which newer schemas do not tell."""
    return e.typed(e("DequantizeLinear", q, scale, zero, **attributes), dtype)


@rule(ops.QuantizeDynamic)
def _quantize_dynamic(e: Emitter, o: Operation) -> list[str]:
    """A scale and a zero point for each row, as the definition computes them; then ``QuantizeLinear`` over rows one below the other, which takes a
    scale for each index of an axis."""
    (x,) = o.inputs
    features = x.type.shape[-1]
    if not isinstance(features, int) or not features:
        raise Unsupported("the number of features is not known, or there are none")
    given, last, none = e.value(x), e.constant([-1], DType.i64), e.constant(0.0, DType.f32)
    low = e("Min", e("ReduceMin", given, last, keepdims=1), none)
    high = e("Max", e("ReduceMax", given, last, keepdims=1), none)
    half = e.constant(0.5, DType.f32)
    span = e("Div", e("Sub", e("Mul", high, half), e("Mul", low, half)), e.constant(127.5, DType.f32))
    scale = e("Max", span, e.constant(SMALLEST_SCALE, DType.f32))
    steps = e("Round", e("Mul", e("Neg", low), e("Div", e.constant(1.0, DType.f32), scale)))
    zero = e.cast(_within(e, steps), DType.f32, DType.u8)
    rows, flat = e("Reshape", given, e.constant([-1, features], DType.i64)), e.constant([-1], DType.i64)
    q = e("QuantizeLinear", rows, e("Reshape", scale, flat), e("Reshape", zero, flat), axis=0)
    return [e("Reshape", q, e("Shape", given)), scale, e.cast(zero, DType.u8, DType.i32)]


@rule(ops.QuantizeStatic)
def _quantize_static(e: Emitter, o: Operation) -> str:
    """``QuantizeLinear`` where scale and zero point are one number each; the arithmetic itself where they are spread over axes."""
    x, scale, zero = o.inputs
    known = _known_zero(zero)
    if known is not None and scale.type.rank == 0:
        return e("QuantizeLinear", e.value(x), e.value(scale), e.constant(known, DType.u8))
    steps = e("Round", e("Mul", e.value(x), e("Div", e.constant(1.0, DType.f32), e.value(scale))))
    codes = e("Add", steps, _within(e, e.cast(e.value(zero), DType.i32, DType.f32)))
    return e.cast(_within(e, codes), DType.f32, DType.u8)


@rule(ops.LinearInt8)
def _linear_int8(e: Emitter, o: Operation) -> str:
    """Both factors behind a ``DequantizeLinear``, the weight's by output. Scales and zero points of rows do not go into that of the activation: ONNX
    Runtime multiplies whole numbers where those are one number each, and fails on a row's. So there the codes themselves are multiplied, less 128
    so that little is taken away again, and what a row has of its own comes behind: ``scale * (sum of (q - 128) * w - (zero - 128) * sum of w)``."""
    q, scale, zero, weight, weight_scale, weight_sum, bias = o.operands
    assert q is not None and scale is not None and zero is not None and weight is not None and weight_scale is not None and weight_sum is not None
    if weight.type.layout != ROW_MAJOR:
        raise Unsupported("its weight is packed")
    matrix = _numbers(e, transposed(e, weight), e.value(weight_scale), axis=1)
    known = _known_zero(zero)
    if known is not None and scale.type.rank == 0:
        y = e("MatMul", _numbers(e, e.value(q), e.value(scale), e.constant(known, DType.u8)), matrix)
    else:
        middle = MIDDLE if _sums_of(e, weight_sum, weight) else 0
        codes = _numbers(e, e.value(q), e.constant(1.0, DType.f32), e.constant(middle, DType.u8))
        away = e("Sub", e.cast(e.value(zero), DType.i32, DType.f32), e.constant(float(middle), DType.f32))
        sums = e("Mul", e.cast(e.value(weight_sum), DType.i32, DType.f32), e.value(weight_scale))
        y = e("Mul", e("Sub", e("MatMul", codes, matrix), e("Mul", away, sums)), e.value(scale))
    return y if bias is None else e("Add", y, e.value(bias))


def _sums_of(e: Emitter, sums: Value, weight: Value) -> bool:
    """Whether the former are known to be the sums of the rows of the latter."""
    made, of = (None if found is None else e.module.weights[found[0]].origin for found in (e.weight_of(sums), e.weight_of(weight)))
    return made is not None and of is not None and made == (*of, "sum")


# -- weights in blocks ------------------------------------------------------------------------------------------------------


@rule(ops.LinearBlocks)
def _linear_blocks(e: Emitter, o: Operation) -> str:
    x, bias = o.operands[0], o.operands[7]
    assert x is not None and isinstance(o.op, ops.LinearBlocks)
    y = e("MatMul", e.value(x), _matrix(e, o, o.op.format, o.op.group, x.type.dtype))
    return y if bias is None else e("Add", y, e.value(bias))


@rule(ops.ExpertBlocks)
def _expert_blocks(e: Emitter, o: Operation) -> str:
    """The matrix of each row is gathered of all of them as numbers: right, but all are in memory then."""
    x, experts = o.operands[0], o.operands[-1]
    assert x is not None and experts is not None and isinstance(o.op, ops.ExpertBlocks)
    chosen = e("Gather", _matrix(e, o, o.op.format, o.op.group, x.type.dtype), e.value(experts), axis=0)
    rows = e("Unsqueeze", e.value(x), e.constant([-2], DType.i64))
    return e("Squeeze", e("MatMul", rows, chosen), e.constant([-2], DType.i64))


def _matrix(e: Emitter, o: Operation, format: Format, group: int, dtype: DType) -> str:
    """``[…, terms, outputs]`` of the planes of a weight, in blocks along the terms. Scales lie in f16, as in the planes, and are widened first, so
    that no number is rounded."""
    if format not in LINEAR:
        raise Unsupported(f"no DequantizeLinear says the numbers of {format.value}")
    if e.opset < BLOCKED:
        raise Unsupported(f"weights in blocks need operator set {BLOCKED}, and this is {e.opset}")
    planes = {name: w for name, v in zip(("codes", "scale", "low"), o.operands[1:4], strict=True) if v is not None for w in [_weight(e, v)]}
    codes, zero = _codes(e, planes["codes"], format, group), None
    if format is Format.INT4_ZERO:
        zero = _nibbles(e, planes["low"], planes["low"].type, UINT4, lambda: planes["low"].data)
    wide = DType.f16 if dtype is DType.f16 else DType.f32
    scale = e.cast(e.weight(planes["scale"].name, transposed=True), DType.f16, wide)
    numbers = _numbers(e, codes, scale, zero, wide, axis=planes["codes"].type.rank - 2, block_size=group)
    return e.cast(numbers, wide, dtype)


def _weight(e: Emitter, v: Value) -> Weight:
    found = e.weight_of(v)
    if found is None or v.type.layout != ROW_MAJOR:
        raise Unsupported("its weight is packed, or not known when the file is written")
    return e.module.weights[found[0]]


def _codes(e: Emitter, plane: Weight, format: Format, group: int) -> str:
    row = FORMATS[format]
    if not row.paired:
        return e.weight(plane.name, transposed=True)
    *lead, n, half = plane.type.concrete({})
    signed = format is not Format.INT4_ZERO

    def codes() -> np.ndarray:
        found = unpair(plane.data.reshape(-1, half), group).reshape(*lead, n, 2 * half)
        return (found - np.uint8(row.zero)) & np.uint8(15) if signed else found  # in two's complement

    return _nibbles(e, plane, TensorType((*lead, n, 2 * half), DType.u8), INT4 if signed else UINT4, codes)


def _nibbles(e: Emitter, plane: Weight, type: TensorType, element: int, rows: Callable[[], np.ndarray]) -> str:
    """An initializer of 4-bit integers: the transposes of ``rows``, u8 of 0 … 15; two elements side by side share a byte, the first its low bits."""
    *lead, n, columns = type.concrete({})

    def bytes() -> np.ndarray:
        flat = rows().swapaxes(-1, -2).reshape(-1)
        low, high = flat[::2], flat[1::2]
        packed = low.copy()
        packed[: len(high)] |= high << np.uint8(4)
        return packed

    return e.packed(plane.name, element, (*lead, columns, n), bytes)
