"""Pointwise definitions of gathers: the index comes from memory and is checked."""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.nodes import Const, Expr, cast, eq, ne
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType


@define(ops.Gather)
def _gather(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Gather)
    x, indices = o.inputs
    axis = o.op.axis % x.type.rank
    rank = indices.type.rank
    raw = d.at(indices, index[axis : axis + rank])
    picked = d.checked(o, raw, x.type.shape[axis], "index")
    return d.at(x, (*index[:axis], picked, *index[axis + rank :]))


@define(ops.GatherElements)
def _gather_elements(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.GatherElements)
    x, indices = o.inputs
    axis = o.op.axis % x.type.rank
    picked = d.checked(o, d.at(indices, index), x.type.shape[axis], "index")
    return d.at(x, (*index[:axis], picked, *index[axis + 1 :]))


@define(ops.GatherNd)
def _gather_nd(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.GatherNd)
    x, indices = o.inputs
    batch = o.op.batch_dims
    depth = indices.type.shape[-1]
    assert isinstance(depth, int), "the inference of gather_nd asks for a static index depth"
    lead = indices.type.rank - 1
    picked = [
        d.checked(o, d.at(indices, (*index[:lead], Const(j, DType.i64))), x.type.shape[batch + j], f"index component {j}") for j in range(depth)
    ]
    return d.at(x, (*index[:batch], *picked, *index[lead:]))


@define(ops.Embedding)
def _embedding(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    table, ids = o.inputs
    row = d.checked(o, d.at(ids, index[:-1]), table.type.shape[0], "token id")
    return d.at(table, (row, index[-1]))


@define(ops.OneHot)
def _one_hot(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    hit = eq(cast(d.at(o.inputs[0], index[:-1]), DType.i64), index[-1])
    return cast(hit, o.result.type.dtype)


def in_page(d: Definer, o: Operation, pool: Value, pages: Value, batch: Expr, head: Expr, place: Expr, feature: Expr) -> Index:
    """Where in a pool something of the token at ``place`` of a sequence lies."""
    length = dim_expr(pool.type.shape[2])
    page = d.checked(o, d.at(pages, (batch, place // length)), pool.type.shape[0], "page")
    return page, head, place % length, feature


@define(ops.PagedRead)
def _paged_read(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    pool, pages = o.inputs
    batch, head, place, feature = index
    return d.at(pool, in_page(d, o, pool, pages, batch, head, place, feature))


@define(ops.Check)
def _check(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """The checked index 0 is added to where x is read: out of range reports the site."""
    assert isinstance(o.op, ops.Check)
    x, wrong = o.inputs
    nought = d.checked(o, cast(ne(d.at(wrong, ()), 0), DType.i64), 1, o.op.message)
    return d.at(x, (index[0] + nought, *index[1:]))
