"""Provable broadcasting and the small checks that type inference shares.

Two dims broadcast when one of them is provably 1 or both are provably equal. Nothing is assumed: a question that the recorded facts leave
open is a failure whose reason names both dims and the missing fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from trustformers_ir.ir.dims import Dim, Facts, UndecidedDim
from trustformers_ir.ir.types import TensorType

if TYPE_CHECKING:
    from trustformers_ir.ir.schema import InferContext, Op

Shape = tuple[Dim, ...]


class BroadcastError(Exception):
    """Shapes that do not broadcast, or not provably."""


def broadcast_dims(facts: Facts, a: Dim, b: Dim) -> Dim:
    """The size to which two dims broadcast; a constant is preferred over an equal expression."""
    if facts.is_equal(a, 1):
        return b
    if facts.is_equal(b, 1):
        return a
    try:
        if facts.equal(a, b):
            return a if isinstance(a, int) else b if isinstance(b, int) else a
        reason = f"{a} and {b} are different and neither is 1"
    except UndecidedDim as error:
        reason = f"{a} and {b} broadcast only if they are equal or one of them is 1: {error}"
    raise BroadcastError(reason)


def broadcast_shapes(facts: Facts, *shapes: Shape) -> Shape:
    """numpy's broadcasting rule over dims, aligned at the last axis. :class:`BroadcastError` says which axis fails and why."""
    out: list[Dim] = []
    for position in range(1, max((len(s) for s in shapes), default=0) + 1):
        size: Dim = 1
        for shape in shapes:
            if position <= len(shape):
                try:
                    size = broadcast_dims(facts, size, shape[-position])
                except BroadcastError as error:
                    raise BroadcastError(f"axis -{position} of {shape_list(shapes)}: {error}") from None
        out.append(size)
    return tuple(reversed(out))


def shape_list(shapes: Iterable[Shape]) -> str:
    return " and ".join(f"[{', '.join(map(str, s))}]" for s in shapes)


def require_broadcast(op: Op, number: int, ctx: InferContext, *types: TensorType | None) -> Shape:
    """The broadcast shape of the types that are present, or constraint ``number`` fails with the reason."""
    try:
        return broadcast_shapes(ctx.facts, *(t.shape for t in types if t is not None))
    except BroadcastError as error:
        op.fail(number, str(error))


def require_expands(op: Op, number: int, ctx: InferContext, source: Shape, target: Shape) -> None:
    """``source`` broadcasts to exactly ``target``."""
    if len(source) > len(target):
        op.fail(number, f"{shape_list([source])} has more axes than {shape_list([target])}")
    for axis, (a, b) in enumerate(zip(reversed(source), reversed(target), strict=False), 1):
        if not ctx.facts.is_equal(a, 1):
            require_equal(op, number, ctx, a, b, f"axis -{axis} of {shape_list([source])} is neither 1 nor that of {shape_list([target])}")


def require_equal(op: Op, number: int, ctx: InferContext, a: Dim, b: Dim, what: str) -> None:
    """Constraint ``number`` fails unless ``a == b`` is proven."""
    try:
        if ctx.facts.equal(a, b):
            return
        detail = f"{a} != {b}"
    except UndecidedDim as error:
        detail = str(error)
    op.fail(number, f"{what}: {detail}")


def require_same_shape(op: Op, number: int, ctx: InferContext, a: Shape, b: Shape, what: str) -> None:
    """Constraint ``number`` fails unless both shapes are provably equal."""
    if len(a) != len(b):
        op.fail(number, f"{what}: {shape_list([a])} and {shape_list([b])} have different ranks")
    for axis, (da, db) in enumerate(zip(a, b, strict=True)):
        require_equal(op, number, ctx, da, db, f"{what}, axis {axis}")


def require_less_equal(op: Op, number: int, ctx: InferContext, a: Dim, b: Dim, what: str) -> None:
    """Constraint ``number`` fails unless ``a <= b`` is proven."""
    try:
        if ctx.facts.less_equal(a, b):
            return
        detail = f"{a} > {b}"
    except UndecidedDim as error:
        detail = str(error)
    op.fail(number, f"{what}: {detail}")


def require_axis(op: Op, number: int, axis: int, rank: int) -> int:
    """``axis`` counted from 0; constraint ``number`` fails when it is not one of ``rank`` axes."""
    op.require(number, -rank <= axis < rank, f"axis {axis} of a rank {rank} tensor")
    return axis % rank


def require_same_dtype(op: Op, number: int, types: Sequence[TensorType | None]) -> None:
    """All operands that are present have one dtype."""
    dtypes = [t.dtype for t in types if t is not None]
    op.require(number, len(set(dtypes)) <= 1, " and ".join(map(str, dtypes)))
