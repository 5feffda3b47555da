"""Every operator on every dtype that it takes, on ordinary and special values: compiled equals interpreted, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from codegen_harness import check

from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, store
from trustformers_ir.codegen.kernel_ir.nodes import SEQ, VECTOR, Axis, AxisKind, Buffer, Expr, Sym, binary, cast, const, fma, select, unary
from trustformers_ir.ir.dtypes import DType

N = 53  # three vectors and a masked tail
DTYPES = [d for d in DType if d in optable.SUPPORTED]


def values(d: DType, seed: int) -> np.ndarray:
    """Random values of a dtype, sprinkled with its special ones."""
    rng = np.random.default_rng(seed)
    if d is DType.bool:
        return rng.integers(0, 2, N).astype(bool)
    if d.is_float:
        x = (rng.normal(0, 1, N) * 10.0 ** rng.integers(-3, 4, N)).astype(d.numpy)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 300.7, -129.5, 1e-7, 65000.0]
        with np.errstate(over="ignore"):
            x[rng.permutation(N)[: len(special)]] = np.array(special).astype(d.numpy)
        return x
    x = rng.integers(d.min, d.max, N, dtype=d.numpy, endpoint=True)
    small = rng.integers(0, 12, N).astype(d.numpy)
    x = np.where(rng.random(N) < 0.5, small, x)
    special = [0, 1, d.max, d.min, 7] + ([-1, -7] if d.min else [])
    x[rng.permutation(N)[: len(special)]] = np.array(special, d.numpy)
    return x.astype(d.numpy)


def pointwise(kind: AxisKind, out: DType, inputs: list[DType], f: object) -> Kernel:
    n = Sym("n")
    buffers = [Buffer(f"x{k}", d, (n,), readonly=True) for k, d in enumerate(inputs)]
    y = Buffer("y", out, (n,))
    i = Axis("i", n, kind)
    return kernel("pointwise", [*buffers, y], For(i, (store(y, i, f(*[b[i] for b in buffers])),)))  # type: ignore[operator]


def run(out: DType, inputs: list[DType], f: object, seed: int = 0) -> None:
    for kind in (SEQ, VECTOR):
        arrays = [values(d, seed + n) for n, d in enumerate(inputs)]
        check(pointwise(kind, out, inputs, f), [*arrays, np.zeros(N, out.numpy)], {"n": N})


@pytest.mark.parametrize("op", sorted(optable.UNARY))
def test_unary(op: str) -> None:
    for d in DTYPES:
        if optable.accepts(optable.UNARY[op], d) and not (op == "from_bits" and d not in (DType.i32, DType.i64)):
            run(optable.unary_dtype(op, d), [d], lambda x: unary(op, x))


@pytest.mark.parametrize("op", sorted(optable.BINARY))
def test_binary(op: str) -> None:
    for d in DTYPES:
        if optable.accepts(optable.BINARY[op], d):
            run(optable.binary_dtype(op, d, d), [d, d], lambda a, b: binary(op, a, b), seed=3)


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_cast(source: DType) -> None:
    for to in DTYPES:
        run(to, [source], partial(cast, dtype=to), seed=11)


def test_division_by_constants() -> None:
    for d in (DType.i8, DType.i32, DType.i64, DType.u8, DType.u32, DType.u64):
        for op in ("div", "floordiv", "mod"):
            for c in (1, 3, 7, 16) + ((-1, -5) if d.min else ()):
                run(d, [d], partial(_by_constant, op, c), seed=5)


def _by_constant(op: str, c: int, a: Expr) -> Expr:
    return binary(op, a, const(c, a.dtype))


@pytest.mark.parametrize("d", [DType.f32, DType.f64], ids=str)
def test_fma_and_select(d: DType) -> None:
    run(d, [d, d, d], lambda a, b, c: fma(a, b, c))
    run(d, [d, d, DType.bool], lambda a, b, c: select(c, a, b))


def test_wide_integers_round_once_to_narrow_floats() -> None:
    n = Sym("n")
    for source in (DType.i64, DType.u64, DType.i32, DType.f64):
        for to in (DType.f16, DType.bf16):
            x, y = Buffer("x", source, (n,), readonly=True), Buffer("y", to, (n,))
            i = Axis("i", n, VECTOR)
            rng = np.random.default_rng(1)
            if source.is_float:
                # just beside the ties between neighbouring narrow values
                tie = rng.integers(0x3C00, 0x4800, 400).astype(np.uint16).view(np.float16).astype(np.float64)
                a = tie * (1 + 2.0**-11) * (1 + rng.choice([0, 2.0**-52, -(2.0**-52), 2.0**-30], 400))
                a = np.concatenate([a, tie * (1 + 2.0**-8) * (1 + rng.choice([0, 2.0**-52, -(2.0**-52)], 400))])
            else:
                a = rng.integers(0, 2**16, 800).astype(np.uint64) << rng.integers(0, 47 if source.bits == 64 else 15, 800).astype(np.uint64)
                a = (a + rng.integers(0, 3, 800).astype(np.uint64)).astype(source.numpy)
            check(kernel("narrow", [x, y], For(i, (store(y, i, cast(x[i], to)),))), [a, np.zeros(800, to.numpy)], {"n": 800})


@pytest.mark.parametrize("to", [DType.f16, DType.bf16, DType.f32, DType.f64], ids=str)
@pytest.mark.parametrize("source", [d for d in DTYPES if not d.is_float and d is not DType.bool], ids=str)
def test_integers_beside_ties_round_once(source: DType, to: DType) -> None:
    """At, just below and just above every tie next to every power of two, and the ends of the range, against exact arithmetic."""
    digits = {DType.f16: 10, DType.bf16: 7, DType.f32: 23, DType.f64: 52}[to]
    wanted = {0, source.max, source.max - 1, source.min, source.min + 1}
    for e in range(digits + 1, source.bits):
        step = 1 << (e - digits)
        for tie in (2 * step * k + step // 2 for k in ((1 << e) // (2 * step), ((1 << e) + 40 * step) // (2 * step))):
            for base in (tie, tie + step):  # to an even and to an odd neighbour
                wanted |= {sign * (base + more) for more in (-1, 0, 1) for sign in (1, -1)}
    a = np.array(sorted(v for v in wanted if source.min <= v <= source.max), source.numpy)
    want = np.array([nearest(int(v), to) for v in a], to.numpy)
    for kind in (SEQ, VECTOR):
        n = Sym("n")
        x, y, i = Buffer("x", source, (n,), readonly=True), Buffer("y", to, (n,)), Axis("i", n, kind)
        k = kernel("narrow", [x, y], For(i, (store(y, i, cast(x[i], to)),)))
        got = check(k, [a, np.zeros(len(a), to.numpy)], {"n": len(a)})[1]
        assert got.tobytes() == want.tobytes(), [hex(v) for v, g, w in zip(a.tolist(), got, want, strict=True) if g != w]


def nearest(value: int, to: DType) -> float:
    """The float of ``to`` nearest to an integer, of two the even one, by integer arithmetic."""
    digits, top = {DType.f16: (11, 1 << 16), DType.bf16: (8, 1 << 128), DType.f32: (24, 1 << 128), DType.f64: (53, 1 << 1024)}[to]
    step = 1 << max(abs(value).bit_length() - digits, 0)
    down, rest = divmod(abs(value), step)
    rounded = (down + (2 * rest > step or (2 * rest == step and down % 2 == 1))) * step
    return (-1.0 if value < 0 else 1.0) * (float(rounded) if rounded < top else float("inf"))


def test_deep_expressions() -> None:
    """A fused chain of many operators."""
    n = Sym("n")
    x, y, i = Buffer("x", DType.f32, (n,), readonly=True), Buffer("y", DType.f32, (n,)), Axis("i", n, VECTOR)
    e: Expr = x[i]
    for _ in range(120):
        e = unary("tanh", e * 0.5) + x[i]
    check(
        kernel("deep", [x, y], For(i, (store(y, i, e),))), [np.linspace(-2, 2, 19).astype(np.float32), np.zeros(19, np.float32)], {"n": 19}
    )
