"""ONNX files: every op on its samples through ONNX Runtime or ONNX's own reference, whole models, files with weights beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")

import onnx
import onnxruntime as ort
from export_harness import VIT, refusals, same_results, sampled, samples, text_agrees, text_models, vision_agrees
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph, NotImplemented, RuntimeException

import trustformers_ir as tfir
from trustformers_ir.codegen.export.onnx import write
from trustformers_ir.codegen.export.onnx.emitter import RULES
from trustformers_ir.codegen.export.onnx.write import write_onnx
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import PLANES
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import Case
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.blocks import InBlocks
from trustformers_ir.tools.agreement.onnx_file import EXACT_BLOCKS

QUIET = ort.SessionOptions()
QUIET.log_severity_level = 4
QUIET.add_session_config_entry(*EXACT_BLOCKS)
#: relative to the largest magnitude of a result; attributes and erf are f32 in ONNX
BOUNDS = {DType.f64: 5e-8, DType.f32: 2e-6, DType.f16: 2e-3, DType.bf16: 2e-2, DType.f8e4m3: 0.07}


def run(path: Path, feed: dict[str, np.ndarray], reference: bool = False) -> list[np.ndarray]:
    """The outputs by ONNX Runtime; by ONNX's reference where the former has no kernel, or cannot hand out the dtype."""
    feed = {name: np.asarray(a) for name, a in feed.items()}
    if not reference:
        try:
            found: list[np.ndarray] = ort.InferenceSession(str(path), QUIET, providers=["CPUExecutionProvider"]).run(None, feed)
            return found
        except (NotImplemented, InvalidGraph, RuntimeException):
            pass
    return list(ReferenceEvaluator(str(path)).run(None, feed))


#: forms of ops that a file cannot say, and why
REFUSED = {
    "pow": "powers of integers", "conv1d": "takes no i32", "einsum": "an ellipsis", "expand": "no input", "slice": "no input", "pad": "no input",
    "scatter_nd": "no place", "reshape": "no input", **dict.fromkeys(("linear_blocks", "expert_blocks"), "no DequantizeLinear says"),
}  # fmt: skip
EVERYWHERE = ("no such dtype",)


def planes_known(case: Case) -> tuple[Module, list[np.ndarray]]:
    """The module of a case, and its inputs: planes of a matrix in blocks are weights, which is what files have."""
    module = case.module()
    first, block = case.op.planes_at, module.main.body  # type: ignore[attr-defined]
    build, inputs = Builder.before(module, next(iter(block))), list(case.inputs)
    for n in reversed(range(first, first + sum(t is not None for t in case.types[first : first + len(PLANES)]))):
        argument = block.args[n]
        weight = module.add_weight(Weight(f"plane{n}", argument.type, inputs.pop(n)))
        argument.replace_all_uses_with(build(ops.WeightOp(weight.name)))
        del block.args[n]
    return module, inputs


def compare(case: Case, path: Path) -> None:
    module, inputs = (case.module(), case.inputs) if not isinstance(case.op, InBlocks) else planes_known(case)
    write_onnx(str(path), module)
    onnx.checker.check_model(str(path), full_check=True)
    names = [i.name for i in onnx.load(str(path)).graph.input]
    narrow = any(t.dtype in (DType.bf16, DType.f8e4m3) for t in (*case.types, *case.results) if t is not None)
    got = run(path, dict(zip(names, inputs, strict=True)), narrow)
    same_results(got, case.expected(), case.results, BOUNDS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mnemonic", sampled(RULES))
def test_samples(mnemonic: str, tmp_path: Path) -> None:
    samples(mnemonic, compare, tmp_path / "m.onnx", [*EVERYWHERE, *([REFUSED[mnemonic]] if mnemonic in REFUSED else [])])


@pytest.mark.parametrize("opset", [18, 19, 21, 23, 24])
def test_operator_sets(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)

    def f(x: Any) -> Any:
        return F.gelu(x) + F.gelu(x, approximate="tanh") + F.softmax(x, -1), (x > 0).any(-1)

    module = tfir.trace(f, tfir.f32["n", 8])
    write_onnx(str(path), module, opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    assert onnx.load(str(path)).opset_import[0].version == opset
    got, want = run(path, {"x": x}, reference=opset > 23), tfir.evaluate(module, x)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[1], want[1])


MODELS = text_models(2)


@pytest.mark.parametrize("name", MODELS)
def test_text_models(name: str, tmp_path: Path) -> None:
    """In ONNX Runtime with all of its rewrites."""
    path = tmp_path / "m.onnx"
    tfir.export(MODELS[name], str(path))
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), QUIET)
    assert {i.name: i.shape for i in session.get_inputs()}["input_ids"] == ["batch", "seq"]
    text_agrees(MODELS[name], lambda feed: session.run(None, feed), 1e-4)


