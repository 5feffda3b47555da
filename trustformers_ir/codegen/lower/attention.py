"""Attention as one kernel: online softmax over fixed blocks of keys, memory constant per worker.

Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022. For a tile of query rows and each
block of keys, by absolute position::

    s[j, i]  = score(q_i . k_j)                      (-inf where j may not be seen)
    m'       = max(m, max_j s);  c = exp(m - m');  p[j, i] = exp(s[j, i] - m')
    l        = l * c + sum_j p;  acc = acc * c + v^T @ p

and at the end ``out = acc * (1 / l)`` (or acc, which is zero, for a row that sees nothing). Where m' is -inf, 0 takes its place; a NaN or a
score of +inf gives NaN through m and l, as in the reference. A block of masked keys leaves m, l and acc as they were, bit for bit (c is
exp(0) = 1, p is 0), and the blocks do not depend on threads or on the query tile: padding keys or splitting the batch changes no bit.
Blocks that no query of a tile may see by its position (above the diagonal, or before the window) are left out but for what NaN in v makes of them;
where keys and values are a cache, without that.
On one core, 12 heads of 64 features, 512 tokens: causal 11.8 -> 7.3 ms, causal with a window of 100 12.3 -> 4.5 ms.

The lanes of vectors are *queries*, 32 of them or the last 16, so everything is transposed: scores are a tile ``keys x queries``, of which a
key's feature is one broadcast straight from memory; maximum and sum over the keys add whole vectors, with no step across lanes. q is turned
round once per tile on the way in, the result once on the way out, 16 x 16 elements at a time in registers. (With keys as lanes, each row of
each block waited for two trees of shuffles, and all of K was gathered into transposed panels: 93 and 112 GFLOP/s on one core for heads of
32 and 64 features and 128 tokens, where this form makes 157 and 179. With 16 queries alone there are sixteen broadcasts
per step instead of eight: 166.)

Keys and values that are not there as numbers to compute with (16 bits, codes with scales, pages) are made a block at a time, before anything is
done with the block: each is read for every query of the tile.

Sums over a block: four running sums, of the keys j = 0, 1, 2, 3 modulo 4, joined as (0 + 1) + (2 + 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    unary,
)
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.nn import AttentionMath, normalised, score_shift
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.math import exp_down
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import AttentionChoice

KEY_BLOCK = 64  # keys per softmax step: fixed on every machine, because it is part of the order of additions
CHAINS = 4  # running sums and maxima per query inside a block: fixed as well
GROUP = 16  # keys whose scores are computed together; the last group of all may have fewer
_ALL = -1


def has_template(o: Operation) -> bool:
    """Whether the loops below can be written: head sizes are constants (the naive definition serves the rest)."""
    q, v = o.inputs[0], o.inputs[2]
    return isinstance(q.type.shape[-1], int) and isinstance(v.type.shape[-1], int)


def attention_nest(d: Definer, o: Operation, emit: Callable[[Index, Expr], Store], choice: AttentionChoice) -> tuple[Stmt, ...]:
    """The loops of one attention; ``emit`` stores the element at ``(b, h, i, e)`` given its value in the result's dtype."""
    q = o.inputs[0].type
    wide = choice.vectors * LANES
    queries = dim_expr(q.shape[2])
    batch, heads = (Axis(n, dim_expr(q.shape[i]), PARALLEL) for i, n in enumerate(("b", "h")))
    tile = Axis("tile", (queries + (wide - 1)) // wide, PARALLEL)
    where = _Where(batch, heads, tile * wide)
    scratch = _Scratch(o, wide)
    body = _Template(d, o, emit, scratch, where, choice.vectors, choice.rows).nest()
    if choice.vectors > 1:  # where few queries are left, a tile of one vector does
        few = queries - tile * wide <= LANES
        narrow = _Template(d, o, emit, scratch, where, 1, GROUP).nest()
        body = tuple(For(Axis("once", 1, SEQ), part, unary("not", few) if part is body else few) for part in (body, narrow))
    return (For(batch, (For(heads, (For(tile, body),)),)),)


@dataclass(frozen=True)
class _Where:
    """The place of a tile: batch, head and first query."""

    batch: Expr
    heads: Expr
    first: Expr


class _Scratch:
    """The memory of one tile of up to ``columns`` queries."""

    def __init__(self, o: Operation, columns: int) -> None:
        features, value_features = o.inputs[0].type.shape[3], o.inputs[2].type.shape[3]
        assert isinstance(features, int) and isinstance(value_features, int)
        f = self.dtype = compute_dtype(o.inputs[0].type.dtype)
        word = DType.i64 if f is DType.f64 else DType.i32

        def rows(name: str, *shape: int) -> Buffer:
            return Buffer(name, f, (*shape, columns), space=SCRATCH)

        self.qt, self.s, self.acc, self.part = rows("qt", features), rows("s", KEY_BLOCK), rows("acc", value_features), rows("part", CHAINS)
        self.top, self.new_top, self.shift, self.total, self.rescale = map(rows, ("top", "new_top", "shift", "total", "rescale"))
        self.zeros = Buffer("zeros", f, (value_features,), space=SCRATCH)
        self.last_keys = Buffer("last_keys", f, (GROUP, features), space=SCRATCH)
        self.made_keys, self.made_values = made_block("keys", f, features), made_block("values", f, value_features)
        #: bits of a score that stay, and bits that are set: all and none, or none and those of -inf
        self.keep, self.hide = (Buffer(n, word, (KEY_BLOCK,), space=SCRATCH) for n in ("keep", "hide"))


def made_block(name: str, dtype: DType, features: int) -> Buffer:
    """Room for a block of keys, or of values."""
    return Buffer(name, dtype, (KEY_BLOCK, features), space=SCRATCH)


def is_made(d: Definer, value: Value) -> bool:
    """Whether keys or values have to be computed before they are multiplied."""
    while value not in d.names and value.producer is not None and isinstance(value.producer.op, (ops.Reshape, ops.Transpose, ops.Slice)):
        value = value.producer.inputs[0]
    return value not in d.names or value.type.dtype is not compute_dtype(value.type.dtype)


class _Template:
    """The parts of the nest in the order in which they run, for a tile of ``vectors`` x 16 queries. ``rows`` is the height of the register
    tiles: keys, then features of v."""

    def __init__(
        self, d: Definer, o: Operation, emit: Callable[[Index, Expr], Store], scratch: _Scratch, where: _Where, vectors: int, rows: int
    ) -> None:
        self.d, self.o, self.emit, self.mem, self.vectors, self.rows = d, o, emit, scratch, vectors, rows
        self.batch, self.heads, self.first = where.batch, where.heads, where.first
        a = self.a = AttentionMath(d, o)
        assert a.q is not None and a.k is not None and a.v is not None
        assert isinstance(a.features, int) and isinstance(a.value_features, int)
        self.q, self.k, self.v = a.q, a.k, a.v
        self.features, self.value_features = a.features, a.value_features
        self.dtype = scratch.dtype
        self.keys, self.queries = dim_expr(a.keys), dim_expr(a.queries)
        self.kv_head = a.kv_head(self.heads)
        begin, end = self.seen_blocks()
        self.step = Axis("block", end - begin, SEQ)
        self.near = self.blocks_in_sight(begin + self.step)
        self.block = begin + self.step
        self.unseen = [(const(0), begin * KEY_BLOCK), (binary("min", end * KEY_BLOCK, self.keys), self.keys)]  # ranges of keys
        self.live = binary("min", const(KEY_BLOCK), self.keys - self.block * KEY_BLOCK)  # keys of this block
        self.padded = (self.live + (GROUP - 1)) // GROUP * GROUP
        i, j = Axis("i", 1, SEQ), Axis("j", 1, SEQ)
        seen = a.visible(self.batch, self.heads, i, j)
        #: a mask is the same for every query of a tile: a padding mask
        self.masked, self.uniform = seen is not None, seen is None or i not in seen.free_axes
        self.whole = d.facts.divisible(a.keys, KEY_BLOCK)  # no block of keys is cut short
        self.makes_keys, self.makes_values = is_made(d, a.k), is_made(d, a.v)
        if self.whole:
            self.live = self.padded = const(KEY_BLOCK)
        self.exact = self.whole or (isinstance(a.keys, int) and a.keys % GROUP == 0)  # no group of keys is

    def nest(self) -> tuple[Stmt, ...]:
        """Everything that happens to one tile of queries."""
        mem = self.mem
        minus_infinity, zero = Const(-math.inf, self.dtype), Const(0, self.dtype)
        step = For(self.step, (*self.made(), *self.who_is_seen(), *self.scores(), *self.softmax(), *self.accumulate()), self.near)
        return (
            *self.pack(),
            self.columns(lambda i: (store(mem.top, i, minus_infinity), store(mem.total, i, zero))),
            self.each(self.value_features, lambda e, i: store(mem.acc, (e, i), zero)),
            step,
            *self.spread_nan(),
            self.columns(lambda i: (store(mem.rescale, i, normalised(Const(1, self.dtype), mem.total[i])),)),
            self.each(self.value_features, lambda e, i: store(mem.acc, (e, i), mem.acc[e, i] * mem.rescale[i])),
            *self.result(),
        )

    # -- helpers -------------------------------------------------------------------------------------------------------

    def query(self, i: Expr) -> Expr:
        """The query of a column; columns past the end repeat the last one."""
        return binary("min", self.first + i, self.queries - 1)

    def columns(self, body: Callable[[Expr], tuple[Stmt, ...]]) -> For:
        """The columns of the tile: whole vectors."""
        i = Axis("i", LANES, VECTOR)
        if self.vectors == 1:
            return For(i, body(i))
        u = Axis("u", self.vectors, UNROLL)
        return For(u, (For(i, body(u * LANES + i)),))

    def each(self, count: Expr | int, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """A loop over rows of the tile."""
        e = Axis("e", count if isinstance(count, Expr) else const(count), SEQ)
        return For(e, (self.columns(lambda i: (body(e, i),)),))

    @staticmethod
    def tiles(count: int, rows: int, body: Callable[[Expr], Stmt]) -> list[Stmt]:
        """Loops over ``count`` points in unrolled groups of ``rows``, the last group being what is left."""
        out: list[Stmt] = []
        whole = count // rows
        for groups, size, start in ((whole, rows, 0), (1, count - whole * rows, whole * rows)):
            if groups and size:
                group, c = Axis("group", groups, SEQ), Axis("c", size, UNROLL)
                tile = For(c, (body(group * rows + c if groups > 1 else c + start),))
                out.append(For(group, (tile,)) if groups > 1 else tile)
        return out

    # -- blocks that no query of the tile sees -------------------------------------------------------------------------

    def seen_blocks(self) -> tuple[Expr, Expr]:
        """The first block of keys that a query of the tile may see by its position, and the one behind the last."""
        op, everything = self.a.op, (self.keys + (KEY_BLOCK - 1)) // KEY_BLOCK
        if self.a.start is not None:
            return const(0), everything
        position = self.keys - self.queries  # of query 0
        begin: Expr = const(0)
        end = everything
        if op.causal:
            last = binary("min", self.first + self.vectors * LANES, self.queries) - 1 + position
            end = binary("min", everything, binary("max", last // KEY_BLOCK + 1, const(0)))
        if op.window is not None:
            begin = binary("min", binary("max", (self.first + position - op.window + 1) // KEY_BLOCK, const(0)), end)
        return begin, end

    def blocks_in_sight(self, block: Expr) -> Expr | None:
        """The same where only memory says which keys there are: whether a block has one that a query of the tile may see by its position."""
        if self.a.start is None:
            return None
        last = self.a.position(self.batch, binary("min", self.first + self.vectors * LANES, self.queries) - 1)
        near = block * KEY_BLOCK <= last
        if self.a.op.window is not None:
            near = near & (block * KEY_BLOCK + KEY_BLOCK > self.a.position(self.batch, self.first) - self.a.op.window + 1)
        return near

    def spread_nan(self) -> list[Stmt]:
        """Adds the products of the blocks outside, which are neither scored nor weighted: their weights are 0, so these are zeros, but for NaN and
        infinities in v, which make NaN. They are the same for all queries of the tile."""
        out: list[Stmt] = []
        for begin, end in self.unseen if self.a.start is None else ():
            if isinstance(end - begin, Const) or end is begin:
                continue
            once, x, j = Axis("once", binary("min", end - begin, const(1)), SEQ), Axis("x", self.value_features, VECTOR), Axis("j", end - begin, SEQ)
            v = self.d.lifted(self.v, (self.batch, self.kv_head, begin + j, x))
            zeros = For(x, (store(self.mem.zeros, x, Reduce("sum", (j,), v * Const(0, self.dtype))),))
            add = self.each(self.value_features, lambda e, i: store(self.mem.acc, (e, i), self.mem.acc[e, i] + self.mem.zeros[e]))
            out.append(For(once, (zeros, add)))
        return out

    # -- before the blocks ---------------------------------------------------------------------------------------------

    def pack(self) -> list[Stmt]:
        """Turns the tile's queries round, and copies the last keys where they do not fill a group."""

        def queries(x: Expr) -> Stmt:
            return self.columns(lambda i: (store(self.mem.qt, (x, i), self.d.lifted(self.q, (self.batch, self.heads, self.query(i), x))),))

        out = self.tiles(self.features, LANES, queries)
        if not self.exact and not self.makes_keys:
            once, c, x = Axis("once", binary("min", self.keys % GROUP, const(1)), SEQ), Axis("c", GROUP, SEQ), Axis("x", self.features, VECTOR)
            key = binary("min", self.keys // GROUP * GROUP + c, self.keys - 1)
            copy = store(self.mem.last_keys, (c, x), self.d.lifted(self.k, (self.batch, self.kv_head, key, x)))
            out.append(For(once, (For(c, (For(x, (copy,)),)),)))
        return out

    # -- one block of keys ---------------------------------------------------------------------------------------------

    def made(self) -> list[Stmt]:
        """The block's keys and values as numbers to compute with, where they are not. Keys that fill a group repeat the last one."""
        out: list[Stmt] = []
        for needed, value, to, count in (
            (self.makes_keys, self.k, self.mem.made_keys, self.padded),
            (self.makes_values, self.v, self.mem.made_values, self.live),
        ):
            if needed:
                j, x = Axis("j", count, SEQ), Axis("x", to.shape[1], VECTOR)
                key = self.block * KEY_BLOCK + j if self.exact else binary("min", self.block * KEY_BLOCK + j, self.keys - 1)
                out += nest([j, x], store(to, (j, x), self.d.lifted(value, (self.batch, self.kv_head, key, x))))
        return out

    def who_is_seen(self) -> list[Stmt]:
        """Words that mask the scores of a key for all queries alike: LLVM would make a branch of each select with such a condition."""
        if not self.uniform or (not self.masked and self.exact):
            return []
        j, word = Axis("j", KEY_BLOCK, VECTOR), self.mem.keep.dtype
        key = self.block * KEY_BLOCK + j
        seen = self.a.visible(self.batch, self.heads, const(0), key)
        flag = key < self.keys
        keep = select(flag, Const(_ALL, word) if seen is None else select(seen, Const(_ALL, word), Const(0, word)), Const(0, word))
        minus_infinity = unary("bits", Const(-math.inf, self.dtype))
        return [For(j, (store(self.mem.keep, j, keep), store(self.mem.hide, j, unary("not", keep) & minus_infinity)))]

    def scores(self) -> list[Stmt]:
        """Whole groups of keys from where they lie, then what is left from the copy."""

        def group(g: Expr, key: Callable[[Expr, Expr, Axis], Expr], certain: bool) -> list[Stmt]:
            def row(c: Expr) -> Stmt:
                x, at = Axis("x", self.features, SEQ), g * GROUP + c
                k = key(at, c, x)
                return self.columns(lambda i: (store(self.mem.s, (at, i), self.score(Reduce("sum", (x,), k * self.mem.qt[x, i]), at, i, certain)),))

            return self.tiles(GROUP, self.rows, row)

        def in_place(at: Expr, c: Expr, x: Axis) -> Expr:
            if self.makes_keys:
                return self.mem.made_keys[at, x]
            return self.d.lifted(self.k, (self.batch, self.kv_head, self.block * KEY_BLOCK + at, x))

        g = Axis("g", self.live // GROUP, SEQ)
        out: list[Stmt] = [For(g, tuple(group(g, in_place, True)))]
        if not self.exact:
            once = Axis("once", binary("min", self.live % GROUP, const(1)), SEQ)
            last = in_place if self.makes_keys else lambda at, c, x: self.mem.last_keys[c, x]
            out.append(For(once, tuple(group(self.live // GROUP, last, False))))
        return out

    def score(self, dot: Expr, at: Expr, i: Expr, certain: bool) -> Expr:
        """The masked score; ``certain``: the key exists."""
        j = self.block * KEY_BLOCK + at
        here = (self.batch, self.heads, self.query(i), j if certain else binary("min", j, self.keys - 1))
        value, bits = self.a.biased(dot, *here), unary("bits", Const(-math.inf, self.dtype))
        if self.uniform:
            if certain and not self.masked:
                return value
            keep: Expr = self.mem.keep[at]
            hide: Expr = self.mem.hide[at]
        else:  # words again: the products of a tile that stand below a select would be computed one by one, each under its condition
            seen = self.a.visible(*here)
            assert seen is not None
            keep = select(seen if certain else binary("and", j < self.keys, seen), Const(_ALL, bits.dtype), Const(0, bits.dtype))
            hide = unary("not", keep) & bits
        return unary("from_bits", (unary("bits", value) & keep) | hide)

    def chains(self, kind: str) -> Stmt:
        """``part[c, i]``: the fold over the block's keys that are c modulo CHAINS."""
        c, j = Axis("c", CHAINS, UNROLL), Axis("j", self.padded // CHAINS, SEQ)
        return For(c, (self.columns(lambda i: (store(self.mem.part, (c, i), Reduce(kind, (j,), self.mem.s[j * CHAINS + c, i])),)),))

    def joined(self, op: str, i: Expr) -> Expr:
        """The chains put together."""
        a, b, c, d = (self.mem.part[n, i] for n in range(CHAINS))
        return binary(op, binary(op, a, b), binary(op, c, d))

    def softmax(self) -> list[Stmt]:
        mem = self.mem

        def highest(i: Expr) -> tuple[Stmt, ...]:
            return (
                store(mem.new_top, i, binary("max", mem.top[i], self.joined("max", i))),
                store(mem.shift, i, score_shift(mem.new_top[i])),
                store(mem.rescale, i, exp_down(mem.top[i] - mem.shift[i])),
                store(mem.top, i, mem.new_top[i]),
            )

        weights = self.each(self.padded, lambda j, i: store(mem.s, (j, i), exp_down(mem.s[j, i] - mem.shift[i])))
        total = self.columns(lambda i: (store(mem.total, i, mem.total[i] * mem.rescale[i] + self.joined("add", i)),))
        return [self.chains("max"), self.columns(highest), weights, self.chains("sum"), total]

    def accumulate(self) -> list[Stmt]:
        mem, j = self.mem, Axis("j", self.live, SEQ)

        def row(e: Expr) -> Stmt:
            at = (self.batch, self.kv_head, self.block * KEY_BLOCK + j, e)
            v = mem.made_values[j, e] if self.makes_values else self.d.lifted(self.v, at)
            return self.columns(lambda i: (store(mem.acc, (e, i), mem.acc[e, i] * mem.rescale[i] + Reduce("sum", (j,), mem.s[j, i] * v)),))

        return self.tiles(self.value_features, self.rows, row)

    # -- after the blocks ----------------------------------------------------------------------------------------------

    def result(self) -> list[Stmt]:
        """Turns the tile's results round into their rows."""
        out: list[Stmt] = []
        whole = self.value_features // LANES
        for groups, size, start in ((whole, LANES, 0), (1, self.value_features % LANES, whole * LANES)):
            if groups and size:
                u, group, r, lane = (Axis("u", self.vectors, SEQ), Axis("group", groups, SEQ), Axis("r", LANES, UNROLL), _lanes(size))
                e, i = group * LANES + lane if groups > 1 else lane + start, u * LANES + r
                value = cast(self.mem.acc[e, i], self.o.result.type.dtype)
                tile = For(r, (For(lane, (self.emit((self.batch, self.heads, self.query(i), e), value),)),))
                out.append(For(u, (For(group, (tile,)),)) if groups > 1 else For(u, (tile,)))
        return out


def _lanes(size: int) -> Axis:
    """The lanes of a store; a single one may leave the index, which then belongs to no vector."""
    return Axis("lane", size, VECTOR if size > 1 else SEQ)
