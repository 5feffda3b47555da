"""The interpreter: binding of inputs and dims, errors, fused regions, weights, rounding, memory."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trustformers_ir.ir import interpreter, ops
from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Location, Module, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError
from trustformers_ir.ir.dims import Dim, Facts, SymbolFact, floordiv, parse_dim, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate, evaluate_operation
from trustformers_ir.ir.ops.contract import pack_panels, unpack_panels
from trustformers_ir.ir.ops.data import Literal
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.schema import EvalContext
from trustformers_ir.ir.types import Panels, TensorType

f32, bf16, i64 = DType.f32, DType.bf16, DType.i64
N, S = symbol("n"), symbol("s")


def make(body: Callable[..., Any], *args: tuple[str, TensorType], facts: Facts | None = None, module: Module | None = None) -> Module:
    """A module whose ``main`` has the arguments and returns what ``body(build, *values)`` gives."""
    module = module or Module(facts=facts or Facts())
    block = Block()
    values = [block.add_arg(t, name) for name, t in args]
    module.add_function(Function("main", block))
    build = Builder(module, block)
    out = body(build, *values)
    build.create(ops.Return(), *(out if isinstance(out, tuple) else (out,)))
    return module


DOUBLE = [("x", f32["n", 3])]


def double() -> Module:
    return make(lambda b, x: b(ops.Add(), x, x), *DOUBLE, facts=Facts({"n": SymbolFact(1, 8, 2)}))


def fails(code: Code, module: Module, *inputs: Any, match: str | None = None, **named: Any) -> CompilerError:
    with pytest.raises(CompilerError, match=match) as caught:
        evaluate(module, *inputs, **named)
    assert caught.value.codes == (code,)
    return caught.value


# --- inputs and dims ---------------------------------------------------------------------------------------------------------------


def test_inputs_by_position_and_by_name() -> None:
    module = make(lambda b, x, y: b(ops.Sub(), x, y), ("x", f32["n"]), ("y", f32["n"]), facts=Facts({"n": SymbolFact()}))
    x, y = np.float32([3, 4]), np.float32([1, 1])
    for result in (evaluate(module, x, y), evaluate(module, x, y=y), evaluate(module, y=y, x=x)):
        assert result.dtype == np.float32
        assert result.tolist() == [2, 3]


def test_several_results_are_a_tuple() -> None:
    module = make(lambda b, x: (b(ops.Neg(), x), x), ("x", f32[2]))
    first, second = evaluate(module, np.float32([1, 2]))
    assert first.tolist() == [-1, -2]
    assert second.tolist() == [1, 2]


def test_unnamed_arguments_are_numbered() -> None:
    module = make(lambda b, x: x, ("", f32[1]))
    assert evaluate(module, arg0=np.float32([7])).tolist() == [7]


@pytest.mark.parametrize(
    ("code", "inputs", "named", "match"),
    [
        (Code.INPUT_COUNT, (), {}, "inputs are missing: x"),
        (Code.INPUT_COUNT, (np.zeros((2, 3), np.float32),) * 2, {}, "2 inputs were given, the function takes 1"),
        (Code.INPUT_NAME, (), {"y": 1}, "'y' is not one of"),
        (Code.INPUT_NAME, (np.zeros((2, 3), np.float32),), {"x": 1}, "'x' is given twice"),
        (Code.INPUT_DTYPE, (np.zeros((2, 3)),), {}, "'x' has dtype f64, not f32"),
        (Code.INPUT_DTYPE, (np.array([["a"]]),), {}, "no tensor"),
        (Code.INPUT_SHAPE, (np.zeros(3, np.float32),), {}, r"'x': has rank 2, \[n, 3\]; an array of shape \[3\]"),
        (Code.INPUT_SHAPE, (np.zeros((2, 4), np.float32),), {}, "axis 1 has size 3"),
        (Code.DIM_RANGE, (np.zeros((3, 3), np.float32),), {}, r"the dim 'n' is 3 by axis 0 of input '.*'; it was declared as \[1, 8\] % 2"),
        (Code.DIM_RANGE, (np.zeros((10, 3), np.float32),), {}, "the dim 'n' is 10"),
    ],
)
def test_inputs_that_do_not_fit(code: Code, inputs: tuple[Any, ...], named: dict[str, Any], match: str) -> None:
    fails(code, double(), *inputs, match=match, **named)


def test_an_unknown_function() -> None:
    fails(Code.UNKNOWN_ENTRY, double(), function="decode", match="no function 'decode'")


def test_contradicting_dims() -> None:
    module = make(lambda b, x, y: b(ops.Add(), x, y), ("x", f32["n"]), ("y", f32["n"]))
    fails(Code.DIM_CONFLICT, module, np.zeros(2, np.float32), np.zeros(3, np.float32), match="axis 0 is n = 2 by other sizes")


def test_a_dim_that_no_input_determines_is_given() -> None:
    module = make(lambda b: b(ops.Iota(N)))
    assert evaluate(module, dims={"n": 3}).tolist() == [0, 1, 2]
    fails(Code.INPUT_SHAPE, module, match="the dim 'n' is determined by no input")


@pytest.mark.parametrize(
    ("declared", "actual", "dims"),
    [
        (("n", "s"), (2, 5), {"n": 2, "s": 5}),
        (("2*n + 1",), (7,), {"n": 3}),
        (("n + s", "n"), (7, 2), {"n": 2, "s": 5}),
        (("n//2", "n"), (2, 5), {"n": 5}),
        (("n*s", "s"), (6, 3), {"s": 3, "n": 2}),
        (("n*n", "n"), (9, 3), {"n": 3}),
        (("10 - n",), (4,), {"n": 6}),
    ],
)
def test_dims_are_solved(declared: tuple[str, ...], actual: tuple[int, ...], dims: dict[str, int]) -> None:
    assert bind_dims([Shaped("x", tuple(parse_dim(d) for d in declared), actual)], Facts()) == dims


@pytest.mark.parametrize(
    ("declared", "actual", "message"),
    [
        (("2*n",), (7,), "which is 7 for no n"),
        (("n + 4",), (3,), "which is 3 for no n"),
        (("n + s",), (7,), "from which n, s cannot be computed"),
        (("n//2",), (7,), "from which n cannot be computed"),
        (("n*s", "s"), (6, 4), "which is 6 for no n"),
        (("n", "n + 1"), (3, 5), "axis 1 is n \\+ 1 = 4 by other sizes"),
    ],
)
def test_dims_that_cannot_be_solved(declared: tuple[str, ...], actual: tuple[int, ...], message: str) -> None:
    with pytest.raises(CompilerError, match=message):
        bind_dims([Shaped("x", tuple(parse_dim(d) for d in declared), actual)], Facts())


# --- regions, weights, layouts -----------------------------------------------------------------------------------------------------


def test_a_fused_region_runs_its_body() -> None:
    def body(build: Builder, x: Value, y: Value) -> tuple[Value, ...]:
        inner = Block([x.type, y.type], ["a", "b"])
        at = Builder(build.module, inner)
        total = at(ops.Add(), *inner.args)
        at.create(ops.Yield(), at(ops.Exp(), total), total)
        return build.region(ops.Fused(ops.RegionKind.LOOP), [x, y], inner).results

    module = make(body, ("x", f32["n"]), ("y", f32["n"]))
    exp, total = evaluate(module, np.float32([0, 1]), np.float32([0, 1]))
    assert total.tolist() == [0, 2]
    assert exp.tolist() == [1, np.float32(math.exp(2))]


def test_weights_are_read_in_their_storage_shape() -> None:
    matrix = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    module = Module()
    module.add_weight(Weight("plain", f32[20, 6], matrix))
    module.add_weight(Weight("packed", TensorType((20, 6), f32, Panels(16)), lambda: pack_panels(matrix, 16)))

    def body(b: Builder, x: Value) -> tuple[Value, ...]:
        plain, packed = b(ops.WeightOp("plain")), b(ops.WeightOp("packed"))
        now = b(ops.Pack(Panels(8)), plain)
        return tuple(b(ops.Linear(), x, w, None) for w in (plain, packed, now))

    make(body, ("x", f32["n", 6]), module=module)
    a, b, c = evaluate(module, x)
    np.testing.assert_array_equal(a, round_to(x.astype(np.float64) @ matrix.astype(np.float64).T, f32))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_panels_are_padded_with_zeros_and_unpack() -> None:
    matrix = np.arange(15.0).reshape(5, 3) + 1
    panels = pack_panels(matrix, 4)
    assert panels.shape == (2, 3, 4)
    assert panels[0, 2].tolist() == matrix[:4, 2].tolist()
    assert panels[1, :, 1:].tolist() == np.zeros((3, 3)).tolist()
    np.testing.assert_array_equal(unpack_panels(panels, 5), matrix)


def test_deep_panels_are_padded_both_ways_and_unpack() -> None:
    matrix = np.arange(1, 36, dtype=np.int8).reshape(5, 7)
    panels = pack_panels(matrix, 4, 4)
    assert panels.shape == (2, 2, 4, 4) == Panels(4, 4).storage(matrix.shape)
    assert panels[0, 0, 1].tolist() == matrix[1, :4].tolist()
    assert panels[0, 1, 2].tolist() == [*matrix[2, 4:].tolist(), 0]
    assert not panels[1, :, 1:].any()
    for row, column in np.ndindex(5, 7):
        assert panels[Panels(4, 4).place((row, column))] == matrix[row, column]
    np.testing.assert_array_equal(unpack_panels(panels, 5, 7, 4), matrix)


def test_a_weight_without_bytes() -> None:
    module = Module()
    module.add_weight(Weight("w", f32[2], digest="sha256:00"))
    make(lambda b: b(ops.WeightOp("w")), module=module)
    fails(Code.MISSING_BYTES, module, match="the bytes of weight 'w' were not given")


def test_a_weight_of_another_shape_is_an_internal_error() -> None:
    module = Module()
    module.add_weight(Weight("w", f32[2], np.zeros(3, np.float32)))
    make(lambda b: b(ops.WeightOp("w")), module=module)
    with pytest.raises(InternalError, match=r"weight gave shape \[3\] where f32\[2\] = \[2\] was inferred"):
        evaluate(module)


def test_results_of_another_shape_are_an_internal_error() -> None:
    with pytest.raises(InternalError, match="neg gave shape"):
        evaluate_operation(ops.Neg(), [np.zeros(3)], [DType.f64[4]])
    with pytest.raises(InternalError, match="neg gave 1 results, 2 were inferred"):
        evaluate_operation(ops.Neg(), [np.zeros(3)], [DType.f64[3], DType.f64[3]])


# --- indices -----------------------------------------------------------------------------------------------------------------------

X = np.arange(12.0).reshape(3, 4)
INDEXED: list[tuple[Any, tuple[TensorType, ...], Callable[[int], tuple[np.ndarray, ...]], int]] = [
    (ops.Gather(0), (DType.f64[3, 4], i64[1]), lambda i: (X, np.array([i])), 3),
    (ops.Gather(1), (DType.f64[3, 4], i64[1]), lambda i: (X, np.array([i])), 4),
    (ops.GatherElements(1), (DType.f64[3, 4], i64[1, 1]), lambda i: (X, np.array([[i]])), 4),
    (ops.GatherNd(), (DType.f64[3, 4], i64[1, 2]), lambda i: (X, np.array([[0, i]])), 4),
    (ops.ScatterElements(0), (DType.f64[3, 4], i64[1, 1], DType.f64[1, 1]), lambda i: (X, np.array([[i]]), np.ones((1, 1))), 3),
    (ops.ScatterNd(), (DType.f64[3, 4], i64[1, 1], DType.f64[1, 4]), lambda i: (X, np.array([[i]]), np.ones((1, 4))), 3),
    (ops.Embedding(), (DType.f64[3, 4], i64[1]), lambda i: (X, np.array([i])), 3),
]


@pytest.mark.parametrize(("op", "types", "arrays", "size"), INDEXED, ids=lambda p: getattr(p, "mnemonic", ""))
def test_negative_indices_count_from_the_end_and_others_are_errors(op: Any, types: Any, arrays: Any, size: int) -> None:
    def body(b: Builder, *values: Value) -> Value:
        return b(op, *values, loc=Location("model.py", 42))

    module = make(body, *((f"a{i}", t) for i, t in enumerate(types)))
    for i in range(size):
        np.testing.assert_array_equal(evaluate(module, *arrays(i)), evaluate(module, *arrays(i - size)))
    for bad in (size, -size - 1, 2**40, -(2**40)):
        error = fails(Code.INDEX_OUT_OF_RANGE, module, *arrays(bad), match=f"index {bad} is out of range for size {size}")
        (diagnostic,) = error.diagnostics
        assert diagnostic.where.op == op.mnemonic
        assert (diagnostic.where.file, diagnostic.where.line) == ("model.py", 42)


def test_large_unsigned_indices_do_not_wrap_around() -> None:
    module = make(lambda b, x, i: b(ops.Gather(0), x, i), ("x", f32[3]), ("i", DType.u64[1]))
    fails(Code.INDEX_OUT_OF_RANGE, module, np.zeros(3, np.float32), np.array([2**64 - 1], np.uint64))


def test_the_later_update_wins() -> None:
    module = make(lambda b, x, i, u: b(ops.ScatterElements(0), x, i, u), ("x", f32[4]), ("i", i64["n"]), ("u", f32["n"]))
    result = evaluate(module, np.zeros(4, np.float32), np.array([1, 3, -3, 1]), np.float32([5, 6, 7, 8]))
    assert result.tolist() == [0, 8, 0, 6]


# --- rounding ----------------------------------------------------------------------------------------------------------------------


def test_a_float_op_rounds_once_and_wide_runs_never_round() -> None:
    module = make(lambda b, x: b(ops.ReduceSum((0,)), b(ops.Exp(), x)), ("x", bf16["n"]))
    x = round_to(np.linspace(-1, 1, 50), bf16)
    wide = x.astype(np.float64)
    exact = np.exp(wide).sum()
    narrow = evaluate(module, x)
    assert narrow.dtype == bf16.numpy
    np.testing.assert_array_equal(narrow, round_to(round_to(np.exp(wide), bf16).astype(np.float64).sum(), bf16))
    for given in (x, wide):
        result = evaluate(module, given, wide=True)
        assert result.dtype == np.float64
        assert result == exact
    assert narrow != exact


def test_wide_runs_keep_integers_and_bools() -> None:
    module = make(lambda b, x: (b(ops.Cast(DType.i8), x), b(ops.IsNan(), x), b(ops.Cast(bf16), x)), ("x", f32["n"]))
    integer, boolean, narrow = evaluate(module, np.float32([0.1, 300]), wide=True)
    assert integer.dtype == np.int8
    assert integer.tolist() == [0, 127]
    assert boolean.dtype == np.bool_
    assert narrow.tolist() == [float(np.float32(0.1)), 300.0]


def nearest(value: Fraction, dtype: DType, around: float) -> float:
    """The number of a dtype that is nearest to an exact value, by looking at the neighbours; ties to the even significand."""
    start = np.array(around).astype(dtype.numpy)
    ends = [np.array(e).astype(dtype.numpy) for e in (-np.inf, np.inf)]
    candidates = [start, *(np.nextafter(start, e) for e in ends)]
    bits = {2: np.uint16, 4: np.uint32}[dtype.itemsize]
    return float(min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(np.atleast_1d(c).view(bits)[0]) & 1)))


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f16, DType.f32], ids=str)
def test_rounding_from_float64_is_to_nearest_even(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=300).astype(dtype.numpy)
    up = np.nextafter(base, np.array(np.inf).astype(dtype.numpy)).astype(np.float64)
    middle = (base.astype(np.float64) + up) / 2
    values = np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf), rng.normal(size=200)])
    got = round_to(values, dtype)
    for value, result in zip(values.tolist(), got.astype(np.float64).tolist(), strict=True):
        assert result == nearest(Fraction(value), dtype, result)


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f32], ids=str)
@pytest.mark.parametrize("source", [np.int64, np.uint64, np.int32])
def test_rounding_from_integers_is_to_nearest_even(dtype: DType, source: type[Any]) -> None:
    rng = np.random.default_rng(0)
    info = np.iinfo(source)
    values = rng.integers(info.min, info.max, 300, dtype=source)
    halves = [(k << s) + (1 << (s - 1)) + d for k in (257, 131, 128, 2**24 + 1) for s in (6, 28, 38, 54, 55) for d in (-1, 0, 1)]
    values = np.concatenate([values, np.array([h for h in halves if h <= info.max], source)])
    for value, result in zip(values.tolist(), round_to(values, dtype).astype(np.float64).tolist(), strict=True):
        assert result == nearest(Fraction(value), dtype, result)


def test_rounding_keeps_what_needs_no_rounding() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300, -1e300, 1e-300])
    result = round_to(special, bf16).astype(np.float64)
    np.testing.assert_array_equal(result, [np.nan, np.inf, -np.inf, 0.0, -0.0, np.inf, -np.inf, 0.0])
    assert np.signbit(result[4])
    assert round_to(np.float64(1.5), bf16).shape == ()
    same = np.float32([1.0])
    assert round_to(same, f32) is same


# --- memory and context ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_objects")
def test_values_are_dropped_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    original = interpreter.evaluate_operation

    def spy(*args: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        nonlocal most
        results = original(*args, **kwargs)
        alive.extend(weakref.ref(r) for r in results)
        gc.collect()
        most = max(most, sum(r() is not None for r in alive))
        return results

    monkeypatch.setattr(interpreter, "evaluate_operation", spy)

    def chain(b: Builder, x: Value) -> Value:
        for _ in range(10):
            b(ops.Exp(), x)  # unused
            x = b(ops.Neg(), x)
        return x

    evaluate(make(chain, ("x", f32["n"])), np.zeros(4, np.float32))
    assert len(alive) == 20
    assert most <= 3


def test_references_may_ask_for_sizes() -> None:
    dims: tuple[Dim, ...] = (N, floordiv(S, 2))
    context = EvalContext({"n": 3, "s": 9}, (f32[dims],))
    assert context.result_shape == (3, 4)
    assert context.size(N + 1) == 4


def test_constants_of_every_kind() -> None:
    values = [Literal.of([1.5, 2.5], bf16), Literal.of(True), Literal.of([[1], [2]], DType.u8), Literal.of(1 + 2j, DType.c64)]
    for value in values:
        result = evaluate(make(lambda b, v=value: b(ops.Constant(v))))
        assert result.dtype == value.dtype.numpy
        np.testing.assert_array_equal(result, value.array)