def test_a_vision_model(tmp_path: Path) -> None:
    tfir.export(VIT, str(tmp_path / "m.onnx"))
    vision_agrees(lambda feed: run(tmp_path / "m.onnx", feed), 1e-4)


def test_the_real_model(minilm: Path, tmp_path: Path) -> None:
    made = tfir.export(str(minilm), str(tmp_path / "m.onnx"))
    assert made.bytes < 1.01 * (minilm / "model.safetensors").stat().st_size
    session, exe = ort.InferenceSession(str(tmp_path / "m.onnx"), QUIET), tfir.compile(str(minilm))
    ids = np.random.default_rng(0).integers(1000, 20000, (3, 40))
    mask = np.ones_like(ids)
    mask[1, 20:] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    got, want = session.run(None, feed), exe(**feed)
    for g, w in zip(got, want, strict=True):
        assert np.abs(g - w).max() <= 1e-5 * np.abs(w).max()
    names = {t.name for t in onnx.load(str(tmp_path / "m.onnx")).graph.initializer}
    assert "embeddings.word_embeddings.weight" in names or any("word_embeddings" in n for n in names)


def test_weights_in_16_bits(tmp_path: Path) -> None:
    """They lie so in the file, those of products among them."""
    spec = MODELS["llama"].replace("vocab_size=99", "vocab_size=999")
    whole = tfir.export(spec, str(tmp_path / "whole.onnx"))
    half = tfir.export(spec, str(tmp_path / "m.onnx"), dtype="f16")
    assert half.bytes < 0.7 * whole.bytes and half.kinds["f16"] >= 20
    text_agrees(spec, lambda feed: ort.InferenceSession(str(tmp_path / "m.onnx"), QUIET).run(None, feed), 2e-2)


def test_weights_beside_the_model(tmp_path: Path) -> None:
    """A file for the weights, each at a page of its own; the same numbers."""
    module, path = tfir.api.to_module(MODELS["bert"]), tmp_path / "m.onnx"
    made = write_onnx(str(path), module, external_above=0)
    assert [Path(f).name for f in made.files] == ["m.onnx.data", "m.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    for t in onnx.load(str(path), load_external_data=False).graph.initializer:
        about = {e.key: e.value for e in t.external_data}
        size = int(np.prod(t.dims)) * 4
        assert (size > write.SMALL) == (about.get("location") == "m.onnx.data")
        assert not about or (int(about["offset"]) % 4096 == 0 and int(about["length"]) == size)
    write_onnx(str(tmp_path / "one.onnx"), module)
    assert not (tmp_path / "one.onnx.data").exists()
    ids = np.random.default_rng(0).integers(0, 99, (2, 9))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    for a, b in zip(run(path, feed), run(tmp_path / "one.onnx", feed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes_that_are_computed(tmp_path: Path) -> None:
    """Symbols out of 3 s + 2, sums and quotients of sizes, outputs that are inputs or handed out twice."""

    def f(x: Any, y: Any) -> Any:
        n, m = x.shape[0], y.shape[0]
        z = F.concat([x, x], 0).reshape(2, n, 4)
        return {"z": z, "twice": z, "x": x, "n": F.tensor(n * 2 + m), "row": F.arange((n + m) // 2), "part": y[1 : m - 1]}

    module = tfir.trace(f, tfir.f32["n", 4], tfir.f32["3 * s + 2", 2])
    write_onnx(str(tmp_path / "m.onnx"), module)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    x, y = np.arange(20, dtype=np.float32).reshape(5, 4), np.zeros((11, 2), np.float32)
    names = [o.name for o in onnx.load(str(tmp_path / "m.onnx")).graph.output]
    got = dict(zip(names, run(tmp_path / "m.onnx", {"x": x, "y": y}), strict=True))
    assert set(got) == {"z", "twice", "x_1", "n", "row", "part"}
    assert got["n"] == 21 and got["row"].tolist() == list(range(8)) and got["part"].shape == (9, 2)
    np.testing.assert_array_equal(got["twice"], got["z"])


def test_all_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")

    def f(x: Any) -> Any:
        whole = x.to(DType.i32)
        return x.cumprod(0), whole**whole

    refusals(path, f, ["cumprod", "pow"], __file__)
    for options in ({"opset": 9}, {"quantize": "fp8"}, {"quantize": "int4", "opset": 20}):
        with pytest.raises(CompilerError):
            tfir.export(MODELS["bert"], str(path), **options)  # type: ignore[arg-type]


def test_places_in_the_source_are_kept(tmp_path: Path) -> None:
    tfir.export(lambda x: F.gelu(x), str(tmp_path / "m.onnx"), example_inputs=[tfir.f32[3]])
    (node,) = onnx.load(str(tmp_path / "m.onnx")).graph.node
    assert Path(__file__).name in {p.key: p.value for p in node.metadata_props}["source"]
