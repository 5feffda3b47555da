"""Sums of f32: the error does not grow with the number of terms, the bits depend on nothing but the shape, and how far the range reaches."""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import same_bytes
from codegen_harness import check
from lowering_harness import compile_modules
from random_graphs import wrap

from trustformers_ir.codegen.kernel_ir.kernel import kernel, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import SEQ, UNROLL, VECTOR, Axis, AxisKind, Buffer, Sym, cast, minimum, reduce
from trustformers_ir.codegen.lower.definer import FOLD_STEPS
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module

#: shape of x by its dims, the sizes, and the axes
SHAPES: dict[str, tuple[str, dict[str, int], str]] = {
    "last of a million": ("[b, n]", {"b": 2, "n": 1_000_000}, "[1]"),
    "first of a million": ("[n, b]", {"b": 3, "n": 1_000_000}, "[0]"),
    "everything": ("[n, b]", {"b": 3, "n": 300_000}, "[0, 1]"),
    "a vector": ("[n]", {"b": 1, "n": 1_000_003}, "[0]"),
    "the middle": ("[b, n, 20]", {"b": 2, "n": 30_000}, "[1]"),
    "small last dims": ("[n, 7, 7]", {"b": 1, "n": 10_000}, "[0, 1, 2]"),
    "first and last": ("[n, b, 5]", {"b": 4, "n": 50_000}, "[0, 2]"),
}
OPS = ("reduce_sum", "reduce_mean", "reduce_std", "reduce_var", "reduce_log_sum_exp")


def text(shape: str, axes: str, dtype: str, fixed: dict[str, int] | None = None) -> str:
    """All ops on ``abs(x) * w``, which no region need store."""
    lines = [f"%a = abs(%x) : {dtype}{shape}", f"%p = mul(%a, %w) : {dtype}{shape}"]
    kept = [d for i, d in enumerate(shape[1:-1].split(", ")) if str(i) not in axes]
    result = f"{dtype}[{', '.join(kept)}]"
    lines += [f"%{i} = {op}(%p) {{axes = {axes}}} : {result}" for i, op in enumerate(OPS)]
    names = [f"%{i}" for i in range(len(OPS))]
    symbols = "\n".join(f"  symbol {s} : [1, inf]" for s in ("b", "n"))
    out = (
        f"module @sums {{\n{symbols}\n  func @main(%x: {dtype}{shape}, %w: {dtype}{shape}) -> ({', '.join([result] * len(OPS))}) {{\n    "
        + "\n    ".join(lines)
        + f"\n    return {', '.join(names)}\n  }}\n}}\n"
    )
    for name, size in (fixed or {}).items():
        out = out.replace(f"  symbol {name} : [1, inf]\n", "").replace(f"[{name}", f"[{size}").replace(f", {name}", f", {size}")
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_the_error_does_not_grow(name: str) -> None:
    """One or two units in the last place, where a chain would be off by a thousand; the same bits apart, with workers and on AVX2."""
    shape, dims, axes = SHAPES[name]
    source = text(shape, axes, "f32")
    whole = parse_module(source)
    wrap([o for o in whole.main.body if not o.op.terminator])
    fused, apart = compile_modules([whole, parse_module(source)])
    (other,) = compile_modules([parse_module(source)], "cpu:avx2")
    rng = np.random.default_rng(1)
    inputs = [rng.uniform(0.5, 2.0, [dims.get(d, 0) or int(d) for d in shape[1:-1].split(", ")]).astype(np.float32) for _ in range(2)]
    got = fused(inputs, dims)
    for results in (fused(inputs, dims, 2), apart(inputs, dims, 3), other(inputs, dims, 2)):
        assert all(same_bytes(a, b) for a, b in zip(got, results, strict=True))
    product = (inputs[0] * inputs[1]).astype(np.float64)
    wide = parse_module(text(shape, axes, "f64"))
    want = evaluate(wide, product, np.ones_like(product), dims=dims)
    for op, g, w in zip(OPS, got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=3e-7, err_msg=op)


@pytest.mark.parametrize("axes", ["[1]", "[0]"])
@pytest.mark.parametrize("size", [1, 15, FOLD_STEPS - 1, FOLD_STEPS, FOLD_STEPS + 1, 16 * FOLD_STEPS, 16 * FOLD_STEPS + 1, 40_000])
def test_a_known_size_changes_no_bit(size: int, axes: str) -> None:
    shape = "[b, n]" if axes == "[1]" else "[n, b]"
    source = text(shape, axes, "f32")
    dims = {"b": 3, "n": size}
    free, fixed = compile_modules([parse_module(source), parse_module(text(shape, axes, "f32", {"n": size}))])
    inputs = [np.random.default_rng(2).uniform(0.5, 2.0, (3, size) if axes == "[1]" else (size, 3)).astype(np.float32) for _ in range(2)]
    for a, b in zip(free(inputs, dims), fixed(inputs, {"b": 3}), strict=True):
        assert same_bytes(a, b)


@pytest.mark.parametrize("fold", [SEQ, VECTOR], ids=lambda k: k.value)
@pytest.mark.parametrize("around", [SEQ, VECTOR, UNROLL], ids=lambda k: k.value)
def test_a_fold_of_folds(fold: AxisKind, around: AxisKind) -> None:
    """As the interpreter: short f32 folds, whose extent depends on the block, inside an f64 fold."""
    n, m = Sym("n"), 19 if around is UNROLL else Sym("m")
    block = 3 * (16 if fold is VECTOR else 1)
    x, y = Buffer("x", DType.f32, (n, m), readonly=True), Buffer("y", DType.f32, (m,))
    column, b = Axis("c", m, around), Axis("b", (n + (block - 1)) // block)
    r = Axis("r", minimum(n - b * block, block), fold)
    parts = reduce("sum", r, x[b * block + r, column] * x[b * block + r, column])
    k = kernel("k", [x, y], *nest([column], store(y, column, cast(reduce("sum", b, cast(parts, DType.f64)), DType.f32))))
    for size in (0, 1, block - 1, block, block + 1, 3 * block + 17):
        a = np.random.default_rng(size).uniform(-1, 1, (size, 19)).astype(np.float32)
        check(k, [a, np.zeros(19, np.float32)], {"n": size, "m": 19} if around is not UNROLL else {"n": size})


@pytest.mark.parametrize("size", [8, 1000, 4096])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "reduce_var", "reduce_std"])
def test_squares_stay_in_the_range_of_f32(name: str, size: int) -> None:
    """docs/kernels.md promises agreement with the reference for numbers of these sizes; beyond, squares overflow or vanish."""
    results = {"layer_norm": ", none, none) {eps = 0.0", "rms_norm": ", none) {eps = 0.0"}
    tail, kept = (results[name], f"[2, {size}]") if name in results else (") {axes = [1]", "[2]")
    body = f"    %0 = {name}(%x{tail}}} : f32{kept}\n    return %0\n"
    source = f"module @range {{\n  func @main(%x: f32[2, {size}]) -> (f32{kept}) {{\n{body}  }}\n}}\n"
    (run,) = compile_modules([parse_module(source)])
    unit = np.random.default_rng(size).uniform(-1, 1, (2, size))
    unit[:, :2] = 1, -1
    for largest in (1e-18, 1.0, 0.99e19 / np.sqrt(size)):
        x = (unit * largest).astype(np.float32)
        want = evaluate(parse_module(source), x)
        assert isinstance(want, np.ndarray)
        np.testing.assert_allclose(run([x], {})[0], want, rtol=1e-5, atol=1e-6 if name in results else 0)
