"""Regions written by hand: what fusion hands to the lowering, against the interpreter, for several sizes, workers and machines.

Each text is a module; ``fuse`` marks the operations that share a region by wrapping everything between its input and its results.
"""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import FORMATS, same_bytes, wide
from lowering_harness import compile_modules
from random_graphs import wrap

from trustformers_ir.ir.conformance import random_array
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module

#: name: (signature, body lines); everything in the body becomes one region
REGIONS: dict[str, tuple[str, str, str]] = {
    "product of computed matrices with an epilogue": (
        "%x: f32[b, s, 40], %y: f32[40, 100], %c: f32[100]",
        """%0 = matmul(%x, %y) : f32[b, s, 100]
        %1 = add(%0, %c) : f32[b, s, 100]
        %2 = relu(%1) : f32[b, s, 100]""",
        "%2: f32[b, s, 100]",
    ),
    "products of stacks of computed matrices": (
        "%x: f32[b, 2, s, 24], %y: f32[b, 1, 24, s]",
        "%0 = matmul(%x, %y) : f32[b, 2, s, s]",
        "%0: f32[b, 2, s, s]",
    ),
    "linear by a computed weight": (
        "%x: f32[b, s, 32], %w: f32[50, 32], %c: f32[50]",
        "%0 = linear(%x, %w, %c) : f32[b, s, 50]",
        "%0: f32[b, s, 50]",
    ),
    "elementwise chain with broadcasts": (
        "%x: f32[b, s, 40], %c: f32[40], %m: f32[b, 1, 1]",
        """%0 = mul(%x, %c) : f32[b, s, 40]
        %1 = add(%0, %m) : f32[b, s, 40]
        %2 = tanh(%1) : f32[b, s, 40]
        %3 = sub(%2, %x) : f32[b, s, 40]""",
        "%3: f32[b, s, 40]",
    ),
    "flat chain with two results": (
        "%x: f32[b, s, 3], %y: f32[b, s, 3]",
        """%0 = mul(%x, %y) : f32[b, s, 3]
        %1 = exp(%0) : f32[b, s, 3]
        %2 = gt(%0, %y) : bool[b, s, 3]""",
        "%1: f32[b, s, 3], %2: bool[b, s, 3]",
    ),
    "sum of products keeps the rounding of the product": (
        "%x: f32[s, 70], %y: f32[s, 70]",
        """%0 = mul(%x, %y) : f32[s, 70]
        %1 = reduce_sum(%0) {axes = [1]} : f32[s]""",
        "%1: f32[s]",
    ),
    "sum, mean and deviation of squares": (
        "%x: f32[b, s, 70]",
        """%0 = mul(%x, %x) : f32[b, s, 70]
        %1 = reduce_sum(%0) {axes = [2]} : f32[b, s]
        %2 = reduce_mean(%0) {axes = [1]} : f32[b, 70]
        %3 = reduce_std(%0) {axes = [2]} : f32[b, s]""",
        "%1: f32[b, s], %2: f32[b, 70], %3: f32[b, s]",
    ),
    "norms of products": (
        "%x: f32[b, s, 70], %y: f32[b, s, 70]",
        """%0 = mul(%x, %y) : f32[b, s, 70]
        %1 = layer_norm(%0, none, none) : f32[b, s, 70]
        %2 = rms_norm(%0, none) : f32[b, s, 70]""",
        "%1: f32[b, s, 70], %2: f32[b, s, 70]",
    ),
    "softmax and its logarithm of products": (
        "%x: f32[b, s, t], %y: f32[b, s, t]",
        """%0 = mul(%x, %y) : f32[b, s, t]
        %1 = softmax(%0) {axis = 2} : f32[b, s, t]
        %2 = log_softmax(%0) {axis = 1} : f32[b, s, t]""",
        "%1: f32[b, s, t], %2: f32[b, s, t]",
    ),
    "norm with a residual before it and a cast behind it": (
        "%x: f32[b, s, 48], %r: f32[b, s, 48], %w: f32[48], %c: f32[48]",
        """%0 = add(%x, %r) : f32[b, s, 48]
        %1 = layer_norm(%0, %w, %c) {eps = 1e-12} : f32[b, s, 48]
        %2 = cast(%1) {dtype = f16} : f16[b, s, 48]""",
        "%2: f16[b, s, 48], %0: f32[b, s, 48]",
    ),
    "softmax of masked scores": (
        "%x: f32[b, 2, s, t], %m: bool[b, 1, 1, t]",
        """%0 = constant {value = f32[] dense [0.125]} : f32[]
        %1 = mul(%x, %0) : f32[b, 2, s, t]
        %2 = constant {value = f32[] dense [-1e9]} : f32[]
        %3 = select(%m, %1, %2) : f32[b, 2, s, t]
        %4 = softmax(%3) : f32[b, 2, s, t]""",
        "%4: f32[b, 2, s, t]",
    ),
    "reduction over the middle, then pointwise": (
        "%x: bf16[b, s, 20]",
        """%0 = silu(%x) : bf16[b, s, 20]
        %1 = reduce_mean(%0) {axes = [1]} : bf16[b, 20]
        %2 = sqrt(%1) : bf16[b, 20]
        %3 = abs(%1) : bf16[b, 20]""",
        "%3: bf16[b, 20]",
    ),
    "two reductions of one row, results of two shapes": (
        "%x: f32[b, s, 33]",
        """%0 = reduce_max(%x) {axes = [2]} : f32[b, s]
        %1 = reduce_sum(%x) {axes = [2], keepdims = true} : f32[b, s, 1]
        %2 = sub(%x, %1) : f32[b, s, 33]""",
        "%0: f32[b, s], %2: f32[b, s, 33]",
    ),
    "linear with gelu": (
        "%x: f32[b, s, 24], %w: f32[33, 24], %c: f32[33]",
        """%0 = linear(%x, %w, %c) : f32[b, s, 33]
        %1 = gelu(%0) : f32[b, s, 33]""",
        "%1: f32[b, s, 33]",
    ),
    "packed linear with gelu": (
        "%x: f32[b, s, 24], %w: f32[33, 24]{panels 16}, %c: f32[33]",
        """%0 = linear(%x, %w, %c) : f32[b, s, 33]
        %1 = gelu(%0) : f32[b, s, 33]""",
        "%1: f32[b, s, 33]",
    ),
    "packed linear with residual, in wide panels": (
        "%x: f32[b, s, 24], %w: f32[96, 24]{panels 48}, %c: f32[96], %r: f32[b, s, 96]",
        """%0 = linear(%x, %w, %c) : f32[b, s, 96]
        %1 = add(%0, %r) : f32[b, s, 96]""",
        "%1: f32[b, s, 96]",
    ),
    "packed linear in bf16, one column in the last panel": (
        "%x: bf16[b, s, 20], %w: bf16[49, 20]{panels 48}, %c: bf16[49]",
        """%0 = linear(%x, %w, %c) : bf16[b, s, 49]
        %1 = relu(%0) : bf16[b, s, 49]""",
        "%1: bf16[b, s, 49]",
    ),
    "packed linear split into heads": (
        "%x: f32[b, s, 24], %w: f32[32, 24]{panels 16}, %c: f32[32]",
        """%0 = linear(%x, %w, %c) : f32[b, s, 32]
        %1 = reshape(%0) {shape = [b, s, 4, 8]} : f32[b, s, 4, 8]
        %2 = transpose(%1) {perm = [0, 2, 1, 3]} : f32[b, 4, s, 8]""",
        "%2: f32[b, 4, s, 8]",
    ),
    "packed linear of a prologue, two results": (
        "%x: f32[b, s, 24], %w: f32[48, 24]{panels 48}",
        """%n = relu(%x) : f32[b, s, 24]
        %0 = linear(%n, %w, none) : f32[b, s, 48]
        %1 = tanh(%0) : f32[b, s, 48]""",
        "%0: f32[b, s, 48], %1: f32[b, s, 48]",
    ),
    "packed linear of one row": (
        "%x: f32[24], %w: f32[20, 24]{panels 16}",
        """%0 = linear(%x, %w, none) : f32[20]
        %1 = neg(%0) : f32[20]""",
        "%1: f32[20]",
    ),
    "matmul of transposed views with scale": (
        "%x: f32[b, s, 4, 8], %y: f32[b, t, 4, 8]",
        """%0 = transpose(%x) {perm = [0, 2, 1, 3]} : f32[b, 4, s, 8]
        %1 = transpose(%y) {perm = [0, 2, 3, 1]} : f32[b, 4, 8, t]
        %2 = matmul(%0, %1) : f32[b, 4, s, t]
        %3 = constant {value = f32[] dense [0.25]} : f32[]
        %4 = mul(%2, %3) : f32[b, 4, s, t]""",
        "%4: f32[b, 4, s, t]",
    ),
    "attention between views": (
        "%q: f32[b, s, 32], %k: f32[b, t, 32], %v: f32[b, t, 32], %m: bool[b, 1, 1, t]",
        """%0 = reshape(%q) {shape = [b, s, 4, 8]} : f32[b, s, 4, 8]
        %1 = transpose(%0) {perm = [0, 2, 1, 3]} : f32[b, 4, s, 8]
        %2 = reshape(%k) {shape = [b, t, 4, 8]} : f32[b, t, 4, 8]
        %3 = transpose(%2) {perm = [0, 2, 1, 3]} : f32[b, 4, t, 8]
        %4 = reshape(%v) {shape = [b, t, 4, 8]} : f32[b, t, 4, 8]
        %5 = transpose(%4) {perm = [0, 2, 1, 3]} : f32[b, 4, t, 8]
        %6 = attention(%1, %3, %5, %m, none) : f32[b, 4, s, 8]
        %7 = transpose(%6) {perm = [0, 2, 1, 3]} : f32[b, s, 4, 8]
        %8 = reshape(%7) {shape = [b, s, 32]} : f32[b, s, 32]""",
        "%8: f32[b, s, 32]",
    ),
    "attention of slices of one matrix, features that fill no vector": (
        "%x: f32[b, s, 3, 2, 20]",
        """%q0 = slice(%x) {axis = 2, start = 0, stop = 1} : f32[b, s, 1, 2, 20]
        %q1 = reshape(%q0) {shape = [b, s, 2, 20]} : f32[b, s, 2, 20]
        %q = transpose(%q1) {perm = [0, 2, 1, 3]} : f32[b, 2, s, 20]
        %k0 = slice(%x) {axis = 2, start = 1, stop = 2} : f32[b, s, 1, 2, 20]
        %k1 = reshape(%k0) {shape = [b, s, 2, 20]} : f32[b, s, 2, 20]
        %k = transpose(%k1) {perm = [0, 2, 1, 3]} : f32[b, 2, s, 20]
        %v0 = slice(%x) {axis = 2, start = 2, stop = 3} : f32[b, s, 1, 2, 20]
        %v1 = reshape(%v0) {shape = [b, s, 2, 20]} : f32[b, s, 2, 20]
        %v = transpose(%v1) {perm = [0, 2, 1, 3]} : f32[b, 2, s, 20]
        %0 = attention(%q, %k, %v, none, none) {causal = true} : f32[b, 2, s, 20]""",
        "%0: f32[b, 2, s, 20]",
    ),
    "attention with a gate behind it": (
        "%q: bf16[b, 4, s, 8], %k: bf16[b, 2, t, 8], %v: bf16[b, 2, t, 17], %g: bf16[b, 4, s, 17]",
        """%0 = attention(%q, %k, %v, none, none) : bf16[b, 4, s, 17]
        %1 = mul(%0, %g) : bf16[b, 4, s, 17]""",
        "%1: bf16[b, 4, s, 17]",
    ),
    "embedding, position and type added": (
        "%w: f32[40, 24], %p: f32[64, 24], %i: i64[b, s]",
        """%0 = embedding(%w, %i) : f32[b, s, 24]
        %1 = iota {size = s, dtype = i64} : i64[s]
        %2 = embedding(%p, %1) : f32[s, 24]
        %3 = add(%0, %2) : f32[b, s, 24]
        %4 = layer_norm(%3, none, none) {eps = 1e-6} : f32[b, s, 24]""",
        "%4: f32[b, s, 24]",
    ),
    "arithmetic on positions wraps": (
        "%x: i64[b, s]",
        """%0 = iota {size = s, dtype = i64} : i64[s]
        %1 = constant {value = i64[] dense [-7046029254386353131]} : i64[]
        %2 = mul(%0, %1) : i64[s]
        %3 = mul(%2, %2) : i64[s]
        %4 = constant {value = i64[] dense [9223372036854775807]} : i64[]
        %5 = add(%0, %4) : i64[s]
        %6 = sub(%3, %5) : i64[s]
        %7 = shift_right(%6, %0) : i64[s]
        %8 = xor(%x, %7) : i64[b, s]""",
        "%8: i64[b, s]",
    ),
    "running sum of a computed value": (
        "%x: f32[b, s, 5]",
        """%0 = abs(%x) : f32[b, s, 5]
        %1 = cumsum(%0) {axis = 1} : f32[b, s, 5]""",
        "%1: f32[b, s, 5]",
    ),
    "the largest without their places": (
        "%x: f32[b, s, 20]",
        """%0 = neg(%x) : f32[b, s, 20]
        %1, %2 = top_k(%0) {k = 5} : f32[b, s, 5], i64[b, s, 5]""",
        "%1: f32[b, s, 5]",
    ),
    "the places of the largest alone": (
        "%x: f16[b, s, 20]",
        """%0 = neg(%x) : f16[b, s, 20]
        %1, %2 = top_k(%0) {k = 5} : f16[b, s, 5], i64[b, s, 5]""",
        "%2: i64[b, s, 5]",
    ),
    "norm with a bias alone, over two axes": (
        "%x: f64[b, s, 5, 4], %c: f64[5, 4]",
        """%0 = neg(%x) : f64[b, s, 5, 4]
        %1 = layer_norm(%0, none, %c) : f64[b, s, 5, 4]""",
        "%1: f64[b, s, 5, 4]",
    ),
    "concat, pad and flip": (
        "%x: f32[b, s, 5], %y: f32[b, t, 5]",
        """%0 = concat(%x, %y) {axis = 1} : f32[b, s + t, 5]
        %1 = pad(%0) {low = [0, 1, 2], high = [0, 2, 0], value = 0.5} : f32[b, s + t + 3, 7]
        %2 = flip(%1) {axis = 1} : f32[b, s + t + 3, 7]
        %3 = sin(%2) : f32[b, s + t + 3, 7]""",
        "%3: f32[b, s + t + 3, 7]",
    ),
}

