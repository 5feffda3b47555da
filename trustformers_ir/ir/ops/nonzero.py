"""Sizes that only the run knows: an op computes a dim, and everything behind it has that size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim, as_symbol, substitute, symbols_of
from trustformers_ir.ir.dtypes import BOOL, DType
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class NonZero(Op):
    """The positions of the true elements of a vector, in order; ``count``, a symbol of its own, becomes their number.

    Where the op stands the symbol gets its value, at most the size of x; operations whose types have it come later. Memory is planned for the most
    that it can be, and outputs have the size that it is.
    """

    count: Dim

    mnemonic = "nonzero"
    operands = (Operand("x", BOOL),)
    constraints = {1: "x is a vector", 2: "count is a symbol, which can be 0 and is in none of x's sizes"}
    fusion = FusionKind.OPAQUE
    exact = True
    defines_dim = True

    @property
    def symbol(self) -> str:
        """The name of the symbol that is computed."""
        found = as_symbol(self.count)
        assert found is not None
        return found

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, x.rank == 1, str(x))
        name = as_symbol(self.count)
        self.require(2, name is not None and name not in x.symbols and ctx.facts.bounds(self.count)[0] <= 0, str(self.count))
        return (TensorType((self.count,), DType.i64),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.flatnonzero(x).astype(np.int64)


def most(dim: Dim, computed: Mapping[str, Dim]) -> Dim:
    """An upper bound of ``dim`` without computed symbols, whose bounds are given. ``ValueError`` where a computed one can make it smaller."""
    if isinstance(dim, int) or not symbols_of(dim) & computed.keys():
        return dim
    if not _grows(dim, computed):
        raise ValueError(f"{dim} may grow when one of {', '.join(sorted(symbols_of(dim) & computed.keys()))} gets smaller")
    return substitute(dim, dict(computed))


def _grows(dim: Dim, computed: Mapping[str, Dim]) -> bool:
    """Whether an expression never falls as computed symbols grow (others are not negative)."""
    if isinstance(dim, int):
        return True
    for monomial, coefficient in dim.terms:
        for atom, _ in monomial:
            names = {atom.name} if atom.kind == "sym" else symbols_of(*atom.args)
            if not names & computed.keys():
                continue
            if coefficient < 0:
                return False
            if atom.kind == "sym":
                continue
            first, second = atom.args
            if atom.kind in ("min", "max"):
                if not (_grows(first, computed) and _grows(second, computed)):
                    return False
            elif atom.kind != "floordiv" or not isinstance(second, int) or not _grows(first, computed):
                return False
    return True
