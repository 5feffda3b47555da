"""Phi-3: Abdin et al., "Phi-3 Technical Report: A Highly Capable Language Model Locally on Your Phone" (2024).

A LLaMA whose products of one input are one weight: queries, keys and values (``qkv_proj``), gate and what it lets through (``gate_up_proj``). The
one for long texts turns by LongRoPE (Ding et al. 2024), Phi-4-mini only a part of each head. Names of parameters are those of Hugging Face
checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import replace

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import ACTIVATIONS, CausalAttention, JoinedGate, JoinedHeads, Linear, PreNormLayer
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import LanguageModel, Layer
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, grouped_size, llama_sizes
from trustformers_ir.models.mistral import window_of


def read_config(fields: Fields) -> LlamaConfig:
    """The config of a ``config.json``; problems go to the fields' collector. Scalings that older configs call su or yarn are longrope."""
    for name in ("rope_scaling", "rope_parameters"):
        inner = fields.raw.get(name)
        if isinstance(inner, dict):
            kinds = {k: "longrope" for k in ("type", "rope_type") if inner.get(k) in ("su", "yarn")}
            fields.raw = {**fields.raw, name: {**inner, **kinds}}
    config = LlamaConfig(**llama_sizes(fields, longest=4096, eps=1e-5, partial=1.0, original=4096))
    if fields.right("rope_scaling", "rope_parameters") and config.rotary.kind not in ("default", "longrope"):
        fields.unsupported("rope_scaling", f"is {config.rotary.kind}: Phi-3 is stretched by longrope")
    return replace(config, windows=(window_of(fields),) * config.num_hidden_layers)


class Phi3(Llama):
    """The decoder; its states have ``hidden_size`` features."""

    def layer(self, config: LlamaConfig, scope: Scope, number: int) -> Layer:
        h, inner, features = config.hidden_size, config.intermediate_size, config.head_dim
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        attention, mlp = scope.child("self_attn"), scope.child("mlp")
        return PreNormLayer(
            attention_norm=config.norm(scope.child("input_layernorm")),
            attention=CausalAttention(
                JoinedHeads(Linear(attention.child("qkv_proj"), h, (heads + 2 * key_heads) * features, bias=False), heads, key_heads),
                Linear(attention.child("o_proj"), heads * features, h, bias=False),
                number,
                window=config.windows[number],
            ),
            feed_forward_norm=config.norm(scope.child("post_attention_layernorm")),
            feed_forward=JoinedGate(
                gate_up=Linear(mlp.child("gate_up_proj"), h, 2 * inner, bias=False),
                down=Linear(mlp.child("down_proj"), inner, h, bias=False),
                activation=ACTIVATIONS[config.hidden_act],
            ),
        )


class Phi3LanguageModel(LanguageModel, Phi3):
    """The decoder with a head, which is the token embedding where the config ties them."""

    def __init__(self, config: LlamaConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


FAMILY = Family(
    model_type="phi3",
    read_config=read_config,
    architectures={"Phi3Model": Phi3, "Phi3ForCausalLM": Phi3LanguageModel},
    base={  # mini, of 3.8 B parameters
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": 2047,
        **grouped_size(32, 3072, 32, 32, 8192),
    },
    presets={  # section 2 and configs as published
        "medium": grouped_size(40, 5120, 40, 10, 17920),
        "phi4": grouped_size(40, 5120, 40, 10, 17920)
        | {"vocab_size": 100352, "max_position_embeddings": 16384, "rope_theta": 250000.0, "sliding_window": None},
    },
    **CHECKPOINT,
)
