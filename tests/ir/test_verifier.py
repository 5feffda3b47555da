"""Every rule of the verifier is broken here at least once: by a text of ``broken/``, or by a graph that no text can express."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustformers_ir.ir import verifier
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import cases
from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Facts, SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops import Add, Clamp, DimSize, Fused, Neg, ReduceSum, Relu, Reshape, Return, Softmax, WeightOp, Yield
from trustformers_ir.ir.text import parse_module
from trustformers_ir.ir.verifier import Violation, check_module, same_type, verify_module

HERE = Path(__file__).parent
BROKEN = sorted((HERE / "broken").glob("*.tfir"))
ROOT = HERE.parents[1]
T = DType.f32[4, 8]
DIGEST = "sha256:" + "ab" * 32
RULES = re.findall(r"^(V\d+)  ?  ?\S", verifier.__doc__ or "", re.MULTILINE)


# --- broken texts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BROKEN, ids=lambda p: p.stem)
def test_broken_texts_are_rejected_by_their_rule_at_their_place(path: Path) -> None:
    """The first line says what is expected: ``// expect: V5 at 6:10`` names a code, a rule of the verifier, or a rule of an op."""
    text = path.read_text(encoding="utf-8")
    expected = re.match(r"// expect: (\S+) at (\d+):(\d+)\n", text)
    assert expected is not None
    with pytest.raises(CompilerError) as error:
        parse_module(text, file=path.name)
    (diagnostic,) = error.value.diagnostics
    cited = re.split(r"[ :]", diagnostic.message)[0]
    assert expected[1] in (diagnostic.code.id, cited)
    assert (diagnostic.where.line, diagnostic.where.column) == (int(expected[2]), int(expected[3]))
    assert "^" in str(diagnostic) or not text.splitlines()[int(expected[2]) - 1 :]


def test_the_corpus_is_large() -> None:
    assert len(BROKEN) >= 100


# --- broken graphs -----------------------------------------------------------------------------------------------------------------


class Graph:
    """``main(%x, %y)`` with ``%a = relu(%x)``, ``%b = add(%a, %y)``, a fused ``%f`` with ``%p`` and ``%q = neg(%p)`` inside, returned."""

    def __init__(self) -> None:
        self.module = Module("m", Facts({"n": SymbolFact(1, 64)}))
        self.module.add_weight(Weight("w", T, digest=DIGEST))
        self.block = Block([T, T], ["x", "y"])
        self.function = self.module.add_function(Function("main", self.block))
        build = Builder(self.module, self.block, loc=Location("model.py", 7, "forward"))
        self.a = build.create(Relu(), self.block.args[0], name="a")
        self.b = build.create(Add(), self.a.result, self.block.args[1], name="b")
        self.body = Block([T], ["p"])
        inner = Builder(self.module, self.body)
        self.q = inner.create(Neg(), self.body.args[0], name="q")
        inner.create(Yield(), self.q.result)
        self.f = build.region(Fused(), [self.b.result], self.body)
        self.f.result.name = "f"
        self.ret = build.create(Return(), self.f.result)
        self.build = build

    def before(self, anchor: Operation, op: Any, operands: list[Value | None], types: list[Any], body: Block | None = None) -> Operation:
        """An operation that nobody checked."""
        assert anchor.block is not None
        return anchor.block.insert_before(anchor, Operation(op, operands, types, Location("model.py", 9), body))


def test_the_graph_is_valid_before_it_is_broken() -> None:
    assert verify_module(Graph().module) == []
    check_module(Graph().module)


def test_every_sample_is_valid() -> None:
    for case in cases():
        assert verify_module(case.module()) == []


def body_of(*types: Any) -> Block:
    body = Block(types)
    body.append(Operation(Yield(), body.args, []))
    return body


def move_operand_before_its_definition(g: Graph) -> None:
    g.block._unlink(g.b)
    g.block.insert_before(g.a, g.b)


def body_reads_outside(g: Graph) -> None:
    g.q.set_operand(0, g.a.result)


def reads_a_detached_operation(g: Graph) -> None:
    stray = Operation(Relu(), [], [T])
    g.b.set_operand(0, stray.results[0])


