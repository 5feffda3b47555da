"""Memory that outlives a call: what a decoder has read is kept, and each call adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_same_dtype
from trustformers_ir.ir.ops.nn import STARTS, Attention
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


def check_places(op: Op, first: int, count: int, size: int) -> None:
    """``IndexError`` unless ``count`` places from ``first`` on lie within ``size``."""
    if count and not 0 <= first <= size - count:
        raise IndexError(f"{op.mnemonic}: place {first if first < 0 else first + count - 1} is out of range for size {size}")


@dataclass(frozen=True)
class CacheWrite(Op):
    """Rows written into a cache: a copy of ``cache`` with ``y[b, h, start[b] + i] = rows[b, h, i]``.

    cache is ``[B, H, C, D]``: C places for the key (or the value) of a token in each of H heads of B sequences; rows is ``[B, H, S, D]``, those of S
    new tokens; ``start[b]`` is how many tokens of sequence b are there already. All places lie in ``0 .. C - 1``, or it is an error at run time.
    Where the cache is a state of the function that nothing else reads, it is written in place.
    """

    mnemonic = "cache_write"
    operands = (Operand("cache"), Operand("rows"), Operand("start", STARTS))
    constraints = {
        1: "cache and rows have one dtype",
        2: "cache and rows have four axes, start has one",
        3: "sequences, heads and features of cache and rows, and the length of start, provably agree",
    }
    fusion = FusionKind.WRITE
    exact = True

    def infer(self, ctx: InferContext, cache: TensorType, rows: TensorType, start: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (cache, rows))
        self.require(2, cache.rank == rows.rank == 4 and start.rank == 1, f"{cache}, {rows}, {start}")
        for axis, what in ((0, "sequences"), (1, "heads"), (3, "features")):
            require_equal(self, 3, ctx, cache.shape[axis], rows.shape[axis], what)
        require_equal(self, 3, ctx, cache.shape[0], start.shape[0], "sequences of cache and start")
        return (cache,)

    def reference(self, ctx: EvalContext, cache: np.ndarray, rows: np.ndarray, start: np.ndarray) -> Any:
        out, count = np.array(cache), rows.shape[2]
        for b, first in enumerate(start.tolist()):
            check_places(self, first, count, cache.shape[2])
            out[b, :, first : first + count] = rows[b]
        return out

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[1] is not None
        return types[1].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32, bf16, i64, i32 = DType.f32, DType.bf16, DType.i64, DType.i32
        yield Sample(cls(), (f32[2, 3, 9, 8], f32[2, 3, 4, 8], i64[2]), {"start": 0}, {"start": 5})
        yield Sample(cls(), (bf16["b", 2, 12, 16], bf16["b", 2, 1, 16], i32["b"]), {"start": 0}, {"start": 11})
        yield Sample(cls(), (DType.f16[1, 1, "s + 3", 5], DType.f16[1, 1, "s", 5], i64[1]), {"start": 0}, {"start": 3})
        yield Sample(cls(), (DType.i8[3, 2, 6, 4], DType.i8[3, 2, 0, 4], i64[3]), {"start": 0}, {"start": 6})


@dataclass(frozen=True)
class CachedAttention(Attention):
    """``attention`` of new tokens to a cache: query i of sequence b stands at position ``start[b] + i``, not at the end of the keys.

    k is ``[B, Hk, C, D]`` and v ``[B, Hk, C, Dv]``, C places of which each sequence fills as many as it has tokens, those of the queries among them.
    ``causal`` and ``window`` count from the position of the query; the rest is as in ``attention``, but that a value which no query of the sequence
    may see by its position has no influence at all, or that of ``attention`` (it may not be finite there).
    """

    causal: bool = True

    mnemonic = "cached_attention"
    operands = (*Attention.operands, Operand("start", STARTS))  # type: ignore[assignment]
    constraints = {
        **Attention.constraints,
        7: "start has one axis, provably as long as the batch, and the attention is causal",
    }

    def infer(  # type: ignore[override]
        self,
        ctx: InferContext,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None,
        bias: TensorType | None,
        start: TensorType,
    ) -> tuple[TensorType, ...]:
        found = super().infer(ctx, q, k, v, mask, bias)
        self.require(7, self.causal and start.rank == 1, f"{self}, {start}")
        require_equal(self, 7, ctx, start.shape[0], q.shape[0], "sequences of start and q")
        return found

    def reference(  # type: ignore[override]
        self,
        ctx: EvalContext,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        mask: np.ndarray | None,
        bias: np.ndarray | None,
        start: np.ndarray,
    ) -> Any:
        return self.attend(q, k, v, mask, bias, start.astype(np.int64)[:, None, None, None])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32, low, high = DType.f32, {"start": 0.0}, {"start": 5.0}
        cache, half = f32["b", 2, "c", 16], DType.f16["b", 2, "c", 8]
        yield Sample(cls(), (f32["b", 4, "s", 16], cache, cache, None, None, DType.i64["b"]), low, high)
        yield Sample(cls(window=3), (f32[2, 3, 1, 8], f32[2, 1, 9, 8], f32[2, 1, 9, 4], None, None, DType.i32[2]), low, high)
        wide = DType.f64[1, 2, 8, 4]
        yield Sample(cls(scale=0.5, softcap=2.0), (DType.f64[1, 2, 3, 4], wide, wide, None, None, DType.i64[1]), low, high)
        q, mask = DType.f16["b", 4, 2, 8], DType.bool["b", 1, 1, "c"]
        yield Sample(cls(), (q, half, half, mask, None, DType.i64["b"]), low, high)
        long = f32[1, 2, 200, 8]
        yield Sample(cls(window=70), (f32[1, 2, 80, 8], long, long, None, f32[1, 2, 1, 200], DType.i64[1]), low, {"start": 120.0})
