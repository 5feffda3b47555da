"""Choosing greedily: what is taken rules out what comes later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import BOOL, DType
from trustformers_ir.ir.ops.broadcast import require_same_shape
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Suppress(Op):
    """``y[…, i]``: whether ``live[…, i]`` holds and no ``j < i`` with ``y[…, j]`` has ``over[…, j, i]``.

    Greedy non-maximum suppression of candidates that come best first, where ``over`` says which overlap too much (Neubeck & Van Gool 2006).
    """

    mnemonic = "suppress"
    operands = (Operand("over", BOOL), Operand("live", BOOL))
    constraints = {1: "live is a vector of flags for each leading index", 2: "over is square, and its sizes are those of live, provably"}
    fusion = FusionKind.OPAQUE
    exact = True

    def infer(self, ctx: InferContext, over: TensorType, live: TensorType) -> tuple[TensorType, ...]:
        self.require(1, live.rank >= 1 and over.rank == live.rank + 1, f"{over} and {live}")
        require_same_shape(self, 2, ctx, over.shape, (*live.shape, live.shape[-1]), "the sizes")
        return (live,)

    def reference(self, ctx: EvalContext, over: np.ndarray, live: np.ndarray) -> Any:
        y = np.zeros(live.shape, bool)
        for i in range(live.shape[-1]):
            y[..., i] = live[..., i] & ~(y & over[..., i]).any(-1)
        return y

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return types[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.bool[9, 9], DType.bool[9]))
        yield Sample(cls(), (DType.bool[2, 3, 20, 20], DType.bool[2, 3, 20]))
        yield Sample(cls(), (DType.bool["b", "n", "n"], DType.bool["b", "n"]))
