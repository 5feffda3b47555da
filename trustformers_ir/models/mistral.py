"""Mistral: Jiang et al., "Mistral 7B" (2023): a LLaMA whose tokens see a window of those before them (section 2), in every layer.

Names of parameters are those of Hugging Face checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import replace

from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, LlamaLanguageModel, grouped_size, llama_sizes


def read_config(fields: Fields) -> LlamaConfig:
    """The config of a ``config.json``; problems go to the fields' collector. Without ``sliding_window`` tokens see all before them."""
    config = LlamaConfig(**llama_sizes(fields, longest=131072, key_heads=8))
    return replace(config, windows=(window_of(fields),) * config.num_hidden_layers)


def window_of(fields: Fields) -> int | None:
    """``sliding_window``, which may be null."""
    return None if fields.raw.get("sliding_window") is None else fields.whole("sliding_window")


FAMILY = Family(
    model_type="mistral",
    read_config=read_config,
    architectures={"MistralModel": Llama, "MistralForCausalLM": LlamaLanguageModel},
    base={
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        **grouped_size(32, 4096, 32, 8, 14336),
    },
    presets={  # configs as published
        "7b-v0.3": {"vocab_size": 32768, "rope_theta": 1000000.0, "sliding_window": None},
    },
    **CHECKPOINT,
)
