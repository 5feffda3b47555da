"""Pointwise definitions of contractions: one sum of products per output element, in the order of the contracted index.

This is the naive definition; the GEMM of ``schedules.py`` is this very definition with split and tagged axes, so both give the same bits.
"""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.nodes import SEQ, Axis, Const, Expr, Reduce, binary, cast, const, select
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype, define
from trustformers_ir.codegen.lower.indexing import Index, broadcast_index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation


def _products(o: Operation, a: Expr, b: Expr, axes: tuple[Axis, ...]) -> Expr:
    """Sum of ``a * b``: floats in their compute dtype, integers in the result's dtype (wrapping)."""
    out = o.result.type.dtype
    if out.is_float:
        return Reduce("sum", axes, a * b)
    return Reduce("sum", axes, cast(a, out) * cast(b, out))


@define(ops.MatMul)
def _matmul(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    a, b = o.inputs
    k = Axis("k", dim_expr(a.type.shape[-1]), SEQ)
    lead = o.result.type.shape[:-2]
    at_a = (*broadcast_index(index[:-2], a.type.shape[:-2], lead), index[-2], k)
    at_b = (*broadcast_index(index[:-2], b.type.shape[:-2], lead), k, index[-1])
    return d.finish(o, result, _products(o, d.lifted(a, at_a), d.lifted(b, at_b), (k,)))


@define(ops.Linear)
def _linear(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x, weight, bias = o.operands
    assert x is not None and weight is not None
    k = Axis("k", dim_expr(x.type.shape[-1]), SEQ)
    value = _products(o, d.lifted(x, (*index[:-1], k)), d.lifted(weight, (index[-1], k)), (k,))
    if bias is not None:
        value = value + cast(d.lifted(bias, (index[-1],)), value.dtype)
    return d.finish(o, result, value)


@define(ops.Conv1d)
def _conv1d(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Conv1d)
    op = o.op
    return _conv(d, o, index, result, (op.stride,), (op.padding[0],), (op.dilation,), op.groups)


@define(ops.Conv2d)
def _conv2d(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Conv2d)
    op = o.op
    top, _, left, _ = op.padding
    return _conv(d, o, index, result, tuple(op.stride), (top, left), tuple(op.dilation), op.groups)


@define(ops.Conv)
def _conv_nd(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Conv)
    return _conv(d, o, index, result, o.op.stride, o.op.before, o.op.dilation, o.op.groups)


def _conv(
    d: Definer, o: Operation, index: Index, result: int, stride: tuple[int, ...], before: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> Expr:
    x, weight, bias = o.operands
    assert x is not None and weight is not None
    batch, channel, *place = index
    per_group = weight.type.shape[1]
    c = Axis("c", dim_expr(per_group), SEQ)
    taps = tuple(Axis(f"k{i}", dim_expr(n), SEQ) for i, n in enumerate(weight.type.shape[2:]))
    source: list[Expr] = []
    inside: Expr | None = None
    for i, tap in enumerate(taps):
        at = place[i] * stride[i] + tap * dilation[i] - before[i]
        source.append(at)
        within = binary("and", at >= 0, at < dim_expr(x.type.shape[2 + i]))
        inside = within if inside is None else binary("and", inside, within)
    assert inside is not None
    out_per_group = dim_expr(weight.type.shape[0]) // groups
    group = channel // out_per_group if groups > 1 else const(0)
    element = d.lifted(x, (batch, group * dim_expr(per_group) + c, *source))
    element = select(inside, element, Const(0, element.dtype))
    value = _products(o, element, d.lifted(weight, (channel, c, *taps)), (c, *taps))
    if bias is not None:
        value = value + cast(d.lifted(bias, (channel,)), value.dtype)
    return d.finish(o, result, value)


@define(ops.Einsum)
def _einsum(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """Every letter is an axis: those of the output are the index, the others are summed, in the order in which they appear."""
    assert isinstance(o.op, ops.Einsum)
    before, _, after = o.op.output.partition("...")
    spread = index[len(before) : len(index) - len(after)]
    at: dict[str, Expr] = dict(zip(before + after, index[: len(before)] + index[len(index) - len(after) :], strict=True))
    shape = o.result.type.shape[len(before) : len(index) - len(after)]
    summed: list[Axis] = []
    factors: list[Expr] = []
    for term, x in zip(o.op.terms, o.inputs, strict=True):
        head, dots, tail = term.partition("...")
        free = x.type.rank - len(head) - len(tail)
        for letter, size in zip(head + tail, x.type.shape[: len(head)] + x.type.shape[len(head) + free :], strict=True):
            if letter not in at:
                at[letter] = axis = Axis(letter, dim_expr(size), SEQ)
                summed.append(axis)
        middle = broadcast_index(spread, x.type.shape[len(head) : len(head) + free], shape) if dots else ()
        factors.append(cast(d.lifted(x, (*(at[c] for c in head), *middle, *(at[c] for c in tail))), compute_dtype(o.result.type.dtype)))
    value = factors[0]
    for f in factors[1:]:
        value = value * f
    return d.finish(o, result, Reduce("sum", tuple(summed), value) if summed else value)
