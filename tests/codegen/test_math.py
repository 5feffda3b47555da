"""Elementary functions: their error in ulp against f64, special values, and compiled against interpreted bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from codegen_harness import Compiled, check

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, store
from trustformers_ir.codegen.kernel_ir.nodes import SEQ, VECTOR, Axis, AxisKind, Buffer, Sym, binary, unary
from trustformers_ir.codegen.math import exp_down
from trustformers_ir.ir.dtypes import DType

f32 = DType.f32
SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1,
    -1,
    1e-45,
    -1e-45,
    1.2e-38,
    3.4e38,
    -3.4e38,
    0.5,
    -0.5,
    2,
    3,
    88.7228,
    -87.5,
    -103.9,
    0.99999994,
    1.0000001,
]

#: largest error allowed, in units of the last place
LIMITS = {
    **dict.fromkeys(["exp", "log", "expm1", "rsqrt"], 1.6),
    **dict.fromkeys(["tanh", "erf", "sigmoid"], 2.5),
    **dict.fromkeys(["exp2", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"], 0.51),
}


def inputs() -> np.ndarray:
    rng = np.random.default_rng(0)
    parts = [
        np.array(SPECIAL, np.float32),
        rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32),
        rng.normal(0, 1, 40_000).astype(np.float32),
        rng.uniform(-110, 95, 40_000).astype(np.float32),
        rng.uniform(-4, 4, 40_000).astype(np.float32),
        rng.uniform(0.9, 1.1, 20_000).astype(np.float32),
    ]
    return np.concatenate(parts)


def reference(op: str, x: np.ndarray) -> np.ndarray:
    w = x.astype(np.float64)
    if op == "erf":
        return np.array([math.erf(v) for v in w])
    if op == "sigmoid":
        return 1 / (1 + np.exp(-np.maximum(w, -700)))
    if op == "rsqrt":
        return 1 / np.sqrt(w)
    return getattr(
        np, {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}.get(op, op)
    )(w)


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Error in units of the last place of the rounded right answer; infinite where a NaN or an infinity is wrong."""
    rounded = want.astype(np.float32)
    error = np.zeros(len(got))
    finite = np.isfinite(rounded) & np.isfinite(got)
    unit = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    error[finite] = np.abs(got[finite].astype(np.float64) - want[finite]) / unit
    error[(np.isnan(got) != np.isnan(want)) | ((np.isinf(got) | np.isinf(rounded)) & ~np.isnan(want) & (got != rounded))] = np.inf
    return error


def pointwise(op: str, d: DType = f32, arity: int = 1) -> Kernel:
    n = Sym("n")
    buffers = [Buffer(f"x{k}", d, (n,), readonly=True) for k in range(arity)]
    y, i = Buffer("y", d, (n,)), Axis("i", n, VECTOR)
    loads = [b[i] for b in buffers]
    return kernel("k", [*buffers, y], For(i, (store(y, i, unary(op, *loads) if arity == 1 else binary(op, *loads)),)))


@pytest.mark.parametrize("op", sorted(LIMITS))
def test_error_in_ulp(op: str) -> None:
    x = inputs()
    if op in ("sin", "cos", "tan"):
        x = x[~(np.abs(x) > 2.0**50)]
    y = np.zeros_like(x)
    Compiled(pointwise(op))([x, y], {"n": len(x)})
    with np.errstate(all="ignore"):
        want = reference(op, x)
        error = ulps(y, want)
    worst = int(error.argmax())
    assert error[worst] <= LIMITS[op], f"{op}({x[worst]!r}) = {y[worst]!r}, want {want[worst]!r}: {error[worst]:.2f} ulp"
    zeros = want == 0
    assert (np.signbit(y[zeros]) == np.signbit(want[zeros])).all()


@pytest.mark.parametrize("op", ["pow", "atan2", "mod", "floordiv"])
def test_functions_of_two(op: str) -> None:
    rng = np.random.default_rng(1)
    special = np.array(SPECIAL, np.float32)
    a = np.concatenate([np.repeat(special, len(special)), rng.normal(0, 3, 40_000).astype(np.float32), rng.uniform(0, 30, 40_000).astype(np.float32)])
    b = np.concatenate([np.tile(special, len(special)), rng.normal(0, 3, 40_000).astype(np.float32), rng.integers(-9, 10, 40_000).astype(np.float32)])
    y = np.zeros_like(a)
    Compiled(pointwise(op, arity=2))([a, b, y], {"n": len(a)})
    with np.errstate(all="ignore"):
        w, v = a.astype(np.float64), b.astype(np.float64)
        want = {"pow": np.power, "atan2": np.arctan2, "mod": np.mod, "floordiv": np.floor_divide}[op](w, v)
        error = ulps(y, want)
    worst = int(error.argmax())
    assert error[worst] <= 0.51, f"{op}({a[worst]!r}, {b[worst]!r}) = {y[worst]!r}, want {want[worst]!r}: {error[worst]:.2f} ulp"


