"""Writes into a cache: where it is memory that outlives the call, only the new rows are touched."""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.kernel import Stmt, nest
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, VECTOR, Axis, cast
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.definitions.index import in_page
from trustformers_ir.codegen.lower.indexing import dim_expr
from trustformers_ir.codegen.lower.nest import copy_nest
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType


def write_nest(d: Definer, o: Operation, in_place: bool) -> tuple[Stmt, ...]:
    """The rows of a write, each head of each token by itself. Not ``in_place``: one worker copies the cache before."""
    cache, rows, start = o.inputs[:3]
    kind = PARALLEL if in_place else SEQ
    batch, heads, tokens = (Axis(name, dim_expr(rows.type.shape[i]), kind) for i, name in enumerate(("b", "h", "s")))
    features = Axis("x", dim_expr(rows.type.shape[3]), VECTOR)
    place = cast(d.at(start, (batch,)), DType.i64) + tokens
    if isinstance(o.op, ops.PagedWrite):
        pages = o.inputs[3]
        at = d.checked(o, place, pages.type.shape[1] * cache.type.shape[2], "place")
        to = in_page(d, o, cache, pages, batch, heads, at, features)
    else:
        to = (batch, heads, d.checked(o, place, cache.type.shape[2], "place"), features)
    row = d.store(o.result, to, d.at(rows, (batch, heads, tokens, features)))
    write = nest([batch, heads, tokens, features], row)
    return write if in_place else (*copy_nest(d, cache, o.result), *write)