def reads_another_function(g: Graph) -> None:
    other = g.module.add_function(Function("other", Block()))
    other.body.append(Operation(Return(), [g.a.result], []))


def forget_a_use(g: Graph) -> None:
    g.a.result._uses.clear()


def invent_a_use(g: Graph) -> None:
    g.block.args[0]._uses[(id(g.b), 1)] = (g.b, 1)


def use_by_an_erased_operation(g: Graph) -> None:
    dead = g.before(g.b, Relu(), [g.a.result], [T])
    g.block._unlink(dead)  # without dropping its operands


def swap_operands_behind_the_lists(g: Graph) -> None:
    g.b._operands.reverse()


def wrong_operand_count(g: Graph) -> None:
    g.b.set_operands([g.a.result])


def wrong_axis(g: Graph) -> None:
    g.a.op = Softmax(5)


def undecided(g: Graph) -> None:
    n = symbol("n")
    g.before(g.ret, Reshape((n, 2)), [g.a.result], [DType.f32[n, 2]])


def wrong_result_type(g: Graph) -> None:
    g.before(g.ret, Relu(), [g.a.result], [DType.f64[4, 8]])


def wrong_result_count(g: Graph) -> None:
    g.before(g.ret, Relu(), [g.a.result], [T, T])


def no_terminator(g: Graph) -> None:
    g.ret.erase()


def empty_body(g: Graph) -> None:
    g.before(g.ret, Fused(), [g.b.result], [], Block([T]))


def two_terminators(g: Graph) -> None:
    g.before(g.b, Return(), [], [])


def yield_in_a_function(g: Graph) -> None:
    g.ret.op = Yield()


def no_body(g: Graph) -> None:
    g.before(g.ret, Fused(), [g.b.result], [T])


def body_of_an_ordinary_op(g: Graph) -> None:
    g.before(g.ret, Relu(), [g.b.result], [T], body_of(T))


def body_with_too_many_arguments(g: Graph) -> None:
    g.before(g.ret, Fused(), [g.b.result], [T, T], body_of(T, T))


def body_with_an_argument_of_another_type(g: Graph) -> None:
    other = DType.f32[4, 9]
    g.before(g.ret, Fused(), [g.b.result], [other], body_of(other))


def body_with_another_result(g: Graph) -> None:
    g.before(g.ret, Fused(), [g.b.result], [DType.f64[4, 8]], body_of(T))


def body_with_too_few_results(g: Graph) -> None:
    g.before(g.ret, Fused(), [g.b.result], [T, T], body_of(T))


def undeclared_symbol_in_a_type(g: Graph) -> None:
    g.block.add_arg(DType.f32["k"], "z")


def undeclared_symbol_in_an_attribute(g: Graph) -> None:
    g.before(g.ret, DimSize(symbol("k") * 2), [], [DType.i64[()]])


def undeclared_symbol_in_a_list(g: Graph) -> None:
    g.before(g.ret, Reshape((symbol("k"),)), [g.a.result], [DType.f32[32]])


def unknown_weight(g: Graph) -> None:
    g.before(g.ret, WeightOp("v"), [], [T])


def weight_of_another_type(g: Graph) -> None:
    g.before(g.ret, WeightOp("w"), [], [DType.f16[4, 8]])


def function_name(g: Graph) -> None:
    g.module.functions["other"] = g.module.functions.pop("main")


def odd_function_name(g: Graph) -> None:
    g.function.name = "ma in"
    g.module.functions["ma in"] = g.module.functions.pop("main")


def weight_name(g: Graph) -> None:
    g.module.weights["v"] = g.module.weights.pop("w")


def symbol_name(g: Graph) -> None:
    g.module.facts.symbols["a b"] = SymbolFact()


def argument_names(g: Graph) -> None:
    g.block.args[1].name = "x"


def operation_of_another_block(g: Graph) -> None:
    g.q.block = g.block


def broken_neighbours(g: Graph) -> None:
    g.b._prev = None


def a_ring(g: Graph) -> None:
    g.b._next = g.a


