"""Elementwise ops where torch is no help: integers against Python's unbounded ones, casts at the edges, clamps, selections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trustformers_ir.ir import ops
from trustformers_ir.ir.conformance import edge_values
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import EIGHTHS, INTS, DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops.elementwise import casts_eighths
from trustformers_ir.ir.schema import ConstraintError, InferContext, Op, infer_types
from trustformers_ir.ir.types import TensorType

INTEGERS = sorted(INTS, key=lambda d: d.name)


def apply(op: Op, *arrays: np.ndarray) -> np.ndarray:
    types = [TensorType(a.shape, DType.from_numpy(a.dtype)) for a in arrays]
    (result,) = evaluate_operation(op, arrays, infer_types(op, types, InferContext(Facts(), {})), {}, types)
    return result


def wrap(value: int, dtype: DType) -> int:
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.is_signed and value >> (dtype.bits - 1) else value


def shift_left(a: int, b: int, bits: int) -> int:
    return a << b if 0 <= b < bits else 0


def shift_right(a: int, b: int, bits: int) -> int:
    return a >> b if 0 <= b < bits else (-1 if a < 0 else 0)


def power(a: int, b: int, bits: int) -> int:
    if b >= 0:
        return pow(a, b, 1 << bits)
    return {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)


BINARY: list[tuple[Op, Callable[[int, int, int], int]]] = [
    (ops.Add(), lambda a, b, _: a + b),
    (ops.Sub(), lambda a, b, _: a - b),
    (ops.Mul(), lambda a, b, _: a * b),
    (ops.FloorDiv(), lambda a, b, _: a // b if b else 0),
    (ops.Mod(), lambda a, b, _: a % b if b else 0),
    (ops.Pow(), power),
    (ops.Minimum(), lambda a, b, _: min(a, b)),
    (ops.Maximum(), lambda a, b, _: max(a, b)),
    (ops.And(), lambda a, b, _: a & b),
    (ops.Or(), lambda a, b, _: a | b),
    (ops.Xor(), lambda a, b, _: a ^ b),
    (ops.ShiftLeft(), shift_left),
    (ops.ShiftRight(), shift_right),
    (ops.Eq(), lambda a, b, _: a == b),
    (ops.Ne(), lambda a, b, _: a != b),
    (ops.Lt(), lambda a, b, _: a < b),
    (ops.Le(), lambda a, b, _: a <= b),
    (ops.Gt(), lambda a, b, _: a > b),
    (ops.Ge(), lambda a, b, _: a >= b),
]
UNARY: list[tuple[Op, Callable[[int], int]]] = [
    (ops.Neg(), lambda a: -a),
    (ops.Abs(), abs),
    (ops.Sign(), lambda a: (a > 0) - (a < 0)),
    (ops.Relu(), lambda a: max(a, 0)),
    (ops.BitwiseNot(), lambda a: ~a),
    (ops.Floor(), lambda a: a),
    (ops.Ceil(), lambda a: a),
    (ops.Round(), lambda a: a),
    (ops.Trunc(), lambda a: a),
    (ops.Clamp(-2.0, 5.0), lambda a: min(max(a, -2), 5)),
    (ops.Clamp(-math.inf, 1e30), lambda a: a),
]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(("op", "meaning"), BINARY, ids=lambda p: getattr(p, "mnemonic", ""))
def test_binary_ops_on_integers_wrap(op: Op, meaning: Callable[[int, int, int], int], dtype: DType) -> None:
    values = edge_values(dtype)
    got = apply(op, values[:, None], values[None, :])
    for (i, a), (j, b) in itertools.product(enumerate(values.tolist()), repeat=2):
        wanted = meaning(a, b, dtype.bits)
        assert got[i, j] == (wanted if isinstance(wanted, bool) else wrap(wanted, dtype)), (a, b)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(("op", "meaning"), UNARY, ids=lambda p: getattr(p, "mnemonic", ""))
def test_unary_ops_on_integers_wrap(op: Op, meaning: Callable[[int], int], dtype: DType) -> None:
    values = edge_values(dtype)
    assert apply(op, values).tolist() == [wrap(meaning(a), dtype) for a in values.tolist()]


def test_floor_division_rounds_the_exact_quotient() -> None:
    a, b = np.array([1.0, -1.0, 7.5, 3.0, -3.0]), np.array([0.1, 0.1, -2.5, 0.0, 0.0])
    with np.errstate(all="ignore"):
        assert apply(ops.FloorDiv(), a, b).tolist() == [math.floor(Fraction(1.0) / Fraction(0.1)), -10.0, -3.0, math.inf, -math.inf]


# --- casts -------------------------------------------------------------------------------------------------------------------------


def cast_of(value: Any, target: DType) -> Any:
    """What a cast gives, for targets that hold Python numbers exactly enough to compare."""
    if target is DType.bool:
        return value != 0
    if target.is_integer:
        if isinstance(value, float):
            if math.isnan(value):
                return 0
            return target.max if value >= target.max else target.min if value <= target.min else int(value)
        return wrap(int(value), target)
    return value


@pytest.mark.parametrize("source", [d for d in DType if not d.is_complex], ids=str)
@pytest.mark.parametrize("target", [d for d in DType if d.is_integer or d is DType.bool], ids=str)
def test_casts_to_integers_and_bools(source: DType, target: DType) -> None:
    if not casts_eighths(source, target):
        with pytest.raises(ConstraintError, match=r"cast\.C2"):
            apply(ops.Cast(target), edge_values(source))
        return
    values = edge_values(source)
    wide = values.astype(np.float64) if source.is_float else values
    assert apply(ops.Cast(target), values).tolist() == [cast_of(v, target) for v in wide.tolist()]


@pytest.mark.parametrize("target", INTEGERS, ids=str)
def test_casts_saturate_exactly_at_the_ends_of_the_range(target: DType) -> None:
    ends = [float(target.min), float(target.max)]  # the latter may be max + 1
    values = np.array([*ends, *np.nextafter(ends, -np.inf), *np.nextafter(ends, np.inf), target.min - 0.5, -0.5, 0.5])
    assert apply(ops.Cast(target), values).tolist() == [cast_of(v, target) for v in values.tolist()]


def neighbours(value: float, dtype: np.dtype[Any]) -> list[float]:
    """The next numbers of a floating dtype on both sides."""
    one = np.array(value).astype(dtype)
    with np.errstate(over="ignore"):
        return [float(np.nextafter(one, np.array(end).astype(dtype))) for end in (-np.inf, np.inf)]


@pytest.mark.parametrize("source", [d for d in DType if not d.is_complex], ids=str)
@pytest.mark.parametrize("target", [d for d in DType if d.is_float], ids=str)
def test_casts_to_floats_round_to_nearest(source: DType, target: DType) -> None:
    if not casts_eighths(source, target):
        with pytest.raises(ConstraintError, match=r"cast\.C2"):
            apply(ops.Cast(target), edge_values(source))
        return
    values = edge_values(source)
    got = apply(ops.Cast(target), values)
    grid = edge_values(target).astype(np.float64)
    for value, result in zip(values.tolist() if not source.is_float else values.astype(np.float64).tolist(), got.tolist(), strict=True):
        if isinstance(value, float) and not math.isfinite(value):
            kept = math.copysign(448.0, value) if math.isinf(value) and target in EIGHTHS else value  # which have no infinities
            assert math.isnan(result) if math.isnan(value) else result == kept
        elif math.isfinite(result) and not (target in EIGHTHS and abs(value) > 448):  # no other number of the dtype is nearer
            distance = abs(Fraction(value) - Fraction(result))
            for other in [*neighbours(result, got.dtype), *grid]:
                assert not math.isfinite(other) or distance <= abs(Fraction(value) - Fraction(float(other)))
        else:
            assert abs(result) == (448 if target in EIGHTHS else math.inf)
            assert abs(value) > np.max(grid[np.isfinite(grid)])


def test_casts_of_complex_numbers() -> None:
    z = np.array([1 + 2j, 0, complex(0, -1)], np.complex64)
    assert apply(ops.Cast(DType.bool), z).tolist() == [True, False, True]
    assert apply(ops.Cast(DType.c128), z).dtype == np.complex128
    assert apply(ops.Cast(DType.c64), np.array([1.5, -2.0])).tolist() == [1.5, -2.0]


# --- NaN, zeros, selections --------------------------------------------------------------------------------------------------------


def test_minimum_maximum_and_clamp_propagate_nan() -> None:
    x = np.array([np.nan, 1.0, np.nan, 5.0], np.float32)
    y = np.array([1.0, np.nan, np.nan, 2.0], np.float32)
    np.testing.assert_array_equal(apply(ops.Minimum(), x, y), np.array([np.nan, np.nan, np.nan, 2], np.float32))
    np.testing.assert_array_equal(apply(ops.Maximum(), x, y), np.array([np.nan, np.nan, np.nan, 5], np.float32))
    np.testing.assert_array_equal(apply(ops.Clamp(0.0, 2.0), x), np.array([np.nan, 1, np.nan, 2], np.float32))
    assert np.isnan(apply(ops.Relu(), x)).tolist() == [True, False, True, False]


def test_the_value_that_is_not_chosen_has_no_influence() -> None:
    cond = np.array([True, False])
    got = apply(ops.Select(), cond, np.array([1.0, np.nan]), np.array([np.nan, 2.0]))
    assert got.tolist() == [1.0, 2.0]


def test_negative_zero_keeps_its_sign_where_it_matters() -> None:
    zero = np.array([-0.0, 0.0])
    for op in (ops.Floor(), ops.Ceil(), ops.Round(), ops.Trunc(), ops.Sqrt(), ops.Sin(), ops.Tanh(), ops.Cast(DType.f16)):
        assert np.signbit(apply(op, zero)).tolist() == [True, False], op
    assert np.signbit(apply(ops.Neg(), zero)).tolist() == [False, True]
    assert apply(ops.Reciprocal(), zero).tolist() == [-math.inf, math.inf]


def test_ties_round_to_even() -> None:
    assert apply(ops.Round(), np.array([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


def test_activations_do_not_overflow() -> None:
    x = np.array([-1000.0, 1000.0], np.float32)
    assert apply(ops.Sigmoid(), x).tolist() == [0.0, 1.0]
    assert apply(ops.Softplus(), x).tolist() == [0.0, 1000.0]
    assert apply(ops.Silu(), x).tolist() == [0.0, 1000.0]
    assert apply(ops.Gelu(), x).tolist() == [0.0, 1000.0]
    assert apply(ops.Elu(), x).tolist() == [-1.0, 1000.0]
    assert apply(ops.Mish(), x).tolist() == [0.0, 1000.0]


def test_gelu_is_accurate_in_the_tail() -> None:
    """x / 2 * (1 + erf(x / sqrt 2)) would cancel to nothing there."""
    x = -7.0
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    series = density * sum(t for t in (1, -1 / x**2, 3 / x**4, -15 / x**6, 105 / x**8))
    assert apply(ops.Gelu(), np.array([x])).item() == pytest.approx(-series, rel=1e-4)


def test_complex_parts() -> None:
    re, im = np.array([1.0, np.nan, -0.0], np.float32), np.array([2.0, 1.0, np.inf], np.float32)
    z = apply(ops.MakeComplex(), re, im)
    assert z.dtype == np.complex64
    np.testing.assert_array_equal(apply(ops.Real(), z), re)
    np.testing.assert_array_equal(apply(ops.Imag(), z), im)
    np.testing.assert_array_equal(apply(ops.Imag(), apply(ops.Conj(), z)), -im)
    assert apply(ops.Abs(), z).dtype == np.float32
