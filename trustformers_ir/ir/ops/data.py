"""Ops without tensor operands: weights, constants, ranges, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import INTS, REAL, DType
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Literal:
    """The bytes of a small inline constant (C order, little endian), hashable so that equal constants are equal ops."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        size = self.dtype.itemsize
        for d in self.shape:
            size *= d
        if size != len(self.data):
            raise ValueError(f"a literal {self.dtype}{list(self.shape)} holds {size} bytes, not {len(self.data)}")

    @classmethod
    def of(cls, value: Any, dtype: DType | None = None) -> Literal:
        array = np.asarray(value, None if dtype is None else dtype.numpy)
        return cls(DType.from_numpy(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype.numpy).reshape(self.shape)

    @property
    def splat(self) -> Any:
        """The Python value that all elements equal (bit for bit), or None."""
        size = self.dtype.itemsize
        if not self.data or self.data != self.data[:size] * (len(self.data) // size):
            return None
        return self.array.reshape(-1)[0].item()


@dataclass(frozen=True)
class Constant(Op):
    """A small constant tensor, written inline in the text form."""

    value: Literal

    mnemonic = "constant"
    fusion = FusionKind.CONSTANT
    exact = True

    def infer(self, ctx: InferContext, *types: Any) -> tuple[TensorType, ...]:
        return (TensorType(self.value.shape, self.value.dtype),)

    def reference(self, ctx: EvalContext, *arrays: Any) -> Any:
        return self.value.array

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(Literal.of(1.5, DType.f32)), ())
        yield Sample(cls(Literal.of([[1, 2, 3], [4, 5, 6]], DType.i64)), ())
        yield Sample(cls(Literal.of([True, False])), ())


@dataclass(frozen=True)
class WeightOp(Op):
    """The module's weight of that name. Its bytes live outside the text form, known by their digest."""

    name: str

    mnemonic = "weight"
    constraints = {1: "the module has a weight of that name"}
    fusion = FusionKind.CONSTANT
    exact = True

    def infer(self, ctx: InferContext, *types: Any) -> tuple[TensorType, ...]:
        self.require(1, self.name in ctx.weights, f"'{self.name}'")
        return (ctx.weights[self.name].type,)


@dataclass(frozen=True)
class Iota(Op):
    """``0, 1, 2, … size - 1`` as a vector."""

    size: Dim
    dtype: DType = DType.i64

    mnemonic = "iota"
    constraints = {1: "dtype is a real number type"}
    fusion = FusionKind.CONSTANT
    exact = True

    def infer(self, ctx: InferContext, *types: Any) -> tuple[TensorType, ...]:
        self.require(1, self.dtype in REAL, str(self.dtype))
        return (TensorType((self.size,), self.dtype),)

    def reference(self, ctx: EvalContext, *arrays: Any) -> Any:
        return np.arange(ctx.size(self.size)).astype(self.dtype.numpy)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(5), ())
        yield Sample(cls(7, DType.f32), ())


@dataclass(frozen=True)
class DimSize(Op):
    """The value of a dim expression as a scalar tensor."""

    size: Dim
    dtype: DType = DType.i64

    mnemonic = "dim"
    constraints = {1: "dtype is an integer type"}
    fusion = FusionKind.CONSTANT
    exact = True

    def infer(self, ctx: InferContext, *types: Any) -> tuple[TensorType, ...]:
        self.require(1, self.dtype in INTS, str(self.dtype))
        return (TensorType((), self.dtype),)

    def reference(self, ctx: EvalContext, *arrays: Any) -> Any:
        return np.asarray(ctx.size(self.size)).astype(self.dtype.numpy)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(12), ())
