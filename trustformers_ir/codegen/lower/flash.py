"""Attention on blocks: online softmax over blocks of keys, with nothing but blocks of values in between.

Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023, section 3.1. For a block of queries i and each block of
keys j::

    s[i, j]  = q_i . k_j                         (-inf where j may not be seen)
    m'       = max(m, max_j s);  c = 2^(f (m - m'));  p[i, j] = 2^(f s[i, j] - f m')
    l        = l * c + sum_j p;  acc = acc * c + p @ v

and at the end ``out = acc * (1 / l)``. The base is 2 because that is the exponential which hardware has, and ``f = scale * log2(e)`` is one factor
of a fused multiply-add per score. With a soft cap, a bias, or a scale that turns the order round, s is the whole score times log2(e), and f is 1.
p goes to the dtype of v before it is multiplied, so that matrix instructions take it.

**Three loops.** Most blocks of keys are seen whole: no key of them is missing, in front of the window or above the diagonal of any query of the
block. They have a loop without a mask and without a guard; what is left at the window's edge and at the diagonal has loops that ask for each key.
Where nothing can be left the loop is not there. Blocks that no query of the block may see by its position are left out: a NaN in v there does
not reach the result, unlike in the reference. Causal blocks of queries come in falling order of their work.

**Rows** are the queries of one head, or, where queries are few, those of all heads that read one head of k and v: ``row = query * group + head``, so
that a block of rows is filled and k and v are read once for all of them.

The nest of the CPU (``attention.py``) is the same with queries as lanes; both are checked against the naive definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    PARALLEL,
    SCRATCH,
    SEQ,
    TILE,
    Axis,
    Buffer,
    Const,
    Expr,
    Fma,
    Load,
    Reduce,
    binary,
    cast,
    const,
    select,
    unary,
)
from trustformers_ir.codegen.lower.blocks import covering
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.nn import AttentionMath, ScoreMath, all_of, normalised, score_shift
from trustformers_ir.codegen.lower.flash_tiles import FlashTile
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType

LOG2_E = math.log2(math.e)
Emit = Callable[[Index, Expr], Store]


def flash_nest(d: Definer, o: Operation, emit: Emit, tile: FlashTile) -> tuple[Stmt, ...]:
    """The loops of one attention on blocks of so many queries and keys; ``emit`` stores the element at ``(b, h, i, e)`` given its value in the
    result's dtype. Head sizes are constants."""
    a = AttentionMath(d, o)
    rows = Rows.of(a, tile)
    flash = DenseFlash(a, rows, tile)
    return nest(rows.loops, *flash.start(), *flash.blocks(), *flash.result(emit))


@dataclass(frozen=True)
class Rows:
    """Which query of which head each row of a program's block is. ``loops``: the PARALLEL axes that there are; ``group``: heads that share the rows
    of a block."""

    loops: tuple[Axis, ...]
    batch: Expr
    kv_head: Expr
    head: Expr  # of the first row
    first: Expr
    count: Expr  # rows that there are
    group: int

    @classmethod
    def of(cls, a: AttentionMath, tile: FlashTile) -> Rows:
        q, k = (v.type.shape for v in a.o.inputs[:2])
        group = a.group if tile.packed and isinstance(a.group, int) else 1
        batch, heads = parallel("b", dim_expr(q[0])), parallel("h", dim_expr(q[1] if group == 1 else k[1]))
        count = dim_expr(a.queries) * group
        blocks = (count + (tile.queries - 1)) // tile.queries
        block = parallel("block", blocks)
        first = (blocks - 1 - block if a.op.causal else block) * tile.queries  # the longest rows first: programs start in this order
        kv_head = a.kv_head(heads) if group == 1 else heads
        loops = tuple(x for x in (batch, heads, block) if isinstance(x, Axis))
        return cls(loops, batch, kv_head, heads if group == 1 else heads * group, first, count, group)

    def query(self, row: Expr) -> Expr:
        return row if self.group == 1 else row // self.group

    def head_of(self, row: Expr) -> Expr:
        return self.head if self.group == 1 else self.head + row % self.group


