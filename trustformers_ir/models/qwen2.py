"""Qwen 2 and 2.5: Yang et al., "Qwen2 Technical Report" (2024): a LLaMA with biases of queries, keys and values.

Names of parameters are those of Hugging Face checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import replace

from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, LlamaLanguageModel, grouped_size, llama_sizes

SLIDING, FULL = "sliding_attention", "full_attention"


def read_config(fields: Fields) -> LlamaConfig:
    """The config of a ``config.json``; problems go to the fields' collector."""
    config = LlamaConfig(**llama_sizes(fields, longest=32768, key_heads=32), attention_bias=True, output_bias=False)
    return replace(config, windows=late_windows(fields, config.num_hidden_layers))


def late_windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """How many tokens each layer sees, where the later ones may see a window: ``sliding_window`` tokens with ``use_sliding_window``, in the layers
    that ``layer_types`` names, or else in those from ``max_window_layers`` on."""
    given, first = fields.names("layer_types", layers, (SLIDING, FULL)), fields.whole("max_window_layers", 28, low=0)
    if not fields.flag("use_sliding_window", False):
        return (None,) * layers
    window = None if fields.raw.get("sliding_window", 4096) is None else fields.whole("sliding_window", 4096)
    kinds = given or [SLIDING if i >= first else FULL for i in range(layers)]
    return tuple(window if kind == SLIDING else None for kind in kinds)


FAMILY = Family(
    model_type="qwen2",
    read_config=read_config,
    architectures={"Qwen2Model": Llama, "Qwen2ForCausalLM": LlamaLanguageModel},
    base={  # the 7B one
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        **grouped_size(28, 3584, 28, 4, 18944),
    },
    presets={  # configs as published, of 2.5
        "0.5b": grouped_size(24, 896, 14, 2, 4864) | {"vocab_size": 151936, "tie_word_embeddings": True},
        "1.5b": grouped_size(28, 1536, 12, 2, 8960) | {"vocab_size": 151936, "tie_word_embeddings": True},
    },
    **CHECKPOINT,
)
