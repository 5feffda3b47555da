"""A cache in pages: texts of any length share one pool of memory, and a table says which pages a text has, in order.

Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023. A pool is ``[P, H, L, D]``: P pages of L
places for the key (or the value) of a token in each of H heads. ``pages`` is ``[B, T]``: the token at place p of sequence b lies at place
``p mod L`` of page ``pages[b, p // L]``. Pages may belong to several sequences as long as nobody writes to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_same_dtype
from trustformers_ir.ir.ops.cache import check_places
from trustformers_ir.ir.ops.index import resolve_indices
from trustformers_ir.ir.ops.nn import STARTS
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class PagedWrite(Op):
    """Rows written into pages: a copy of ``pool`` with ``y[pages[b, p // L], h, p mod L] = rows[b, h, i]`` for ``p = start[b] + i``.

    pool is ``[P, H, L, D]``, rows ``[B, H, S, D]``, start ``[B]`` and pages ``[B, T]``. All p lie in ``0 .. T * L - 1`` and all pages that are
    written in ``0 .. P - 1``, or it is an error at run time; a place is written once at most. Where the pool is a state of the function that nothing
    else reads, it is written in place.
    """

    mnemonic = "paged_write"
    operands = (Operand("pool"), Operand("rows"), Operand("start", STARTS), Operand("pages", STARTS))
    constraints = {
        1: "pool and rows have one dtype",
        2: "pool and rows have four axes, start has one, pages has two",
        3: "heads and features of pool and rows, and the sequences of rows, start and pages, provably agree",
        4: "the places of a page are a constant, 1 or more",
    }
    fusion = FusionKind.WRITE
    exact = True

    def infer(self, ctx: InferContext, pool: TensorType, rows: TensorType, start: TensorType, pages: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (pool, rows))
        self.require(2, pool.rank == rows.rank == 4 and start.rank == 1 and pages.rank == 2, f"{pool}, {rows}, {start}, {pages}")
        for axis, what in ((1, "heads"), (3, "features")):
            require_equal(self, 3, ctx, pool.shape[axis], rows.shape[axis], what)
        for other in (start, pages):
            require_equal(self, 3, ctx, rows.shape[0], other.shape[0], "sequences")
        self.require(4, isinstance(pool.shape[2], int) and pool.shape[2] > 0, str(pool))
        return (pool,)

    def reference(self, ctx: EvalContext, pool: np.ndarray, rows: np.ndarray, start: np.ndarray, pages: np.ndarray) -> Any:
        out, length, count = np.array(pool), pool.shape[2], rows.shape[2]
        places = pages.shape[1] * length
        for b, first in enumerate(start.tolist()):
            check_places(self, first, count, places)
            at = first + np.arange(count)
            out[resolve_indices(self, pages[b, at // length], pool.shape[0], "page"), :, at % length] = rows[b].transpose(1, 0, 2)
        return out

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[1] is not None
        return types[1].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32, bf16, i64, i32 = DType.f32, DType.bf16, DType.i64, DType.i32
        low, high = {"start": 0.0, "pages": 0.0}, {"start": 5.0, "pages": 8.0}
        yield Sample(cls(), (f32[9, 3, 4, 8], f32[1, 3, 6, 8], i64[1], i64[1, 3]), low, {"start": 5.0, "pages": 0.0})
        yield Sample(cls(), (bf16["p + 8", 2, 4, 16], bf16[1, 2, 1, 16], i32[1], i32[1, 2]), low, high)
        yield Sample(cls(), (DType.i8[9, 2, 64, 4], DType.i8["b", 2, 0, 4], i64["b"], i32["b", 1]), low, high)


@dataclass(frozen=True)
class PagedRead(Op):
    """The pages of each sequence behind each other: ``y[b, h, p] = pool[pages[b, p // L], h, p mod L]``.

    pool is ``[P, H, L, D]`` and pages ``[B, T]``; the result, ``[B, H, T * L, D]``, is what ``cached_attention`` takes. Compiled attention reads the
    pages where they lie.
    """

    mnemonic = "paged_read"
    operands = (Operand("pool"), Operand("pages", STARTS))
    constraints = {1: "pool has four axes, pages has two", 2: "the places of a page are a constant, 1 or more"}
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, pool: TensorType, pages: TensorType) -> tuple[TensorType, ...]:
        self.require(1, pool.rank == 4 and pages.rank == 2, f"{pool}, {pages}")
        _, heads, length, features = pool.shape
        self.require(2, isinstance(length, int) and length > 0, str(pool))
        return (TensorType((pages.shape[0], heads, pages.shape[1] * length, features), pool.dtype),)

    def reference(self, ctx: EvalContext, pool: np.ndarray, pages: np.ndarray) -> Any:
        taken = pool[resolve_indices(self, pages, pool.shape[0], "page")]  # [B, T, H, L, D]
        b, t, h, length, d = taken.shape
        return taken.transpose(0, 2, 1, 3, 4).reshape(b, h, t * length, d)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low, high = {"pages": 0.0}, {"pages": 4.0}
        yield Sample(cls(), (DType.f32[5, 3, 4, 8], DType.i64[2, 3]), low, high)
        yield Sample(cls(), (DType.f16["p + 4", 2, 64, 16], DType.i32["b", "t"]), low, high)
        yield Sample(cls(), (DType.i8[5, 1, 1, 6], DType.i32[2, 0]), low, high)
