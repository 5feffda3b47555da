"""The bits of an element under another name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dtypes import FLOATS, INTS, DType
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class BitCast(Op):
    """The bits of every element read as another dtype of the same width (numpy's ``view``). Little endian, IEEE 754."""

    dtype: DType

    mnemonic = "bitcast"
    operands = (Operand("x", FLOATS | INTS),)
    constraints = {1: "dtype is a float or integer of the width of x's"}
    fusion = FusionKind.ELEMENTWISE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, self.dtype in FLOATS | INTS and self.dtype.bits == x.dtype.bits, f"{x.dtype} to {self.dtype}")
        return (x.with_dtype(self.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.ascontiguousarray(x).view(self.dtype.numpy).reshape(x.shape)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for source in DType:
            for target in DType:
                if source in FLOATS | INTS and target in FLOATS | INTS and source.bits == target.bits:
                    low = 0.0 if source.is_integer and target.is_float else -100.0 if source.is_signed else 0.0  # no NaN
                    yield Sample(cls(target), (source["n", 5],), {"x": low}, {"x": 100.0})
