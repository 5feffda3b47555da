"""The text form: exact round trip of everything, problems with their places, and texts that nobody meant well."""

from __future__ import annotations

import enum
import math
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import cases, make_case, sample_facts
from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim, Facts, SymbolFact, floordiv, maximum, minimum, mod, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops import Constant, Fused, Literal, Relu, Return, WeightOp, Yield
from trustformers_ir.ir.schema import OPS, Op, Operand, Sample
from trustformers_ir.ir.text import parse_module, print_function, print_module, print_operation, read_module
from trustformers_ir.ir.text.parser import MAX_PROBLEMS
from trustformers_ir.ir.types import Layout, Panels, TensorType

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.tfir"))
DIGEST = "sha256:" + "ab" * 32


# --- what a module is, apart from its text -----------------------------------------------------------------------------------------


def plain(value: Any, hint: Any) -> Any:
    """An attribute value with numbers as their bits, so that NaNs and signed zeros can be compared."""
    if isinstance(value, float) or ("float" in str(hint) and isinstance(value, int)):
        return struct.pack("<d", value)
    return [plain(v, hint) for v in value] if isinstance(value, tuple) else value


def describe_block(block: Block, numbers: dict[int, int]) -> list[Any]:
    for a in block.args:
        numbers[id(a)] = len(numbers)
    rows: list[Any] = [[(a.type, a.name) for a in block.args]]
    for o in block:
        for r in o.results:
            numbers[id(r)] = len(numbers)
        attributes = [(a.name, plain(getattr(o.op, a.name), a.hint)) for a in o.op.attributes()]
        operands = [None if v is None else numbers[id(v)] for v in o.operands]
        body = None if o.body is None else describe_block(o.body, numbers)
        rows.append((type(o.op), attributes, operands, [r.type for r in o.results], o.loc, body))
    return rows


def describe(module: Module) -> dict[str, Any]:
    """All of a module as plain data that can be compared; the hints of the names of results are left out."""
    return {
        "name": module.name,
        "symbols": list(module.facts.symbols.items()),
        "weights": [(n, w.name, w.type, w.digest) for n, w in module.weights.items()],
        "metadata": list(module.metadata.items()),
        "functions": [(n, f.name, describe_block(f.body, {})) for n, f in module.functions.items()],
    }


def assert_round_trip(module: Module) -> str:
    text = print_module(module)
    text.encode("utf-8")
    back = parse_module(text)
    assert describe(back) == describe(module)
    assert print_module(back) == text
    return text


def problems_of(text: str, **options: Any) -> list[tuple[Code, int | None, int | None]]:
    with pytest.raises(CompilerError) as error:
        parse_module(text, **options)
    return [(d.code, d.where.line, d.where.column) for d in error.value.diagnostics]


def in_function(*lines: str, args: str = "%x: f32[4, 8]", results: str = "f32[4, 8]") -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"module @m {{\n  func @main({args}) -> ({results}) {{\n{body}  }}\n}}\n"


# --- round trips -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
def test_fixtures_are_printed_as_they_are(path: Path) -> None:
    module = read_module(path)
    assert print_module(module) == path.read_text(encoding="utf-8")
    assert_round_trip(module)


def test_every_sample_of_every_op_makes_the_round_trip() -> None:
    seen = set()
    for case in cases():
        text = assert_round_trip(case.module())
        assert f"{case.op.mnemonic}(" in text or f"{case.op.mnemonic} " in text
        seen.add(case.op.mnemonic)
    assert seen >= {m for m, kind in OPS.items() if next(kind.samples(), None) is not None}
    written = "".join(p.read_text(encoding="utf-8") for p in FIXTURES)
    assert all(re.search(rf"\b{m}\b", written) for m in set(OPS) - seen)  # those without samples stand in fixtures


def test_fixtures_use_every_dtype() -> None:
    written = "".join(p.read_text(encoding="utf-8") for p in FIXTURES)
    assert all(f"{d.name}[" in written for d in DType)


def test_str_of_a_module_is_its_text() -> None:
    module = next(cases()).module()
    assert str(module) == print_module(module)


