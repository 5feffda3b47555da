"""Folds of every kind and shape: in scalar loops, inside vector loops, in register tiles, with guards, with and without lanes."""

from __future__ import annotations

import numpy as np
import pytest
from codegen_harness import Compiled, check

from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    PARALLEL,
    SCRATCH,
    SEQ,
    UNROLL,
    VECTOR,
    Axis,
    AxisKind,
    Buffer,
    Expr,
    Sym,
    cast,
    maximum,
    reduce,
    select,
    unary,
)
from trustformers_ir.codegen.kernel_ir.schedule import GUARD, Split, Tag, apply
from trustformers_ir.ir.dtypes import EIGHTHS, HALVES, DType

f32 = DType.f32
EXTENTS = (0, 1, 5, 15, 16, 17, 32, 47, 100)


def fold_dtypes(kind: str) -> list[DType]:
    if kind in ("any", "all"):
        return [DType.bool]
    return [d for d in optable.SUPPORTED if d is not DType.bool and d not in HALVES | EIGHTHS]


def data(d: DType, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if d is DType.bool:
        return rng.random(shape) < 0.5
    if d.is_float:
        x = rng.normal(0, 1, shape).astype(d.numpy)
        return np.where(rng.random(shape) < 0.1, np.round(x), x).astype(d.numpy)
    return rng.integers(0 if not d.min else -5, 6, shape).astype(d.numpy)


def rows(kind: str, d: DType, outer: AxisKind, inner: AxisKind, extent: int | None = None) -> Kernel:
    """y[i] = fold_k x[k, i] or x[i, k], the row length being a symbol or a constant."""
    m, n = Sym("m"), Sym("n")
    length: Expr | int = n if extent is None else extent
    x = Buffer("x", d, (m, length), readonly=True)
    y = Buffer("y", DType.i64 if kind.startswith("arg") else d, (m,))
    i, k = Axis("i", m, outer), Axis("k", length, inner)
    return kernel("rows", [x, y], For(i, (store(y, i, reduce(kind, k, x[i, k])),)))


@pytest.mark.parametrize("kind", sorted(optable.REDUCTIONS))
@pytest.mark.parametrize("outer", [SEQ, VECTOR, PARALLEL], ids=lambda k: k.value)
@pytest.mark.parametrize("inner", [SEQ, VECTOR], ids=lambda k: k.value)
def test_rows(kind: str, outer: AxisKind, inner: AxisKind) -> None:
    for d in fold_dtypes(kind) if (outer, inner) == (SEQ, VECTOR) else (fold_dtypes(kind)[0], fold_dtypes(kind)[-1]):
        k = rows(kind, d, outer, inner)
        compiled = Compiled(k)
        for n in EXTENTS:
            for m in (1, 5, 19) if outer is VECTOR else (2,):
                out = np.zeros(m, np.int64 if kind.startswith("arg") else d.numpy)
                check(k, [data(d, (m, n), n), out], {"m": m, "n": n}, compiled=compiled, workers=2 if outer is PARALLEL else 1)


@pytest.mark.parametrize("extent", [1, 7, 16, 33])
def test_static_rows(extent: int) -> None:
    for kind in ("sum", "argmax"):
        for outer in (SEQ, VECTOR):
            k = rows(kind, f32, outer, VECTOR, extent)
            check(k, [data(f32, (18, extent)), np.zeros(18, np.int64 if kind == "argmax" else np.float32)], {"m": 18})


@pytest.mark.parametrize("kind", ["max", "min", "argmax", "argmin", "sum"])
@pytest.mark.parametrize("inner", [SEQ, VECTOR], ids=lambda k: k.value)
def test_nan_and_infinity(kind: str, inner: AxisKind) -> None:
    x = data(f32, (12, 40))
    x[1, 7] = np.nan
    x[2, [5, 21, 39]] = np.nan
    x[3] = -np.inf
    x[4] = np.inf
    x[5, 30] = np.inf
    x[6, [2, 3]] = [0.0, -0.0]
    x[7] = 1.0
    x[8, [0, 16]] = np.nan
    x[9, [17, 2]] = 100.0
    got = check(rows(kind, f32, SEQ, inner), [x, np.zeros(12, np.int64 if kind.startswith("arg") else np.float32)], {"m": 12, "n": 40})[1]
    if kind != "sum":
        np.testing.assert_array_equal(got, getattr(np, kind)(x, axis=1))


def test_several_axes_with_lanes_last() -> None:
    m, n = Sym("m"), Sym("n")
    x, y = Buffer("x", f32, (4, m, n), readonly=True), Buffer("y", f32, (4,))
    for lane_kind in (SEQ, VECTOR):
        i, a, b = Axis("i", 4), Axis("a", m), Axis("b", n, lane_kind)
        k = kernel("k", [x, y], For(i, (store(y, i, reduce("sum", [a, b], x[i, a, b] * x[i, a, b])),)))
        for dims in ({"m": 3, "n": 21}, {"m": 1, "n": 16}, {"m": 0, "n": 5}, {"m": 2, "n": 3}):
            check(k, [data(f32, (4, dims["m"], dims["n"])), np.zeros(4, np.float32)], dims)


def test_unrolled_and_guarded_folds() -> None:
    m = Sym("m")
    x, y = Buffer("x", f32, (6, m), readonly=True), Buffer("y", f32, (6,))
    i, k = Axis("i", 6), Axis("k", m)
    naive = kernel("k", [x, y], For(i, (store(y, i, reduce("sum", k, x[i, k] * x[i, k])),)))
    for moves in (
        (Split("k", 4, GUARD),),
        (Split("k", 4, GUARD), Tag("k.i", UNROLL)),
        (Split("k", 4, GUARD), Tag("i", VECTOR)),
        (Split("k", 5, GUARD), Tag("k.i", UNROLL), Tag("i", UNROLL)),
    ):
        scheduled = apply(naive, moves)
        compiled = Compiled(scheduled)
        for n in (0, 1, 3, 4, 5, 8, 11):
            check(scheduled, [data(f32, (6, n)), np.zeros(6, np.float32)], {"m": n}, compiled=compiled, reference=naive)


def softmax(outer: AxisKind) -> Kernel:
    m, n = Sym("m"), Sym("n")
    x, y = Buffer("x", f32, (m, n), readonly=True), Buffer("y", f32, (m, n))
    i, a, b, c = Axis("i", m, outer), Axis("a", n, VECTOR), Axis("b", n, VECTOR), Axis("c", n, VECTOR)
    top = reduce("max", a, x[i, a])
    total = reduce("sum", b, unary("exp", x[i, b] - top))
    return kernel("softmax", [x, y], *nest([i, c], store(y, (i, c), unary("exp", x[i, c] - top) / total)))


def test_nested_folds_are_hoisted() -> None:
    k = softmax(PARALLEL)
    compiled = Compiled(k)
    for m, n in ((3, 5), (2, 16), (4, 37), (0, 4), (3, 0), (1, 1)):
        x = data(f32, (m, n))
        y = check(k, [x, np.zeros((m, n), np.float32)], {"m": m, "n": n}, compiled=compiled, workers=3)[1]
        if n:
            e = np.exp(x - x.max(1, keepdims=True))
            np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)
    # each fold has one main loop and no copy: exp's polynomial appears in the fold and in the store, main part and tail each
    assert compiled.text.count("phi <16 x float>") <= 8


