"""Mixtures of experts in GGUF files: written as llama.cpp's quantizer does, read without leaving their blocks, computed as llama.cpp does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_cpp import served
from test_gguf_export import SPECIAL, byte_level

import trustformers_ir as tfir
from trustformers_ir.codegen.export.gguf.kinds import FILE_TYPES, Layer, kind_of
from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.frontend.gguf.container import open_gguf
from trustformers_ir.frontend.gguf.model import load_gguf
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.block_layouts import join
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.gguf_content import Content, ContentTensor, Key
from trustformers_ir.ir.ops import WeightOp
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.passes.read_blocks import ReadBlocks

EPS = 2.0**-17  # an f32, as files hold it: no bit is lost
SIZES = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512}
MORE = {"vocab_size": 96, "max_position_embeddings": 64, "rms_norm_eps": EPS, "num_local_experts": 8}
SMALL = f"random:mixtral?{'&'.join(f'{k}={v}' for k, v in {**SIZES, **MORE, 'hidden_size': 64, 'intermediate_size': 96}.items())}"
IDS = np.random.default_rng(1).integers(3, 96, (2, 24))
MASK = np.ones_like(IDS)
STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose rows are whole blocks of k-quants. What chooses experts reads eight features that nothing but the token says, so that no
    rounding decides a near tie: then two programs would compute two networks."""
    torch.manual_seed(0)
    words = byte_level().get_vocab_size() + 5
    config = transformers.MixtralConfig(**SIZES, **{**MORE, "vocab_size": words}, eos_token_id=None, bos_token_id=None, pad_token_id=0)
    model = transformers.MixtralForCausalLM(config)
    token = torch.arange(words)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        table = model.model.embed_tokens.weight
        table[:, :8] = 0
        table[token, token % 8], table[token, (token + 1 + token // 8 % 7) % 8] = 2.0, 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:8], layer.mlp.experts.down_proj[:, :8] = 0, 0
            layer.mlp.gate.weight[:], layer.mlp.gate.weight[:, :8] = 0, torch.eye(8)
    path = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(path)
    byte_level().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[2]}), encoding="utf-8")
    return path


def test_a_file_is_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tfir.export(SMALL, str(path))
    file = open_gguf(path)
    assert file.metadata["llama.expert_count"] == 8 and file.metadata["llama.expert_used_count"] == 2
    assert [file[f"blk.1.{name}.weight"].shape for name in STACKS] == [(8, 96, 64), (8, 96, 64), (8, 64, 96)]
    want = tfir.evaluate(random_model(f"{SMALL}&architecture=MixtralForCausalLM"), IDS, MASK)
    assert np.array_equal(want, tfir.evaluate(load_gguf(path), IDS, MASK))
    read = gguf.GGUFReader(path)
    assert all(np.array_equal(t.data.reshape(-1).view(np.uint8), file[t.name].blocks().reshape(-1)) for t in read.tensors)


def test_a_folder_is_the_file_and_writes_what_transformers_writes(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tfir.export(str(folder), str(path))
    assert np.array_equal(tfir.evaluate(load_checkpoint(folder), IDS, MASK), tfir.evaluate(load_gguf(path), IDS, MASK))
    model = transformers.MixtralForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        want = model.generate(torch.from_numpy(IDS[:1]), do_sample=False, max_new_tokens=16)[0, IDS.shape[1] :]
    assert tfir.compile(str(path)).generate(IDS[:1], max_new_tokens=16)[0].tolist() == want.tolist()


def test_windows_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(CompilerError) as caught:
        tfir.export(f"{SMALL}&sliding_window=5", str(tmp_path / "m.gguf"))
    assert Code.CANNOT_EXPORT in caught.value.codes and "windows" in str(caught.value)


# --- types ---------------------------------------------------------------------------------------------------------------

#: What llama.cpp makes of 20 layers of 8 experts (``llama_model_quantize``): digits of the types of the last products of layers, and the type behind
#: attention.
TYPES = {
    "q4_0": ("4" * 20, "Q4_0"),
    "q5_1": ("5" * 20, "Q5_1"),
    "q8_0": ("8" * 20, "Q8_0"),
    "q2_k": ("3" * 20, "Q5_K"),
    "q3_k_s": ("3" * 20, "Q5_K"),
    "q3_k_m": ("5" + "4" * 19, "Q5_K"),
    "q3_k_l": ("5" * 20, "Q3_K"),
    "q4_k_s": ("55" + "4" * 18, "Q5_K"),
    "q4_k_m": ("66446446446446446666", "Q5_K"),
    "q5_k_s": ("5" * 20, "Q5_K"),
    "q5_k_m": ("66556556556556556666", "Q5_K"),
    "q6_k": ("6" * 20, "Q6_K"),
}


@pytest.mark.parametrize("quantize", TYPES)
def test_types_are_those_of_llama_cpp(quantize: str) -> None:
    def kinds(experts: int) -> dict[str, str]:
        flat = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp")
        names = [(f"blk.{n}.{word}.weight", (256, 256)) for n in range(20) for word in flat]
        names += [(f"blk.{n}.{word}.weight", (experts, 256, 256)) for n in range(20) for word in STACKS]
        tensors = [ContentTensor(name, "F32", shape, lambda: np.zeros((0, 0), np.uint8)) for name, shape in (*names, ("output.weight", (256, 256)))]
        about = {"block_count": 20, "attention.head_count": 4, "attention.head_count_kv": 1, "expert_count": experts}
        content = Content("llama", {f"llama.{k}": Key.of(v) for k, v in about.items()}, tensors)
        return {t.name: kind_of(t, content, FILE_TYPES[quantize], None) for t in tensors}

    asked, found, four = FILE_TYPES[quantize], kinds(8), kinds(4)  # of four there are no rules of their own
    digits, attention = TYPES[quantize]
    assert "".join(found[f"blk.{n}.ffn_down_exps.weight"][1] for n in range(20)) == digits
    for n in range(20):
        of_layer = [found[f"blk.{n}.{word}.weight"] for word in ("attn_k", "attn_v", "attn_output", "attn_q", "ffn_up_exps", "ffn_gate_inp")]
        assert of_layer == ["Q8_0", "Q8_0", attention, asked.kind, asked.kind, "F32"]
        plain = Layer(n, 20, "llama", 4, 0)
        assert all(four[f"blk.{n}.{word}.weight"] == asked.of_layer(word, plain) for word in ("attn_k", "attn_v", "attn_output"))
        assert four[f"blk.{n}.ffn_down_exps.weight"] == found[f"blk.{n}.ffn_down_exps.weight"]


# --- blocks --------------------------------------------------------------------------------------------------------------


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("q8_0", "q4_1", "q5_0", "q6_k")]


