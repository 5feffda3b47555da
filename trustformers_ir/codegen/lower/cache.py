"""Writes into a cache: where it is memory that outlives the call, only the new rows are touched."""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.kernel import Stmt, nest
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, VECTOR, Axis, cast
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import dim_expr
from trustformers_ir.codegen.lower.nest import copy_nest
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType


def write_nest(d: Definer, o: Operation, in_place: bool) -> tuple[Stmt, ...]:
    """The rows of a ``cache_write``, each head of each token by itself. Not ``in_place``: one worker copies the cache before."""
    cache, rows, start = o.inputs
    kind = PARALLEL if in_place else SEQ
    batch, heads, tokens = (Axis(name, dim_expr(rows.type.shape[i]), kind) for i, name in enumerate(("b", "h", "s")))
    features = Axis("x", dim_expr(rows.type.shape[3]), VECTOR)
    place = d.checked(o, cast(d.at(start, (batch,)), DType.i64) + tokens, cache.type.shape[2], "place")
    row = d.store(o.result, (batch, heads, place, features), d.at(rows, (batch, heads, tokens, features)))
    write = nest([batch, heads, tokens, features], row)
    return write if in_place else (*copy_nest(d, cache, o.result), *write)
