"""The pattern language and the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value
from trustformers_ir.ir.diagnostics import InternalError
from trustformers_ir.ir.dims import Facts, SymbolFact, symbol
from trustformers_ir.ir.dtypes import FLOATS, INTS, DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops import Abs, Add, Constant, Expand, Fused, Iota, LayerNorm, Literal, Mul, Neg, Relu, Reshape, Return, Sub, Transpose, Yield
from trustformers_ir.ir.rewriting import Node, Rule, RuleSet, apply_rules, counting, node, splat, splat_of, var
from trustformers_ir.ir.verifier import check_module

f32, i32 = DType.f32, DType.i32
x, y = var("x"), var("y")

NEG_NEG = Rule("neg_neg", "-(-x) = x", node(Neg, node(Neg, x)), lambda m, b: m["x"])
SUB_SELF = Rule("sub_self", "x - x = 0", node(Sub, var("x", INTS), x), lambda m, b: b(Constant(Literal.of(np.zeros(m.type.concrete({}), np.int32)))))


def make(body: Callable[..., Any], *types: Any) -> Module:
    """``main`` with arguments of the types and the results of ``body(build, *values)``; every operation on a line of its own."""
    module = Module(facts=Facts({"n": SymbolFact(), "fixed": SymbolFact(3, 3)}))
    block = Block(types, [f"x{i}" for i in range(len(types))])
    module.add_function(Function("main", block))
    build = Builder(module, block, loc=Location("model.py", 7))
    out = body(build, *block.args)
    build.create(Return(), *(out if isinstance(out, tuple) else (out,)))
    check_module(module)
    return module


def found(pattern: Node, module: Module) -> int:
    """At how many operations the pattern matches."""
    rule = Rule("probe", "", pattern, lambda m, b: m.root.result)
    return sum(rule.find(module, o)[0] is not None for o in module.walk())


# --- patterns ----------------------------------------------------------------------------------------------------------------------


def test_a_repeated_name_is_the_same_value() -> None:
    module = make(lambda b, p, q: (b(Sub(), p, p), b(Sub(), p, q)), f32[2], f32[2])
    assert found(node(Sub, x, x), module) == 1
    assert found(node(Sub, x, y), module) == 2


def test_a_variable_may_ask_for_dtypes() -> None:
    module = make(lambda b, p, q: (b(Neg(), p), b(Neg(), q)), f32[2], i32[2])
    assert found(node(Neg, var("x", FLOATS)), module) == 1


def test_commutative_ops_match_in_both_orders() -> None:
    module = make(lambda b, p, q: (b(Add(), p, b(Neg(), q)), b(Add(), b(Neg(), q), p), b(Sub(), b(Neg(), q), p)), f32[2], f32[2])
    assert found(node(Add, x, node(Neg, y)), module) == 2
    assert found(node(Add, x, node(Neg, y), ordered=True), module) == 1
    assert found(node(Sub, x, node(Neg, y)), module) == 0


def test_nested_commutative_patterns_are_searched() -> None:
    """``(p * q) + (q * p)`` is ``x*y + x*y`` in one of eight orders."""
    module = make(lambda b, p, q: b(Add(), b(Mul(), p, q), b(Mul(), q, p)), f32[2], f32[2])
    assert found(node(Add, node(Mul, x, y), node(Mul, x, y)), module) == 1
    assert found(node(Add, node(Mul, x, x), node(Mul, y, y)), module) == 0


def test_one_use_asks_that_nobody_else_reads_it() -> None:
    pattern = node(Neg, node(Abs, x, one_use=True))
    assert found(pattern, make(lambda b, p: b(Neg(), b(Abs(), p)), f32[2])) == 1
    assert found(pattern, make(lambda b, p: (b(Neg(), a := b(Abs(), p)), a), f32[2])) == 0


def test_splats_are_seen_through_views() -> None:
    def body(b: Builder, p: Value) -> tuple[Value, ...]:
        two = b(Constant(Literal.of(2.0, f32)))
        grid = b(Constant(Literal.of(np.full((2, 1), 2.0), f32)))
        mixed = b(Constant(Literal.of([2.0, 3.0], f32)))
        views = [two, grid, b(Expand((symbol("n"), 2, 2)), two), b(Transpose((1, 0)), grid), b(Reshape((2,)), grid), mixed, b(Iota(2, f32))]
        return tuple(b(Mul(), p, v) for v in views)

    module = make(body, f32["n", 2, 2])
    assert found(node(Mul, x, splat(lambda s: bool(s == 2), "c")), module) == 5
    assert splat_of(module.main.args[0]) is None


def test_zeros_of_both_signs_are_no_splat() -> None:
    module = make(lambda b: b(Constant(Literal.of([0.0, -0.0], f32))))
    assert splat_of(module.main.outputs[0]) is None


def test_absent_operands() -> None:
    module = make(lambda b, p, w: (b(LayerNorm(), p, w, None), b(LayerNorm(), p, None, None)), f32[3, 4], f32[4])
    assert found(node(LayerNorm, x, y, None), module) == 1
    assert found(node(LayerNorm, x, None, None), module) == 1
    assert found(node(LayerNorm, ...), module) == 2
    assert found(node(LayerNorm, x), module) == 0, "another number of operands"


def test_where_is_part_of_the_pattern() -> None:
    module = make(lambda b, p: (b(Transpose((0, 1)), p), b(Transpose((1, 0)), p)), f32[2, 3])
    assert found(node(Transpose, x, where=lambda o: o.result.type == o.inputs[0].type), module) == 1


def test_dots_stand_alone() -> None:
    with pytest.raises(ValueError, match="cannot stand beside"):
        node(Add, x, ...)


def test_a_base_class_stands_for_its_ops() -> None:
    module = make(lambda b, p: (b(Neg(), p), b(Abs(), p), b(Add(), p, p)), f32[2])
    assert found(node(ops.UnaryOp, x), module) == 2
    assert {r.name for r in RuleSet([NEG_NEG, SUB_SELF]).of(Neg)} == {"neg_neg"}


# --- the driver --------------------------------------------------------------------------------------------------------------------


def kinds(module: Module) -> list[str]:
    return [o.op.mnemonic for o in module.main.body][:-1]


def test_rules_apply_until_none_applies() -> None:
    def body(b: Builder, p: Value) -> Value:
        for _ in range(9):
            p = b(Neg(), p)
        return p

    module = make(body, f32[2])
    result = apply_rules(module, [NEG_NEG])
    assert result.applied == {"neg_neg": 4}
    assert kinds(module) == ["neg"], "what nobody uses any more is erased"
    check_module(module)
    assert apply_rules(module, [NEG_NEG]).total == 0


def test_users_are_looked_at_again() -> None:
    """The inner rewrite makes ``relu(relu(x))``, above which the worklist has been already."""
    unwrap = Rule("unwrap", "abs is seen through", node(Abs, node(Relu, x, name="inner")), lambda m, b: m.operation("inner").result)
    relus = Rule("relus", "relu(relu(x)) = relu(x)", node(Relu, node(Relu, x, name="inner")), lambda m, b: m.operation("inner").result)
    module = make(lambda b, p: b(Relu(), b(Abs(), b(Relu(), p))), f32[2])
    assert apply_rules(module, [relus, unwrap]).total == 2
    assert kinds(module) == ["relu"]


def test_a_value_left_with_one_use_is_looked_at_again() -> None:
    """``neg(a)`` becomes possible only when the other reader of ``a`` has gone."""
    single = Rule("single", "for tests", node(Neg, node(Abs, x, one_use=True)), lambda m, b: b(Relu(), m["x"]))
    cancel = Rule("cancel", "for tests", node(Sub, node(Abs, x), y), lambda m, b: m["y"])
    module = make(lambda b, p, q: (b(Neg(), a := b(Abs(), p)), b(Sub(), a, q)), f32[2], f32[2])
    result = apply_rules(module, [single, cancel])
    assert result.applied == {"cancel": 1, "single": 1}
    assert kinds(module) == ["relu"]


def test_operations_that_were_dead_before_stay() -> None:
    module = make(lambda b, p: (b(Abs(), p), b(Neg(), b(Neg(), p)))[1], f32[2])
    apply_rules(module, [NEG_NEG])
    assert kinds(module) == ["abs"]


def test_new_operations_carry_the_location() -> None:
    rule = Rule("spread", "for tests", node(Neg, x), lambda m, b: b(Mul(), m["x"], b(Constant(Literal.of(-1.0, f32)))))
    module = make(lambda b, p: b(Neg(), p), f32[2])
    apply_rules(module, [rule])
    assert kinds(module) == ["constant", "mul"]
    assert [str(o.loc) for o in module.main.body] == ["model.py:7"] * 3


def test_names_survive() -> None:
    module = make(lambda b, p: b(Neg(), b(Abs(), p), name="wanted"), f32[2])
    apply_rules(module, [Rule("r", "for tests", node(Neg, x), lambda m, b: b(Relu(), m["x"]))])
    assert module.main.outputs[0].name == "wanted"


def test_bodies_are_rewritten() -> None:
    module = Module()
    block = Block([f32[2]], ["x"])
    module.add_function(Function("main", block))
    body = Block([f32[2]])
    inside = Builder(module, body)
    inside.create(Yield(), inside(Neg(), inside(Neg(), body.args[0])))
    build = Builder(module, block)
    build.create(Return(), build.region(Fused(), block.args, body).result)
    assert apply_rules(module, [NEG_NEG]).total == 1
    assert [o.op.mnemonic for o in body] == ["yield"]
    check_module(module)


def test_near_misses_have_reasons() -> None:
    rule = Rule("r", "for tests", node(Neg, node(Abs, x)), lambda m, b: m["x"], lambda m: f"rank {m.type.rank}")
    module = make(lambda b, p, q: (b(Neg(), b(Abs(), p)), b(Neg(), b(Abs(), q)), b(Neg(), b(Abs(), q)), b(Neg(), p)), f32[2], f32[2, 2])
    result = apply_rules(module, [rule])
    assert result.total == 0
    assert result.misses == {("r", "rank 1"): 1, ("r", "rank 2"): 2}


def test_the_first_match_that_passes_is_taken() -> None:
    """Both operands match ``x``; the check accepts only one of them."""
    rule = Rule("r", "for tests", node(Add, x, y), lambda m, b: m["x"], lambda m: None if m["x"].producer is None else "computed")
    module = make(lambda b, p: b(Add(), b(Neg(), p), p), f32[2])
    result = apply_rules(module, [rule])
    assert module.main.outputs == [module.main.args[0]]
    assert not result.misses


def test_a_rule_that_changes_a_type_is_a_bug() -> None:
    rule = Rule("widen", "wrong", node(Neg, x), lambda m, b: b(Expand((3, 2)), m["x"]))
    with pytest.raises(InternalError, match=r"the rule 'widen' replaces f32\[2\] by f32\[3, 2\]"):
        apply_rules(make(lambda b, p: b(Neg(), p), f32[2]), [rule])


def test_rules_without_an_end_are_a_bug() -> None:
    ping = Rule("ping", "wrong", node(Neg, x), lambda m, b: b(Abs(), m["x"]))
    pong = Rule("pong", "wrong", node(Abs, x), lambda m, b: b(Neg(), m["x"]))
    with pytest.raises(InternalError, match=r"do not come to an end; most applied: p.ng, p.ng"):
        apply_rules(make(lambda b, p: b(Neg(), p), f32[2]), [ping, pong])


def test_two_rules_of_one_name() -> None:
    with pytest.raises(ValueError, match="two rules are called neg_neg"):
        RuleSet([NEG_NEG, NEG_NEG])


def test_several_results() -> None:
    rule = Rule(
        "flatten",
        "for tests",
        node(ops.TopK, x, where=lambda o: o.op == ops.TopK(1, 0)),
        lambda m, b: [b(Relu(), m["x"]), b(Iota(1))],
    )
    module = make(lambda b, p: b.create(ops.TopK(1, 0), p).results, f32[1])
    apply_rules(module, [rule])
    check_module(module)
    assert kinds(module) == ["relu", "iota"]


# --- bisecting ---------------------------------------------------------------------------------------------------------------------


def sites(count: int = 12) -> Module:
    """Places at which rules apply, one after another; at the seventh the wrong one does."""

    def body(b: Builder, p: Value) -> Value:
        for i in range(count):
            p = b(Abs(), b(Relu(), p)) if i == 6 else b(Add(), b(Neg(), b(Neg(), p)), p)
        return p

    return make(body, f32[3])


WRONG = Rule("wrong", "|relu(x)| = -x", node(Abs, node(Relu, x)), lambda m, b: b(Neg(), m["x"]))


def test_stop_after_finds_the_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.float32([1.5, -2.0, 3.0])
    expected = evaluate(sites(), inputs)

    def wrong_after(n: int) -> tuple[bool, list[str]]:
        monkeypatch.setenv("TFIR_STOP_AFTER", str(n))
        module = sites()
        result = apply_rules(module, [NEG_NEG, WRONG])
        assert result.total == min(n, 12), "exactly so many rewrites happen"
        check_module(module)
        return not np.array_equal(evaluate(module, inputs), expected), list(result.applied.elements())

    low, high = 0, 12
    assert not wrong_after(low)[0] and wrong_after(high)[0]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong_after(middle)[0] else (middle, high)
    before, after = wrong_after(low)[1], wrong_after(high)[1]
    assert (len(before), len(after)) == (6, 7)
    assert "wrong" in after and "wrong" not in before


def test_the_count_spans_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_STOP_AFTER", "15")
    with counting() as counter:
        assert apply_rules(sites(), [NEG_NEG]).total == 11
        assert apply_rules(sites(), [NEG_NEG]).total == 4
        assert counter.made == 15
    assert apply_rules(sites(), [NEG_NEG]).total == 11, "each call is a compilation of its own otherwise"


def test_matching_is_quick() -> None:
    """A rule is not even looked at where its pattern cannot begin."""
    looked: list[Operation] = []
    rule = Rule("r", "for tests", node(Mul, x, y, where=lambda o: bool(looked.append(o))), lambda m, b: m["x"])
    apply_rules(make(lambda b, p: b(Mul(), b(Neg(), p), b(Abs(), p)), f32[2]), [rule])
    assert [o.op.mnemonic for o in looked] == ["mul"]
