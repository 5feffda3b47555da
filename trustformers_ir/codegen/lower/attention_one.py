"""Attention of one query of each sequence to its cache: all heads that read the same keys together, keys and features as lanes.

The loops of ``attention.py`` have queries as lanes, of which there is one here: fifteen of sixteen would do nothing. So lanes are other things, and
the order of additions is the same to the last bit, for a token has to be the same whether it is read alone or with others:

* scores: 64 keys of a block are turned round, 16 x 16 elements at a time in registers, and a score is the chain over features that it is there;
* the four running sums over a block are the lanes of a short vector;
* values: features are lanes, and the chain over keys is that of there.

Keys and values are read from memory once for all heads of a group (Ainslie et al. 2023), and blocks behind the query are not looked at. On one core,
SmolLM2's 9 heads over 3 of 64 features, 16 and 400 tokens, 30 layers: 11 -> 0.23 and 21 -> 1.5 ms for each token.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    LANES,
    PARALLEL,
    SCRATCH,
    SEQ,
    UNROLL,
    VECTOR,
    Axis,
    Buffer,
    Const,
    Expr,
    Reduce,
    binary,
    cast,
    const,
    select,
)
from trustformers_ir.codegen.lower.attention import CHAINS, KEY_BLOCK, is_made, made_block
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.nn import AttentionMath, normalised, score_shift
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.math import exp_down
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType

TILE = 24  # running sums of a register tile, of a vector each
VECTORS = KEY_BLOCK // LANES


def is_one_query(o: Operation) -> bool:
    """Whether these loops serve: one query, whole vectors of features, sums in f32, groups of heads whose size is known."""
    q, k, v = (x.type for x in o.inputs[:3])
    if not isinstance(o.op, ops.CachedAttention) or q.shape[2] != 1 or compute_dtype(q.dtype) is not DType.f32:
        return False
    sizes = (q.shape[3], v.shape[3])
    whole = all(isinstance(n, int) and n and n % LANES == 0 for n in sizes)
    return whole and isinstance(q.shape[1], int) and isinstance(k.shape[1], int)


def one_query_nest(d: Definer, o: Operation, emit: Callable[[Index, Expr], Store]) -> tuple[Stmt, ...]:
    """The loops; ``emit`` stores the element at ``(b, h, 0, e)`` given its value in the result's dtype."""
    return _OneQuery(d, o, emit).nest()