@pytest.mark.parametrize("op", sorted(LIMITS))
def test_scalar_and_vector_code_agree(op: str) -> None:
    """The same bits one by one, sixteen at a time and in the interpreter."""
    n = Sym("n")
    x = np.concatenate([np.array(SPECIAL, np.float32), np.random.default_rng(0).normal(0, 5, 30).astype(np.float32)])
    for kind in (SEQ, VECTOR):
        b, y, i = Buffer("x", f32, (n,), readonly=True), Buffer("y", f32, (n,)), Axis("i", n, kind)
        check(kernel("k", [b, y], For(i, (store(y, i, unary(op, b[i])),))), [x, np.zeros_like(x)], {"n": len(x)})


def test_f64_is_the_c_library() -> None:
    x = np.random.default_rng(0).uniform(0.1, 0.9, 40)
    for op in ("exp", "tanh", "erf", "log", "asin", "atanh", "sigmoid"):
        y = check(pointwise(op, DType.f64), [x, np.zeros_like(x)], {"n": 40})[1]
        np.testing.assert_allclose(y, reference(op, x), rtol=1e-14)


def test_exp_of_softmax() -> None:
    """``exp_down`` is ``exp`` at 0 and below, but for results near the end of f32's range, which become 0."""
    n = Sym("n")
    x = inputs()
    x = np.concatenate([-np.abs(x), np.nextafter(np.float32(-87), np.float32([-88, 0])), np.float32([-87])])
    b, y, i = Buffer("x", f32, (n,), readonly=True), Buffer("y", f32, (n,)), Axis("i", n, VECTOR)
    k = kernel("k", [b, y], For(i, (store(y, i, exp_down(b[i])),)))
    (_, got) = check(k, [x[:60], np.zeros(60, np.float32)], {"n": 60})
    got = np.zeros_like(x)
    Compiled(k)([x, got], {"n": len(x)})
    want = np.where(x < -87, 0, reference("exp", x))
    assert ulps(got, want).max() <= LIMITS["exp"]
    assert (got[x < -87] == 0).all() and (got[x == 0] == 1).all() and np.isnan(got[np.isnan(x)]).all()


def normal_times(kind: AxisKind = VECTOR) -> Kernel:
    """``y = x * normal_cdf(x)``, exact GELU."""
    n = Sym("n")
    b, y, i = Buffer("x", f32, (n,), readonly=True), Buffer("y", f32, (n,)), Axis("i", n, kind)
    return kernel("k", [b, y], For(i, (store(y, i, b[i] * unary("normal_cdf", b[i])),)))


def test_normal_distribution_function() -> None:
    """``x Phi(x)`` is off by a few roundings of x, and has the signs, zeros, infinities and NaN of the definition."""
    x = inputs()
    x = np.concatenate([x, np.linspace(-7, 7, 200_001, dtype=np.float32), np.nextafter(np.float32(5.7), np.float32([5, 6]))])
    y = np.zeros_like(x)
    Compiled(normal_times())([x, y], {"n": len(x)})
    w = x.astype(np.float64)
    with np.errstate(all="ignore"):
        want = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in w])
        allowed = np.maximum(2.2 * 2.0**-24 * np.abs(w), 2.0**-149)
        assert (np.abs(y - want) <= allowed)[np.isfinite(w)].all()
    assert np.isnan(y[np.isnan(x) | (x == -np.inf)]).all() and (y[x == np.inf] == np.inf).all()
    known = ~np.isnan(want)
    assert (np.signbit(y[known]) == np.signbit(x[known])).all()
    assert (y[(x < -5.7) & (x > -np.inf)] == 0).all() and (y[(x > 5.7)] == x[x > 5.7]).all()


@pytest.mark.parametrize("kind", [SEQ, VECTOR])
def test_normal_distribution_function_by_the_interpreter(kind: AxisKind) -> None:
    x = np.concatenate([np.array(SPECIAL, np.float32), np.random.default_rng(0).normal(0, 3, 40).astype(np.float32)])
    check(normal_times(kind), [x, np.zeros_like(x)], {"n": len(x)})
