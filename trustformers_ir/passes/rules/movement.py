"""Data movement: views of views, views of everything, parts that are put together again. Elements are only copied, so all of it is exact."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import INTS
from trustformers_ir.ir.ops import (
    ArgReduceOp,
    BinaryOp,
    Concat,
    Constant,
    Embedding,
    Expand,
    Flip,
    Gather,
    GatherElements,
    Iota,
    Pad,
    PadMode,
    Reshape,
    ScanOp,
    ScatterElements,
    Select,
    Slice,
    SoftmaxOp,
    TopK,
    Transpose,
)
from trustformers_ir.ir.rewriting import Match, Rule, constant_of, fitted, node, splat, splat_of, var
from trustformers_ir.ir.schema import ConstraintError, Op, infer_types
from trustformers_ir.passes.rules.common import anything, give, keeps_type

x, y = var("x"), var("y")


def _fails(m: Match, op: Op, *operands: Value) -> str | None:
    """The reason why ``op`` does not accept the operands, if it does not: a fact of a symbol is missing."""
    try:
        infer_types(op, [v.type for v in operands], m.module.infer_context)
    except ConstraintError as error:
        return f"not provable: {error}"
    return None


def _is_one(m: Match, name: str) -> bool:
    """Whether the value provably has one element."""
    return m.facts.is_equal(m[name].type.elements, 1)


# --- reshape, transpose, expand, flip ------------------------------------------------------------------------------------------------


def _composed(m: Match, b: Builder) -> Value:
    first, second = m.op("inner").perm, m.op().perm
    return b(Transpose(tuple(first[p] for p in second)), m["x"])


def _keeps_order(transpose: Operation) -> bool:
    op = transpose.op
    return isinstance(op, Transpose) and op.perm == tuple(range(len(op.perm)))


def _moves_only_ones(m: Match) -> str | None:
    moved = [p for p in m.op().perm if not m.facts.is_equal(m["x"].type.shape[p], 1)]
    return None if moved == sorted(moved) else "axes change places that may be longer than 1"


def _adds_leading_ones(m: Match) -> str | None:
    before, after = m["x"].type.shape, m.op("inner").shape
    extra = len(after) - len(before)
    ones = extra >= 0 and all(d == 1 for d in after[:extra])
    return None if ones and after[extra:] == before else "the reshape does more than adding leading axes of size 1"


def _spread(m: Match, b: Builder) -> Value:
    """The one element of x, broadcast to the result's shape."""
    return b(Expand(m.type.shape), m["x"] if not m["x"].type.shape else b(Reshape(()), m["x"]))


def _flips_one(m: Match) -> str | None:
    size = m.type.shape[m.op().axis]
    return None if m.facts.is_equal(size, 1) else f"the axis may have more than one element ({size})"


def _same_axis(m: Match) -> str | None:
    rank = m.type.rank
    return None if m.op().axis % rank == m.op("inner").axis % rank else "the axes differ"


def _without_expand(m: Match, b: Builder) -> Value:
    return b(m.op(), *_narrow_operands(m))


def _narrow_operands(m: Match) -> list[Value]:
    """The root's operands, each taken from before an expand."""
    return [v.producer.inputs[0] if v.producer is not None and isinstance(v.producer.op, Expand) else v for v in m.root.inputs]


def _broadcasts_itself(m: Match) -> str | None:
    values = _narrow_operands(m)
    try:
        (type,) = infer_types(m.op(), [v.type for v in values], m.module.infer_context)
    except ConstraintError as error:
        return f"not provable: {error}"
    return None if type == m.type else "the other operand is not large enough"


