"""Weights in blocks of 4 and 8 bits: the planes that the pass writes, what it leaves alone and why, and what a compiled model makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import Format, dequantize, quantize
from trustformers_ir.ir.block_layouts import join
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module
from trustformers_ir.passes import quantize_blocks
from trustformers_ir.passes.canonicalize import Canonicalize
from trustformers_ir.passes.constant_fold import ConstantFold
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.fold_weights import FoldWeights
from trustformers_ir.passes.manager import PassLog, PassManager, parse_pipeline
from trustformers_ir.passes.quantize_blocks import QuantizeBlocks
from trustformers_ir.passes.registry import PASSES

f32, bf16, f16 = tfir.f32, tfir.bf16, tfir.f16
RNG = np.random.default_rng(5)
ALL = QuantizeBlocks(heads=True)
Trace = Callable[..., Any]
RECIPES = ["q8_0", "q4_0", "q4_1", "int4{group=32}", "int4{group=32,zeros=true}"]
SMALL = "random:llama?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=99"


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def run(module: Module, pass_: QuantizeBlocks = ALL) -> PassLog:
    return PassManager([pass_, Dce()], verify=True).run(module).passes[0].log


def planes_of(module: Module) -> dict[str, np.ndarray]:
    """The planes of the only product, by name."""
    (product,) = (o for o in module.walk() if isinstance(o.op, ops.LinearBlocks))
    named = (v.producer.op.name for v in product.inputs[1:] if v.producer is not None and isinstance(v.producer.op, ops.WeightOp))
    return {name.rpartition(".")[2]: module.weights[name].data for name in named}


@pytest.mark.parametrize("matmul", [False, True])
def test_planes_are_the_blocks_of_the_reference(matmul: bool) -> None:
    weight, x = normal(40, 96), normal(5, 96)
    stored = np.ascontiguousarray(weight.T) if matmul else weight
    module = tfir.trace(lambda x: x @ F.tensor(stored) if matmul else F.linear(x, F.tensor(stored)), f32["n", 96])
    log = run(module)
    assert log.counts == {"products in q4_0": 1}
    assert join(Format.Q4_0, planes_of(module)).tobytes() == quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0).tobytes()
    np.testing.assert_allclose(evaluate(module, x), x @ dequantize(Format.Q4_0, planes_of(module)).T, rtol=1e-5, atol=1e-5)


def test_a_weight_is_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of rows, for all planes together, whichever comes first."""
    weight = normal(40, 96)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(weight)), f32["n", 96])
    run(module, QuantizeBlocks(Format.INT4_ZERO, 32, heads=True))
    calls: list[int] = []
    monkeypatch.setattr(quantize_blocks, "quantize", lambda f, rows, g: calls.append(len(rows)) or quantize(f, rows, g))
    planes = planes_of(module)
    assert sum(calls) == 40 and {n: p.tolist() for n, p in planes.items()} == {
        n: p.tolist() for n, p in quantize(Format.INT4_ZERO, weight, 32).items()
    }


def bad(array: np.ndarray, value: float) -> np.ndarray:
    array[3, 5] = value
    return array


