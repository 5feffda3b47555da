"""Quantized ONNX files: what ONNX Runtime makes of them, next to our own int8 and to the model in floats, and read again by us."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")

import onnx
import onnxruntime as ort
from export_harness import Feed, listed
from onnx import numpy_helper

import trustformers_ir as tfir
from trustformers_ir.codegen.export.emitting import canonical
from trustformers_ir.codegen.export.quantized import quantized
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.passes.recipes import Int4, Int8, find_recipe
from trustformers_ir.reader import batches_of, to_module
from trustformers_ir.tools.agreement.onnx_file import EXACT_BLOCKS

SIZES = "num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&vocab_size=499"
BERT = f"random:bert?{SIZES}"
LLAMA = f"random:llama?{SIZES}&num_key_value_heads=2&architecture=LlamaForCausalLM"
MIXTRAL = f"random:mixtral?{SIZES}&num_key_value_heads=2&architecture=MixtralForCausalLM&num_local_experts=32"
FAST, PLAIN = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
IN_BLOCKS = ("q8_0", "q4_0", "int4{group=32}", "int4{group=16,zeros=true}")


def session(path: Path, level: Any = FAST, exact: bool = True, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 4, level
    if exact:
        options.add_session_config_entry(*EXACT_BLOCKS)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(model: str) -> Feed:
    ids = np.random.default_rng(0).integers(0, 99, (3, 11))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    return {k: named[k] for k in argument_names(tfir.api.to_module(model).main)}


@functools.cache
def reference(model: str, recipe: str | None = None, dtype: str | None = None) -> list[np.ndarray]:
    """The outputs by the reference semantics, of the model or of its quantized graph."""
    module = canonical(clone_module(to_module(model, dtype=dtype)))
    if recipe is not None:
        found = find_recipe(recipe)
        assert found is not None
        quantized(module, found.quantizer())
    return listed(tfir.evaluate(module, **feed(model)))


def away(got: Any, want: Any) -> float:
    """Relative to the largest magnitude of the first output."""
    a, b = listed(got)[0], listed(want)[0]
    return float(np.abs(a - b).max() / np.abs(b).max())


def written(model: str, path: Path, quantize: Any, **options: Any) -> Any:
    """The file, checked, as ``onnx`` reads it."""
    tfir.export(model, str(path), quantize=quantize, **options)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(str(path))


@pytest.mark.parametrize("model", [BERT, LLAMA], ids=["bert", "llama"])
def test_int8_is_our_own_int8(model: str, tmp_path: Path) -> None:
    """Every product behind two ``DequantizeLinear``, at both levels the numbers of the native recipe; and products of whole numbers in ONNX Runtime.
    A code at the middle between two may be another one."""
    made, data = written(model, tmp_path / "m.onnx", "int8"), feed(model)
    producers = {x: n for n in made.graph.node for x in n.output}
    stored = {t.name: t for t in made.graph.initializer}
    products = [n for n in made.graph.node if n.op_type == "MatMul" and all(producers[x].op_type == "DequantizeLinear" for x in n.input)]
    assert len(products) == (12 if model == BERT else 14)
    for n in products:
        activation, weight = (producers[x] for x in n.input)
        assert stored[weight.input[0]].data_type == onnx.TensorProto.INT8 and len(stored[weight.input[1]].dims) == 1
        assert {a.name: a.i for a in weight.attribute} == {"axis": 1} and numpy_helper.to_array(stored[activation.input[2]]) == 128
    native = tfir.compile(model, quantize="int8")(**data) if model == LLAMA else reference(model, "int8")
    for level in (FAST, PLAIN):
        got = session(tmp_path / "m.onnx", level, optimized=tmp_path / "fast.onnx").run(None, data)
        assert away(got, native) < 5e-3
        assert away(got, reference(model)) < 0.05
        if level is FAST:
            kinds = Counter(n.op_type for n in onnx.load(str(tmp_path / "fast.onnx")).graph.node)
            assert kinds["MatMulIntegerToFloat"] == len(products) and not kinds["DequantizeLinear"]


@pytest.mark.parametrize("model", [BERT, LLAMA], ids=["bert", "llama"])
@pytest.mark.parametrize("recipe", IN_BLOCKS)
def test_weights_in_blocks(model: str, recipe: str, tmp_path: Path) -> None:
    """What ``dequantize`` makes of the planes, by blocked ``DequantizeLinear``; ``MatMulNBits`` in ONNX Runtime."""
    made, data = written(model, tmp_path / "m.onnx", recipe), feed(model)
    assert made.opset_import[0].version == 21
    blocks = [n for n in made.graph.node if n.op_type == "DequantizeLinear"]
    group = 16 if "16" in recipe else 32
    assert len(blocks) == (12 if model == BERT else 14)
    assert all({a.name: a.i for a in n.attribute} == {"axis": 0, "block_size": group} for n in blocks)
    assert all(len(n.input) == (3 if "zeros" in recipe else 2) for n in blocks)
    for level in (FAST, PLAIN):
        got = session(tmp_path / "m.onnx", level, optimized=tmp_path / "fast.onnx").run(None, data)
        assert away(got, reference(model, recipe)) < 1e-5
        if level is FAST:
            assert Counter(n.op_type for n in onnx.load(str(tmp_path / "fast.onnx")).graph.node)["MatMulNBits"] == len(blocks)
    assert away(got, reference(model)) < (0.05 if recipe == "q8_0" else 0.5)
    assert away(session(tmp_path / "m.onnx", exact=False).run(None, data), got) < 0.05  # activations in 8 bits


@pytest.mark.parametrize("recipe", ["int8", "int4{group=32,zeros=true}"])
def test_files_are_read_again(recipe: str, tmp_path: Path) -> None:
    """By our front end, and compiled."""
    written(LLAMA, tmp_path / "m.onnx", recipe)
    data = feed(LLAMA)
    native, bound = tfir.compile(str(tmp_path / "m.onnx"))(**data), 5e-3 if recipe == "int8" else 1e-5
    assert away(native, session(tmp_path / "m.onnx").run(None, data)) < bound


@pytest.mark.parametrize("recipe", ["int8", "int8{smooth=on}", "int8{activations=static}"])
def test_calibrated(recipe: str, tmp_path: Path) -> None:
    """Static scales are constants of both sides: nothing is computed of a row, and ONNX Runtime needs no operation behind the product."""
    data = feed(LLAMA)
    made = written(LLAMA, tmp_path / "m.onnx", recipe, calibration=None if recipe == "int8" else [data])
    static = "static" in recipe
    kinds = Counter(n.op_type for n in made.graph.node)
    quantized = next(n for n in made.graph.node if n.op_type == "QuantizeLinear")
    known = {t.name for t in made.graph.initializer}
    assert kinds["QuantizeLinear"] == 8 and (quantized.input[1] in known) == static and (not kinds["ReduceMin"]) == static
    assert any(name.endswith(".smoothing") for name in known) == (recipe != "int8")
    rows = json.loads({p.key: p.value for p in made.metadata_props}["quantization"])["products"]
    assert sum("activation" in row for row in rows) == (14 if static else 0)
    for level in (FAST, PLAIN):
        assert away(session(tmp_path / "m.onnx", level).run(None, data), reference(LLAMA)) < 0.06


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    """The recipe, and what became of every product; and as many bytes as that takes."""
    whole = tfir.export(BERT, str(tmp_path / "m.onnx"))
    sizes = {}
    for recipe in (Int8(keep=("*.query",)), "q4_0", Int4(group=64)):
        path = tmp_path / "q.onnx"
        sizes[str(recipe)] = tfir.export(BERT, str(path), quantize=recipe)
        said = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
        assert said["quantize"] == str(recipe)
        told = json.loads(said["quantization"])
        reasons = {row["name"]: row["reason"] for row in told["products"]}
        assert reasons["pooler.dense"].startswith("it is a head") and len(reasons) == 13
        assert ("keep names it" in reasons.values()) == ("keep" in str(recipe))
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 96)
    assert whole.bytes - sizes["q4_0"].bytes == pytest.approx(weights * (4 - 4.5 / 8), rel=0.2)
    assert sizes["q4_0"].kinds["i4"] == 12 and sizes["int4{group=64}"].kinds["i4"] == 10  # 96 terms are no multiple of 64


@pytest.mark.parametrize("opset", [18, 19, 23, 24])
def test_operator_sets(opset: int, tmp_path: Path) -> None:
    """int8 in all of them, blocks from 21 on."""
    data = feed(BERT)
    for recipe, bound in (("int8", 0.05), ("q8_0", 0.05)):
        if recipe == "q8_0" and opset < 21:
            with pytest.raises(CompilerError, match=f"'q8_0' needs opset 21.* opset {opset} is asked for"):
                tfir.export(BERT, str(tmp_path / "m.onnx"), quantize=recipe, opset=opset)
            continue
        assert written(BERT, tmp_path / "m.onnx", recipe, opset=opset).opset_import[0].version == opset
        if opset < 24:
            assert away(session(tmp_path / "m.onnx").run(None, data), reference(BERT)) < bound


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_blocks_beside_16_bits(dtype: str, tmp_path: Path) -> None:
    """Activations and everything else in 16 bits; scales in f16."""
    made = written(LLAMA, tmp_path / "m.onnx", "q4_0", dtype=dtype)
    kinds = Counter(t.data_type for t in made.graph.initializer if t.dims)
    assert kinds[onnx.TensorProto.INT4] == 14 and kinds[onnx.TensorProto.FLOAT16] >= 14
    if dtype == "f16":
        data = feed(LLAMA)
        assert away(session(tmp_path / "m.onnx").run(None, data), reference(LLAMA, "q4_0", "f16")) < 1e-2
    with pytest.raises(CompilerError) as caught:
        tfir.export(LLAMA, str(tmp_path / "m.onnx"), quantize="int8", dtype=dtype)
    assert caught.value.diagnostics[0].code is Code.NOTHING_QUANTIZED and "only f32 is quantized" in caught.value.diagnostics[0].message


@pytest.mark.parametrize("recipe", ["int8", "q4_0"])
def test_what_chooses_experts_stays_in_floats(recipe: str, tmp_path: Path) -> None:
    """Thirty-two experts: the router is as wide as what is quantized elsewhere."""
    made, data = written(MIXTRAL, tmp_path / "m.onnx", recipe), feed(MIXTRAL)
    rows = {row["name"]: row for row in json.loads({p.key: p.value for p in made.metadata_props}["quantization"])["products"]}
    routers = [row for name, row in rows.items() if name.endswith(".gate")]
    assert len(routers) == 2 and not any(row[recipe] for row in routers)
    assert any(row[recipe] for name, row in rows.items() if name.endswith("o_proj"))
    assert any("experts" in name and row[recipe] for name, row in rows.items()) == (recipe == "q4_0")
    (want,) = reference(MIXTRAL, recipe)
    assert np.median(np.abs(session(tmp_path / "m.onnx").run(None, data)[0] - want)) < 1e-4 * np.abs(want).max()


def test_tables_and_tied_heads_stay_in_floats(tmp_path: Path) -> None:
    made = written(LLAMA + "&tie_word_embeddings=true", tmp_path / "m.onnx", "q4_0")
    (table,) = [t for t in made.graph.initializer if "embed_tokens" in t.name and len(t.dims) == 2 and t.dims[0] == 499]
    assert table.data_type == onnx.TensorProto.FLOAT


@pytest.mark.long
def test_the_real_model(minilm: Path, tmp_path: Path) -> None:
    """Real sentences: as far from floats as our own recipe is, in a file of the embedding's size and a quarter of the rest."""
    texts = ["A quick brown fox.", "The compiler reads a graph and writes native code for it.", "Rain fell all night long, and nobody slept."]
    module, exe = tfir.api.to_module(str(minilm)), tfir.compile(str(minilm))
    batches = list(batches_of(texts, module, str(minilm)))
    whole = (minilm / "model.safetensors").stat().st_size
    table = 30522 * 384 * 4
    for recipe, cosine, part in (("int8", 0.99, 0.3), ("q8_0", 0.998, 0.33), ("q4_0", 0.9, 0.2)):
        made = tfir.export(str(minilm), str(tmp_path / "m.onnx"), quantize=recipe)
        assert made.bytes < table + part * (whole - table) + 2**20
        for level in (FAST, PLAIN):
            runs = session(tmp_path / "m.onnx", level)
            for batch in batches:
                got, want = runs.run(None, batch)[0].mean(1), listed(exe(**batch))[0].mean(1)
                assert (np.sum(got * want, 1) > cosine * np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)).all(), recipe
