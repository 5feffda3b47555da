"""Products in 8-bit floats: what the pass writes, what it leaves alone and why, and what compiled models make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.manager import PassLog, PassManager, parse_pipeline
from trustformers_ir.passes.quantize_f8 import QuantizeF8
from trustformers_ir.passes.registry import PASSES
from trustformers_ir.passes.widen_f8 import WidenF8

f32, bf16 = tfir.f32, tfir.bf16
RNG = np.random.default_rng(5)
ALL = QuantizeF8(heads=True)
Trace = Callable[..., Any]
SMALL = "random:llama?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=99"


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def run(module: Module, pass_: QuantizeF8 = ALL) -> PassLog:
    return PassManager([pass_, Dce()], verify=True).run(module).passes[0].log


def count(module: Module, kind: type) -> int:
    return sum(isinstance(o.op, kind) for o in module.walk())


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Written down plainly, in numpy."""
    f8 = DType.f8e4m3.numpy
    s, t = (np.abs(a).max(1) / np.float32(448) for a in (x, weight))
    q, c = ((a * (np.float32(1) / scale)[:, None]).astype(f8).astype(np.float64) for a, scale in ((x, s), (weight, t)))
    found: np.ndarray = q @ c.T * (s[:, None] * t) + bias
    return found


@pytest.mark.parametrize("matmul", [False, True])
def test_a_product_is_what_the_formulas_say(matmul: bool) -> None:
    weight, bias, x = normal(40, 67), normal(40), normal(5, 67)
    stored = np.ascontiguousarray(weight.T)
    module = tfir.trace(lambda x: x @ F.tensor(stored) + F.tensor(bias) if matmul else F.linear(x, F.tensor(weight), F.tensor(bias)), f32["n", 67])
    exact = evaluate(module, x)
    run(module)
    assert [count(module, k) for k in (ops.Linear, ops.MatMul, ops.QuantizeF8, ops.LinearF8)] == [0, 0, 1, 1]
    got = evaluate(module, x)
    np.testing.assert_allclose(got, by_hand(x, weight, bias), rtol=1e-6, atol=1e-6)
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact - bias)
    assert 0.02 < error < 0.05  # two roundings to 4 digits, spread evenly over steps of 1/8 to 1/16: 1/40 each


def test_activations_of_16_bits_stay_what_they_are() -> None:
    weight, bias = (a.astype(bf16.numpy) for a in (normal(40, 64), normal(40)))
    module = tfir.trace(lambda x: F.gelu(F.linear(x, F.tensor(weight), F.tensor(bias))), bf16["n", 64])
    run(module)
    assert count(module, ops.LinearF8) == 1 and module.main.outputs[0].type.dtype is DType.bf16
    (product,) = (o for o in module.walk() if isinstance(o.op, ops.LinearF8))
    assert [None if v is None else v.type.dtype for v in product.operands] == [DType.f8e4m3, DType.f32, DType.f8e4m3, DType.f32, DType.f32]


def test_an_activation_is_quantized_once() -> None:
    module = tfir.trace(lambda x: F.linear(x, F.tensor(normal(40, 64))) + F.linear(x, F.tensor(normal(40, 64))), f32["n", 64])
    assert run(module).counts == {"products in fp8": 2, "activations quantized": 1}


def bad(array: np.ndarray, value: float) -> np.ndarray:
    array[3, 5] = value
    return array


REFUSALS: dict[str, tuple[Trace, Any, QuantizeF8, str]] = {
    "kept by name": (lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64], QuantizeF8(keep=("*",), heads=True), "keep names it"),
    "head": (lambda x: F.tanh(F.linear(x, F.tensor(normal(40, 64)))), f32["n", 64], QuantizeF8(), "it is a head"),
    "small": (lambda x: F.linear(x, F.tensor(normal(40, 16))), f32["n", 16], ALL, "below min_size = 32"),
    "computed": (lambda x: F.linear(x, F.tensor(normal(40, 64)) * x.sum()), f32["n", 64], ALL, "not known at build time"),
    "dtype": (lambda x: F.linear(x, F.tensor(normal(40, 64).astype(np.float64))), tfir.f64["n", 64], ALL, "only bf16, f16, f32 is quantized"),
    "NaN": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), np.nan))), f32["n", 64], ALL, "not finite"),
    "infinity": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), np.inf))), f32["n", 64], ALL, "not finite"),
    "error": (lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64], QuantizeF8(heads=True, max_error=0.01), "would move by"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_stays_as_it_is_and_why(case: str) -> None:
    fn, spec, pass_, reason = REFUSALS[case]
    module = tfir.trace(fn, spec)
    before = str(module)
    (row,) = run(module, pass_).rows
    assert not row["fp8"] and reason in str(row["reason"])
    assert str(module) == before, "a refusal leaves nothing behind"


