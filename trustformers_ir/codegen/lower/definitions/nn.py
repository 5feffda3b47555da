"""Pointwise definitions of rotary embeddings, of products by chosen matrices, and of attention (the naive twin of the template in
``attention.py``)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from trustformers_ir.codegen.kernel_ir.nodes import SEQ, VECTOR, Axis, Const, Expr, Fma, Reduce, binary, cast, const, eq, select, unary
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype, define
from trustformers_ir.codegen.lower.indexing import Index, broadcast_index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType


@define(ops.Rope)
def _rope(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """Su et al., "RoFormer", 2021. Each pair of features turns by an angle given by its cos and sin; the rest passes through."""
    assert isinstance(o.op, ops.Rope)
    x, cos, sin = o.inputs
    half = dim_expr(cos.type.shape[-1])
    *lead, feature = index
    if o.op.interleaved:
        pair, odd = feature // 2, feature % 2
        first = odd < 1
        partner = select(first, feature + 1, feature - 1)
    else:
        first = feature < half
        pair = feature % half
        partner = select(first, feature + half, feature - half)
    shape = (*o.result.type.shape[:-1], cos.type.shape[-1])
    inside = feature < half * 2
    safe_pair = select(inside, pair, const(0))
    at = (*lead, safe_pair)
    c = d.lifted(cos, broadcast_index(at, cos.type.shape, shape))
    s = d.lifted(sin, broadcast_index(at, sin.type.shape, shape))
    here = d.lifted(x, index)
    other = d.lifted(x, (*lead, select(inside, partner, feature)))
    c, s = cast(c, here.dtype), cast(s, here.dtype)
    turned = here * c + select(first, -other, other) * s
    return d.finish(o, result, select(inside, turned, here))


@define(ops.ExpertMatMul)
def _expert_matmul(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """The sum of a product, with the matrix that was chosen for the row: columns lie beside each other, so an expert is read as it lies."""
    x, weight, experts = o.inputs
    *row, n = index
    chosen = d.checked(o, d.at(experts, tuple(row)), weight.type.shape[0], "expert")
    k = Axis("k", dim_expr(x.type.shape[-1]), SEQ)
    term = d.lifted(x, (*broadcast_index(tuple(row), x.type.shape[:-1], experts.type.shape), k))
    return d.finish(o, result, Reduce("sum", (k,), term * d.lifted(weight, (chosen, k, n))))


class ScoreMath:
    """What every attention shares: the score of one query and key. ``rows`` is the axis of queries and of keys."""

    def __init__(self, d: Definer, o: Operation, rows: int) -> None:
        assert isinstance(o.op, (ops.Attention, ops.PackedAttention))
        self.d, self.o, self.op = d, o, o.op
        self.q, self.k, self.v = o.inputs[:3]
        self.mask: Value | None = None
        self.bias: Value | None = None
        self.queries: Dim = self.q.type.shape[rows]
        self.keys: Dim = self.k.type.shape[rows]
        self.features: Dim = self.q.type.shape[-1]
        self.value_features: Dim = self.v.type.shape[-1]
        heads, kv_heads = self.q.type.shape[1], self.k.type.shape[1]
        self.group: Dim = heads // kv_heads
        self.score_shape = (*self.q.type.shape[:-1], self.keys)

    @property
    def scale(self) -> Expr | float:
        if self.op.scale is not None:
            return self.op.scale
        if isinstance(self.features, int):
            return 1.0 / math.sqrt(self.features)
        return unary("rsqrt", self.d.count((self.features,), compute_dtype(self.q.type.dtype)))

    def kv_head(self, head: Expr) -> Expr:
        return head if self.group == 1 else head // dim_expr(self.group)

    def biased(self, dot: Expr, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        """The score from the plain dot product of query i and key j, whether the key may be seen or not."""
        value = dot * self.scale
        if self.op.softcap is not None:
            value = unary("tanh", value / self.op.softcap) * self.op.softcap
        if self.bias is not None:
            value = value + self._bias(value.dtype, b, h, i, j)
        return value

    def biased_times(self, factor: float, dot: Expr, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        """``factor`` times that, with as few operations as may be: constants are multiplied beforehand."""
        if self.op.softcap is not None:
            value = unary("tanh", dot * (self.scale * (1 / self.op.softcap))) * (self.op.softcap * factor)
        else:
            value = dot * (self.scale * factor)
        return value if self.bias is None else Fma(self._bias(value.dtype, b, h, i, j), Const(factor, value.dtype), value)

    def _bias(self, dtype: DType, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        assert self.bias is not None
        return cast(self.d.lifted(self.bias, broadcast_index((b, h, i, j), self.bias.type.shape, self.score_shape)), dtype)


class AttentionMath(ScoreMath):
    """``attention``: who may see whom.

    Causal masks are aligned to the bottom right, query i of Sq stands at position ``i + Sk - Sq`` among the Sk keys, unless ``start`` says where.
    """

    def __init__(self, d: Definer, o: Operation) -> None:
        super().__init__(d, o, rows=2)
        self.mask, self.bias = o.operands[3:5]
        self.start = o.operands[5] if len(o.operands) > 5 else None

    def visible(self, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr | None:
        """Whether query i may see key j; None where every query sees every key."""
        masked = self.masked(b, h, i, j)
        return all_of(*self.in_sight(b, i, j), *([] if masked is None else [masked]))

    def position(self, b: Expr, i: Expr) -> Expr:
        """Where query i stands among the keys."""
        if self.start is None:
            return i + (dim_expr(self.keys) - dim_expr(self.queries))
        return i + cast(self.d.at(self.start, (b,)), DType.i64)

    def in_sight(self, b: Expr, i: Expr, j: Expr) -> list[Expr]:
        """What the positions of query i and key j must fulfil."""
        position = self.position(b, i)
        conditions = [j <= position] if self.op.causal else []
        return conditions if self.op.window is None else [*conditions, j > position - self.op.window]

    def masked(self, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr | None:
        """What the mask says; None without one."""
        return None if self.mask is None else self.d.at(self.mask, broadcast_index((b, h, i, j), self.mask.type.shape, self.score_shape))


class PackedMath(ScoreMath):
    """``packed_attention``: each query sees a range of keys."""

    def __init__(self, d: Definer, o: Operation) -> None:
        super().__init__(d, o, rows=0)

    @property
    def word(self) -> DType:
        """The dtype of the starts."""
        return self.o.inputs[3].type.dtype

    def seen(self, i: Expr, fold: Callable[[str, Callable[[Expr], Expr]], Expr]) -> tuple[Expr, Expr]:
        """The first key that query i sees and the one behind the last, none of them outside the array. ``fold(kind, body)`` folds over the starts."""
        q_starts, k_starts = self.o.inputs[3:]
        zero, word = Const(0, self.word), self.word
        row = cast(i, word)

        def chosen(of: Value, behind: bool, otherwise: int) -> Callable[[Expr], Expr]:
            def body(n: Expr) -> Expr:
                start = self.d.at(q_starts, (n,))
                return select(row < start if behind else start <= row, self.d.at(of, (n,)), Const(otherwise, word))

            return body

        first = fold("max", chosen(k_starts, False, word.min))
        end, next_start = (fold("min", chosen(of, True, word.max)) for of in (k_starts, q_starts))
        inside = fold("any", lambda n: self.d.at(q_starts, (n,)) <= row) & fold("any", lambda n: row < self.d.at(q_starts, (n,)))
        position = row + (end - next_start)
        if self.op.window is not None:
            first = binary("max", first, position - (self.op.window - 1))
        if self.op.causal:
            end = binary("min", end, position + 1)
        size = dim_expr(self.keys)
        return binary("max", first, zero), select(inside, binary("min", end, cast(size, word)), zero)


def all_of(*conditions: Expr) -> Expr | None:
    """That all of them hold; None for none."""
    return functools.reduce(lambda a, b: binary("and", a, b), conditions) if conditions else None


def score_shift(top: Expr) -> Expr:
    """What scores are shifted by before exp: their maximum, or 0 where every one is -inf. NaN and +inf stay, and make the row NaN."""
    return select(eq(top, -math.inf), Const(0, top.dtype), top)


def normalised(value: Expr, total: Expr) -> Expr:
    """``value / total``; a row whose weights are all zero stays a sum of zeros."""
    return value / select(eq(total, 0.0), Const(1, total.dtype), total)


@define(ops.Attention, ops.CachedAttention)
def _attention(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    m = AttentionMath(d, o)
    b, h, i, e = index
    head = m.kv_head(h)

    def score(j: Expr) -> Expr:
        x = Axis("d", dim_expr(m.features), SEQ)
        value = m.biased(Reduce("sum", (x,), d.lifted(m.q, (b, h, i, x)) * d.lifted(m.k, (b, head, j, x))), b, h, i, j)
        visible = m.visible(b, h, i, j)
        return value if visible is None else select(visible, value, Const(-math.inf, value.dtype))

    return d.finish(o, result, _averaged(m, score, lambda j: d.lifted(m.v, (b, head, j, e))))


@define(ops.PackedAttention)
def _packed_attention(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    m = PackedMath(d, o)
    i, h, e = index
    head = m.kv_head(h)

    def fold(kind: str, body: Callable[[Expr], Expr]) -> Expr:
        n = Axis("n", dim_expr(o.inputs[3].type.shape[0]), SEQ)
        return Reduce(kind, (n,), body(n))

    first, end = m.seen(i, fold)

    def score(j: Expr) -> Expr:
        x, key = Axis("d", dim_expr(m.features), SEQ), cast(j, m.word)
        value = m.biased(Reduce("sum", (x,), d.lifted(m.q, (i, h, x)) * d.lifted(m.k, (j, head, x))), const(0), h, i, j)
        return select((first <= key) & (key < end), value, Const(-math.inf, value.dtype))

    return d.finish(o, result, _averaged(m, score, lambda j: d.lifted(m.v, (j, head, e))))


def _averaged(m: ScoreMath, score: Callable[[Expr], Expr], value: Callable[[Expr], Expr]) -> Expr:
    """The average of the values of all keys, weighted by the exponentials of their scores: three folds over the keys."""
    j_top, j_sum, j_out = (Axis("j", dim_expr(m.keys), kind) for kind in (VECTOR, VECTOR, SEQ))
    top = score_shift(Reduce("max", (j_top,), score(j_top)))
    total = Reduce("sum", (j_sum,), unary("exp", score(j_sum) - top))
    return normalised(Reduce("sum", (j_out,), unary("exp", score(j_out) - top) * value(j_out)), total)
