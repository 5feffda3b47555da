"""Folds, orders and attention at NaN, infinities, ties and empty axes: what random samples do not reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.schema import InferContext, Op, infer_types
from trustformers_ir.ir.types import TensorType

NAN, INF = math.nan, math.inf
ROWS = np.array([[1.0, NAN, 3.0, NAN], [2.0, 5.0, 5.0, -1.0], [-INF, -INF, INF, 0.0], [-0.0, 0.0, 0.0, -0.0], [-INF, -INF, -INF, -INF]])


def apply(op: Op, *arrays: np.ndarray | None) -> Any:
    types = [None if a is None else TensorType(a.shape, DType.from_numpy(a.dtype)) for a in arrays]
    results = evaluate_operation(op, arrays, infer_types(op, types, InferContext(Facts(), {})), {}, types)
    return results[0] if len(results) == 1 else results


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("largest", [True, False])
def test_top_k_orders_nan_as_the_largest_and_ties_by_position(dtype: Any, largest: bool) -> None:
    x = ROWS.astype(dtype)
    values, positions = apply(ops.TopK(4, 1, largest), x)
    wanted, order = torch.sort(torch.from_numpy(x), dim=1, descending=largest, stable=True)
    np.testing.assert_array_equal(values, wanted.numpy())
    np.testing.assert_array_equal(positions, order.numpy())


def test_top_k_of_integers_at_the_ends_of_their_range() -> None:
    x = np.array([[-128, 127, 0, -128]], np.int8)
    assert [a.tolist() for a in apply(ops.TopK(4), x)] == [[[127, 0, -128, -128]], [[1, 2, 0, 3]]]
    assert [a.tolist() for a in apply(ops.TopK(2, 1, False), x.view(np.uint8))] == [[[0, 127]], [[2, 1]]]


def test_argmax_and_argmin_take_the_first_of_equals_and_the_first_nan() -> None:
    assert apply(ops.ArgMax(1), ROWS).tolist() == [1, 1, 2, 0, 0]
    assert apply(ops.ArgMin(1), ROWS).tolist() == [1, 3, 0, 0, 0]
    assert apply(ops.ArgMax(0), np.array([3, 7, 7], np.int8)).tolist() == 1


def test_extremes_propagate_nan() -> None:
    np.testing.assert_array_equal(apply(ops.ReduceMax((1,)), ROWS), [NAN, 5, INF, 0, -INF])
    np.testing.assert_array_equal(apply(ops.ReduceMin((1,)), ROWS), [NAN, -1, -INF, 0, -INF])


def test_log_sum_exp_of_infinities() -> None:
    np.testing.assert_allclose(apply(ops.ReduceLogSumExp((1,)), ROWS), torch.logsumexp(torch.from_numpy(ROWS), 1).numpy())
    assert apply(ops.ReduceLogSumExp((0,)), np.array([1e5, 1e5])) == 1e5 + math.log(2)


def test_softmax_of_infinities_and_of_large_numbers() -> None:
    for op, twin in ((ops.Softmax(1), torch.softmax), (ops.LogSoftmax(1), torch.log_softmax)):
        np.testing.assert_allclose(apply(op, ROWS), twin(torch.from_numpy(ROWS), 1).numpy())
        np.testing.assert_allclose(apply(op, ROWS * 1e30), twin(torch.from_numpy(ROWS * 1e30), 1).numpy())


@pytest.mark.parametrize(
    ("op", "value"),
    [
        (ops.ReduceSum((0,)), 0.0),
        (ops.ReduceProd((0,)), 1.0),
        (ops.ReduceMean((0,)), NAN),
        (ops.ReduceVar((0,)), NAN),
    ],
)
def test_folds_of_nothing(op: Op, value: float) -> None:
    np.testing.assert_array_equal(apply(op, np.zeros((0, 2))), [value, value])


def test_booleans_of_nothing() -> None:
    nothing = np.zeros((0, 2), bool)
    assert apply(ops.ReduceAny((0,)), nothing).tolist() == [False, False]
    assert apply(ops.ReduceAll((0,)), nothing).tolist() == [True, True]


def test_variance_is_two_pass() -> None:
    x = np.array([1e9, 1e9 + 1, 1e9 + 2])
    assert apply(ops.ReduceVar((0,), correction=1), x) == 1.0
    assert apply(ops.ReduceVar((0,), correction=3), x) == INF


def test_integer_folds_wrap() -> None:
    x = np.array([100, 100, 100], np.int8)
    assert apply(ops.ReduceSum((0,)), x) == 300 - 256
    assert apply(ops.ReduceProd((0,)), x) == (1000000 + 128) % 256 - 128
    assert apply(ops.CumSum(0), x).tolist() == [100, 200 - 256, 300 - 256]
    assert apply(ops.MatMul(), x[None], x[:, None]).tolist() == [[30000 % 256]]


def test_float_folds_are_rounded_once() -> None:
    x = np.array([2048.0] + [1.0] * 8, np.float16)  # adding 1 to 2048 is lost in f16
    assert apply(ops.ReduceSum((0,)), x) == 2056
    assert apply(ops.ScatterElements(0, ops.ScatterReduce.ADD), x[:1], np.zeros(8, np.int64), x[1:]) == 2056
    assert apply(ops.CumSum(0), x)[-1] == 2056


# --- attention ---------------------------------------------------------------------------------------------------------------------


def heads(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_queries_that_see_nothing_are_zero() -> None:
    q, k, v = heads(1, 1, 3, 4, seed=0), heads(1, 1, 2, 4, seed=1), heads(1, 1, 2, 4, seed=2)
    y = apply(ops.Attention(causal=True), q, k, v, None, None)  # query 0 stands before the first key
    assert y[0, 0, 0].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(y[0, 0, 1], v[0, 0, 0])
    masked = apply(ops.Attention(), q, k, v, np.array([[True], [False], [True]]), None)
    assert masked[0, 0, 1].tolist() == [0, 0, 0, 0]
    biased = apply(ops.Attention(), q, k, v, None, np.array([[0.0, 0.0], [-INF, -INF], [0.0, -INF]]))
    assert biased[0, 0, 1].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(biased[0, 0, 2], v[0, 0, 0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs(causal: bool, masked: bool) -> None:
    q, k, v = heads(2, 6, 5, 8, seed=0), heads(2, 2, 5, 8, seed=1), heads(2, 2, 5, 3, seed=2)
    mask = np.tri(5, dtype=bool) | (heads(2, 1, 5, 5, seed=3) > 0) if masked else None
    visible = None if mask is None else torch.from_numpy(mask)
    if causal:
        triangle = torch.ones(5, 5, dtype=torch.bool).tril()
        visible = triangle if visible is None else visible & triangle
    wanted = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), attn_mask=visible, enable_gqa=True)
    np.testing.assert_allclose(apply(ops.Attention(causal=causal), q, k, v, mask, None), wanted.numpy(), atol=1e-12)


def test_decoding_one_token_is_the_last_row_of_the_prefill() -> None:
    q, k, v = heads(1, 2, 6, 4, seed=0), heads(1, 2, 6, 4, seed=1), heads(1, 2, 6, 4, seed=2)
    for op in (ops.Attention(causal=True), ops.Attention(causal=True, window=3)):
        whole = apply(op, q, k, v, None, None)
        np.testing.assert_allclose(apply(op, q[:, :, 5:], k, v, None, None), whole[:, :, 5:], rtol=1e-13)


def test_a_window_is_as_many_keys() -> None:
    q, k = np.zeros((1, 1, 5, 2)), np.zeros((1, 1, 5, 2))
    v = np.eye(5)[None, None]
    y = apply(ops.Attention(causal=True, window=2), q, k, v, None, None)[0, 0]
    assert y.tolist() == [[1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0.5, 0.5]]
