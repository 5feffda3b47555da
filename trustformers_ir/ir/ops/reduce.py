"""Reductions, scans, arg-reductions, top-k and softmax.

``axes`` of a reduction are counted from 0, ascending, without repeats; an empty tuple reduces nothing. ``keepdims`` keeps them with size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir.dims import Dim, product, symbol
from trustformers_ir.ir.dtypes import BOOL, COMPLEXES, FLOATS, NUMERIC, REAL, DType
from trustformers_ir.ir.ops.broadcast import require_axis, require_less_equal
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class ReduceOp(Op):
    """Base: folds ``axes`` of x, keeping its dtype. ``needs_element`` says that folding nothing has no value."""

    axes: tuple[int, ...]
    keepdims: bool = False

    operands = (Operand("x", FLOATS),)
    constraints = {1: "axes are axes of x, counted from 0, ascending, without repeats", 2: "the reduced axes have an element, provably"}
    fusion = FusionKind.REDUCTION
    needs_element: ClassVar[bool] = False
    extremes: ClassVar[tuple[float, float]] = (-3.0, 3.0)

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        ascending = all(a < b for a, b in zip(self.axes, self.axes[1:], strict=False))
        self.require(1, ascending and all(0 <= a < x.rank for a in self.axes), f"axes {list(self.axes)} of a rank {x.rank} tensor")
        for a in self.axes:
            if self.needs_element:
                require_less_equal(self, 2, ctx, 1, x.shape[a], f"size of axis {a}")
        kept = [(1 if i in self.axes else d) for i, d in enumerate(x.shape) if self.keepdims or i not in self.axes]
        return (TensorType(tuple(kept), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return self.fold(x, self.axes)

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        raise NotImplementedError

    @classmethod
    def variants(cls, axes: tuple[int, ...], keepdims: bool) -> Iterator[ReduceOp]:
        """The remaining attribute values that samples use."""
        yield cls(axes, keepdims)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        allowed = cls.operands[0].dtypes
        low, high = {"x": cls.extremes[0]}, {"x": cls.extremes[1]}
        for dtype, shape, axes, keepdims in _REDUCTIONS:
            if dtype in allowed:
                for op in cls.variants(axes, keepdims):
                    yield Sample(op, (TensorType(shape, dtype),), low if dtype.is_signed else {"x": 0.0}, high)


_REDUCTIONS: tuple[tuple[DType, tuple[Any, ...], tuple[int, ...], bool], ...] = (
    (DType.f32, (3, 37), (1,), False),
    (DType.f32, (3, 5, 4), (0, 2), True),
    (DType.f32, ("b", "s", 8), (1,), False),
    (DType.f64, (2, 6), (0, 1), False),
    (DType.f16, (5,), (0,), True),
    (DType.bf16, ("n", 33), (1,), True),
    (DType.i32, (4, 5), (0,), False),
    (DType.i8, (2, 3, 20), (2,), False),
    (DType.u8, (3, 9), (1,), True),
    (DType.i64, ("n",), (0,), False),
    (DType.bool, (4, 3), (1,), False),
    (DType.bool, ("n", 2), (0,), True),
    (DType.c64, (3, 4), (0,), False),
    (DType.f32, (2, 3), (), False),
    (DType.i32, (2, 3), (), True),
)


@dataclass(frozen=True)
class ReduceSum(ReduceOp):
    """The sum, in x's dtype; integers wrap. The sum of nothing is 0."""

    mnemonic = "reduce_sum"
    operands = (Operand("x", NUMERIC),)
    constraints = {1: ReduceOp.constraints[1]}

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.sum(x, axis=axes, keepdims=self.keepdims, dtype=x.dtype)


@dataclass(frozen=True)
class ReduceMean(ReduceOp):
    """The arithmetic mean; NaN of nothing."""

    mnemonic = "reduce_mean"
    operands = (Operand("x", FLOATS | COMPLEXES),)
    constraints = {1: ReduceOp.constraints[1]}

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.sum(x, axis=axes, keepdims=self.keepdims) / _count(x, axes)


@dataclass(frozen=True)
class ReduceProd(ReduceOp):
    """The product, in x's dtype; integers wrap. The product of nothing is 1."""

    mnemonic = "reduce_prod"
    operands = (Operand("x", NUMERIC),)
    constraints = {1: ReduceOp.constraints[1]}
    extremes = (-1.5, 1.5)

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.prod(x, axis=axes, keepdims=self.keepdims, dtype=x.dtype)


