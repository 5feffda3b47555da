"""GGUF files that are written here: models go out and come back, bytes are those of the reference library, llama.cpp computes the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from llama_cpp import served
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import trustformers_ir as tfir
from trustformers_ir.codegen.export.gguf import write
from trustformers_ir.codegen.export.gguf.kinds import FILE_TYPES, NUMBERS, SMALLER, kind_of
from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.frontend.gguf.architectures import ARCHITECTURES
from trustformers_ir.frontend.gguf.container import open_gguf
from trustformers_ir.frontend.gguf.model import load_gguf
from trustformers_ir.frontend.gguf.vocabulary import tokenizer_json
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.frontend.tokenizer import load_tokenizer
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.gguf_content import Content, ContentTensor, Key

KIND = gguf.GGMLQuantizationType
EPS = 2.0**-17  # an f32, as files hold it: no bit is lost
SIZES = "hidden_size=64&num_hidden_layers=2&num_attention_heads=4&vocab_size=96&max_position_embeddings=64"
RMS = f"{SIZES}&num_key_value_heads=2&intermediate_size=96&rms_norm_eps={EPS}"
LAYER = f"{SIZES}&intermediate_size=96&layer_norm_eps={EPS}"
HEADS = "head_dim=32&query_pre_attn_scalar=32"


def scaled(**rope: Any) -> str:
    return f"rope_scaling={json.dumps(rope, separators=(',', ':'))}"


LLAMA3 = scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
LONG = scaled(rope_type="longrope", short_factor=[1.0 + i / 8 for i in range(8)], long_factor=[2.0 + i for i in range(8)])
MODELS = {
    "llama": f"llama?{RMS}",
    "llama tied": f"llama?{RMS}&tie_word_embeddings=true",
    "llama biased": f"llama?{RMS}&attention_bias=true",
    "llama long": f"llama?{RMS}&{LLAMA3}",
    "llama linear": f"llama?{RMS}&{scaled(rope_type='linear', factor=4.0)}",
    "llama in bf16": f"llama?{RMS}&dtype=bf16",
    "llama in f16": f"llama?{RMS}&dtype=f16",
    "gpt2": f"gpt2?n_embd=64&n_head=4&n_layer=2&vocab_size=96&n_positions=64&layer_norm_epsilon={EPS}",
    "qwen2": f"qwen2?{RMS}",
    "qwen2 yarn": f"qwen2?{RMS}&{scaled(rope_type='yarn', factor=4.0, original_max_position_embeddings=16)}",
    "qwen3": f"qwen3?{RMS}&head_dim=32",
    "phi3": f"phi3?{RMS}&sliding_window=5",
    "phi3 long": f"phi3?{RMS}&{LONG}&original_max_position_embeddings=16",
    "gemma": f"gemma?{RMS}&head_dim=32",
    "gemma2": f"gemma2?{RMS}&{HEADS}&sliding_window=5",
    "gemma3": f"gemma3_text?{RMS}&{HEADS}&sliding_window=5",
    "gptneox": f"gpt_neox?{LAYER}&hidden_act=gelu&rotary_pct=0.25",
    "falcon": f"falcon?{SIZES}&layer_norm_epsilon={EPS}",
    "falcon two norms": f"falcon?{SIZES}&layer_norm_epsilon={EPS}&new_decoder_architecture=true&num_kv_heads=2",
    "stablelm": f"stablelm?{LAYER}&num_key_value_heads=2",
    "stablelm norms": f"stablelm?{LAYER}&num_key_value_heads=2&qk_layernorm=true&use_parallel_residual=true",
    "command-r": f"cohere?{LAYER}&num_key_value_heads=2&use_qk_norm=true",
}
IDS = np.random.default_rng(1).integers(3, 96, (2, 24))
MASK = np.ones_like(IDS)


def spec(name: str) -> str:
    """With the head that a file has."""
    model_type = MODELS[name].partition("?")[0]
    head = next(a.architecture for a in ARCHITECTURES.values() if a.model_type == model_type)
    return f"random:{MODELS[name]}&architecture={head}"


@pytest.mark.parametrize("name", MODELS)
def test_what_was_written_is_the_model(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    made = tfir.export(f"random:{MODELS[name]}", str(path))
    file = open_gguf(path)
    assert made.bytes == path.stat().st_size and sum(made.kinds.values()) == len(file)
    assert all(t.kind.name == "F32" for t in file.values() if len(t.shape) < 2)
    want, have = tfir.evaluate(random_model(spec(name)), IDS, MASK), tfir.evaluate(load_gguf(path), IDS, MASK)
    if "gemma" in name or "yarn" in name:  # 1 is added to scales of norms, and rounds; yarn's scale is a rule in a file
        assert np.abs(want - have).max() < 1e-5 * np.abs(want).max()
    else:
        assert np.array_equal(want, have)
    read = gguf.GGUFReader(path)
    assert [t.name for t in read.tensors] == list(file)
    assert read.fields["general.architecture"].contents() == file.metadata["general.architecture"]
    assert all(np.array_equal(t.data.reshape(-1).view(np.uint8), file[t.name].blocks().reshape(-1)) for t in read.tensors)


# --- types ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", FILE_TYPES)
def test_bytes_are_those_of_the_reference_library(quantize: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tfir.export(f"random:{MODELS['llama']}", str(path), quantize=quantize)
    plain = tmp_path / "f32.gguf"
    tfir.export(f"random:{MODELS['llama']}", str(plain))
    asked = FILE_TYPES[quantize]
    values, found = open_gguf(plain), open_gguf(path)
    for name, tensor in found.items():
        kind = KIND[tensor.kind.name]
        if len(tensor.shape) < 2:
            assert kind is KIND.F32
        else:
            wanted = asked.head if name == "output.weight" else asked.kind
            if quantize not in MIXTURES:
                assert kind is KIND[SMALLER.get(wanted, wanted)]
            else:  # rows are shorter than blocks of k-quants
                assert kind.name in SMALLER.values()
        want = np.ascontiguousarray(gguf.quants.quantize(values[name].array(), kind)).view(np.uint8)
        assert np.array_equal(tensor.blocks(), want.reshape(len(tensor.blocks()), -1)), name
    assert found.metadata["general.file_type"] == asked.number
    assert ("general.quantization_version" in found.metadata) == (asked.kind not in NUMBERS)


#: What llama.cpp makes of 20 layers with four queries to a key (``llama_model_quantize``): the digits of the types of these matrices, layer by layer.
MIXTURES = {
    "q2_k": {"attn_v": "4" * 20, "ffn_down": "3" * 20, "attn_output": "3" * 20, "ffn_up": "2" * 20},
    "q3_k_s": {"attn_v": "3" * 20, "ffn_down": "3" * 20, "attn_output": "3" * 20, "ffn_up": "3" * 20},
    "q3_k_m": {"attn_v": "55" + "4" * 18, "ffn_down": "5" + "4" * 19, "attn_output": "4" * 20, "ffn_up": "3" * 20},
    "q3_k_l": {"attn_v": "5" * 20, "ffn_down": "5" * 20, "attn_output": "5" * 20, "ffn_up": "3" * 20},
    "q4_k_s": {"attn_v": "5555" + "4" * 16, "ffn_down": "55" + "4" * 18, "attn_output": "4" * 20, "ffn_up": "4" * 20},
    "q4_k_m": {"attn_v": "66446446446446446666", "ffn_down": "66446446446446446666", "attn_output": "4" * 20, "ffn_up": "4" * 20},
    "q5_k_s": {"attn_v": "5" * 20, "ffn_down": "5" * 20, "attn_output": "5" * 20, "ffn_up": "5" * 20},
    "q5_k_m": {"attn_v": "66556556556556556666", "ffn_down": "66556556556556556666", "attn_output": "5" * 20, "ffn_up": "5" * 20},
    "q6_k": {"attn_v": "6" * 20, "ffn_down": "6" * 20, "attn_output": "6" * 20, "ffn_up": "6" * 20},
}


@pytest.mark.parametrize("quantize", MIXTURES)
def test_mixtures_are_those_of_llama_cpp(quantize: str) -> None:
    names = [f"blk.{n}.{word}.weight" for n in range(20) for word in ("attn_v", "ffn_down", "attn_output", "ffn_up")]
    tensors = [ContentTensor(name, "F32", (256, 256), lambda: np.zeros((0, 0), np.uint8)) for name in (*names, "output.weight")]
    about = {"block_count": 20, "attention.head_count": 4, "attention.head_count_kv": 1}
    content = Content("llama", {f"llama.{k}": Key.of(v) for k, v in about.items()}, tensors)
    found = {t.name: kind_of(t, content, FILE_TYPES[quantize], None) for t in tensors}
    assert found["output.weight"] == "Q6_K"
    for word, digits in MIXTURES[quantize].items():
        assert "".join(found[f"blk.{n}.{word}.weight"][1] for n in range(20)) == digits, word


def test_the_table_of_tokens_is_the_head_where_there_is_no_other(tmp_path: Path) -> None:
    tfir.export(f"random:{MODELS['llama tied']}", str(tmp_path / "m.gguf"), quantize="q4_0")
    file = open_gguf(tmp_path / "m.gguf")
    assert "output.weight" not in file and file["token_embd.weight"].kind.name == "Q8_0"
    assert file["blk.0.ffn_up.weight"].kind.name == "Q4_0"


def test_rows_that_are_no_whole_blocks_stay_numbers(tmp_path: Path) -> None:
    odd = f"random:llama?{RMS}&intermediate_size=80".replace("intermediate_size=96&", "")
    for dtype, want in ((None, "F16"), ("bf16", "BF16"), ("f32", "F32")):
        tfir.export(odd, str(tmp_path / "m.gguf"), quantize="q4_0", dtype=dtype)
        file = open_gguf(tmp_path / "m.gguf")
        assert file["blk.0.ffn_down.weight"].kind.name == want and file["blk.0.ffn_up.weight"].kind.name == "Q4_0"


def test_dtype_alone_is_that_of_matrices(tmp_path: Path) -> None:
    tfir.export(f"random:{MODELS['gpt2']}", str(tmp_path / "m.gguf"), dtype=tfir.bf16)
    file = open_gguf(tmp_path / "m.gguf")
    assert file["blk.0.ffn_up.weight"].kind.name == "BF16" and file["position_embd.weight"].kind.name == "F32"


# --- GGUF to GGUF --------------------------------------------------------------------------------------------------------


def test_a_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for quantize in ("q4_1", "q8_0", "bf16"):
        tfir.export(f"random:{MODELS['llama long']}", str(first), quantize=quantize)
        tfir.export(str(first), str(second))
        assert first.read_bytes() == second.read_bytes()


def test_every_type_of_value_comes_back(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(64)
    types = gguf.GGUFValueType
    for kind in (types.UINT8, types.INT8, types.UINT16, types.INT16, types.UINT32, types.INT32, types.UINT64, types.INT64):
        writer.add_key_value(f"x.{kind.name}", 7, kind)
        writer.add_key_value(f"x.{kind.name}s", [1, 2, 3], types.ARRAY, kind)
    for kind in (types.FLOAT32, types.FLOAT64):
        writer.add_key_value(f"x.{kind.name}", 0.1, kind)
        writer.add_key_value(f"x.{kind.name}s", [0.1, -2.5], types.ARRAY, kind)
    writer.add_bool("x.flag", True)
    writer.add_array("x.flags", [True, False])
    writer.add_array("x.texts", ["a", "", "é"])
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.arange(5, dtype=np.int16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tfir.export(str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"))
    a, b = open_gguf(tmp_path / "a.gguf"), open_gguf(tmp_path / "b.gguf")
    assert a.types == {k: t for k, t in b.types.items() if k in a.types} and set(b.types) - set(a.types) <= {"general.file_type"}
    for name, value in a.metadata.items():
        assert list(value) == list(b.metadata[name]) if hasattr(value, "__len__") else value == b.metadata[name]
    assert all(np.array_equal(a[n].blocks(), b[n].blocks()) and a[n].begin % 64 == b[n].begin % 64 == 0 for n in a)


def test_the_real_file_comes_back(smollm2: Path, tmp_path: Path) -> None:
    tfir.export(str(smollm2), str(tmp_path / "b.gguf"))
    assert smollm2.read_bytes() == (tmp_path / "b.gguf").read_bytes()


# --- tokenizers ----------------------------------------------------------------------------------------------------------

TEXTS = [
    "The capital of France is",
    "Hello, world! It's 12345 o'clock; they'LL say \"don't\" (x=3.14) -- #1.",
    "  two   spaces\tand tabs\n\n\nlines \r\n  end  ",
    "Café déjà vu, 東京 2024年 <|im_end|>x",
    "<|im_start|>user\nhi<|im_end|>",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """As SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return tokenizer


