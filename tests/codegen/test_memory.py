"""Accesses: strides, gathers, masks at every remainder, lazy selects, checked indices. Arrays end at a forbidden page."""

from __future__ import annotations

import numpy as np
import pytest
from codegen_harness import Compiled, check

from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    PARALLEL,
    SEQ,
    UNROLL,
    VECTOR,
    Axis,
    AxisKind,
    Buffer,
    CheckedIndex,
    Expr,
    Sym,
    cast,
    const,
    maximum,
    minimum,
    reduce,
    select,
)
from trustformers_ir.codegen.kernel_ir.schedule import GUARD, Move, Split, Tag, apply
from trustformers_ir.ir.dtypes import DType

f32, i64 = DType.f32, DType.i64
N, M = Sym("n"), Sym("m")
KINDS = [SEQ, VECTOR]


@pytest.mark.parametrize("d", sorted(optable.SUPPORTED, key=str), ids=str)
def test_copies_of_every_length_and_dtype(d: DType) -> None:
    x, y = Buffer("x", d, (N,), readonly=True), Buffer("y", d, (N,))
    i = Axis("i", N, VECTOR)
    k = kernel("copy", [x, y], For(i, (store(y, i, x[i]),)))
    compiled = Compiled(k)
    rng = np.random.default_rng(0)
    for n in range(35):
        a = rng.integers(0, 2 if d is DType.bool else 100, n).astype(d.numpy)
        check(k, [a, np.zeros(n, d.numpy)], {"n": n}, compiled=compiled)


@pytest.mark.parametrize("extent", [1, 2, 3, 4, 8, 15, 16, 17, 32, 48, 64, 80, 100])
def test_static_vector_extents(extent: int) -> None:
    x, y = Buffer("x", f32, (3, extent), readonly=True), Buffer("y", f32, (3, extent))
    for row_kind in (SEQ, UNROLL, PARALLEL):
        r, i = Axis("r", 3, row_kind), Axis("i", extent, VECTOR)
        k = kernel("k", [x, y], *nest([r, i], store(y, (r, i), x[r, i] + 1.0)))
        check(k, [np.arange(3.0 * extent, dtype=np.float32).reshape(3, extent), np.zeros((3, extent), np.float32)])


@pytest.mark.parametrize("wide", [DType.i32, DType.i64, f32], ids=str)
@pytest.mark.parametrize("narrow", [DType.i8, DType.u16, DType.i32, DType.bf16, DType.f16], ids=str)
@pytest.mark.parametrize("extent", [17, 33, 49])
def test_one_lane_left_of_a_narrowing_store(wide: DType, narrow: DType, extent: int) -> None:
    """LLVM writes too many bytes where the mask is a constant of one lane (see ``Ops.opaque``)."""
    x, y, z = Buffer("x", wide, (N, extent), readonly=True), Buffer("y", narrow, (N, extent)), Buffer("z", narrow, (N, extent))
    r, i = Axis("r", N), Axis("i", extent, VECTOR)
    k = kernel("k", [x, y, z], *nest([r, i], store(y, (r, i), cast(x[r, i] + 1, narrow)), store(z, (r, i), cast(x[r, i], narrow))))
    a = np.arange(2 * extent).reshape(2, extent).astype(wide.numpy)
    check(k, [a, np.zeros((2, extent), narrow.numpy), np.zeros((2, extent), narrow.numpy)], {"n": 2})


def test_towers_of_selects_stay_small() -> None:
    """What both sides of a select need is computed once; else each level would double the code."""
    x, y, c = Buffer("x", f32, (N,), readonly=True), Buffer("y", f32, (N,)), Buffer("c", i64, (N,), readonly=True)
    i = Axis("i", N, VECTOR)
    sizes = []
    for depth in (6, 12):
        value = x[c[i]]  # an index from memory: the access obeys conditions
        for level in range(depth):
            value = select((c[i] >> level) & 1 > 0, value * 0.5, value + 1.0)
        k = kernel("k", [x, c, y], For(i, (store(y, i, value),)))
        compiled = Compiled(k)
        check(k, [np.arange(21, dtype=np.float32), np.arange(21)[::-1], np.zeros(21, np.float32)], {"n": 21}, compiled=compiled)
        sizes.append(len(compiled.text))
    assert sizes[1] < 3 * sizes[0]


