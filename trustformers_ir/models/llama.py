"""LLaMA: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), and its successors 2 and 3.

A decoder of pre-norm Transformer layers with RMS norms, rotary positions, gated feed-forward networks and no biases (section 2.2). Names of
parameters are those of Hugging Face checkpoints, without the prefix ``model.``. Whole texts are read at once, without a cache of keys and values.

Positions are ``0 .. seq - 1`` whatever the mask says, as in transformers' ``forward``. Rotary attention sees differences of positions only, so a text
means the same wherever padding puts it, up to rounding. Padding has no influence on the states of tokens; its own states say nothing. Texts have at
most ``max_position_embeddings`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import ACTIVATIONS, Embedding, GatedFeedForward, GroupedAttention, Linear, RmsNorm, Text
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Decoder, LanguageModel
from trustformers_ir.models.family import Family, transformer_size
from trustformers_ir.models.rotary import Rotary


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a LLaMA. Defaults of a config.json are those of the published code."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rotary: Rotary
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, fields: Fields) -> LlamaConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
        if fields.raw.get("head_dim") is None:
            fields.divides("num_attention_heads", "hidden_size")
        features = fields.whole("head_dim", max(width // heads, 1))
        longest = fields.whole("max_position_embeddings", 2048)
        config = cls(
            vocab_size=fields.whole("vocab_size"),
            hidden_size=width,
            num_hidden_layers=fields.whole("num_hidden_layers", low=0, high=10_000),
            num_attention_heads=heads,
            num_key_value_heads=fields.whole("num_key_value_heads", heads),
            head_dim=features,
            intermediate_size=fields.whole("intermediate_size"),
            max_position_embeddings=longest,
            rotary=Rotary.read(fields, features, longest),
            hidden_act=fields.choice("hidden_act", ACTIVATIONS, "silu"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attention_bias=fields.flag("attention_bias", False),
            mlp_bias=fields.flag("mlp_bias", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        )
        if fields.right("num_attention_heads", "num_key_value_heads") and heads % config.num_key_value_heads:
            fields.fail("num_key_value_heads", f"is {config.num_key_value_heads}, which does not divide num_attention_heads {heads}")
        if fields.right("hidden_size", "num_attention_heads", "head_dim") and features % 2:
            help = "it is hidden_size / num_attention_heads where it is missing"
            fields.fail("head_dim", f"is {features}: rotary positions turn pairs of features", help)
        return config


class LlamaLayer:
    """Section 2.2: attention and feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, config: LlamaConfig, scope: Scope, layer: int) -> None:
        h, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        attention, mlp = scope.child("self_attn"), scope.child("mlp")
        self.attention_norm = RmsNorm(scope.child("input_layernorm"), h, eps)
        self.attention = GroupedAttention(
            query=Linear(attention.child("q_proj"), h, queries, config.attention_bias),
            key=Linear(attention.child("k_proj"), h, keys, config.attention_bias),
            value=Linear(attention.child("v_proj"), h, keys, config.attention_bias),
            output=Linear(attention.child("o_proj"), queries, h, config.attention_bias),
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            layer=layer,
        )
        self.feed_forward_norm = RmsNorm(scope.child("post_attention_layernorm"), h, eps)
        self.feed_forward = GatedFeedForward(
            gate=Linear(mlp.child("gate_proj"), h, inner, config.mlp_bias),
            up=Linear(mlp.child("up_proj"), h, inner, config.mlp_bias),
            down=Linear(mlp.child("down_proj"), inner, h, config.mlp_bias),
            activation=ACTIVATIONS[config.hidden_act],
        )

    def __call__(self, x: Tensor, turn: Callable[[Tensor], Tensor], text: Text) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, text)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(Decoder):
    """The decoder; its states have ``hidden_size`` features."""

    def __init__(self, config: LlamaConfig, scope: Scope) -> None:
        super().__init__(Embedding(scope.child("embed_tokens"), config.vocab_size, config.hidden_size), config.max_position_embeddings)
        self.rotary = config.rotary
        self.layers = [LlamaLayer(config, scope.child("layers", i), i) for i in range(config.num_hidden_layers)]
        self.norm = RmsNorm(scope.child("norm"), config.hidden_size, config.rms_norm_eps)

    def states(self, input_ids: Tensor, text: Text) -> Tensor:
        x = self.tokens(input_ids)
        turn = self.rotary.turning(text.positions, x.dtype)
        for layer in self.layers:
            x = layer(x, turn, text)
        return self.norm(x)


class LlamaLanguageModel(LanguageModel, Llama):
    """The decoder with a head, which is the token embedding where the config ties them."""

    def __init__(self, config: LlamaConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


_ARCHITECTURES: dict[str, Callable[[LlamaConfig, Scope], Llama]] = {
    "LlamaModel": Llama,
    "LlamaForCausalLM": LlamaLanguageModel,
}


def _size(layers: int, width: int, heads: int, key_heads: int, inner: int) -> dict[str, int]:
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

FAMILY = Family(
    model_type="llama",
    read_config=LlamaConfig.read,
    architectures=_ARCHITECTURES,
    prefix="model",
    base={"vocab_size": 32000, "max_position_embeddings": 2048, **transformer_size(32, 4096, 32), "intermediate_size": 11008},
    presets={  # Touvron et al., table 2; Dubey et al., table 3; the small ones: their configs as published
        "13b": _size(40, 5120, 40, 40, 13824),
        "llama3-8b": _size(32, 4096, 32, 8, 14336) | _LLAMA_3 | {"max_position_embeddings": 8192},
        "llama3.2-1b": _size(16, 2048, 32, 8, 8192) | _LLAMA_3_2,
        "llama3.2-3b": _size(28, 3072, 24, 8, 8192) | _LLAMA_3_2,
        "smollm2-135m": _size(30, 576, 9, 3, 1536)
        | {"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        "tinyllama-1.1b": _size(22, 2048, 32, 4, 5632) | {"rms_norm_eps": 1e-5},
    },
    parts=("lm_head", "score", "qa_outputs"),
    ignorable=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"lm_head\.weight"),
)
