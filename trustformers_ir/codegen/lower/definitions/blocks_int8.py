"""Pointwise definitions of activations in groups of 8-bit codes and of their products by weights in blocks.

    y = fold over groups g of  fma(f32(d[g]), scale_x[g] * scale[g], y)  and, where a format has a low,  fma(total[g], low[g], y)
    d[g] = sum over j of q[g, j] * code[g, j]  -  zero * sum[g]

The two steps of a group are two turns of one fold, over (g, t), whose factors are chosen by t: so there is one chain of fused multiply-adds. The sum
of a group has an axis h where a byte holds two codes: byte j has those of elements j (low bits, h = 0) and j + group / 2 (h = 1). t and h are
unrolled, so that nothing is chosen when it runs.
"""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.nodes import SEQ, UNROLL, VECTOR, Axis, Const, Expr, Reduce, cast, const, fma, maximum, select, unary
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.definitions.blocks import Rows, places_of_expert
from trustformers_ir.codegen.lower.definitions.quantized import MAGIC
from trustformers_ir.codegen.lower.indexing import Index
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.blocks_int8 import InBlocksInt8
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE


@define(ops.QuantizeGroups)
def _quantize_groups(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.QuantizeGroups)
    size, row = o.op.group, index[:-1]
    g = index[-1] if result else d.flat.block(index[-1], size)
    scale, inverse = _scale(d, o, (*row, g))
    if result == 0:
        return cast(_code(d.at(o.inputs[0], index), inverse), DType.i8)
    if result == 1:
        return scale

    def build() -> Expr:
        j = Axis("s", size, VECTOR)
        return Reduce("sum", (j,), _code(d.at(o.inputs[0], (*row, g * size + j)), inverse))

    sums = d.once((o, row, g, "sum"), build)
    return sums if result == 2 else cast(sums, DType.f32) * scale


@define(ops.DequantizeGroups)
def _dequantize_groups(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.DequantizeGroups)
    q, scale = o.inputs
    code = cast(d.at(q, index), DType.f32)
    return code * d.lifted(scale, (*index[:-1], d.flat.block(index[-1], o.op.group)))


def _scale(d: Definer, o: Operation, index: Index) -> tuple[Expr, Expr]:
    """The scale of a group of a row, and its reciprocal."""
    assert isinstance(o.op, ops.QuantizeGroups)
    *row, g = index
    size = o.op.group

    def build() -> Expr:
        j = Axis("j", size, VECTOR)
        return Reduce("max", (j,), unary("abs", d.at(o.inputs[0], (*row, g * size + j))))

    scale = maximum(d.once((o, *index, "max"), build) / 127.0, SMALLEST_SCALE)
    return scale, Const(1, DType.f32) / scale


def _code(x: Expr, inverse: Expr) -> Expr:
    """``round(x * inverse)`` as i32 for products within -127 … 127; 0 for NaN."""
    total = fma(x, inverse, MAGIC)
    return unary("bits", select(total > MAGIC - 128.0, total, MAGIC)) - unary("bits", Const(MAGIC, DType.f32))


@define(ops.LinearBlocksInt8)
def _linear_blocks_int8(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    *lead, n = index
    bias = o.operands[-1]
    y = _sum(d, o, tuple(lead), (n,))
    return y if bias is None else y + d.at(bias, (n,))


@define(ops.ExpertBlocksInt8)
def _expert_blocks_int8(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    return _sum(d, o, *places_of_expert(d, o, index))


def _sum(d: Definer, o: Operation, lead: Index, place: Index) -> Expr:
    """A row of the activation by a row of a matrix."""
    assert isinstance(o.op, InBlocksInt8)
    q, x_scale, sums, total, codes, *planes, _ = o.operands
    assert q is not None and x_scale is not None and sums is not None and total is not None and codes is not None
    size, terms = o.op.group, q.type.shape[-1]
    assert isinstance(terms, int)
    rows = Rows(d, o.op, (codes, *planes), place, terms)
    g = Axis("g", terms // size, SEQ)
    run = o.op.run
    j = Axis("j", run, SEQ)
    if rows.row.paired:
        h = Axis("h", 2, UNROLL)
        axes: tuple[Axis, ...] = (h, j)
        at, code = h * run + j, rows.pair(g, j, h)
    else:
        axes, at, code = (j,), j, d.at(codes, (*place, g * run + j))
    dot: Expr = Reduce("sum", axes, cast(d.at(q, (*lead, g * size + at)), DType.i32) * cast(code, DType.i32))
    zero = rows.zero_of(g) if o.op.zeros else o.op.zero
    if not isinstance(zero, int) or zero:
        dot = dot - d.at(sums, (*lead, g)) * zero
    a, b = cast(dot, DType.f32), d.at(x_scale, (*lead, g)) * rows.scale_of(g)
    if not rows.moves:
        return Reduce("sum", (g,), a * b)
    t = Axis("t", 2, UNROLL)
    first, moved = t < const(1), rows.low_of(g)
    body = select(first, a, d.at(total, (*lead, g))) * select(first, b, unary("neg", moved) if rows.row.subtracts else moved)
    return Reduce("sum", (g, t), body)
