"""A thousand random schedules: whatever moves are legal, compiled code gives the very bits of the naive kernel.

A schedule is drawn move by move: any move on any axis with any parameter is tried, and what ``apply`` refuses is left out. So the checks
themselves are asked as well: a move that is let through and changes a bit is a failure. A failure names the nest and the moves.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from codegen_harness import guarded, same_bits

from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, nest, store, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import (
    DOT,
    PARALLEL,
    SCRATCH,
    SEQ,
    UNROLL,
    VECTOR,
    Axis,
    Buffer,
    Sym,
    binary,
    cast,
    const,
    maximum,
    minimum,
    reduce,
    select,
    unary,
)
from trustformers_ir.codegen.kernel_ir.schedule import (
    CLAMP,
    GUARD,
    Chunk,
    Collapse,
    Move,
    Prefetch,
    Reorder,
    ScheduleError,
    Split,
    Stage,
    Tag,
    Walk,
    apply,
    axes_of,
)
from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import host
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime.native import link

f32, i32, i64 = DType.f32, DType.i32, DType.i64
SIZES = (0, 1, 5, 13)  # of the symbolic dim m; the first one is there for loops without turns
WORKERS = 3
BATCH = 25  # schedules that share one LLVM module
MOST_COPIES = 128  # of a statement, by UNROLL loops
MOST_MOVES = 12


# --- naive nests ---------------------------------------------------------------------------------------------------------------------------


def product() -> Kernel:
    """``relu(A B + bias)`` over panels of 16 columns, the last one ragged."""
    m, columns, depth = Sym("m"), 37, 9
    a, b = Buffer("A", f32, (m, depth), readonly=True), Buffer("B", f32, (3, depth, 16), readonly=True)
    bias, c = Buffer("bias", f32, (columns,), readonly=True), Buffer("C", f32, (m, columns))
    i, j, k = Axis("i", m), Axis("j", columns), Axis("k", depth)
    value = maximum(reduce("sum", k, a[i, k] * b[j // 16, k, j % 16]) + bias[j], 0.0)
    return kernel("product", [a, b, bias, c], *nest([i, j], store(c, (i, j), value)))


def integer_product() -> Kernel:
    """``u8 x i8`` summed in i32 and scaled, over panels of 16 columns with four k beside each other."""
    m, columns, depth = Sym("m"), 20, 14
    a, b = Buffer("A", DType.u8, (m, depth), readonly=True), Buffer("B", DType.i8, (2, 4, 16, 4), readonly=True)
    s, c = Buffer("scale", f32, (columns,), readonly=True), Buffer("C", f32, (m, columns))
    i, j, k = Axis("i", m), Axis("j", columns), Axis("k", depth)
    total = reduce("sum", k, cast(a[i, k], i32) * cast(b[j // 16, k // 4, j % 16, k % 4], i32))
    return kernel("integers", [a, b, s, c], *nest([i, j], store(c, (i, j), cast(total, f32) * s[j])))


def softmax() -> Kernel:
    """Rows of a softmax: two folds of 16 lanes, recomputed where the schedule wills."""
    m, columns = Sym("m"), 21
    x, y = Buffer("x", f32, (m, columns), readonly=True), Buffer("y", f32, (m, columns))
    i, j, t, e = Axis("i", m), Axis("j", columns), Axis("t", columns, VECTOR), Axis("e", columns, VECTOR)
    top = reduce("max", t, x[i, t])
    total = reduce("sum", e, unary("exp", x[i, e] - top))
    return kernel("softmax", [x, y], *nest([i, j], store(y, (i, j), unary("exp", x[i, j] - top) / total)))


def attention() -> Kernel:
    """Scores of one head into scratch, their largest, the weighted sum: statements after one another in one loop, a causal guard."""
    m, features, keys = Sym("m"), 6, 7
    q, k, v = (Buffer(n, f32, (rows, features), readonly=True) for n, rows in (("q", m), ("k", keys), ("v", keys)))
    s, out = Buffer("s", f32, (keys,), space=SCRATCH), Buffer("out", f32, (m, features))
    i, j, e, x, r = Axis("i", m), Axis("j", keys), Axis("e", features), Axis("x", features), Axis("r", keys)
    score = reduce("sum", x, q[i, x] * k[j, x])
    masked = select(j <= i, score, const(-math.inf, f32))
    weighted = reduce("sum", r, s[r] * v[r, e], r <= i)
    body = (For(j, (store(s, (j,), unary("exp", masked)),)), For(e, (store(out, (i, e), weighted),)))
    return kernel("attention", [q, k, v, out], For(i, body))


def pointwise() -> Kernel:
    """A transposed read, a broadcast and a choice by position; two results."""
    m, a, b = Sym("m"), 5, 18
    x, y = Buffer("x", f32, (b, m, a), readonly=True), Buffer("y", f32, (b,), readonly=True)
    u, w = Buffer("u", f32, (m, a, b)), Buffer("w", i64, (m, a, b))
    i, j, k = Axis("i", m), Axis("j", a), Axis("k", b)
    chosen = select((i + j) % 3 < 2, x[k, i, j] * y[k], binary("div", y[k], maximum(x[k, i, j], 0.5)))
    return kernel("pointwise", [x, y, u, w], *nest([i, j, k], store(u, (i, j, k), chosen), store(w, (i, j, k), i * 100 + minimum(j, k))))


def extremes() -> Kernel:
    """Where the largest element of every column stands, and a guarded sum of the column in f64."""
    m, columns = Sym("m"), 19
    x = Buffer("x", f32, (m, columns), readonly=True)
    at, total = Buffer("at", i64, (columns,)), Buffer("total", DType.f64, (columns,))
    j, r, g = Axis("j", columns), Axis("r", m), Axis("g", m)
    even = reduce("sum", g, cast(x[g, j], DType.f64), g % 2 < 1)
    return kernel("extremes", [x, at, total], *nest([j], store(at, (j,), reduce("argmax", r, x[r, j])), store(total, (j,), even)))


NESTS: dict[str, Callable[[], Kernel]] = {f().name: f for f in (product, integer_product, softmax, attention, pointwise, extremes)}


#: moves that half of a nest's schedules begin with: chance alone would hardly find the way to the tiles that matter
STARTS: dict[str, tuple[Move, ...]] = {
    "product": (Split("i", 4, CLAMP), Split("j", 32), Split("j.i", 16), Reorder(("i.o", "j.o", "i.i", "j.i.o", "j.i.i")), Tag("j.i.i", VECTOR)),
    "integers": (Split("k", 4), Tag("k.i", DOT), Split("j", 16), Tag("j.i", VECTOR)),
}


# --- random moves --------------------------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, current: Kernel) -> Move:
    """Any move on any axis. Most are legal."""
    axes = axes_of(current)
    loops = [s.axis for s in walk_statements(current.body) if isinstance(s, For)]
    axis = axes[rng.integers(len(axes))].name
    kind = rng.integers(12)
    if kind < 3:
        return Split(axis, int(rng.choice([1, 2, 3, 4, 5, 8, 16])), GUARD if rng.random() < 0.6 else CLAMP)
    if kind == 3:
        return Chunk(axis, int(rng.integers(1, 9)))
    if kind < 6:
        count = int(rng.integers(2, max(len(loops), 2) + 1))
        return Reorder(tuple(a.name for a in rng.permutation(np.array(loops, dtype=object))[:count]))
    if kind == 6 and len(loops) > 1:
        at = int(rng.integers(len(loops) - 1))
        return Collapse((loops[at].name, loops[at + 1].name))
    if kind == 8:
        return Stage(axis)
    if kind == 9:
        return Walk(axis, int(rng.integers(1, 5)))
    if kind == 7:
        among = axis if rng.random() < 0.7 else ""
        return Prefetch(current.params[rng.integers(len(current.params))].name, int(rng.integers(1, 1000)), among, int(rng.integers(3)) * 50)
    return Tag(axis, (SEQ, UNROLL, VECTOR, PARALLEL, DOT)[rng.integers(5)])


def random_schedule(rng: np.random.Generator, naive: Kernel, refused: Counter[str]) -> tuple[Kernel, list[Move]]:
    """The kernel after some legal moves, and the moves. Refusals are counted by the first words of their reason."""
    moves = list(STARTS.get(naive.name, ())) if rng.random() < 0.5 else []
    current = apply(naive, moves)
    for _ in range(int(rng.integers(2, MOST_MOVES + 1))):
        move = draw(rng, current)
        try:
            after = apply(current, (move,))
        except ScheduleError:
            refused[type(move).__name__] += 1
            continue
        if math.prod(a.static_extent or 1 for a in axes_of(after) if a.kind is UNROLL) <= MOST_COPIES:
            current = after
            moves.append(move)
    return current, moves


def inputs(naive: Kernel, m: int) -> list[np.ndarray]:
    """An array per buffer; what will be written holds garbage."""
    rng = np.random.default_rng(m)
    arrays = []
    for b in naive.params:
        shape = [m if isinstance(d, Sym) else d.value for d in b.shape]  # type: ignore[attr-defined]
        numbers = rng.integers(0 if b.dtype is DType.u8 else -100, 100, shape) if b.dtype.is_integer else rng.normal(size=shape)
        arrays.append(np.asarray(numbers).astype(b.dtype.numpy))
    return arrays


def run_all(naive: Kernel, schedules: Sequence[tuple[Kernel, list[Move]]]) -> None:
    names = [f"k{n}" for n in range(len(schedules))]
    text = module_text([emit_kernel(k, ["m"], name, features=host().features) for name, (k, _) in zip(names, schedules, strict=True)])
    library = link([compile_object(text, host())], names)
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    for m in SIZES:
        given = inputs(naive, m)
        expected = [a.copy() for a in given]
        interpret(naive, expected, {"m": m})
        for name, (_, moves) in zip(names, schedules, strict=True):
            function = library.function(name, None, pointer, pointer, word, word, pointer, pointer)
            mine = [guarded(a) for a in given]
            pointers = (ctypes.c_void_p * len(mine))(*[a.ctypes.data for a in mine])
            scratch, status = np.full(1 << 16, 0xA5, np.uint8), np.zeros(2, np.int64)
            for worker in range(WORKERS):
                function(pointers, (ctypes.c_int64 * 1)(m), worker, WORKERS, scratch.ctypes.data + -scratch.ctypes.data % 64, status.ctypes.data)
            same = all(same_bits(a, b) for a, b in zip(mine, expected, strict=True))
            assert same and not status.any(), f"{naive.name} at m = {m} has other bits after {moves}"


def try_schedules(nest_name: str, first: int, count: int) -> None:
    """``count`` schedules that differ from each other."""
    naive = NESTS[nest_name]()
    refused: Counter[str] = Counter()
    distinct: dict[tuple[str, ...], tuple[Kernel, list[Move]]] = {}
    for n in range(first, first + 3 * count):
        if len(distinct) < count:
            made = random_schedule(np.random.default_rng([n, 7]), naive, refused)
            distinct.setdefault(tuple(map(repr, made[1])), made)
    found = list(distinct.values())
    assert len(found) == count, "schedules are hardly random"
    for start in range(0, count, BATCH):
        run_all(naive, found[start : start + BATCH])
    assert {"Reorder", "Tag"} <= set(refused), "hardly anything was refused: are all moves checked?"


@pytest.mark.parametrize("nest_name", NESTS)
def test_random_schedules_have_the_naive_bits(nest_name: str) -> None:
    try_schedules(nest_name, 0, BATCH)


@pytest.mark.long
@pytest.mark.parametrize("nest_name", NESTS)
def test_a_thousand_random_schedules_have_the_naive_bits(nest_name: str) -> None:
    try_schedules(nest_name, BATCH, 175)
