"""Core ML packages, read back from the disk and executed in numpy: every op on its samples, whole models, f16 and its range, weights in 8 bits."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="pip install coremltools")

from export_harness import VIT, refusals, same_results, sampled, samples, text_agrees, text_models, vision_agrees

import trustformers_ir as tfir
from trustformers_ir.codegen.export.coreml.emitter import RULES
from trustformers_ir.codegen.export.coreml.evaluate import evaluate_package, read_program
from trustformers_ir.codegen.export.coreml.write import write_coreml
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.conformance import Case
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.ops.window import Window
from trustformers_ir.tools.cli import main

#: relative to the largest magnitude of a result
BOUNDS = {DType.f32: 3e-6, DType.f16: 3e-3, DType.bf16: 3e-2}
#: forms of ops that a package cannot say, and why
REFUSED = {
    "and": "no ops on bits", "or": "no ops on bits", "xor": "no ops on bits", "pow": "powers of integers", "conv1d": "convolves floats",
    "shift_left": "grow beyond them", "expand": "no input", "slice": "no input", "top_k": "not known before", "div": "divides floats",
}  # fmt: skip
EVERYWHERE = ("computes in no", "no empty arrays")
FEW = 4  # samples of an op that are run by default; `-m long` runs all


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """coremltools collects garbage whenever it converts: what is there already need not be looked at each time."""
    gc.collect()
    gc.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    gc.unfreeze()


def compare(case: Case, path: Path) -> None:
    """Numbers come out as arrays of one, integers as those of 32 bits."""
    module = case.module()
    write_coreml(str(path), module, dtype=DType.f32)
    got = list(evaluate_package(path, dict(zip(argument_names(module.main), case.inputs, strict=True))).values())
    want = case.expected()
    assert [g.shape for g in got] == [w.shape or (1,) for w in want]
    same_results([g.reshape(w.shape).astype(w.dtype) for g, w in zip(got, want, strict=True)], want, case.results, BOUNDS)


def known(mnemonic: str) -> tuple[str, ...]:
    return (*EVERYWHERE, *([REFUSED[mnemonic]] if mnemonic in REFUSED else []))


@pytest.mark.parametrize("mnemonic", sampled(RULES))
def test_samples(mnemonic: str, tmp_path: Path) -> None:
    most = FEW if mnemonic in ("attention", "rope", "rms_norm", "linear", "matmul") else 1
    samples(mnemonic, compare, tmp_path / "m.mlpackage", known(mnemonic), most)


@pytest.mark.long
@pytest.mark.parametrize("mnemonic", sampled(RULES))
def test_all_samples(mnemonic: str, tmp_path: Path) -> None:
    samples(mnemonic, compare, tmp_path / "m.mlpackage", known(mnemonic))


MODELS = text_models(1)


def agrees(spec: str, path: Path, bound: float) -> None:
    text_agrees(spec, lambda feed: list(evaluate_package(path, feed).values()), bound)


@pytest.mark.parametrize("name", MODELS)
def test_text_models(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.mlpackage"
    tfir.export(MODELS[name], str(path), dtype="f32")
    agrees(MODELS[name], path, 1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_f16_models(name: str, tmp_path: Path) -> None:
    """Half the bytes, f16 nearly everywhere; f32 at the ports and where angles are made."""
    path, whole = tmp_path / "m.mlpackage", tmp_path / "whole.mlpackage"
    made = tfir.export(MODELS[name], str(path))
    assert made.kinds["f16"] >= 15 and "f32" not in made.kinds and not made.wide  # type: ignore[union-attr]
    agrees(MODELS[name], path, 1e-2)
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    tfir.export(MODELS[name], str(whole), dtype="f32")
    assert (path / weights).stat().st_size < 0.6 * (whole / weights).stat().st_size
    for op in read_program(path).functions["main"].operations:
        if op.op_type in ("sin", "cos"):
            assert op.x.is_tensor_or_scalar_of(dtype="fp32")
        if op.op_type in ("linear", "layer_norm", "softmax"):
            assert op.x.is_tensor_or_scalar_of(dtype="fp16")


def test_a_vision_model(tmp_path: Path) -> None:
    tfir.export(VIT, str(tmp_path / "m.mlpackage"), dtype="f32")
    vision_agrees(lambda feed: list(evaluate_package(tmp_path / "m.mlpackage", feed).values()), 1e-5)


@pytest.mark.long
def test_the_real_model(minilm: Path, tmp_path: Path) -> None:
    path, exe, ids = tmp_path / "m.mlpackage", tfir.compile(str(minilm)), np.random.default_rng(0).integers(1000, 20000, (3, 40))
    mask = np.ones_like(ids)
    mask[1, 20:] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    for options, bound in (({"dtype": "f32"}, 1e-5), ({}, 2e-2), ({"quantize": "int8"}, 0.15)):
        tfir.export(str(minilm), str(path), **options)
        for g, w in zip(evaluate_package(path, feed).values(), exe(**feed), strict=True):
            assert np.abs(g - w).max() <= bound * np.abs(w).max()


def test_what_overflows_stays_in_f32(tmp_path: Path) -> None:
    """The square of 300 x is beyond f16; without the analysis the result would be infinite."""
    path = tmp_path / "m.mlpackage"

    def f(x: Any) -> Any:
        wide = x * 300.0
        return (wide * wide).mean(-1).sqrt() + F.tanh(x).sum(-1)

    made = tfir.export(f, str(path), example_inputs=[tfir.f32["n", 16]])
    (tensor, *_) = made.wide  # type: ignore[union-attr]
    assert tensor.name.startswith("mul") and tensor.largest > 65504 and Path(__file__).name in tensor.place
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    (got,) = evaluate_package(path, {"x": x}).values()
    want = tfir.evaluate(tfir.trace(f, tfir.f32["n", 16]), x)
    assert np.abs(got - want).max() <= 2e-3 * np.abs(want).max()
    words = {op.op_type: op.outputs[0].is_tensor_or_scalar_of(dtype="fp16") for op in read_program(path).functions["main"].operations}
    assert words["tanh"] and not words["sqrt"]


def test_weights_in_8_bits(tmp_path: Path) -> None:
    path, spec = tmp_path / "m.mlpackage", MODELS["bert"].replace("hidden_size=32", "hidden_size=64")
    made = tfir.export(spec, str(path), dtype="f32", quantize="int8")
    assert made.kinds["int8"] >= 6
    kinds = [op.op_type for op in read_program(path).functions["main"].operations]
    assert kinds.count("constexpr_affine_dequantize") == made.kinds["int8"]
    agrees(spec, path, 0.05)
    with pytest.raises(AssertionError):  # they are not the weights of before
        agrees(spec, path, 1e-6)


def test_ports(tmp_path: Path) -> None:
    """Sizes that are computed, bool as numbers, numbers as arrays of one, outputs that are inputs or handed out twice."""
    path = tmp_path / "m.mlpackage"

    def f(x: Any, y: Any, flag: Any, number: Any) -> Any:
        n, m = x.shape[0], y.shape[0]
        z = F.concat([x, x], 0).reshape(2, n, 4)
        return {"z": z, "twice": z, "x": x, "n": F.tensor(n * 2 + m), "row": F.arange((n + m) // 2), "no": ~flag, "more": number + 1.0}

    module = tfir.trace(f, tfir.f32["n", 4], tfir.f32["3 * s + 2", 2], DType.bool["n"], tfir.f32[()])
    write_coreml(str(path), module, dtype=DType.f32)
    x, y, flag = np.arange(20, dtype=np.float32).reshape(5, 4), np.zeros((11, 2), np.float32), np.arange(5) % 2 == 0
    names = argument_names(module.main)
    got = list(evaluate_package(path, dict(zip(names, (x, y, flag, np.float32(2)), strict=True))).values())
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[2], x)
    assert got[3].tolist() == [21] and got[4].tolist() == list(range(8)) and got[5].tolist() == [0, 1, 0, 1, 0] and got[6].tolist() == [3]
    for feed, code in (({names[0]: x}, Code.INPUT_COUNT), (dict(zip(names, (x[0], y, flag, np.float32(2)), strict=True)), Code.INPUT_SHAPE)):
        with pytest.raises(CompilerError) as caught:
            evaluate_package(path, feed)
        assert caught.value.diagnostics[0].code is code


def test_packages_of_one_model_have_the_same_bytes(tmp_path: Path) -> None:
    """coremltools draws names at random, writes the day, and the maps of its specification in any order."""
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name / "m.mlpackage"
        folder.parent.mkdir()
        tfir.export(lambda x: (x * 2).softmax(-1), str(folder), example_inputs=[tfir.f32["n", 600]])
        found.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert found[0] == found[1] and len(found[0]) > 1
    assert all(b"conversion_date" not in content for content in found[0].values())


def test_all_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.mlpackage"
    path.mkdir()
    (path / "Manifest.json").write_text("before")

    def f(x: Any) -> Any:
        whole = x.to(DType.i32)
        return whole & (whole + 1), whole**whole, x.to(DType.f64)

    refusals(path, f, ["and", "pow", "cast"], __file__)
    for options in ({"dtype": "bf16"}, {"quantize": "q4_0"}, {"opset": 20}):
        with pytest.raises(CompilerError):
            tfir.export(MODELS["bert"], str(path), **options)  # type: ignore[arg-type]


def test_many_axes(tmp_path: Path) -> None:
    """Six axes between reshapes, those of size 1 left out, neighbours as one; windows of two axes of which the largest is read."""

    def f(x: Any) -> Any:
        n = x.shape[0]
        turned = x.reshape(n, 2, 4, 3, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(n, 6, 8, 4)
        spread = x.reshape(n, 1, 8, 1, 6, 4).expand(n, 3, 8, 1, 6, 4).reshape(n, 24, 24)
        return turned, spread

    module = tfir.trace(f, tfir.f32["n", 8, 6, 4])
    write_coreml(str(tmp_path / "m.mlpackage"), module, dtype=DType.f32)
    x = np.random.default_rng(0).standard_normal((3, 8, 6, 4)).astype(np.float32)
    for got, want in zip(evaluate_package(tmp_path / "m.mlpackage", {"x": x}).values(), tfir.evaluate(module, x), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [ops.ReduceMax, ops.ReduceMean])
def test_pooling(kind: Any, tmp_path: Path) -> None:
    """Windows of two axes have six: they are read an axis after the other."""
    windows = (Window(3, 2, 1, 1), Window(2, 1, 0, 1, 2))

    def f(x: Any) -> Any:
        return x._emit(ops.Unfold(windows, -1.5))._emit(kind((4, 5)))

    module = tfir.trace(f, tfir.f32["n", 3, "h", 7], facts={"h": (4, 30)})
    write_coreml(str(tmp_path / "m.mlpackage"), module, dtype=DType.f32)
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    (got,) = evaluate_package(tmp_path / "m.mlpackage", {"x": x}).values()
    want = tfir.evaluate(module, x)
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-6


def test_verify_compares_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the model that they were made of; one of other weights differs."""
    path, other = str(tmp_path / "m.mlpackage"), str(tmp_path / "other.mlpackage")
    for name, spec in ((path, MODELS["gpt2"]), (other, MODELS["gpt2"] + "&layer_norm_epsilon=0.5")):
        assert main(["export", spec, "-o", name, "--dtype", "f32"]) == 0
    assert main(["verify", MODELS["gpt2"], path, "--probe", "1"]) == 0
    assert main(["verify", MODELS["gpt2"], other, "--probe", "1"]) == 1
    assert main(["verify", path, MODELS["gpt2"]]) == 2
    assert "cannot be the first" in capsys.readouterr().err


def test_a_package_appears_whole(tmp_path: Path) -> None:
    """An older package is replaced; anything else that is there is left alone."""
    path = tmp_path / "m.mlpackage"
    for factor in (2.0, 3.0):
        tfir.export(lambda x, k=factor: x * k, str(path), example_inputs=[tfir.f32[2]], dtype="f32")
        assert next(iter(evaluate_package(path, {"x": np.ones(2)}).values())).tolist() == [factor] * 2
        assert list(tmp_path.iterdir()) == [path]
    other = tmp_path / "notes.mlpackage"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    with pytest.raises(CompilerError) as caught:
        tfir.export(lambda x: x, str(other), example_inputs=[tfir.f32[2]])
    assert caught.value.diagnostics[0].code is Code.UNWRITABLE and (other / "diary.txt").read_text() == "mine"
    with pytest.raises(CompilerError) as caught:
        evaluate_package(other, {"x": np.ones(2)})
    assert caught.value.diagnostics[0].code is Code.UNREADABLE
