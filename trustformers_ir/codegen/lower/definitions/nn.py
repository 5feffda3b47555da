"""Pointwise definitions of rotary embeddings and of attention (the naive twin of the template in ``attention.py``)."""

from __future__ import annotations

import math

from trustformers_ir.codegen.kernel_ir.nodes import SEQ, VECTOR, Axis, Const, Expr, Reduce, binary, cast, const, eq, select, unary
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index, broadcast_index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim


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


class AttentionMath:
    """What both forms of attention share: the score of one query and key, and who may see whom.

    Causal masks are aligned to the bottom right: query i of Sq stands at position ``i + Sk - Sq`` among the Sk keys.
    """

    def __init__(self, d: Definer, o: Operation) -> None:
        assert isinstance(o.op, ops.Attention)
        self.d, self.o, self.op = d, o, o.op
        self.q, self.k, self.v, self.mask, self.bias = o.operands  # mask and bias may be absent
        assert self.q is not None and self.k is not None and self.v is not None
        self.queries: Dim = self.q.type.shape[2]
        self.keys: Dim = self.k.type.shape[2]
        self.features: Dim = self.q.type.shape[3]
        self.value_features: Dim = self.v.type.shape[3]
        heads, kv_heads = self.q.type.shape[1], self.k.type.shape[1]
        self.group: Dim = heads // kv_heads
        self.score_shape = (*self.q.type.shape[:3], self.keys)

    @property
    def scale(self) -> Expr | float:
        if self.op.scale is not None:
            return self.op.scale
        if isinstance(self.features, int):
            return 1.0 / math.sqrt(self.features)
        return unary("rsqrt", self.d.count((self.features,), self.d.lifted(self.q, [const(0)] * 4).dtype))  # type: ignore[arg-type]

    def kv_head(self, head: Expr) -> Expr:
        return head if self.group == 1 else head // dim_expr(self.group)

    def score(self, dot: Expr, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        """The masked score from the plain dot product of query i and key j; -inf where the key may not be seen."""
        value = self.biased(dot, b, h, i, j)
        visible = self.visible(b, h, i, j)
        return value if visible is None else select(visible, value, Const(-math.inf, value.dtype))

    def biased(self, dot: Expr, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        """The score from the plain dot product of query i and key j, whether the key may be seen or not."""
        value = dot * self.scale
        if self.op.softcap is not None:
            value = unary("tanh", value / self.op.softcap) * self.op.softcap
        at = (b, h, i, j)
        if self.bias is not None:
            value = value + cast(self.d.lifted(self.bias, broadcast_index(at, self.bias.type.shape, self.score_shape)), value.dtype)
        return value

    def visible(self, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr | None:
        conditions: list[Expr] = []
        position = i + (dim_expr(self.keys) - dim_expr(self.queries))
        if self.op.causal:
            conditions.append(j <= position)
        if self.op.window is not None:
            conditions.append(j > position - self.op.window)
        if self.mask is not None:
            conditions.append(self.d.at(self.mask, broadcast_index((b, h, i, j), self.mask.type.shape, self.score_shape)))
        out: Expr | None = None
        for condition in conditions:
            out = condition if out is None else binary("and", out, condition)
        return out


def score_shift(top: Expr) -> Expr:
    """What scores are shifted by before exp: their maximum, or 0 where every one is -inf. NaN and +inf stay, and make the row NaN."""
    return select(eq(top, -math.inf), Const(0, top.dtype), top)


def normalised(value: Expr, total: Expr) -> Expr:
    """``value / total``; a row whose weights are all zero stays a sum of zeros."""
    return value / select(eq(total, 0.0), Const(1, total.dtype), total)


@define(ops.Attention)
def _attention(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    m = AttentionMath(d, o)
    b, h, i, e = index
    head = m.kv_head(h)
    assert m.q is not None and m.k is not None and m.v is not None

    def score(j: Expr) -> Expr:
        x = Axis("d", dim_expr(m.features), SEQ)
        return m.score(Reduce("sum", (x,), d.lifted(m.q, (b, h, i, x)) * d.lifted(m.k, (b, head, j, x))), b, h, i, j)  # type: ignore[arg-type]

    j_top, j_sum, j_out = Axis("j", dim_expr(m.keys), VECTOR), Axis("j", dim_expr(m.keys), VECTOR), Axis("j", dim_expr(m.keys), SEQ)
    top: Expr = Reduce("max", (j_top,), score(j_top))
    top = score_shift(top)
    total = Reduce("sum", (j_sum,), unary("exp", score(j_sum) - top))
    value = Reduce("sum", (j_out,), unary("exp", score(j_out) - top) * d.lifted(m.v, (b, head, j_out, e)))
    return d.finish(o, result, normalised(value, total))
