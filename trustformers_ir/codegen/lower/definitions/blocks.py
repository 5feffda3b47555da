"""Pointwise definition of products by weights in blocks: a sum over groups of what is multiplied by one scale.

    y = sum over groups g of  scale[g] * sum over j of x[g, j] * (code[g, j] - zero)  +  low[g] * sum over j of x[g, j]

Codes of 4 bits lie in pairs: byte j of a group has the codes of elements j and j + group / 2. So the inner sum is two, one with the low and one with
the high bits of the same bytes, over runs of x that lie side by side; both have one axis, hence one loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.kernel_ir.nodes import SEQ, VECTOR, Axis, Expr, Reduce, cast
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType


@define(ops.LinearBlocks)
def _linear_blocks(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.LinearBlocks)
    x, codes, scale, low, steps, low_steps, bias = o.operands
    assert x is not None and codes is not None and scale is not None
    row, size, (*lead, n) = o.op.row, o.op.group, index
    terms = x.type.shape[-1]
    assert isinstance(terms, int)
    g = Axis("g", terms // size, SEQ)
    run = size // 2 if row.paired else size  # elements whose codes lie in neighbouring bytes
    j = Axis("j", run, VECTOR)

    def of_group(plane: Value, factor: Value | None) -> Expr:
        """What a group is multiplied by, of which every ``per`` elements may share a part."""
        found = cast(_at(d, plane, n, g, terms // size), DType.f32)
        return found if factor is None else found * cast(_at(d, factor, n, g, terms // size), DType.f32)

    code = d.at(codes, (n, g * run + j))
    weights = [cast(c, DType.f32) for c in ((code & 15, code >> 4) if row.paired else (code,))]
    if low is not None and low.type.dtype is DType.u8:
        zero = of_group(low, None)
        weights, low = [w - zero for w in weights], None
    elif row.zero:
        weights = [w - row.zero for w in weights]
    parts = [d.lifted(x, (*lead, g * size + (j + i * run))) for i in range(len(weights))]
    products = [Reduce("sum", (j,), part * w) for part, w in zip(parts, weights, strict=True)]
    total = of_group(scale, steps) * _added(products)
    if low is not None:
        moved = of_group(low, low_steps) * _added([Reduce("sum", (j,), part) for part in parts])
        total = total - moved if row.subtracts else total + moved
    y: Expr = Reduce("sum", (g,), total)
    return d.finish(o, result, y if bias is None else y + d.lifted(bias, (n,)))


@define(ops.EmbeddingBlocks)
def _embedding_blocks(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.EmbeddingBlocks)
    codes, scale, low, steps, low_steps, ids = o.operands
    assert codes is not None and scale is not None and ids is not None
    row, size, (*lead, j) = o.op.row, o.op.group, index
    groups = o.result.type.shape[-1]
    assert isinstance(groups, int)
    groups //= size
    n = d.checked(o, d.at(ids, tuple(lead)), codes.type.shape[0], "token id")
    g, within = j // size, j % size
    if row.paired:
        code = (d.at(codes, (n, g * (size // 2) + within % (size // 2))) >> cast(within // (size // 2) * 4, DType.u8)) & 15
    else:
        code = d.at(codes, (n, j))
    signed = cast(cast(code, DType.i32) - row.zero, DType.f32)
    if low is not None and low.type.dtype is DType.u8:
        signed, low = signed - cast(_at(d, low, n, g, groups), DType.f32), None

    def of_group(plane: Value, factor: Value | None) -> Expr:
        found = cast(_at(d, plane, n, g, groups), DType.f32)
        return found if factor is None else found * cast(_at(d, factor, n, g, groups), DType.f32)

    y = of_group(scale, steps) * signed
    if low is None:
        return y
    moved = of_group(low, low_steps)
    return y - moved if row.subtracts else y + moved


def _at(d: Definer, plane: Value, n: Expr, g: Expr, groups: int) -> Expr:
    """The entry of a plane for a group, of which several may share one."""
    columns = plane.type.shape[1]
    assert isinstance(columns, int)
    return d.at(plane, (n, g // (groups // columns)))


def _added(terms: Sequence[Expr]) -> Expr:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


