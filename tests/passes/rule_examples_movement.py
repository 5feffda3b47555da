"""Graphs on which the rules of data movement and reductions fire, and graphs on which they must not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rule_harness import Example, Graph

from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dims import Dim, SymbolFact, product
from trustformers_ir.ir.dtypes import ANY, BOOL, COMPLEXES, FLOATS, INTS, NUMERIC, REAL, DType
from trustformers_ir.ir.ops import (
    Add,
    ArgMax,
    ArgMin,
    Atan2,
    Concat,
    CumProd,
    CumSum,
    Div,
    Embedding,
    Expand,
    Flip,
    Gather,
    GatherElements,
    Iota,
    LogSoftmax,
    Mul,
    Pad,
    PadMode,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    Reshape,
    Select,
    Slice,
    Softmax,
    Sub,
    TopK,
    Transpose,
)


def permutation(g: Graph, rank: int, sort: bool | None = None) -> tuple[int, ...]:
    """A random order of the axes; ``sort`` False: not the identity."""
    while True:
        perm = tuple(int(p) for p in g.rng.permutation(rank))
        if sort is not False or rank < 2 or list(perm) != sorted(perm):
            return perm


def regrouped(g: Graph, x: Value) -> Value:
    """x under another shape with the same elements."""
    shape = list(x.type.shape)
    form = g.pick(["flat", "ones", "front"])
    if form == "flat":
        return g(Reshape((product(shape),)), x)
    if form == "ones":
        shape.insert(int(g.rng.integers(len(shape) + 1)), 1)
        return g(Reshape(tuple(shape)), x)
    return g(Reshape((1, *shape)), x)


def with_ones(g: Graph, rank: int = 3, axis: int | None = None) -> tuple[Dim, ...]:
    """A shape with an axis of size 1."""
    shape = list(g.shape(rank))
    shape[int(g.rng.integers(rank)) if axis is None else axis] = 1
    return tuple(shape)


def expanded(g: Graph, shape: Sequence[Any], dtype: Any = ANY) -> tuple[Value, tuple[Dim, ...]]:
    """An argument, and a larger shape to which it expands."""
    x = g.arg(dtype, shape)
    target = [g.size() if d == 1 else d for d in x.type.shape]
    if g.coin():
        target.insert(0, g.size())
    return x, tuple(target)


def twice_expanded(g: Graph) -> Value:
    x, middle = expanded(g, with_ones(g))
    once = g(Expand(middle), x)
    return g(Expand((g.size(), *middle)), once)


def moved_ones(g: Graph) -> Value:
    """A transpose that moves nothing but axes of size 1."""
    shape = [1, g.size(), 1, g.size(), 1]
    longer = [1, 3]
    order: list[int] = [int(i) for i in g.rng.permutation([0, 2, 4])]
    for axis in longer:
        order.insert(int(g.rng.integers(order.index(1) + 1 if axis == 3 else 0, len(order) + 1)), axis)
    return g(Transpose(tuple(order)), g.arg(ANY, shape))


def one_symbol(g: Graph) -> Value:
    """The axis that moves has a symbolic size which is known to be 1."""
    one = g.symbol("one")
    g.module.facts.declare("one", SymbolFact(1, 1))
    g.dims["one"] = 1
    return g(Transpose((1, 2, 0)), g.arg(ANY, (one, 1, g.size())))


def one_element(g: Graph) -> Value:
    """A movement of one element that was repeated."""
    x = g.arg(ANY, (1,) * int(g.rng.integers(0, 3)))
    n = g.symbol("n")
    repeated = g(Expand((n, 4, 3)), x)
    op = g.pick([Reshape((12, n)), Transpose((2, 0, 1)), Slice(1, 1, 3), Flip(0), Reshape((n, 12)), Slice(2, 0, 3, 2)])
    return g(op, repeated)


def broadcast_anyway(g: Graph) -> Value:
    x, target = expanded(g, with_ones(g), FLOATS)
    y = g.arg(x.type.dtype, target)
    wide = g(Expand(target), x)
    op = g.pick([Add(), Sub(), Div(), Mul(), Atan2()])
    return g(op, wide, y) if g.coin() else g(op, y, wide)


def select_anyway(g: Graph) -> Value:
    c, target = expanded(g, with_ones(g), BOOL)
    x = g.arg(ANY, target)
    return g(Select(), g(Expand(target), c), x, g.arg(x.type.dtype, (1,)))


def flipped(g: Graph, axis: int, again: int | None = None) -> Value:
    value = g(Flip(axis), g.arg(ANY, g.shape(3)))
    return value if again is None else g(Flip(again), value)


def negative_axis(g: Graph) -> Any:
    x = g.arg(REAL, (3, 4, 5))
    y = g.arg(FLOATS, (3, 4, 5))
    axis = -int(g.rng.integers(1, 4))
    indices = g.arg(DType.i64, (3, 4, 5), (0, 2))
    build = g.pick(
        [
            lambda: g(Concat(axis), x, x),
            lambda: g(Slice(axis, 1, 2), x),
            lambda: g(Flip(axis), x),
            lambda: g(Gather(axis), x, indices),
            lambda: g(GatherElements(axis), x, indices),
            lambda: g(Softmax(axis), y),
            lambda: g(LogSoftmax(axis), y),
            lambda: g(ArgMax(axis), x),
            lambda: g(CumSum(axis), x),
            lambda: g.build.create(TopK(2, axis), x).results,
        ]
    )
    return build()


# --- slices ------------------------------------------------------------------------------------------------------------------------


def cut(g: Graph, x: Value, axis: int) -> Value:
    """A random slice along an axis of constant size."""
    size = x.type.shape[axis]
    assert isinstance(size, int)
    start, stop = sorted(int(v) for v in g.rng.integers(0, size + 1, 2))
    return g(Slice(axis - len(x.type.shape) if g.coin() else axis, start, stop, int(g.rng.integers(1, 4))), x)


def cut_twice(g: Graph) -> Value:
    shape = [g.size(), 11, 7]
    axis = g.pick([1, 2])
    return cut(g, cut(g, g.arg(ANY, shape), axis), axis)


def symbolic_cut_twice(g: Graph) -> Value:
    n = g.symbol("n")
    x = g.arg(ANY, (n + 5, 2))
    return g(Slice(0, 1, n + 1, g.pick([1, 2])), g(Slice(0, 2, n + 4), x))


def cut_part(g: Graph, inside: bool = True) -> Value:
    """A slice of a concat of parts of sizes 3, n, 4."""
    n, m = g.symbol("n"), g.size()
    dtype = g.pick(ANY)
    parts = [g.arg(dtype, (m, d)) for d in (3, n, 4)]
    joined = g(Concat(g.pick([1, -1])), *parts)
    ranges: list[tuple[Dim, Dim]] = [(0, 3), (1, 2), (3, n + 3), (n + 4, n + 6), (n + 3, n + 7)] if inside else [(2, 4), (1, n + 4), (n + 2, n + 5)]
    start, stop = g.pick(ranges)
    return g(Slice(1, start, stop, g.pick([1, 2])), joined)


def cut_padded(g: Graph, inside: bool = True) -> Value:
    n = g.symbol("n")
    x = g.arg(FLOATS, (3, n + 2))
    padded = g(Pad((0, 2), (0, 4), g.pick([PadMode.CONSTANT, PadMode.EDGE]), 1.5), x)
    ranges: list[tuple[Dim, Dim]] = [(2, n + 4), (3, 4), (2, 3)] if inside else [(1, 3), (2, n + 5), (0, n + 8)]
    start, stop = g.pick(ranges)
    return g(Slice(1, start, stop), padded)


def cut_repeated(g: Graph) -> Value:
    x = g.arg(ANY, g.pick([(3,), (1, 3), (1, 1), ()]))
    return g(Slice(g.pick([0, -2]), 1, 4, g.pick([1, 2])), g(Expand((5, 3)), x))


# --- concat and pad ----------------------------------------------------------------------------------------------------------------


def nested_concat(g: Graph, same: bool = True) -> Value:
    dtype = g.pick(ANY)
    n, k = g.symbol("n"), g.symbol("k")
    a, b, c = (g.arg(dtype, (n, d)) for d in (2, k, 3))
    inner = g(Concat(1), a, b) if same else g(Concat(0), a, a)
    operands = [inner, c, inner] if same else [inner, inner]
    return g(Concat(-1), *operands)


def with_empty(g: Graph) -> Value:
    dtype = g.pick(ANY)
    n = g.symbol("n")
    sizes = g.pick([(0, 3), (3, 0), (0, 2, 0, 5), (2, 0, n)])
    return g(Concat(0), *(g.arg(dtype, (d, n)) for d in sizes))


def adjacent(g: Graph) -> Value:
    n = g.symbol("n")
    x = g.arg(ANY, (2, n + 6))
    z = g.arg(x.type.dtype, (2, 3))
    cuts = g.pick([[0, 2, n + 6], [1, 3, n + 3], [0, 1, 4, n + 6], [0, n, n + 6]])
    parts = [g(Slice(1, a, b), x) for a, b in itertools.pairwise(cuts)]
    if g.coin():
        parts.insert(g.pick([0, len(parts)]), z)
    return g(Concat(1), *parts)


def not_adjacent(g: Graph) -> Value:
    n = g.symbol("n")
    x = g.arg(ANY, (4, n + 6))
    y = g.arg(x.type.dtype, (4, n + 6))
    pairs = [
        (g(Slice(1, 0, 2), x), g(Slice(1, 3, 5), x)),
        (g(Slice(1, 2, 4), x), g(Slice(1, 0, 2), x)),
        (g(Slice(1, 0, 2), x), g(Slice(1, 2, 4), y)),
        (g(Slice(1, 0, 4, 2), x), g(Slice(1, 4, 6), x)),
        (g(Slice(0, 0, 2), x), g(Slice(0, 2, 4), x)),
    ]
    return g(Concat(1), *g.pick(pairs))


CONSTANT_TWICE = (PadMode.CONSTANT, PadMode.CONSTANT)


def padded_twice(g: Graph, values: tuple[float, float] = (1.0, 1.0), modes: tuple[PadMode, PadMode] = CONSTANT_TWICE, dtypes: Any = REAL) -> Value:
    n = g.symbol("n")
    x = g.arg(dtypes, (n + 3, 4))
    inner = g(Pad((1, 0), (n, 2), modes[0], values[0]), x)
    return g(Pad((0, 2), (1, 1), modes[1], values[1]), inner)


# --- gathers -----------------------------------------------------------------------------------------------------------------------


def gathered(g: Graph, index: int, shape: tuple[int, ...] = (), symbolic: bool = True) -> Value:
    n = g.symbol("n")
    x = g.arg(ANY, (2, n + 3, 2) if symbolic else (2, 3, 2))
    return g(Gather(g.pick([1, -2])), x, g.constant(np.full(shape, index), g.pick([DType.i8, DType.i64])))


def gather_counted(g: Graph) -> Value:
    n = g.symbol("n")
    axis = g.pick([0, 1, -1])
    x = g.arg(ANY, (n + 3, n + 5))
    return g(Gather(axis), x, g(Iota(g.pick([2, n, n + 3]), g.pick([DType.i32, DType.i64, DType.u32])), *()))


def embed_counted(g: Graph) -> Value:
    n = g.symbol("n")
    table = g.arg(FLOATS, (n + 3, 4))
    return g(Embedding(), table, g(Iota(g.pick([3, n]))))


def narrow_count(g: Graph) -> Value:
    """An iota that wraps: 0 … 127, -128 … of a table of 200 rows (negative indices count from the end)."""
    return g(Gather(0), g.arg(DType.i16, (200,), (-9999, 9999)), g(Iota(130, DType.i8)))


def embedded(g: Graph, view: str) -> Value:
    n = g.symbol("n")
    table, ids = g.arg(FLOATS, (7, 3)), g.arg(g.pick(INTS), (n, 2), (0, 6))
    op = Reshape((2, n, 1)) if view == "reshape" else Expand((4, n, 2))
    return g(Embedding(), table, g(op, ids))


# --- reductions --------------------------------------------------------------------------------------------------------------------

SELECTING = [ReduceProd, ReduceMax, ReduceMin, ReduceAny, ReduceAll]


def dtypes_of(kind: Any, allowed: Any = ANY) -> list[DType]:
    return [d for d in DType if d in kind.operands[0].dtypes and d in allowed]


def fold_ones(g: Graph, kinds: list[Any], allowed: Any) -> Value:
    kind = g.pick(kinds)
    x = g.arg(dtypes_of(kind, allowed), (1, g.size(), 1))
    return g(kind(g.pick([(), (0,), (2,), (0, 2)]), g.coin()), x)


def fold_more(g: Graph, kinds: list[Any], allowed: Any) -> Value:
    kind = g.pick(kinds)
    x = g.arg(dtypes_of(kind, allowed), (1, 3, g.symbol("n")))
    return g(kind(g.pick([(1,), (0, 1), (1, 2), (2,)]), g.coin()), x)


def fold_nothing(g: Graph) -> Value:
    kind = g.pick([ReduceSum, ReduceProd, ReduceAny, ReduceAll])
    x = g.arg(dtypes_of(kind), (g.size(), 0, 2))
    return g(kind(g.pick([(1,), (0, 1), (1, 2)]), g.coin()), x)


def fold_twice(g: Graph, kinds: list[Any], allowed: Any, keep: tuple[bool, bool] | None = None, same: bool = True) -> Value:
    kind = g.pick(kinds)
    x = g.arg(dtypes_of(kind, allowed), (2, g.size(), 3, 2), (-9, 9) if kind is ReduceProd else None)
    first, second = keep or (g.coin(),) * 2
    inner = g(kind(g.pick([(0,), (1,), (3,), (1, 2), ()]), first), x)
    other = kind if same else g.pick([k for k in kinds if k is not kind and x.type.dtype in k.operands[0].dtypes])
    return g(other(g.pick([(0,), (1,), (0, 1)]), second), inner)


def cancelling_sums(g: Graph) -> Value:
    """Sums whose order matters: 1e8 + 1 - 1e8."""
    return g(ReduceSum((0,)), g(ReduceSum((1,)), g.arg(DType.f32, (3, 5))))


FIRES: dict[str, list[Example]] = {
    "reshape_nothing": [lambda g: g(Reshape((x := g.arg()).type.shape), x)],
    "reshape_reshape": [lambda g: regrouped(g, regrouped(g, g.arg()))],
    "transpose_nothing": [lambda g: g(Transpose(tuple(range((x := g.arg()).type.rank))), x)],
    "transpose_transpose": [lambda g: g(Transpose(permutation(g, 4)), g(Transpose(permutation(g, 4)), g.arg(ANY, 4)))],
    "transpose_ones": [moved_ones, one_symbol],
    "expand_nothing": [lambda g: g(Expand((x := g.arg()).type.shape), x)],
    "expand_expand": [twice_expanded],
    "expand_leading": [lambda g: g(Expand((g.size(), g.size(), *(x := g.arg()).type.shape)), g(Reshape((1, *x.type.shape)), x))],
    "move_one_element": [one_element],
    "constant_splat": [lambda g: g.constant(np.full((3, 2), g.pick([0.0, -0.0, 1.5])), g.pick(FLOATS)), lambda g: g.constant([[True]], DType.bool)],
    "broadcast_expand": [broadcast_anyway, select_anyway],
    "flip_flip": [lambda g: flipped(g, 1, g.pick([1, -2]))],
    "flip_one": [lambda g: g(Flip(g.pick([1, -2])), g.arg(ANY, (g.size(), 1, g.size())))],
    "axis_from_zero": [negative_axis],
    "slice_nothing": [lambda g: g(Slice(g.pick([1, -1]), 0, (x := g.arg(ANY, 2)).type.shape[1]), x)],
    "slice_slice": [cut_twice, symbolic_cut_twice],
    "slice_concat": [cut_part],
    "slice_pad": [cut_padded],
    "slice_expand": [cut_repeated],
    "concat_one": [lambda g: g(Concat(g.pick([0, -1])), g.arg(ANY, 2))],
    "concat_concat": [nested_concat],
    "concat_empty": [with_empty],
    "concat_slices": [adjacent],
    "pad_nothing": [lambda g: g(Pad((0, 0), (0, 0), g.pick(list(PadMode)), 1.0), g.arg(ANY, 2))],
    "pad_pad": [
        padded_twice,
        lambda g: padded_twice(g, (-0.0, -0.0), dtypes=FLOATS),
        lambda g: padded_twice(g, (math.nan, math.nan), dtypes=FLOATS),
    ],
    "gather_one": [
        lambda g: gathered(g, g.pick([0, 1, 3, -1, -3, -4])),
        lambda g: gathered(g, g.pick([2, -3]), g.pick([(1,), (1, 1)]), symbolic=False),
    ],
    "gather_iota": [gather_counted, embed_counted],
    "embedding_reshape": [lambda g: embedded(g, "reshape")],
    "embedding_expand": [lambda g: embedded(g, "expand")],
    "reduce_ones": [lambda g: fold_ones(g, SELECTING, REAL | BOOL)],
    "sum_ones": [lambda g: fold_ones(g, [ReduceSum], INTS)],
    "reduce_empty": [fold_nothing],
    "reduce_reduce": [lambda g: fold_twice(g, [*SELECTING, ReduceSum], INTS | BOOL)],
    "scan_one": [lambda g: g(g.pick([CumSum, CumProd])(g.pick([1, -2]), g.coin()), g.arg(REAL, (g.size(), 1, 3)))],
    "arg_one": [lambda g: g(g.pick([ArgMax, ArgMin])(g.pick([1, -2]), g.coin()), g.arg(REAL, (g.size(), 1, 3)))],
}

NEAR: dict[str, list[Example]] = {
    "transpose_nothing": [lambda g: g(Transpose(permutation(g, 3, sort=False)), g.arg(ANY, (2, 3, 4)))],
    "transpose_ones": [lambda g: g(Transpose((2, 0, 1)), g.arg(ANY, (1, g.symbol("n"), 3))), lambda g: g(Transpose((1, 0)), g.arg(ANY, (2, 3)))],
    "expand_leading": [
        lambda g: g(Expand((3, 4, 2)), g(Reshape((4, 1)), g.arg(ANY, (4,)))),
        lambda g: g(Expand((3, 4, 4)), g(Reshape((4, 1)), g.arg(ANY, (4,)))),
    ],
    "move_one_element": [
        lambda g: g(Flip(1), g(Expand((2, 3)), g.arg(ANY, (3,)))),
        lambda g: g(Transpose((1, 0)), g(Expand((2, 3)), g.arg(ANY, (2, 1)))),
    ],
    "constant_splat": [
        lambda g: g.constant([1, 2], DType.i32),
        lambda g: g.constant([0.0, -0.0], DType.f32),
        lambda g: g.constant(1.5, DType.f32),
    ],
    "broadcast_expand": [lambda g: g(Add(), g(Expand((3, 4)), x := g.arg(FLOATS, (1, 4))), g.arg(x.type.dtype, (4,)))],
    "flip_flip": [lambda g: flipped(g, 1, g.pick([0, 2, -1, -3]))],
    "flip_one": [lambda g: g(Flip(0), g.arg(ANY, (g.pick([2, 3]), 1)))],
    "slice_nothing": [lambda g: g(Slice(0, 0, 5, 2), g.arg(ANY, (5,))), lambda g: g(Slice(0, 1, 5), g.arg(ANY, (5,)))],
    "slice_slice": [lambda g: g(Slice(0, 1, 2), g(Slice(1, 1, 3), g.arg(ANY, (4, 4))))],
    "slice_concat": [
        lambda g: cut_part(g, inside=False),
        lambda g: g(Slice(0, 0, 2), g(Concat(1), x := g.arg(ANY, (4, 3)), x)),
    ],
    "slice_pad": [lambda g: cut_padded(g, inside=False), lambda g: g(Slice(1, 1, 3), g(Pad((1, 1), (0, 1)), g.arg(FLOATS, (2, 3))))],
    "slice_expand": [lambda g: g(Slice(1, 1, 3), g(Expand((2, 4)), g.arg(ANY, (4,))))],
    "concat_concat": [lambda g: nested_concat(g, same=False)],
    "concat_empty": [lambda g: g(Concat(0), x := g.arg(ANY, (0, 3)), x), lambda g: g(Concat(1), x := g.arg(ANY, (0, 3)), x)],
    "concat_slices": [not_adjacent],
    "pad_nothing": [lambda g: g(Pad((0, 1), (0, 0)), g.arg(ANY, 2)), lambda g: g(Pad((0, 0), (2, 0)), g.arg(ANY, 2))],
    "pad_pad": [
        lambda g: padded_twice(g, (0.0, -0.0), dtypes=FLOATS),
        lambda g: padded_twice(g, (1.0, 2.0)),
        lambda g: padded_twice(g, modes=(PadMode.EDGE, PadMode.CONSTANT)),
        lambda g: padded_twice(g, modes=(PadMode.CONSTANT, PadMode.REFLECT)),
    ],
    "gather_one": [
        lambda g: gathered(g, 0, (3,)),
        lambda g: g(Gather(0), g.arg(ANY, (5,)), g.constant([1, 3], DType.i32)),
    ],
    "gather_iota": [narrow_count],
    "reduce_ones": [lambda g: fold_more(g, SELECTING, REAL | BOOL), lambda g: g(ReduceProd((0,)), g.arg(COMPLEXES, (1, 9)))],
    "sum_ones": [lambda g: g(g.pick([ReduceSum, ReduceMean])((0,)), g.arg(FLOATS, (1, 40))), lambda g: fold_more(g, [ReduceSum], INTS)],
    "reduce_empty": [
        lambda g: fold_more(g, [ReduceSum, ReduceProd, ReduceAny, ReduceAll], NUMERIC | BOOL),
        lambda g: g(ReduceSum((0,)), g.arg(NUMERIC, (2, 0))),
    ],
    "reduce_reduce": [
        lambda g: fold_twice(g, [ReduceSum, ReduceProd], FLOATS),
        cancelling_sums,
        lambda g: fold_twice(g, [ReduceSum, ReduceMax, ReduceMin], INTS, same=False),
        lambda g: fold_twice(g, [ReduceSum, ReduceMax], INTS, keep=(True, False)),
        lambda g: fold_twice(g, [ReduceSum, ReduceMax], INTS, keep=(False, True)),
    ],
    "scan_one": [
        lambda g: g(g.pick([CumSum, CumProd])(1, exclusive=True), g.arg(REAL, (g.size(), 1))),
        lambda g: g(CumSum(0), g.arg(REAL, (3, 1))),
    ],
    "arg_one": [lambda g: g(g.pick([ArgMax, ArgMin])(0), g.arg(REAL, (4, 1)))],
}
