"""Products of 8-bit activations by weights in blocks of a few bits.

An activation in groups stands for ``x ~ q * scale``, with a scale for each group of a row, as in GGML's ``q8_0`` and ``q8_1``. These ops are
*defined* by integer and f32 arithmetic, every operation rounded on its own but where a fused multiply-add is named; compiled code gives the very same
bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.block_formats import FORMATS, PLANES, Format, parts, signed, unhalved
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.blocks import CODES, PLANE_OPERANDS, InBlocks, packed_sample
from trustformers_ir.ir.ops.broadcast import require_equal, require_same_shape
from trustformers_ir.ir.ops.contract import unpacked
from trustformers_ir.ir.ops.quantized import F32, I8, I32, MOST_TERMS, SMALLEST_SCALE
from trustformers_ir.ir.rounding import fma_f32
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class QuantizeGroups(Op):
    """Symmetric 8-bit codes of each group of ``group`` neighbouring elements of a row (the last axis of x), all in f32::

        scale = max(max |x| / 127, 2**-126)
        q     = round(x * (1 / scale))          the product rounded once, to an integer, ties to even; in -127 … 127
        sum   = sum of the q of the group
        total = f32(sum) * scale

    A group that holds NaN has scale NaN, one that holds an infinity scale infinity; a code whose product is NaN is 0, and all that
    ``linear_blocks_int8`` makes of them is NaN. Results: q, scale, sum, total.
    """

    group: int

    mnemonic = "quantize_groups"
    operands = (Operand("x", F32),)
    constraints = {1: "x has an axis, whose size is a constant, a multiple of group", 2: f"group is 1 … {MOST_TERMS}"}
    fusion = FusionKind.REDUCTION
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(2, 1 <= self.group <= MOST_TERMS, str(self.group))
        columns = x.shape[-1] if x.rank else None
        self.require(1, isinstance(columns, int) and columns % self.group == 0, str(x))
        assert isinstance(columns, int)
        groups = TensorType((*x.shape[:-1], columns // self.group), DType.f32)
        return x.with_dtype(DType.i8), groups, groups.with_dtype(DType.i32), groups

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, self.group)
        scale = np.maximum(np.abs(groups).max(-1) / np.float32(127), np.float32(SMALLEST_SCALE))
        inverse = np.float32(1) / scale
        steps = np.rint(groups.astype(np.float64) * inverse.astype(np.float64)[..., None])  # exact products, so this rounds once
        q = np.where(np.isnan(steps), 0.0, steps).astype(np.int8)
        sums = q.sum(-1, dtype=np.int32)
        return q.reshape(x.shape), scale, sums, sums.astype(np.float32) * scale

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 5 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32 = DType.f32
        yield Sample(cls(32), (f32[3, 96],))
        yield Sample(cls(32), (f32["b", "s", 64],))
        yield Sample(cls(16), (f32["n", 48],))
        yield Sample(cls(6), (f32[12],))
        yield Sample(cls(32), (f32[2, 64],), low={"x": 0}, high={"x": 0})
        yield Sample(cls(32), (f32["n", 32],), low={"x": -3e38}, high={"x": 3e38})


@dataclass(frozen=True)
class DequantizeGroups(Op):
    """The numbers behind 8-bit codes in groups: ``y[…, n] = q[…, n] * scale[…, n // group]`` in f32, rounded once."""

    group: int

    mnemonic = "dequantize_groups"
    operands = (Operand("q", I8), Operand("scale", frozenset({DType.f16, DType.bf16, DType.f32})))
    constraints = {
        1: "q has an axis, whose size is a constant, a multiple of group",
        2: f"group is 1 … {MOST_TERMS}",
        3: "scale provably has the shape of q with its groups for its last axis",
    }
    fusion = FusionKind.INJECTIVE

    def infer(self, ctx: InferContext, q: TensorType, scale: TensorType) -> tuple[TensorType, ...]:
        self.require(2, 1 <= self.group <= MOST_TERMS, str(self.group))
        columns = q.shape[-1] if q.rank else None
        self.require(1, isinstance(columns, int) and columns % self.group == 0, str(q))
        assert isinstance(columns, int)
        require_same_shape(self, 3, ctx, scale.shape, (*q.shape[:-1], columns // self.group), "scale")
        return (q.with_dtype(DType.f32),)

    def reference(self, ctx: EvalContext, q: np.ndarray, scale: np.ndarray) -> Any:
        return q * np.repeat(scale, self.group, -1)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        i8, f16, f32 = DType.i8, DType.f16, DType.f32
        yield Sample(cls(32), (i8[3, 96], f32[3, 3]))
        yield Sample(cls(32), (i8["b", 2, "s", 64], f16["b", 2, "s", 2]))
        yield Sample(cls(6), (i8[12], DType.bf16[2]))


@dataclass(frozen=True)
class InBlocksInt8(InBlocks):
    """A product of 8-bit activations by matrices in blocks, whose planes may be packed and whose codes are unsigned. Constraint 6 is that of the
    activation."""

    planes_at = 4
    constraints = {
        **InBlocks.constraints,
        6: "x_scale, sum and total provably have the shape of q with its groups for its last axis",
    }

    @property
    def zero(self) -> int:
        """What is subtracted from every unsigned code."""
        return self.row.zero + (0 if self.row.paired else 128)

    @property
    def run(self) -> int:
        """Neighbouring elements of a group whose codes lie in neighbouring bytes."""
        return self.group // 2 if self.row.paired else self.group

    @property
    def zeros(self) -> bool:
        """Whether ``low`` says for each group what is subtracted from its codes instead."""
        return "low" in self.row.planes and self.row.planes["low"].dtype is DType.u8

    def require_groups(self, ctx: InferContext, q: TensorType, *about: TensorType | None) -> None:
        """What belongs to the groups of an activation is there for each."""
        k = q.shape[-1]
        assert isinstance(k, int)
        for p in about:
            assert p is not None
            require_same_shape(self, 6, ctx, p.shape, (*q.shape[:-1], k // self.group), "what belongs to the groups")

    def unpacked_planes(self, ctx: EvalContext, arrays: Sequence[np.ndarray | None], n: int, k: int) -> dict[str, np.ndarray]:
        """The planes of matrices ``[…, n, k]`` in rows, by name; of which the op has the types."""
        shapes, given = self.row.shapes(n, k, self.group), self.planes_of(*arrays)
        types = (t for t in ctx.operands[self.planes_at : self.planes_at + len(PLANES)] if t is not None)
        return {name: unpacked(plane, type.layout, shapes[name]) for (name, plane), type in zip(given.items(), types, strict=True)}

    def product_int8(
        self, q: np.ndarray, x_scale: np.ndarray, sums: np.ndarray, total: np.ndarray, given: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """``f32[…, n]``: the activation by the matrix ``[n, k]`` that planes in rows stand for."""
        n, k = len(given["codes"]), q.shape[-1]
        codes = given["codes"].astype(np.uint8)
        zero = given["low"] if self.zeros else np.full((n, k // self.group), self.zero)
        _, factor, moved = parts(self.row, self.group, {**given, "codes": signed(self.row, codes)}, np.float32)
        codes = unhalved(given, self.group) if self.row.paired else codes
        y = np.zeros((*q.shape[:-1], n), np.float32)
        for g in range(k // self.group):
            run = slice(g * self.group, (g + 1) * self.group)
            dots = (q[..., run].astype(np.float64) @ codes[:, run].T.astype(np.float64)).astype(np.int64)  # exact: below 2**53
            d = (dots - sums[..., g, None].astype(np.int64) * zero[:, g].astype(np.int64)).astype(np.int32).astype(np.float32)
            y = fma_f32(d, x_scale[..., g, None].astype(np.float32) * factor[:, g], y)
            if moved is not None:
                y = fma_f32(np.broadcast_to(total[..., g, None], y.shape), np.broadcast_to(moved[:, g], y.shape), y)
        return y


#: the activation as operands, and planes in any layout
ACTIVATION_OPERANDS = (Operand("q", I8), Operand("x_scale", F32), Operand("sum", I32), Operand("total", F32))
PACKED_OPERANDS = tuple(Operand(p.name, CODES if p.name == "codes" else p.dtypes, p.optional, any_layout=True) for p in PLANE_OPERANDS)


@dataclass(frozen=True)
class LinearBlocksInt8(InBlocksInt8):
    """``y[…, n] = sum over k of x[…, k] * w[n, k] + bias[n]`` for x in groups of 8-bit codes and w in the given format, with groups of one size.

    For the groups g of a row in order, from y = 0::

        d = sum over j of q[g, j] * code[n, g, j]  -  zero * sum[g]    exact, in i32
        y = fma(f32(d), scale_x[g] * (scale[n, g] * steps[n, g]), y)
        y = fma(total[g], low[n, g] * low_steps[n, g], y)              where the format adds such a low; -low where it is subtracted

    then ``y + bias[n]``. ``sum`` has the sums of q, so d is a sum of ``q * (code - zero)``; if it is something else, d wraps. Scales times steps are
    exact. Codes are unsigned: those of a format with signed ones are 128 more than there, and so is ``zero``. Planes may be packed.
    """

    mnemonic = "linear_blocks_int8"
    operands = (*ACTIVATION_OPERANDS, *PACKED_OPERANDS, Operand("bias", F32, optional=True))
    constraints = {
        1: "q has an axis, and codes is a matrix of u8",
        3: "the last size of q is a constant, a multiple of the format's blocks",
        **InBlocksInt8.constraints,
        7: "bias is a vector of provably as many elements as codes has rows",
    }
    fusion = FusionKind.CONTRACTION
    exact = True

    def infer(self, ctx: InferContext, *types: TensorType | None) -> tuple[TensorType, ...]:
        q, *about, codes, scale, low, steps, low_steps, high, bias = types
        assert q is not None and codes is not None
        self.require(1, q.rank >= 1 and codes.rank == 2 and codes.dtype is DType.u8, f"{q}, {codes}")
        self.require_group()
        k, n = q.shape[-1], codes.shape[0]
        self.require(3, isinstance(k, int), str(q))
        assert isinstance(k, int)
        self.require_planes(ctx, (n,), k, codes.with_dtype(self.row.planes["codes"].dtype), scale, low, steps, low_steps, high)
        self.require_groups(ctx, q, *about)
        if bias is not None:
            self.require(7, bias.rank == 1, str(bias))
            require_equal(self, 7, ctx, bias.shape[0], n, "the outputs")
        return (TensorType((*q.shape[:-1], n), DType.f32),)

    def reference(self, ctx: EvalContext, *arrays: np.ndarray | None) -> Any:
        q, x_scale, sums, total, *planes, bias = arrays
        assert q is not None and x_scale is not None and sums is not None and total is not None
        y = self.product_int8(q, x_scale, sums, total, self.unpacked_planes(ctx, planes, ctx.result_shape[-1], q.shape[-1]))
        return y if bias is None else y + bias.astype(np.float32)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def sample(format: Format, q: TensorType, n: int, bias: bool, group: int = 0, width: int = 0) -> Sample:
            group = FORMATS[format].group or group
            k = q.shape[-1]
            assert isinstance(k, int)
            planes, low, high = packed_sample(format, n, k, group, width)
            about = TensorType((*q.shape[:-1], k // group), DType.f32)
            types = (q, about, about.with_dtype(DType.i32), about, *planes, TensorType((n,), DType.f32) if bias else None)
            sums = 127 * group
            low, high = {**low, "q": -127, "x_scale": 0.001, "sum": -sums}, {**high, "q": 127, "x_scale": 0.02, "sum": sums}
            return Sample(cls(format, group), types, low, high)

        i8 = DType.i8
        yield sample(Format.Q8_0, i8[5, 64], 7, True)
        yield sample(Format.Q8_0, i8["n", 96], 40, False, width=32)
        yield sample(Format.Q4_0, i8["b", "s", 96], 33, True, width=16)
        yield sample(Format.Q4_0, i8["n", 64], 100, False, width=32)
        yield sample(Format.Q4_0, i8[32], 4, False)
        yield sample(Format.Q4_1, i8["n", 64], 17, True)
        yield sample(Format.Q4_1, i8[3, 128], 70, False, width=32)
        yield sample(Format.Q4_K, i8["n", 512], 21, True, width=16)
        yield sample(Format.Q6_K, i8[7, 256], 48, False, width=48)
        yield sample(Format.Q6_K, i8[3, 256], 5, True)
        yield sample(Format.Q5_0, i8["n", 96], 33, True, width=16)
        yield sample(Format.Q5_K, i8["n", 256], 20, False, width=32)
        yield sample(Format.IQ4_NL, i8["n", 96], 33, True, width=16)
        yield sample(Format.IQ4_XS, i8[7, 256], 48, False, width=48)
        yield sample(Format.MXFP4, i8["n", 64], 40, True, width=32)
        yield sample(Format.INT4, i8["n", 256], 32, True, group=128, width=32)
        yield sample(Format.INT4, i8[2, 12], 3, False, group=6)
        yield sample(Format.INT4_ZERO, i8["n", 128], 24, False, group=64, width=16)
