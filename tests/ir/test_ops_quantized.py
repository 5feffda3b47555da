"""8-bit ops against exact arithmetic on fractions, and what their zero, infinite and tiny rows give."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.ops.quantized import MOST_TERMS, SMALLEST_SCALE
from trustformers_ir.ir.schema import InferContext, Op, infer_types
from trustformers_ir.ir.types import Panels, TensorType

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def apply(op: Op, *operands: Any, types: dict[int, TensorType] | None = None) -> tuple[np.ndarray, ...]:
    given = [None if a is None else np.asarray(a) for a in operands]
    known = [None if a is None else TensorType(a.shape, DType.from_numpy(a.dtype)) for a in given]
    for position, type in (types or {}).items():
        known[position] = type
    return evaluate_operation(op, given, infer_types(op, known, InferContext(Facts(), {})), {}, known)


def f32(x: Fraction | float) -> Fraction:
    """Rounded to f32, exactly once."""
    near = np.float32(float(x))  # at most one step off, by double rounding
    steps = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    steps = [s for s in steps if np.isfinite(s)]
    return min((Fraction(float(s)) for s in steps), key=lambda s: (abs(s - x), int(np.float32(float(s)).view(np.uint32)) & 1))


def half_even(x: Fraction) -> int:
    return round(x)  # of a Fraction: ties to even


@settings(max_examples=300, deadline=None)
@given(arrays(np.float32, st.integers(1, 9), elements=FINITE))
def test_rows_by_exact_arithmetic(x: np.ndarray) -> None:
    q, scale, zero = apply(ops.QuantizeDynamic(), x)
    exact = [Fraction(float(v)) for v in x]
    lo, hi = min([Fraction(0), *exact]), max([Fraction(0), *exact])
    wanted = max(f32(f32(f32(hi / 2) - f32(lo / 2)) / Fraction(127.5)), Fraction(SMALLEST_SCALE))
    inverse = f32(1 / wanted)
    code = min(max(half_even(-lo * inverse), 0), 255)
    assert (Fraction(float(scale[0])), int(zero[0])) == (wanted, code)
    assert q.tolist() == [min(max(half_even(v * inverse) + code, 0), 255) for v in exact]


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_what_codes_stand_for_is_close(x: np.ndarray) -> None:
    """A code stands for a number at most half a scale away, and a quarter of a percent of a scale for what is rounded."""
    q, scale, zero = apply(ops.QuantizeDynamic(), x)
    back = (q.astype(np.float64) - zero) * scale.astype(np.float64)
    assert np.abs(back - x).max() <= scale[0] * (1.0 if min(x.min(), 0) and max(x.max(), 0) else 0.5025)
    assert (back[x == 0] == 0).all()


def test_rows_of_zeros_and_empty_rows() -> None:
    for x in (np.zeros((2, 3), np.float32), np.full((2, 3), -0.0, np.float32), np.zeros((2, 0), np.float32)):
        q, scale, zero = apply(ops.QuantizeDynamic(), x)
        assert not q.any() and not zero.any() and scale.tolist() == [[SMALLEST_SCALE]] * 2


def test_constant_rows_use_one_end() -> None:
    q, scale, zero = apply(ops.QuantizeDynamic(), np.float32([[255, 255], [-510, -510]]))
    assert q.tolist() == [[255, 255], [0, 0]] and zero.tolist() == [[0], [255]] and scale.tolist() == [[1], [2]]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_makes_nan(odd: float) -> None:
    x = np.float32([[1, -2, odd, 3], [1, -2, 0, 3]])
    q, scale, zero = apply(ops.QuantizeDynamic(), x)
    assert not q[0].any() and zero[0, 0] == 0 and (np.isnan(scale[0, 0]) if np.isnan(odd) else scale[0, 0] == np.inf)
    assert q[1].any() and np.isfinite(scale[1, 0])
    weight = np.int8([[1, 2, 3, 4]])
    (y,) = apply(ops.LinearInt8(), q, scale, zero, weight, np.float32([0.5]), weight.sum(1, dtype=np.int32), None)
    assert np.isnan(y[0, 0]) and np.isfinite(y[1, 0])


def test_the_largest_and_the_smallest_rows() -> None:
    top, tiny = np.finfo(np.float32).max, np.float32(1e-45)
    q, scale, zero = apply(ops.QuantizeDynamic(), np.float32([[top, -top], [tiny, -tiny]]))
    assert q.tolist() == [[255, 0], [0, 0]] and zero.tolist() == [[128], [0]]
    assert np.isfinite(scale).all() and scale[1, 0] == SMALLEST_SCALE


def test_static_codes() -> None:
    scale, zero = np.float32(0.5), np.int32(10)
    x = np.float32([-100, -5, -0.25, 0.25, 0.75, 1.25, 1e38, -1e38, np.inf, -np.inf, np.nan])
    (q,) = apply(ops.QuantizeStatic(), x, scale, zero)
    assert q.tolist() == [0, 0, 10, 10, 12, 12, 255, 0, 255, 0, 0]
    (q,) = apply(ops.QuantizeStatic(), np.float32([0, 1]), scale, np.int32(1000))  # a zero point is one of the codes
    assert q.tolist() == [255, 255]


@pytest.mark.parametrize("layout", [None, Panels(16), Panels(16, 4)])
def test_products_are_exact_at_the_extremes(layout: Panels | None) -> None:
    """As many products of the largest size as fit: an i32 holds their sum to the last unit."""
    k = MOST_TERMS
    q = np.full((2, k), 255, np.uint8)
    weight = np.stack([np.full(k, -128, np.int8), np.full(k, 127, np.int8)])
    stored = weight if layout is None else pack_panels(weight, layout.width, layout.depth)
    types = {3: TensorType(weight.shape, DType.i8, layout)} if layout is not None else {}
    sums = weight.sum(1, dtype=np.int32)
    ones, zero = np.ones(2, np.float32), np.int32([[0], [255]])
    (y,) = apply(ops.LinearInt8(), q, np.float32([[1], [1]]), zero, stored, ones, sums, None, types=types)
    assert y.tolist() == [[np.float32(-255 * 128 * k), np.float32(255 * 127 * k)], [0, 0]]


def test_the_order_of_the_float_part() -> None:
    """Scales first, then the product, then the bias: each rounded."""
    rng = np.random.default_rng(0)
    q, weight = rng.integers(0, 256, (3, 50), np.uint8), rng.integers(-128, 128, (4, 50), np.int8)
    scale, per_column, bias = (rng.random(s).astype(np.float32) for s in ((3, 1), 4, 4))
    zero = rng.integers(0, 256, (3, 1), np.int32)
    (y,) = apply(ops.LinearInt8(), q, scale, zero, weight, per_column, weight.sum(1, dtype=np.int32), bias)
    whole = (q.astype(np.int64) - zero) @ weight.astype(np.int64).T
    for m in range(3):
        for n in range(4):
            step = f32(Fraction(float(scale[m, 0])) * Fraction(float(per_column[n])))
            assert Fraction(float(y[m, n])) == f32(f32(f32(int(whole[m, n])) * step) + Fraction(float(bias[n])))
