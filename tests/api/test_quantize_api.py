"""``compile(quantize=…)`` from Python: what is quantized, that bits do not depend on how it is run, and what the error report tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.passes import quantize_int8
from trustformers_ir.runtime.executable import Executable

f32 = tfir.f32
SMALL = "random:bert?hidden_size=64&num_hidden_layers=2&num_attention_heads=4&intermediate_size=128&vocab_size=100&max_position_embeddings=64"
PER_LAYER = 4  # products: one for queries, keys and values, one after attention, two of the feed-forward network
RNG = np.random.default_rng(11)
WEIGHTS = [RNG.standard_normal(shape).astype(np.float32) for shape in ((96, 64), (64, 96))]
STATIC = "int8{activations=static}"


def tokens(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, 100, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def mlp(x: Any) -> Any:
    return F.layer_norm(x + F.linear(F.gelu(F.linear(x, F.tensor(WEIGHTS[0]))), F.tensor(WEIGHTS[1])))


def relative(have: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(np.square(have - want).sum() / np.square(want).sum()))


@pytest.fixture(scope="module", params=["int8", STATIC])
def small(request: pytest.FixtureRequest) -> Executable:
    examples = [tokens(4, n, n) for n in (5, 20)] if request.param == STATIC else None
    return tfir.compile(SMALL, quantize=request.param, calibration=examples, threads=2)


def test_products_are_in_integers(small: Executable) -> None:
    told: Any = small.report()["quantization"]
    assert told["int8"] == 2 * PER_LAYER and len(told["products"]) == told["int8"] + 1
    (kept,) = (row for row in told["products"] if not row["int8"])
    assert kept["name"] == "pooler.dense" and "head" in kept["reason"]
    assert all("models/blocks.py" in row["location"] for row in told["products"])
    static = told["recipe"] == STATIC
    assert all(("activation" in row) == static for row in told["products"] if row["int8"])
    assert str(small.module).count("linear_int8") == told["int8"]


def test_native_code_is_what_the_interpreter_says(small: Executable) -> None:
    fed = tokens(2, 9)
    for got, want in zip(small(**fed), evaluate(small.module, **fed), strict=True):
        assert relative(got, want) < 1e-3  # the sums are exact; an activation beside a step falls to one side or the other


def test_bits_do_not_depend_on_batch_padding_and_threads(small: Executable, tmp_path: Path) -> None:
    small.save(tmp_path / "q.tfc")
    one = tfir.load(str(tmp_path / "q.tfc"), threads=1)
    fed = tokens(5, 17)
    hidden, *_ = small(**fed)
    np.testing.assert_array_equal(one(**fed)[0], hidden)
    for i in range(5):
        np.testing.assert_array_equal(small(**{k: v[i : i + 1] for k, v in fed.items()})[0], hidden[i : i + 1])
    padded = {k: np.pad(v, ((0, 0), (0, 6))) for k, v in fed.items()}
    np.testing.assert_array_equal(small(**padded)[0][:, :17], hidden)


def test_an_artifact_is_the_same_model(small: Executable, tmp_path: Path) -> None:
    small.save(tmp_path / "q.tfc")
    again = tfir.load(str(tmp_path / "q.tfc"))
    fed = tokens(3, 12)
    for a, b in zip(again(**fed), small(**fed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert str(again.module) == str(small.module) == str(tfir.parse(str(small.module)))
    assert again.manifest.metadata["quantize"] == small.report()["quantization"]["recipe"]  # type: ignore[index]
    assert again.report()["quantization"] == small.report()["quantization"]


def test_weights_are_stored_as_integers() -> None:
    plain, quantized = tfir.compile(mlp, (f32["n", 64],)), tfir.compile(mlp, (f32["n", 64],), quantize=tfir.Int8(heads=True))
    assert quantized.report()["weight_bytes"] < plain.report()["weight_bytes"] / 3.5  # type: ignore[operator]


@pytest.mark.parametrize(("method", "most"), [("minmax", 0.02), ("percentile", 0.02), ("entropy", 0.03)])
def test_static_activations(method: str, most: float) -> None:
    x = RNG.standard_normal((500, 64)).astype(np.float32)
    recipe = tfir.Int8(activations="static", method=method, smooth="off", calibration=[x])
    exe, exact = tfir.compile(mlp, (f32["n", 64],), quantize=recipe), tfir.compile(mlp, (f32["n", 64],))
    assert 1e-3 < relative(exe(x), exact(x)) < most
    first: Any = exe.report()["quantization"]["products"][0]  # type: ignore[index]
    assert first["activation"]["high"] == pytest.approx(x.max()) if method == "minmax" else first["activation"]["high"] <= x.max()


def test_padding_is_not_calibrated() -> None:
    fed = tokens(3, 20)
    fed["attention_mask"][:, 12:] = 0
    recipe = tfir.Int8(activations="static", calibration=fed)
    other = {k: np.where(fed["attention_mask"] == 1, v, 7) if k == "input_ids" else v for k, v in fed.items()}
    ranges = [
        [row["activation"] for row in tfir.compile(SMALL, quantize=r).report()["quantization"]["products"] if row["int8"]]  # type: ignore[index]
        for r in (recipe, tfir.Int8(activations="static", calibration=other))
    ]
    assert ranges[0] == ranges[1]


# --- the error report --------------------------------------------------------------------------------------------------------------


def test_the_report_has_the_worst_first_and_says_where() -> None:
    report = tfir.quantization_error(SMALL, [tokens(4, 20), tokens(2, 7)])
    assert len(report.products) == 2 * PER_LAYER and report.examples == 2 and list(report.kept) == ["pooler.dense"]
    own = [p.own.sqnr for p in report.products]
    assert own == sorted(own) and all("models/blocks.py" in p.location for p in report.products)
    for p in report.products:
        assert 0.001 < p.own.relative < 0.02 and p.own.cosine > 0.9998 and p.own.sqnr == pytest.approx(-20 * np.log10(p.own.relative))
    first = next(p for p in report.products if p.name == "encoder.layer.0.attention.self.query+key+value")
    assert vars(first.own) == vars(first.arrived), "nothing before it is quantized"
    assert list(report.outputs) == ["last_hidden_state", "pooler_output"]
    assert str(report).splitlines()[1].startswith(report.products[0].name)


def test_the_report_agrees_with_the_executable() -> None:
    fed = tokens(4, 20)
    report = tfir.quantization_error(SMALL, fed)
    have, want = tfir.compile(SMALL, quantize="int8")(**fed)[0], tfir.compile(SMALL)(**fed)[0]
    assert report.outputs["last_hidden_state"].relative == pytest.approx(relative(have.astype(np.float64), want.astype(np.float64)), rel=1e-6)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_wrong_scale_shows(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = quantize_int8.step_of
    examples = RNG.standard_normal((64, 64)).astype(np.float32)
    good = tfir.quantization_error(mlp, examples, example_inputs=(f32["n", 64],))

    def wrong(self: quantize_int8.Int8Matrix, module: Any) -> Any:
        integers, _, sums = was(self, module)
        make = lambda: self.scale * np.float32(factor)  # noqa: E731
        scale = quantize_int8.derived(module, f"{self.name}.wrong", f32[self.sizes[0]], make, (*self.origin, "wrong"))
        return integers, scale, sums

    was = quantize_int8.Int8Matrix.weights
    monkeypatch.setattr(quantize_int8.Int8Matrix, "weights", wrong)
    report = tfir.quantization_error(mlp, examples, example_inputs=(f32["n", 64],))
    assert right is quantize_int8.step_of
    for p, q in zip(good.products, report.products, strict=True):
        assert p.own.relative < 0.012 and q.own.relative > 0.025


def test_error_report_leaves_a_given_module_as_it_is() -> None:
    module = tfir.trace(mlp, f32["n", 64])
    before, x = str(module), np.ones((3, 64), np.float32)
    tfir.quantization_error(module, [x], example_inputs=[x], dynamic=())
    assert str(module) == before


def test_large_batches_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [RNG.standard_normal((301, 64)).astype(np.float32)]
    whole = tfir.quantization_error(mlp, examples, example_inputs=(f32["n", 64],))
    monkeypatch.setattr("trustformers_ir.quantizer.MOST_BYTES", 100_000)
    pieces = tfir.quantization_error(mlp, examples, example_inputs=(f32["n", 64],))
    for a, b in zip(whole.products, pieces.products, strict=True):
        assert (a.own.values, a.own.largest) == (b.own.values, b.own.largest)
        assert a.arrived.noise == pytest.approx(b.arrived.noise, rel=1e-9)


# --- what is refused ---------------------------------------------------------------------------------------------------------------


def add(x: Any) -> Any:
    return x + 1


WRONG: list[tuple[Any, Any, dict[str, Any], Code, str]] = [
    (add, (f32["n"],), {"quantize": "int8"}, Code.NOTHING_QUANTIZED, "it has no products with known weights"),
    (mlp, (f32["n", 64],), {"quantize": tfir.Int8(keep=("*",))}, Code.NOTHING_QUANTIZED, "keep names it"),
    (mlp, (f32["n", 64],), {"quantize": STATIC}, Code.CALIBRATION, "need examples"),
    (mlp, (f32["n", 64],), {"quantize": STATIC, "calibration": ["a text"]}, Code.CALIBRATION, "does not read text"),
    (SMALL, None, {"quantize": STATIC, "calibration": ["a text"]}, Code.TOKENIZER_MISSING, "has no tokenizer"),
    (mlp, (f32["n", 64],), {"quantize": STATIC, "calibration": np.ones((2, 65), np.float32)}, Code.INPUT_SHAPE, "65"),
    (mlp, (f32["n", 64],), {"quantize": STATIC, "calibration": np.ones((2, 64))}, Code.INPUT_DTYPE, "f64"),
    (mlp, (f32["n", 64],), {"quantize": STATIC, "calibration": {"y": np.ones((2, 64), np.float32)}}, Code.INPUT_NAME, "no input 'y'"),
    (mlp, (f32["n", 64],), {"quantize": STATIC, "calibration": np.full((2, 64), np.nan, np.float32)}, Code.CALIBRATION, "not finite"),
    (mlp, (f32["n", 64],), {"quantize": "int8", "calibration": ["a text"]}, Code.RECIPE_OPTION, "need none"),
    (mlp, (f32["n", 64],), {"calibration": ["a text"]}, Code.USAGE, "without a recipe"),
]


@pytest.mark.parametrize(("model", "inputs", "options", "code", "says"), WRONG)
def test_requests_that_cannot_be_met(model: Any, inputs: Any, options: dict[str, Any], code: Code, says: str) -> None:
    with pytest.raises(tfir.CompilerError, match=says) as info:
        tfir.compile(model, inputs, **options)
    assert code in info.value.codes


def test_an_artifact_cannot_be_quantized(tmp_path: Path) -> None:
    tfir.compile(mlp, (f32["n", 64],)).save(tmp_path / "m.tfc")
    with pytest.raises(tfir.CompilerError, match="compiled already"):
        tfir.compile(str(tmp_path / "m.tfc"), quantize="int8")
