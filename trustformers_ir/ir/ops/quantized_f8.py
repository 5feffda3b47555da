"""Matrix products on 8-bit floats: quantization of activations, and the product of rows by the rows of a weight.

A real number x stands as a code q of f8e4m3 with ``x ~ q * scale``, and each row has a scale of its own (Micikevicius et al., "FP8 Formats for Deep
Learning", 2022). Unlike 8-bit integers, codes are as fine for small numbers as for large ones: outliers of a row cost the others nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import EIGHTHS, HALVES, DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_same_shape
from trustformers_ir.ir.ops.quantized import F32, SMALLEST_SCALE
from trustformers_ir.ir.rounding import LARGEST_F8, round_to
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


def scale_of(largest: np.ndarray) -> Any:
    """The f32 scale of rows whose largest magnitudes, f32, are given."""
    return np.maximum(largest / np.float32(LARGEST_F8), np.float32(SMALLEST_SCALE))


def codes_of(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``f8e4m3(x * (1 / scale))`` of f32 arrays, every step rounded."""
    with np.errstate(all="ignore"):
        return round_to(x * (np.float32(1) / scale), DType.f8e4m3)


@dataclass(frozen=True)
class QuantizeF8(Op):
    """The codes of each row (the last axis of x), and its scale.

    All in f32, every operation rounded::

        scale = max(max |x| / 448, 2**-126)
        q     = f8e4m3(x * (1 / scale))

    A row that holds NaN has scale NaN, one that holds an infinity scale infinity; all that ``linear_f8`` makes of them is NaN. Results: q, scale.
    """

    mnemonic = "quantize_f8"
    operands = (Operand("x", HALVES | F32),)
    constraints = {1: "x has an axis"}
    fusion = FusionKind.REDUCTION
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, x.rank >= 1, str(x))
        return TensorType(x.shape, DType.f8e4m3), TensorType((*x.shape[:-1], 1), DType.f32)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        x = x.astype(np.float32)
        scale = scale_of(np.abs(x).max(-1, keepdims=True, initial=0))
        return codes_of(x, scale), scale

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 5 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 37],))
        yield Sample(cls(), (DType.bf16["b", "s", 16],))
        yield Sample(cls(), (DType.f16[5],), low={"x": 0.5})
        yield Sample(cls(), (DType.f32[2, 3, 1],), high={"x": -0.5})
        yield Sample(cls(), (DType.f32[2, 64],), low={"x": 0}, high={"x": 0})
        yield Sample(cls(), (DType.f32["n", 100],), low={"x": -3e38}, high={"x": 3e38})


@dataclass(frozen=True)
class LinearF8(Op):
    """``y[…, n] = (sum over k of q[…, k] * weight[n, k]) * (scale * weight_scale[n]) + bias[n]``.

    The sum is made in f32, as that of ``linear``; the two products and the sum behind it are rounded one by one. scale is that of each row.
    """

    mnemonic = "linear_f8"
    operands = (
        *(Operand("q", EIGHTHS), Operand("scale", F32), Operand("weight", EIGHTHS)),
        *(Operand("weight_scale", F32), Operand("bias", F32, optional=True)),
    )
    constraints = {
        1: "q has an axis and weight is a matrix",
        2: "the last size of q and of weight are provably equal",
        3: "scale provably has the shape of q with 1 for its last axis",
        4: "weight_scale and bias are vectors of provably as many elements as weight has rows",
    }
    fusion = FusionKind.CONTRACTION

    def infer(
        self, ctx: InferContext, q: TensorType, scale: TensorType, weight: TensorType, weight_scale: TensorType, bias: TensorType | None
    ) -> tuple[TensorType, ...]:
        self.require(1, q.rank >= 1 and weight.rank == 2, f"{q}, {weight}")
        require_equal(self, 2, ctx, q.shape[-1], weight.shape[1], "the contracted sizes")
        require_same_shape(self, 3, ctx, scale.shape, (*q.shape[:-1], 1), "scale and the rows of q")
        for p in (p for p in (weight_scale, bias) if p is not None):
            require_same_shape(self, 4, ctx, p.shape, weight.shape[:1], "what belongs to the outputs")
        return (TensorType((*q.shape[:-1], weight.shape[0]), DType.f32),)

    def reference(
        self, ctx: EvalContext, q: np.ndarray, scale: np.ndarray, weight: np.ndarray, weight_scale: np.ndarray, bias: np.ndarray | None
    ) -> Any:
        sums = np.matmul(q.astype(np.float64), weight.astype(np.float64).T)
        y = sums * (scale.astype(np.float64) * weight_scale.astype(np.float64))
        return y if bias is None else y + bias

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low = {"q": -448, "weight": -448, "scale": 0.001, "weight_scale": 0.001}
        high = {"q": 448, "weight": 448, "scale": 0.002, "weight_scale": 0.002}

        def sample(q: TensorType, rows: TensorType, weight: TensorType, bias: bool) -> Sample:
            vector = TensorType(weight.shape[:1], DType.f32)
            return Sample(cls(), (q, rows, weight, vector, vector if bias else None), low, high)

        f8, f32 = DType.f8e4m3, DType.f32
        yield sample(f8[5, 7], f32[5, 1], f8[3, 7], True)
        yield sample(f8["b", "s", 16], f32["b", "s", 1], f8[20, 16], False)
        yield sample(f8["n", 80], f32["n", 1], f8[40, 80], True)
        yield sample(f8[1, 64], f32[1, 1], f8[24, 64], False)
        yield sample(f8[48], f32[1], f8[8, 48], True)
