"""Gemma 2: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024).

A Gemma with norms behind attention and network as well, bounded scores, and a window in every second layer (section 2). Names of parameters are those
of Hugging Face checkpoints, without the prefix ``model.``. See gemma.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import ACTIVATIONS, PreNormLayer
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Layer
from trustformers_ir.models.family import Family
from trustformers_ir.models.gemma import GELU, Gemma, GemmaConfig, GemmaHead, gemma_sizes
from trustformers_ir.models.llama import CHECKPOINT, LlamaConfig, gated_network, grouped_size, llama_attention
from trustformers_ir.models.qwen2 import FULL, SLIDING


@dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """The sizes of a Gemma 2."""

    @classmethod
    def read(cls, fields: Fields) -> Gemma2Config:
        """The config of a ``config.json``; problems go to the fields' collector."""
        sizes = gemma_sizes(fields, longest=8192, key_heads=4) | gemma2_sizes(fields, period=2)
        return cls(**sizes, softcap=optional(fields, "attn_logit_softcapping", 50.0), logit_softcap=optional(fields, "final_logit_softcapping", 30.0))


def gemma2_sizes(fields: Fields, period: int) -> dict[str, Any]:
    """The fields that Gemma has from 2 on; every ``period``-th layer sees all tokens, unless ``layer_types`` says otherwise."""
    layers = fields.whole("num_hidden_layers", low=0, high=10_000)
    window = None if fields.raw.get("sliding_window", 4096) is None else fields.whole("sliding_window", 4096)
    kinds = fields.names("layer_types", layers, (SLIDING, FULL)) or [SLIDING if (i + 1) % period else FULL for i in range(layers)]
    return {
        "hidden_act": fields.choice("hidden_activation", ACTIVATIONS, GELU),
        "scale": max(fields.number("query_pre_attn_scalar", 256.0), 1e-9) ** -0.5,
        "windows": tuple(window if kind == SLIDING else None for kind in kinds),
    }


def optional(fields: Fields, name: str, default: float | None) -> float | None:
    """A number above 0; none where the field is null."""
    if fields.raw.get(name, default) is None:
        return None
    return fields.number(name, default, low=1e-6)


class Gemma2(Gemma):
    """The decoder; its states have ``hidden_size`` features."""

    def layer(self, config: LlamaConfig, scope: Scope, number: int) -> Layer:
        return PreNormLayer(
            attention_norm=config.norm(scope.child("input_layernorm")),
            attention=llama_attention(config, scope.child("self_attn"), number),
            feed_forward_norm=config.norm(scope.child("pre_feedforward_layernorm")),
            feed_forward=gated_network(config, scope.child("mlp")),
            after=(config.norm(scope.child("post_attention_layernorm")), config.norm(scope.child("post_feedforward_layernorm"))),
        )


class Gemma2LanguageModel(GemmaHead, Gemma2):
    """The decoder with a head."""

    def __init__(self, config: Gemma2Config, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_gemma_head(config, scope)


FAMILY = Family(
    model_type="gemma2",
    read_config=Gemma2Config.read,
    architectures={"Gemma2Model": Gemma2, "Gemma2ForCausalLM": Gemma2LanguageModel},
    base={  # table 1, 9B
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "head_dim": 256,
        **grouped_size(42, 3584, 16, 8, 14336),
    },
    presets={
        "2b": grouped_size(26, 2304, 8, 4, 9216),
        "27b": grouped_size(46, 4608, 32, 16, 36864) | {"head_dim": 128, "query_pre_attn_scalar": 144},
    },
    **CHECKPOINT,
)
