"""All core passes together: random graphs, and a traced model into which detours were put, keep the bits of their results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rule_harness import Graph, evaluate, require_same

from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.ir.dtypes import BOOL, FLOATS, INTS, REAL, DType
from trustformers_ir.ir.ops import (
    Abs,
    Add,
    And,
    BitwiseNot,
    Cast,
    Ceil,
    Clamp,
    Concat,
    Div,
    Dropout,
    Eq,
    Expand,
    Flip,
    Floor,
    Ge,
    Gt,
    IsNan,
    Le,
    LogicalNot,
    Lt,
    Maximum,
    Minimum,
    Mul,
    Ne,
    Neg,
    Or,
    Pad,
    ReduceAny,
    ReduceMax,
    ReduceSum,
    Relu,
    Reshape,
    Select,
    Sign,
    Slice,
    Sub,
    Transpose,
    Xor,
)
from trustformers_ir.ir.rewriting import erase_dead
from trustformers_ir.ir.schema import ConstraintError, Op
from trustformers_ir.passes.manager import PassManager, Report, parse_pipeline
from trustformers_ir.passes.registry import PASSES

CORE = "canonicalize,constant_fold,canonicalize,cse,dce"


def optimise(module: Module, pipeline: str = CORE) -> Report:
    return PassManager(parse_pipeline(pipeline, PASSES), verify=True).run(module)


# --- random graphs -----------------------------------------------------------------------------------------------------------------

# Left out: functions that numpy computes in two ways according to the memory layout (exp and its like, sums of floats).
UNARY: list[tuple[frozenset[DType], list[Op]]] = [
    (REAL, [Neg(), Abs(), Relu(), Sign(), Floor(), Ceil(), Clamp(-2.0, 5.0), Clamp(1.0, 3.0)]),
    (FLOATS, [IsNan(), Dropout(0.5)]),
    (INTS | BOOL, [BitwiseNot()]),
    (BOOL, [LogicalNot()]),
]
BINARY: list[tuple[frozenset[DType], list[Op]]] = [
    (REAL, [Add(), Sub(), Mul(), Maximum(), Minimum()]),
    (FLOATS, [Div()]),
    (INTS | BOOL, [And(), Or(), Xor()]),
    (REAL | BOOL, [Eq(), Ne(), Lt(), Le(), Gt(), Ge()]),
]


def of_dtype(table: list[tuple[frozenset[DType], list[Op]]], dtype: DType) -> list[Op]:
    return [op for dtypes, kinds in table if dtype in dtypes for op in kinds]


def grow(g: Graph, values: list[Value]) -> Value:
    """One more operation on values made so far; ``ConstraintError`` when the draw does not fit."""
    v = g.pick(values)
    dtype, shape, rank = v.type.dtype, v.type.shape, v.type.rank
    form = g.pick(["unary", "binary", "binary", "constant", "constant", "select", "cast", "move", "move", "part", "reduce"])
    if form == "unary":
        return g(g.pick(of_dtype(UNARY, dtype)), v)
    alike = [u for u in values if u.type.dtype is dtype]
    if form == "binary":
        return g(g.pick(of_dtype(BINARY, dtype)), v, g.pick(alike))
    if form == "constant":
        constants = [0, 1, 2] if not dtype.is_float else [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, math.nan]
        s = g.splat(g.pick(constants) if dtype is not DType.bool else g.coin(), v)
        op = g.pick(of_dtype(BINARY, dtype))
        return g(op, v, s) if g.coin() else g(op, s, v)
    if form == "select":
        return g(Select(), g.pick([u for u in values if u.type.dtype is DType.bool]), v, g.pick(alike))
    if form == "cast":
        return g(Cast(g.pick([DType.f32, DType.f64, DType.f16, DType.i32, DType.i8, DType.bool])), v)
    if not rank:
        raise IndexError("there is no axis")
    axis = int(g.rng.integers(-rank, rank))
    if form == "move":
        choices: list[Op] = [
            Transpose(tuple(int(p) for p in g.rng.permutation(rank))),
            Reshape((v.type.elements,)),
            Reshape((1, *shape)),
            Expand((2, *shape)),
            Expand(shape),
            Flip(axis),
        ]
        return g(g.pick(choices), v)
    if form == "part":
        size = shape[axis]
        if g.coin() and isinstance(size, int):
            start, stop = sorted(int(i) for i in g.rng.integers(0, size + 1, 2))
            return g(Slice(axis, start, stop, g.pick([1, 1, 2])), v)
        if g.coin():
            low = [0] * rank
            low[axis] = 1
            return g(Pad(tuple(low), tuple(low[::-1]), value=float(g.coin())), v)
        return g(Concat(axis), v, g.pick(alike), v)
    axes = (axis % rank,)
    return g(ReduceSum(axes, g.coin()) if dtype.is_integer else ReduceAny(axes) if dtype is DType.bool else ReduceMax(axes, g.coin()), v)


def random_graph(seed: int, size: int = 40) -> tuple[Module, list[np.ndarray], dict[str, int]]:
    g = Graph(seed)
    n = g.symbol("n")
    values = [g.arg(dtype, (n, 3)) for dtype in (DType.f32, DType.f16, DType.i32, DType.u8, DType.bool)]
    values += [g.arg(DType.f32, (1, 3)), g.arg(DType.i32, ()), g.arg(DType.bool, (3,))]
    while len(g.block) < size:
        try:
            value = grow(g, values)
        except (ConstraintError, IndexError):
            continue
        if value.type.elements.__class__ is not int or value.type.elements < 2000:  # type: ignore[operator]
            values.append(value)
    results = tuple(values[-1 - i] for i in range(3))
    return g.finish(results), g.inputs(), g.dims


@pytest.mark.parametrize("block", range(10))
def test_random_graphs_keep_their_bits(block: int) -> None:
    applied = 0
    for seed in range(block * 40, block * 40 + 40):
        module, inputs, dims = random_graph(seed)
        text = str(module)
        before = evaluate(module, inputs, dims)
        report = optimise(module)
        require_same(before, evaluate(module, inputs, dims), f"seed {seed}\n{text}\nbecomes\n{module}")
        applied += report.rewrites
        optimise(module)  # merging may have made rules possible
        again = optimise(module)
        assert again.rewrites == 0, f"seed {seed} does not come to rest: {again}"
    assert applied > 100, "the graphs have something to rewrite"


def test_a_graph_is_rewritten_alike_every_time() -> None:
    texts = set()
    for _ in range(3):
        module, _, _ = random_graph(7)
        optimise(module)
        texts.add(str(module))
    assert len(texts) == 1


# --- a model -----------------------------------------------------------------------------------------------------------------------

BERT = "random:bert?hidden_size=32&num_hidden_layers=2&num_attention_heads=4&intermediate_size=48&vocab_size=50&max_position_embeddings=16"


def detour(rng: np.random.Generator, build: Builder, value: Value) -> Value:
    """``value`` once more, by a way that changes no bit."""
    shape, dtype = value.type.shape, value.type.dtype
    scalar = ops.Literal.of
    ways = [
        lambda v: build(Neg(), build(Neg(), v)),
        lambda v: build(Mul(), build(ops.Constant(scalar(1.0, dtype))), v),
        lambda v: build(Sub(), v, build(ops.Constant(scalar(np.zeros((1,) * len(shape)), dtype)))),
        lambda v: build(Div(), v, build(Neg(), build(ops.Constant(scalar(-1.0, dtype))))),
        lambda v: build(Dropout(0.1), v),
        lambda v: build(Cast(dtype), build(Cast(DType.f64), v)),
        lambda v: build(Reshape(shape), build(Reshape((1, *shape)), v)),
        lambda v: build(Transpose((1, 0, *range(2, len(shape)))), build(Transpose((1, 0, *range(2, len(shape)))), v)),
        lambda v: build(Flip(0), build(Flip(0), v)),
        lambda v: build(Concat(-1), build(Slice(-1, 0, 3), v), build(Slice(-1, 3, shape[-1]), v)),
        lambda v: build(Slice(-1, 2, 2 + shape[-1]), build(Pad((0,) * len(shape), (*[0] * (len(shape) - 1), 1)), _after_two_columns(build, v))),
        lambda v: build(Select(), build(ops.IsNan(), v), v, build(Expand(shape), v)),
        lambda v: build(Add(), v, build(Mul(), build(ops.Constant(scalar(0.0, dtype))), build(ops.Constant(scalar(-3.0, dtype))))),
    ]
    return ways[int(rng.integers(len(ways)))](value)


def _after_two_columns(build: Builder, value: Value) -> Value:
    return build(Concat(-1), build(Slice(-1, 0, 2), value), value)


def disturb(module: Module, seed: int, count: int) -> None:
    """Puts detours behind random operations, and dead code beside them."""
    rng = np.random.default_rng(seed)
    sites: list[Operation] = [o for o in module.main.body if o.results and o.results[0].type.dtype is DType.f32 and o.results[0].type.rank >= 2]
    for _ in range(count):
        site = sites[int(rng.integers(len(sites)))]
        assert site.next is not None
        users = site.result.uses
        build = Builder.before(module, site.next)
        value = detour(rng, build, site.result)
        for user, index in users:
            user.set_operand(index, value)
        if rng.random() < 0.3:
            build(Abs(), build(Relu(), value))


def test_detours_around_a_model_are_undone() -> None:
    clean = random_model(BERT)
    count = len(clean.main.body)
    rng = np.random.default_rng(5)
    inputs = [rng.integers(0, 50, (3, 7)), np.ones((3, 7), np.int64), np.zeros((3, 7), np.int64)]
    inputs = inputs[: len(clean.main.args)]
    before = evaluate(clean, inputs, {})
    assert optimise(clean).rewrites == 0, "the traced model has nothing to simplify"
    for seed in range(4):
        module = random_model(BERT)
        disturb(module, seed, 60)
        assert len(module.main.body) > count + 100
        require_same(before, evaluate(module, inputs, {}), "the detours change nothing")
        report = optimise(module)
        assert len(module.main.body) == count, f"seed {seed}\n{report}\n{module}"
        assert report.rewrites >= 60
        require_same(before, evaluate(module, inputs, {}), f"seed {seed}")


def test_unused_weights_of_a_model_go_away() -> None:
    module = random_model(BERT)
    (hidden, *_) = module.main.outputs
    first = next(o for o in module.main.body if o.results and o.results[0].type == hidden.type)
    module.main.body.terminator.set_operands([first.result])
    weights = len(module.weights)
    optimise(module, "dce")
    assert len(module.weights) < weights / 4


def test_erase_dead_tells_what_lost_a_user() -> None:
    g = Graph(0)
    x = g.arg(DType.f32, (2,))
    kept = g(Neg(), x)
    gone = g(Abs(), kept)
    module = g.finish(kept)
    assert gone.producer is not None and kept.producer is not None
    assert kept.producer in erase_dead([gone.producer])
    assert [o.op.mnemonic for o in module.main.body] == ["neg", "return"]
