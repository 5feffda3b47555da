"""``trace``: names of arguments and results, nests, symbols, constants and weights, locations."""

from __future__ import annotations

import functools
import inspect
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Location, Module, Weight
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names, evaluate
from trustformers_ir.ir.ops import Add, Cast, Constant, WeightOp
from trustformers_ir.ir.parameters import Parameter, Parameters, Scope
from trustformers_ir.ir.tracing import promote, promote_scalar

f32, f64, i64 = DType.f32, DType.f64, DType.i64
Pair = namedtuple("Pair", ["first", "second"])


def names(module: Module) -> tuple[list[str], list[str]]:
    return argument_names(module.main), [v.name for v in module.main.outputs]


def mnemonics(module: Module) -> list[str]:
    return [o.op.mnemonic for o in module.main.body]


def test_names_come_from_the_signature_and_the_results() -> None:
    def attend(query: Any, key: Any, *rest: Any, scale: Any, **more: Any) -> Any:
        return {"sum": query + key + rest[0] + rest[1], "more": [scale * 2, more["mask"] + 1], "pair": Pair(query * 1, key * 2)}

    module = trace(attend, f32[2], f32[2], f32[2], f32[2], scale=f32[()], mask=f32[2])
    assert names(module) == (
        ["query", "key", "rest_0", "rest_1", "scale", "mask"],
        ["sum", "more_0", "more_1", "pair_first", "pair_second"],
    )
    assert module.name == "attend"
    assert names(trace(lambda x: x + 1, f32[2]))[1] == ["output"]
    assert names(trace(lambda x: (x + 1, x + 2), f32[2]))[1] == ["output_0", "output_1"]
    assert trace(lambda x: x + 1, f32[2], name="other").name == "other"
    assert names(trace(functools.partial(lambda x, y: x - y, y=3), f32[2]))[0] == ["x"]
    assert names(trace(lambda x: {"a b": x + 1, "a.b": x + 2, "1": x + 3, None: x + 4}, f32[2]))[1] == ["a_b", "a_b_2", "output_1", "None"]


def test_a_result_that_has_a_name_already_gets_the_one_that_was_chosen() -> None:
    """An input that is passed on, and one value under two names."""

    def fn(x: Any, y: Any) -> Any:
        total = x + y
        return {"copy": x, "y": y, "total": total, "again": total}

    module = trace(fn, f32["n"], f32["n"])
    assert names(module) == (["x", "y"], ["copy", "y", "total", "again"])
    exe = tfir.compile(module)
    assert [p.name for p in exe.inputs] == ["x", "y"] and [p.name for p in exe.outputs] == ["copy", "y", "total", "again"]
    one, two = np.arange(3, dtype=np.float32), np.full(3, 5, np.float32)
    for got, want in zip(exe(one, two), (one, two, one + two, one + two), strict=True):
        np.testing.assert_array_equal(got, want)
    assert "reshape" not in str(exe.module)  # passes see that nothing is done
    assert names(trace(lambda x: (x, x), f32[2]))[1] == ["x", "x"]  # nobody chose a name


def test_inputs_nest() -> None:
    def step(x: Any, cache: Any, flag: Any, nothing: Any) -> Any:
        assert flag is True and nothing is None and isinstance(cache["pair"], Pair)
        return x + cache["keys"][0] * cache["keys"][1] + cache["pair"].first

    spec = {"keys": (f32[2], f32[2]), "pair": Pair(f32[()], 5)}
    module = trace(step, f32[2], spec, True, None)
    assert names(module)[0] == ["x", "cache_keys_0", "cache_keys_1", "cache_pair_first"]
    one = np.ones(2, np.float32)
    np.testing.assert_array_equal(evaluate(module, one, one * 2, one * 3, np.float32(4)), one * 11)


def test_symbols_and_their_facts() -> None:
    module = trace(lambda x, y: x, f32["batch", "2*seq"], f32["seq"], facts={"seq": (1, 512), "batch": SymbolFact(2, None, 2)})
    assert module.facts.symbols == {"batch": SymbolFact(2, None, 2), "seq": SymbolFact(1, 512)}
    module = trace(lambda x: x, f32["n", "m"], facts={"m": 4})
    assert module.facts.symbols == {"n": SymbolFact(), "m": SymbolFact(4, 4)}


def test_example_arrays_fix_shapes() -> None:
    module = trace(lambda x, y: x + y, np.zeros((2, 3), np.float32), np.int64(3))
    assert module.main.input_types == [f32[2, 3], i64[()]]


def test_small_arrays_are_constants_and_large_ones_weights() -> None:
    small, large = np.arange(4.0, dtype=np.float32), np.arange(400.0, dtype=np.float32).reshape(4, 100)
    module = trace(lambda x: (x + small) @ large + (x @ large.copy()), f32["n", 4])
    (weight,) = module.weights.values()
    assert weight.name.startswith("constant_") and weight.type == f32[4, 100]
    assert sum(isinstance(o.op, Constant) for o in module.walk()) == 1
    assert sum(isinstance(o.op, WeightOp) for o in module.walk()) == 1
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(evaluate(module, x), (x + small) @ large + x @ large, rtol=1e-6)


