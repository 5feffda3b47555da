"""GGUF files of the families beside LLaMA and GPT-2: the numbers of ``transformers`` and of llama.cpp. Files are as ``convert_hf_to_gguf.py`` writes
them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_cpp import served

import trustformers_ir as tfir
from trustformers_ir.frontend.gguf.architectures import ARCHITECTURES, FALCON_TWO_NORMS, MIXTRAL
from trustformers_ir.frontend.gguf.model import load_gguf
from trustformers_ir.frontend.random_model import untraced_model

WORDS = 96
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Writer = gguf.GGUFWriter
Keys = Callable[[Writer, Any], None]


def turned(writer: Writer, config: Any) -> None:
    """Rotary positions."""
    rope = config.rope_parameters
    features = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(features * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rms(writer: Writer, config: Any) -> None:
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    turned(writer, config)


def wide_heads(writer: Writer, config: Any) -> None:
    rms(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def mixtral(writer: Writer, config: Any) -> None:
    rms(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def phi3(writer: Writer, config: Any) -> None:
    rms(writer, config)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / config.original_max_position_embeddings
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(config.original_max_position_embeddings)))
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def gemma2(writer: Writer, config: Any) -> None:
    wide_heads(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def gemma3(writer: Writer, config: Any) -> None:
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def neox(writer: Writer, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_parallel_residual(config.use_parallel_residual)
    turned(writer, config)


def falcon(writer: Writer, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def stablelm(writer: Writer, config: Any) -> None:
    neox(writer, config)


def cohere(writer: Writer, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_logit_scale(config.logit_scale)
    turned(writer, config)


@dataclass(frozen=True)
class Case:
    """``served``: llama.cpp computes the same."""

    architecture: str
    model: Any
    config: Any
    fields: dict[str, Any]
    keys: Keys
    served: bool = True


T = transformers
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
PAIRS = 8
LONG = {"type": "longrope", "short_factor": [1.0 + i / 9 for i in range(PAIRS)], "long_factor": [2.0 + i for i in range(PAIRS)]}
NEOX = {**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, "hidden_act": "gelu_new"}
FALCON = {**{k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")}, "activation": "gelu"}
GEMMA = {**SIZES, "head_dim": 32}
CASES = {
    "qwen2": Case("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config, SIZES, rms),
    "qwen2 tied": Case("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config, {**SIZES, "tie_word_embeddings": True}, rms),
    "qwen2 yarn": Case("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config, {**SIZES, "rope_parameters": YARN}, rms),
    "qwen3": Case("qwen3", T.Qwen3ForCausalLM, T.Qwen3Config, {**SIZES, "head_dim": 32}, wide_heads),
    "mixtral": Case("llama", T.MixtralForCausalLM, T.MixtralConfig, {**SIZES, "num_local_experts": 4}, mixtral),
    "phi3": Case("phi3", T.Phi3ForCausalLM, T.Phi3Config, {**SIZES, "sliding_window": 64}, phi3),
    "phi3 window": Case("phi3", T.Phi3ForCausalLM, T.Phi3Config, {**SIZES, "sliding_window": 5}, phi3, served=False),
    "phi3 partial": Case("phi3", T.Phi3ForCausalLM, T.Phi3Config, {**SIZES, "partial_rotary_factor": 0.75}, phi3),
    "phi3 short": Case("phi3", T.Phi3ForCausalLM, T.Phi3Config, {**SIZES, "rope_scaling": LONG, "original_max_position_embeddings": 32}, phi3, False),
    "phi3 long": Case("phi3", T.Phi3ForCausalLM, T.Phi3Config, {**SIZES, "rope_scaling": LONG, "original_max_position_embeddings": 16}, phi3),
    "gemma": Case("gemma", T.GemmaForCausalLM, T.GemmaConfig, GEMMA, wide_heads),
    "gemma2": Case("gemma2", T.Gemma2ForCausalLM, T.Gemma2Config, {**GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 5}, gemma2),
    "gemma3": Case("gemma3", T.Gemma3ForCausalLM, T.Gemma3TextConfig, {**GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 5}, gemma3),
    "gptneox": Case("gptneox", T.GPTNeoXForCausalLM, T.GPTNeoXConfig, NEOX, neox, served=False),
    "gptneox plain": Case("gptneox", T.GPTNeoXForCausalLM, T.GPTNeoXConfig, {**NEOX, "use_parallel_residual": False}, neox, served=False),
    "falcon": Case("falcon", T.FalconForCausalLM, T.FalconConfig, FALCON, falcon),
    "falcon groups": Case("falcon", T.FalconForCausalLM, T.FalconConfig, {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, falcon),
    "falcon one norm": Case(
        "falcon",
        T.FalconForCausalLM,
        T.FalconConfig,
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        falcon,
    ),
    "stablelm": Case("stablelm", T.StableLmForCausalLM, T.StableLmConfig, SIZES, stablelm),
    "stablelm parallel": Case(
        "stablelm", T.StableLmForCausalLM, T.StableLmConfig, {**SIZES, "use_parallel_residual": True, "use_qkv_bias": True}, stablelm
    ),
    "command-r": Case("command-r", T.CohereForCausalLM, T.CohereConfig, SIZES, cohere),
    "stablelm norms": Case(
        "stablelm", T.StableLmForCausalLM, T.StableLmConfig, {**SIZES, "use_parallel_residual": True, "qk_layernorm": True}, stablelm
    ),
    # llama.cpp has norms of heads in models of 64 layers alone
    "command-r norms": Case("command-r", T.CohereForCausalLM, T.CohereConfig, {**SIZES, "use_qk_norm": True}, cohere, served=False),
}


def made(case: Case) -> Any:
    torch.manual_seed(0)
    model = case.model(case.config(**case.fields, use_cache=False, attn_implementation="eager")).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def paired(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp turns them in a LLaMA: members of a pair side by side."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def parted(w: np.ndarray, heads: int, key_heads: int) -> np.ndarray:
    """Queries, keys and values of each group, as published code holds them, to those of all heads (``convert_hf_to_gguf.py``, Falcon and
    GPT-NeoX)."""
    group = heads // key_heads
    each = w.reshape(key_heads, group + 2, -1, *w.shape[1:])
    parts = each[:, :group], each[:, group], each[:, group + 1]
    return np.concatenate([p.reshape(-1, *w.shape[1:]) for p in parts])


def write(path: Path, case: Case, model: Any) -> Path:
    config = model.config
    writer = Writer(path, case.architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 0) or config.ffn_hidden_size)
    writer.add_head_count(config.num_attention_heads)
    single = case.architecture == "falcon" and not config.new_decoder_architecture
    groups = "num_kv_heads" if case.architecture == "falcon" else "num_key_value_heads"
    key_heads = 1 if single else getattr(config, groups, config.num_attention_heads)
    writer.add_head_count_kv(key_heads)
    case.keys(writer, config)
    words = [f"w{i}" for i in range(WORDS - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([2, 3, 3, *[1] * len(words)])
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == case.architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    norms: dict[str, list[np.ndarray]] = {}
    for name, tensor in model.state_dict().items():
        w = tensor.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "_layernorm.norms." in name:  # one for each head; files hold all of them together
            norms.setdefault(name.partition(".norms.")[0], []).append(w)
            continue
        if ".mlp.experts." in name:  # gate and up are one weight here, two in files
            layer, halves = name.split(".")[2], np.split(w, 2, 1) if name.endswith("gate_up_proj") else [w]
            for which, part in zip(("gate", "up") if len(halves) == 2 else ("down",), halves, strict=True):
                writer.add_tensor(f"blk.{layer}.ffn_{which}_exps.weight", np.ascontiguousarray(part))
            continue
        if ".mlp.gate.weight" in name:
            name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
        if case.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            w = paired(w, config.num_attention_heads if ".q_proj." in name else key_heads)
        if "query_key_value" in name:
            w = parted(w, config.num_attention_heads, key_heads)
        if case.architecture.startswith("gemma") and name.endswith("norm.weight"):
            w = w + np.float32(1)
        theirs = "output.weight" if name == "lm_head.weight" else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        writer.add_tensor(theirs, np.ascontiguousarray(w))
    for name, parts in norms.items():
        layer, which = name.split(".")[2], "q" if name.endswith("q_layernorm") else "k"
        writer.add_tensor(f"blk.{layer}.attn_{which}_norm.weight", np.stack(parts))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


IDS = np.random.default_rng(1).integers(3, WORDS, (1, 24))


@pytest.mark.parametrize("name", CASES)
def test_the_logits_are_those_of_transformers_and_llama_cpp(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = made(case)
    path = write(tmp_path / "x.gguf", case, model)
    with torch.no_grad():
        want = np.asarray(model(torch.from_numpy(IDS)).logits.double())
    if "gptneox" in name:  # the file does not say which GELU, and that of the published models is the exact one
        model.config.hidden_act = "gelu"
        for layer in model.gpt_neox.layers:
            layer.mlp.act = torch.nn.GELU()
        with torch.no_grad():
            want = np.asarray(model(torch.from_numpy(IDS)).logits.double())
    have = tfir.evaluate(load_gguf(path), IDS, np.ones_like(IDS))
    assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()
    if not case.served:
        return
    row = have[0, -1].astype(np.float64)
    mine = row - row.max() - np.log(np.exp(row - row.max()).sum())
    with served(path, context=64) as theirs:
        answer = theirs.ask("completion", prompt=IDS[0].tolist(), n_predict=1, n_probs=5, temperature=0, cache_prompt=False)
    top = answer["completion_probabilities"][0]["top_logprobs"]
    assert top[0]["id"] == int(row.argmax())
    assert max(abs(mine[t["id"]] - t["logprob"]) for t in top) < 0.02  # its cache holds keys and values in f16


FAMILIES = {
    "falcon": "falcon?num_attention_heads=4&hidden_size=64",
    "two norms": "falcon?num_attention_heads=4&hidden_size=64&new_decoder_architecture=true&num_kv_heads=2",
    **{a.name: f"{a.model_type}?hidden_size=64&num_attention_heads=4&intermediate_size=96" for a in ARCHITECTURES.values() if a.name != "falcon"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_names_map_both_ways(name: str) -> None:
    table = FALCON_TWO_NORMS if name == "two norms" else ARCHITECTURES[name]
    grouped = "&num_key_value_heads=2" if "num_key_value_heads" in table.fields else ""
    head = "" if name == "gpt2" else grouped
    weights = untraced_model(f"random:{FAMILIES[name]}{head}&num_hidden_layers=2&vocab_size=70&architecture={table.architecture}").weights
    for parameter in weights:
        tensor = table.tensor(parameter)
        assert tensor is not None and table.parameter(tensor) == parameter, parameter


def test_names_of_experts_map_both_ways() -> None:
    for name in ("layers.1.block_sparse_moe.experts.w1.weight", "layers.1.block_sparse_moe.gate.weight", "layers.0.self_attn.q_proj.weight"):
        tensor = MIXTRAL.tensor(name)
        assert tensor is not None and MIXTRAL.parameter(tensor) == name
    assert MIXTRAL.parameter("blk.1.ffn_gate.weight") is None