def test_scratch_between_loops() -> None:
    m, n = Sym("m"), Sym("n")
    x, y = Buffer("x", f32, (m, n), readonly=True), Buffer("y", f32, (m, n))
    e, f = Buffer("e", f32, (n,), space=SCRATCH), Buffer("f", f32, (3, n), space=SCRATCH)
    i, a, b, c, d = Axis("i", m, PARALLEL), Axis("a", n, VECTOR), Axis("b", n, VECTOR), Axis("c", n, VECTOR), Axis("d", n, VECTOR)
    top = reduce("max", a, x[i, a])
    k = kernel(
        "k",
        [x, y],
        For(
            i,
            (
                For(c, (store(e, c, unary("exp", x[i, c] - top)), store(f, (1, c), e[c] * 2.0))),
                For(d, (store(y, (i, d), f[1, d] / reduce("sum", b, e[b])),)),
            ),
        ),
    )
    for m_, n_ in ((3, 5), (4, 40)):
        check(k, [data(f32, (m_, n_)), np.zeros((m_, n_), np.float32)], {"m": m_, "n": n_}, workers=2)


def test_running_maximum_through_scratch() -> None:
    """A loop that reads what it wrote in the turn before: memoised values must be dropped."""
    n = Sym("n")
    x, y = Buffer("x", f32, (n,), readonly=True), Buffer("y", f32, (n,))
    s = Buffer("s", f32, (1,), space=SCRATCH)
    i = Axis("i", n)
    k = kernel(
        "k",
        [x, y],
        store(s, 0, reduce("max", Axis("z", 0), x[0])),
        For(i, (store(s, 0, maximum(s[0], x[i])), store(y, i, s[0]))),
    )
    x_ = data(f32, (30,))
    y_ = check(k, [x_, np.zeros(30, np.float32)], {"n": 30})[1]
    np.testing.assert_array_equal(y_, np.maximum.accumulate(x_))