def sentence_pieces(folder: Path) -> Tokenizer:
    """As LLaMA 2's: made of a model of SentencePiece, with the merges that its scores mean."""
    model = folder / "tokenizer.model"
    (folder / "text.txt").write_text("\n".join(TEXTS * 20), encoding="utf-8")
    options = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 380, "normalization_rule_name": "identity"}
    options["remove_extra_whitespaces"] = False
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), minloglevel=2, **options)
    read = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = {read.id_to_piece(i): i for i in range(read.vocab_size())}
    scores = {token: read.get_score(i) for token, i in ids.items() if not (read.is_control(i) or read.is_byte(i) or read.is_unknown(i))}
    splits = [(token[:n], token[n:]) for token in scores for n in range(1, len(token))]
    merges = sorted((p for p in splits if p[0] in scores and p[1] in scores), key=lambda p: (-scores[p[0] + p[1]], -len(p[0])))
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])])
    return tokenizer


@pytest.fixture(scope="module", params=["byte level", "sentence pieces"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA as a checkpoint folder, with a tokenizer of each kind."""
    path = tmp_path_factory.mktemp("checkpoint")
    pieces = request.param == "sentence pieces"
    tokenizer = sentence_pieces(path) if pieces else byte_level()
    tokenizer.save(str(path / "tokenizer.json"))
    ends = {"bos_token": "<s>" if pieces else SPECIAL[1], "eos_token": {"content": "</s>" if pieces else SPECIAL[2]}}
    (path / "tokenizer_config.json").write_text(json.dumps({**ends, "chat_template": "{{ messages }}"}), encoding="utf-8")
    save_llama(path, tokenizer)
    return path


def save_llama(path: Path, tokenizer: Tokenizer, **more: Any) -> None:
    torch.manual_seed(0)
    words = tokenizer.get_vocab_size() + 5
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    config = transformers.LlamaConfig(vocab_size=words, max_position_embeddings=128, rms_norm_eps=EPS, **sizes | more)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows are whole blocks of k-quants."""
    path = tmp_path_factory.mktemp("wide")
    byte_level().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[2]}), encoding="utf-8")
    save_llama(path, byte_level(), hidden_size=256, intermediate_size=512)
    return path


