"""Conditions that a compiled function counts on and checks when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dtypes import EVERY, INTS, DType
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Check(Op):
    """``x``, provided that ``wrong`` is 0; otherwise the call fails with ``message``."""

    message: str

    mnemonic = "check"
    operands = (Operand("x", EVERY), Operand("wrong", INTS))
    constraints = {1: "wrong is a scalar", 2: "x has an axis"}
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType, wrong: TensorType) -> tuple[TensorType, ...]:
        self.require(1, wrong.rank == 0, str(wrong))
        self.require(2, x.rank > 0, str(x))
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray, wrong: np.ndarray) -> Any:
        if wrong != 0:
            raise IndexError(self.message)
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls("the sizes fit"), (DType.f32["n", 3], DType.i64[()]), {"wrong": 0}, {"wrong": 0})
        yield Sample(cls(""), (DType.bool[4], DType.u8[()]), {"wrong": 0}, {"wrong": 0})
