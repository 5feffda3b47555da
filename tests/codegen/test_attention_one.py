"""Attention of one query to a cache: the bits of that query among others, and the reference semantics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.frontend.trace import trace_into
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor

#: heads, heads of keys, features of keys and of values, places; and what else the attention has
CASES: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any]]] = {
    "a head": ((1, 1, 16, 16, 64), {}),
    "groups of three": ((9, 3, 64, 64, 130), {}),
    "groups of thirty": ((30, 1, 16, 48, 100), {}),
    "each its own": ((5, 5, 32, 80, 65), {}),
    "few places": ((4, 2, 16, 16, 3), {}),
    "a window": ((4, 2, 16, 16, 200), {"window": 70}),
    "a narrow window": ((4, 2, 16, 16, 200), {"window": 1}),
    "a soft cap": ((4, 2, 16, 16, 90), {"softcap": 1.5, "scale": 0.3}),
    "a slope": ((4, 2, 16, 16, 90), {"bias": True}),
    "16 bits": ((6, 2, 32, 32, 90), {"dtype": DType.f16}),
    "other 16 bits": ((6, 2, 32, 32, 90), {"dtype": DType.bf16}),
}


def module(case: str, queries: int | str) -> Module:
    (heads, key_heads, features, value_features, places), options = CASES[case]
    dtype = options.get("dtype", DType.f32)
    made = Module("attention")

    def attend(q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Tensor:
        slope = np.linspace(-0.5, 0.5, heads, dtype=np.float32).reshape(1, heads, 1, 1)
        bias = F.tensor(slope) * F.arange(places).to(DType.f32) if "bias" in options else None
        plain = {name: value for name, value in options.items() if name in ("window", "softcap", "scale")}
        return F.cached_attention(q, k, v, start, None, bias, **plain).transpose(1, 2)

    q, k, v = dtype["b", heads, queries, features], dtype["b", key_heads, places, features], dtype["b", key_heads, places, value_features]
    trace_into(made, "main", attend, q, k, v, DType.i64["b"])
    return made


@pytest.mark.parametrize("case", CASES)
def test_a_query_alone_has_the_bits_of_many(case: str) -> None:
    (heads, key_heads, features, value_features, places), options = CASES[case]
    dtype, rng = options.get("dtype", DType.f32).numpy, np.random.default_rng(0)
    q = rng.standard_normal((2, heads, places, features)).astype(dtype)
    k, v = (rng.standard_normal((2, key_heads, places, n)).astype(dtype) for n in (features, value_features))
    many = tfir.compile(module(case, "s"), threads=2)(q, k, v, np.array([0, 0]))
    one = module(case, 1)
    alone = tfir.compile(one, threads=3)
    for i in {0, places // 2, places - 1, *range(0, places, 13)}:
        start = np.array([i, places - 1 - i])
        queries = np.stack([q[0, :, i : i + 1], q[1, :, places - 1 - i : places - i]])
        have = alone(queries, k, v, start)
        assert (have[0, 0] == many[0, i]).all() and (have[1, 0] == many[1, places - 1 - i]).all()
    want = tfir.evaluate(one, queries, k, v, start)
    bound = {np.dtype(np.float32): 2e-6}.get(np.dtype(dtype), 2e-2)
    np.testing.assert_allclose(have.astype(np.float32), want.astype(np.float32), rtol=0, atol=bound * max(1.0, float(np.abs(v).max())))


def test_the_loops_are_those_of_one_query() -> None:
    """The bits above would be the same without them."""
    texts = {n: tfir.api.emit(tfir.compile(module("groups of three", n)), "kernels") for n in (1, 2)}
    assert "kt" in texts[1] and "kt" not in texts[2]
