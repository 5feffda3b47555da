"""Matrix products on 8-bit integers: quantization of activations, and the product of unsigned activations by signed weights.

A real number x stands as an unsigned 8-bit code q with ``x ~ (q - zero) * scale`` (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", 2018). These ops are *defined* by f32 arithmetic, every operation rounded on its own but where a
fused multiply-add is named; compiled code gives the very same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_expands, require_less_equal, require_same_shape
from trustformers_ir.ir.ops.contract import unpacked
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import Panels, TensorType

Array = np.ndarray | np.float32
F32, I32, U8, I8 = (frozenset({d}) for d in (DType.f32, DType.i32, DType.u8, DType.i8))

#: The smallest scale that ``quantize_dynamic`` gives: the smallest normal number of f32, whose reciprocal is finite.
SMALLEST_SCALE = 2.0**-126
#: The most terms whose sum cannot leave an i32: ``255 * 128 * 65793 < 2**31``.
MOST_TERMS = (2**31 - 1) // (255 * 128)


def codes(x: Array, scale: Array, zero: Array) -> np.ndarray:
    """``clip(round(x * (1 / scale)) + zero, 0, 255)`` as u8, the product rounded once, to an integer, ties to even; NaN gives 0.

    The product of two f32 is exact in f64, so this is what ``fma(x, 1 / scale, 1.5 * 2**23)`` rounds to.
    """
    inverse = np.float32(1) / scale.astype(np.float32)
    steps = np.rint(x.astype(np.float32).astype(np.float64) * inverse.astype(np.float64))
    return np.where(np.isnan(steps), 0.0, np.clip(steps + zero, 0, 255)).astype(np.uint8)


def scale_between(low: Array, high: Array) -> Any:
    """The f32 step of 256 codes from ``low <= 0`` to ``high >= 0``, both f32: see :class:`QuantizeDynamic`."""
    half = np.float32(0.5)
    return np.maximum((high * half - low * half) / np.float32(127.5), np.float32(SMALLEST_SCALE))


@dataclass(frozen=True)
class QuantizeDynamic(Op):
    """Asymmetric 8-bit codes of each row (the last axis of x), with the scale and the zero point of that row.

    With ``lo = min(0, min x)`` and ``hi = max(0, max x)``, all in f32::

        scale = max((hi / 2 - lo / 2) / 127.5, 2**-126)      the halves keep hi - lo from overflowing; a row of zeros has the smallest scale
        zero  = clip(round(-lo * (1 / scale)), 0, 255)
        q     = clip(round(x * (1 / scale)) + zero, 0, 255)

    ``1 / scale`` is rounded to f32, a product once, to an integer, ties to even, and 0 becomes 0 exactly: ``(zero - zero) * scale``.
    A row that holds NaN has scale NaN, one that holds an infinity scale infinity; their codes and zero are 0, and all that
    ``linear_int8`` makes of them is NaN. Results: q, scale, zero.
    """

    mnemonic = "quantize_dynamic"
    operands = (Operand("x", F32),)
    constraints = {1: "x has an axis"}
    fusion = FusionKind.REDUCTION
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, x.rank >= 1, str(x))
        rows = (*x.shape[:-1], 1)
        return TensorType(x.shape, DType.u8), TensorType(rows, DType.f32), TensorType(rows, DType.i32)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        x = x.astype(np.float32)
        lo, hi = x.min(-1, keepdims=True, initial=0), x.max(-1, keepdims=True, initial=0)
        scale = scale_between(lo, hi)
        zero = codes(-lo, scale, np.zeros(1))
        return codes(x, scale, zero), scale, zero.astype(np.int32)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 6 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 37],))
        yield Sample(cls(), (DType.f32["b", "s", 16],))
        yield Sample(cls(), (DType.f32[5],), low={"x": 0.5})
        yield Sample(cls(), (DType.f32[2, 3, 1],), high={"x": -0.5})
        yield Sample(cls(), (DType.f32[2, 64],), low={"x": 0}, high={"x": 0})
        yield Sample(cls(), (DType.f32["n", 100],), low={"x": -3e38}, high={"x": 3e38})


@dataclass(frozen=True)
class QuantizeStatic(Op):
    """``clip(round(x * (1 / scale)) + zero, 0, 255)`` with a scale and a zero point known beforehand, found by calibration.

    ``1 / scale`` is rounded to f32, the product once, to an integer, ties to even. The zero point is clipped to 0 … 255 first; a product
    that is NaN gives code 0.
    """

    mnemonic = "quantize_static"
    operands = (Operand("x", F32), Operand("scale", F32), Operand("zero", I32))
    constraints = {1: "scale and zero provably broadcast to x"}
    fusion = FusionKind.ELEMENTWISE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType, scale: TensorType, zero: TensorType) -> tuple[TensorType, ...]:
        for p in (scale, zero):
            require_expands(self, 1, ctx, p.shape, x.shape)
        return (TensorType(x.shape, DType.u8),)

    def reference(self, ctx: EvalContext, x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Any:
        return codes(x, scale, np.clip(zero, 0, 255))

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 4 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low, high = {"scale": 0.01, "zero": 0}, {"scale": 0.02, "zero": 255}
        yield Sample(cls(), (DType.f32[3, 37], DType.f32[()], DType.i32[()]), low, high)
        yield Sample(cls(), (DType.f32["b", "s", 16], DType.f32[()], DType.i32[()]), low, high)
        yield Sample(cls(), (DType.f32["n", 20], DType.f32["n", 1], DType.i32[20]), low, high)


@dataclass(frozen=True)
class LinearInt8(Op):
    """``y[…, n] = f32(sum over k of q[…, k] * weight[n, k] - zero * weight_sum[n]) * (scale * weight_scale[n]) + bias[n]``.

    ``weight_sum[n]`` is the sum of row n of the weight, so the integer is ``sum of (q - zero) * weight``. It is exact: everything up to the
    conversion is done in i32 (which cannot overflow, and wraps if ``weight_sum`` is something else). The conversion to f32, the two products
    and the sum are rounded one by one. scale and zero are those of each row, or of the whole tensor. The weight may be packed.
    """

    mnemonic = "linear_int8"
    operands = (
        *(Operand("q", U8), Operand("scale", F32), Operand("zero", I32), Operand("weight", I8, any_layout=True)),
        *(Operand("weight_scale", F32), Operand("weight_sum", I32), Operand("bias", F32, optional=True)),
    )
    constraints = {
        1: "q has an axis and weight is a matrix",
        2: "the last size of q and of weight are provably equal",
        3: f"that size is provably at most {MOST_TERMS}, so that no sum leaves an i32",
        4: "scale and zero provably have the shape of q with 1 for its last axis, or both have no axes",
        5: "weight_scale, weight_sum and bias are vectors of provably as many elements as weight has rows",
    }
    fusion = FusionKind.CONTRACTION
    exact = True

    def infer(
        self,
        ctx: InferContext,
        q: TensorType,
        scale: TensorType,
        zero: TensorType,
        weight: TensorType,
        weight_scale: TensorType,
        weight_sum: TensorType,
        bias: TensorType | None,
    ) -> tuple[TensorType, ...]:
        self.require(1, q.rank >= 1 and weight.rank == 2, f"{q}, {weight}")
        require_equal(self, 2, ctx, q.shape[-1], weight.shape[1], "the contracted sizes")
        require_less_equal(self, 3, ctx, weight.shape[1], MOST_TERMS, "the contracted size")
        if scale.rank or zero.rank:
            for p in (scale, zero):
                require_same_shape(self, 4, ctx, p.shape, (*q.shape[:-1], 1), "scale, zero and the rows of q")
        for p in (p for p in (weight_scale, weight_sum, bias) if p is not None):
            require_same_shape(self, 5, ctx, p.shape, weight.shape[:1], "what belongs to the outputs")
        return (TensorType((*q.shape[:-1], weight.shape[0]), DType.f32),)

    def reference(
        self,
        ctx: EvalContext,
        q: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray,
        weight: np.ndarray,
        weight_scale: np.ndarray,
        weight_sum: np.ndarray,
        bias: np.ndarray | None,
    ) -> Any:
        type = ctx.operands[3]
        assert type is not None
        matrix = unpacked(weight, type.layout, (ctx.result_shape[-1], q.shape[-1])).astype(np.float64)
        products = np.matmul(q.astype(np.float64), matrix.T).astype(np.int64)  # exact: below 2**53
        total = (products - zero.astype(np.int64) * weight_sum).astype(np.int32).astype(np.float32)
        y = total * (scale.astype(np.float32) * weight_scale.astype(np.float32))
        return y if bias is None else y + bias.astype(np.float32)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low = {"q": 0, "zero": 0, "weight": -128, "scale": 0.001, "weight_scale": 0.001}
        high = {"q": 255, "zero": 255, "weight": 127, "scale": 0.02, "weight_scale": 0.02}

        def sample(q: TensorType, rows: TensorType, weight: TensorType, bias: bool) -> Sample:
            n = weight.shape[:1]
            parameters = TensorType(n, DType.f32), TensorType(n, DType.i32), TensorType(n, DType.f32) if bias else None
            return Sample(cls(), (q, rows, rows.with_dtype(DType.i32), weight, *parameters), low, high)

        u8, f32, i8 = DType.u8, DType.f32, DType.i8
        yield sample(u8[5, 7], f32[5, 1], i8[3, 7], True)
        yield sample(u8["b", "s", 16], f32["b", "s", 1], i8[20, 16], False)
        yield sample(u8["n", 12], f32[()], TensorType((20, 12), DType.i8, Panels(16, 4)), True)
        yield sample(u8[9, 67], f32[9, 1], TensorType((40, 67), DType.i8, Panels(48, 4)), True)
        yield sample(u8["n", 5], f32["n", 1], TensorType((33, 5), DType.i8, Panels(16)), False)
        yield sample(u8[6], f32[1], i8[4, 6], False)
