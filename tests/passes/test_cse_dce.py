"""Common subexpressions and dead code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_constant_fold import constant, kinds
from test_rewriting import make

from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module, Value, Weight
from trustformers_ir.ir.dims import symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops import Add, Clamp, Constant, Expand, Fused, Literal, Maximum, Minimum, Mul, Neg, Pad, Reshape, Sub, WeightOp, Yield
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.cse import Cse, op_key
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.manager import PassManager, PassReport

f32 = DType.f32


def merge(module: Module) -> PassReport:
    return PassManager([Cse()], verify=True).run(module).passes[0]


def sweep(module: Module, weights: bool = True) -> PassReport:
    return PassManager([Dce(weights)], verify=True).run(module).passes[0]


# --- common subexpressions ---------------------------------------------------------------------------------------------------------


def test_equal_operations_are_merged_transitively() -> None:
    module = make(lambda b, p, q: (b(Neg(), b(Sub(), p, q)), b(Neg(), b(Sub(), p, q))), f32[2], f32[2])
    assert merge(module).log.counts == {"sub": 1, "neg": 1}
    assert kinds(module) == ["sub", "neg"]
    first, second = module.main.outputs
    assert first is second


def test_operands_of_symmetric_ops_may_be_exchanged() -> None:
    module = make(lambda b, p, q: tuple(b(op(), *v) for op in (Add, Mul, Sub, Minimum, Maximum) for v in ((p, q), (q, p))), f32[2], f32[2])
    merge(module)
    assert kinds(module) == ["add", "mul", *["sub"] * 2, *["minimum"] * 2, *["maximum"] * 2], "a tie of zeros goes by position"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Pad((1,), (1,), value=0.0), Pad((1,), (1,), value=-0.0)),
        (Clamp(-0.0, 1.0), Clamp(0.0, 1.0)),
        (Constant(Literal.of(0.0, f32)), Constant(Literal.of(-0.0, f32))),
        (Constant(Literal.of([0], DType.i32)), Constant(Literal.of([0], DType.u32))),
        (Reshape((2, 1)), Reshape((1, 2))),
        (Reshape((1, 2)), Expand((1, 2))),
    ],
    ids=str,
)
def test_different_attributes_are_different(one: ops.Op, other: ops.Op) -> None:
    module = make(lambda b, p: tuple(b(op, *([] if isinstance(op, Constant) else [p])) for op in (one, other)), f32[2])
    assert merge(module).rewrites == 0


def test_attributes_are_compared_by_their_bits() -> None:
    assert op_key(Clamp(math.nan, 1.0)) == op_key(Clamp(float("nan"), 1.0))
    assert op_key(Clamp(0.0, 1.0)) != op_key(Clamp(-0.0, 1.0))
    assert op_key(Reshape((symbol("n"), 2))) == op_key(Reshape((symbol("n"), 2)))


def test_absent_operands_count() -> None:
    module = make(lambda b, p, w: (b(ops.LayerNorm(), p, w, None), b(ops.LayerNorm(), p, None, w), b(ops.LayerNorm(), p, w, None)), f32[3, 4], f32[4])
    assert merge(module).rewrites == 1


def test_all_results_of_an_operation_are_merged() -> None:
    module = make(lambda b, p: (*b.create(ops.TopK(2), p).results, *b.create(ops.TopK(2), p).results), f32[5])
    merge(module)
    outputs = module.main.outputs
    assert outputs[:2] == outputs[2:]


def region(build: Builder, x: Value, *inner: ops.Op) -> Value:
    body = Block([x.type])
    inside = Builder(build.module, body)
    value = body.args[0]
    for op in inner:
        value = inside(op, value)
    inside.create(Yield(), value)
    return build.region(Fused(), [x], body).result


def test_equal_bodies_are_equal() -> None:
    bodies = ((Neg(), ops.Abs()), (Neg(), ops.Abs()), (Neg(), Neg()), (Neg(),))
    module = make(lambda b, p: tuple(region(b, p, *body) for body in bodies), f32[2])
    assert merge(module).log.counts == {"fused": 1}


def test_bodies_see_nothing_from_outside() -> None:
    def body(b: Builder, p: Value) -> tuple[Value, Value]:
        return b(Neg(), p), region(b, p, Neg())

    module = make(body, f32[2])
    assert merge(module).rewrites == 0


def test_bodies_are_merged_inside() -> None:
    module = make(lambda b, p: b(Neg(), p), f32[2])
    inner = Block([f32[2]])
    inside = Builder(module, inner)
    inside.create(Yield(), inside(Add(), inside(Neg(), inner.args[0]), inside(Neg(), inner.args[0])))
    anchor = module.main.body.terminator
    Builder.before(module, anchor).region(Fused(), module.main.args, inner)
    merge(module)
    assert [o.op.mnemonic for o in inner] == ["neg", "add", "yield"]


def test_result_types_count() -> None:
    """The same dims written in another way are another type."""
    module = make(lambda b, p: (b(Neg(), p), b(Neg(), p)), f32["n"])
    module.main.body.operations[1].results[0].type = TensorType((symbol("n"),), f32)
    assert merge(module).rewrites == 1


def test_merging_counts_as_rewriting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_STOP_AFTER", "1")
    module = make(lambda b, p: (b(Neg(), p), b(Neg(), p), b(Neg(), p)), f32[2])
    assert merge(module).rewrites == 1
    assert kinds(module) == ["neg", "neg"]


# --- dead code ---------------------------------------------------------------------------------------------------------------------


def weighted(read: bool) -> Module:
    module = make(lambda b, p: b(Neg(), p), f32[2])
    for name in ("used", "unused"):
        module.add_weight(Weight(name, f32[2], np.zeros(2, np.float32)))
    first = next(iter(module.main.body))
    build = Builder.before(module, first)
    value = build(WeightOp("used"))
    if read:
        first.set_operand(0, value)
    return module


def test_chains_without_use_go_away() -> None:
    module = make(lambda b, p: (b(Mul(), a := b(Neg(), p), a), b(ops.Abs(), p))[1], f32[2])
    assert sweep(module).log.counts == {"mul": 1, "neg": 1}
    assert kinds(module) == ["abs"]


def test_arguments_stay() -> None:
    module = make(lambda b, p, q: p, f32[2], f32[3])
    sweep(module)
    assert len(module.main.args) == 2


def test_unused_weights_go_away() -> None:
    module = weighted(read=True)
    sweep(module)
    assert list(module.weights) == ["used"]
    module = weighted(read=False)
    assert sweep(module).log.counts == {"weight": 1, "weights in the table": 2}
    assert not module.weights
    module = weighted(read=False)
    sweep(module, weights=False)
    assert list(module.weights) == ["used", "unused"]


def test_weights_of_bodies_are_used() -> None:
    module = Module()
    module.add_weight(Weight("w", f32[2], np.zeros(2, np.float32)))
    body = Block()
    inside = Builder(module, body)
    inside.create(Yield(), inside(WeightOp("w")))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build.create(ops.Return(), build.region(Fused(), [], body).result)
    sweep(module)
    assert list(module.weights) == ["w"]


def test_bodies_are_swept_and_dead_regions_go_whole() -> None:
    module = make(lambda b, p: (region(b, p, Neg()), region(b, p, ops.Abs()))[1], f32[2])
    kept = module.main.body.operations[1]
    assert kept.body is not None
    Builder.before(module, kept.body.terminator)(Neg(), kept.body.args[0])
    assert sweep(module).log.counts == {"fused": 1, "neg": 1}
    assert [o.op.mnemonic for o in kept.body] == ["abs", "yield"]


def test_one_result_in_use_keeps_an_operation() -> None:
    module = make(lambda b, p: b.create(ops.TopK(2), p).results[1], f32[5])
    sweep(module)
    assert kinds(module) == ["top_k"]


def test_constants_are_shared() -> None:
    module = make(lambda b, p: b(Add(), b(Add(), p, constant(b, 1.0)), constant(b, 1.0)), f32[2])
    assert merge(module).log.counts == {"constant": 1}