def test_layout_and_comments_are_free() -> None:
    text = """
        // made by hand
        tfir 1
        module @m { // the module
        symbol n : [ 1 , 64 ]%8
          func @main(
              %x: f32[n,   // the batch
                      8],
              %y : f32[ n, 8 ]) -> (f32[n, 8],) {   // one result

            %z=add(%x,%y):f32[n,8]loc("a.py":1)  // tail
            return %z // the end {
          }
        }
    """
    module = parse_module(text)
    assert print_module(module) == (
        "module @m {\n  symbol n : [1, 64] % 8\n  func @main(%x: f32[n, 8], %y: f32[n, 8]) -> (f32[n, 8]) {\n"
        '    %z = add(%x, %y) : f32[n, 8] loc("a.py":1)\n    return %z\n  }\n}\n'
    )
    assert print_module(parse_module(text.replace("\n", "\r\n"))) == print_module(module)


def test_locations_can_be_left_out() -> None:
    module = read_module(next(p for p in FIXTURES if p.stem == "regions"))
    assert "loc(" in print_module(module)
    bare = print_module(module, loc=False)
    assert "loc(" not in bare
    assert all(o.loc is None for o in parse_module(bare).walk())


def test_parts_can_be_printed() -> None:
    module = parse_module(in_function("%y = relu(%x) : f32[4, 8]", "return %y"))
    assert print_function(module.main).startswith("func @main(%x: f32[4, 8]) -> (f32[4, 8]) {\n  %y = relu(%x)")
    first = next(iter(module.main.body))
    assert print_operation(first) == "%? = relu(%?) : f32[4, 8]"


def test_names_are_made_unique_in_order() -> None:
    names = ["x", "x", "x_1", "", "2nd", "a b", "x"]
    module = Module("m")
    block = Block([DType.f32[2]], ["x"])
    module.add_function(Function("main", block))
    build = Builder(module, block)
    value = block.args[0]
    for name in names:
        value = build(Relu(), value, name=name)
    build.create(Return(), value)
    text = assert_round_trip(module)
    assert re.findall(r"(%\S+) =", text) == ["%x_1", "%x_2", "%x_1_1", "%0", "%_2nd", "%a_b", "%x_3"]


def test_thousand_equal_names_print_quickly() -> None:
    module = Module("m")
    block = Block([DType.f32[2]], ["x"])
    module.add_function(Function("main", block))
    build = Builder(module, block)
    value = block.args[0]
    for _ in range(5000):
        value = build(Relu(), value, name="x")
    build.create(Return(), value)
    start = time.perf_counter()
    print_module(module)
    assert time.perf_counter() - start < 5


def test_weights_are_known_by_digest_and_resolved() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    module = Module("m")
    module.add_weight(Weight("w", DType.f32[2, 3], data))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build.create(Return(), build(WeightOp("w")))
    text = assert_round_trip(module)
    digest = module.weights["w"].digest
    assert f"weight @w : f32[2, 3] = {digest}" in text
    asked: list[tuple[str, TensorType]] = []
    data.flags.writeable = False  # as a mapped file gives it; what its owner could still change is copied

    def resolve(wanted: str, type: TensorType) -> np.ndarray | None:
        asked.append((wanted, type))
        return data

    assert not parse_module(text).weights["w"].has_data
    assert parse_module(text, resolve=resolve).weights["w"].data is data
    assert asked == [(digest, DType.f32[2, 3])]
    assert not parse_module(text, resolve=lambda *_: None).weights["w"].has_data
    assert problems_of(text, resolve=lambda *_: data.T) == [(Code.BAD_DIGEST, 2, 27)]
    assert problems_of(text, resolve=lambda *_: data.astype(np.float64)) == [(Code.BAD_DIGEST, 2, 27)]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "m.tfir"
    path.write_bytes(b"module @m {\n\xff}\n")
    with pytest.raises(CompilerError, match="not UTF-8") as error:
        read_module(path)
    assert error.value.codes == (Code.TEXT_ENCODING,)
    assert error.value.diagnostics[0].where.offset == 12
    with pytest.raises(CompilerError) as error:
        read_module(tmp_path / "absent.tfir")
    assert error.value.codes == (Code.FILE_NOT_FOUND,)
    with pytest.raises(CompilerError) as error:
        read_module(tmp_path)
    assert error.value.codes == (Code.UNREADABLE,)


# --- values ------------------------------------------------------------------------------------------------------------------------


def constant_module(literal: Literal) -> Module:
    module, block = Module("m"), Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build.create(Return(), build(Constant(literal)))
    return module


