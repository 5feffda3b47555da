"""Einsums, sliding windows and running products in MIL, which has them in narrow forms or not at all: as products of matrices, gathers and sums."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.emitter import MOST_AXES, STORED, Emitter, is_folded, rule
from trustformers_ir.codegen.export.coreml.rules_elementwise import whole
from trustformers_ir.codegen.export.coreml.rules_shape import Windows, row
from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType

Term = tuple[Any, list[str]]  # an array, and what its axes are called


@rule(ops.Einsum)
def _einsum(e: Emitter, o: Operation) -> Any:
    """Operands are multiplied from the left to the right; a letter is summed over as soon as nothing that comes later has it. An axis of ``...`` is a
    letter of its own, by its place from the right; where it is of size 1 it is left out, as it repeats."""
    op, dtype = o.op, o.result.type.dtype
    assert isinstance(op, ops.Einsum)
    output = re.findall(r"\.\.\.|[A-Za-z]", op.output)
    free = o.result.type.rank - len([p for p in output if p != "..."])
    wanted = [name for p in output for name in ([f".{free - n}" for n in range(free)] if p == "..." else [p])]
    sizes: dict[str, Dim] = {}
    terms = [_term(e, v, term, sizes) for v, term in zip(o.inputs, op.terms, strict=True)]
    y, names = terms[0]
    for number, (x, theirs) in enumerate(terms):
        later = {*wanted, *(name for _, more in terms[number + 1 :] for name in more)}
        y, names = (y, names) if number == 0 else _times(e, (y, names), (x, theirs), later, sizes)
        y, names = _summed(e, y, names, later)
    kept = [n for n in wanted if n in names]
    y = _turned(e, y, [names.index(n) for n in kept])
    apart = [sizes[n] if n in names else 1 for n in wanted]
    y = e.spread(e.reshape(y, [sizes[n] for n in kept], apart), apart, o.result.type.shape)
    return e.cast(y, DType.f32 if dtype is DType.f16 else dtype, dtype)


def _turned(e: Emitter, x: Any, perm: Sequence[int]) -> Any:
    return x if list(perm) == sorted(perm) else e("transpose", x=x, perm=list(perm))


def _term(e: Emitter, v: Value, term: str, sizes: dict[str, Dim]) -> Term:
    """An operand without repeated letters (the diagonal is taken), in f32 where it has 16 bits."""
    x, shape = e.value(v), list(v.type.shape)
    x = e.cast(x, v.type.dtype, DType.f32) if v.type.dtype is DType.f16 else x
    before, dots, after = term.partition("...")
    free = len(shape) - len(before) - len(after)
    names = [*before, *(f".{free - n}" for n in range(free if dots else 0)), *after]
    ones = [axis for axis, name in enumerate(names) if name.startswith(".") and shape[axis] == 1]
    if ones:
        x = e("squeeze", x=x, axes=ones)
        names = [n for axis, n in enumerate(names) if axis not in ones]
        shape = [d for axis, d in enumerate(shape) if axis not in ones]
    for axis in reversed(range(len(names))):
        first = names.index(names[axis])
        if first < axis:
            alone = [np.array([-1 if a == b else 1 for b in range(len(names))], np.int32) for a in (first, axis)]
            at = [e("reshape", x=row(e, shape[a]), shape=only) for a, only in zip((first, axis), alone, strict=True)]
            zero = np.float32(0) if v.type.dtype.is_float else np.int32(0)
            x = e("reduce_sum", x=e("select", cond=e("equal", x=at[0], y=at[1]), a=x, b=zero), axes=[axis], keep_dims=False)
            del names[axis], shape[axis]
    sizes.update(zip(names, shape, strict=True))
    return x, names


def _times(e: Emitter, a: Term, b: Term, later: set[str], sizes: dict[str, Dim]) -> Term:
    """The product of two, as one of matrices ``[batch, rows, terms]`` and ``[batch, terms, columns]``."""
    (x, ours), (y, theirs) = a, b
    both = [n for n in ours if n in theirs]
    batch, terms = [n for n in both if n in later], [n for n in both if n not in later]
    rows, columns = [n for n in ours if n not in both], [n for n in theirs if n not in both]

    def flat(x: Any, names: list[str], order: Sequence[list[str]]) -> Any:
        x = _turned(e, x, [names.index(n) for part in order for n in part])
        sized = [sizes[n] for part in order for n in part]
        return e.reshape(x, sized, [math.prod([sizes[n] for n in part], start=1) for part in order])

    z = e("matmul", x=flat(x, ours, (batch, rows, terms)), y=flat(y, theirs, (batch, terms, columns)))
    made = [*batch, *rows, *columns]
    flat_shape = [math.prod([sizes[n] for n in part], start=1) for part in (batch, rows, columns)]
    return e.reshape(z, flat_shape, [sizes[n] for n in made]), made


def _summed(e: Emitter, x: Any, names: list[str], later: set[str]) -> Term:
    done = [axis for axis, n in enumerate(names) if n not in later]
    return (e("reduce_sum", x=x, axes=done, keep_dims=False) if done else x), [n for n in names if n in later]


@rule(ops.CumProd)
def _cumprod(e: Emitter, o: Operation) -> Any:
    """Each place is the product of a row of a square whose other numbers are 1."""
    op, v = o.op, o.inputs[0]
    assert isinstance(op, ops.CumProd)
    rank, axis, dtype = v.type.rank, op.axis % v.type.rank, o.result.type.dtype
    if rank + 1 > MOST_AXES:
        raise Unsupported(f"arrays have at most {MOST_AXES} axes")
    wide = DType.f32 if dtype is DType.f16 else dtype
    x = e("expand_dims", x=e.cast(e.value(v), v.type.dtype, wide), axes=[axis])  # [..., place, term, ...]
    size = v.type.shape[axis]
    alone = [np.array([-1 if a == at else 1 for a in range(rank + 1)], np.int32) for at in (axis, axis + 1)]
    place, term = (e("reshape", x=row(e, size), shape=only) for only in alone)
    first, second = (term, place) if not op.reverse else (place, term)
    taken = e("less" if op.exclusive else "less_equal", x=first, y=second)
    shape = [*v.type.shape[: axis + 1], *v.type.shape[axis:]]
    square = e.spread(x, [*v.type.shape[:axis], 1, *v.type.shape[axis:]], shape)
    one = np.int32(1) if wide is not DType.f32 and wide.is_integer else np.float32(1)
    y = e("reduce_prod", x=e("select", cond=taken, a=square, b=one), axes=[axis + 1], keep_dims=False)
    return e.cast(y, wide, dtype)


@rule(ops.Unfold)
def _unfold(e: Emitter, o: Operation) -> Any:
    """An axis at a time: what each window has of it is gathered into two axes."""
    op, v = o.op, o.inputs[0]
    assert isinstance(op, ops.Unfold)
    dtype, count = v.type.dtype, len(op.windows)
    x, shape, lead = whole(e, e.value(v), dtype), list(v.type.shape), v.type.rank - len(op.windows)
    outside = (np.int32 if dtype is DType.bool else STORED[dtype])(op.value)
    for axis, w in enumerate(op.windows, lead):
        if w.before or w.after:
            sides = [[n if a == axis else d for a, d in enumerate(shape)] for n in (w.before, w.after) if n]
            edges = [e("fill", shape=e.shape(side), value=outside) for side in sides]
            x = e("concat", values=[*edges[: bool(w.before)], x, *edges[bool(w.before) :]], axis=axis)
        shape[axis] = shape[axis] + w.before + w.after
    places = o.result.type.shape[lead : lead + count]
    moving = [n for n, w in enumerate(op.windows) if w.size > 1 or w.stride > 1]  # others have each element once, in an axis of 1
    at = []
    for w, count_of in zip(op.windows, places, strict=True):
        start = e("mul", x=row(e, count_of), y=np.int32(w.stride)) if w.stride > 1 else row(e, count_of)
        at.append(e("add", x=e("expand_dims", x=start, axes=[1]), y=np.arange(w.size, dtype=np.int32)[None] * np.int32(w.dilation)))
    if lead + count + len(moving) > MOST_AXES:
        if not is_folded(o.result):
            raise Unsupported(f"arrays have at most {MOST_AXES} axes")
        return Windows(x, lead, tuple(at))
    for n in reversed(moving):
        x = e("gather", x=x, indices=at[n], axis=lead + n)
    before = [lead + n + sum(m < n for m in moving) for n in range(count)]  # where the places of each axis are
    x = _turned(e, x, [*range(lead), *before, *(before[n] + 1 for n in moving)])
    shape = list(o.result.type.shape)
    x = e.reshape(x, [*shape[: lead + count], *(shape[lead + count + n] for n in moving)], shape)
    return e("cast", x=x, dtype="bool") if dtype is DType.bool else x


@rule(ops.Check)
def _check(e: Emitter, o: Operation) -> Any:
    """A package says nothing of what a call must not be: the numbers go through."""
    return e.operand(o, 0)


@rule(ops.ShiftLeft, ops.ShiftRight)
def _shift(e: Emitter, o: Operation) -> Any:
    """Times or through a power of two out of a table; a quotient is rounded down, as sign bits come in. 2^31 is no number there: to the right, what
    is left is the sign, as of all that lies beyond."""
    dtype = o.result.type.dtype
    left = isinstance(o.op, ops.ShiftLeft)
    if left and dtype is not DType.i32:
        raise Unsupported("Core ML has integers of 32 bits, and numbers that are shifted to the left grow beyond them")
    x, count = e.operand(o, 0), e.operand(o, 1)
    most = 31 if left else 30
    inside = e("logical_and", x=e("greater_equal", x=count, y=np.int32(0)), y=e("less_equal", x=count, y=np.int32(most)))
    table = e.constant((1 << np.arange(most + 1, dtype=np.int64)).astype(np.int32), DType.i32)
    safe = e("mul", x=count, y=e("cast", x=inside, dtype="int32"))
    if safe.rank == 0:
        power = e("squeeze", x=e("gather", x=table, indices=e("expand_dims", x=safe, axes=[0]), axis=0), axes=[0])
    else:
        power = e("gather", x=table, indices=safe, axis=0)
    if left:
        return e("mul", x=e("mul", x=x, y=power), y=e("cast", x=inside, dtype="int32"))
    sign = e("mul", x=e("cast", x=e("less", x=x, y=np.int32(0)), dtype="int32"), y=np.int32(-1))
    beyond = e("sub", x=np.int32(1), y=e("cast", x=inside, dtype="int32"))
    shifted = e("mul", x=e("floor_div", x=x, y=power), y=e("cast", x=inside, dtype="int32"))
    return e("add", x=shifted, y=e("mul", x=sign, y=beyond))
