"""Models out of GGUF files: the numbers of ``transformers`` and of llama.cpp, for files that the reference library wrote and for a real one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_cpp import served

import trustformers_ir as tfir
from trustformers_ir import compiler, reader
from trustformers_ir.frontend.gguf.architectures import ARCHITECTURES
from trustformers_ir.frontend.gguf.container import open_gguf
from trustformers_ir.frontend.gguf.model import load_gguf
from trustformers_ir.frontend.gguf.vocabulary import tokenizer_json
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.frontend.tokenizer import load_tokenizer
from trustformers_ir.ir import ops
from trustformers_ir.ir.abi import TOKENIZER_KEY
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.passes.read_blocks import ReadBlocks
from trustformers_ir.runtime.identity import Memory, model_identity

WORDS = 96
KIND = gguf.GGMLQuantizationType
LLAMA: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LONG = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, rope_theta=1000.0)),
    "llama tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "llama wide heads": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, head_dim=32)),
    "llama biased": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, attention_bias=True)),
    "llama linear": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA, rope_scaling={"rope_type": "linear", "factor": 4.0})
    ),
    "llama long": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, rope_scaling=LONG)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, n_positions=64, n_embd=64, n_layer=2, n_head=4)),
}


def paired(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp wants them for LLaMA: the two that turn together side by side (``convert_hf_to_gguf.py``, ``permute``)."""
    rows = w.shape[0] // heads // 2
    return np.ascontiguousarray(w.reshape(heads, 2, rows, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def write(path: Path, model: Any, kind: Any = None, blocks: Mapping[str, np.ndarray] | None = None, **more: Any) -> Path:
    """A model of ``transformers`` as a GGUF file: names and layout by the reference library's own table, matrices in that type, of those ``blocks``
    where they are given."""
    config, architecture = model.config, "gpt2" if model.config.model_type == "gpt2" else "llama"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        if config.head_dim != config.hidden_size // config.num_attention_heads:
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        elif rope["rope_type"] == "llama3":
            plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2).double() / config.head_dim)
            writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.double()).float().numpy())
    else:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    words = [f"w{i}" for i in range(WORDS - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([2, 3, 3, *[1] * len(words)])
    for name, value in more.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2 if architecture == "gpt2" else gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if (name == "lm_head.weight" and config.tie_word_embeddings) or name.endswith((".attn.bias", ".masked_bias")):
            continue
        w = tensor.float().numpy() if blocks is None else blocks.get(name, tensor.numpy())
        if ".q_proj." in name or ".k_proj." in name:
            w = paired(w, config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads)
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            w = np.ascontiguousarray(w.T)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        if kind is None or w.ndim == 1 or "position" in theirs:
            writer.add_tensor(theirs, w)
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(w, kind) if blocks is None else w, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def made(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def rounded(model: Any, kind: Any) -> Any:
    """The model with matrices as the file holds them, by the reference library's own dequantization."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and "wpe" not in name:
                turn = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
                w = p.T if turn else p
                back = gguf.quants.dequantize(gguf.quants.quantize(w.contiguous().numpy(), kind), kind)
                p.copy_(torch.from_numpy(back).T if turn else torch.from_numpy(back))
    return model


def logits_of(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids)).logits.double())


IDS = np.random.default_rng(1).integers(3, WORDS, (2, 24))


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = made(name)
    module = load_gguf(write(tmp_path / "x.gguf", model))
    want = logits_of(model, IDS)
    have = tfir.evaluate(module, IDS, np.ones_like(IDS))
    assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("kind", [KIND.F16, KIND.BF16, KIND.Q8_0, KIND.Q4_0, KIND.Q4_1, KIND.Q5_0, KIND.Q5_1, KIND.MXFP4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_matrices_in_blocks_mean_what_the_reference_library_says(name: str, kind: Any, tmp_path: Path) -> None:
    model = made(name)
    path = write(tmp_path / "x.gguf", model, kind)
    want = logits_of(rounded(model, kind), IDS)
    numbers = tfir.evaluate(load_gguf(path), IDS, np.ones_like(IDS))
    assert np.abs(numbers - want).max() < 1e-4 * np.abs(want).max()
    compiled = tfir.compile(str(path), dtype="f32", verify=True)(IDS, np.ones_like(IDS))
    assert np.abs(compiled - want).max() < 1e-4 * np.abs(want).max()


#: of formats that the reference library reads only: where a block has its f16 factors
FACTORS = {
    KIND.Q2_K: (80, 82), KIND.Q3_K: (108,), KIND.Q4_K: (0, 2), KIND.Q5_K: (0, 2), KIND.Q6_K: (208,),
    KIND.IQ4_NL: (0,), KIND.IQ4_XS: (0,),
}
BROAD = LLAMA | {"hidden_size": 256, "intermediate_size": 256}


@pytest.mark.parametrize("kind", FACTORS)
def test_matrices_in_blocks_that_nothing_here_makes(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BROAD)).eval()
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random, blocks = np.random.default_rng(0), {}
    for name, p in model.named_parameters():
        if p.ndim == 2:
            raw = random.integers(0, 256, (p.shape[0] * p.shape[1] // elements, size), np.uint8)
            for at in FACTORS[kind]:
                raw[:, at : at + 2] = random.uniform(1e-5, 1e-4, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
            blocks[name] = raw.reshape(p.shape[0], -1)
            with torch.no_grad():
                p.copy_(torch.from_numpy(gguf.quants.dequantize(blocks[name], kind)))
    path = write(tmp_path / "x.gguf", model, kind, blocks=blocks)
    want = logits_of(model, IDS)
    compiled = tfir.compile(str(path), dtype="f32")(IDS, np.ones_like(IDS))
    assert np.abs(compiled - want).max() < 1e-4 * np.abs(want).max()


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its graph and its tokenizer together."""
    path = write(tmp_path / "x.gguf", made("gpt2"))
    opened: list[Path] = []
    monkeypatch.setattr(reader, "open_gguf", lambda p: opened.append(p) or open_gguf(p))
    assert TOKENIZER_KEY in tfir.compile(str(path)).manifest.metadata
    assert len(opened) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_blocks_are_read_as_blocks(name: str, tmp_path: Path) -> None:
    module = load_gguf(write(tmp_path / "x.gguf", made(name), KIND.Q4_1))
    PassManager([ReadBlocks()]).run(module)
    kinds = [type(o.op) for o in module.walk()]
    assert kinds.count(ops.EmbeddingBlocks) == 1 and ops.Embedding not in kinds
    assert ops.Linear not in kinds and ops.MatMul not in [type(o.op) for o in module.walk() if o.inputs and o.inputs[-1].type.rank == 2]
    file = open_gguf(tmp_path / "x.gguf")
    codes = {name: w for name, w in module.weights.items() if name.endswith(".q4_1.codes")}
    assert len(codes) == sum(t.kind.name == "Q4_1" for t in file.values())
    assert all(w.data.dtype == np.uint8 for w in codes.values())


@pytest.mark.parametrize("name", ["llama", "llama wide heads", "llama linear", "llama long", "gpt2"])
def test_llama_cpp_reads_the_same_file_alike(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", made(name))
    ids = IDS[0].tolist()
    have = tfir.evaluate(load_gguf(path), IDS[:1], np.ones_like(IDS[:1]))
    row = have[0, -1].astype(np.float64)
    mine = row - np.log(np.exp(row - row.max()).sum()) - row.max()
    with served(path, context=64) as theirs:
        answer = theirs.ask("completion", prompt=ids, n_predict=1, n_probs=5, temperature=0, cache_prompt=False)
    top = answer["completion_probabilities"][0]["top_logprobs"]
    assert [t["id"] for t in top[:1]] == [int(row.argmax())]
    for t in top:
        assert abs(mine[t["id"]] - t["logprob"]) < 0.02  # its cache holds keys and values in f16


def test_names_map_both_ways() -> None:
    for architecture, family in (("llama", "llama"), ("gpt2", "gpt2")):
        table = ARCHITECTURES[architecture]
        sizes = "hidden_size=48&num_hidden_layers=2&num_attention_heads=3&vocab_size=70"
        module = random_model(f"random:{family}?{sizes}&architecture={table.architecture}")
        for name in module.weights:
            tensor = table.tensor(name)
            assert tensor is not None and table.parameter(tensor) == name, name


# --- the real one --------------------------------------------------------------------------------------------------------


def test_the_real_model_knows_the_capital(smollm2: Path) -> None:
    exe = tfir.compile(str(smollm2))
    text = tokenizer_json(open_gguf(smollm2))
    assert text is not None
    tokenizer = load_tokenizer(text.encode())
    ids, mask = tokenizer.encode_batch(["The capital of France is"])
    logits = exe(ids, mask)
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"
    row = logits[0, -1].astype(np.float64)
    mine = row - row.max() - np.log(np.exp(row - row.max()).sum())
    with served(smollm2, context=64) as theirs:
        answer = theirs.ask("completion", prompt=ids[0].tolist(), n_predict=1, n_probs=5, temperature=0)
    top = answer["completion_probabilities"][0]["top_logprobs"]
    assert top[0]["id"] == int(row.argmax())
    assert max(abs(mine[t["id"]] - t["logprob"]) for t in top) < 0.25  # it rounds activations to 8 bits


# --- what is wrong -------------------------------------------------------------------------------------------------------


def refused(path: Path) -> CompilerError:
    with pytest.raises(CompilerError) as caught:
        load_gguf(path)
    assert all(d.where.file for d in caught.value.diagnostics) and "help:" in str(caught.value)
    return caught.value


def rename(path: Path, old: str, new: str) -> Path:
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    return path


def test_files_of_unknown_architectures(tmp_path: Path) -> None:
    path = rename(write(tmp_path / "x.gguf", made("llama")), "llama", "lama2")
    first = refused(path).diagnostics[0]
    assert first.code is Code.UNKNOWN_MODEL_TYPE and "'lama2'" in first.message


def test_missing_keys_are_named_as_the_file_names_them(tmp_path: Path) -> None:
    path = rename(write(tmp_path / "x.gguf", made("llama")), "llama.embedding_length", "llama.embedding_lengtX")
    assert "'llama.embedding_length' is missing" in str(refused(path))


def test_missing_and_unexpected_tensors(tmp_path: Path) -> None:
    path = rename(write(tmp_path / "x.gguf", made("llama")), "blk.1.ffn_up.weight", "blk.1.ffn_op.weight")
    found = {d.code for d in refused(path).diagnostics}
    assert found == {Code.WEIGHT_MISSING, Code.WEIGHT_UNEXPECTED}


def test_what_is_not_supported_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", made("llama"), expert_count=4)
    assert "llama.expert_count is 4" in str(refused(path))
    path = write(tmp_path / "y.gguf", made("llama"), **{"attention.value_length": 12})
    assert "attention.value_length is 12" in str(refused(path))


def test_types_that_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", transformers.LlamaForCausalLM(transformers.LlamaConfig(**BROAD)), KIND.TQ2_0)
    found = refused(path).diagnostics
    assert {d.code for d in found} == {Code.WEIGHT_DTYPE} and "TQ2_0" in found[0].message


# --- the compile cache ---------------------------------------------------------------------------------------------------


def state(path: Path) -> str:
    """What the compile cache did for a file."""
    exe = tfir.compile(str(path))
    for thread in threading.enumerate():
        if thread.name == "tfir compile cache":
            thread.join()
    told = exe.report()["cache"]
    assert isinstance(told, dict)
    return str(told["state"])


def test_what_a_file_was_compiled_to_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_CACHE", "1")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    path = write(tmp_path / "m.gguf", made("llama"))
    assert [state(path), state(path)] == ["stored", "used"]
    found, fresh = tfir.compile(str(path)), compiler.compile_model(str(path), None, compiler.Request(), None)
    assert found.generate([1, 2, 3], max_new_tokens=5).tolist() == fresh.generate([1, 2, 3], max_new_tokens=5).tolist()
    write(path, made("llama", seed=1))
    assert [state(path), state(path)] == ["stored", "used"]


def test_files_of_one_model_count_together(tmp_path: Path) -> None:
    names = [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for n, name in enumerate(names):
        name.write_bytes(bytes([n]) * 10)
    memory = Memory(tmp_path / "digests")
    found = model_identity(names[0], memory)
    assert found is not None and [name for name, _ in found] == [n.name for n in names]
    names[2].write_bytes(b"other")
    assert model_identity(names[0], memory) != found
    names[1].unlink()
    assert model_identity(names[0], memory) is None