def last_is_not_last(g: Graph) -> None:
    g.block._last = g.b


def result_without_producer(g: Graph) -> None:
    g.a.result.producer = None


def result_index(g: Graph) -> None:
    g.a.result.index = 1


def argument_without_block(g: Graph) -> None:
    g.block.args[1].block = None


def body_in_two_places(g: Graph) -> None:
    g.before(g.ret, Fused(), [g.b.result], [T]).body = g.body


def body_without_parent(g: Graph) -> None:
    g.body.parent = None


def function_body_without_parent(g: Graph) -> None:
    g.block.parent = None


def bad_digest(g: Graph) -> None:
    g.module.weights["w"] = Weight("w", T, digest="sha1:00")


def bytes_of_another_shape(g: Graph) -> None:
    g.module.weights["w"] = Weight("w", T, np.zeros((8, 4), np.float32))


def dynamic_weight(g: Graph) -> None:
    g.module.weights["w"] = Weight("w", DType.f32["n"], digest=DIGEST)


def weight_without_anything(g: Graph) -> None:
    g.module.weights["w"] = Weight("w", T)


def attribute_of_another_kind(g: Graph) -> None:
    g.a.op = Softmax("1")  # type: ignore[arg-type]


def list_for_a_tuple(g: Graph) -> None:
    g.a.op = ReduceSum([1])  # type: ignore[arg-type]


def bool_for_an_int(g: Graph) -> None:
    g.a.op = Softmax(True)


def text_for_an_enum(g: Graph) -> None:
    g.f.op = Fused("loop")  # type: ignore[arg-type]


def text_for_a_number(g: Graph) -> None:
    g.a.op = Clamp(None, "1")  # type: ignore[arg-type]


def negative_dim(g: Graph) -> None:
    g.block.add_arg(DType.f32[symbol("n") - 2], "z")


def more_states_than_results(g: Graph) -> None:
    g.function.states = len(g.function.outputs) + 1


def state_of_another_type(g: Graph) -> None:
    g.block.add_arg(DType.bf16[3], "s")
    g.function.states = 1


GRAPHS: list[tuple[str, Callable[[Graph], None], int | None]] = [
    ("V1", move_operand_before_its_definition, 0),
    ("V1", body_reads_outside, 0),
    ("V1", reads_a_detached_operation, 1),
    ("V1", reads_another_function, 0),
    ("V2", forget_a_use, 1),
    ("V2", invent_a_use, None),
    ("V2", use_by_an_erased_operation, 0),
    ("V3", wrong_operand_count, 1),
    ("V3", wrong_axis, 0),
    ("V3", undecided, 3),
    ("V4", wrong_result_type, 3),
    ("V4", wrong_result_count, 3),
    ("V5", no_terminator, None),
    ("V5", empty_body, None),
    ("V5", two_terminators, 1),
    ("V5", yield_in_a_function, 3),
    ("V6", no_body, 3),
    ("V6", body_of_an_ordinary_op, 3),
    ("V6", body_with_too_many_arguments, 3),
    ("V6", body_with_an_argument_of_another_type, 3),
    ("V6", body_with_another_result, 3),
    ("V6", body_with_too_few_results, 3),
    ("V7", undeclared_symbol_in_a_type, None),
    ("V7", undeclared_symbol_in_an_attribute, 3),
    ("V7", undeclared_symbol_in_a_list, 3),
    ("V8", unknown_weight, 3),
    ("V8", weight_of_another_type, 3),
    ("V9", function_name, None),
    ("V9", odd_function_name, None),
    ("V9", weight_name, None),
    ("V9", symbol_name, None),
    ("V9", argument_names, None),
    ("V10", operation_of_another_block, 0),
    ("V10", broken_neighbours, 1),
    ("V10", a_ring, None),
    ("V10", last_is_not_last, None),
    ("V10", result_without_producer, 0),
    ("V10", result_index, 0),
    ("V10", argument_without_block, None),
    ("V10", body_in_two_places, 3),
    ("V10", body_without_parent, 2),
    ("V10", function_body_without_parent, None),
    ("V11", bad_digest, None),
    ("V11", bytes_of_another_shape, None),
    ("V11", dynamic_weight, None),
    ("V11", weight_without_anything, None),
    ("V12", attribute_of_another_kind, 0),
    ("V12", list_for_a_tuple, 0),
    ("V12", bool_for_an_int, 0),
    ("V12", text_for_an_enum, 2),
    ("V12", text_for_a_number, 0),
    ("V13", negative_dim, None),
    ("V14", more_states_than_results, None),
    ("V14", state_of_another_type, None),
]


