"""Scatters of floats add up and multiply in f64 and round once, as the reference does: not one bit differs, however many updates meet."""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import same_bytes
from lowering_harness import compile_modules

from trustformers_ir.ir.conformance import random_array
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module

#: op with attributes, types of x, indices and updates
FORMS: dict[str, tuple[str, str, str, str]] = {
    "elements of a vector": ("scatter_elements(%x, %i, %u) {axis = 0", "[7]", "[n]", "[n]"),
    "elements of rows": ("scatter_elements(%x, %i, %u) {axis = 1", "[b, 7]", "[b, n]", "[b, n]"),
    "elements of columns, fewer than x has": ("scatter_elements(%x, %i, %u) {axis = 0", "[7, b + 2, 4]", "[n, b, 3]", "[n, b, 3]"),
    "elements of a vector, whole index": ("scatter_nd(%x, %i, %u) {", "[7]", "[n, 1]", "[n]"),
    "rows, full and partial vectors": ("scatter_nd(%x, %i, %u) {", "[7, 21]", "[n, 1]", "[n, 21]"),
    "slices of two dims": ("scatter_nd(%x, %i, %u) {", "[7, 9, 3, b]", "[n, 2]", "[n, 3, b]"),
    "the whole of x": ("scatter_nd(%x, %i, %u) {", "[3, b, n]", "[0]", "[3, b, n]"),
}


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16, DType.f32, DType.f64], ids=str)
def test_sums_round_once(dtype: DType) -> None:
    texts = {}
    for form, (op, x, i, u) in FORMS.items():
        for reduce in ("add", "mul"):
            start = f"{op}, " if not op.endswith("{") else op
            texts[f"{form}, {reduce}"] = (
                f"module @scatter {{\n  symbol b : [1, inf]\n  symbol n : [1, inf]\n"
                f"  func @main(%x: {dtype}{x}, %i: i64{i}, %u: {dtype}{u}) -> ({dtype}{x}) {{\n"
                f"    %0 = {start}reduce = {reduce}}} : {dtype}{x}\n    return %0\n  }}\n}}\n"
            )
    host = compile_modules([parse_module(t) for t in texts.values()])
    avx2 = compile_modules([parse_module(t) for t in texts.values()], "cpu:avx2")
    for (name, text), run, other in zip(texts.items(), host, avx2, strict=True):
        module = parse_module(text)
        for dims in ({"b": 1, "n": 1}, {"b": 2, "n": 3}, {"b": 18, "n": 600}):
            rng = np.random.default_rng(dims["n"])
            low, high = (0.9, 1.1) if "mul" in name else (-1.0, 2.0)
            x, _, u = (random_array(t, dims, rng, low, high) for t in module.main.input_types)
            i = random_array(module.main.input_types[1], dims, rng, -7, 6)
            want = evaluate(module, x, i, u, dims=dims)
            assert isinstance(want, np.ndarray)
            for results in (run([x, i, u], dims), run([x, i, u], dims, 3), other([x, i, u], dims, 2)):
                assert same_bytes(results[0], want), f"{name}, {dims}: {np.abs(results[0].astype(float) - want.astype(float)).max()}"


def test_five_thousand_tenths() -> None:
    text = """module @scatter {
  func @main(%x: f16[3], %i: i64[5000], %u: f16[5000]) -> (f16[3]) {
    %0 = scatter_elements(%x, %i, %u) {axis = 0, reduce = add} : f16[3]
    return %0
  }
}
"""
    (run,) = compile_modules([parse_module(text)])
    (got,) = run([np.zeros(3, np.float16), np.zeros(5000, np.int64), np.full(5000, 0.1, np.float16)], {})
    assert got.tolist() == [500.0, 0.0, 0.0]
