"""Decoders that do not descend from LLaMA closely, each in what is its own, against ``transformers``. See test_decoders.py for what holds for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_harness import compare, draw, refused, saved
from safetensors.numpy import load_file, save_file

from trustformers_ir.frontend.checkpoint import load_checkpoint, open_checkpoint
from trustformers_ir.ir.diagnostics import Code

NEW = {"new_decoder_architecture": True, "num_attention_heads": 6, "num_kv_heads": 2}
PLAIN = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "gpt_neox, whole heads": ("gpt_neox", {"rope_parameters": {"rope_theta": 50.0, "partial_rotary_factor": 1.0}, "attention_bias": False}),
    "gpt_neox, linear": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0, "partial_rotary_factor": 0.5}},
    ),
    "gptj, wide network": ("gptj", {"n_inner": 37, "rotary_dim": 8, "activation_function": "relu"}),
    "gpt_neo, all local": ("gpt_neo", {"attention_types": [[["local"], 2]], "window_size": 1, "intermediate_size": 7}),
    "gpt_neo, two lists": ("gpt_neo", {"attention_types": [[["local"], 1], [["global"], 1]], "tie_word_embeddings": False}),
    "falcon, groups": ("falcon", {**NEW, "ffn_hidden_size": 30}),
    "falcon, groups, one norm": ("falcon", {**NEW, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}),
    "falcon, biases": ("falcon", {"bias": True, "activation": "relu"}),
    "falcon, no sharing": ("falcon", {"multi_query": False}),
    "falcon, plain layers": ("falcon", {"parallel_attn": False}),
    "falcon, ALiBi": ("falcon", PLAIN),
    "falcon, ALiBi, 4 heads": ("falcon", {**PLAIN, "num_attention_heads": 4}),
    "falcon, ALiBi, 6 heads of one key": ("falcon", {"alibi": True, "num_attention_heads": 6}),
    "falcon, stretched": ("falcon", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0}, "max_position_embeddings": 8}),
    "stablelm, beside each other": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "stablelm, norms of heads": ("stablelm", {"qk_layernorm": True, "partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "cohere, norms of heads": ("cohere", {"use_qk_norm": True, "logit_scale": 0.8}),
    "cohere, biases": ("cohere", {"attention_bias": True, "tie_word_embeddings": False}),
    "gemma, old name": ("gemma", {"hidden_act": "gelu", "num_key_value_heads": 1}),
    "gemma2, unbounded": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2, bounded tightly": ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}),
    "gemma2, layers named": ("gemma2", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 2}),
    "gemma3, bounded": ("gemma3_text", {"final_logit_softcapping": 3.0}),
    "gemma3, all windows": ("gemma3_text", {"sliding_window_pattern": 6}),
    "gemma3, stretched": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            }
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(tmp_path: Path, name: str) -> None:
    model_type, fields = OPTIONS[name]
    model = saved(tmp_path, model_type, **fields)
    compare(load_checkpoint(tmp_path), model, draw(length=14))


def test_gemma3_of_older_configs(tmp_path: Path) -> None:
    """They have one scaling, and two bases beside it."""
    scaled = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}
    model = saved(tmp_path, "gemma3_text", rope_parameters={"full_attention": scaled, "sliding_attention": {"rope_theta": 20.0}})
    new = str(load_checkpoint(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500.0, "rope_local_base_freq": 20.0, "rope_scaling": {"type": "linear", "factor": 8.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert str(load_checkpoint(tmp_path)) == new
    compare(load_checkpoint(tmp_path), model, draw())


def test_gpt_neox_of_older_configs(tmp_path: Path) -> None:
    model = saved(tmp_path, "gpt_neox", rope_parameters={"rope_theta": 50.0, "partial_rotary_factor": 0.5})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rotary_emb_base": 50, "rotary_pct": 0.5}))
    compare(load_checkpoint(tmp_path), model, draw())


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("gpt_neox", ("gpt_neox.layers.0.attention.masked_bias", "gpt_neox.layers.1.attention.rotary_emb.inv_freq")),
        ("gptj", ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("gpt_neo", ("transformer.h.0.attn.attention.bias", "transformer.h.1.attn.attention.masked_bias")),
        ("falcon", ("transformer.h.0.self_attention.rotary_emb.inv_freq",)),
    ],
)
def test_old_checkpoints_hold_buffers(tmp_path: Path, model_type: str, extra: tuple[str, ...]) -> None:
    saved(tmp_path, model_type)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {name: np.ones(3, np.float32) for name in extra}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).ignored == tuple(sorted(extra))


REFUSED: dict[str, tuple[str, dict[str, Any], Code, str]] = {
    "layers": ("gpt_neo", {"attention_types": [[["global"], 1]]}, Code.CONFIG_INVALID, "'attention_types' is of 1 layers, num_layers is 2"),
    "kinds": (
        "gpt_neo",
        {"attention_types": [[["near"], 2]]},
        Code.CONFIG_INVALID,
        "'attention_types' is no list of pairs, kinds global and local and how often they are repeated, for 2 layers",
    ),
    "wide": ("gptj", {"rotary_dim": 10}, Code.CONFIG_INVALID, "'rotary_dim' is 10: it is even, and a head has 8 features"),
    "heads": ("falcon", {"num_attention_heads": 5}, Code.CONFIG_INVALID, "'num_attention_heads' is 5, which does not divide hidden_size 24"),
    "groups": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        Code.CONFIG_INVALID,
        "'num_kv_heads' is 2, which does not divide num_attention_heads 3",
    ),
    "norms": (
        "falcon",
        {"num_ln_in_parallel_attn": 2},
        Code.UNSUPPORTED_CONFIG,
        "'num_ln_in_parallel_attn' is 2, which the published code computes in a new_decoder_architecture alone",
    ),
    "plain groups": (
        "falcon",
        {"new_decoder_architecture": True, "parallel_attn": False, "num_kv_heads": 3},
        Code.UNSUPPORTED_CONFIG,
        "'parallel_attn' is false, which the published code does not compute in a new_decoder_architecture",
    ),
    "encoder": (
        "gemma",
        {"use_bidirectional_attention": True},
        Code.UNSUPPORTED_CONFIG,
        "'use_bidirectional_attention' is true: Gemma is supported as a decoder",
    ),
    "bound": ("gemma2", {"final_logit_softcapping": 0}, Code.CONFIG_INVALID, "'final_logit_softcapping' is 0, not a number of at least 1e-06"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    model_type, fields, code, message = REFUSED[name]
    saved(tmp_path, model_type)
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert refused(tmp_path) == [(code, message)]