@pytest.mark.parametrize(("rule", "break_it", "index"), GRAPHS, ids=[f"{rule}-{f.__name__}" for rule, f, _ in GRAPHS])
def test_broken_graphs_are_rejected_by_their_rule(rule: str, break_it: Callable[[Graph], None], index: int | None) -> None:
    graph = Graph()
    break_it(graph)
    violations = verify_module(graph.module)
    assert {v.rule for v in violations} == {rule}
    assert violations[0].index == index
    assert all(str(v) and str(v.diagnostic) for v in violations)
    with pytest.raises(CompilerError) as error:
        check_module(graph.module)
    assert len(error.value.diagnostics) == len(violations)


def test_use_lists_are_checked_in_both_directions() -> None:
    graph = Graph()
    swap_operands_behind_the_lists(graph)
    messages = [v.message for v in verify_module(graph.module) if v.rule == "V2"]
    assert any("does not list this use" in m for m in messages)
    assert any("that is none" in m for m in messages)


def test_every_rule_is_broken_somewhere() -> None:
    assert [f"V{i}" for i in range(1, 15)] == RULES
    assert {rule for rule, _, _ in GRAPHS} == set(RULES)


def test_every_rule_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "ir.md").read_text(encoding="utf-8")
    for rule, statement in re.findall(r"^(V\d+) +(.*)$", verifier.__doc__ or "", re.MULTILINE):
        assert f"| {rule} | {statement} |" in page, rule


# --- what a violation says ---------------------------------------------------------------------------------------------------------


def only(graph: Graph) -> Violation:
    (violation,) = verify_module(graph.module)
    return violation


def test_a_violation_shows_the_ir_around_the_operation() -> None:
    graph = Graph()
    graph.b.op = Softmax(7)
    graph.b.set_operands([graph.a.result])
    violation = only(graph)
    assert (violation.rule, violation.cites, violation.function, violation.index) == ("V3", "softmax.C1", "main", 1)
    assert violation.loc == Location("model.py", 7, "forward")
    assert violation.code is Code.CONSTRAINT
    assert str(violation) == (
        "V3 in @main, operation 1, from model.py:7 in forward\n"
        "    %a = relu(%x) : f32[4, 8]\n"
        "    %b = softmax(%a) {axis = 7} : f32[4, 8]\n"
        "    ^ softmax.C1 (axis is one of x's) does not hold: axis 7 of a rank 2 tensor\n"
        "    %f = fused(%b) : f32[4, 8] {\n"
        "    return %f"
    )
    assert violation.diagnostic.where.file == "model.py"


def test_the_number_of_violations_is_limited() -> None:
    graph = Graph()
    for _ in range(50):
        graph.before(graph.ret, Relu(), [graph.a.result], [DType.f64[4, 8]])
    assert len(verify_module(graph.module)) == verifier.LIMIT
    assert len(verify_module(graph.module, limit=3)) == 3


def test_dims_may_be_written_differently() -> None:
    n = symbol("n")
    facts = Facts({"n": SymbolFact(8, 64, 8)})
    assert same_type(DType.f32[n], DType.f32[8 * (n // 8)], facts)
    assert not same_type(DType.f32[n], DType.f32[8 * (n // 8)], Facts({"n": SymbolFact()}))
    assert not same_type(DType.f32[n], DType.f64[n], facts)
    assert not same_type(DType.f32[n], DType.f32[n, 1], facts)


def test_bytes_of_weights_are_not_touched() -> None:
    def load() -> np.ndarray:
        raise AssertionError("the bytes were asked for")

    graph = Graph()
    graph.module.weights["w"] = Weight("w", T, load)
    check_module(graph.module)