BINDINGS = [{"b": 1, "s": 1, "t": 1}, {"b": 2, "s": 5, "t": 7}, {"b": 3, "s": 17, "t": 70}, {"b": 1, "s": 13, "t": 64}, {"b": 5, "s": 64, "t": 33}]


def build(name: str, fused: bool) -> Module:
    arguments, body, results = REGIONS[name]
    names = ", ".join(r.split(":")[0].strip() for r in results.split(", %"))
    names = ", ".join(n if n.startswith("%") else f"%{n}" for n in names.split(", "))
    types = ", ".join(r.split(":", 1)[1].strip() for r in results.replace(", %", "\n").split("\n"))
    symbols = "\n".join(f"  symbol {n} : [1, 64]" if n == "s" else f"  symbol {n} : [1, inf]" for n in "bst")
    module = parse_module(f"module @region {{\n{symbols}\n  func @main({arguments}) -> ({types}) {{\n        {body}\n    return {names}\n  }}\n}}\n")
    if fused:
        wrap([o for o in module.main.body if not o.op.terminator])
    return module


def close(got: np.ndarray, want: np.ndarray) -> None:
    """Sixteen roundings of the largest number; narrow floats round after every op, so that they get as many in their own dtype."""
    dtype = DType.from_numpy(want.dtype)
    assert got.dtype == want.dtype and got.shape == want.shape
    if not dtype.is_float:
        np.testing.assert_array_equal(got, want)
        return
    top = float(np.abs(wide(want)).max(initial=0.0))
    np.testing.assert_allclose(wide(got), wide(want), rtol=0, atol=(4 if dtype.bits == 16 else 16) * 2.0 ** -FORMATS[dtype][0] * top)


@pytest.mark.parametrize("name", REGIONS)
def test_region(name: str) -> None:
    """As the interpreter; the same bits for any number of workers, for AVX2, and as one op after the other."""
    reference = build(name, False)
    (whole,) = compile_modules([build(name, True)])
    (apart,) = compile_modules([build(name, False)])
    (other,) = compile_modules([build(name, True)], "cpu:avx2")
    assert len(whole.program.calls) < len(apart.program.calls) or len(reference.main.body) == 2
    for dims in BINDINGS:
        rng = np.random.default_rng(len(name))
        ranges = {DType.i64: (0, 39)}
        inputs = [random_array(t, dims, rng, *ranges.get(t.dtype, (-2.0, 2.0))) for t in reference.main.input_types]
        want = evaluate(reference, *inputs, dims=dims)
        want = want if isinstance(want, tuple) else (want,)
        got = whole(inputs, dims)
        for g, w in zip(got, want, strict=True):
            close(g, w)
        for results in (whole(inputs, dims, 2), whole(inputs, dims, 3), other(inputs, dims), apart(inputs, dims)):
            assert all(same_bytes(a, b) for a, b in zip(got, results, strict=True))
