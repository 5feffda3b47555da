"""Attention on blocks: online softmax over blocks of keys, with nothing but blocks of values in between.

Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023, section 3.1. For a block of queries i and each block of
keys j::

    s[i, j]  = score(q_i . k_j) * log2(e)        (-inf where j may not be seen)
    m'       = max(m, max_j s);  c = 2^(m - m');  p[i, j] = 2^(s[i, j] - m')
    l        = l * c + sum_j p;  acc = acc * c + p @ v

and at the end ``out = acc / l``. The base is 2 because that is the exponential which hardware has. p goes to the dtype of v before it is
multiplied, so that matrix instructions take it. Blocks of keys that no query of the block may see by its position (above the diagonal, before
the window) are left out: a NaN in v there does not reach the result, unlike in the reference.

The nest of the CPU (``attention.py``) is the same with queries as lanes; both are checked against the naive definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    Reduce,
    binary,
    cast,
    const,
    select,
    unary,
)
from trustformers_ir.codegen.lower.blocks import covering
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.nn import AttentionMath, normalised, score_shift
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir.core import Operation


def flash_nest(d: Definer, o: Operation, emit: Callable[[Index, Expr], Store], queries: int, keys: int) -> tuple[Stmt, ...]:
    """The loops of one attention on blocks of so many queries and keys; ``emit`` stores the element at ``(b, h, i, e)`` given its value in the
    result's dtype. Head sizes are constants."""
    q = o.inputs[0].type
    batch, heads = (Axis(n, dim_expr(q.shape[i]), PARALLEL) for i, n in enumerate(("b", "h")))
    block = Axis("block", (dim_expr(q.shape[2]) + (queries - 1)) // queries, PARALLEL)
    return nest([batch, heads, block], *_Flash(d, o, emit, (batch, heads, block * queries), queries, keys).nest())


class _Flash:
    """The parts of the nest for one block of queries. Each statement has loops of its own: ``i`` (queries), ``j`` (keys), ``e`` (features)."""

    def __init__(
        self, d: Definer, o: Operation, emit: Callable[[Index, Expr], Store], where: tuple[Expr, Expr, Expr], queries: int, keys: int
    ) -> None:
        self.d, self.o, self.emit, self.width = d, o, emit, keys
        self.batch, self.heads, self.first = where
        a = self.a = AttentionMath(d, o)
        assert a.q is not None and a.k is not None and a.v is not None
        assert isinstance(a.features, int) and isinstance(a.value_features, int)
        self.q, self.k, self.v = a.q, a.k, a.v
        self.features, self.value_features = a.features, a.value_features
        self.queries, self.keys = dim_expr(a.queries), dim_expr(a.keys)
        self.kv_head = a.kv_head(self.heads)
        self.rows = queries
        self.dtype = compute_dtype(self.q.type.dtype)
        begin, end = self.seen()
        self.step = Axis("step", end - begin, SEQ)
        self.start = (begin + self.step) * keys
        columns = covering(self.value_features)
        self.top, self.best, self.total, self.shift, self.rescale = (self.block(n, queries) for n in ("top", "best", "total", "shift", "rescale"))
        self.s, self.acc = self.block("s", queries, keys), self.block("acc", queries, columns)
        self.columns = columns

    def block(self, name: str, *shape: int) -> Buffer:
        return Buffer(name, self.dtype, shape, space=SCRATCH)

    def i(self) -> Axis:
        return Axis("i", self.rows, TILE)

    def j(self) -> Axis:
        return Axis("j", self.width, TILE)

    def e(self) -> Axis:
        return Axis("e", self.columns, TILE)

    def seen(self) -> tuple[Expr, Expr]:
        """The first block of keys that a query of the block may see by its position, and the one behind the last."""
        op, everything = self.a.op, (self.keys + (self.width - 1)) // self.width
        position = self.keys - self.queries  # of query 0
        begin: Expr = const(0)
        end = everything
        if op.causal:
            last = binary("min", self.first + self.rows, self.queries) - 1 + position
            end = binary("min", everything, binary("max", last // self.width + 1, const(0)))
        if op.window is not None:
            begin = binary("min", binary("max", (self.first + position - op.window + 1) // self.width, const(0)), end)
        return begin, end

    def nest(self) -> tuple[Stmt, ...]:
        zero, minus_infinity = Const(0, self.dtype), Const(-math.inf, self.dtype)
        i, e = self.i(), self.e()
        return (
            *self.each(lambda i: [store(self.top, i, minus_infinity), store(self.total, i, zero)]),
            *nest([i, e], store(self.acc, (i, e), zero)),
            For(self.step, (*self.scores(), *self.softmax(), *self.accumulate())),
            *self.result(),
        )

    def each(self, body: Callable[[Axis], list[Stmt]]) -> list[Stmt]:
        """The statements for each of the queries."""
        i = self.i()
        return [For(i, tuple(body(i)))]

    def scores(self) -> tuple[Stmt, ...]:
        i, j, x = self.i(), self.j(), Axis("x", covering(self.features), TILE)
        at, key = self.first + i, self.start + j
        q = self.d.lifted(self.q, (self.batch, self.heads, at, x))
        k = self.d.lifted(self.k, (self.batch, self.kv_head, key, x))
        dot = Reduce("sum", (x,), q * k, _within((at, self.queries), (key, self.keys), (x, const(self.features))))
        exists = key < self.keys
        visible = self.a.visible(self.batch, self.heads, at, key)
        seen = exists if visible is None else binary("and", exists, visible)
        value = self.a.biased(dot, self.batch, self.heads, at, key) * math.log2(math.e)
        inside = _within((at, self.queries))
        masked = store(self.s, (i, j), select(seen, value, Const(-math.inf, self.dtype)))
        return (For(i, (For(j, (masked,), exists),), inside),)

    def softmax(self) -> list[Stmt]:
        def highest(i: Axis) -> list[Stmt]:
            j = self.j()
            return [
                store(self.best, i, binary("max", self.top[i], Reduce("max", (j,), self.s[i, j]))),
                store(self.shift, i, score_shift(self.best[i])),
                store(self.rescale, i, unary("fast_exp2", self.top[i] - self.shift[i])),
                store(self.top, i, self.best[i]),
            ]

        i, j = self.i(), self.j()
        weights = For(i, (For(j, (store(self.s, (i, j), unary("fast_exp2", self.s[i, j] - self.shift[i])),)),))

        def total(i: Axis) -> list[Stmt]:
            j = self.j()
            return [store(self.total, i, self.total[i] * self.rescale[i] + Reduce("sum", (j,), self.s[i, j]))]

        return [*self.each(highest), weights, *self.each(total)]

    def accumulate(self) -> tuple[Stmt, ...]:
        i, e, j = self.i(), self.e(), self.j()
        key = self.start + j
        v = self.d.lifted(self.v, (self.batch, self.kv_head, key, e))
        p = cast(cast(self.s[i, j], self.v.type.dtype), self.dtype)
        product = Reduce("sum", (j,), p * v, _within((key, self.keys), (e, const(self.value_features))))
        return nest([i, e], store(self.acc, (i, e), self.acc[i, e] * self.rescale[i] + product))

    def result(self) -> tuple[Stmt, ...]:
        i, e = self.i(), self.e()
        at = self.first + i
        value = cast(normalised(self.acc[i, e], self.total[i]), self.o.result.type.dtype)
        inside = For(e, (self.emit((self.batch, self.heads, at, e), value),), _within((e, const(self.value_features))))
        return (For(i, (inside,), _within((at, self.queries))),)


def _within(*bounds: tuple[Expr, Expr]) -> Expr | None:
    """That each is below its limit."""
    found: Expr | None = None
    for e, limit in bounds:
        if isinstance(e, Axis) and isinstance(limit, Const) and e.static_extent == limit.value:
            continue
        found = e < limit if found is None else binary("and", found, e < limit)
    return found