def mapped(f: object, source: tuple[object, ...], kind: AxisKind) -> Kernel:
    """y[i, j] = x[f(i, j)]"""
    x, y = Buffer("x", f32, source, readonly=True), Buffer("y", f32, (M, N))  # type: ignore[arg-type]
    i, j = Axis("i", M), Axis("j", N, kind)
    return kernel("k", [x, y], *nest([i, j], store(y, (i, j), x[f(i, j)])))  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.value)
def test_index_maps(kind: AxisKind) -> None:
    cases: list[tuple[object, tuple[object, ...], tuple[int, ...]]] = [
        (lambda i, j: (j, i), (N, M), (21, 5)),  # transpose
        (lambda i, j: (i, N - 1 - j), (M, N), (5, 21)),  # reverse
        (lambda i, j: (i, j * 2 + 1), (M, N * 2), (5, 42)),  # every other
        (lambda i, j: (j // 3, j % 3), (N // 3, 3), (7, 3)),  # reshape
        (lambda i, j: (i,), (M,), (5,)),  # broadcast
        (lambda i, j: (const(0), j), (1, N), (1, 21)),
        (lambda i, j: (minimum(i * 2 + j, M + N - 1),), (M + N,), (26,)),
    ]
    for f, shape, concrete in cases:
        x = np.arange(float(np.prod(concrete)), dtype=np.float32).reshape(concrete)
        check(mapped(f, shape, kind), [x, np.zeros((5, 21), np.float32)], {"m": 5, "n": 21})


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.value)
def test_scatter_like_stores(kind: AxisKind) -> None:
    x, y = Buffer("x", f32, (M, N), readonly=True), Buffer("y", f32, (N, M))
    i, j = Axis("i", M), Axis("j", N, kind)
    for index in (lambda: (j, i), lambda: (N - 1 - j, i)):
        k = kernel("k", [x, y], *nest([i, j], store(y, index(), x[i, j])))
        check(k, [np.random.default_rng(0).random((5, 21), np.float32), np.zeros((21, 5), np.float32)], {"m": 5, "n": 21})


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.value)
def test_selects_are_lazy(kind: AxisKind) -> None:
    """Padding and concatenation read outside on the side not taken."""
    x, z, y = Buffer("x", f32, (N,), readonly=True), Buffer("z", f32, (M,), readonly=True), Buffer("y", f32, (N + M,))
    i = Axis("i", N + M, kind)
    joined = kernel("concat", [x, z, y], For(i, (store(y, i, select(i < N, x[i], z[i - N])),)))
    compiled = Compiled(joined)
    for n, m in ((0, 5), (5, 0), (17, 30), (1, 1), (40, 3), (0, 0)):
        rng = np.random.default_rng(0)
        arrays = [rng.random(n, np.float32), rng.random(m, np.float32), np.zeros(n + m, np.float32)]
        got = check(joined, arrays, {"n": n, "m": m}, compiled=compiled)[2]
        np.testing.assert_array_equal(got, np.concatenate(arrays[:2]))
    j = Axis("j", N + 8, kind)
    out = Buffer("out", f32, (N + 8,))
    padded = kernel("pad", [x, out], For(j, (store(out, j, select((j >= 3) & (j - 3 < N), x[j - 3], -1.0)),)))
    compiled = Compiled(padded)
    for n in (0, 1, 12, 30):
        a = np.random.default_rng(0).random(n, np.float32)
        got = check(padded, [a, np.zeros(n + 8, np.float32)], {"n": n}, compiled=compiled)[1]
        np.testing.assert_array_equal(got, np.pad(a, (3, 5), constant_values=-1))