REFUSALS: dict[str, tuple[Trace, Any, QuantizeBlocks, str]] = {
    "kept by name": (lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64], QuantizeBlocks(keep=("*",), heads=True), "keep names it"),
    "head": (lambda x: F.tanh(F.linear(x, F.tensor(normal(40, 64)))), f32["n", 64], QuantizeBlocks(), "it is a head"),
    "terms": (lambda x: F.linear(x, F.tensor(normal(40, 48))), f32["n", 48], ALL, "its 48 terms are no multiple of 32"),
    "group": (lambda x: F.linear(x, F.tensor(normal(40, 96))), f32["n", 96], QuantizeBlocks(Format.INT4, 64, heads=True), "no multiple of 64"),
    "computed": (lambda x: F.linear(x, F.tensor(normal(40, 64)) * x.sum()), f32["n", 64], ALL, "not known at build time"),
    "dtype": (lambda x: F.linear(x, F.tensor(normal(40, 64).astype(np.float64))), tfir.f64["n", 64], ALL, "only f32, f16 and bf16 are taken"),
    "NaN": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), np.nan))), f32["n", 64], ALL, "not finite"),
    "infinity": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), np.inf))), f32["n", 64], ALL, "not finite"),
    "huge": (lambda x: F.linear(x, F.tensor(bad(normal(40, 64), 1e9))), f32["n", 64], ALL, "too large for scales in f16"),
    "error": (lambda x: F.linear(x, F.tensor(normal(40, 64))), f32["n", 64], QuantizeBlocks(heads=True, max_error=0.01), "would move by"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_stays_as_it_is_and_why(case: str) -> None:
    fn, spec, pass_, reason = REFUSALS[case]
    module = tfir.trace(fn, spec)
    before = str(module)
    (row,) = run(module, pass_).rows
    assert not row[pass_.kind] and reason in str(row["reason"])
    assert str(module) == before, "a refusal leaves nothing behind"


@pytest.mark.parametrize("recipe", ["q4_k", "q6_k", pytest.param("q5_k", marks=pytest.mark.long)])
def test_k_quants_of_compiled_models(recipe: str) -> None:
    """Products of whole blocks alone."""
    source = SMALL.replace("hidden_size=64", "hidden_size=256").replace("num_hidden_layers=2", "num_hidden_layers=1")
    exe = tfir.compile(source, quantize=recipe)
    told: Any = exe.report()["quantization"]
    assert told[recipe] == 4 and {r["reason"] for r in told["products"] if not r[recipe]} == {"its 96 terms are no multiple of 256"}
    given = {"input_ids": RNG.integers(0, 99, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}
    got, want = (np.asarray(y, np.float64) for y in (exe(**given), evaluate(exe.module, **given)))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    plain = np.asarray(tfir.compile(source)(**given), np.float64)
    assert 1e-3 < np.linalg.norm(got - plain) / np.linalg.norm(plain) < {"q4_k": 0.25, "q5_k": 0.12, "q6_k": 0.06}[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [None, pytest.param("bf16", marks=pytest.mark.long)])
def test_compiled_models_are_what_the_interpreter_says(recipe: str, dtype: str | None) -> None:
    exe = tfir.compile(SMALL, quantize=recipe, dtype=dtype)
    told: Any = exe.report()["quantization"]
    name = recipe.partition("{")[0]
    assert told["recipe"] == recipe and told[name] == len(told["products"]) == 10
    assert all(row["name"].endswith("_proj") for row in told["products"])
    given = {"input_ids": np.random.default_rng(5).integers(0, 99, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}
    got, want = (np.asarray(y, np.float64) for y in (exe(**given), evaluate(exe.module, **given)))
    assert np.abs(got - want).max() <= (1e-4 if dtype is None else 0.1) * np.abs(want).max()
    plain = np.asarray(tfir.compile(SMALL, dtype=dtype)(**given), np.float64)
    assert 1e-3 < np.linalg.norm(got - plain) / np.linalg.norm(plain) < (0.05 if recipe == "q8_0" else 0.4)


def test_bits_do_not_depend_on_batch_padding_and_threads(tmp_path: Path) -> None:
    small = tfir.compile(SMALL, quantize="q4_0", threads=2)
    small.save(tmp_path / "q.tfc")
    one = tfir.load(str(tmp_path / "q.tfc"), threads=1)
    ids = RNG.integers(0, 99, (4, 9))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    y = small(**given)
    np.testing.assert_array_equal(one(**given), y)
    np.testing.assert_array_equal(small(**{k: v[1:2] for k, v in given.items()}), y[1:2])
    np.testing.assert_array_equal(small(**{k: np.pad(v, ((0, 0), (0, 4))) for k, v in given.items()})[:, :9], y)


def test_the_error_of_every_product() -> None:
    """Uniform weights move by a known part of a step: of groups of 32 in [-1, 1], a sixteenth of nearly 2 over sqrt(12), relative to 1 / sqrt(3)."""
    weights = [RNG.uniform(-1, 1, (64, 64)).astype(np.float32) for _ in range(2)]
    report = tfir.quantization_error(
        lambda x: F.layer_norm(F.linear(F.gelu(F.linear(x, F.tensor(weights[0]))), F.tensor(weights[1]))),
        [{"x": normal(64, 64)}],
        "q4_0",
        example_inputs={"x": f32["n", 64]},
    )
    assert [p.own.relative == pytest.approx(1 / 16, rel=0.2) for p in report.products] == [True, True]
    assert report.recipe == "q4_0" and not report.kept


def test_a_quantized_module_is_text_that_reads_back() -> None:
    weight, x = normal(40, 64), normal(3, 64)
    module = tfir.trace(lambda x: F.layer_norm(F.linear(x, F.tensor(weight))), f32["n", 64])
    run(module, QuantizeBlocks(Format.INT4_ZERO, 16))
    by_digest = {w.digest: w.data for w in module.weights.values()}
    again = parse_module(str(module), resolve=lambda digest, type: by_digest.get(digest))
    assert str(again) == str(module) and "format = int4_zero, group = 16" in str(module)
    np.testing.assert_array_equal(evaluate(again, x), evaluate(module, x))


def test_options_are_text() -> None:
    text = "quantize_blocks{format=int4,group=64,keep=a.*+b?,heads=true,max_error=0.1}"
    (made,) = parse_pipeline(text, PASSES)
    assert made == QuantizeBlocks(Format.INT4, 64, ("a.*", "b?"), True, 0.1) and str(made) == text
    for options, says in (
        ("format=iq4_nl", "nothing is quantized to iq4_nl yet"),
        ("format=int4,group=3", "group is 3, not an even number"),
        ("group=64", "q4_0 has groups of 32"),
        ("max_error=-1", r"max_error is -1\.0"),
    ):
        with pytest.raises(tfir.CompilerError, match=says):
            parse_pipeline(f"quantize_blocks{{{options}}}", PASSES)


# --- experts ---------------------------------------------------------------------------------------------------------------

MIXTURE = (
    "random:mixtral?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=99"
    "&num_local_experts=4"
)


def experts_of(module: Module) -> list[str]:
    return [o.op.mnemonic for o in module.walk() if "expert" in o.op.mnemonic]


@pytest.mark.parametrize("apart", [False, True])
def test_matrices_of_experts_become_planes(apart: bool) -> None:
    """One weight that is turned round, as a file has it, or a matrix for each expert, as checkpoints have it: rows are never turned round twice."""
    each = [normal(40, 96) for _ in range(3)]

    def product(x: Any, experts: Any) -> Any:
        weights = F.stack([F.tensor(w) for w in each]) if apart else F.tensor(np.stack(each))
        return F.expert_matmul(x, weights.transpose(1, 2), experts)

    module = tfir.trace(product, f32["n", 1, 96], tfir.i64["n", 2])
    log = PassManager([Canonicalize(), ConstantFold(), FoldWeights(), ALL, Dce()], verify=True).run(module).passes[3].log
    assert log.counts == {"products in q4_0": 1} and experts_of(module) == ["expert_blocks"]
    planes = {name.rpartition(".")[2]: w.data for name, w in module.weights.items()}
    assert planes["codes"].shape == (3, 40, 48)
    rows = {name: plane.reshape(120, -1) for name, plane in planes.items()}
    assert join(Format.Q4_0, rows).tobytes() == quants.quantize(np.concatenate(each), gguf.GGMLQuantizationType.Q4_0).tobytes()
    x, experts = normal(5, 1, 96), RNG.integers(0, 3, (5, 2))
    want = np.einsum("nk,nmjk->nmj", x[:, 0], dequantize(Format.Q4_0, rows).reshape(3, 40, 96)[experts])
    np.testing.assert_allclose(evaluate(module, x, experts), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["q8_0", "q4_0", "int4{group=32,zeros=true}"])
def test_a_compiled_mixture_is_what_the_interpreter_says(recipe: str) -> None:
    ids = RNG.integers(0, 99, (2, 11))
    exe = tfir.compile(MIXTURE, quantize=recipe)
    assert experts_of(exe.module) == ["expert_blocks_int8"] * 6
    table: Any = exe.report()["quantization"]
    told = {row["name"]: row["reason"] for row in table["products"]}
    assert told["layers.1.block_sparse_moe.experts.w2"] is None and "it chooses experts" in told["layers.0.block_sparse_moe.gate"]
    mask = np.ones_like(ids)
    np.testing.assert_allclose(exe(ids, mask), evaluate(exe.module, ids, mask), rtol=1e-3, atol=1e-4)


def test_keep_names_experts() -> None:
    exe = tfir.compile(MIXTURE, quantize="q4_0{keep=*.experts.w2}")
    assert sorted(experts_of(exe.module)) == ["expert_blocks_int8"] * 4 + ["expert_matmul"] * 2
