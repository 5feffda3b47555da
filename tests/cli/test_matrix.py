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

import torch
import transformers
from graph_faults import KINDS, spoil_gguf, spoiled
from onnx_faults import MODELS

import trustformers_ir as tfir
from trustformers_ir.ir.core import Module
from trustformers_ir.tools.cli import main

FORMATS = ("m.onnx", "m8.onnx", "m4.onnx", "m.mlir", "m.mlpackage", "m.tfc", "m8.tfc", "m.gguf")
NO_GGUF = ("vit", "mistral", "gemma2", "falcon", "gpt_neox")  # no architecture, or a window, scale, ALiBi or GELU that it cannot say
QUANTIZE = {
    "8": {".onnx": "int8", ".tfc": "int8", ".gguf": "q8_0", ".mlpackage": "int8"},
    "4": {".onnx": "q4_0", ".gguf": "q4_0", ".mlpackage": "int4"},
}
NO_MASK = ("vit",)
QUICK = "llama"
BY = ("onnxruntime", "xla", "numpy", "native code", "interpreter")  # random models have no vocabulary, which llama.cpp wants


def model_of(name: str, folder: Path) -> str:
    """What is exported. A mixture's router reads four features that nothing but the token says: in a random one two experts are almost equal for some
    token, and what eight bits move in front of it makes it another network."""
    if name != "mixtral":
        return MODELS[name]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 99}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=4, rms_norm_eps=2.0**-17, bos_token_id=None))
    token = torch.arange(99)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        table = model.model.embed_tokens.weight
        table[:, :4] = 0
        table[token, token % 4], table[token, (token + 1 + token // 4 % 3) % 4] = 2.0, 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:4], layer.mlp.experts.down_proj[:, :4] = 0, 0
            layer.mlp.gate.weight[:], layer.mlp.gate.weight[:, :4] = 0, torch.eye(4)
    model.save_pretrained(folder / name)
    return str(folder / name)


def write(model: str | Module, path: Path) -> Path:
    """A file of the format that its name says."""
    quantize = QUANTIZE.get(path.stem[-1], {}).get(path.suffix)
    if path.suffix == ".tfc":
        tfir.compile(model, quantize=quantize).save(str(path))
    else:
        tfir.export(model, str(path), dtype="f32" if path.name == "m.mlpackage" else None, quantize=quantize)
    return path


def formats(name: str) -> list[str]:
    return [f for f in FORMATS if name not in NO_GGUF or f != "m.gguf"]


def verdicts(model: str, files: list[Path]) -> dict[str, bool]:
    """Whether each file holds, by all that execute it."""
    told = files[0].with_name("agreement.json")
    code = main(["verify", model, *map(str, files), "--probe", "1", "--output", str(told), *(word for by in BY for word in ("--by", by))])
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
    model = model_of(name, folder)
    source = tfir.api.to_module(model)
    good = {f: write(model, folder / f) for f in formats(name)}
    assert verdicts(model, list(good.values())) == dict.fromkeys(good, True)
    for kind in KINDS:
        if kind == "mask" and name in NO_MASK:
            continue
        spoilt = [spoil(name, source, path, kind) for f, path in good.items() if not (kind == "mask" and f == "m.gguf")]
        found = verdicts(model, spoilt)
        assert not any(found.values()), f"{kind} in {name}: {found}"


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_every_format_of_every_architecture(name: str, tmp_path: Path) -> None:
    check_all(name, tmp_path)


@pytest.mark.long
def test_the_real_encoder_in_every_format(minilm: Path, tmp_path: Path) -> None:
    """MiniLM, with its pooler and its vectors of texts, by everything that executes files: llama.cpp, too, where it is installed."""
    files = [write(str(minilm), tmp_path / f) for f in (*FORMATS, "m8.gguf", "m8.mlpackage", "m4.mlpackage")]
    assert main(["verify", str(minilm), *map(str, files), "--probe", "1"]) == 0


def test_a_fault_in_a_format_turns_that_format_red(tmp_path: Path) -> None:
    """Every second file has a fault, of another kind each; then the others have."""
    source = tfir.api.to_module(MODELS[QUICK])
    good = {f: write(MODELS[QUICK], tmp_path / f) for f in FORMATS}
    kinds = dict(zip(FORMATS, ("permutation", "epsilon", "transposed", "transposed", "epsilon", "mask", "permutation", "epsilon"), strict=True))
    for turn in range(2):
        bad = {f: spoil(QUICK, source, good[f], kinds[f]) for f in FORMATS[turn::2]}
        assert verdicts(MODELS[QUICK], list((good | bad).values())) == {f: f not in bad for f in FORMATS}
