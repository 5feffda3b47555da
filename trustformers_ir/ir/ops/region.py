"""Structure: terminators and the fused region."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir.dtypes import EVERY
from trustformers_ir.ir.schema import FusionKind, InferContext, Op, Operand
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Return(Op):
    """Ends a function and hands out its results."""

    mnemonic = "return"
    operands = (Operand("results", EVERY, variadic=True, any_layout=True),)
    fusion = FusionKind.STRUCTURE
    terminator = True

    def infer(self, ctx: InferContext, *types: Any) -> tuple[TensorType, ...]:
        return ()


@dataclass(frozen=True)
class Yield(Op):
    """Ends the body of a region and hands out its results."""

    mnemonic = "yield"
    operands = (Operand("results", EVERY, variadic=True, any_layout=True),)
    fusion = FusionKind.STRUCTURE
    terminator = True

    def infer(self, ctx: InferContext, *types: Any) -> tuple[TensorType, ...]:
        return ()


class RegionKind(enum.Enum):
    """What a fused region grew from; the lowering picks its template by it."""

    LOOP = "loop"
    REDUCTION = "reduction"
    CONTRACTION = "contraction"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Fused(Op):
    """A region that becomes one kernel. Operands bind to the body's arguments one to one; results are what the body yields."""

    kind: RegionKind = RegionKind.LOOP

    mnemonic = "fused"
    operands = (Operand("inputs", EVERY, variadic=True, any_layout=True),)
    constraints = {
        1: "the body has one argument per operand, of the operand's type",
        2: "the body ends in yield",
        3: "the results have the types of what the body yields",
    }
    fusion = FusionKind.STRUCTURE
    has_body = True
