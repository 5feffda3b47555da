"""Small random decoders of ``transformers``, texts for them, and the comparison: shared by the tests of decoder families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models_harness import listed, ours, saved_model, theirs

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError

VOCAB = 50
GATED: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (transformers.GPT2Config, {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16}),
    "cohere": (transformers.CohereConfig, GATED | {"pad_token_id": 0}),
    "falcon": (transformers.FalconConfig, {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16}),
    "gemma": (transformers.GemmaConfig, GATED | {"head_dim": 6}),
    "gemma2": (transformers.Gemma2Config, GATED | {"head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 5}),
    "gemma3_text": (
        transformers.Gemma3TextConfig,
        GATED | {"head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 5, "sliding_window_pattern": 2},
    ),
    "gpt_neo": (
        transformers.GPTNeoConfig,
        {
            "hidden_size": 24,
            "num_layers": 2,
            "num_heads": 3,
            "max_position_embeddings": 16,
            "window_size": 3,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": (
        transformers.GPTNeoXConfig,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 16},
    ),
    "gptj": (transformers.GPTJConfig, {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "rotary_dim": 4}),
    "llama": (transformers.LlamaConfig, GATED),
    "mistral": (transformers.MistralConfig, GATED | {"sliding_window": 3}),
    "mixtral": (transformers.MixtralConfig, GATED | {"num_local_experts": 3}),
    "phi3": (transformers.Phi3Config, GATED | {"pad_token_id": 0}),
    "qwen2": (transformers.Qwen2Config, GATED),
    "qwen3": (transformers.Qwen3Config, GATED | {"head_dim": 10}),
    "stablelm": (transformers.StableLmConfig, GATED | {"hidden_size": 48}),
}
KINDS = {
    "cohere": ("CohereModel", "CohereForCausalLM"),
    "falcon": ("FalconModel", "FalconForCausalLM"),
    "gemma": ("GemmaModel", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Model", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextModel", "Gemma3ForCausalLM"),
    "gpt_neo": ("GPTNeoModel", "GPTNeoForCausalLM"),
    "gpt_neox": ("GPTNeoXModel", "GPTNeoXForCausalLM"),
    "gptj": ("GPTJModel", "GPTJForCausalLM"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel"),
    "llama": ("LlamaModel", "LlamaForCausalLM"),
    "mistral": ("MistralModel", "MistralForCausalLM"),
    "mixtral": ("MixtralModel", "MixtralForCausalLM"),
    "phi3": ("Phi3Model", "Phi3ForCausalLM"),
    "qwen2": ("Qwen2Model", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM"),
    "stablelm": ("StableLmModel", "StableLmForCausalLM"),
}
#: torch's attention knows neither bounded scores nor these families
EAGER = ("gemma2", "gpt_neo", "gptj")
"""``model_type`` -> transformers' class without a head, and the one that predicts the next token."""


def saved(folder: Path, model_type: str, head: bool = True, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A random model of transformers, saved into the folder. Its attention is torch's, where it is known there."""
    config_kind, tiny = CONFIGS[model_type]
    how = "eager" if model_type in EAGER else "sdpa"
    config = config_kind(**{"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False} | tiny | fields, attn_implementation=how)
    kind = getattr(transformers, KINDS[model_type][head])
    saved_model(lambda: kind(config), folder, dtype)
    more = {"experts_implementation": "eager"} if model_type == "mixtral" else {}  # the other one computes in 32 bits only
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=how, **more)


def draw(batch: int = 3, length: int = 7, seed: int = 0, side: str = "right") -> dict[str, np.ndarray]:
    """Ids with rows of different lengths, padded at the end (right), at the beginning (left), or not at all."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, length + 1, (batch, 1))
    lengths[0] = length
    at = np.arange(length)
    mask = {"right": at < lengths, "left": at >= length - lengths, "": np.ones((batch, length), bool)}[side]
    return {"input_ids": random.integers(0, VOCAB, (batch, length)), "attention_mask": mask.astype(np.int64)}


def compare(module: Module, model: Any, *texts: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """States of tokens: the reference semantics in float64 and the compiled model in f32, against transformers in float64 (but for norms and
    angles, which it computes in f32 always). Attention that is not torch's makes NaN of padding in float64, its masks being -inf in f32."""
    exe = tfir.compile(module)
    for inputs in texts:
        (want,) = theirs(model, inputs, torch.float32 if model.config.model_type in EAGER else torch.float64)
        rows = inputs["attention_mask"] > 0
        scale = max(1.0, float(np.abs(want[rows]).max()))
        for (have,), bound in ((ours(module, inputs), tolerance), (listed(exe(**inputs)), 2 * tolerance)):
            assert have.shape == want.shape
            np.testing.assert_allclose(have[rows], want[rows], rtol=0, atol=bound * scale)


def refused(folder: Path) -> list[tuple[Code, str]]:
    """Code and message of each problem of the checkpoint."""
    with pytest.raises(CompilerError) as caught:
        load_checkpoint(folder)
    return [(d.code, d.message) for d in caught.value.diagnostics]