def together(first: Expr, second: Expr, between: bool = False, kind: AxisKind = SEQ) -> Kernel:
    """Two statements in one loop over i, each with a fold of its own; ``between`` them s, which the second may read, is stored."""
    i = I[kind]
    middle = (store(S, i, Y[i] * 2.0),) if between else ()
    return kernel("k", [X, Y, Z, S], For(i, (store(Y, i, first), *middle, store(Z, i, second))))


X, Y, Z, S = Buffer("x", f32, (9, Sym("n")), readonly=True), Buffer("y", f32, (9,)), Buffer("z", f32, (9,)), Buffer("s", f32, (9,))
I = {kind: Axis("i", 9, kind) for kind in (SEQ, VECTOR, UNROLL)}


@pytest.mark.parametrize("kind", I, ids=lambda k: k.value)
@pytest.mark.parametrize("inner", [SEQ, VECTOR], ids=lambda k: k.value)
@pytest.mark.parametrize("case", ["guards", "one guard", "choices", "stored between", "positions", "data"])
def test_folds_over_one_axis_run_together_only_where_that_says_the_same(case: str, inner: AxisKind, kind: AxisKind) -> None:
    i, k = I[kind], Axis("k", Sym("n"), inner)
    x = X[i, k]
    total, square, largest = reduce("sum", k, x), reduce("sum", k, x * x), reduce("max", k, x)
    pairs = {
        "guards": (reduce("sum", k, x, k < i + 3), reduce("sum", k, x * x, k >= i)),
        "one guard": (reduce("max", k, x, k < i + 3), reduce("min", k, x, k < i + 3)),
        "choices": (select(i < 4, total, 0.5), select(i > 2, largest, square)),
        "stored between": (total, reduce("sum", k, x * S[i])),
        "positions": (largest, cast(reduce("argmax", k, x), f32)),
        "data": (reduce("sum", k, x, x > 0.0), reduce("sum", k, x, x < 0.0)),
    }
    scheduled = together(*pairs[case], between=case == "stored between", kind=kind)
    compiled = Compiled(scheduled)
    for n in (1, 4, 16, 21, 40):
        x_, rest = data(f32, (9, n), n), [np.full(9, v, np.float32) for v in (0, 0, 3)]
        check(scheduled, [x_, *rest], {"n": n}, compiled=compiled)


def test_folds_under_guards_of_their_own() -> None:
    """What a guard keeps from being read is not read for another fold's sake: row 7 of x is not there."""
    short = Buffer("x", f32, (7, Sym("n")), readonly=True)
    for inner in (SEQ, VECTOR):
        i, k = Axis("i", 9), Axis("k", Sym("n"), inner)
        one, two = store(Y, i, reduce("sum", k, S[i] * 2.0)), store(Z, i, reduce("sum", k, short[i, k]))
        guarded = kernel("k", [short, Y, Z, S], For(i, (one, For(Axis("once", 1), (two,), i < 7))))
        for n in (1, 16, 21):
            check(guarded, [data(f32, (7, n), n), *[np.full(9, v, np.float32) for v in (0, 0, 3)]], {"n": n})


def test_folds_of_one_guard_share_a_loop() -> None:
    i, k = I[SEQ], Axis("k", Sym("n"))

    def loops(first: Expr, second: Expr) -> int:
        return Compiled(together(reduce("sum", k, X[i, k], first), reduce("sum", k, X[i, k] * 2.0, second))).text.count("= phi i64")

    assert loops(k < i + 3, k < i + 3) < loops(k < i + 3, k < i + 4)