@pytest.fixture(scope="module", params=["q4_0", "q4_k_m", *LONG])
def written(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / f"{request.param}.gguf"
    tfir.export(str(folder), str(path), quantize=request.param)
    return path


@pytest.fixture(scope="module")
def compiled(written: Path) -> Any:
    return tfir.compile(str(written), threads=2)


def test_what_is_read_is_what_the_file_holds(written: Path, tmp_path: Path) -> None:
    """Bytes to planes and back; the numbers are those of the package; the file comes back byte for byte."""
    file, module = open_gguf(written), load_gguf(written)
    for name in STACKS:
        tensor = file[f"blk.1.{name}.weight"]
        weight = module.weights[{"g": "w1", "u": "w3", "d": "w2"}[name[4]].join(("layers.1.block_sparse_moe.experts.", ".weight"))]
        assert weight.blocks is not None and weight.blocks.shape == weight.type.shape == tensor.shape
        rows = {plane: array.reshape(-1, array.shape[-1]) for plane, array in weight.blocks.planes().items()}
        assert np.array_equal(join(weight.blocks.format, rows), tensor.blocks())
        want = gguf.quants.dequantize(np.asarray(tensor.blocks()), gguf.GGMLQuantizationType[tensor.kind.name])
        assert np.array_equal(weight.data, np.asarray(want, np.float32).reshape(tensor.shape))
    tfir.export(str(written), str(tmp_path / "b.gguf"))
    assert written.read_bytes() == (tmp_path / "b.gguf").read_bytes()


def ops_of(module: Module) -> list[str]:
    return [o.op.mnemonic for o in module.walk() if "expert" in o.op.mnemonic]


def test_experts_stay_in_blocks(written: Path, compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks for their numbers: neither the passes nor who reads what they leave."""
    module = load_gguf(written)
    want = np.asarray(tfir.evaluate(module, IDS, MASK), np.float64)
    stacks = [w for name, w in module.weights.items() if ".experts." in name]
    for weight in stacks:
        monkeypatch.setattr(weight, "_data", lambda: pytest.fail("the matrices of experts are widened"))
    PassManager([ReadBlocks(), Dce()], verify=True).run(module)
    assert ops_of(module) == ["expert_blocks"] * len(ops_of(module)) and set(ops_of(compiled.module)) == {"expert_blocks_int8"}
    used = [module.weights[o.op.name] for o in module.walk() if isinstance(o.op, WeightOp)]
    assert not any(w in stacks for w in used)
    np.testing.assert_allclose(tfir.evaluate(module, IDS, MASK), want, rtol=1e-3, atol=1e-4)
    assert np.abs(compiled(IDS, MASK) - want).mean() < 0.03 * np.abs(want).mean()  # activations have 8 bits


def test_a_token_at_a_time_has_the_bits_of_all_at_once(compiled: Any) -> None:
    """Grouped with others of its experts or alone."""
    exe = compiled
    whole = exe(IDS, MASK)
    for n in (1, 2, 13):
        assert np.array_equal(exe(IDS[:1, :n], MASK[:1, :n])[0], whole[0, :n])
    told = exe.generate(IDS[:1, :10], max_new_tokens=12)[0].tolist()
    grown = np.concatenate([IDS[0, :10], told])[None]
    assert exe(grown, np.ones_like(grown))[0, 9:-1].argmax(-1).tolist() == told


def test_llama_cpp_computes_the_same(written: Path, compiled: Any) -> None:
    """Greedy tokens of its own are the best ones here, and the five best logarithms agree as far as activations of 8 bits do."""
    with served(written, context=64) as server:
        answer = server.ask("completion", prompt=IDS[0].tolist(), n_predict=8, n_probs=5, temperature=0, cache_prompt=False, return_tokens=True)
    grown = np.concatenate([IDS[0], answer["tokens"]])[None]
    rows = compiled(grown, np.ones_like(grown))[0, IDS.shape[1] - 1 : -1].astype(np.float64)
    logs = rows - rows.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    assert len(rows) == 8 and all(row[token] > row.max() - 0.05 for row, token in zip(logs, answer["tokens"], strict=True))
    top = answer["completion_probabilities"][0]["top_logprobs"]
    assert max(abs(logs[0, t["id"]] - t["logprob"]) for t in top) < 0.1