def test_folds_under_a_select() -> None:
    """A window sum with padding: the fold's loads obey the condition, in tiles too."""
    x, y = Buffer("x", f32, (N,), readonly=True), Buffer("y", f32, (N,))
    for kind in (SEQ, VECTOR):
        i, w = Axis("i", N, kind), Axis("w", 5)
        at = i + w - 2
        inside = (at >= 0) & (at < N)
        k = kernel("k", [x, y], For(i, (store(y, i, reduce("sum", w, select(inside, x[at], 0.0))),)))
        whole = select(i > 3, reduce("max", Axis("v", 4), x[i - 4]), 7.0)
        k2 = kernel("k", [x, y], For(i, (store(y, i, whole),)))
        for n in (1, 2, 20, 37):
            check(k, [np.random.default_rng(0).random(n, np.float32), np.zeros(n, np.float32)], {"n": n})
            check(k2, [np.random.default_rng(0).random(n, np.float32), np.zeros(n, np.float32)], {"n": n})


def gather(kind: AxisKind, index: object = None) -> Kernel:
    table, ids, y = Buffer("t", f32, (M, 4), readonly=True), Buffer("ids", i64, (N,), readonly=True), Buffer("y", f32, (N, 4))
    i, c = Axis("i", N, kind), Axis("c", 4)
    order = [i, c] if kind is SEQ else [c, i]
    return kernel("gather", [table, ids, y], *nest(order, store(y, (i, c), table[CheckedIndex(ids[i], M, 6), c])))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.value)
def test_checked_indices(kind: AxisKind) -> None:
    compiled = Compiled(gather(kind))
    table = np.random.default_rng(0).random((9, 4), np.float32)
    good = np.random.default_rng(0).integers(-9, 9, 37)
    mine = [table, good, np.zeros((37, 4), np.float32)]
    assert not compiled(mine, {"n": 37, "m": 9}).any()
    np.testing.assert_array_equal(mine[2], table[good])
    for wrong in (9, -10, 2**62, -(2**63)):
        bad = good.copy()
        bad[33] = wrong
        status = compiled([table, bad, np.zeros((37, 4), np.float32)], {"n": 37, "m": 9})
        assert status.tolist() == [7, wrong]
        check(gather(kind), [table, bad, np.zeros((37, 4), np.float32)], {"n": 37, "m": 9}, compiled=compiled)
    for ids in (good, good % 9, good * 0):  # into nothing, index 0 is wrong as well
        empty = [np.zeros((0, 4), np.float32), ids, np.ones((37, 4), np.float32)]
        assert compiled(empty, {"n": 37, "m": 0}).tolist() == [7, ids[0]]
        check(gather(kind), empty, {"n": 37, "m": 0}, compiled=compiled)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.value)
def test_stores_into_nothing_are_reported_and_skipped(kind: AxisKind) -> None:
    """A checked index, also below another load, of a store into a dimension of size 0."""
    y, ids, t = Buffer("y", f32, (M, N)), Buffer("ids", i64, (N,), readonly=True), Buffer("t", i64, (M,), readonly=True)
    i = Axis("i", N, kind)
    for at in (CheckedIndex(ids[i], M, 6), CheckedIndex(t[CheckedIndex(ids[i], M, 6)], M + 1, 7)):
        k = kernel("k", [y, ids, t], For(i, (store(y, (at, i), cast(i, f32)),)))
        compiled = Compiled(k)
        for m in (0, 1, 5):
            rng = np.random.default_rng(m)
            index = rng.integers(0, max(m, 1), 37)
            arrays = [np.zeros((m, 37), np.float32), index, rng.integers(0, max(m, 1), m)]
            check(k, arrays, {"n": 37, "m": m}, compiled=compiled)
            assert compiled(arrays, {"n": 37, "m": m})[0] == (0 if m else 7)


def test_checks_obey_conditions() -> None:
    """A bad index that is not used reports nothing."""
    table, ids, y = Buffer("t", f32, (4,), readonly=True), Buffer("ids", i64, (N,), readonly=True), Buffer("y", f32, (N,))
    for kind in KINDS:
        i = Axis("i", N, kind)
        picked = select(ids[i] >= 0, table[CheckedIndex(maximum(ids[i], -100), const(4), 0)], 0.0)
        k = kernel("k", [table, ids, y], For(i, (store(y, i, picked),)))
        ids_ = np.array([0, 3, -77, 2] * 6)
        status = Compiled(k)([np.ones(4, np.float32), ids_, np.zeros(24, np.float32)], {"n": 24})
        assert not status.any()


