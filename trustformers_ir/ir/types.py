"""Tensor types: a shape of dims, an element type and the layout of the bytes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim, SymExpr, evaluate, floordiv, parse_dim, product, symbols_of
from trustformers_ir.ir.dtypes import DType


@dataclass(frozen=True)
class RowMajor:
    """C order without gaps."""

    def storage(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """The shape of the bytes as an ordinary row-major array."""
        return shape

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Panels:
    """A matrix ``[N, K]`` stored as ``[ceil(N / width), K, width]``: the columns of ``width`` outputs lie beside each other, zero padded.

    This is the packed-B layout of register-blocked GEMM (Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008):
    the micro-kernel reads ``width`` consecutive elements for every k. With a ``depth`` above 1, ``depth`` neighbouring k of one column lie beside
    each other, ``[ceil(N / width), ceil(K / depth), width, depth]``: what instructions that add up products of several k at once read.
    """

    width: int
    depth: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("a panel is at least one column wide")
        if self.depth < 1:
            raise ValueError("a panel is at least one element deep")

    def storage(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        *batch, n, k = shape
        panels = floordiv(n + self.width - 1, self.width)
        if self.depth == 1:
            return (*batch, panels, k, self.width)
        return (*batch, panels, floordiv(k + self.depth - 1, self.depth), self.width, self.depth)

    def place(self, index: tuple[Any, ...]) -> tuple[Any, ...]:
        """Where the element at ``index`` (integers, or anything with ``//`` and ``%``) lies in the storage."""
        *batch, n, k = index
        if self.depth == 1:
            return (*batch, n // self.width, k, n % self.width)
        return (*batch, n // self.width, k // self.depth, n % self.width, k % self.depth)

    def __str__(self) -> str:
        return f"{{panels {self.width}}}" if self.depth == 1 else f"{{panels {self.width} {self.depth}}}"


Layout = RowMajor | Panels
ROW_MAJOR = RowMajor()


@dataclass(frozen=True)
class TensorType:
    """The type of a value: ``f32[batch, seq, 384]``. Shape entries may be given as ints, dims or dim texts such as ``"2*batch"``."""

    shape: tuple[Dim, ...]
    dtype: DType
    layout: Layout = field(default=ROW_MAJOR)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", normalise_shape(self.shape))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        return product(self.shape)

    @property
    def bytes(self) -> Dim:
        """Bytes of the stored form (padding of a packed layout included)."""
        return _bytes(self)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def symbols(self) -> set[str]:
        return symbols_of(*self.shape)

    @property
    def stored(self) -> TensorType:
        """The bytes as an ordinary row-major tensor: panels are axes, their padding is elements."""
        return TensorType(self.layout.storage(self.shape), self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(self.shape, dtype, self.layout)

    def concrete(self, env: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every symbol bound."""
        return tuple(evaluate(d, env) for d in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{self.layout}"

    __repr__ = __str__


def normalise_shape(shape: Iterable[Any]) -> tuple[Dim, ...]:
    """Dims from what users write: ints (also numpy's), ``SymExpr`` or text. ``ValueError`` for a negative size, ``TypeError`` otherwise."""
    out: list[Dim] = []
    for entry in shape:
        if isinstance(entry, str):
            entry = parse_dim(entry)
        if isinstance(entry, (bool, np.bool_)) or not isinstance(entry, (int, np.integer, SymExpr)):
            raise TypeError(f"a dim is an int or a symbolic expression, not {entry!r}")
        if isinstance(entry, (int, np.integer)):
            entry = int(entry)
            if entry < 0:
                raise ValueError(f"a dim is not negative: {entry}")
        out.append(entry)
    return tuple(out)


@functools.lru_cache(1 << 12)
def _bytes(type: TensorType) -> Dim:
    """Asked for again and again, of the few types that there are."""
    return product(type.layout.storage(type.shape)) * type.dtype.itemsize