VIEWS = (
    Rule("reshape_nothing", "a reshape to x's own shape", node(Reshape, x, where=keeps_type), give("x")),
    Rule("reshape_reshape", "reshape(reshape(x)) = reshape(x)", node(Reshape, node(Reshape, x)), lambda m, b: b(m.op(), m["x"])),
    Rule(
        "transpose_nothing",
        "axes in their own order",
        node(Transpose, x, where=_keeps_order),
        give("x"),
    ),
    Rule("transpose_transpose", "two transposes are one", node(Transpose, node(Transpose, x, name="inner")), _composed),
    Rule(
        "transpose_ones",
        "moving axes of size 1 is a reshape",
        node(Transpose, x, where=lambda operation: 1 in operation.result.type.shape),
        lambda m, b: b(Reshape(m.type.shape), m["x"]),
        _moves_only_ones,
    ),
    Rule("expand_nothing", "an expand to x's own shape", node(Expand, x, where=keeps_type), give("x")),
    Rule(
        "expand_expand",
        "expand(expand(x)) = expand(x)",
        node(Expand, node(Expand, x)),
        lambda m, b: b(m.op(), m["x"]),
        lambda m: _fails(m, m.op(), m["x"]),
    ),
    Rule(
        "expand_leading",
        "expand adds leading axes by itself",
        node(Expand, node(Reshape, x, name="inner")),
        lambda m, b: b(m.op(), m["x"]),
        _adds_leading_ones,
    ),
    Rule(
        "move_one_element",
        "reshape, transpose, slice, flip of one element repeated",
        node((Reshape, Transpose, Slice, Flip), node(Expand, x)),
        _spread,
        lambda m: None if _is_one(m, "x") else "x may have more than one element",
    ),
    Rule(
        "constant_splat",
        "a constant of equal elements is one element, repeated",
        node(Constant, where=lambda operation: operation.result.type.rank > 0 and splat_of(operation.result) is not None),
        lambda m, b: constant_of(b, splat_of(m.root.result), m.type),
    ),
    Rule(
        "broadcast_expand",
        "f(expand(x), y) = f(x, y) where f broadcasts x anyway",
        node((BinaryOp, Select), ..., where=lambda operation: any(v.op_as(Expand) is not None for v in operation.inputs)),
        _without_expand,
        _broadcasts_itself,
    ),
    Rule("flip_flip", "flip(flip(x)) = x", node(Flip, node(Flip, x, name="inner")), give("x"), _same_axis),
    Rule("flip_one", "a flip of an axis of size 1", node(Flip, x), give("x"), _flips_one),
)

_WITH_AXIS = (Concat, Slice, Flip, Gather, GatherElements, ScatterElements, SoftmaxOp, ArgReduceOp, ScanOp, TopK)


def _counted_from_zero(m: Match, b: Builder) -> tuple[Value, ...]:
    rank = m.root.inputs[0].type.rank
    return b.create(replace(m.op(), axis=m.op().axis % rank), *m.root.operands).results


AXES = (
    Rule(
        "axis_from_zero",
        "axes are counted from 0",
        node(_WITH_AXIS, ..., where=lambda operation: getattr(operation.op, "axis", 0) < 0),
        _counted_from_zero,
    ),
)


# --- slices ------------------------------------------------------------------------------------------------------------------------


def _axis(operation: Operation) -> int:
    """The axis of a slice, concat or flip, counted from 0."""
    op: Slice | Concat | Flip = operation.op  # type: ignore[assignment]
    return op.axis % operation.result.type.rank


def _joined(m: Match) -> Slice:
    outer, first = m.op(), m.op("inner")
    start = first.start + outer.start * first.step
    if first.step == 1:
        return Slice(outer.axis, start, first.start + outer.stop, outer.step)
    last = start if outer.start == outer.stop else first.start + (outer.stop - 1) * first.step + 1
    return Slice(outer.axis, start, last, outer.step * first.step)


def _joinable(m: Match) -> str | None:
    if _same_axis(m) is not None:
        return "the axes differ"
    bounds = (m.op().start, m.op().stop)
    if m.op("inner").step != 1 and not all(isinstance(d, int) for d in bounds):
        return "a slice with steps is cut at a symbolic place"
    return _fails(m, _joined(m), m["x"])


def _parts(m: Match) -> Iterator[tuple[Value, Dim, Dim]]:
    """The operands of the concat called ``inner``, each with its first and last position along the axis."""
    offset: Dim = 0
    for value in m.operation("inner").inputs:
        end = offset + value.type.shape[_axis(m.operation("inner"))]
        yield value, offset, end
        offset = end


def _part(m: Match) -> tuple[Value, Dim] | None:
    """The operand of the concat that provably holds the whole slice."""
    op = m.op()
    for value, start, end in _parts(m):
        if m.facts.is_less_equal(start, op.start) and m.facts.is_less_equal(op.stop, end):
            return value, start
    return None


def _slice_part(m: Match, b: Builder) -> Value:
    found = _part(m)
    assert found is not None
    value, offset = found
    op = m.op()
    return fitted(b, b(replace(op, start=op.start - offset, stop=op.stop - offset), value), m.type)


