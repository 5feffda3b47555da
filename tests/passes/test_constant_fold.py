"""Constant folding: the same bits as the reference semantics, within its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rule_harness import evaluate, require_same
from test_rewriting import make

from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import Case, cases
from trustformers_ir.ir.core import Block, Function, Module, Value
from trustformers_ir.ir.dims import symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops import Constant, DimSize, Expand, Iota, Literal
from trustformers_ir.ir.types import ROW_MAJOR
from trustformers_ir.passes.constant_fold import ConstantFold
from trustformers_ir.passes.manager import PassLog, PassManager, PassReport

f32, i64 = DType.f32, DType.i64
N = symbol("n")


def fold(module: Module, max_elements: int = 1024) -> PassReport:
    return PassManager([ConstantFold(max_elements)], verify=True).run(module).passes[0]


def kinds(module: Module) -> list[str]:
    return [o.op.mnemonic for o in module.main.body][:-1]


def constant(b: Builder, value: object, dtype: DType = f32) -> Value:
    return b(Constant(Literal.of(value, dtype)))


STATIC = [c for c in cases() if all(t is None or (t.is_static and t.layout == ROW_MAJOR) for t in c.types) and c.types and not c.dims]


@pytest.mark.parametrize("case", STATIC, ids=lambda c: c.op.mnemonic)
def test_every_op_on_constants(case: Case) -> None:
    """Each sample of each op, its operands written down as constants."""
    expected = case.expected()
    module = Module()
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    values = [None if a is None else build(Constant(Literal.of(a))) for a in case.arrays]
    build.create(ops.Return(), *build.create(case.op, *values).results)
    report = fold(module, 10**6)
    if isinstance(case.op, Expand):
        assert report.rewrites == 0
    else:
        assert set(kinds(module)) <= {"constant", "expand"}, "nothing else is left"
    require_same(expected, evaluate(module, [], {}), str(case))


def test_chains_are_folded_in_one_run() -> None:
    module = make(lambda b: b(ops.Exp(), b(ops.Mul(), b(Iota(4, f32)), b(ops.Neg(), constant(b, 0.5)))))
    assert fold(module).rewrites == 3
    assert kinds(module) == ["constant"]
    x = np.exp(np.float64([0, -0.5, -1, -1.5])).astype(np.float32)
    require_same([x], evaluate(module, [], {}), "exp(iota * -0.5)")


def test_equal_elements_are_folded_whatever_their_number() -> None:
    module = make(lambda b, p: b(ops.Add(), p, b(ops.Sqrt(), b(Expand((N, 10**6)), constant(b, 2.0)))), f32["n", 10**6])
    fold(module)
    assert kinds(module) == ["constant", "expand", "add"]
    assert module.main.body.operations[0].op == Constant(Literal.of(np.float32(math.sqrt(2))))


def test_a_splat_result_is_one_element() -> None:
    module = make(lambda b: b(ops.Reshape((6,)), constant(b, np.full((2, 3), -0.0))))
    fold(module)
    assert kinds(module) == ["constant", "expand"]
    require_same([np.full(6, -0.0, np.float32)], evaluate(module, [], {}), "the sign of zero stays")


def test_zeros_of_both_signs_are_no_splat() -> None:
    module = make(lambda b: b(ops.Neg(), constant(b, [0.0, -0.0])))
    fold(module)
    assert kinds(module) == ["constant"]
    require_same([np.float32([-0.0, 0.0])], evaluate(module, [], {}), "-[0, -0]")


def test_large_results_are_not_written_down() -> None:
    module = make(lambda b: b(ops.Add(), b(Iota(2000)), constant(b, 1, i64)))
    report = fold(module)
    assert report.rewrites == 0 and kinds(module) == ["iota", "constant", "add"]
    module = make(lambda b: b(ops.Transpose((1, 0)), constant(b, np.arange(2000.0).reshape(2, 1000))))
    report = fold(module)
    assert report.log.misses == {("transpose", "the result has 2000 elements, more than 1024"): 1}
    assert fold(module, 2000).rewrites == 1


def test_views_without_bytes_stay() -> None:
    module = make(lambda b: (b(Expand((5, 5)), constant(b, 1.0)), b(Iota(5))))
    assert fold(module).rewrites == 0


def test_dim_sizes() -> None:
    module = make(lambda b, p: (b(DimSize(7)), b(DimSize(N)), b(DimSize(symbol("fixed")))), f32["n"])
    fold(module)
    assert kinds(module) == ["constant", "dim", "constant"]
    require_same([np.int64(7), np.int64(2), np.int64(3)], evaluate(module, [np.zeros(2, np.float32)], {}), "sizes")


def test_an_index_out_of_range_is_left_to_the_run() -> None:
    module = make(lambda b: b(ops.Gather(0), constant(b, [1.0, 2.0]), constant(b, 2, i64)))
    report = fold(module)
    assert kinds(module) == ["constant", "constant", "gather"]
    ((what, reason),) = report.log.misses
    assert what == "gather" and "index 2 is out of range" in reason


def test_sizes_that_only_the_run_knows() -> None:
    module = make(lambda b, p: b(ops.Slice(0, 0, symbol("k") - symbol("k") + 2), constant(b, [1.0, 2.0, 3.0])), f32["n"])
    assert fold(module).rewrites == 1
    module = make(lambda b, p: b(ops.OneHot(N), constant(b, [1, 2], i64)), f32["n"])
    assert fold(module).rewrites == 0, "the result has a symbolic shape"


def test_several_results() -> None:
    module = make(lambda b: b.create(ops.TopK(2), constant(b, [1.0, 3.0, 2.0])).results)
    fold(module)
    assert kinds(module) == ["constant", "constant"]
    require_same([np.float32([3, 2]), np.int64([1, 2])], evaluate(module, [], {}), "top_k")


def test_nothing_that_depends_on_an_argument_is_folded() -> None:
    module = make(lambda b, p: b(ops.Add(), p, constant(b, 1.0)), f32[2])
    assert fold(module).rewrites == 0


def test_folds_count_as_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_STOP_AFTER", "1")
    module = make(lambda b: (b(ops.Neg(), constant(b, 1.0)), b(ops.Neg(), constant(b, 2.0))))
    assert fold(module).rewrites == 1
    assert sorted(kinds(module)) == ["constant", "constant", "neg"]


def test_bodies_are_folded() -> None:
    module = Module()
    body = Block()
    inside = Builder(module, body)
    inside.create(ops.Yield(), inside(ops.Neg(), constant(inside, 1.0)))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build.create(ops.Return(), build.region(ops.Fused(), [], body).result)
    ConstantFold().run(module, PassLog())
    assert [o.op.mnemonic for o in body] == ["constant", "yield"]