@dataclass(frozen=True)
class ReduceMax(ReduceOp):
    """The largest element; NaN when one is NaN."""

    mnemonic = "reduce_max"
    operands = (Operand("x", REAL),)
    needs_element = True

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.max(x, axis=axes, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceMin(ReduceOp):
    """The smallest element; NaN when one is NaN."""

    mnemonic = "reduce_min"
    operands = (Operand("x", REAL),)
    needs_element = True

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.min(x, axis=axes, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceAny(ReduceOp):
    """True when an element is true; false of nothing."""

    mnemonic = "reduce_any"
    operands = (Operand("x", BOOL),)
    constraints = {1: ReduceOp.constraints[1]}
    exact = True

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.any(x, axis=axes, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceAll(ReduceOp):
    """True when every element is true; true of nothing."""

    mnemonic = "reduce_all"
    operands = (Operand("x", BOOL),)
    constraints = {1: ReduceOp.constraints[1]}
    exact = True

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.all(x, axis=axes, keepdims=self.keepdims)


@dataclass(frozen=True)
class ReduceLogSumExp(ReduceOp):
    """``log(sum(exp(x)))`` without overflow: the largest element is taken out of the sum."""

    mnemonic = "reduce_log_sum_exp"
    needs_element = True

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        top = np.max(x, axis=axes, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        out = np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top
        return out if self.keepdims else np.squeeze(out, axes)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 4 * product([t.elements for t in types if t is not None])


@dataclass(frozen=True)
class ReduceVar(ReduceOp):
    """``sum((x - mean)**2) / max(count - correction, 0)``, two passes; ``correction=1`` is Bessel's."""

    correction: int = 0

    mnemonic = "reduce_var"
    constraints = {1: ReduceOp.constraints[1], 2: "correction is not negative"}

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(2, self.correction >= 0, f"correction {self.correction}")
        return super().infer(ctx, x)

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        deviation = x - np.sum(x, axis=axes, keepdims=True) / _count(x, axes)
        return np.sum(deviation**2, axis=axes, keepdims=self.keepdims) / np.float64(max(_count(x, axes) - self.correction, 0))

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 4 * product([t.elements for t in types if t is not None])

    @classmethod
    def variants(cls, axes: tuple[int, ...], keepdims: bool) -> Iterator[ReduceOp]:
        yield cls(axes, keepdims)
        yield cls(axes, keepdims, 1)


@dataclass(frozen=True)
class ReduceStd(ReduceVar):
    """The square root of ``reduce_var``."""

    mnemonic = "reduce_std"

    def fold(self, x: np.ndarray, axes: tuple[int, ...]) -> Any:
        return np.sqrt(super().fold(x, axes))


def _count(x: np.ndarray, axes: tuple[int, ...]) -> Any:
    return np.float64(np.prod([x.shape[a] for a in axes]))


# --- positions ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArgReduceOp(Op):
    """Base of argmax and argmin."""

    axis: int
    keepdims: bool = False

    operands = (Operand("x", REAL),)
    constraints = {1: "axis is one of x's", 2: "the axis has an element, provably"}
    fusion = FusionKind.REDUCTION

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        axis = require_axis(self, 1, self.axis, x.rank)
        require_less_equal(self, 2, ctx, 1, x.shape[axis], f"size of axis {axis}")
        return (TensorType((*x.shape[:axis], *((1,) if self.keepdims else ()), *x.shape[axis + 1 :]), DType.i64),)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(1), (DType.f32[3, 40],))
        yield Sample(cls(-1, True), (DType.bf16["n", 9],))
        yield Sample(cls(0), (DType.f64[5],))
        yield Sample(cls(1, True), (DType.f16[2, 6, 3],))
        yield Sample(cls(0), (DType.i32[7, 2],), {"x": -2}, {"x": 2})
        yield Sample(cls(1), (DType.u8[2, "n"],), {"x": 0}, {"x": 3})


@dataclass(frozen=True)
class ArgMax(ArgReduceOp):
    """The position of the largest element along ``axis`` as i64: the first of equals; the first NaN when there is one."""

    mnemonic = "argmax"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.argmax(x, axis=self.axis, keepdims=self.keepdims)


@dataclass(frozen=True)
class ArgMin(ArgReduceOp):
    """The position of the smallest element along ``axis`` as i64: the first of equals; the first NaN when there is one."""

    mnemonic = "argmin"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.argmin(x, axis=self.axis, keepdims=self.keepdims)


@dataclass(frozen=True)
class TopK(Op):
    """The ``k`` largest (or smallest) elements along ``axis``, sorted, and their positions as i64.

    Equal elements come in the order of their positions. NaN counts as the largest of all.
    """

    k: Dim
    axis: int = -1
    largest: bool = True

    mnemonic = "top_k"
    operands = (Operand("x", REAL),)
    constraints = {1: "axis is one of x's", 2: "1 <= k <= size of axis, provably"}
    fusion = FusionKind.OPAQUE

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        axis = require_axis(self, 1, self.axis, x.rank)
        require_less_equal(self, 2, ctx, 1, self.k, "1 <= k")
        require_less_equal(self, 2, ctx, self.k, x.shape[axis], "k <= size")
        shape = (*x.shape[:axis], self.k, *x.shape[axis + 1 :])
        return (TensorType(shape, x.dtype), TensorType(shape, DType.i64))

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        nan = np.isnan(x)
        value = np.where(nan, x.dtype.type(0), x)
        reverse = np.negative if x.dtype.kind == "f" else np.invert  # both turn the order of their dtype around
        keys = (reverse(value), ~nan) if self.largest else (value, nan)
        order = np.lexsort(keys, axis=self.axis)  # stable, the last key counts first
        order = np.take(order, np.arange(ctx.size(self.k)), axis=self.axis)
        return np.take_along_axis(x, order, self.axis), order.astype(np.int64)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(3), (DType.f32[4, 20],))
        yield Sample(cls(2, 0, False), (DType.f64[5, 3],))
        yield Sample(cls(1, 1), (DType.bf16["n", 6, 2],))
        yield Sample(cls(4), (DType.i32[2, 9],), {"x": -2}, {"x": 2})
        yield Sample(cls(5, 0, False), (DType.u8[5],), {"x": 0}, {"x": 3})
        yield Sample(cls(2), (DType.f16["n + 2"],))
        yield Sample(cls(symbol("n"), 1, False), (DType.f32[2, "n"],))

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return self.k * product([t.elements for t in types if t is not None])


# --- scans -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanOp(Op):
    """Base of the running folds along one axis."""

    axis: int
    reverse: bool = False
    exclusive: bool = False

    operands = (Operand("x", NUMERIC),)
    constraints = {1: "axis is one of x's"}
    fusion = FusionKind.OPAQUE
    scan: ClassVar[np.ufunc]
    extremes: ClassVar[tuple[float, float]] = (-2.0, 2.0)

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        require_axis(self, 1, self.axis, x.rank)
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        scan = type(self).scan
        x = np.flip(x, self.axis) if self.reverse else x
        if self.exclusive and x.shape[self.axis]:
            first = np.full_like(np.take(x, [0], self.axis), scan.identity)
            x = np.concatenate([first, np.take(x, np.arange(x.shape[self.axis] - 1), self.axis)], self.axis)
        out = scan.accumulate(x, axis=self.axis, dtype=x.dtype)
        return np.flip(out, self.axis) if self.reverse else out

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low, high = {"x": cls.extremes[0]}, {"x": cls.extremes[1]}
        yield Sample(cls(1), (DType.f32[3, 12],), low, high)
        yield Sample(cls(-1, reverse=True), (DType.f64[2, 5],), low, high)
        yield Sample(cls(0, exclusive=True), (DType.f16[4, 2],), low, high)
        yield Sample(cls(1, True, True), (DType.bf16["b", "n"],), low, high)
        yield Sample(cls(0), (DType.i64["n"],), low, high)
        yield Sample(cls(0, exclusive=True), (DType.u8[7],), {"x": 0}, high)
        yield Sample(cls(1), (DType.c64[2, 3],), low, high)
        yield Sample(cls(0, exclusive=True), (DType.f32[0, 2],))


@dataclass(frozen=True)
class CumSum(ScanOp):
    """``y[i] = x[0] + … + x[i]`` along ``axis``, from the end if ``reverse``, without ``x[i]`` if ``exclusive``. Integers wrap."""

    mnemonic = "cumsum"
    scan = np.add


@dataclass(frozen=True)
class CumProd(ScanOp):
    """``y[i] = x[0] * … * x[i]`` along ``axis``, from the end if ``reverse``, without ``x[i]`` if ``exclusive``. Integers wrap."""

    mnemonic = "cumprod"
    scan = np.multiply
    extremes = (-1.5, 1.5)


# --- softmax -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftmaxOp(Op):
    """Base of softmax and its logarithm."""

    axis: int = -1

    operands = (Operand("x", FLOATS),)
    constraints = {1: "axis is one of x's"}
    fusion = FusionKind.REDUCTION

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        require_axis(self, 1, self.axis, x.rank)
        return (x,)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 5 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 37],))
        yield Sample(cls(0), (DType.f64[5],))
        yield Sample(cls(1), (DType.f16[2, 6, 3],), {"x": -20}, {"x": 20})
        yield Sample(cls(-1), (DType.bf16["b", 4, "s"],))
        yield Sample(cls(-2), (DType.f32["n", 4, 1],))


@dataclass(frozen=True)
class Softmax(SoftmaxOp):
    """``softmax(x)[i] = exp(x[i] - max x) / sum(exp(x - max x))`` along ``axis``; a row of nothing but -inf is NaN."""

    mnemonic = "softmax"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        e = np.exp(x - np.max(x, axis=self.axis, keepdims=True, initial=-np.inf))
        return e / np.sum(e, axis=self.axis, keepdims=True)


@dataclass(frozen=True)
class LogSoftmax(SoftmaxOp):
    """``log_softmax(x)[i] = x[i] - max x - log(sum(exp(x - max x)))`` along ``axis``."""

    mnemonic = "log_softmax"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        shifted = x - np.max(x, axis=self.axis, keepdims=True, initial=-np.inf)
        return shifted - np.log(np.sum(np.exp(shifted), axis=self.axis, keepdims=True))
