"""Products that read one activation and feed one attention become a single product: queries, keys and values at once.

Before::

    %q = linear(%x, %wq, %bq) : f32[batch, seq, 384]
    %k = linear(%x, %wk, %bk) : f32[batch, seq, 384]
    %v = linear(%x, %wv, %bv) : f32[batch, seq, 384]

After::

    %w = weight {name = "query.weight+key.weight+value.weight"} : f32[1152, 384]
    %b = weight {name = "query.bias+key.bias+value.bias"} : f32[1152]
    %y = linear(%x, %w, %b) : f32[batch, seq, 1152]
    %q = slice(%y) {axis = 2, start = 0, stop = 384} : f32[batch, seq, 384]
    …

The activation is read once, and there is one kernel and one barrier instead of three. Attention reads its operands through the slices, and so does a
rotary embedding between the two, so they cost nothing; elsewhere a slice would be a copy, so other products are left alone (the two of a gated
feed-forward network become one kernel in ``fuse``). Every output column is the same sum as before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.types import ROW_MAJOR, TensorType
from trustformers_ir.passes.fuse import VIEWS
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.weights import derived, weight_of

JOINED = "joined"


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Horizontal fusion of the projections in front of attention."""

    name = "merge_linears"
    summary = "compute queries, keys and values in one product"
    requires = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every attention whose projections read the same value."""
        for function in module.functions.values():
            order = {o: i for i, o in enumerate(function.body)}
            for attention in function.body:
                if isinstance(attention.op, ops.Attention):
                    reason = _merge(module, attention, order)
                    if reason is None:
                        log.count("attention with one projection")
                    else:
                        log.miss("merged", f"projections of an attention: {reason}")


def _merge(module: Module, attention: Operation, order: Mapping[Operation, int]) -> str | None:
    """Merge the projections of one attention; or the reason why not. ``order`` numbers the operations as they stand."""
    found: dict[Operation, None] = {}
    for value in attention.inputs[:3]:
        projection = _projection(value)
        if projection is not None:
            found[projection] = None
    groups: dict[Value, list[Operation]] = {}
    for projection in found:
        groups.setdefault(projection.inputs[0], []).append(projection)
    linears = max(groups.values(), key=len, default=[])
    if len(linears) < 2:
        return "no two of them are products of the same value"
    biased = {o.operands[2] is not None for o in linears}
    if len(biased) > 1:
        return "one has a bias and another has none"
    parts = [[w for v in o.inputs[1:] if (w := weight_of(module, v)) is not None and w.type.layout == ROW_MAJOR] for o in linears]
    if any(len(row) < len(o.inputs) - 1 for row, o in zip(parts, linears, strict=True)):
        return "a weight is computed"
    if not rewriting.allowed():
        return "TFIR_STOP_AFTER has been reached"
    first = min(linears, key=order.__getitem__)
    builder = Builder.before(module, first)
    merged = [builder(ops.WeightOp(joined(module, column).name)) for column in zip(*parts, strict=True)]
    result = builder(ops.Linear(), first.inputs[0], merged[0], merged[1] if len(merged) > 1 else None)
    start = 0
    slices = []
    for o in linears:
        width = o.result.type.shape[-1]
        assert isinstance(width, int)
        slices.append(builder(ops.Slice(result.type.rank - 1, start, start + width), result))
        start += width
    for o, part in zip(linears, slices, strict=True):
        o.replace_with([part])
    return None


def _projection(value: Value) -> Operation | None:
    """The product behind the views of an operand, and behind its rotary embedding, when nothing else reads it."""
    while value.producer is not None and isinstance(value.producer.op, (*VIEWS, ops.Rope)) and value.has_one_use:
        value = value.producer.inputs[0]
    o = value.producer
    return o if o is not None and isinstance(o.op, ops.Linear) and value.has_one_use and isinstance(value.type.shape[-1], int) else None


def joined(module: Module, weights: Sequence[Weight]) -> Weight:
    """The weights one below the other, made when first asked for; its ``origin`` names them."""
    rows: Dim = 0
    for w in weights:
        rows = rows + w.type.shape[0]
    type = TensorType((rows, *weights[0].type.shape[1:]), weights[0].type.dtype)
    return derived(module, "+".join(w.name for w in weights), type, lambda: np.concatenate([w.data for w in weights]), (JOINED, *weights))
