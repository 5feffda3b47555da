"""Attention of few queries to many keys: each program takes a part of the keys, and a second kernel joins what they found.

Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018, section 3.1; Dao et al., "Flash-Decoding for long-context inference", 2023.
One query keeps one program busy, however many processors there are, so the keys are cut at fixed places: part p has keys ``[p C, (p + 1) C)``, with
its own largest score m, sum l and unfinished result a, all relative to m. Then ::

    M = max_p m;  out = sum_p 2^(m - M) a / sum_p 2^(m - M) l

C is a constant of the target's tiles (``flash_tiles.py``), never made of the number of processors: the same request has the same result on every
machine of a kind, and alone as in a batch. The parts are joined in the order of a fixed tree.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, nest
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, TILE, Axis, Buffer, Const, Expr, Reduce, binary, cast, unary
from trustformers_ir.codegen.lower.blocks import covering
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.nn import AttentionMath, normalised, score_shift
from trustformers_ir.codegen.lower.flash import DenseFlash, Emit, Rows, parallel, within
from trustformers_ir.codegen.lower.flash_tiles import FlashTile
from trustformers_ir.codegen.lower.indexing import dim_expr, temporary_view
from trustformers_ir.codegen.program import Temporary
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim, floordiv
from trustformers_ir.ir.types import TensorType

JOINED = 32  # parts that are joined at once


@dataclass(frozen=True)
class Parts:
    """What the first kernel leaves for the second: ``acc[b, h, i, p, e]``, ``top[b, h, i, p]`` in powers of two, and ``total[b, h, i, p]``."""

    count: Dim
    acc: Temporary
    top: Temporary
    total: Temporary

    @classmethod
    def of(cls, o: Operation, tile: FlashTile) -> Parts:
        q, k, v = (x.type for x in o.inputs[:3])
        dtype = compute_dtype(q.dtype)
        count = floordiv(k.shape[2] + (tile.chunk - 1), tile.chunk)
        rows = (*q.shape[:3], count)
        acc = TensorType((*rows, v.shape[3]), dtype)
        return cls(count, Temporary("acc_parts", acc), Temporary("tops", TensorType(rows, dtype)), Temporary("totals", TensorType(rows, dtype)))

    def buffers(self, readonly: bool) -> dict[Temporary, Buffer]:
        """A kernel's view of them."""
        return {t: temporary_view(t, readonly) for t in (self.acc, self.top, self.total)}


def part_nest(d: Definer, o: Operation, parts: Parts, buffers: dict[Temporary, Buffer], tile: FlashTile) -> tuple[Stmt, ...]:
    """The first kernel: a block of rows and a part of the keys for each program."""
    a = AttentionMath(d, o)
    rows = Rows.of(a, tile)
    part = Axis("part", dim_expr(parts.count), PARALLEL)
    per = tile.chunk // tile.keys
    flash = DenseFlash(a, rows, tile, (part * per, part * per + per))
    acc, top, total = (buffers[t] for t in (parts.acc, parts.top, parts.total))

    def place(i: Axis) -> tuple[Expr, ...]:
        row = rows.first + i
        return rows.batch, rows.head_of(row), rows.query(row), part

    i, e = flash.i(), flash.e()
    there = within((rows.first + i, rows.count))
    highest = flash.top[i] if flash.factor is None else flash.top[i] * flash.factor
    numbers = For(i, (Store(top, place(i), highest), Store(total, place(i), flash.total[i])), there)
    features = For(e, (Store(acc, (*place(i), e), flash.acc[i, e]),), within((e, dim_expr(flash.value_features))))
    return nest([*rows.loops, part], *flash.start(), *flash.blocks(), numbers, For(i, (features,), there))


def join_nest(o: Operation, emit: Emit, parts: Parts, buffers: dict[Temporary, Buffer]) -> tuple[Stmt, ...]:
    """The second kernel: one row of the result for each program."""
    shape = o.result.type.shape
    assert isinstance(shape[3], int)
    place = tuple(parallel(n, dim_expr(size)) for n, size in zip(("b", "h", "i"), shape[:3], strict=True))
    acc, top, total = (buffers[t] for t in (parts.acc, parts.top, parts.total))
    count = dim_expr(parts.count)

    def axes() -> tuple[tuple[Axis, Axis], Expr, Expr]:
        outer, inner = Axis("p", (count + (JOINED - 1)) // JOINED, SEQ), Axis("p.i", JOINED, TILE)
        p = outer * JOINED + inner
        return (outer, inner), p, p < count

    over, p, there = axes()
    shift = score_shift(Reduce("max", over, top[(*place, p)], there))

    def summed(what: Buffer, *feature: Axis) -> Expr:
        over, p, there = axes()
        value = unary("fast_exp2", top[(*place, p)] - shift) * what[(*place, p, *feature)]
        inside = there if not feature else binary("and", there, feature[0] < dim_expr(shape[3]))
        return Reduce("sum", over, value, inside)

    e = Axis("e", covering(shape[3]), TILE)
    value = cast(summed(acc, e) * normalised(Const(1, acc.dtype), summed(total)), o.result.type.dtype)
    loops = [x for x in place if isinstance(x, Axis)]
    return nest(loops, For(e, (emit((*place, e), value),), within((e, dim_expr(shape[3])))))
