"""Windows that slide over the trailing axes: what pooling folds and what products of patches read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim, SymbolFact, floordiv
from trustformers_ir.ir.dtypes import ANY, DType
from trustformers_ir.ir.ops.broadcast import require_less_equal
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Window:
    """How a window moves along one axis: its elements, the step between places, elements added before and after, the step inside."""

    size: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1

    @property
    def span(self) -> int:
        """The elements from the first to the last of a window."""
        return self.dilation * (self.size - 1) + 1

    def places(self, size: Dim) -> Dim:
        """How often the window fits into an axis of ``size`` with what is added."""
        return floordiv(size + (self.before + self.after - self.span), self.stride) + 1


@dataclass(frozen=True)
class Unfold(Op):
    """``y[…, o1, …, on, k1, …, kn] = x[…, o1 * stride + k1 * dilation - before, …]`` over the last n axes; ``value`` outside of x.

    With a reduction over the last n axes it is pooling, with an einsum a convolution; both read x directly (torch.nn.functional.unfold has the
    same elements in another order).
    """

    windows: tuple[Window, ...]
    value: float = 0.0

    mnemonic = "unfold"
    operands = (Operand("x", ANY),)
    constraints = {
        1: "there is a window, and x has an axis for each",
        2: "sizes, strides and dilations are at least 1, what is added at least 0",
        3: "every window provably fits into its axis with what is added",
        4: "value is a number of the dtype: whole and in range for integers, 0 or 1 for bool",
    }
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        n = len(self.windows)
        self.require(1, 1 <= n <= x.rank, f"{n} windows over {x}")
        for w in self.windows:
            self.require(2, min(w.size, w.stride, w.dilation) >= 1 and min(w.before, w.after) >= 0, str(w))
        for axis, w in enumerate(self.windows, x.rank - n):
            require_less_equal(self, 3, ctx, w.span, x.shape[axis] + w.before + w.after, f"axis {axis}")
        if not (x.dtype.is_float or x.dtype.is_complex):
            self.require(4, x.dtype.min <= self.value <= x.dtype.max and self.value == int(self.value), f"{self.value} in {x.dtype}")
        places = [w.places(size) for w, size in zip(self.windows, x.shape[x.rank - n :], strict=True)]
        return (TensorType((*x.shape[: x.rank - n], *places, *(w.size for w in self.windows)), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        n = len(self.windows)
        lead = x.shape[: x.ndim - n]
        widths = [(0, 0)] * len(lead) + [(w.before, w.after) for w in self.windows]
        filled = np.full([lo + size + hi for size, (lo, hi) in zip(x.shape, widths, strict=True)], np.asarray(self.value).astype(x.dtype), x.dtype)
        filled[tuple(slice(lo, lo + size) for size, (lo, _) in zip(x.shape, widths, strict=True))] = x
        places = ctx.result_shape[len(lead) : len(lead) + n]
        for axis, (w, count) in enumerate(zip(self.windows, places, strict=True), len(lead)):
            at = np.arange(count)[:, None] * w.stride + np.arange(w.size) * w.dilation
            filled = np.moveaxis(np.take(filled, at, axis), axis + 1, -1)
        return filled

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls((Window(3, 2, 1, 1),)), (DType.f32[2, 3, 9],))
        yield Sample(cls((Window(2, 1, 0, 1, 2), Window(3, 3)), -1.5), (DType.f64["b", 5, 7],))
        yield Sample(cls((Window(2), Window(1), Window(2, 2, 1)), 7), (DType.i8[2, 3, 2, 5],))
        yield Sample(cls((Window(4, 4),)), (DType.bf16["n"],), facts={"n": SymbolFact(low=4)})
        yield Sample(cls((Window(3, 1, 2),), 1), (DType.bool[6],))
        yield Sample(cls((Window(2, 2),)), (DType.c64[2, 4],))
