"""`tfc verify` of Core ML packages with weights in few bits, and of decoders that keep states: what is right is green, a fault beside it is red."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("coremltools", reason="pip install coremltools")

from coremltools.proto import Model_pb2
from graph_faults import KINDS, spoiled
from onnx_faults import MODELS

import trustformers_ir as tfir
from trustformers_ir.codegen.export.coreml.weights import WEIGHTS_KEY, WeightForm
from trustformers_ir.codegen.export.coreml.write import write_coreml
from trustformers_ir.codegen.export.emitting import canonical
from trustformers_ir.frontend.generation import fixed_cache, only_step
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.reader import to_module
from trustformers_ir.tools.cli import main

LLAMA = MODELS["llama"].replace("num_hidden_layers=2", "num_hidden_layers=1")
FORMS = list(WeightForm)
DECODERS = [name for name in MODELS if name not in ("bert", "vit")]


def verdicts(source: str, files: dict[str, Path], *words: str) -> dict[str, bool]:
    told = next(iter(files.values())).with_name("agreement.json")
    code = main(["verify", source, *map(str, files.values()), "--probe", "1", "--output", str(told), *words])
    rows = {r["path"]: r["holds"] for r in json.loads(told.read_text())["files"]}
    found = {kind: rows[str(path)] for kind, path in files.items()}
    assert code == (0 if all(found.values()) else 1)
    return found


@pytest.mark.parametrize("form", [pytest.param(f, marks=[pytest.mark.long] * (f is not WeightForm.INT4)) for f in FORMS])
def test_a_fault_is_seen_beside_the_rounding(form: WeightForm, tmp_path: Path) -> None:
    """What is compared with is the source with its weights rounded the same way. A package that says so, and whose weights are not, is red too."""
    files, source = {kind: tmp_path / f"{kind}.mlpackage" for kind in ("f32", "f16", *KINDS, "plain")}, tfir.api.to_module(LLAMA)
    for dtype in ("f32", "f16"):
        tfir.export(LLAMA, str(files[dtype]), dtype=dtype, quantize=form.value)
    for kind in KINDS:
        write_coreml(str(files[kind]), spoiled(source, kind), dtype=DType.f32, weights=form)
    tfir.export(LLAMA, str(files["plain"]), dtype="f32")
    path = files["plain"] / "Data/com.apple.CoreML/model.mlmodel"
    specification = Model_pb2.Model()
    specification.ParseFromString(path.read_bytes())
    specification.description.metadata.userDefined[WEIGHTS_KEY] = form.value
    path.write_bytes(specification.SerializeToString())
    assert verdicts(LLAMA, files, "--compiled") == {k: k in ("f32", "f16") for k in files}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_every_architecture(name: str, tmp_path: Path) -> None:
    files = {form.value: tmp_path / f"{form.value}.mlpackage" for form in FORMS}
    for form, path in files.items():
        tfir.export(MODELS[name], str(path), dtype="f32", quantize=form)
    assert all(verdicts(MODELS[name], files).values())


def decoder(spec: str) -> Module:
    return canonical(only_step(to_module(spec, dtype=DType.f32, generation=fixed_cache(40))))


def window(module: Module) -> None:
    """The fault of a mask, where what comes later is not known yet: too little is seen."""
    for o in module.main.body:
        if isinstance(o.op, ops.CachedAttention):
            o.op = dataclasses.replace(o.op, window=2)


def test_a_decoder_with_states(tmp_path: Path) -> None:
    """Texts of up to 40 tokens, half in a piece and then one by one, against the source that reads them at once."""
    faults = {kind: f for kind, f in KINDS.items() if kind != "mask"} | {"window": window}
    files = {kind: tmp_path / f"{kind}.mlpackage" for kind in ("f32", "int4", *faults)}
    tfir.export(LLAMA, str(files["f32"]), dtype="f32", cache="f16", capacity=40)
    tfir.export(LLAMA, str(files["int4"]), quantize="int4", cache="f16", capacity=40)
    for kind, change in faults.items():
        module = decoder(LLAMA)
        change(module)
        write_coreml(str(files[kind]), module, dtype=DType.f32)
    assert verdicts(LLAMA, files) == {k: k in ("f32", "int4") for k in files}
    assert main(["verify", MODELS["bert"], str(files["f32"])]) == 2  # which is no language model


@pytest.mark.long
@pytest.mark.parametrize("name", DECODERS)
def test_states_of_every_architecture(name: str, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"{kind}.mlpackage" for kind in ("f32", "int8")}
    tfir.export(MODELS[name], str(files["f32"]), dtype="f32", cache="f16", capacity=40)
    tfir.export(MODELS[name], str(files["int8"]), dtype="f32", cache="f16", capacity=40, quantize="int8")
    assert all(verdicts(MODELS[name], files).values())
