"""GPT-NeoX: Black et al., "GPT-NeoX-20B: An Open-Source Autoregressive Language Model" (2022); Pythia (Biderman et al. 2023) is made alike.

A decoder whose attention and network stand beside each other, of a norm each, and whose rotary positions turn a quarter of each head (section 2.1).
Names of parameters are those of Hugging Face checkpoints, without the prefix ``gpt_neox.``. Positions, padding and lengths of texts are as in
llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import (
    ACTIVATIONS,
    CausalAttention,
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    MixedHeads,
    ParallelLayer,
    PreNormLayer,
)
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Decoder, LanguageModel, Layer
from trustformers_ir.models.family import Family, transformer_size
from trustformers_ir.models.llama import LlamaConfig, llama_sizes


@dataclass(frozen=True)
class GptNeoXConfig(LlamaConfig):
    """The sizes of a GPT-NeoX."""

    parallel: bool = True

    @classmethod
    def read(cls, fields: Fields) -> GptNeoXConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        sizes = llama_sizes(fields, longest=2048, activation="gelu", eps=1e-5, eps_name="layer_norm_eps", partial=0.25)
        return cls(
            **sizes,
            attention_bias=fields.flag("attention_bias", True),
            parallel=fields.flag("use_parallel_residual", True),
        )

    def norm(self, scope: Scope) -> LayerNorm:
        return LayerNorm(scope, self.hidden_size, self.norm_eps)


def gpt_neox_layer(config: GptNeoXConfig, scope: Scope, layer: int) -> Layer:
    """A layer; ``layer`` counts from 0."""
    h, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
    inner, mlp = scope.child("attention"), scope.child("mlp")
    attention = CausalAttention(
        MixedHeads(Linear(inner.child("query_key_value"), h, 3 * h, bias), heads, heads), Linear(inner.child("dense"), h, h, bias), layer
    )
    network = FeedForward(
        inner=Linear(mlp.child("dense_h_to_4h"), h, config.intermediate_size),
        outer=Linear(mlp.child("dense_4h_to_h"), config.intermediate_size, h),
        activation=ACTIVATIONS[config.hidden_act],
    )
    first, second = config.norm(scope.child("input_layernorm")), config.norm(scope.child("post_attention_layernorm"))
    return ParallelLayer(first, attention, network, second) if config.parallel else PreNormLayer(first, attention, second, network)


class GptNeoX(Decoder):
    """The decoder; its states have ``hidden_size`` features."""

    def __init__(self, config: GptNeoXConfig, scope: Scope) -> None:
        super().__init__(
            Embedding(scope.child("embed_in"), config.vocab_size, config.hidden_size),
            layers=[gpt_neox_layer(config, scope.child("layers", i), i) for i in range(config.num_hidden_layers)],
            norm=config.norm(scope.child("final_layer_norm")),
            longest=config.rotary.longest(config.max_position_embeddings),
            rotary=config.rotary,
        )


class GptNeoXLanguageModel(LanguageModel, GptNeoX):
    """The decoder with a head, which is the token embedding where the config ties them."""

    def __init__(self, config: GptNeoXConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


FAMILY = Family(
    model_type="gpt_neox",
    read_config=GptNeoXConfig.read,
    architectures={"GPTNeoXModel": GptNeoX, "GPTNeoXForCausalLM": GptNeoXLanguageModel},
    prefix="gpt_neox",
    base={"vocab_size": 50432, "max_position_embeddings": 2048, "hidden_act": "gelu_fast", **transformer_size(44, 6144, 64)},
    presets={  # Biderman et al., table 1; vocabularies as published
        "pythia-70m": transformer_size(6, 512, 8) | {"vocab_size": 50304, "hidden_act": "gelu"},
        "pythia-1b": transformer_size(16, 2048, 8) | {"vocab_size": 50304, "hidden_act": "gelu"},
        "pythia-6.9b": transformer_size(32, 4096, 32) | {"hidden_act": "gelu"},
    },
    renames=((r"^embed_out\.", "lm_head."),),
    parts=("lm_head", "score", "classifier", "qa_outputs"),
    ignorable=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"lm_head\.weight"),
    aliases={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
)
