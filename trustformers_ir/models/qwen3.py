"""Qwen 3: Yang et al., "Qwen3 Technical Report" (2025): a LLaMA with norms of queries and keys, head by head, and heads of their own width.

Names of parameters are those of Hugging Face checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import replace

from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, LlamaLanguageModel, grouped_size, llama_sizes
from trustformers_ir.models.qwen2 import late_windows


def read_config(fields: Fields) -> LlamaConfig:
    """The config of a ``config.json``; problems go to the fields' collector."""
    sizes = llama_sizes(fields, longest=32768, key_heads=32, head_dim=128)
    config = LlamaConfig(**sizes, attention_bias=fields.flag("attention_bias", False), head_norms=True)
    return replace(config, windows=late_windows(fields, config.num_hidden_layers))


_SMALL = {"tie_word_embeddings": True}

FAMILY = Family(
    model_type="qwen3",
    read_config=read_config,
    architectures={"Qwen3Model": Llama, "Qwen3ForCausalLM": LlamaLanguageModel},
    base={  # the 8B one
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "head_dim": 128,
        **grouped_size(36, 4096, 32, 8, 12288),
    },
    presets={  # table 1; widths: configs as published
        "0.6b": grouped_size(28, 1024, 16, 8, 3072) | _SMALL,
        "1.7b": grouped_size(28, 2048, 16, 8, 6144) | _SMALL,
        "4b": grouped_size(36, 2560, 32, 8, 9728) | _SMALL,
    },
    **CHECKPOINT,
)