def parallel(name: str, extent: Expr) -> Expr:
    """A PARALLEL axis, or 0 where it has one turn."""
    return const(0) if isinstance(extent, Const) and extent.value == 1 else Axis(name, extent, PARALLEL)


class Flash:
    """The parts of the nest for one block of rows. Each statement has loops of its own: ``i`` (rows), ``j`` (keys), ``e`` (features).

    What q, k and v look like, and which keys a row sees, is left to its kinds: ``place``, ``spans`` and ``seen``.
    """

    def __init__(self, a: ScoreMath, rows: Rows, tile: FlashTile) -> None:
        self.a, self.d, self.rows, self.height, self.width = a, a.d, rows, tile.queries, tile.keys
        assert isinstance(a.features, int) and isinstance(a.value_features, int)
        self.q, self.k, self.v = a.q, a.k, a.v
        self.features, self.value_features = a.features, a.value_features
        self.keys = dim_expr(a.keys)
        self.dtype = compute_dtype(self.q.type.dtype)
        plain = a.op.softcap is None and a.bias is None and isinstance(a.scale, float) and a.scale > 0
        self.factor = a.scale * LOG2_E if plain and isinstance(a.scale, float) else None
        self.columns = covering(self.value_features)
        self.queries: Buffer | None = None
        names = ("top", "best", "total", "shift", "rescale")
        self.top, self.best, self.total, self.shift, self.rescale = (self.block(n, self.height) for n in names)
        self.s, self.acc = self.block("s", self.height, self.width), self.block("acc", self.height, self.columns)

    def block(self, name: str, *shape: int) -> Buffer:
        return Buffer(name, self.dtype, shape, space=SCRATCH)

    def place(self, head: Expr, token: Expr, feature: Expr) -> Index:
        """Where something of q, k, v or the result lies."""
        raise NotImplementedError

    def spans(self) -> list[tuple[Expr, Expr, bool]]:
        """Ranges of blocks of keys in order: the first, the one behind the last, and whether keys are seen one by one."""
        raise NotImplementedError

    def seen(self, i: Axis, key: Expr, checked: bool) -> Expr | None:
        """Whether row i sees the key; None where it certainly does."""
        raise NotImplementedError

    def i(self) -> Axis:
        return Axis("i", self.height, TILE)

    def j(self) -> Axis:
        return Axis("j", self.width, TILE)

    def e(self) -> Axis:
        return Axis("e", self.columns, TILE)

    def each(self, body: Callable[[Axis], list[Stmt]]) -> list[Stmt]:
        """The statements for each of the rows."""
        i = self.i()
        return [For(i, tuple(body(i)))]

    def blocks(self) -> list[Stmt]:
        """The loops over the blocks of keys."""
        out: list[Stmt] = []
        for begin, end, checked in self.spans():
            step = Axis("step", end - begin, SEQ)
            start = (begin + step) * self.width
            out.append(For(step, (*self.scores(start, checked), *self.softmax(), *self.accumulate(start, checked))))
        return out

    # -- one block of keys ---------------------------------------------------------------------------------------------

    def start(self) -> list[Stmt]:
        zero, minus_infinity = Const(0, self.dtype), Const(-math.inf, self.dtype)
        i, e = self.i(), self.e()
        first = self.each(lambda i: [store(self.top, i, minus_infinity), store(self.total, i, zero)])
        return [*self.computed(), *first, *nest([i, e], store(self.acc, (i, e), zero))]

    def query(self, i: Axis, x: Axis) -> Expr:
        """An element of q in its dtype."""
        row = self.rows.first + i
        return self.d.at(self.q, self.place(self.rows.head_of(row), self.rows.query(row), x))

    def computed(self) -> list[Stmt]:
        """Queries that do not lie in memory (rotary embeddings of some) are computed once."""
        i, x = self.i(), Axis("x", covering(self.features), TILE)
        value, dtype = self.query(i, x), self.q.type.dtype
        if isinstance(value, Load):
            return []
        self.queries = Buffer("q", dtype, (self.height, covering(self.features)), space=SCRATCH)
        there = within((self.rows.first + i, self.rows.count), (x, const(self.features)))
        inside = store(self.queries, (i, x), value if there is None else select(there, value, Const(0, dtype)))
        return [For(i, (For(x, (inside,)),))]

    def scores(self, start: Expr, checked: bool) -> tuple[Stmt, ...]:
        i, j, x = self.i(), self.j(), Axis("x", covering(self.features), TILE)
        rows, row, key = self.rows, self.rows.first + i, start + j
        head, at = rows.head_of(row), rows.query(row)
        q = cast(self.query(i, x) if self.queries is None else self.queries[i, x], self.dtype)
        k = self.d.lifted(self.k, self.place(rows.kv_head, key, x))
        exists = [(key, self.keys)] if checked else []
        dot = Reduce("sum", (x,), q * k, within((row, rows.count), *exists, (x, const(self.features))))
        value = dot if self.factor is not None else self.a.biased_times(LOG2_E, dot, rows.batch, head, at, key)
        return (For(i, (For(j, (store(self.s, (i, j), value),), within(*exists)),), within((row, rows.count))), *self.mask(start, checked))

    def mask(self, start: Expr, checked: bool) -> tuple[Stmt, ...]:
        """Apart from the scores, so that no load of k waits for a mask."""
        i, j = self.i(), self.j()
        seen = self.seen(i, start + j, checked)
        if seen is None:
            return ()
        masked = store(self.s, (i, j), select(seen, self.s[i, j], Const(-math.inf, self.dtype)))
        return (For(i, (For(j, (masked,)),), within((self.rows.first + i, self.rows.count))),)

    def weight(self, score: Expr, i: Axis) -> Expr:
        """``2^(f (score - best))``; the shift is the largest score, or -f times it."""
        if self.factor is None:
            return unary("fast_exp2", score - self.shift[i])
        return unary("fast_exp2", Fma(score, Const(self.factor, self.dtype), self.shift[i]))

    def softmax(self) -> list[Stmt]:
        def highest(i: Axis) -> list[Stmt]:
            j = self.j()
            shift = score_shift(self.best[i])
            return [
                store(self.best, i, binary("max", self.top[i], Reduce("max", (j,), self.s[i, j]))),
                store(self.shift, i, shift if self.factor is None else shift * -self.factor),
                store(self.rescale, i, self.weight(self.top[i], i)),
                store(self.top, i, self.best[i]),
            ]

        i, j = self.i(), self.j()
        weights = For(i, (For(j, (store(self.s, (i, j), self.weight(self.s[i, j], i)),)),))

        def total(i: Axis) -> list[Stmt]:
            j = self.j()
            return [store(self.total, i, self.total[i] * self.rescale[i] + Reduce("sum", (j,), self.s[i, j]))]

        return [*self.each(highest), weights, *self.each(total)]

    def accumulate(self, start: Expr, checked: bool) -> tuple[Stmt, ...]:
        i, e, j = self.i(), self.e(), self.j()
        key = start + j
        v = self.d.lifted(self.v, self.place(self.rows.kv_head, key, e))
        p = cast(cast(self.s[i, j], self.v.type.dtype), self.dtype)
        exists = [(key, self.keys)] if checked else []
        product = Reduce("sum", (j,), p * v, within(*exists, (e, const(self.value_features))))
        return nest([i, e], store(self.acc, (i, e), self.acc[i, e] * self.rescale[i] + product))

    # -- after the blocks ----------------------------------------------------------------------------------------------

    def result(self, emit: Emit) -> tuple[Stmt, ...]:
        i, e = self.i(), self.e()
        row = self.rows.first + i
        value = cast(self.acc[i, e] * normalised(Const(1, self.dtype), self.total[i]), self.a.o.result.type.dtype)
        place = self.place(self.rows.head_of(row), self.rows.query(row), e)
        inside = For(e, (emit(place, value),), within((e, const(self.value_features))))
        return (For(i, (inside,), within((row, self.rows.count))),)


