"""The descendants of LLaMA, each in what is its own, against ``transformers``. See test_decoders.py for what holds for all decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from decoder_harness import compare, draw, refused, saved

from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.ir.diagnostics import Code

LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 5.5], "original_max_position_embeddings": 8}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, wide heads": ("mistral", {"head_dim": 10, "sliding_window": 1}),
    "mistral, tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": 100}),
    "mixtral, window and one expert": ("mixtral", {"sliding_window": 3, "num_experts_per_tok": 1}),
    "mixtral, all experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 4, "tie_word_embeddings": True}),
    "mixtral, 3 of 5": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 10}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in the last layer": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen2, window not used": ("qwen2", {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 1}),
    "qwen2, layers named": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen2, yarn": (
        "qwen2",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 8}},
    ),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "qwen3, window": ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
    "phi3, window": ("phi3", {"sliding_window": 4}),
    "phi3, short": ("phi3", {"max_position_embeddings": 32, "rope_scaling": {"type": "su", **LONG}, "original_max_position_embeddings": 16}),
    "phi3, long": ("phi3", {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 8}),
    "phi3, a part of each head": (
        "phi3",
        {"hidden_size": 48, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(tmp_path: Path, name: str) -> None:
    model_type, fields = OPTIONS[name]
    model = saved(tmp_path, model_type, **fields)
    compare(load_checkpoint(tmp_path), model, draw(length=14))


REFUSED: dict[str, tuple[str, dict[str, Any], Code, str]] = {
    "window": ("mistral", {"sliding_window": 0}, Code.CONFIG_INVALID, "'sliding_window' is 0, not a whole number of at least 1"),
    "experts": ("mixtral", {"num_experts_per_tok": 4}, Code.CONFIG_INVALID, "'num_experts_per_tok' is 4, not a whole number in 1 .. 3"),
    "layers": (
        "qwen2",
        {"layer_types": ["sliding_attention"]},
        Code.CONFIG_INVALID,
        "'layer_types' is a list, not a list of 2 of the names full_attention, sliding_attention",
    ),
    "scaling": (
        "phi3",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        Code.UNSUPPORTED_CONFIG,
        "'rope_scaling' is linear: Phi-3 is stretched by longrope",
    ),
    "a part that is odd": (
        "phi3",
        {"rope_parameters": {"partial_rotary_factor": 0.25}},
        Code.CONFIG_INVALID,
        "'partial_rotary_factor' makes 1 of 4 features of a head turn: rotary positions turn pairs of them",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    model_type, fields, code, message = REFUSED[name]
    saved(tmp_path, model_type)
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert refused(tmp_path) == [(code, message)]