def _slice_below_pad(m: Match, b: Builder) -> Value:
    op, low = m.op(), m.op("inner").low[_axis(m.root)]
    return fitted(b, b(replace(op, start=op.start - low, stop=op.stop - low), m["x"]), m.type)


def _slice_inside_pad(m: Match) -> str | None:
    op, pad, axis = m.op(), m.op("inner"), _axis(m.root)
    if any(p != 0 for i, p in enumerate((*pad.low, *pad.high)) if i % m.type.rank != axis):
        return "another axis is padded"
    low, size = pad.low[axis], m["x"].type.shape[axis]
    inside = m.facts.is_less_equal(low, op.start) and m.facts.is_less_equal(op.stop, low + size)
    return None if inside else "the slice is not provably inside of the padding"


def _slice_of_expand(m: Match, b: Builder) -> Value:
    return b(Expand(m.type.shape), m["x"])


def _slices_copies(m: Match) -> str | None:
    """Along the axis x is repeated, so that every part of the axis is alike."""
    position = _axis(m.root) - m.type.rank
    shape = m["x"].type.shape
    return None if len(shape) < -position or m.facts.is_equal(shape[position], 1) else "x is not repeated along the axis"


SLICES = (
    Rule(
        "slice_nothing",
        "a slice of everything is x",
        node(Slice, x, where=lambda operation: isinstance(operation.op, Slice) and operation.op.step == 1 and keeps_type(operation)),
        give("x"),
    ),
    Rule(
        "slice_slice",
        "two slices of one axis are one",
        node(Slice, node(Slice, x, name="inner")),
        lambda m, b: fitted(b, b(_joined(m), m["x"]), m.type),
        _joinable,
    ),
    Rule(
        "slice_concat",
        "a slice inside of one part of a concat",
        node(Slice, node(Concat, ..., name="inner")),
        _slice_part,
        lambda m: _same_axis(m) or (None if _part(m) is not None else "no part provably holds the slice"),
    ),
    Rule("slice_pad", "a slice inside of the padding", node(Slice, node(Pad, x, name="inner")), _slice_below_pad, _slice_inside_pad),
    Rule("slice_expand", "a slice of a repeated axis repeats it less often", node(Slice, node(Expand, x)), _slice_of_expand, _slices_copies),
)


# --- concat and pad ----------------------------------------------------------------------------------------------------------------


def _flattened(concat: Operation) -> list[Value]:
    """The operands with those of inner concats of the same axis in their place."""
    out: list[Value] = []
    for value in concat.inputs:
        below = value.op_as(Concat)
        out += below.inputs if below is not None and _axis(below) == _axis(concat) else [value]
    return out


def _has_slices(concat: Operation) -> bool:
    return sum(v.op_as(Slice) is not None for v in concat.inputs) > 1


def _part_sizes(concat: Operation) -> list[Dim]:
    return [v.type.shape[_axis(concat)] for v in concat.inputs]


def _nonempty(m: Match) -> list[Value]:
    kept = [v for v, d in zip(m.root.inputs, _part_sizes(m.root), strict=True) if d != 0]
    return kept or m.root.inputs


def _reunited(m: Match) -> list[tuple[Value, Slice | None]]:
    """The operands, where neighbours that are adjacent slices of one value became one slice (not created yet)."""
    axis = _axis(m.root)
    out: list[tuple[Value, Slice | None]] = []
    for value in m.root.inputs:
        operation = value.op_as(Slice)
        op = operation.op if operation is not None else None
        if operation is not None and isinstance(op, Slice) and op.step == 1 and _axis(operation) == axis:
            source = operation.inputs[0]
            if out and out[-1][1] is not None and out[-1][0] is source and m.facts.is_equal(out[-1][1].stop, op.start):
                out[-1] = (source, Slice(axis, out[-1][1].start, op.stop))
            else:
                out.append((source, Slice(axis, op.start, op.stop)))
        else:
            out.append((value, None))
    return out


def _unite(m: Match, b: Builder) -> Value:
    values = [value if op is None else b(op, value) for value, op in _reunited(m)]
    return fitted(b, b(m.op(), *values), m.type)


def _concat_of(values: list[Value], m: Match, b: Builder) -> Value:
    return fitted(b, b(m.op(), *values), m.type)


def _adds_nothing(pad: Operation) -> bool:
    op = pad.op
    return isinstance(op, Pad) and all(p == 0 for p in (*op.low, *op.high))


def _bits(value: float) -> bytes:
    return struct.pack("d", value)