@st.composite
def literals(draw: st.DrawFn) -> Literal:
    dtype = draw(st.sampled_from(list(DType)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    size = math.prod(shape) * dtype.itemsize
    if draw(st.booleans()):
        return Literal(dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    element = draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    return Literal(dtype, shape, element * math.prod(shape))


@given(literals())
@settings(max_examples=300, deadline=None)
def test_literals_keep_every_bit(literal: Literal) -> None:
    assert_round_trip(constant_module(literal))


def test_literals_choose_a_readable_form() -> None:
    def text(literal: Literal) -> str:
        (found,) = re.findall(r"value = (.*)}", print_module(constant_module(literal)))
        return str(found)

    assert text(Literal.of(np.float32(0.1))) == "f32[] dense [0.1]"
    assert text(Literal.of([[1, 2], [3, 4]], DType.i8)) == "i8[2, 2] dense [1, 2, 3, 4]"
    assert text(Literal.of(np.full((2, 3), -np.inf, np.float32))) == "f32[2, 3] splat -inf"
    assert text(Literal.of(np.arange(65), DType.u8)).startswith('u8[65] hex "000102')
    assert text(Literal(DType.bool, (2,), b"\x02\x01")) == 'bool[2] hex "0201"'
    big = Literal.of(np.zeros(1 << 18), DType.f64)  # a splat of so many bytes would not be read back
    assert text(big).startswith("f64[262144] hex")


def test_splats_together_stay_within_what_is_read_back() -> None:
    module, block = Module("m"), Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    for _ in range(17):
        build(Constant(Literal(DType.u8, (1 << 20,), bytes(1 << 20))))
    build.create(Return())
    assert assert_round_trip(module).count("splat") == 16


@given(st.floats())
def test_float_attributes_keep_every_bit(value: float) -> None:
    module, block = Module("m"), Block([DType.f32[2]], ["x"])
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build.create(Return(), build(ops.Clamp(value, None), block.args[0])) if not math.isnan(value) else build.create(Return())
    assert_round_trip(module)


@pytest.mark.parametrize("bits", [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001, 0x7FFFFFFFFFFFFFFF])
def test_nan_attributes_keep_every_bit(bits: int) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    module, block = Module("m"), Block([DType.f32[2]], ["x"])
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build.create(Return(), build(ops.Pad((1,), (1,), value=value), block.args[0]))
    assert_round_trip(module)


@given(st.text(), st.text(), st.text(), st.integers(0, (1 << 31) - 1))
def test_strings_and_locations(key: str, text: str, file: str, line: int) -> None:
    module = Module(text[:100])
    module.metadata[key] = text
    block = Block()
    module.add_function(Function("main", block))
    Builder(module, block).create(Return(), loc=Location(file, line, text[:100]))
    assert_round_trip(module)


def dims() -> st.SearchStrategy[Dim]:
    leaf: st.SearchStrategy[Dim] = st.one_of(st.integers(0, 9), st.sampled_from("abc").map(symbol))

    def grow(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
        two = st.tuples(inner, inner)
        by = st.tuples(inner, st.integers(1, 9))
        return st.one_of(
            two.map(lambda p: p[0] + p[1]),
            two.map(lambda p: p[0] * p[1]),
            two.map(lambda p: p[0] - p[1]),
            two.map(lambda p: minimum(*p)),
            two.map(lambda p: maximum(*p)),
            by.map(lambda p: floordiv(*p)),
            by.map(lambda p: mod(*p)),
        )

    return st.recursive(leaf, grow, max_leaves=6)


@given(dims())
@settings(max_examples=300, deadline=None)
def test_dims(dim: Dim) -> None:
    module, block = Module("m", Facts({n: SymbolFact(1, 50) for n in "abc"})), Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    build(ops.DimSize(dim))
    build.create(Return())
    assert_round_trip(module)


# --- the schema is all that the text form knows of ops -----------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "light blue"


@dataclass(frozen=True)
class Window:
    """A value class made up for this test."""

    size: int
    labels: tuple[str, ...] = ()


@pytest.fixture
def gadget() -> Iterator[type[Op]]:
    @dataclass(frozen=True)
    class Gadget(Op):
        """An op made up for this test, with an attribute of every kind."""

        flag: bool
        pair: tuple[int, float]
        dims: tuple[Dim, ...]
        window: Window
        layout: Layout
        colour: Colour = Colour.RED
        maybe: Dim | None = None
        words: tuple[str, ...] = ("a",)
        nested: tuple[tuple[int, ...], ...] = ()
        kinds: tuple[DType, ...] = ()

        mnemonic = "gadget"
        operands = (Operand("x"), Operand("y", optional=True), Operand("rest", variadic=True))

        def infer(self, ctx: Any, *types: Any, **_: Any) -> tuple[TensorType, ...]:
            return tuple(t for t in types if t is not None)

    yield Gadget
    del OPS["gadget"]


def test_a_new_op_needs_no_change_of_printer_and_parser(gadget: type[Op]) -> None:
    full: dict[str, Any] = {
        "flag": True,
        "pair": (3, -0.0),
        "dims": (symbol("n") * 2, 1),
        "window": Window(4, ("p", "q\n")),
        "layout": Panels(16, 4),
    }
    rest = {
        "colour": Colour.BLUE,
        "maybe": symbol("n"),
        "words": (),
        "nested": ((1, 2), (), (3,)),
        "kinds": (DType.bf16, DType.bool),
    }
    module = Module("m", Facts({"n": SymbolFact()}))
    block = Block([DType.f32["n"], DType.i8[()]], ["x", "y"])
    module.add_function(Function("main", block))
    build = Builder(module, block)
    x, y = block.args
    build.create(gadget(**full), x, None, y, x, name="g")
    build.create(gadget(**full, **rest), x, y)
    build.create(Return())
    text = assert_round_trip(module)
    assert (
        "%g, %0, %1 = gadget(%x, none, %y, %x) {flag = true, pair = [3, -0.0], dims = [2*n, 1], "
        'window = {size = 4, labels = ["p", "q\\n"]}, layout = {panels 16 4}} : f32[n], i8[], f32[n]\n'
    ) in text
    assert 'colour = "light blue", maybe = n, words = [], nested = [[1, 2], [], [3]], kinds = [bf16, bool]}' in text


# --- random modules ----------------------------------------------------------------------------------------------------------------

SAMPLES: list[Sample] = [s for kind in list(OPS.values()) for s in kind.samples()]
WORDS = st.sampled_from(["", "x", "x_1", "h.0", "é", "attn probs", "1"])
LOCATIONS = st.none() | st.builds(Location, st.sampled_from(["a.py", 'dir/"b".py']), st.integers(0, 99), st.sampled_from(["", "f"]))


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """A function of several samples side by side, some of them in bodies, with weights, metadata, names and locations."""
    module, block = Module(draw(WORDS)), Block()
    for sample in draw(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=5)):
        facts = sample_facts(sample).symbols
        if any(module.facts.symbols.get(n, f) != f for n, f in facts.items()):
            continue
        module.facts.symbols.update(facts)
        args = [None if t is None else block.add_arg(t, f"in{len(block.args)}") for t in sample.types]
        body = Block([a.type for a in args if a is not None]) if draw(st.integers(0, 3)) == 0 else None
        build = Builder(module, block if body is None else body, loc=draw(LOCATIONS))
        inner = iter([] if body is None else body.args)
        operation = build.create(sample.op, *(a if a is None or body is None else next(inner) for a in args), name=draw(WORDS))
        if body is not None:
            build.create(Yield(), *operation.results)
            Builder(module, block).region(Fused(draw(st.sampled_from(ops.RegionKind))), [a for a in args if a is not None], body)
    if draw(st.booleans()):
        name = draw(st.sampled_from(["w", "layer.0/w", "é"]))
        module.add_weight(Weight(name, DType.bf16[3, 4], digest=DIGEST))
        Builder(module, block)(WeightOp(name), name=draw(WORDS))
    module.metadata.update(draw(st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2)))
    results: list[Value] = [r for o in block for r in o.results]
    module.add_function(Function("main", block))
    Builder(module, block).create(Return(), *draw(st.lists(st.sampled_from(results), max_size=3) if results else st.just([])))
    return module


@given(modules())
@settings(max_examples=150, deadline=None)
def test_random_modules_make_the_round_trip(module: Module) -> None:
    assert_round_trip(module)


# --- problems ----------------------------------------------------------------------------------------------------------------------


def test_problems_of_several_lines_are_reported_together() -> None:
    text = in_function(
        "%a = sotfmax(%x) {axis = 1} : f32[4, 8]",
        "%b = relu(%a) : f32[4, 8]",  # not reported: %a is broken already
        "%c = softmax(%x) {axis = 9} : f32[4, 8]",
        "%d = fused(%x, %q) : f32[4, 8] {",
        "  ^(%a: f32[4, 8]):",
        "  what ever",
        "}",
        "%e = relu(%x) : f32[4, 9]",
        "%f = fused(%x) : f32[4, 8] {",
        "  %y = relu(%x) : f32[4, 8]",
        "}",
        "return %b",
    )
    assert problems_of(text) == [
        (Code.UNKNOWN_OP, 3, 10),
        (Code.CONSTRAINT, 5, 10),
        (Code.UNKNOWN_NAME, 6, 20),
        (Code.TYPE_MISMATCH, 10, 21),
        (Code.SYNTAX, 12, 7),
    ]


def test_a_broken_header_leaves_out_its_function_only() -> None:
    text = """module @m {
  symbol n : [5, 2]
  weight @w : f33[2] = sha256:00
  func @a(%x: f32[n],
          %y: oops[n]) -> () {
    nonsense
  }
  func @b(%x: f32[n]) -> () {
    %w = weight {name = "w"} : f32[2]
    %y = bogus(%x) : f32[n]
    return
  } what
  func @c() -> (f32[2]) {
    return
  }
}
"""
    assert problems_of(text) == [
        (Code.SYNTAX, 2, 14),
        (Code.BAD_TYPE, 3, 15),
        (Code.BAD_TYPE, 5, 15),
        (Code.UNKNOWN_OP, 10, 10),
        (Code.SYNTAX, 12, 5),
        (Code.TYPE_MISMATCH, 13, 8),
    ]


def test_the_first_problems_are_enough() -> None:
    text = in_function(*["nonsense"] * 100)
    assert len(problems_of(text)) == MAX_PROBLEMS


def test_an_error_shows_the_line_and_what_to_do() -> None:
    with pytest.raises(CompilerError) as error:
        parse_module(in_function("%y = sofmax(%x) : f32[4, 8]", "return %y"), file="dir/m.tfir")
    assert str(error.value) == (
        "error[TFC1002]: there is no op 'sofmax'\n"
        "  --> dir/m.tfir:3:10\n"
        "    3 |     %y = sofmax(%x) : f32[4, 8]\n"
        "      |          ^\n"
        "  help: do you mean softmax?"
    )


def test_types_equal_by_the_facts_are_the_same() -> None:
    text = "module @m {{\n  symbol n : [8, 64] % {}\n  func @main(%x: f32[n]) -> (f32[8*(n//8)]) {{\n    return %x\n  }}\n}}\n"
    assert parse_module(text.format(8)).main.output_types == [DType.f32["n"]]
    assert problems_of(text.format(4)) == [(Code.TYPE_MISMATCH, 3, 30)]


def test_verification_can_be_left_to_the_caller() -> None:
    text = in_function("%y = relu(%x) : f32[4, 8]")
    assert problems_of(text) == [(Code.VERIFY, 3, 10)]
    assert len(parse_module(text, verify=False).main.body) == 1


# --- texts that nobody meant well --------------------------------------------------------------------------------------------------

HOSTILE = {
    "splat": in_function("%c = constant {value = f64[60000, 60000] splat 0.0} : f64[60000, 60000]", "return %x"),
    "splats": in_function(*["%c = constant {value = u8[1048576] splat 0} : u8[1048576]"] * 100, "return %x"),
    "dense": in_function("%c = constant {value = f64[2000000000, 2000000000] dense [0.0]} : f64[2]", "return %x"),
    "hex": in_function('%c = constant {value = f64[2000000000, 2000000000] hex "00"} : f64[2]', "return %x"),
    "digits": in_function(f"%c = iota {{size = {'9' * 100000}}} : i64[4]", "return %x"),
    "float digits": in_function(f"%c = clamp(%x) {{low = {'9' * 100000}.0}} : f32[4, 8]", "return %x"),
    "product of sums": in_function("%c = dim {size = " + "*".join(["(1 + n + k)"] * 60) + "} : i64[]", "return %x").replace(
        "{\n", "{\n  symbol n : [1, 2]\n  symbol k : [1, 2]\n", 1
    ),
    "powers": in_function("%c = dim {size = " + "*".join(["9223372036854775807"] * 500) + "} : i64[]", "return %x"),
    "nested dims": in_function("%c = dim {size = " + "(" * 50000 + "1" + ")" * 50000 + "} : i64[]", "return %x"),
    "minus signs": in_function("%c = dim {size = " + "-" * 50000 + "1} : i64[]", "return %x"),
    "nested minima": in_function(
        "%c = dim {size = " + "".join(f"min(n + {i}*k, " for i in range(16)) + "k" + ")" * 16 + "} : i64[]", "return %x"
    ).replace("{\n", "{\n  symbol n : [1, 2]\n  symbol k : [1, 2]\n", 1),
    "bodies": in_function(*["%y = fused(%x) : f32[4, 8] {", "^(%x: f32[4, 8]):"] * 5000),
    "brackets": in_function("%c = reduce_sum(%x) {axes = " + "[" * 100000 + "} : f32[4]", "return %x"),
    "braces": "module @m {\n" + "{" * 200000,
    "open functions": "module @m {\n" + "func @f(\n" * 20000,
    "open strings": "module @m {\n" + 'metadata "\n' * 20000,
    "blank": " " * 200000,
    "one line": "x" * 200000,
    "rank": in_function("return %x", args=f"%x: f32[{', '.join(['2'] * 10000)}]"),
    "name": f"module @{'m' * 100000} {{\n}}\n",
    "arguments": in_function("return %x", args=", ".join(f"%a{i}: f32[]" for i in range(20000))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_quickly_and_cheaply(name: str) -> None:
    text = HOSTILE[name]
    tracemalloc.start()
    try:
        start = time.process_time()
        problems_of(text)
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 10
    assert peak < 40 << 20 + 50 * len(text)


PIECES = [*"[]{}(),:=%@^~", "->", '"', "//", "none", "true", "inf", "nan", "-1", "0", "1e999", "9" * 20, "min(", "yield", "func", "f32", "é", "\x00"]

NUMBERS = ["0", "-1", "3", "9223372036854775807", "-9223372036854775808", "0.5", "none", "[]", "[0]", "[-1]", "[0, 0]", "[1, 2, 3, 4, 5]"]


def mutated(text: str, others: list[str], rng: random.Random) -> str:
    """``text`` with a few bytes flipped, pieces cut out, doubled, inserted, taken from another text, lines exchanged,
    or a number or list replaced."""
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(text) + 1)
        j = min(len(text), i + rng.randrange(1, 30))
        match rng.randrange(8):
            case 0:
                text = text[:i] + chr(rng.randrange(1, 256)) + text[i + 1 :]
            case 1:
                text = text[:i] + text[j:]
            case 2:
                text = text[:i]
            case 3:
                text = text[:i] + text[i:j] * 2 + text[j:]
            case 4:
                text = text[:i] + rng.choice(PIECES) + text[j if rng.random() < 0.5 else i :]
            case 5:
                other = rng.choice(others)
                k = rng.randrange(len(other) + 1)
                text = text[:i] + other[k : k + 40] + text[i:]
            case 6:
                lines = text.split("\n")
                a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
                lines[a], lines[b] = lines[b], lines[a]
                text = "\n".join(lines)
            case 7:
                if numbers := list(re.finditer(r"-?\b\d+\b|\[[^\]]*\]", text)):
                    found = rng.choice(numbers)
                    text = text[: found.start()] + rng.choice(NUMBERS) + text[found.end() :]
    return text


def survive(seed: int, count: int) -> None:
    rng = random.Random(seed)
    texts = [p.read_text(encoding="utf-8") for p in FIXTURES]
    texts += [print_module(make_case(s).module()) for s in rng.sample(SAMPLES, 100)]
    for _ in range(count):
        text = mutated(rng.choice(texts), texts, rng)
        start = time.process_time()
        try:
            module = parse_module(text)
        except CompilerError as error:
            str(error)
        else:
            printed = print_module(module)
            assert print_module(parse_module(printed)) == printed
        assert time.process_time() - start < 5, text


@pytest.mark.parametrize("seed", range(4))
def test_mutated_texts_raise_nothing_but_compiler_errors(seed: int) -> None:
    survive(seed, 1000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_mutated_texts(seed: int) -> None:
    survive(seed, 50000)


def test_operations_of_a_parsed_module_are_linked() -> None:
    module = read_module(next(p for p in FIXTURES if p.stem == "regions"))
    operations: list[Operation] = list(module.walk())
    assert all((o, i) in v.uses for o in operations for i, v in enumerate(o.operands) if v is not None)
    assert all(o.body.parent is o for o in operations if o.body is not None)