def test_parameters_are_asked_for_by_name() -> None:
    parameters = Parameters()
    scope = Scope(parameters).child("encoder").child("layer", 0)
    weight, bias = scope.param("weight", (3, 4)), scope.param("bias", (3,))
    assert scope.param("bias", (3,)) is bias and "encoder.layer.0.bias" in parameters and len(parameters) == 2
    assert [str(p) for p in parameters] == ["encoder.layer.0.weight: f32[3, 4]", "encoder.layer.0.bias: f32[3]"]
    with pytest.raises(ValueError, match="again"):
        scope.param("bias", (4,))

    def model(x: Any) -> Any:
        return F.linear(x, weight, bias) * 2 + bias

    arrays = {"encoder.layer.0.weight": np.ones((3, 4), np.float16), "encoder.layer.0.bias": np.arange(3, dtype=np.float32)}
    module = trace(model, f32["n", 4], weights=arrays)
    assert list(module.weights) == list(arrays)
    assert mnemonics(module).count("weight") == 2 and mnemonics(module).count("cast") == 1
    np.testing.assert_array_equal(evaluate(module, np.ones((1, 4), np.float32)), [[8, 11, 14]])
    given = Weight("w", f32[2], np.ones(2, np.float32))
    assert trace(lambda x: x + Parameter("w", (2,)), f32[2], weights={"w": given}).weights == {"w": given}


def test_optional_parts_follow_the_checkpoint() -> None:
    scope = Scope(Parameters(available={"a.b.weight"}), "a")
    assert scope.has("b.weight", "c.weight") and not scope.has("c.weight")
    assert Scope(Parameters(), "a").has("anything")


def test_arrays_and_numbers_may_be_returned() -> None:
    module = trace(lambda x: {"x": x, "array": np.arange(3), "one": 1.5, "none": None}, f32[2])
    x, array, one = evaluate(module, np.zeros(2, np.float32))
    assert names(module)[1] == ["x", "array", "one"]
    assert array.tolist() == [0, 1, 2] and one == 1.5 and one.dtype == np.float32 and x.shape == (2,)


def test_every_operation_has_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])

    def helper(x: Any) -> Any:
        return x.softmax(-1)

    def model(x: Any) -> Any:
        y = x * 2
        y = helper(y)
        return y.tile(2, 1).std(0)

    module = trace(model, f32["n", 4])
    start = inspect.getsourcelines(model)[1]
    inner = inspect.getsourcelines(helper)[1] + 1
    lines = {(o.op.mnemonic, o.loc.line) for o in module.main.body if o.loc is not None and not o.op.terminator}
    assert lines == {
        ("constant", start + 1),
        ("mul", start + 1),
        ("softmax", inner),
        ("reshape", start + 3),
        ("expand", start + 3),
        ("reduce_std", start + 3),
    }
    assert {o.loc.file for o in module.main.body if o.loc} == {"tests/frontend/test_trace_api.py"}
    assert all(o.loc and o.loc.function.endswith(("model", "helper")) for o in module.main.body if not o.op.terminator)


def test_locations_hide_where_the_machine_keeps_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def model(x):\n    return x + 1\n"
    (tmp_path / "inside").mkdir()
    space: dict[str, Any] = {}
    exec(compile(source, str(tmp_path / "inside" / "model.py"), "exec"), space)

    def location() -> Location | None:
        return next(o.loc for o in trace(space["model"], f32[2]).walk() if isinstance(o.op, Add))

    monkeypatch.chdir(tmp_path)
    assert location() == Location("inside/model.py", 2, "model")
    monkeypatch.chdir(tmp_path / "inside")
    assert location() == Location("model.py", 2, "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert location() == Location("model.py", 2, "model")


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        ("bool", "i8", "i8"),
        ("i8", "i32", "i32"),
        ("u8", "u16", "u16"),
        ("u8", "i8", "i16"),
        ("u8", "i16", "i16"),
        ("i8", "u16", "i32"),
        ("u32", "i32", "i64"),
        ("i64", "f16", "f16"),
        ("f16", "bf16", "f32"),
        ("f32", "bf16", "f32"),
        ("f64", "f32", "f64"),
        ("i64", "c64", "c64"),
        ("f64", "c64", "c128"),
        ("c64", "c128", "c128"),
        ("bool", "f32", "f32"),
        ("u64", "u8", "u64"),
    ],
)
def test_promotion(a: str, b: str, result: str) -> None:
    x, y, want = DType.parse(a), DType.parse(b), DType.parse(result)
    assert promote(x, y) is promote(y, x) is want
    module = trace(lambda x, y: F.where(True, x, y), x[3], y[3])
    assert module.main.output_types == [want[3]]
    assert sum(isinstance(o.op, Cast) for o in module.walk()) == (x is not want) + (y is not want)


def test_scalars_are_weak() -> None:
    for dtype, number, want in (
        (DType.f16, 2, DType.f16),
        (DType.bf16, 2.5, DType.bf16),
        (DType.i8, 2, DType.i8),
        (DType.i64, 2.5, DType.f32),
        (DType.bool, 2, DType.i64),
        (DType.bool, True, DType.bool),
        (DType.bool, 2.5, DType.f32),
        (DType.f32, 1j, DType.c64),
        (DType.f64, 1j, DType.c128),
    ):
        assert promote_scalar(dtype, number) is want
    x = f32[2]
    for number in (np.float64(0.5), np.int8(2), np.float32(1), 2, True):
        assert trace(lambda x, n=number: x * n, x).main.output_types == [x]
        assert trace(lambda x, n=number: n * x, x).main.output_types == [x]
    assert trace(lambda x: np.ones(2) * x, x).main.output_types == [f64[2]]


def test_torch_arrays_and_dtypes_are_understood() -> None:
    import torch

    module = trace(lambda x: (x + torch.ones(2)).to(torch.float16).to("torch.bfloat16"), torch.zeros(2))
    assert module.main.input_types == [f32[2]] and module.main.output_types == [DType.bf16[2]]


def test_traces_nest() -> None:
    inner: list[Module] = []

    def model(x: Any) -> Any:
        inner.append(trace(lambda y: y * 2, f32[3]))
        return x + 1

    outer = trace(model, f32[2])
    assert mnemonics(outer) == ["constant", "add", "return"] and mnemonics(inner[0]) == ["constant", "mul", "return"]
