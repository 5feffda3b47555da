"""One broken kernel for invariants K1..K10 and K13."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    PARALLEL,
    SCRATCH,
    SEQ,
    TILE,
    UNROLL,
    VECTOR,
    WALK,
    Axis,
    AxisKind,
    Buffer,
    Sym,
    cast,
    const,
    reduce,
)
from trustformers_ir.codegen.kernel_ir.verify import KernelError, verify
from trustformers_ir.ir.dtypes import DType

f32 = DType.f32
N = Sym("n")
X = Buffer("x", f32, (N, 8), None, readonly=True)
Y = Buffer("y", f32, (N, 8))
I64 = Buffer("ids", DType.i64, (N,), readonly=True)


def axes(*kinds: AxisKind, extent: object = 8) -> list[Axis]:
    return [Axis(f"a{n}", extent, k) for n, k in enumerate(kinds)]  # type: ignore[arg-type]


def loose() -> Kernel:
    i, j = axes(SEQ, SEQ)
    return kernel("k", [X, Y], For(i, (store(Y, (i, j), X[i, 0]),)))


def twice() -> Kernel:
    (i,) = axes(SEQ)
    return kernel("k", [X, Y], For(i, (For(i, (store(Y, (i, 0), X[i, 0]),)),)))


def stranger() -> Kernel:
    (i,) = axes(SEQ)
    return kernel("k", [Y], For(i, (store(Y, (i, 0), X[i, 0]),)))


def namesake() -> Kernel:
    (i,) = axes(SEQ)
    other = Buffer("x", f32, (N, 4))
    return kernel("k", [X, other, Y], For(i, (store(Y, (i, 0), X[i, 0]),)))


def readonly() -> Kernel:
    (i,) = axes(SEQ)
    return kernel("k", [X], For(i, (store(X, (i, 0), X[i, 0]),)))


def inner_parallel() -> Kernel:
    i, j = axes(SEQ, PARALLEL)
    return kernel("k", [X, Y], For(i, (For(j, (store(Y, (i, j), X[i, j]),)),)))


def parallel_fold() -> Kernel:
    i, j = axes(SEQ, PARALLEL)
    return kernel("k", [X, Y], For(i, (store(Y, (i, 0), reduce("sum", j, X[i, j])),)))


def long_unroll() -> Kernel:
    (i,) = axes(UNROLL, extent=N)
    return kernel("k", [X, Y], For(i, (store(Y, (i, 0), X[i, 0]),)))


def loop_in_vector() -> Kernel:
    i, j = axes(VECTOR, SEQ)
    return kernel("k", [X, Y], For(i, (For(j, (store(Y, (i, j), X[i, j]),)),)))


def vector_in_vector() -> Kernel:
    i, j = axes(VECTOR, VECTOR)
    return kernel("k", [X, Y], For(i, (For(j, (store(Y, (i, j), X[i, j]),)),)))


def store_beside_lanes() -> Kernel:
    i, j = axes(SEQ, VECTOR)
    return kernel("k", [X, Y], For(i, (For(j, (store(Y, (i, 0), X[i, j]),)),)))


def lanes_not_last() -> Kernel:
    i, j, k = axes(SEQ, VECTOR, SEQ)
    return kernel("k", [X, Y], For(i, (store(Y, (i, 0), reduce("sum", [j, k], X[j, k])),)))


def argmax_of_two() -> Kernel:
    i, j, k = axes(SEQ, SEQ, SEQ)
    return kernel("k", [X, Y], For(i, (store(Y, (i, 0), cast(reduce("argmax", [j, k], X[j, k]), f32)),)))


def shifted_in_place() -> Kernel:
    i, j = axes(SEQ, VECTOR, extent=7)
    return kernel("k", [Y], For(i, (For(j, (store(Y, (i, j), Y[i, j + 1]),)),)))


def loaded_extent() -> Kernel:
    i = Axis("i", I64[0])
    return kernel("k", [I64, Y], For(i, (store(Y, (i, 0), const(0.0, f32)),)))


def race() -> Kernel:
    i, j = axes(PARALLEL, SEQ)
    return kernel("k", [X, Y], For(i, (For(j, (store(Y, (0, j), X[i, j]),)),)))


def neighbour() -> Kernel:
    (i,) = axes(PARALLEL, extent=7)
    return kernel("k", [Y], For(i, (store(Y, (i, 0), Y[i + 1, 0]),)))


def walk_of_no_program() -> Kernel:
    (i,) = axes(WALK)
    return kernel("k", [X, Y], For(i, (store(Y, (i, 0), X[i, 0]),)))


def walk_beside_something() -> Kernel:
    p, i, j = axes(PARALLEL, WALK, SEQ)
    walk, beside = For(i, (store(Y, (p, i), X[p, i]),)), For(j, (store(Y, (p, j), X[p, j]),))
    return kernel("k", [X, Y], For(p, (walk, beside)))


def walk_with_a_race() -> Kernel:
    p, i = axes(PARALLEL, WALK)
    return kernel("k", [X, Y], For(p, (For(i, (store(Y, (p, 0), X[p, i]),)),)))


def walk_of_a_fold() -> Kernel:
    p, i = axes(PARALLEL, WALK)
    return kernel("k", [X, Y], For(p, (store(Y, (p, 0), reduce("sum", i, X[p, i])),)))


def scratch_parameter() -> Kernel:
    (i,) = axes(SEQ)
    s = Buffer("s", f32, (8, 8), space=SCRATCH)
    return kernel("k", [X, s], For(i, (store(s, (i, 0), X[i, 0]),)))


@pytest.mark.parametrize(
    ("rule", "build"),
    [
        ("K1", loose),
        ("K1", twice),
        ("K2", stranger),
        ("K2", namesake),
        ("K2", scratch_parameter),
        ("K3", readonly),
        ("K4", inner_parallel),
        ("K4", parallel_fold),
        ("K5", long_unroll),
        ("K6", loop_in_vector),
        ("K6", vector_in_vector),
        ("K6", store_beside_lanes),
        ("K7", lanes_not_last),
        ("K7", argmax_of_two),
        ("K8", shifted_in_place),
        ("K9", loaded_extent),
        ("K10", race),
        ("K10", neighbour),
        ("K10", walk_with_a_race),
        ("K13", walk_of_no_program),
        ("K13", walk_beside_something),
        ("K13", walk_of_a_fold),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_each_rule_refuses(rule: str, build: Callable[[], Kernel]) -> None:
    with pytest.raises(KernelError) as caught:
        verify(build())
    assert caught.value.rule == rule


@pytest.mark.parametrize("kind", [SEQ, TILE])
def test_a_loop_beside_blocks_may_run_as_long_as_was_found_out_before(kind: AxisKind) -> None:
    """The longest of what the rows need, in a scratch buffer of one element (K9)."""
    longest, i, x = Buffer("longest", DType.i64, (), space=SCRATCH), Axis("i", 8, TILE), Axis("x", 8, kind)
    found = store(longest, (), reduce("max", (i,), I64[i]))
    step = Axis("step", longest[()], SEQ)
    loops = For(step, (For(x, (store(Y, (step, x), X[step, x]),)),))
    with contextlib.nullcontext() if kind is TILE else pytest.raises(KernelError, match="K9"):
        verify(Kernel("k", (X, Y, I64), (found, loops)))


def test_types_are_checked_when_a_node_is_built() -> None:
    h = Buffer("h", DType.f16, (4,))
    i = Axis("i", 4)
    with pytest.raises(TypeError, match="cast first"):
        h[i] + h[i]
    with pytest.raises(TypeError, match="one dtype"):
        X[i, 0] + cast(X[i, 0], DType.f64)
    with pytest.raises(TypeError, match="rank"):
        X[i]
    with pytest.raises(TypeError, match="truth"):
        bool(i < 3)
    with pytest.raises(TypeError, match="cast first"):
        store(h, i, X[i, 0])
    with pytest.raises(TypeError, match="complex"):
        Buffer("c", DType.c64, (4,))