@pytest.mark.parametrize("quantize", ["q4_k_m", "q5_k_m", "q3_k_m", "q2_k"])
def test_llama_cpp_reads_mixtures_alike(quantize: str, wide: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tfir.export(str(wide), str(path), quantize=quantize)
    assert all(t.kind.name.endswith("_K") for t in open_gguf(path).values() if len(t.shape) == 2)
    ids = np.random.default_rng(0).integers(3, 200, (1, 24))
    row = tfir.evaluate(load_gguf(path), ids, np.ones_like(ids))[0, -1].astype(np.float64)
    mine = row - row.max() - np.log(np.exp(row - row.max()).sum())
    with served(path, context=64) as server:
        answer = server.ask("completion", prompt=ids[0].tolist(), n_predict=1, n_probs=5, temperature=0, cache_prompt=False)
    top = answer["completion_probabilities"][0]["top_logprobs"]
    assert max(abs(mine[t["id"]] - t["logprob"]) for t in top) < 0.15  # it rounds activations to 8 bits


def test_a_folder_with_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tfir.export(str(folder), str(path))
    file = open_gguf(path)
    ids = np.random.default_rng(0).integers(3, 200, (1, 24))
    want = tfir.evaluate(load_checkpoint(folder), ids, np.ones_like(ids))
    assert np.array_equal(want, tfir.evaluate(load_gguf(path), ids, np.ones_like(ids)))
    text = tokenizer_json(file)
    assert text is not None
    mine, theirs = load_tokenizer(folder), load_tokenizer(text.encode())
    assert file.metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert file.metadata["tokenizer.ggml.eos_token_id"] == 2
    with served(path) as server:
        for text in TEXTS:
            have = mine.encode_batch([text])[0][0].tolist()
            assert have == theirs.encode_batch([text])[0][0].tolist()
            assert have == server.tokens(text)
        answer = server.ask("completion", prompt=ids[0].tolist(), n_predict=8, n_probs=5, temperature=0, cache_prompt=False, return_tokens=True)
    module, grown = load_gguf(path), ids
    for n, token in enumerate(answer["tokens"]):  # its cache holds keys and values in f16
        row = tfir.evaluate(module, grown, np.ones_like(grown))[0, -1].astype(np.float64)
        mine_log = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert mine_log[token] > mine_log.max() - 0.01
        if n == 0:
            top = answer["completion_probabilities"][0]["top_logprobs"]
            assert max(abs(mine_log[t["id"]] - t["logprob"]) for t in top) < 0.01
        grown = np.concatenate([grown, [[token]]], axis=1)
    assert grown.shape[1] == ids.shape[1] + 8


# --- what cannot be ------------------------------------------------------------------------------------------------------


def refused(model: Any, folder: Path, code: Code, *parts: str, **options: Any) -> None:
    """With an error that says so, and nothing on the disk."""
    before = sorted(folder.iterdir())
    with pytest.raises(CompilerError) as caught:
        tfir.export(model, str(folder / "never.gguf"), **options)
    assert code in caught.value.codes and "help:" in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    llama = f"random:{MODELS['llama']}"
    refused("random:vit", tmp_path, Code.CANNOT_EXPORT, "'vit'", "llama")
    refused(llama, tmp_path, Code.UNKNOWN_RECIPE, "'q4_2'", "did you mean", quantize="q4_2")
    refused(llama, tmp_path, Code.UNKNOWN_RECIPE, "'iq2_xs'", "q2_k", quantize="iq2_xs")
    refused(llama, tmp_path, Code.USAGE, "f64", dtype="f64")
    refused(str(tmp_path / "none"), tmp_path, Code.FILE_NOT_FOUND, "none")
    refused(tfir.trace(lambda x: x + 1, tfir.f32["n"]), tmp_path, Code.CANNOT_EXPORT, "Module")
    (tmp_path / "m.tfir").write_text("")
    refused(str(tmp_path / "m.tfir"), tmp_path, Code.CANNOT_EXPORT, "m.tfir")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    refused(str(tmp_path / "bad.gguf"), tmp_path, Code.GGUF_HEADER)
    with pytest.raises(CompilerError, match="TFC6004"):
        tfir.export(llama, str(tmp_path / "no" / "m.gguf"))
    tfir.export(llama, str(tmp_path / "m.gguf"))
    with pytest.raises(CompilerError, match="is what is read"):
        tfir.export(str(tmp_path / "m.gguf"), str(tmp_path / "m.gguf"))


CANNOT = {
    "windows": f"mistral?{RMS}&sliding_window=5",
    "hidden_act": f"llama?{RMS}&hidden_act=gelu",
    "scale": f"gemma2?{RMS}&head_dim=32&query_pre_attn_scalar=9",
    "parallel": f"falcon?{SIZES}&parallel_attn=false",
    "rotary": f"llama?{RMS}&{scaled(rope_type='dynamic', factor=2.0)}",
}


@pytest.mark.parametrize("field", CANNOT)
def test_what_a_file_cannot_say_is_an_error(field: str, tmp_path: Path) -> None:
    refused(f"random:{CANNOT[field]}", tmp_path, Code.CANNOT_EXPORT, field)


def test_numbers_that_have_no_place(tmp_path: Path) -> None:
    for value, what in ((1e6, "beyond f16"), (np.nan, "not finite")):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        writer.add_tensor("a.weight", np.full((2, 32), value, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused(str(tmp_path / "a.gguf"), tmp_path, Code.CANNOT_EXPORT, "'a.weight'", what, quantize="q8_0")


def test_tokenizers_that_have_no_place(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = raw["model"]["byte_fallback"]

    def change(code: Code, *parts: str, **fields: Any) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps({**raw, **fields}), encoding="utf-8")
        refused(str(tmp_path), tmp_path, code, *parts)

    change(Code.CANNOT_EXPORT, "'Unigram'", model={**raw["model"], "type": "Unigram"})
    if pieces:
        change(Code.CANNOT_EXPORT, "'Lowercase'", normalizer={"type": "Lowercase"})
        change(Code.CANNOT_EXPORT, "scores", model={**raw["model"], "merges": raw["model"]["merges"][5:]})
    else:
        change(Code.CANNOT_EXPORT, "(Lowercase)", normalizer={"type": "Lowercase"})
        change(Code.CANNOT_EXPORT, "has no name", pre_tokenizer={"type": "ByteLevel", "use_regex": False, "add_prefix_space": False})
        change(Code.CANNOT_EXPORT, "a space before", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True})
    change(Code.CANNOT_EXPORT, "around a text", post_processor={"type": "RobertaProcessing"})
    change(Code.CANNOT_EXPORT, "the id 9999", added_tokens=[{"id": 9999, "content": "x"}])
    change(Code.TOKENIZER_INVALID, "no tokenizer", model={"type": "BPE"})


def test_the_package_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(f"random:{MODELS['llama']}", tmp_path, Code.MISSING_DEPENDENCY, "pip install 'trustformers_ir[gguf]'")


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_array", full)
    (tmp_path / "never.gguf").write_bytes(b"old")
    refused(f"random:{MODELS['llama']}", tmp_path, Code.UNWRITABLE)
    assert (tmp_path / "never.gguf").read_bytes() == b"old"
