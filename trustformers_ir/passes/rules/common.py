"""What the rule lists share: tests of scalars and the usual replacements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import ANY, REAL, DType
from trustformers_ir.ir.rewriting import Match, constant_of, fitted
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.types import TensorType

Test = Callable[[np.ndarray], bool]
Build = Callable[[Match, Builder], Value]


def exactly(value: float, dtypes: frozenset[DType] = REAL) -> Test:
    """Passes the scalars of the dtypes that equal ``value``, the sign of zero included."""

    def test(scalar: np.ndarray) -> bool:
        dtype = DType.from_numpy(scalar.dtype)
        same = dtype in dtypes and bool(scalar == value)
        return same and not (dtype.is_float and value == 0 and np.signbit(scalar.astype(np.float64)) != np.signbit(value))

    return test


def integer(pick: Callable[[DType], int], dtypes: frozenset[DType]) -> Test:
    """Passes the one integer that ``pick`` names for the scalar's dtype."""

    def test(scalar: np.ndarray) -> bool:
        dtype = DType.from_numpy(scalar.dtype)
        return dtype in dtypes and int(scalar) == pick(dtype)

    return test


def anything(scalar: np.ndarray) -> bool:
    """Passes every scalar."""
    return True


def all_ones(scalar: np.ndarray) -> bool:
    """The scalar with every bit set: ``true``, -1, or the largest unsigned value."""
    dtype = DType.from_numpy(scalar.dtype)
    return dtype in ANY and not dtype.is_float and not dtype.is_complex and bool(np.invert(scalar) == 0)


def give(name: str) -> Build:
    """The captured value itself, broadcast to the shape of the result."""
    return lambda m, b: fitted(b, m[name], m.type)


def becomes(op: Op, *names: str) -> Build:
    """``op`` applied to captured values."""
    return lambda m, b: fitted(b, b(op, *(m[n] for n in names)), m.type)


def everywhere(value: float | Callable[[DType], int]) -> Build:
    """A constant with the result's type."""
    return lambda m, b: constant_of(b, value(m.type.dtype) if callable(value) else value, m.type)


def same_op(*names: str) -> Build:
    """The root's op, attributes included, applied to captured values."""
    return lambda m, b: fitted(b, b(m.op(), *(m[n] for n in names)), m.type)


def keeps_type(operation: Operation) -> bool:
    """Whether the result has the type of the first operand."""
    return operation.result.type == operation.inputs[0].type


def inner(m: Match, b: Builder) -> Value:
    """The result of the operation called ``inner``."""
    return m.operation("inner").result


def scalar_type(m: Match) -> TensorType:
    """The result's dtype without axes."""
    return TensorType((), m.type.dtype)