def _one_padding(m: Match) -> str | None:
    outer, first = m.op(), m.op("inner")
    if outer.mode is not PadMode.CONSTANT or first.mode is not PadMode.CONSTANT:
        return "a mode is not constant"
    return None if _bits(outer.value) == _bits(first.value) else "the values differ"


def _padded_once(m: Match, b: Builder) -> Value:
    outer, first = m.op(), m.op("inner")
    low = tuple(p + q for p, q in zip(outer.low, first.low, strict=True))
    high = tuple(p + q for p, q in zip(outer.high, first.high, strict=True))
    return fitted(b, b(replace(outer, low=low, high=high), m["x"]), m.type)


PARTS = (
    Rule("concat_one", "a concat of one part is that part", node(Concat, x), give("x")),
    Rule(
        "concat_concat",
        "a concat of concats is one concat",
        node(Concat, ..., where=lambda operation: _flattened(operation) != operation.inputs),
        lambda m, b: _concat_of(_flattened(m.root), m, b),
    ),
    Rule(
        "concat_empty",
        "parts of size 0 are left out",
        node(Concat, ..., where=lambda operation: any(d == 0 for d in _part_sizes(operation))),
        lambda m, b: _concat_of(_nonempty(m), m, b),
        lambda m: None if len(_nonempty(m)) < len(m.root.inputs) else "every part is empty",
    ),
    Rule(
        "concat_slices",
        "adjacent slices are put together again",
        node(Concat, ..., where=_has_slices),
        _unite,
        lambda m: None if len(_reunited(m)) < len(m.root.inputs) else "no two parts are adjacent slices",
    ),
    Rule(
        "pad_nothing",
        "no padding",
        node(Pad, x, where=_adds_nothing),
        give("x"),
    ),
    Rule("pad_pad", "two paddings with one value are one", node(Pad, node(Pad, x, name="inner")), _padded_once, _one_padding),
)


# --- gathers -----------------------------------------------------------------------------------------------------------------------


def _position(m: Match) -> Dim:
    """Where the only index points, counted from 0."""
    index = int(m.scalar("index"))
    return index if index >= 0 else m["x"].type.shape[m.op().axis] + index


def _points_inside(m: Match) -> str | None:
    if not m.facts.is_equal(m.root.inputs[1].type.elements, 1):
        return "there is more than one index"
    position, size = _position(m), m["x"].type.shape[m.op().axis]
    inside = m.facts.is_less_equal(0, position) and m.facts.is_less_equal(position + 1, size)
    return None if inside else f"the index is not provably inside of {size}"


def _sliced(m: Match, b: Builder) -> Value:
    part = b(Slice(m.op().axis % m["x"].type.rank, _position(m), _position(m) + 1), m["x"])
    return b(Reshape(m.type.shape), part)


def _counts_rows(m: Match) -> str | None:
    iota, axis = m.op("iota"), _gather_axis(m)
    if iota.dtype.bits < 32 and not m.facts.is_less_equal(iota.size, iota.dtype.max + 1):
        return f"{iota.dtype} may be too small to count to {iota.size}"
    return _fails(m, Slice(axis, 0, iota.size), m["x"])


def _gather_axis(m: Match) -> int:
    return m.op().axis % m["x"].type.rank if isinstance(m.op(), Gather) else 0


GATHERS = (
    Rule("gather_one", "a gather of one known position is a slice", node(Gather, x, splat(anything, "index")), _sliced, _points_inside),
    Rule(
        "gather_iota",
        "a gather or embedding of 0 … k - 1 is a slice",
        node((Gather, Embedding), x, node(Iota, name="iota")),
        lambda m, b: fitted(b, b(Slice(_gather_axis(m), 0, m.op("iota").size), m["x"]), m.type),
        _counts_rows,
    ),
    Rule(
        "embedding_reshape",
        "ids are looked up first and reshaped afterwards",
        node(Embedding, x, node(Reshape, var("ids", INTS))),
        lambda m, b: b(Reshape(m.type.shape), b(m.op(), m["x"], m["ids"])),
    ),
    Rule(
        "embedding_expand",
        "ids are looked up once and repeated afterwards",
        node(Embedding, x, node(Expand, var("ids", INTS))),
        lambda m, b: b(Expand(m.type.shape), b(m.op(), m["x"], m["ids"])),
    ),
)

RULES: tuple[Rule, ...] = (*VIEWS, *AXES, *SLICES, *PARTS, *GATHERS)