class DenseFlash(Flash):
    """Attention of whole batches. ``only``: the first of the blocks of keys that the program takes, and the one behind the last; all without it."""

    def __init__(self, a: AttentionMath, rows: Rows, tile: FlashTile, only: tuple[Expr, Expr] | None = None) -> None:
        super().__init__(a, rows, tile)
        self.dense, self.only = a, only
        self.first = Buffer("first", DType.i32, (), space=SCRATCH)  # where the first query stands, if memory says it

    def start(self) -> list[Stmt]:
        known = [] if self.dense.start is None else [store(self.first, (), cast(self.dense.position(self.rows.batch, const(0)), DType.i32))]
        return [*known, *super().start()]

    def place(self, head: Expr, token: Expr, feature: Expr) -> Index:
        return (self.rows.batch, head, token, feature)

    def spans(self) -> list[tuple[Expr, Expr, bool]]:
        op, rows = self.dense.op, self.rows
        zero: Expr = const(0)
        offset = cast(self.first[()], DType.i64) if self.dense.start is not None else self.dense.position(rows.batch, zero)
        low = rows.query(rows.first) + offset
        high = rows.query(binary("min", rows.first + self.height, rows.count) - 1) + offset
        begin, whole_begin = zero, zero
        end, whole_end = (self.keys + (self.width - 1)) // self.width, self.keys // self.width
        if op.causal:
            end = binary("min", end, binary("max", high // self.width + 1, zero))
            whole_end = binary("min", whole_end, binary("max", (low + 1) // self.width, zero))
        if op.window is not None:
            begin = binary("min", binary("max", (low - op.window + 1) // self.width, zero), end)
            whole_begin = binary("max", (high - op.window + self.width) // self.width, begin)
        if self.only is not None:
            (first, behind) = self.only
            begin, whole_begin = binary("max", begin, first), binary("max", whole_begin, first)
            end, whole_end = binary("min", end, behind), binary("min", whole_end, behind)
        found: list[tuple[Expr, Expr, bool]] = []
        if op.window is not None:
            whole_begin = binary("min", whole_begin, end)
            found.append((begin, whole_begin, True))
        found.append((whole_begin, whole_end, False))
        if op.causal or op.window is not None or not self.d.facts.divisible(self.dense.keys, self.width):
            found.append((binary("max", whole_begin, whole_end), end, True))
        return found

    def seen(self, i: Axis, key: Expr, checked: bool) -> Expr | None:
        rows = self.rows
        row = rows.first + i
        at, exists = rows.query(row), key < self.keys
        conditions = [exists] if checked else []
        behind_all = self.dense.queries == 1 and self.dense.op.window is None and self.dense.start is None
        if checked and not behind_all:
            conditions += self.in_sight(at, key)
        masked = self.dense.masked(rows.batch, rows.head_of(row), at, key)
        if masked is not None:
            conditions.append(select(exists, masked, Const(False, DType.bool)) if checked else masked)
        return all_of(*conditions)


    def in_sight(self, at: Expr, key: Expr) -> list[Expr]:
        """What the positions of query ``at`` and of the key must fulfil; in 32 bits where memory says where queries stand: 64 fill registers."""
        if self.dense.start is None:
            return self.dense.in_sight(self.rows.batch, at, key)
        position, place, window = cast(at, DType.i32) + self.first[()], cast(key, DType.i32), self.dense.op.window
        return [place <= position, *([] if window is None else [place > position - window])]


def within(*bounds: tuple[Expr, Expr]) -> Expr | None:
    """That each is below its limit; nothing where that is certain."""
    found: Expr | None = None
    for e, limit in bounds:
        if isinstance(e, Axis) and isinstance(limit, Const) and e.static_extent == limit.value:
            continue
        found = e < limit if found is None else binary("and", found, e < limit)
    return found
