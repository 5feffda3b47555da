"""Reads and writes at computed positions.

Indices are of any integer dtype; negative ones count from the end, and one outside of ``-size .. size - 1`` is an error at run time.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim, SymbolFact
from trustformers_ir.ir.dtypes import ANY, FLOATS, INTS, NUMERIC, DType
from trustformers_ir.ir.ops.broadcast import require_axis, require_less_equal, require_same_dtype, require_same_shape
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


def resolve_indices(op: Op, indices: np.ndarray, size: int, what: str = "index") -> np.ndarray:
    """Indices as int64 counted from 0; ``IndexError`` naming the op, the offending index and the size. ``what``: an index is called so."""
    outside = (indices >= size) | ((indices < 0) & (indices.astype(np.int64) < -size))
    if outside.any():
        raise IndexError(f"{op.mnemonic}: {what} {indices[outside].reshape(-1)[0]} is out of range for size {size}")
    wide = indices.astype(np.int64)
    return np.where(wide < 0, wide + size, wide)


@dataclass(frozen=True)
class Gather(Op):
    """``numpy.take``: the axis is replaced by the axes of ``indices``, ``y[p, i, q] = x[p, indices[i], q]``."""

    axis: int = 0

    mnemonic = "gather"
    operands = (Operand("x"), Operand("indices", INTS))
    constraints = {1: "axis is one of x's"}
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType, indices: TensorType) -> tuple[TensorType, ...]:
        axis = require_axis(self, 1, self.axis, x.rank)
        return (TensorType((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray, indices: np.ndarray) -> Any:
        return np.take(x, resolve_indices(self, indices, x.shape[self.axis]), axis=self.axis)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[7, 3], DType.i64[5]), {"indices": -7}, {"indices": 6})
        yield Sample(cls(1), (DType.bf16["b", 6, 2], DType.i32["n", 3]), {"indices": 0}, {"indices": 5})
        yield Sample(cls(-1), (DType.i8[2, 9], DType.u8[()]), {"indices": 0}, {"indices": 8})
        yield Sample(cls(0), (DType.c64["n + 4"], DType.i8[2, 2]), {"indices": -4}, {"indices": 3})
        yield Sample(cls(1), (DType.bool[3, 4], DType.i16[0]))


@dataclass(frozen=True)
class GatherElements(Op):
    """``y[i, j, k] = x[i, indices[i, j, k], k]`` for axis 1: one index per output element (ONNX GatherElements, torch.gather)."""

    axis: int = 0

    mnemonic = "gather_elements"
    operands = (Operand("x"), Operand("indices", INTS))
    constraints = {
        1: "axis is one of x's",
        2: "x and indices have one rank",
        3: "except along axis, indices are no larger than x, provably",
    }
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType, indices: TensorType) -> tuple[TensorType, ...]:
        axis = require_axis(self, 1, self.axis, x.rank)
        self.require(2, x.rank == indices.rank, f"{x} and {indices}")
        for i, (have, size) in enumerate(zip(indices.shape, x.shape, strict=True)):
            if i != axis:
                require_less_equal(self, 3, ctx, have, size, f"axis {i}")
        return (TensorType(indices.shape, x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray, indices: np.ndarray) -> Any:
        return x[_element_index(self, x, indices, self.axis)]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(1), (DType.f32[3, 7], DType.i64[3, 4]), {"indices": -7}, {"indices": 6})
        yield Sample(cls(0), (DType.f16[5, "n"], DType.i32[2, "n"]), {"indices": 0}, {"indices": 4})
        yield Sample(cls(-1), (DType.i64[4, 2, 6], DType.u8[3, 1, 8]), {"indices": 0}, {"indices": 5})
        yield Sample(cls(0), (DType.bool[3], DType.i8[9]), {"indices": -3}, {"indices": 2})


def _element_index(op: Op, x: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    grid: list[Any] = list(np.indices(indices.shape))
    grid[axis] = resolve_indices(op, indices, x.shape[axis])
    return tuple(grid)


@dataclass(frozen=True)
class GatherNd(Op):
    """The last axis of ``indices`` holds a position in x: ``y[b, i] = x[b, indices[b, i, 0], …, indices[b, i, m - 1]]`` (ONNX GatherND).

    The first ``batch_dims`` axes of both operands run together.
    """

    batch_dims: int = 0

    mnemonic = "gather_nd"
    operands = (Operand("x"), Operand("indices", INTS))
    constraints = {
        1: "batch_dims is at least 0 and less than the rank of indices",
        2: "the last size m of indices is a constant and batch_dims + m is at most the rank of x",
        3: "the batch sizes of x and indices are provably equal",
    }
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType, indices: TensorType) -> tuple[TensorType, ...]:
        b = self.batch_dims
        self.require(1, 0 <= b < indices.rank, f"batch_dims {b} with {indices}")
        m = indices.shape[-1]
        if not isinstance(m, int) or b + m > x.rank:
            self.fail(2, f"{x} and {indices}")
        require_same_shape(self, 3, ctx, x.shape[:b], indices.shape[:b], "batch sizes")
        return (TensorType((*indices.shape[:-1], *x.shape[b + m :]), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray, indices: np.ndarray) -> Any:
        b = self.batch_dims
        batch = [g.reshape(g.shape + (1,) * (indices.ndim - 1 - b)) for g in np.indices(indices.shape[:b])]
        where = [resolve_indices(self, indices[..., j], x.shape[b + j]) for j in range(indices.shape[-1])]
        if not batch and not where:
            return np.broadcast_to(x, indices.shape[:-1] + x.shape)
        lead = indices.shape[:-1]
        return x[tuple(np.broadcast_to(a, lead) for a in [*batch, *where])]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[5, 4, 3], DType.i64[6, 2]), {"indices": -4}, {"indices": 3})
        yield Sample(cls(), (DType.bf16[4, "n"], DType.i32[2, 3, 1]), {"indices": 0}, {"indices": 3})
        yield Sample(cls(1), (DType.f64["b", 3, 2], DType.i64["b", 4, 1]), {"indices": -3}, {"indices": 2})
        yield Sample(cls(2), (DType.i8[2, 3, 4, 5], DType.u8[2, 3, 2]), {"indices": 0}, {"indices": 3})


class ScatterReduce(enum.Enum):
    """How a scatter combines an update with what is there."""

    NONE = "none"
    ADD = "add"
    MUL = "mul"
    MAX = "max"
    MIN = "min"


_COMBINE: dict[ScatterReduce, np.ufunc] = {
    ScatterReduce.ADD: np.add,
    ScatterReduce.MUL: np.multiply,
    ScatterReduce.MAX: np.maximum,
    ScatterReduce.MIN: np.minimum,
}


def _scatter(x: np.ndarray, where: tuple[np.ndarray, ...], updates: np.ndarray, reduce: ScatterReduce) -> np.ndarray:
    """Updates applied one after another in row-major order; each entry of ``where`` has one element per leading position of updates."""
    out = np.array(x, order="C")
    if reduce is ScatterReduce.NONE:  # numpy promises no order for repeated positions, so only the last write of each is made
        flat = np.ravel_multi_index(where, x.shape[: len(where)]).reshape(-1)
        position, back = np.unique(flat[::-1], return_index=True)
        rows = out.reshape(-1, *x.shape[len(where) :])
        rows[position] = updates.reshape(len(flat), *x.shape[len(where) :])[len(flat) - 1 - back]
        return out
    _COMBINE[reduce].at(out, where, updates)
    return out


@dataclass(frozen=True)
class ScatterOp(Op):
    """Base of the scatters: a copy of x with updates written in row-major order of the updates, so that the later one wins."""

    operands = (Operand("x"), Operand("indices", INTS), Operand("updates"))
    fusion = FusionKind.OPAQUE

    def require_reducible(self, number: int, reduce: ScatterReduce, dtype: DType) -> None:
        allowed = {ScatterReduce.NONE: ANY, ScatterReduce.ADD: NUMERIC, ScatterReduce.MUL: NUMERIC}.get(reduce, FLOATS | INTS)
        self.require(number, dtype in allowed, f"reduce={reduce.value} of {dtype}")

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[2] is not None
        return types[2].elements


@dataclass(frozen=True)
class ScatterElements(ScatterOp):
    """A copy of x where ``y[i, indices[i, j, k], k] = updates[i, j, k]`` for axis 1, or combined by ``reduce`` (ONNX ScatterElements).

    Updates are applied in row-major order; sums of floats are rounded once, after the last update.
    """

    axis: int = 0
    reduce: ScatterReduce = ScatterReduce.NONE

    mnemonic = "scatter_elements"
    constraints = {
        1: "axis is one of x's",
        2: "x and updates have one dtype",
        3: "x, indices and updates have one rank, and indices and updates provably one shape",
        4: "except along axis, indices are no larger than x, provably",
        5: "the dtype can be reduced: no bool, and no complex for max and min",
    }

    def infer(self, ctx: InferContext, x: TensorType, indices: TensorType, updates: TensorType) -> tuple[TensorType, ...]:
        axis = require_axis(self, 1, self.axis, x.rank)
        require_same_dtype(self, 2, (x, updates))
        self.require(3, x.rank == indices.rank, f"{x} and {indices}")
        require_same_shape(self, 3, ctx, indices.shape, updates.shape, "indices and updates")
        for i, (have, size) in enumerate(zip(indices.shape, x.shape, strict=True)):
            if i != axis:
                require_less_equal(self, 4, ctx, have, size, f"axis {i}")
        self.require_reducible(5, self.reduce, x.dtype)
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> Any:
        return _scatter(x, _element_index(self, x, indices, self.axis), updates, self.reduce)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for reduce in ScatterReduce:
            yield Sample(cls(1, reduce), (DType.f32[3, 7], DType.i64[3, 9], DType.f32[3, 9]), {"indices": -7}, {"indices": 6})
            yield Sample(cls(0, reduce), (DType.i32[5, "n"], DType.i32[4, "n"], DType.i32[4, "n"]), {"indices": 0}, {"indices": 4})
        yield Sample(cls(-1), (DType.bool[2, 4], DType.u8[2, 3], DType.bool[2, 3]), {"indices": 0}, {"indices": 3})
        yield Sample(cls(0, ScatterReduce.ADD), (DType.bf16[6], DType.i8[20], DType.bf16[20]), {"indices": -6}, {"indices": 5})


@dataclass(frozen=True)
class ScatterNd(ScatterOp):
    """A copy of x where ``y[indices[i, 0], …, indices[i, m - 1]] = updates[i]``, or combined by ``reduce`` (ONNX ScatterND).

    Updates are applied in row-major order; sums of floats are rounded once, after the last update.
    """

    reduce: ScatterReduce = ScatterReduce.NONE

    mnemonic = "scatter_nd"
    constraints = {
        1: "indices have an axis, and its last size m is a constant no larger than the rank of x",
        2: "x and updates have one dtype",
        3: "updates provably have the shape of indices without the last axis, followed by the axes of x after the first m",
        4: "the dtype can be reduced: no bool, and no complex for max and min",
    }

    def infer(self, ctx: InferContext, x: TensorType, indices: TensorType, updates: TensorType) -> tuple[TensorType, ...]:
        m = indices.shape[-1] if indices.shape else None
        if not isinstance(m, int) or m > x.rank:
            self.fail(1, f"{x} and {indices}")
        require_same_dtype(self, 2, (x, updates))
        require_same_shape(self, 3, ctx, updates.shape, (*indices.shape[:-1], *x.shape[m:]), "updates")
        self.require_reducible(4, self.reduce, x.dtype)
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> Any:
        if not indices.shape[-1]:  # every update is of the whole: that of an axis of size 1 put before it
            return _scatter(x[None], (np.zeros(indices.shape[:-1], np.int64),), updates, self.reduce)[0]
        where = tuple(resolve_indices(self, indices[..., j], x.shape[j]) for j in range(indices.shape[-1]))
        return _scatter(x, where, updates, self.reduce)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for reduce in ScatterReduce:
            yield Sample(cls(reduce), (DType.f32[5, 4], DType.i64[7, 1], DType.f32[7, 4]), {"indices": -5}, {"indices": 4})
            yield Sample(cls(reduce), (DType.i64[3, 4, "n"], DType.i32[2, 3, 2], DType.i64[2, 3, "n"]), {"indices": 0}, {"indices": 2})
            yield Sample(cls(reduce), (DType.f32[3], DType.i64[4, 0], DType.f32[4, 3]))
        yield Sample(cls(), (DType.bool[6], DType.u8["n", 1], DType.bool["n"]), {"indices": 0}, {"indices": 5})
        yield Sample(cls(ScatterReduce.ADD), (DType.f16[2, 2], DType.i64[8, 2], DType.f16[8]), {"indices": -2}, {"indices": 1})


@dataclass(frozen=True)
class Embedding(Op):
    """``y[i] = weight[ids[i]]``: rows of a table. ``padding_id`` names the row whose gradient is zero; it does not change the result."""

    padding_id: int | None = None

    mnemonic = "embedding"
    operands = (Operand("weight", FLOATS), Operand("ids", INTS))
    constraints = {1: "weight is a matrix"}
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, weight: TensorType, ids: TensorType) -> tuple[TensorType, ...]:
        self.require(1, weight.rank == 2, str(weight))
        return (TensorType((*ids.shape, weight.shape[1]), weight.dtype),)

    def reference(self, ctx: EvalContext, weight: np.ndarray, ids: np.ndarray) -> Any:
        return weight[resolve_indices(self, ids, weight.shape[0])]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[10, 6], DType.i64["b", "s"]), {"ids": 0}, {"ids": 9})
        yield Sample(cls(0), (DType.bf16[5, 3], DType.i32[4]), {"ids": -5}, {"ids": 4})
        yield Sample(cls(), (DType.f16["v", 8], DType.i64[()]), {"ids": 0}, {"ids": 2}, {"v": SymbolFact(low=3)})


@dataclass(frozen=True)
class OneHot(Op):
    """``y[i, j] = 1 if ids[i] == j else 0`` for ``0 <= j < depth``. An id outside of that range gives a row of zeros."""

    depth: Dim
    dtype: DType = DType.f32

    mnemonic = "one_hot"
    operands = (Operand("ids", INTS),)
    constraints = {1: "depth is not negative, provably"}
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, ids: TensorType) -> tuple[TensorType, ...]:
        require_less_equal(self, 1, ctx, 0, self.depth, "0 <= depth")
        return (TensorType((*ids.shape, self.depth), self.dtype),)

    def reference(self, ctx: EvalContext, ids: np.ndarray) -> Any:
        return (ids[..., None] == np.arange(ctx.size(self.depth))).astype(self.dtype.numpy)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(5), (DType.i64[4],), {"ids": -1}, {"ids": 5})
        yield Sample(cls(3, DType.bool), (DType.u8["n", 2],), {"ids": 0}, {"ids": 3})
        yield Sample(cls(4, DType.bf16), (DType.i32[()],), {"ids": 0}, {"ids": 3})