class _OneQuery:
    def __init__(self, d: Definer, o: Operation, emit: Callable[[Index, Expr], Store]) -> None:
        self.d, self.o, self.emit = d, o, emit
        a = self.a = AttentionMath(d, o)
        assert isinstance(a.features, int) and isinstance(a.value_features, int) and isinstance(a.group, int)
        self.features, self.value_features, self.group = a.features, a.value_features, a.group
        self.batch, self.kv = Axis("b", dim_expr(a.q.type.shape[0]), PARALLEL), Axis("h", dim_expr(a.k.type.shape[1]), PARALLEL)
        self.keys = dim_expr(a.keys)
        self.whole = d.facts.divisible(a.keys, KEY_BLOCK)  # no block of keys is cut short
        self.keys_made = made_block("keys", DType.f32, self.features) if is_made(d, a.k) else None
        self.block = Axis("block", (self.keys + (KEY_BLOCK - 1)) // KEY_BLOCK, SEQ)
        self.first = self.block * KEY_BLOCK
        f = DType.f32

        def rows(name: str, *shape: int) -> Buffer:
            return Buffer(name, f, (*map(const, shape),), space=SCRATCH)

        g = self.group
        self.kt, self.s = rows("kt", self.features, KEY_BLOCK), rows("s", g, KEY_BLOCK)
        self.acc, self.part = rows("acc", g, self.value_features), rows("part", g, CHAINS)
        self.top, self.shift, self.total, self.rescale = (rows(n, g) for n in ("top", "shift", "total", "rescale"))

    def nest(self) -> tuple[Stmt, ...]:
        zero, minus_infinity = Const(0, DType.f32), Const(-math.inf, DType.f32)
        start = self.rows(lambda r: (store(self.top, r, minus_infinity), store(self.total, r, zero)))
        clear = self.lanes(self.group, self.value_features, lambda r, e: store(self.acc, (r, e), zero))
        step = For(self.block, (*self.turned(), *self.scores(), *self.softmax(), *self.accumulated()), self.near())
        scale = self.rows(lambda r: (store(self.rescale, r, normalised(Const(1, DType.f32), self.total[r])),))

        def result(r: Expr, e: Expr) -> Stmt:
            value = cast(self.acc[r, e] * self.rescale[r], self.o.result.type.dtype)
            return self.emit((self.batch, self.head(r), const(0), e), value)

        return nest([self.batch, self.kv], start, *clear, step, scale, *self.lanes(self.group, self.value_features, result))

    # -- helpers -------------------------------------------------------------------------------------------------------

    def head(self, r: Expr) -> Expr:
        """The head of the group's query r."""
        return self.kv * self.group + r

    def rows(self, body: Callable[[Expr], tuple[Stmt, ...]]) -> For:
        """A loop over the queries of the group."""
        r = Axis("r", const(self.group), SEQ)
        return For(r, body(r))

    @staticmethod
    def lanes(count: int, width: int, body: Callable[[Expr, Expr], Stmt], vectors: int = 4) -> list[Stmt]:
        """Register tiles over ``count`` rows and ``width`` columns, of at most ``vectors`` vectors by as many rows as there is room for."""
        out: list[Stmt] = []
        columns = [(n, min(vectors * LANES, width - n)) for n in range(0, width, vectors * LANES)]
        for at, wide in columns:
            high = min(count, max(1, TILE // (wide // LANES)))
            for first, size in ((0, count // high), (count // high * high, 1 if count % high else 0)):
                if not size:
                    continue
                tall = high if first == 0 else count % high
                group, r = Axis("rs", const(size), SEQ), Axis("r", tall, UNROLL)
                u, lane = Axis("u", wide // LANES, UNROLL), Axis("lane", LANES, VECTOR)
                row = group * high + r if size > 1 else r + first
                tile = For(r, (For(u, (For(lane, (body(row, u * LANES + lane + at),)),)),))
                out.append(For(group, (tile,)) if size > 1 else tile)
        return out

    def near(self) -> Expr:
        """Whether a block has a key that the query may see by its position."""
        position = self.a.position(self.batch, const(0))
        near = self.first <= position
        return near if self.a.op.window is None else near & (self.first + KEY_BLOCK > position - self.a.op.window + 1)

    # -- one block of keys ---------------------------------------------------------------------------------------------

    def turned(self) -> list[Stmt]:
        """The keys of the block as columns; keys past the end repeat the last one."""

        def key(j: Expr, feature: Expr) -> Expr:
            at = self.first + j if self.whole else binary("min", self.first + j, self.keys - 1)
            return self.d.lifted(self.a.k, (self.batch, self.kv, at, feature))

        out: list[Stmt] = []
        if (made := self.keys_made) is not None:
            row, column = Axis("j", KEY_BLOCK, SEQ), Axis("x", self.features, VECTOR)
            out += nest([row, column], store(made, (row, column), key(row, column)))
        group, j = Axis("js", VECTORS, SEQ), Axis("j", LANES, VECTOR)
        features, x = Axis("xs", self.features // LANES, SEQ), Axis("x", LANES, UNROLL)
        at, feature = group * LANES + j, features * LANES + x
        turned = store(self.kt, (feature, at), key(at, feature) if made is None else made[at, feature])
        return [*out, For(group, (For(features, (For(x, (For(j, (turned,)),)),)),))]

    def scores(self) -> list[Stmt]:
        def dot(r: Expr, j: Expr) -> Stmt:
            x = Axis("x", self.features, SEQ)
            q = self.d.lifted(self.a.q, (self.batch, self.head(r), const(0), x))
            return store(self.s, (r, j), Reduce("sum", (x,), self.kt[x, j] * q))

        r, u, lane = Axis("r", const(self.group), SEQ), Axis("u", VECTORS, SEQ), Axis("lane", LANES, VECTOR)
        at = u * LANES + lane
        key = self.first + at
        here = (self.batch, self.head(r), const(0), binary("min", key, self.keys - 1))
        seen = self.a.visible(*here)
        exists = key < self.keys
        shown = exists if seen is None else binary("and", exists, seen)
        masked = select(shown, self.a.biased(self.s[r, at], *here), Const(-math.inf, DType.f32))
        return [*self.lanes(self.group, KEY_BLOCK, dot), For(r, (For(u, (For(lane, (store(self.s, (r, at), masked),)),)),))]

    def chains(self, kind: str, r: Expr) -> Stmt:
        """``part[r, c]``: the fold over the block's keys that are c modulo CHAINS."""
        c, j = Axis("c", CHAINS, VECTOR), Axis("j", KEY_BLOCK // CHAINS, SEQ)
        return For(c, (store(self.part, (r, c), Reduce(kind, (j,), self.s[r, j * CHAINS + c])),))

    def joined(self, op: str, r: Expr) -> Expr:
        """The chains put together."""
        a, b, c, d = (self.part[r, const(n)] for n in range(CHAINS))
        return binary(op, binary(op, a, b), binary(op, c, d))

    def softmax(self) -> list[Stmt]:
        def one(r: Expr) -> tuple[Stmt, ...]:
            u, lane = Axis("u", VECTORS, SEQ), Axis("lane", LANES, VECTOR)
            at = u * LANES + lane
            higher = binary("max", self.top[r], self.joined("max", r))
            return (
                self.chains("max", r),
                store(self.shift, r, score_shift(higher)),
                store(self.rescale, r, exp_down(self.top[r] - self.shift[r])),
                store(self.top, r, higher),
                For(u, (For(lane, (store(self.s, (r, at), exp_down(self.s[r, at] - self.shift[r])),)),)),
                self.chains("sum", r),
                store(self.total, r, self.total[r] * self.rescale[r] + self.joined("add", r)),
            )

        return [self.rows(one)]

    def accumulated(self) -> list[Stmt]:
        live = const(KEY_BLOCK) if self.whole else binary("min", const(KEY_BLOCK), self.keys - self.first)

        def add(r: Expr, e: Expr) -> Stmt:
            j = Axis("j", live, SEQ)
            v = self.d.lifted(self.a.v, (self.batch, self.kv, self.first + j, e))
            return store(self.acc, (r, e), self.acc[r, e] * self.rescale[r] + Reduce("sum", (j,), self.s[r, j] * v))

        return self.lanes(self.group, self.value_features, add)