def test_guards_mask_and_skip() -> None:
    y = Buffer("y", f32, (M, N))
    x = Buffer("x", f32, (M, N), readonly=True)
    for i_kind in (SEQ, PARALLEL):
        for j_kind in KINDS:
            i, j = Axis("i", M, i_kind), Axis("j", N, j_kind)
            k = kernel("k", [x, y], For(i, (For(j, (store(y, (i, j), x[i, j] * 2.0),), j <= i + 3),), i % 2 < 1))
            a = np.random.default_rng(0).random((6, 30), np.float32)
            check(k, [a, np.zeros((6, 30), np.float32)], {"m": 6, "n": 30})


def test_triangular_extents() -> None:
    """Causal loops: an inner extent that depends on the outer axis."""
    x, y = Buffer("x", f32, (M, M), readonly=True), Buffer("y", f32, (M,))
    for kind in KINDS:
        i = Axis("i", M, PARALLEL)
        k = Axis("k", i + 1, kind)
        causal = kernel("k", [x, y], For(i, (store(y, i, reduce("sum", k, x[i, k])),)))
        check(causal, [np.random.default_rng(0).random((40, 40), np.float32), np.zeros(40, np.float32)], {"m": 40}, workers=2)


def test_in_place() -> None:
    x = Buffer("x", f32, (N,), noalias=False)
    i = Axis("i", N, VECTOR)
    e: Expr = x[i] * x[i] + 1.0
    k = kernel("k", [x], For(i, (store(x, i, e), store(x, i, x[i] + 1.0))))
    check(k, [np.random.default_rng(0).random(37, np.float32)], {"n": 37})


def test_rows_of_narrow_floats_compute_in_f32() -> None:
    for d in (DType.f16, DType.bf16):
        x, y = Buffer("x", d, (M, N), readonly=True), Buffer("y", d, (M, N))
        i, j, a = Axis("i", M, PARALLEL), Axis("j", N, VECTOR), Axis("a", N, VECTOR)
        mean = reduce("sum", a, cast(x[i, a], f32)) / 21.0
        k = kernel("k", [x, y], *nest([i, j], store(y, (i, j), cast(cast(x[i, j], f32) - mean, d))))
        check(k, [np.random.default_rng(0).random((3, 21)).astype(d.numpy), np.zeros((3, 21), d.numpy)], {"m": 3, "n": 21})


