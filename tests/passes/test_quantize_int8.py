"""Products in 8-bit integers: what the pass writes, to the bit, what it leaves alone, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.calibration import Range
from trustformers_ir.passes.cse import Cse
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.linears import products
from trustformers_ir.passes.manager import PassLog, PassManager, parse_pipeline
from trustformers_ir.passes.merge_linears import MergeLinears
from trustformers_ir.passes.pack_weights import PackWeights
from trustformers_ir.passes.quantize_f8 import QuantizeF8
from trustformers_ir.passes.quantize_int8 import Int8Matrix, QuantizeInt8
from trustformers_ir.passes.registry import PASSES
from trustformers_ir.passes.weights import step_of, steps_of

f32 = tfir.f32
RNG = np.random.default_rng(7)
ALL = QuantizeInt8(heads=True)
Trace = Callable[..., Any]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def run(module: Module, quantize: QuantizeInt8 = ALL) -> PassLog:
    return PassManager([quantize, Dce()], verify=True).run(module).passes[0].log


def count(module: Module, kind: type) -> int:
    return sum(isinstance(o.op, kind) for o in module.walk())


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Dynamic int8 written down plainly, in numpy."""
    step = np.abs(weight).max(1) / np.float32(127)
    w = np.clip(np.rint(weight / step[:, None]), -127, 127).astype(np.int64)
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    scale = (high / np.float32(2) - low / np.float32(2)) / np.float32(127.5)
    inverse = (np.float32(1) / scale).astype(np.float64)
    zero = np.clip(np.rint(-low * inverse), 0, 255)
    q = np.clip(np.rint(x * inverse) + zero, 0, 255).astype(np.int64)
    total = (q - zero.astype(np.int64)) @ w.T
    return total.astype(np.float32) * (scale * step) + bias


def test_a_linear_is_what_the_formulas_say() -> None:
    weight, bias, x = normal(40, 67), normal(40), normal(5, 67)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight), F.tensor(bias)), f32["n", 67])
    exact = evaluate(module, x)
    run(module)
    assert [count(module, k) for k in (ops.Linear, ops.QuantizeDynamic, ops.LinearInt8)] == [0, 1, 1]
    got = evaluate(module, x)
    np.testing.assert_array_equal(got, by_hand(x, weight, bias))
    error = np.sqrt(np.square(got - exact).mean() / np.square(exact - bias).mean())
    assert 0.003 < error < 0.015  # two roundings of about 1/127 of the largest of a row, uniform; a wrong scale would be far outside


@pytest.mark.parametrize("ties", [0.5, 1.5, -0.5, -2.5, 126.5])
def test_weights_round_half_to_even(ties: float) -> None:
    rows = np.array([[127.0, ties, -127.0]], np.float32)
    np.testing.assert_array_equal(steps_of(rows, step_of(np.abs(rows).max(1))), [[127, int(np.rint(ties)), -127]])


def test_rows_of_zeros_and_of_the_smallest_numbers() -> None:
    largest = np.array([0, 1e-45, 1e-38, 3.4e38], np.float32)
    scale = step_of(largest)
    assert scale[0] == 1 and scale[1] == np.float32(2.0**-126) and np.isfinite(1 / scale).all()
    steps = steps_of(np.repeat(largest[:, None], 2, 1) * np.float32([[1, -1]]), scale)
    assert steps[0].tolist() == [0, 0] and steps[3].tolist() == [127, -127]


def test_weights_are_integers_scales_and_sums() -> None:
    weight = normal(33, 48)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight)), f32["n", 48])
    run(module)
    (product,) = (o for o in module.walk() if isinstance(o.op, ops.LinearInt8))
    names = [v.producer.op.name for v in product.inputs[3:6]]  # type: ignore[union-attr]
    integers, scale, sums = (module.weights[n].data for n in names)
    assert (integers.dtype, scale.dtype, sums.dtype) == (np.int8, np.float32, np.int32)
    np.testing.assert_array_equal(np.abs(integers.astype(int)).max(1), 127)
    np.testing.assert_array_equal(sums, integers.sum(1, dtype=np.int32))
    assert np.abs(integers * scale[:, None] - weight).max() <= scale.max() / 2 * 1.0001


def test_sums_do_not_need_the_integers_first() -> None:
    weight = normal(33, 48)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight)), f32["n", 48])
    run(module)
    sums, integers = (next(w.data for n, w in module.weights.items() if n.endswith(end)) for end in (".sum", ".int8"))
    np.testing.assert_array_equal(sums, integers.sum(1, dtype=np.int32))


def test_matmul_has_its_weight_the_other_way_round() -> None:
    weight, x = normal(67, 40), normal(5, 67)
    module = tfir.trace(lambda x: x @ F.tensor(weight), f32["n", 67])
    run(module)
    np.testing.assert_array_equal(evaluate(module, x), by_hand(x, weight.T, np.zeros(40, np.float32)))


