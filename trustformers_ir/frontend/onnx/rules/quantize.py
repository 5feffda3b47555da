"""Quantized tensors: between floats and integers or small floats, and products of quantized ones."""

from __future__ import annotations

from collections.abc import Callable

from trustformers_ir.frontend.onnx.elements import ELEMENTS, F32, U8, Element
from trustformers_ir.frontend.onnx.narrow import convert, fixed, rounded
from trustformers_ir.frontend.onnx.node import Node, onnx_op
from trustformers_ir.frontend.onnx.rules.contract import window_of
from trustformers_ir.frontend.onnx.values import Item, Refused
from trustformers_ir.ir import windows
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor


def _spreading(n: Node, x: Tensor) -> Callable[[Tensor], Tensor]:
    """What brings the scales and zero points of ``x`` to its shape: one, one for each index of an axis, or one for each block along it."""
    axis = n.axis(x.ndim, 1) if x.ndim > 1 else 0
    block = int(n.attr("block_size", 0))

    def spread(t: Tensor) -> Tensor:
        if t.numel() == 1 and t.ndim <= 1:
            return t.reshape()
        if block:
            size = x.shape[axis]
            y = t.repeat_interleave(block, axis)
            return y if n.same(y.shape[axis], size) else y.narrow(axis, 0, size)
        if t.ndim == 1:
            shape: list[Dim] = [1] * x.ndim
            shape[axis] = t.shape[0]
            return t.reshape(*shape)
        return t

    return spread


def quantized(x: Tensor, scale: Tensor, zero: Tensor | None, target: Element, saturate: bool) -> Tensor:
    """``saturate(round(x / scale) + zero)``; floats are rounded to the target without a zero point."""
    ratio = x / scale
    if target.small is not None:
        return rounded(ratio, target.small, saturate)
    y = ratio.round()
    wide = DType.f64 if target.bits > 16 else y.dtype if y.dtype is not DType.f16 else DType.f32
    y = y.to(wide) if zero is None else y.to(wide) + zero.to(wide)
    return y.clamp(float(target.low), float(target.high)).to(target.dtype)


@onnx_op("QuantizeLinear")
def _quantize(n: Node) -> Item:
    x, scale = n.t(0), n.t(1)
    spread = _spreading(n, x)
    code = int(n.attr("output_dtype", 0))
    target = n.element(2) if n.has(2) else ELEMENTS.get(code, U8) if code else U8
    precision = int(n.attr("precision", 0))
    wide = ELEMENTS[precision].dtype if precision in ELEMENTS else x.dtype if x.dtype is DType.f64 else DType.f32
    scale_ = spread(scale.to(wide))
    zero = spread(n.t(2)) if n.has(2) else None
    if scale.dtype in (DType.f16,) and x.dtype is DType.f16 and not precision:
        ratio = (x.to(DType.f32) / spread(scale.to(DType.f32))).to(DType.f16)  # the division is one of f16
        return Item.of(quantized(ratio.to(DType.f32), fixed(1.0, DType.f32), zero, target, bool(n.attr("saturate", 1))), target)
    return Item.of(quantized(x.to(wide), scale_, zero, target, bool(n.attr("saturate", 1))), target)


@onnx_op("DequantizeLinear")
def _dequantize(n: Node) -> Item:
    x, scale = n.t(0), n.t(1)
    spread = _spreading(n, x)
    code = int(n.attr("output_dtype", 0))
    target = ELEMENTS[code] if code in ELEMENTS else n.element(1)
    wide = DType.f32 if scale.dtype in (DType.f16, DType.bf16) else scale.dtype
    whole = x
    if n.has(2) and not x.dtype.is_float:
        room = DType.i64 if x.dtype.bits >= 32 else DType.i32
        whole = x.to(room) - spread(n.t(2)).to(room)
    elif n.has(2):
        whole = x - spread(n.t(2))
    y = whole.to(wide) * spread(scale.to(wide))
    return Item.of(convert(y, F32, target) if target.small else y.to(target.dtype), target)


@onnx_op("DynamicQuantizeLinear")
def _dynamic(n: Node) -> list[Item]:
    x = n.t(0)
    low = x.amin().minimum(fixed(0.0, x.dtype))
    high = x.amax().maximum(fixed(0.0, x.dtype))
    scale = (high - low) / 255.0
    zero = (-low / scale).clamp(0.0, 255.0).round()
    y = ((x / scale).round() + zero).clamp(0.0, 255.0).to(DType.u8)
    return [Item.of(y, U8), Item.of(scale), Item.of(zero.to(DType.u8), U8)]


@onnx_op("QLinearMatMul")
def _qlinear_matmul(n: Node) -> Item:
    """The product of dequantized integers: exact in whole numbers, then scaled and quantized."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (n.t(i) for i in range(8))
    target = n.element(7)
    if target.small:
        raise Refused(f"a quantized product to {target}")

    def rows(t: Tensor, x: Tensor) -> Tensor:
        return t.reshape() if t.numel() == 1 else t.unsqueeze(-1) if t.ndim == 1 and x.ndim >= 2 else t

    def columns(t: Tensor) -> Tensor:
        return t.reshape() if t.numel() == 1 else t

    whole = (a.to(DType.i32) - rows(a_zero.to(DType.i32), a)).matmul(b.to(DType.i32) - columns(b_zero.to(DType.i32)))
    wide = DType.f64
    real = whole.to(wide) * rows(a_scale.to(wide), a) * columns(b_scale.to(wide))
    scale, zero = rows(y_scale.to(wide), a), rows(y_zero.to(DType.i32), a)
    return Item.of(quantized(real, scale, zero, target, True), target)


@onnx_op("QLinearConv")
def _qlinear_conv(n: Node) -> Item:
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = (n.t(i) for i in range(8))
    rank = weight.ndim
    target = n.element(7)

    def per_output(t: Tensor, lead: int) -> Tensor:
        return t.reshape() if t.numel() == 1 else t.reshape(*(1,) * lead, -1, *(1,) * (rank - 1 - lead))

    w = window_of(n, weight.shape[2:], x.shape[2:])
    whole = windows.conv(
        x.to(DType.i32) - x_zero.reshape().to(DType.i32), weight.to(DType.i32) - per_output(w_zero.to(DType.i32), 0), None, w, int(n.attr("group", 1))
    )
    if n.has(8):
        whole = whole + per_output(n.t(8), 1)
    real = whole.to(DType.f64) * x_scale.reshape().to(DType.f64) * per_output(w_scale.to(DType.f64), 1)
    return Item.of(quantized(real, y_scale.reshape().to(DType.f64), y_zero.reshape(), target, True), target)