@pytest.mark.parametrize("d", [f32, DType.f16, DType.f64, DType.i8, DType.bool], ids=str)
def test_squares_are_turned_round_in_registers(d: DType) -> None:
    """A strided read in a tile whose 16 UNROLL points are neighbours: vectors along them, shuffled, instead of gathers."""
    rows, columns = N, 32
    x, y = Buffer("x", d, (rows, columns), readonly=True), Buffer("y", d, (columns, rows))
    block, group, c, lane = Axis("block", rows // 16, SEQ), Axis("group", 2, SEQ), Axis("c", 16, UNROLL), Axis("lane", 16, VECTOR)
    e, r = group * 16 + c, block * 16 + lane
    k = kernel("turn", [x, y], *nest([block, group, c, lane], store(y, (e, r), x[r, e])))
    compiled = Compiled(k)
    assert "gather" not in compiled.text
    data = np.random.default_rng(0).integers(0, 2 if d is DType.bool else 100, (48, columns)).astype(d.numpy)
    (_, got) = check(k, [data, np.zeros((columns, 48), d.numpy)], {"n": 48}, compiled=compiled)
    assert (got == data.T).all()


def test_repeated_rows_are_turned_round_as_well() -> None:
    """The lanes need not lie on a line: here rows past the end repeat the last one."""
    x, y = Buffer("x", f32, (N, 16), readonly=True), Buffer("y", f32, (16, 16))
    c, lane = Axis("c", 16, UNROLL), Axis("lane", 16, VECTOR)
    k = kernel("turn", [x, y], *nest([c, lane], store(y, (c, lane), x[minimum(lane, N - 1), c])))
    data = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    (_, got) = check(k, [data, np.zeros((16, 16), np.float32)], {"n": 5})
    assert (got == data[np.minimum(np.arange(16), 4)].T).all()


@pytest.mark.parametrize("columns", [4, 17, 20, 33])
@pytest.mark.parametrize("moves", [(), (Tag("k.o", UNROLL),)], ids=["loops", "unrolled"])
def test_squares_turned_round_stay_inside_where_a_fold_is_guarded(columns: int, moves: tuple[Move, ...]) -> None:
    """A strided read of 16 rows is done 16 columns at a time: where a guard leaves out columns, those are not there to be read."""
    x, y = Buffer("x", f32, (16, columns), readonly=True), Buffer("y", f32, (16,))
    j, k = Axis("j", 16, VECTOR), Axis("k", columns)
    naive = kernel("k", [x, y], For(j, (store(y, j, reduce("sum", k, x[j, k] * x[j, k])),)))
    scheduled = apply(naive, (Split("k", 16, GUARD), Tag("k.i", UNROLL), *moves))
    check(scheduled, [np.random.default_rng(0).random((16, columns), np.float32), np.zeros(16, np.float32)], reference=naive)


@pytest.mark.parametrize("columns", [4, 17, 40])
def test_squares_turned_round_stay_inside_where_a_guard_ends_a_loop(columns: int) -> None:
    """Here the guard is the end of the inner loop: another one at each of the 16 places of the outer."""
    x, y = Buffer("x", f32, (16, N), readonly=True), Buffer("y", f32, (16,))
    j, a, b = Axis("j", 16, VECTOR), Axis("a", 16, UNROLL), Axis("b", N)
    k = kernel("k", [x, y], For(j, (store(y, j, reduce("sum", [a, b], x[j, a + b], guard=a + b < N)),)))
    check(k, [np.random.default_rng(0).random((16, columns), np.float32), np.zeros(16, np.float32)], {"n": columns})


@pytest.mark.parametrize("columns", [4, 15, 16])
def test_squares_turned_round_stay_inside_where_a_select_is_decided(columns: int) -> None:
    """At the points of a tile where a condition is known to hold, it says nothing of the other points."""
    x, y = Buffer("x", f32, (16, columns), readonly=True), Buffer("y", f32, (16, 16))
    i, j = Axis("i", 16, UNROLL), Axis("j", 16, VECTOR)
    padded = kernel("k", [x, y], *nest([i, j], store(y, (i, j), select(i < columns, x[j, i], 0.0))))
    a = np.random.default_rng(0).random((16, columns), np.float32)
    got = check(padded, [a, np.zeros((16, 16), np.float32)])[1]
    np.testing.assert_array_equal(got, np.pad(a, ((0, 0), (0, 16 - columns))).T)


@pytest.mark.parametrize("inner", KINDS, ids=lambda k: k.value)
def test_folds_check_nothing_where_a_select_is_decided_against_them(inner: AxisKind) -> None:
    """A fold is computed for all points of a tile at once, but not for those where a select leaves it out: wrong indices there are no errors."""
    table, ids, y = Buffer("t", f32, (M,), readonly=True), Buffer("ids", i64, (16, N), readonly=True), Buffer("y", f32, (16,))
    i, k = Axis("i", 16, UNROLL), Axis("k", N, inner)
    some = kernel("k", [table, ids, y], For(i, (store(y, i, select(i < 4, reduce("sum", k, table[CheckedIndex(ids[i, k], M, 6)]), 0.5)),)))
    compiled = Compiled(some)
    for n in (1, 16, 40):
        good = np.random.default_rng(0).integers(0, 9, (16, n))
        good[4:] += 9
        arrays = [np.random.default_rng(0).random(9, np.float32), good, np.zeros(16, np.float32)]
        check(some, arrays, {"n": n, "m": 9}, compiled=compiled)
        assert not compiled(arrays, {"n": n, "m": 9}).any()
