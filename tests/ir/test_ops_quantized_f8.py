"""8-bit floats against torch's own, and what zero, tiny, large and infinite rows give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE
from trustformers_ir.ir.schema import InferContext, Op, infer_types
from trustformers_ir.ir.types import TensorType

CODES = np.arange(256, dtype=np.uint8)


def apply(op: Op, *operands: Any) -> tuple[np.ndarray, ...]:
    given = [None if a is None else np.asarray(a) for a in operands]
    known = [None if a is None else TensorType(a.shape, DType.from_numpy(a.dtype)) for a in given]
    return evaluate_operation(op, given, infer_types(op, known, InferContext(Facts(), {})), {}, known)


def bits(x: np.ndarray) -> list[int]:
    """The codes; NaN of either sign is one."""
    found = x.view(np.uint8)
    return np.where((found & 127) == 127, np.uint8(127), found).tolist()


def torch_codes(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.float8_e4m3fn).view(torch.uint8).numpy().view(DType.f8e4m3.numpy)


@pytest.mark.parametrize("target", [DType.f16, DType.bf16, DType.f32, DType.f64], ids=str)
def test_every_code_is_the_number_that_torch_takes_it_for(target: DType) -> None:
    (got,) = apply(ops.Cast(target), CODES.view(DType.f8e4m3.numpy))
    want = torch.from_numpy(CODES).view(torch.float8_e4m3fn).to(torch.float64).numpy()
    np.testing.assert_array_equal(got.astype(np.float64), want)


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits_is_rounded_as_torch_rounds_it(source: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(source)
    array = x.view(torch.int16).numpy().view(DType.f16.numpy if source is torch.float16 else DType.bf16.numpy)
    assert bits(apply(ops.Cast(DType.f8e4m3), array)[0]) == bits(torch_codes(x))


@settings(max_examples=300, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)))
def test_rows_are_those_of_torch(x: np.ndarray) -> None:
    q, scale = apply(ops.QuantizeF8(), x)
    known = torch.from_numpy(x)
    wanted = (known.abs().max() / 448.0).clamp(min=SMALLEST_SCALE)
    np.testing.assert_array_equal(scale, wanted.numpy()[None])
    assert bits(q) == bits(torch_codes((known * (1.0 / wanted)).clamp(-448.0, 448.0)))


def test_the_largest_of_a_row_is_the_largest_code() -> None:
    q, scale = apply(ops.QuantizeF8(), np.float32([[3, -6, 0], [0, 0, 0], [2**-126, -(2**-127), 0]]))
    assert q[0].astype(np.float64).tolist() == [224, -448, 0] and scale[0] == np.float32(6 / 448)
    assert q[1].astype(np.float64).tolist() == [0, 0, 0] and scale[1] == SMALLEST_SCALE
    assert q[2].astype(np.float64).tolist() == [1, -0.5, 0] and scale[2] == SMALLEST_SCALE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_others_alone(bad: float) -> None:
    x = np.float32([[1, bad, 2], [1, 3, 2]])
    q, scale = apply(ops.QuantizeF8(), x)
    weight = np.ones((4, 3), DType.f8e4m3.numpy)
    (y,) = apply(ops.LinearF8(), q, scale, weight, np.ones(4, np.float32), None)
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


def test_products_are_those_of_torch() -> None:
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((32, 64), (48, 64)))
    (q, s), (c, t) = apply(ops.QuantizeF8(), x), apply(ops.QuantizeF8(), w)
    bias = rng.standard_normal(48).astype(np.float32)
    (got,) = apply(ops.LinearF8(), q, s, c, t[:, 0], bias)
    left, right = (torch.from_numpy(a.view(np.uint8)).view(torch.float8_e4m3fn) for a in (q, c))
    sums = torch._scaled_mm(left, right.t(), torch.tensor(1.0), torch.tensor(1.0), out_dtype=torch.float32)
    want = sums.numpy() * (s * t[:, 0]) + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(got - (x @ w.T + bias)).max() < 0.05 * np.abs(x @ w.T).max()  # four digits of each factor