def test_cpus_compute_the_same_numbers_in_f32() -> None:
    weight, bias, x = normal(48, 64), normal(48), normal(7, 64)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight), F.tensor(bias)), f32["n", 64])
    run(module)
    want = evaluate(module, x)
    PassManager([WidenF8(), Dce()], verify=True).run(module)
    assert (count(module, ops.LinearF8), count(module, ops.Linear)) == (0, 1)
    (wide,) = (w for w in module.weights.values() if w.type.dtype is DType.bf16)
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(448)
    np.testing.assert_array_equal(wide.data.astype(np.float32), (weight * (np.float32(1) / scale)).astype(DType.f8e4m3.numpy).astype(np.float32))
    np.testing.assert_allclose(evaluate(module, x), want, rtol=1e-6, atol=1e-6)


def test_gpus_read_them_as_they_lie() -> None:
    module = tfir.trace(lambda x: F.layer_norm(F.linear(x, F.tensor(normal(48, 64)))), f32["n", 64])
    PassManager(pipelines.gpu(QuantizeF8())).run(module)
    assert (count(module, ops.LinearF8), count(module, ops.Linear)) == (1, 0)


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_compiled_models_are_what_the_interpreter_says(dtype: str | None) -> None:
    exe = tfir.compile(SMALL, quantize="fp8", dtype=dtype)
    told: Any = exe.report()["quantization"]
    assert told["recipe"] == "fp8" and told["fp8"] == len(told["products"]) == 10
    given = {"input_ids": RNG.integers(0, 99, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}
    got, want = (np.asarray(y, np.float64) for y in (exe(**given), evaluate(exe.module, **given)))
    assert np.abs(got - want).max() <= (1e-4 if dtype is None else 0.1) * np.abs(want).max()
    plain = np.asarray(tfir.compile(SMALL, dtype=dtype)(**given), np.float64)
    assert 0.02 < np.linalg.norm(got - plain) / np.linalg.norm(plain) < 0.2  # ten products of 0.037 each: 0.037 * sqrt(10) = 0.12


def test_the_error_of_every_product() -> None:
    weights = [RNG.uniform(-1, 1, (64, 64)).astype(np.float32) for _ in range(2)]
    report = tfir.quantization_error(
        lambda x: F.layer_norm(F.linear(F.gelu(F.linear(x, F.tensor(weights[0]))), F.tensor(weights[1]))),
        [{"x": normal(64, 64)}],
        tfir.Fp8(),
        example_inputs={"x": f32["n", 64]},
    )
    assert [0.02 < p.own.relative < 0.05 for p in report.products] == [True, True]
    assert report.recipe == "fp8" and not report.kept


def test_a_quantized_module_is_text_that_reads_back() -> None:
    module = tfir.trace(lambda x: F.layer_norm(F.linear(x, F.tensor(normal(40, 64)))), f32["n", 64])
    x = normal(3, 64)
    run(module)
    by_digest = {w.digest: w.data for w in module.weights.values()}
    again = parse_module(str(module), resolve=lambda digest, type: by_digest.get(digest))
    assert str(again) == str(module) and ": f8e4m3[40, 64]" in str(module)
    np.testing.assert_array_equal(evaluate(again, x), evaluate(module, x))


def test_options_are_text() -> None:
    text = "quantize_f8{keep=a.*+b?,heads=true,min_size=8,max_error=0.1}"
    (made,) = parse_pipeline(text, PASSES)
    assert made == QuantizeF8(("a.*", "b?"), True, 8, 0.1) and str(made) == text
    with pytest.raises(tfir.CompilerError, match=r"max_error is -1\.0"):
        parse_pipeline("quantize_f8{max_error=-1}", PASSES)
    with pytest.raises(tfir.CompilerError, match="nothing is learnt from it"):
        tfir.compile(SMALL, quantize="fp8", calibration=["a text"])
