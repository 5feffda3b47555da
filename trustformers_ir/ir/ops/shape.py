"""Data movement: every output element is one input element (or the padding), copied exactly."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim, SymbolFact, floordiv, product, symbol
from trustformers_ir.ir.dtypes import EVERY, DType
from trustformers_ir.ir.ops.broadcast import (
    require_axis,
    require_equal,
    require_expands,
    require_less_equal,
    require_same_dtype,
    shape_list,
)
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType

_N, _B, _S = symbol("n"), symbol("b"), symbol("s")


@dataclass(frozen=True)
class MovementOp(Op):
    """Base of the ops that only move elements."""

    operands = (Operand("x", EVERY),)
    fusion = FusionKind.INJECTIVE
    exact = True


@dataclass(frozen=True)
class Reshape(MovementOp):
    """The same elements in row-major order under another shape."""

    shape: tuple[Dim, ...]

    mnemonic = "reshape"
    constraints = {1: "no size of the new shape is negative", 2: "the number of elements is provably the same"}

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        for d in self.shape:
            require_less_equal(self, 1, ctx, 0, d, f"size {d}")
        require_equal(self, 2, ctx, x.elements, product(self.shape), f"{shape_list([x.shape, self.shape])}")
        return (TensorType(self.shape, x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return x.reshape(ctx.shape(self.shape))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls((6, 4)), (DType.f32[2, 3, 4],))
        yield Sample(cls((4, _N)), (DType.f8e4m3["n", 4],))
        yield Sample(cls(()), (DType.f64[1, 1],))
        yield Sample(cls((1, 12, 1)), (DType.i8[12],))
        yield Sample(cls((_B, _S, 2, 3)), (DType.bf16["b", "s", 6],))
        yield Sample(cls((_B * _S, 6)), (DType.f16["b", "s", 6],))
        yield Sample(cls((_N * 2,)), (DType.bool["n", 2],))
        yield Sample(cls((floordiv(_N, 4), 4)), (DType.c64["4*(n//4)"],))
        yield Sample(cls((0, 7)), (DType.i64[3, 0],))


@dataclass(frozen=True)
class Transpose(MovementOp):
    """Axes in another order: axis i of the result is axis ``perm[i]`` of x."""

    perm: tuple[int, ...]

    mnemonic = "transpose"
    constraints = {1: "perm holds every axis of x once"}

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, sorted(self.perm) == list(range(x.rank)), f"perm {list(self.perm)} of a rank {x.rank} tensor")
        return (TensorType(tuple(x.shape[p] for p in self.perm), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return x.transpose(self.perm)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls((1, 0)), (DType.f32[5, 3],))
        yield Sample(cls((0, 2, 1, 3)), (DType.bf16["b", 4, "s", 8],))
        yield Sample(cls((2, 0, 1)), (DType.i32[2, 3, 4],))
        yield Sample(cls(()), (DType.bool[()],))
        yield Sample(cls((0,)), (DType.c128[4],))
        yield Sample(cls((1, 0)), (DType.f8e4m3["n", 33],))


@dataclass(frozen=True)
class Expand(MovementOp):
    """``numpy.broadcast_to``: axes of size 1, and missing leading axes, are repeated up to ``shape``."""

    shape: tuple[Dim, ...]

    mnemonic = "expand"
    constraints = {1: "no size of the new shape is negative", 2: "every axis of x is provably 1 or that of shape, aligned at the last"}

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        for d in self.shape:
            require_less_equal(self, 1, ctx, 0, d, f"size {d}")
        require_expands(self, 2, ctx, x.shape, self.shape)
        return (TensorType(self.shape, x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.broadcast_to(x, ctx.shape(self.shape))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls((3, 4)), (DType.f32[1, 4],))
        yield Sample(cls((2, 3, 4)), (DType.i64[3, 1],))
        yield Sample(cls((_B, 2, _S)), (DType.f16["b", 1, "s"],))
        yield Sample(cls((_N, 5)), (DType.bool[()],))
        yield Sample(cls((4,)), (DType.c64[4],))
        yield Sample(cls((3, 4)), (DType.f8e4m3[4],))


@dataclass(frozen=True)
class Concat(Op):
    """The operands one after another along ``axis``."""

    axis: int

    mnemonic = "concat"
    operands = (Operand("xs", EVERY, variadic=True),)
    constraints = {
        1: "there is an operand",
        2: "axis is one of theirs",
        3: "the operands have one dtype",
        4: "the operands have one rank and, except along axis, provably equal sizes",
    }
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, *xs: TensorType) -> tuple[TensorType, ...]:
        self.require(1, bool(xs))
        first = xs[0]
        axis = require_axis(self, 2, self.axis, first.rank)
        require_same_dtype(self, 3, xs)
        total: Dim = 0
        for number, x in enumerate(xs):
            self.require(4, x.rank == first.rank, f"operand {number} has rank {x.rank}, not {first.rank}")
            for i, (d, wanted) in enumerate(zip(x.shape, first.shape, strict=True)):
                if i != axis:
                    require_equal(self, 4, ctx, d, wanted, f"axis {i} of operand {number}")
            total = total + x.shape[axis]
        return (TensorType((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype),)

    def reference(self, ctx: EvalContext, *xs: np.ndarray) -> Any:
        return np.concatenate(xs, axis=self.axis)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(0), (DType.f32[2, 3], DType.f32[4, 3]))
        yield Sample(cls(-1), (DType.bf16["b", 3], DType.bf16["b", 1], DType.bf16["b", 5]))
        yield Sample(cls(1), (DType.i64[2, "n", 3], DType.i64[2, "m", 3]))
        yield Sample(cls(0), (DType.bool[5],))
        yield Sample(cls(1), (DType.c64[2, 0], DType.c64[2, 2]))
        yield Sample(cls(0), (DType.f8e4m3["n", 20], DType.f8e4m3[3, 20]))


@dataclass(frozen=True)
class Slice(MovementOp):
    """``x[..., start:stop:step, ...]`` along one axis; the result has ``ceil((stop - start) / step)`` elements there."""

    axis: int
    start: Dim
    stop: Dim
    step: int = 1

    mnemonic = "slice"
    constraints = {1: "axis is one of x's", 2: "0 <= start <= stop <= size, provably", 3: "step is at least 1"}

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        axis = require_axis(self, 1, self.axis, x.rank)
        require_less_equal(self, 2, ctx, 0, self.start, "0 <= start")
        require_less_equal(self, 2, ctx, self.start, self.stop, "start <= stop")
        require_less_equal(self, 2, ctx, self.stop, x.shape[axis], "stop <= size")
        self.require(3, self.step >= 1, f"step {self.step}")
        size = floordiv(self.stop - self.start + (self.step - 1), self.step)
        return (TensorType((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        window = slice(ctx.size(self.start), ctx.size(self.stop), self.step)
        return x[(slice(None),) * (self.axis % x.ndim) + (window,)]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(0, 1, 3), (DType.f32[5, 2],))
        yield Sample(cls(-1, 0, 7, 3), (DType.f16[2, 7],))
        yield Sample(cls(1, 0, 1), (DType.i64["b", "s"],))
        yield Sample(cls(1, _S - 1, _S), (DType.bf16["b", "s", 4],))
        yield Sample(cls(0, 1, _N, 2), (DType.bool["n"],))
        yield Sample(cls(0, 2, 2), (DType.c64[4, 3],))
        yield Sample(cls(-1, 1, 5), (DType.f8e4m3["n", 8],))
        yield Sample(cls(0, 0, _N), (DType.f32["n + m"],), facts={"m": SymbolFact(low=0)})


@dataclass(frozen=True)
class Flip(MovementOp):
    """x with ``axis`` in reverse order."""

    axis: int

    mnemonic = "flip"
    constraints = {1: "axis is one of x's"}

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        require_axis(self, 1, self.axis, x.rank)
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.flip(x, self.axis)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(0), (DType.f32[5, 2],))
        yield Sample(cls(-1), (DType.bf16["b", "n"],))
        yield Sample(cls(1), (DType.i8[2, 3, 4],))
        yield Sample(cls(0), (DType.f8e4m3[7],))


class PadMode(enum.Enum):
    """What ``pad`` writes outside of x: a constant, the nearest edge element, or the mirror image without repeating the edge."""

    CONSTANT = "constant"
    EDGE = "edge"
    REFLECT = "reflect"


@dataclass(frozen=True)
class Pad(MovementOp):
    """x with ``low[i]`` elements added before and ``high[i]`` after axis i.

    With q the position relative to x: CONSTANT writes ``value``, EDGE reads ``clip(q, 0, size - 1)``, REFLECT reads ``-q`` before and
    ``2 * (size - 1) - q`` after x.
    """

    low: tuple[Dim, ...]
    high: tuple[Dim, ...]
    mode: PadMode = PadMode.CONSTANT
    value: float = 0.0

    mnemonic = "pad"
    operands = (Operand("x"),)
    constraints = {
        1: "low and high have one entry per axis",
        2: "no padding is negative, provably",
        3: "an axis padded with EDGE has an element, one padded with REFLECT more elements than padding, provably",
        4: "value is a number of the dtype: whole and in range for integers, 0 or 1 for bool",
    }

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, len(self.low) == len(self.high) == x.rank, f"{len(self.low)} and {len(self.high)} entries for rank {x.rank}")
        for axis, size in enumerate(x.shape):
            for padding in (self.low[axis], self.high[axis]):
                require_less_equal(self, 2, ctx, 0, padding, f"padding of axis {axis}")
                if padding != 0 and self.mode is not PadMode.CONSTANT:
                    least = 1 if self.mode is PadMode.EDGE else padding + 1
                    require_less_equal(self, 3, ctx, least, size, f"size of axis {axis}")
        if not (x.dtype.is_float or x.dtype.is_complex):
            self.require(4, x.dtype.min <= self.value <= x.dtype.max and self.value == int(self.value), f"{self.value} in {x.dtype}")
        return (TensorType(tuple(lo + d + hi for lo, d, hi in zip(self.low, x.shape, self.high, strict=True)), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        low, high = ctx.shape(self.low), ctx.shape(self.high)
        if self.mode is PadMode.CONSTANT:
            out = np.full([lo + d + hi for lo, d, hi in zip(low, x.shape, high, strict=True)], self.value).astype(x.dtype)
            out[tuple(slice(lo, lo + d) for lo, d in zip(low, x.shape, strict=True))] = x
            return out
        for axis, (lo, hi) in enumerate(zip(low, high, strict=True)):
            if lo or hi:
                last = x.shape[axis] - 1
                q = np.arange(-lo, x.shape[axis] + hi)
                q = np.clip(q, 0, last) if self.mode is PadMode.EDGE else last - np.abs(last - np.abs(q))
                x = np.take(x, q, axis)
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls((0, 1), (2, 0)), (DType.f32[3, 4],))
        yield Sample(cls((1, 0), (0, 3), value=-1.5), (DType.bf16["n", 4],))
        yield Sample(cls((2,), (2,), PadMode.EDGE), (DType.f16[3],))
        yield Sample(cls((0, 2), (0, 3), PadMode.REFLECT), (DType.f64["n", 4],))
        yield Sample(cls((1, 0), (_N, 0), value=7), (DType.i8["m", 2],))
        yield Sample(cls((1,), (1,), value=1), (DType.bool[2],))
        yield Sample(cls((0,), (_B,), PadMode.EDGE), (DType.u16["n"],), {"x": 0})
