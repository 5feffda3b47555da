"""Twelve tiny architectures in every format, each file read again and executed by what executes its kind: all agree, and what is wrong is red."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
pytest.importorskip("coremltools", reason="pip install coremltools")
pytest.importorskip("gguf", reason="pip install gguf")
pytest.importorskip("jax", reason="pip install jax")

from graph_faults import KINDS, spoil_gguf, spoiled
from onnx_faults import MODELS

import trustformers_ir as tfir
from trustformers_ir.ir.core import Module
from trustformers_ir.tools.cli import main

FORMATS = ("m.onnx", "m.mlir", "m.mlpackage", "m.tfc", "m8.tfc", "m.gguf")
NO_GGUF = ("bert", "vit", "mistral", "gemma2", "falcon", "gpt_neox")  # no architecture, or a window, scale, ALiBi or GELU that it cannot say
NO_MASK = ("vit",)
QUICK = "llama"
BY = ("onnxruntime", "xla", "numpy", "native code", "interpreter")  # random models have no vocabulary, which llama.cpp wants


def write(model: str | Module, path: Path) -> Path:
    """A file of the format that its name says."""
    if path.suffix == ".tfc":
        tfir.compile(model, quantize="int8" if path.stem.endswith("8") else None).save(str(path))
    else:
        tfir.export(model, str(path), dtype="f32" if path.suffix == ".mlpackage" else None)
    return path


def formats(name: str) -> list[str]:
    return [f for f in FORMATS if name not in NO_GGUF or f != "m.gguf"]


def verdicts(name: str, files: list[Path]) -> dict[str, bool]:
    """Whether each file holds, by all that execute it."""
    told = files[0].with_name("agreement.json")
    code = main(["verify", MODELS[name], *map(str, files), "--probe", "1", "--output", str(told), *(word for by in BY for word in ("--by", by))])
    rows = json.loads(told.read_text())["files"]
    found = {Path(f["path"]).name: all(r["holds"] for r in rows if r["path"] == f["path"]) for f in rows}
    assert code == (0 if all(found.values()) else 1)
    return found


def spoil(name: str, source: Module, good: Path, kind: str) -> Path:
    """The same file with a fault in it, in a folder of its own."""
    path = good.parent / kind / good.name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".gguf":
        path.write_bytes(good.read_bytes())
        spoil_gguf(path, kind)
        return path
    return write(spoiled(source, kind), path)


def check_all(name: str, folder: Path) -> None:
    """Every format is green; with a fault, that file is red and the others stay green."""
    source = tfir.api.to_module(MODELS[name])
    good = {f: write(MODELS[name], folder / f) for f in formats(name)}
    assert verdicts(name, list(good.values())) == dict.fromkeys(good, True)
    for kind in KINDS:
        if kind == "mask" and name in NO_MASK:
            continue
        spoilt = [spoil(name, source, path, kind) for f, path in good.items() if not (kind == "mask" and f == "m.gguf")]
        found = verdicts(name, spoilt)
        assert not any(found.values()), f"{kind} in {name}: {found}"


#: int8 takes the router, too, and other experts are chosen then
ROUTED = pytest.mark.xfail(reason="int8 quantizes the router of a mixture of experts")


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(n, marks=[ROUTED] * (n == "mixtral")) for n in MODELS])
def test_every_format_of_every_architecture(name: str, tmp_path: Path) -> None:
    check_all(name, tmp_path)


def test_a_fault_in_a_format_turns_that_format_red(tmp_path: Path) -> None:
    """Every second file has a fault, of another kind each; then the others have."""
    source = tfir.api.to_module(MODELS[QUICK])
    good = {f: write(MODELS[QUICK], tmp_path / f) for f in FORMATS}
    kinds = dict(zip(FORMATS, ("permutation", "transposed", "epsilon", "mask", "permutation", "epsilon"), strict=True))
    for turn in range(2):
        bad = {f: spoil(QUICK, source, good[f], kinds[f]) for f in FORMATS[turn::2]}
        assert verdicts(QUICK, list((good | bad).values())) == {f: f not in bad for f in FORMATS}