def test_an_activation_is_quantized_once() -> None:
    def three(x: Any) -> Any:
        return F.linear(x, F.tensor(normal(40, 64))), F.linear(x, F.tensor(normal(50, 64))), x @ F.tensor(normal(64, 60))

    module = tfir.trace(three, f32["n", 64])
    log = run(module)
    assert log.counts == {"products in int8": 3, "activations quantized": 1}
    assert count(module, ops.QuantizeDynamic) == 1
    assert not PassManager([Cse()]).run(module).passes[0].log.counts, "nothing is computed twice"


def test_static_activations_have_constants() -> None:
    weight, x = normal(40, 67), normal(5, 67)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight)), f32["n", 67])
    exact = evaluate(module, x)
    (name,) = (n for n in module.weights)
    known = Range(float(x.min()), float(x.max()))
    log = run(module, QuantizeInt8(heads=True, ranges={name.removesuffix(".weight"): known}))
    assert log.counts["products in int8"] == 1 and count(module, ops.QuantizeStatic) == 1
    got = evaluate(module, x)
    assert 0.003 < np.sqrt(np.square(got - exact).mean() / np.square(exact).mean()) < 0.02


def test_the_pipeline_merges_first_and_packs_after() -> None:
    heads = lambda x: x.reshape(x.shape[0], x.shape[1], 4, 16).transpose(1, 2)  # noqa: E731
    weights = [normal(64, 64) for _ in range(3)]

    def attend(x: Any) -> Any:
        return F.attention(*(heads(F.linear(x, F.tensor(w))) for w in weights))

    module = tfir.trace(attend, f32["b", "s", 64])
    PassManager(pipelines.cpu(48, ALL), verify=True).run(module)
    assert (count(module, ops.QuantizeDynamic), count(module, ops.LinearInt8), count(module, ops.Linear)) == (1, 1, 0)
    (product,) = (o for o in module.walk() if isinstance(o.op, ops.LinearInt8))
    assert str(product.inputs[3].type) == "i8[192, 64]{panels 48 4}"


def bad(weight: np.ndarray, value: float) -> np.ndarray:
    weight[0, 0] = value
    return weight


BF16 = tfir.bf16
STRICT = QuantizeInt8(heads=True, max_error=0.01)
REFUSALS: dict[str, tuple[Trace, Any, QuantizeInt8, str]] = {
    "kept by name": (lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64], QuantizeInt8(keep=("nothing", "*"), heads=True), "keep names it"),
    "head": (lambda x: F.tanh(F.linear(x, F.tensor(normal(40, 64)))), f32["n", 64], QuantizeInt8(), "it is a head"),
    "few outputs": (lambda x: F.linear(x, F.tensor(normal(31, 64))), f32["n", 64], ALL, "31 outputs of 64 terms"),
    "few terms": (lambda x: F.linear(x, F.tensor(normal(64, 31))), f32["n", 31], ALL, "64 outputs of 31 terms"),
    "many terms": (lambda x: F.linear(x, F.tensor(normal(32, 70000))), f32["n", 70000], ALL, "may leave an i32"),
    "computed": (lambda x: F.linear(x, F.tensor(normal(40, 64)) * x.sum()), f32["n", 64], ALL, "not known at build time"),
    "dtype": (lambda x: F.linear(x, F.tensor(normal(40, 64).astype(BF16.numpy))), BF16["n", 64], ALL, "only f32 is quantized"),
    "NaN": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), np.nan))), f32["n", 64], ALL, "not finite"),
    "infinity": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), np.inf))), f32["n", 64], ALL, "not finite"),
    "outliers": (lambda x: F.linear(x, F.tensor(np.sinh(20 * normal(40, 64)))), f32["n", 64], STRICT, "would move by"),
    "not seen": (lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64], QuantizeInt8(heads=True, ranges={}), "calibration has not seen"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_stays_in_f32_and_why(case: str) -> None:
    fn, spec, quantize, reason = REFUSALS[case]
    module = tfir.trace(fn, spec)
    before = str(module)
    log = run(module, quantize)
    (row,) = log.rows
    assert not row["int8"] and reason in str(row["reason"])
    assert [(what, times) for (what, why), times in log.misses.items() if reason in why] == [(f"{row['name']} in int8", 1)]
    assert str(module) == before, "a refusal leaves nothing behind"


@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30])
def test_the_expected_error_is_the_one_that_comes(factor: float) -> None:
    weight = (normal(64, 512) * np.float32(factor)).astype(np.float32)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight)), f32["n", 512])
    (product,) = products(module)
    matrix = Int8Matrix(product)
    wide = weight.astype(np.float64)
    moved = matrix.integers() * matrix.scale[:, None].astype(np.float64) - wide
    assert matrix.error == pytest.approx(np.sqrt(np.square(moved).sum() / np.square(wide).sum()), rel=0.02)


