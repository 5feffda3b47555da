"""LLaMA: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), and its successors 2 and 3.

A decoder of pre-norm Transformer layers with RMS norms, rotary positions, gated feed-forward networks and no biases (section 2.2). Names of
parameters are those of Hugging Face checkpoints, without the prefix ``model.``. Mistral, Qwen, Gemma, Phi-3 and Mixtral are made of the same parts;
their files say in what they differ.

Positions are ``0 .. seq - 1`` whatever the mask says, as in transformers' ``forward``. Rotary attention sees differences of positions only, so a text
means the same wherever padding puts it, up to rounding. Padding has no influence on the states of tokens; its own states say nothing. Texts have at
most ``max_position_embeddings`` tokens, or as many as a scaling of rotary positions stretches them to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import (
    ACTIVATIONS,
    Activation,
    ApartHeads,
    CausalAttention,
    Embedding,
    GatedFeedForward,
    Linear,
    PreNormLayer,
    RmsNorm,
)
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Decoder, LanguageModel, Layer
from trustformers_ir.models.family import Family, transformer_size
from trustformers_ir.models.rotary import THETA, Rotary


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a LLaMA, and in what its descendants differ: ``norm_eps``, which is ``rms_norm_eps`` here; ``output_bias``, whether the last
    product of attention has a bias where the others have one; ``head_norms``, norms of queries and keys; ``norm_offset``, what is added to the
    weights of norms; ``windows``, how many tokens each layer sees (all, for None); ``scale`` and ``softcap`` of scores. Defaults of a config.json are
    those of the published code."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rotary: Rotary
    windows: tuple[int | None, ...]
    hidden_act: str = "silu"
    norm_eps: float = 1e-6
    attention_bias: bool = False
    output_bias: bool = True
    mlp_bias: bool = False
    head_norms: bool = False
    norm_offset: float = 0.0
    scale: float | None = None
    softcap: float | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, fields: Fields) -> LlamaConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        return cls(
            **llama_sizes(fields),
            attention_bias=fields.flag("attention_bias", False),
            mlp_bias=fields.flag("mlp_bias", False),
        )

    def norm(self, scope: Scope) -> Activation:
        """A norm of states."""
        return RmsNorm(scope, self.hidden_size, self.norm_eps, self.norm_offset)

    def head_norm(self, scope: Scope, heads: int) -> Activation:
        """A norm of the features of each head."""
        return RmsNorm(scope, self.head_dim, self.norm_eps, self.norm_offset)


def llama_sizes(
    fields: Fields,
    *,
    longest: int = 2048,
    key_heads: int | None = None,
    head_dim: int | None = None,
    activation: str = "silu",
    eps: float = 1e-6,
    eps_name: str = "rms_norm_eps",
    tied: bool = False,
    theta: float = THETA,
    partial: float | None = None,
    original: int | None = None,
) -> dict[str, Any]:
    """The fields that all descendants of LLaMA have. What is named are defaults of a family's published code; the last two as in ``Rotary.read``."""
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if fields.raw.get("head_dim", head_dim) is None:
        fields.divides("num_attention_heads", "hidden_size")
    features = fields.whole("head_dim", head_dim or max(width // heads, 1))
    longest = fields.whole("max_position_embeddings", longest)
    shared = fields.whole("num_key_value_heads", key_heads or heads)
    layers = fields.whole("num_hidden_layers", low=0, high=10_000)
    if fields.right("num_attention_heads", "num_key_value_heads") and heads % shared:
        fields.fail("num_key_value_heads", f"is {shared}, which does not divide num_attention_heads {heads}")
    if fields.right("hidden_size", "num_attention_heads", "head_dim") and features % 2:
        help = "it is hidden_size / num_attention_heads where it is missing"
        fields.fail("head_dim", f"is {features}: rotary positions turn pairs of features", help)
    return {
        "vocab_size": fields.whole("vocab_size"),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": features,
        "intermediate_size": fields.whole("intermediate_size"),
        "max_position_embeddings": longest,
        "rotary": Rotary.read(fields, features, longest, theta, partial, original),
        "windows": (None,) * layers,
        "hidden_act": fields.choice("hidden_act", ACTIVATIONS, activation),
        "norm_eps": fields.number(eps_name, eps),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", tied),
    }


def llama_attention(config: LlamaConfig, scope: Scope, layer: int) -> CausalAttention:
    """Attention of a layer, which counts from 0."""
    h, features = config.hidden_size, config.head_dim
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    norms = (config.head_norm(scope.child("q_norm"), heads), config.head_norm(scope.child("k_norm"), key_heads)) if config.head_norms else None
    return CausalAttention(
        ApartHeads(
            query=Linear(scope.child("q_proj"), h, heads * features, config.attention_bias),
            key=Linear(scope.child("k_proj"), h, key_heads * features, config.attention_bias),
            value=Linear(scope.child("v_proj"), h, key_heads * features, config.attention_bias),
            heads=heads,
            key_heads=key_heads,
        ),
        Linear(scope.child("o_proj"), heads * features, h, config.attention_bias and config.output_bias),
        layer,
        norms=norms,
        scale=config.scale,
        window=config.windows[layer],
        softcap=config.softcap,
    )


def gated_network(config: LlamaConfig, scope: Scope) -> Activation:
    """SwiGLU and its like."""
    h, inner = config.hidden_size, config.intermediate_size
    return GatedFeedForward(
        gate=Linear(scope.child("gate_proj"), h, inner, config.mlp_bias),
        up=Linear(scope.child("up_proj"), h, inner, config.mlp_bias),
        down=Linear(scope.child("down_proj"), inner, h, config.mlp_bias),
        activation=ACTIVATIONS[config.hidden_act],
    )


class Llama(Decoder):
    """The decoder; its states have ``hidden_size`` features. A family that differs from it says in what."""

    def __init__(self, config: LlamaConfig, scope: Scope) -> None:
        super().__init__(
            Embedding(scope.child("embed_tokens"), config.vocab_size, config.hidden_size),
            layers=[self.layer(config, scope.child("layers", i), i) for i in range(config.num_hidden_layers)],
            norm=config.norm(scope.child("norm")),
            longest=config.rotary.longest(config.max_position_embeddings),
            rotary=config.rotary,
        )

    def layer(self, config: LlamaConfig, scope: Scope, number: int) -> Layer:
        """Section 2.2: attention and feed-forward network, each behind a norm and beside a residual. ``number`` counts from 0."""
        return PreNormLayer(
            attention_norm=config.norm(scope.child("input_layernorm")),
            attention=llama_attention(config, scope.child("self_attn"), number),
            feed_forward_norm=config.norm(scope.child("post_attention_layernorm")),
            feed_forward=self.network(config, scope),
        )

    def network(self, config: LlamaConfig, scope: Scope) -> Activation:
        """The feed-forward network of a layer."""
        return gated_network(config, scope.child("mlp"))


class LlamaLanguageModel(LanguageModel, Llama):
    """The decoder with a head, which is the token embedding where the config ties them."""

    def __init__(self, config: LlamaConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


_ARCHITECTURES: dict[str, Callable[[LlamaConfig, Scope], Llama]] = {
    "LlamaModel": Llama,
    "LlamaForCausalLM": LlamaLanguageModel,
}


def grouped_size(layers: int, width: int, heads: int, key_heads: int, inner: int) -> dict[str, int]:
    """Fields of a preset."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": inner,
    }


_LLAMA_3 = {"vocab_size": 128256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
_LONG = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LLAMA_3_2 = _LLAMA_3 | {"max_position_embeddings": 131072, "tie_word_embeddings": True, "rope_scaling": _LONG | {"factor": 32.0}}

CHECKPOINT: Mapping[str, Any] = {
    "prefix": "model",
    "parts": ("lm_head", "score", "qa_outputs"),
    "ignorable": (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"lm_head\.weight"),
}
"""What ``Family`` says of checkpoints of all descendants."""

FAMILY = Family(
    model_type="llama",
    read_config=LlamaConfig.read,
    architectures=_ARCHITECTURES,
    base={"vocab_size": 32000, "max_position_embeddings": 2048, **transformer_size(32, 4096, 32), "intermediate_size": 11008},
    presets={  # Touvron et al., table 2; Dubey et al., table 3; the small ones: their configs as published
        "13b": grouped_size(40, 5120, 40, 40, 13824),
        "llama3-8b": grouped_size(32, 4096, 32, 8, 14336) | _LLAMA_3 | {"max_position_embeddings": 8192},
        "llama3.2-1b": grouped_size(16, 2048, 32, 8, 8192) | _LLAMA_3_2,
        "llama3.2-3b": grouped_size(28, 3072, 24, 8, 8192) | _LLAMA_3_2,
        "smollm2-135m": grouped_size(30, 576, 9, 3, 1536)
        | {"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        "tinyllama-1.1b": grouped_size(22, 2048, 32, 4, 5632) | {"rms_norm_eps": 1e-5},
    },
    **CHECKPOINT,
)
