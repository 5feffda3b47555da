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
    "llama": (transformers.LlamaConfig, GATED),
    "mistral": (transformers.MistralConfig, GATED | {"sliding_window": 3}),
    "phi3": (transformers.Phi3Config, GATED | {"pad_token_id": 0}),
    "qwen2": (transformers.Qwen2Config, GATED),
    "qwen3": (transformers.Qwen3Config, GATED | {"head_dim": 10}),
}
KINDS = {
    "gpt2": ("GPT2Model", "GPT2LMHeadModel"),
    "llama": ("LlamaModel", "LlamaForCausalLM"),
    "mistral": ("MistralModel", "MistralForCausalLM"),
    "phi3": ("Phi3Model", "Phi3ForCausalLM"),
    "qwen2": ("Qwen2Model", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM"),
}
"""``model_type`` -> transformers' class without a head, and the one that predicts the next token."""


def saved(folder: Path, model_type: str, head: bool = True, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A random model of transformers, saved into the folder. Its attention is torch's, which knows texts that begin with padding."""
    config_kind, tiny = CONFIGS[model_type]
    config = config_kind(
        **{"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False} | tiny | fields, attn_implementation="sdpa"
    )
    kind = getattr(transformers, KINDS[model_type][head])
    saved_model(lambda: kind(config), folder, dtype)
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


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
    angles, which it computes in f32 always)."""
    exe = tfir.compile(module)
    for inputs in texts:
        (want,) = theirs(model, inputs)
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