def test_the_row_of_a_product_says_where_it_is() -> None:
    module = tfir.trace(lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64])
    (row,) = run(module).rows
    assert row["int8"] and row["reason"] is None and (row["outputs"], row["terms"]) == (40, 64)
    assert "test_quantize_int8.py" in str(row["location"])


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("BertModel", ["pooler.dense"]),
        ("BertForMaskedLM", ["embeddings.word_embeddings"]),  # the logits, whose weight is that table; the transform before them is no head
        ("BertForPreTraining", ["cls.seq_relationship", "embeddings.word_embeddings"]),
        ("BertForSequenceClassification", ["classifier"]),  # which makes the pooler a product like any other
        ("BertForQuestionAnswering", ["qa_outputs"]),
    ],
)
def test_heads_are_what_results_are_made_of_directly(architecture: str, heads: list[str]) -> None:
    fields = "hidden_size=64&num_hidden_layers=1&num_attention_heads=4&intermediate_size=128&vocab_size=64&max_position_embeddings=64"
    module = tfir.api.to_module(f"random:bert?{fields}&architecture={architecture}")
    log = PassManager([MergeLinears(), QuantizeInt8(min_size=1)], verify=True).run(module).passes[1].log
    kept = {str(row["name"]): str(row["reason"]) for row in log.rows if not row["int8"]}
    assert all("it is a head" in reason for reason in kept.values())
    assert list(kept) == heads and log.counts["products in int8"] == len(log.rows) - len(heads) >= 4


@pytest.mark.parametrize(("quantize", "kind"), [(QuantizeInt8(heads=True, min_size=1), "int8"), (QuantizeF8(heads=True, min_size=1), "fp8")])
def test_what_chooses_experts_stays(quantize: QuantizeInt8 | QuantizeF8, kind: str) -> None:
    fields = "hidden_size=64&num_hidden_layers=2&num_attention_heads=4&num_key_value_heads=2&intermediate_size=128&vocab_size=64&num_local_experts=4"
    module = tfir.api.to_module(f"random:mixtral?{fields}")
    kept = {str(row["name"]): str(row["reason"]) for row in PassManager([quantize], verify=True).run(module).passes[0].log.rows if not row[kind]}
    assert list(kept) == [f"layers.{n}.block_sparse_moe.gate" for n in range(2)] and all("it chooses experts" in reason for reason in kept.values())


def test_a_product_before_another_is_no_head() -> None:
    module = tfir.trace(lambda x: F.linear(F.gelu(F.linear(x, F.tensor(normal(64, 64)))), F.tensor(normal(64, 64))), f32["n", 64])
    assert [row["int8"] for row in run(module, QuantizeInt8()).rows] == [True, False]


@pytest.mark.parametrize("packed", [False, True])
def test_a_quantized_module_is_text_that_reads_back(packed: bool) -> None:
    weight, x = normal(40, 67), normal(3, 67)
    module = tfir.trace(lambda x: F.layer_norm(F.linear(x, F.tensor(weight))), f32["n", 67])
    PassManager([QuantizeInt8(), *([PackWeights()] if packed else []), Dce()]).run(module)
    by_digest = {w.digest: w.data for w in module.weights.values()}
    again = parse_module(str(module), resolve=lambda digest, type: by_digest.get(digest))
    assert str(again) == str(module) and "linear_int8" in str(module) and ("{panels 48 4}" in str(module)) == packed
    np.testing.assert_array_equal(evaluate(again, x), evaluate(module, x))


def test_options_are_text() -> None:
    text = "quantize_int8{keep=a.*+b?,heads=true,min_size=16,max_error=0.1}"
    (made,) = parse_pipeline(text, PASSES)
    assert made == QuantizeInt8(("a.*", "b?"), True, 16, 0.1) and str(made) == text
    with pytest.raises(tfir.CompilerError, match=r"min_size is 0.*max_error is -1\.0"):
        parse_pipeline("quantize_int8{min_size=0,max_error=-1}", PASSES)
    with pytest.raises(tfir.CompilerError, match="no option 'ranges'"):
        parse_pipeline("quantize_int8{ranges=x}", PASSES)


def test_looking_changes_no_result() -> None:
    weights = [normal(64, 64), normal(64, 64)]
    module = tfir.trace(lambda x: F.linear(F.gelu(F.linear(x, F.tensor(weights[0]))), F.tensor(weights[1])), f32["n", 64])
    x = normal(3, 64)
    exact = evaluate(module, x)
    observed, compared, instead = (clone_module(module) for _ in range(3))
    PassManager(parse_pipeline("observe_activations{heads=true}", PASSES), verify=True).run(observed)
    y, first, second = evaluate(observed, x)
    np.testing.assert_array_equal(y, exact)
    np.testing.assert_array_equal(first, x)
    np.testing.assert_array_equal(evaluate(tfir.trace(lambda h: F.linear(h, F.tensor(weights[1])), f32["n", 64]), second), exact)
    log = PassManager(parse_pipeline("compare_int8{heads=true}", PASSES), verify=True).run(compared).passes[0].log
    results = evaluate(compared, x)
    np.testing.assert_array_equal(results[0], exact)
    np.testing.assert_array_equal(results[log.rows[1]["wanted"]], exact)  # type: ignore[call-overload]
    np.testing.assert_array_equal(results[log.rows[1]["result"]], by_hand(second, weights[1], np.float32(0)))  # type: ignore[call-overload]
    PassManager(parse_pipeline("compare_int8{heads=true,instead=true}", PASSES), verify=True).run(instead)
    run(module)
    np.testing.assert_array_equal(evaluate(instead, x)[0], evaluate(module, x))
