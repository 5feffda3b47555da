"""Every numbered constraint of every op has an example here that violates it and nothing else before it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import Format
from trustformers_ir.ir.dims import Facts, SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops import PadMode, ScatterReduce
from trustformers_ir.ir.schema import OPS, ConstraintError, InferContext, Op, infer_types
from trustformers_ir.ir.types import ROW_MAJOR, Panels, TensorType

f32, f64, f16, f8, i64, i32, i8, u8, b8, c64 = (DType[n] for n in ("f32", "f64", "f16", "f8e4m3", "i64", "i32", "i8", "u8", "bool", "c64"))
N, M = symbol("n"), symbol("m")
FACTS = Facts({"n": SymbolFact(), "m": SymbolFact(), "z": SymbolFact(low=0)})
Types = list[TensorType | None]

# One operand pair that breaks the first, and one that breaks the second constraint of every op of this shape.
PAIRS: list[tuple[int, Types]] = [(1, [f32[3], f64[3]]), (2, [f32[3], f32[4]]), (2, [f32["n"], f32["m"]]), (2, [f32["n"], f32[5]])]
INTEGER_PAIRS: list[tuple[int, Types]] = [(1, [i32[3], i64[3]]), (2, [i32[3, 2], i32[2, 3]])]

QKV: Types = [f32[1, 2, 3, 4], f32[1, 2, 8, 4], f32[1, 2, 8, 4]]
CACHED: list[tuple[dict[str, Any], int, Types]] = [
    ({}, 1, [*QKV[:2], f64[1, 2, 8, 4], None, None]),
    ({}, 2, [f32[2, 3, 4], *QKV[1:], None, None]),
    ({}, 3, [f32[2, 2, 3, 4], *QKV[1:], None, None]),
    ({}, 4, [f32[1, 3, 3, 4], *QKV[1:], None, None]),
    ({}, 5, [*QKV, b8[2, 1, 3, 8], None]),
    ({"window": 0}, 6, [*QKV, None, None]),
]

ABOUT5 = (f32[5, 1], i32[5, 1], f32[5, 1])  # of five rows of 32 codes
ROWS: list[tuple[Op, int, Types]] = [
    *((kind(), number, types) for kind in OPS.values() if issubclass(kind, ops.BinaryOp) and f64 in kind.operands[0].dtypes
      for number, types in PAIRS),
    *((kind(), number, types) for kind in OPS.values() if issubclass(kind, ops.BinaryOp) and f64 not in kind.operands[0].dtypes
      for number, types in INTEGER_PAIRS),
    *((ops.MakeComplex(), number, types) for number, types in PAIRS),
    (ops.WeightOp("missing"), 1, []),
    (ops.Iota(3, b8), 1, []),
    (ops.DimSize(3, f32), 1, []),
    (ops.Select(), 1, [b8[3], f32[3], f64[3]]),
    (ops.Select(), 2, [b8[3], f32[3], f32[4]]),
    (ops.Select(), 2, [b8["n"], f32["m"], f32[()]]),
    (ops.Clamp(), 1, [f32[3]]),
    (ops.Clamp(math.nan), 2, [f32[3]]),
    (ops.Clamp(0.5), 3, [i32[3]]),
    (ops.Cast(f32), 1, [c64[3]]),
    (ops.Reshape((N - 5, 1)), 1, [f32["n - 5"]]),
    (ops.Reshape((2, 4)), 2, [f32[7]]),
    (ops.Reshape((N, 2)), 2, [f32["m", 2]]),
    (ops.Transpose((0, 0)), 1, [f32[2, 3]]),
    (ops.Transpose((0,)), 1, [f32[2, 3]]),
    (ops.Expand((N - 5,)), 1, [f32[1]]),
    (ops.Expand((4, 2)), 2, [f32[3, 1]]),
    (ops.Expand((4,)), 2, [f32[1, 4]]),
    (ops.Expand((N,)), 2, [f32["m"]]),
    (ops.Concat(0), 1, []),
    (ops.Concat(2), 2, [f32[2, 3]]),
    (ops.Concat(0), 3, [f32[2], f64[2]]),
    (ops.Concat(0), 4, [f32[2], f32[2, 2]]),
    (ops.Concat(0), 4, [f32[2, 3], f32[2, 4]]),
    (ops.Slice(1, 0, 1), 1, [f32[3]]),
    (ops.Slice(0, -1, 1), 2, [f32[3]]),
    (ops.Slice(0, 2, 1), 2, [f32[3]]),
    (ops.Slice(0, 0, 4), 2, [f32[3]]),
    (ops.Slice(0, 0, 4), 2, [f32["n"]]),
    (ops.Slice(0, 0, 2, 0), 3, [f32[3]]),
    (ops.Flip(-3), 1, [f32[2, 2]]),
    (ops.Pad((1,), (1, 1)), 1, [f32[2, 2]]),
    (ops.Pad((-1,), (0,)), 2, [f32[2]]),
    (ops.Pad((0,), (N - M,)), 2, [f32[2]]),
    (ops.Pad((2,), (0,), PadMode.EDGE), 3, [f32["z"]]),
    (ops.Pad((2,), (0,), PadMode.REFLECT), 3, [f32[2]]),
    (ops.Pad((1,), (0,), value=0.5), 4, [i32[2]]),
    (ops.Pad((1,), (0,), value=-1.0), 4, [u8[2]]),
    (ops.Pad((1,), (0,), value=2.0), 4, [b8[2]]),
    *((kind((1, 0)), 1, [TensorType((2, 2), min(kind.operands[0].dtypes, key=lambda d: d.name))])
      for kind in OPS.values() if issubclass(kind, ops.ReduceOp)),
    *((kind((-1,)), 1, [TensorType((2, 2), min(kind.operands[0].dtypes, key=lambda d: d.name))])
      for kind in OPS.values() if issubclass(kind, ops.ReduceOp)),
    *((kind((0,)), 2, [f32["z"]]) for kind in OPS.values() if issubclass(kind, ops.ReduceOp) and kind.needs_element),
    (ops.ReduceVar((0,), correction=-1), 2, [f32[3]]),
    (ops.ReduceStd((0,), correction=-1), 2, [f32[3]]),
    *((kind(2), 1, [f32[2, 2]]) for kind in (ops.ArgMax, ops.ArgMin, ops.CumSum, ops.CumProd, ops.Softmax, ops.LogSoftmax)),
    *((kind(0), 2, [f32["z"]]) for kind in (ops.ArgMax, ops.ArgMin)),
    (ops.TopK(1, 1), 1, [f32[2]]),
    (ops.TopK(0), 2, [f32[2]]),
    (ops.TopK(3), 2, [f32[2]]),
    (ops.TopK(3), 2, [f32["n"]]),
    (ops.Gather(2), 1, [f32[2, 2], i64[1]]),
    (ops.GatherElements(-2), 1, [f32[2], i64[2]]),
    (ops.GatherElements(0), 2, [f32[2], i64[2, 2]]),
    (ops.GatherElements(0), 3, [f32[2, 3], i64[2, 4]]),
    (ops.GatherElements(0), 3, [f32[2, "n"], i64[2, "m"]]),
    (ops.GatherNd(-1), 1, [f32[2], i64[1, 1]]),
    (ops.GatherNd(2), 1, [f32[2, 2, 2], i64[2, 1]]),
    (ops.GatherNd(), 2, [f32[2], i64[3, 2]]),
    (ops.GatherNd(), 2, [f32[2], i64[3, "n"]]),
    (ops.GatherNd(1), 3, [f32[2, 4], i64[3, 1]]),
    (ops.ScatterElements(1), 1, [f32[2], i64[2], f32[2]]),
    (ops.ScatterElements(0), 2, [f32[2], i64[2], f64[2]]),
    (ops.ScatterElements(0), 3, [f32[2], i64[2, 2], f32[2, 2]]),
    (ops.ScatterElements(0), 3, [f32[2], i64[2], f32[3]]),
    (ops.ScatterElements(0), 4, [f32[2, 2], i64[2, 3], f32[2, 3]]),
    (ops.ScatterElements(0, ScatterReduce.ADD), 5, [b8[2], i64[2], b8[2]]),
    (ops.ScatterElements(0, ScatterReduce.MAX), 5, [c64[2], i64[2], c64[2]]),
    (ops.ScatterNd(), 1, [f32[2], i64[()], f32[()]]),
    (ops.ScatterNd(), 1, [f32[2], i64[3, 2], f32[3]]),
    (ops.ScatterNd(), 1, [f32[2], i64[3, "n"], f32[3]]),
    (ops.ScatterNd(), 2, [f32[2], i64[3, 1], f64[3]]),
    (ops.ScatterNd(), 3, [f32[2, 4], i64[3, 1], f32[3]]),
    (ops.ScatterNd(), 3, [f32[2, 4], i64[3, 1], f32[3, 5]]),
    (ops.ScatterNd(ScatterReduce.MUL), 4, [b8[2], i64[3, 1], b8[3]]),
    (ops.Embedding(), 1, [f32[2], i64[3]]),
    (ops.OneHot(N - 5), 1, [i64[3]]),
    (ops.MatMul(), 1, [f32[2, 2], f64[2, 2]]),
    (ops.MatMul(), 2, [f32[2], f32[2, 2]]),
    (ops.MatMul(), 3, [f32[2, 3], f32[4, 2]]),
    (ops.MatMul(), 3, [f32[2, "n"], f32["m", 2]]),
    (ops.MatMul(), 4, [f32[2, 2, 3], f32[4, 3, 2]]),
    (ops.Linear(), 1, [f32[2], f32[2, 2], f64[2]]),
    (ops.Linear(), 2, [f32[()], f32[2, 2], None]),
    (ops.Linear(), 2, [f32[2], f32[2, 2], f32[2, 2]]),
    (ops.Linear(), 3, [f32[2], f32[2, 3], None]),
    (ops.Linear(), 4, [f32[2], f32[3, 2], f32[4]]),
    (ops.Pack(ROW_MAJOR), 1, [f32[2, 2]]),
    (ops.Pack(Panels(4)), 2, [f32[2]]),
    (ops.QuantizeDynamic(), 1, [f32[()]]),
    (ops.QuantizeStatic(), 1, [f32[2, 3], f32[2], i32[()]]),
    (ops.QuantizeStatic(), 1, [f32[3], f32[()], i32["n"]]),
    (ops.LinearInt8(), 1, [u8[()], f32[()], i32[()], i8[2, 2], f32[2], i32[2], None]),
    (ops.LinearInt8(), 1, [u8[2], f32[()], i32[()], i8[2], f32[2], i32[2], None]),
    (ops.LinearInt8(), 2, [u8[2], f32[()], i32[()], i8[2, 3], f32[2], i32[2], None]),
    (ops.LinearInt8(), 3, [u8[65794], f32[()], i32[()], i8[2, 65794], f32[2], i32[2], None]),
    (ops.LinearInt8(), 3, [u8["n"], f32[()], i32[()], i8[2, "n"], f32[2], i32[2], None]),
    (ops.LinearInt8(), 4, [u8[4, 3], f32[4, 1], i32[()], i8[2, 3], f32[2], i32[2], None]),
    (ops.LinearInt8(), 4, [u8[4, 3], f32[4], i32[4], i8[2, 3], f32[2], i32[2], None]),
    (ops.LinearInt8(), 5, [u8[4, 3], f32[()], i32[()], i8[2, 3], f32[3], i32[2], None]),
    (ops.LinearInt8(), 5, [u8[4, 3], f32[()], i32[()], i8[2, 3], f32[2], i32[2], f32[2, 1]]),
    (ops.QuantizeF8(), 1, [f32[()]]),
    (ops.LinearF8(), 1, [f8[()], f32[()], f8[2, 2], f32[2], None]),
    (ops.LinearF8(), 1, [f8[2], f32[1], f8[2], f32[2], None]),
    (ops.LinearF8(), 2, [f8[2], f32[1], f8[2, 3], f32[2], None]),
    (ops.LinearF8(), 3, [f8[4, 3], f32[()], f8[2, 3], f32[2], None]),
    (ops.LinearF8(), 3, [f8["n", 3], f32[4, 1], f8[2, 3], f32[2], None]),
    (ops.LinearF8(), 4, [f8[4, 3], f32[4, 1], f8[2, 3], f32[3], None]),
    (ops.LinearF8(), 4, [f8[4, 3], f32[4, 1], f8[2, 3], f32[2], f32[1, 2]]),
    (ops.Cast(DType.i8), 2, [f8[2]]),
    (ops.Cast(DType.f8e4m3), 2, [DType.f64[2]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 1, [u8[16], f16[2, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 1, [u8[2, "n"], f16[2, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 64), 2, [u8[2, 32], f16[2, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.INT4, 3), 2, [u8[2, 3], f16[2, 2], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 3, [u8[2, 24], f16[2, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 3, [u8[2, 0], f16[2, 0], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 4, [i8[2, 16], f16[2, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_1, 32), 4, [u8[2, 16], f16[2, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 5, [u8[2, 16], f16[3, 1], None, None, None, None, i64[3]]),
    (ops.EmbeddingBlocks(Format.Q4_0, 32), 5, [u8[2, 16], f16[2, 2], None, None, None, None, i64[3]]),
    (ops.LinearBlocks(Format.Q4_0, 32), 1, [f32[()], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 1, [f32[32], u8[32], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 64), 2, [f32[64], u8[2, 32], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.INT4, 3), 2, [f32[6], u8[2, 3], f16[2, 2], None, None, None, None, None]),
    (ops.LinearBlocks(Format.INT4, 0), 2, [f32[6], u8[2, 3], f16[2, 2], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 3, [f32[48], u8[2, 24], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 3, [f32["n"], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 3, [f32[3, 0], u8[2, 0], f16[2, 0], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 4, [f32[32], i8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 4, [f32[32], u8[2, 16], f16[2, 1], f16[2, 1], None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_1, 32), 4, [f32[32], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_1, 32), 4, [f32[32], u8[2, 16], f16[2, 1], u8[2, 1], None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 5, [f32[32], u8[2, 32], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 5, [f32[32], u8[2, 16], f16[3, 1], None, None, None, None, None]),
    (ops.LinearBlocks(Format.Q4_0, 32), 6, [f32[32], u8[2, 16], f16[2, 1], None, None, None, None, f16[2]]),
    (ops.LinearBlocks(Format.Q4_0, 32), 6, [f32[32], u8[2, 16], f16[2, 1], None, None, None, None, f32[2, 1]]),
    (ops.LinearBlocks(Format.Q4_0, 32), 6, [f32[32], u8[2, 16], f16[2, 1], None, None, None, None, f32[3]]),
    (ops.QuantizeGroups(4), 1, [f32[()]]),
    (ops.QuantizeGroups(4), 1, [f32["n"]]),
    (ops.QuantizeGroups(4), 1, [f32[2, 6]]),
    (ops.QuantizeGroups(0), 2, [f32[2, 4]]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 1, [i8[()], f32[1], i32[1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 1, [i8[32], f32[1], i32[1], f32[1], u8[32], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q8_0, 32), 1, [i8[32], f32[1], i32[1], f32[1], i8[2, 32], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 64), 2, [i8[64], f32[1], i32[1], f32[1], u8[2, 32], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 3, [i8["n"], f32[1], i32[1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 3, [i8[48], f32[1], i32[1], f32[1], u8[2, 24], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_1, 32), 4, [i8[32], f32[1], i32[1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 5, [i8[32], f32[1], i32[1], f32[1], u8[2, 16], f16[3, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 6, [i8[32], f32[2], i32[1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 6, [i8[3, 32], f32[3, 1], i32[3, 1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, None]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 7, [i8[32], f32[1], i32[1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, f32[2, 1]]),
    (ops.LinearBlocksInt8(Format.Q4_0, 32), 7, [i8[32], f32[1], i32[1], f32[1], u8[2, 16], f16[2, 1], None, None, None, None, f32[3]]),
    (ops.ExpertBlocks(Format.Q4_0, 32), 1, [f32[()], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_0, 32), 1, [f32[4, 32], u8[2, 16], f16[2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_0, 64), 2, [f32[4, 64], u8[3, 2, 32], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_0, 32), 3, [f32[4, 48], u8[3, 2, 24], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_0, 32), 3, [f32[4, "n"], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_1, 32), 4, [f32[4, 32], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_0, 32), 5, [f32[4, 32], u8[3, 2, 16], f16[4, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocks(Format.Q4_0, 32), 6, [f32[5, 32], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_0, 32), 1, [i8[()], f32[1], i32[1], f32[1], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q8_0, 32), 1, [i8[32], f32[1], i32[1], f32[1], i8[3, 2, 32], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_0, 64), 2, [i8[64], f32[1], i32[1], f32[1], u8[3, 2, 32], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_0, 32), 3, [i8["n"], f32[1], i32[1], f32[1], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_1, 32), 4, [i8[32], f32[1], i32[1], f32[1], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_0, 32), 5, [i8[32], f32[1], i32[1], f32[1], u8[3, 2, 16], f16[3, 3, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_0, 32), 6, [i8[32], f32[2], i32[1], f32[1], u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.ExpertBlocksInt8(Format.Q4_0, 32), 7, [i8[5, 32], *ABOUT5, u8[3, 2, 16], f16[3, 2, 1], None, None, None, None, i64[4]]),
    (ops.Einsum("ij"), 1, [f32[2, 2]]),
    (ops.Einsum("i1->i"), 1, [f32[2, 2]]),
    (ops.Einsum("...i...->i"), 1, [f32[2, 2]]),
    (ops.Einsum("i, j->ij"), 1, [f32[2], f32[2]]),
    (ops.Einsum("i,j->ij"), 2, [f32[2]]),
    (ops.Einsum("i,j->ij"), 3, [f32[2], f64[2]]),
    (ops.Einsum("ij->i"), 4, [f32[2]]),
    (ops.Einsum("...ij->..."), 4, [f32[2]]),
    (ops.Einsum("i,i->"), 5, [f32[2], f32[3]]),
    (ops.Einsum("i,i->"), 5, [f32["n"], f32["m"]]),
    (ops.Einsum("...i,...i->..."), 5, [f32[4, 2], f32[3, 2]]),
    (ops.Einsum("i->j"), 6, [f32[2]]),
    (ops.Einsum("i->ii"), 6, [f32[2]]),
    (ops.Einsum("...i->i"), 6, [f32[2, 2]]),
    (ops.Einsum("i->...i"), 6, [f32[2]]),
    *((op, number, types) for conv, x in ((ops.Conv1d, [5]), (ops.Conv2d, [5, 5])) for op, number, types in [
        (conv(), 1, [TensorType((1, 2, *x), f32), TensorType((4, 2, *(3 for _ in x)), f64), None]),
        (conv(), 2, [TensorType((1, 2, *x, 1), f32), TensorType((4, 2, *(3 for _ in x)), f32), None]),
        (conv(), 2, [TensorType((1, 2, *x), f32), TensorType((4, 2, *(3 for _ in x)), f32), f32[4, 1]]),
        (conv(groups=0), 3, [TensorType((1, 2, *x), f32), TensorType((4, 2, *(3 for _ in x)), f32), None]),
        (conv(), 4, [TensorType((1, 3, *x), f32), TensorType((4, 2, *(3 for _ in x)), f32), None]),
        (conv(groups=2), 5, [TensorType((1, 4, *x), f32), TensorType((3, 2, *(3 for _ in x)), f32), None]),
        (conv(), 6, [TensorType((1, 2, *x), f32), TensorType((4, 2, *(3 for _ in x)), f32), f32[3]]),
        (conv(), 7, [TensorType((1, 2, *x), f32), TensorType((4, 2, *(6 for _ in x)), f32), None]),
    ]),
    (ops.Conv1d(stride=0), 3, [f32[1, 2, 5], f32[4, 2, 3], None]),
    (ops.Conv1d(padding=(-1, 0)), 3, [f32[1, 2, 5], f32[4, 2, 3], None]),
    (ops.Conv1d(), 7, [f32[1, 2, "n"], f32[4, 2, 3], None]),
    *((ops.Conv((1,), (0,), (0,), (1,), g), number, types) for g, number, types in [
        (1, 1, [f32[1, 2, 5], f64[4, 2, 3], None]),
        (1, 2, [f32[1, 2, 5, 1], f32[4, 2, 3], None]),
        (0, 3, [f32[1, 2, 5], f32[4, 2, 3], None]),
        (1, 4, [f32[1, 3, 5], f32[4, 2, 3], None]),
        (2, 5, [f32[1, 4, 5], f32[3, 2, 3], None]),
        (1, 6, [f32[1, 2, 5], f32[4, 2, 3], f32[3]]),
        (1, 7, [f32[1, 2, 5], f32[4, 2, 6], None]),
    ]),
    (ops.Conv((1, 1), (0,), (0,), (1,)), 8, [f32[1, 2, 5], f32[4, 2, 3], None]),
    (ops.Unfold(()), 1, [f32[3]]),
    (ops.Unfold((ops.Window(1), ops.Window(1))), 1, [f32[3]]),
    (ops.Unfold((ops.Window(0),)), 2, [f32[3]]),
    (ops.Unfold((ops.Window(2, 1, -1),)), 2, [f32[3]]),
    (ops.Unfold((ops.Window(4),)), 3, [f32[3]]),
    (ops.Unfold((ops.Window(2),)), 3, [f32["n"]]),
    (ops.Unfold((ops.Window(2),), 0.5), 4, [i64[3]]),
    (ops.BitCast(f32), 1, [f64[3]]),
    (ops.NonZero(symbol("k")), 1, [TensorType((2, 3), DType.bool)]),
    (ops.NonZero(7), 2, [TensorType((3,), DType.bool)]),
    (ops.NonZero(symbol("n")), 2, [TensorType(("n",), DType.bool)]),
    (ops.Suppress(), 1, [TensorType((3, 3), DType.bool), TensorType((2, 3), DType.bool)]),
    (ops.Suppress(), 2, [TensorType((3, 4), DType.bool), TensorType((3,), DType.bool)]),
    (ops.Check(""), 1, [f32[3], i64[1]]),
    (ops.Check(""), 2, [f32[()], i64[()]]),
    (ops.LayerNorm(), 1, [f32[2, 3], f32[3], f64[3]]),
    (ops.LayerNorm(), 2, [f32[3], f32[3, 3], None]),
    (ops.LayerNorm(), 2, [f32[()], None, None]),
    (ops.LayerNorm(), 3, [f32[2, 3], f32[2], None]),
    (ops.LayerNorm(), 3, [f32[2, 3], f32[3], f32[2, 3]]),
    (ops.LayerNorm(-1.0), 4, [f32[2, 3], f32[3], None]),
    (ops.RmsNorm(), 1, [f32[2, 3], f64[3]]),
    (ops.RmsNorm(), 2, [f32[3], f32[3, 3]]),
    (ops.RmsNorm(), 3, [f32[2, 3], f32[2]]),
    (ops.RmsNorm(), 3, [f32[2, "n"], f32["m"]]),
    (ops.RmsNorm(-1.0), 4, [f32[2, 3], f32[3]]),
    (ops.Rope(), 1, [f32[5, 4], f64[5, 2], f64[5, 2]]),
    (ops.Rope(), 2, [f32[5, 4], f32[()], f32[()]]),
    (ops.Rope(), 2, [f32[5, 4], f32[5, 2], f32[5, 1]]),
    (ops.Rope(), 3, [f32[5, 4], f32[5, 3], f32[5, 3]]),
    (ops.Rope(), 3, [f32[5, "n"], f32[5, 3], f32[5, 3]]),
    (ops.Rope(), 4, [f32[5, 4], f32[4, 2], f32[4, 2]]),
    (ops.Rope(), 4, [f32[5, 4], f32[2, 5, 2], f32[2, 5, 2]]),
    (ops.ExpertMatMul(), 1, [f32[2, 3], f64[4, 3, 5], i64[2]]),
    (ops.ExpertMatMul(), 2, [f32[2, 3], f32[3, 5], i64[2]]),
    (ops.ExpertMatMul(), 3, [f32[2, 3], f32[4, 2, 5], i64[2]]),
    (ops.ExpertMatMul(), 4, [f32[2, 3], f32[4, 3, 5], i64[3]]),
    (ops.Attention(), 1, [f32[1, 2, 3, 4], f32[1, 2, 3, 4], f64[1, 2, 3, 4], None, None]),
    (ops.Attention(), 2, [f32[2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.Attention(), 3, [f32[2, 2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.Attention(), 3, [f32[1, 2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 5, 4], None, None]),
    (ops.Attention(), 3, [f32[1, 2, 3, 5], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.Attention(), 4, [f32[1, 3, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.Attention(), 5, [f32[1, 2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], b8[2, 1, 3, 3], None]),
    (ops.Attention(), 5, [f32[1, 2, "n", 4], f32[1, 2, "m", 4], f32[1, 2, "m", 4], None, f32["n", "n"]]),
    (ops.Attention(window=0), 6, [f32[1, 2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.CacheWrite(), 1, [f32[1, 2, 8, 4], f64[1, 2, 1, 4], i64[1]]),
    (ops.CacheWrite(), 2, [f32[1, 2, 8, 4], f32[2, 1, 4], i64[1]]),
    (ops.CacheWrite(), 3, [f32[1, 2, 8, 4], f32[1, 3, 1, 4], i64[1]]),
    (ops.CacheWrite(), 3, [f32[1, 2, 8, 4], f32[1, 2, 1, 4], i64["n"]]),
    (ops.PagedWrite(), 1, [f32[9, 2, 8, 4], f64[1, 2, 1, 4], i64[1], i64[1, 3]]),
    (ops.PagedWrite(), 2, [f32[9, 2, 8, 4], f32[1, 2, 1, 4], i64[1], i64[3]]),
    (ops.PagedWrite(), 3, [f32[9, 2, 8, 4], f32[1, 3, 1, 4], i64[1], i64[1, 3]]),
    (ops.PagedWrite(), 3, [f32[9, 2, 8, 4], f32[1, 2, 1, 4], i64[1], i64[2, 3]]),
    (ops.PagedWrite(), 4, [f32[9, 2, "n", 4], f32[1, 2, 1, 4], i64[1], i64[1, 3]]),
    (ops.PagedRead(), 1, [f32[9, 8, 4], i64[1, 3]]),
    (ops.PagedRead(), 2, [f32[9, 2, "n", 4], i64[1, 3]]),
    (ops.DequantizeGroups(32), 1, [i8[2, 33], f32[2, 1]]),
    (ops.DequantizeGroups(0), 2, [i8[2, 32], f32[2, 1]]),
    (ops.DequantizeGroups(16), 3, [i8[2, 32], f32[2, 1]]),
    *((ops.CachedAttention(**options), number, [*types, i64[1]]) for options, number, types in CACHED),
    (ops.CachedAttention(causal=False), 7, [f32[1, 2, 3, 4], f32[1, 2, 8, 4], f32[1, 2, 8, 4], None, None, i64[1]]),
    (ops.CachedAttention(), 7, [f32[1, 2, 3, 4], f32[1, 2, 8, 4], f32[1, 2, 8, 4], None, None, i64[2]]),
    (ops.Attention(softcap=0.0), 6, [f32[1, 2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.Attention(scale=math.inf), 6, [f32[1, 2, 3, 4], f32[1, 2, 3, 4], f32[1, 2, 3, 4], None, None]),
    (ops.PackedAttention(), 1, [f32[3, 2, 4], f32[3, 2, 4], f64[3, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(), 1, [f32[3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2], DType.i32[2]]),
    (ops.PackedAttention(), 2, [f32[1, 3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(), 2, [f32[3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2, 1], i64[2]]),
    (ops.PackedAttention(), 3, [f32[3, 2, 4], f32[3, 2, 4], f32[5, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(), 3, [f32[3, 2, 5], f32[3, 2, 4], f32[3, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(), 3, [f32[3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64["n"], i64["m"]]),
    (ops.PackedAttention(), 4, [f32[3, 3, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(window=0), 5, [f32[3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(softcap=0.0), 5, [f32[3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2], i64[2]]),
    (ops.PackedAttention(scale=math.inf), 5, [f32[3, 2, 4], f32[3, 2, 4], f32[3, 2, 4], i64[2], i64[2]]),
    (ops.Dropout(1.5), 1, [f32[3]]),
]  # fmt: skip

IN_THE_VERIFIER = {"fused"}  # constraints about a body, which inference does not see


def test_every_constraint_has_a_violation() -> None:
    have = {(op.mnemonic, number) for op, number, _ in ROWS}
    wanted = {(kind.mnemonic, number) for kind in OPS.values() if kind.mnemonic not in IN_THE_VERIFIER for number in kind.constraints}
    assert wanted - have == set()
    assert have - wanted == set()


@pytest.mark.parametrize(("op", "number", "types"), ROWS, ids=[f"{op.mnemonic}.C{number}-{i}" for i, (op, number, _) in enumerate(ROWS)])
def test_a_violation_is_cited_by_number(op: Op, number: int, types: Types) -> None:
    with pytest.raises(ConstraintError) as caught:
        infer_types(op, types, InferContext(FACTS, {}))
    assert caught.value.rule == f"{op.mnemonic}.C{number}", str(caught.value)
    assert op.constraints[number] in str(caught.value)


@pytest.mark.parametrize(
    ("op", "types", "missing"),
    [
        (ops.Add(), [f32["n"], f32["m"]], "cannot decide whether n == m; a fact that settles"),
        (ops.Reshape((N, 2)), [f32["m", 2]], "cannot decide whether"),
        (ops.Slice(0, 0, 4), [f32["n"]], "cannot decide whether 4 <= n"),
        (ops.MatMul(), [f32[2, "n"], f32["m", 2]], "cannot decide whether n == m"),
        (ops.Conv1d(), [f32[1, 2, "n"], f32[4, 2, 3], None], "cannot decide whether 3 <= n"),
        (ops.Expand((N,)), [f32["m"]], "cannot decide whether m == n"),
    ],
)
def test_an_open_question_names_the_missing_fact(op: Op, types: Types, missing: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        infer_types(op, types, InferContext(FACTS, {}))
    assert missing in caught.value.detail
    assert "known: " in caught.value.detail


@pytest.mark.parametrize(
    ("op", "types", "rule"),
    [
        (ops.Add(), [f32[3]], "add.O1"),
        (ops.Neg(), [f32[3], f32[3]], "neg.O1"),
        (ops.Linear(), [f32[3], f32[3, 3]], "linear.O1"),
        (ops.Exp(), [i64[3]], "exp.O2"),
        (ops.Gather(), [f32[3], f32[3]], "gather.O2"),
        (ops.MatMul(), [f32[3, 3], None], "matmul.O3"),
        (ops.Neg(), [TensorType((4, 4), f32, Panels(4))], "neg.O4"),
        (ops.Linear(), [TensorType((4, 4), f32, Panels(4)), f32[4, 4], None], "linear.O4"),
    ],
)
def test_operand_lists_are_checked_first(op: Op, types: Types, rule: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        infer_types(op, types, InferContext(FACTS, {}))
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("op", "types", "result"),
    [
        (ops.Add(), [f32["n", 1], f32[1, "m"]], f32["n", "m"]),
        (ops.Add(), [f32["n"], f32[()]], f32["n"]),
        (ops.Reshape((N * 4,)), [f32["n", 4]], f32["4*n"]),
        (ops.Concat(0), [f32["n", 2], f32["m", 2]], f32["n + m", 2]),
        (ops.Slice(0, 0, N, 2), [f32["n"]], f32["(n + 1)//2"]),
        (ops.Slice(0, N - 1, N), [f32["n"]], f32[1]),
        (ops.Pad((M,), (1,)), [f32["n"]], f32["n + m + 1"]),
        (ops.Gather(1), [f32["n", 5, 3], i64["m", 2]], f32["n", "m", 2, 3]),
        (ops.Conv1d(2, (1, 1)), [f32["n", 3, "2*m + 1"], f32[8, 3, 3], None], f32["n", 8, "m + 1"]),
        (ops.Attention(), [f16["n", 8, "m", 64], f16["n", 2, "z", 64], f16["n", 2, "z", 32], None, None], f16["n", 8, "m", 32]),
        (ops.ReduceMax((1,), True), [i32["n", 3]], i32["n", 1]),
        (ops.Linear(), [f32["n", "m", 3], TensorType((5, 3), f32, Panels(4)), None], f32["n", "m", 5]),
    ],
)
def test_symbolic_results(op: Op, types: Types, result: Any) -> None:
    assert infer_types(op, types, InferContext(FACTS, {})) == (result,)
