"""Falcon: Almazrouei et al., "The Falcon Series of Open Language Models" (2023).

A decoder whose attention and network stand beside each other, and whose heads share one key and value (7B), or one for each group of them (40B and
180B, the "new decoder architecture"); the small ones (RW) have plain layers, heads that share nothing, and ALiBi in place of rotary positions. Names
of parameters are those of Hugging Face checkpoints, without the prefix ``transformer.``. Positions and padding are as in llama.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
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
from trustformers_ir.models.family import Family
from trustformers_ir.models.rotary import Rotary


@dataclass(frozen=True)
class FalconConfig:
    """The sizes of a Falcon. ``norms``: of a layer, of attention and network together (1), or one each (2). ``rotary`` is None with ALiBi.
    Defaults of a config.json are those of the published code."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    max_position_embeddings: int
    rotary: Rotary | None
    parallel: bool = True
    norms: int = 1
    bias: bool = False
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, fields: Fields) -> FalconConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
        fields.divides("num_attention_heads", "hidden_size")
        longest = fields.whole("max_position_embeddings", 2048)
        new, parallel = fields.flag("new_decoder_architecture", False), fields.flag("parallel_attn", True)
        shared = fields.flag("multi_query", True)
        groups = fields.whole("num_kv_heads", heads)
        groups = groups if new or not shared else 1
        norms = fields.whole("num_ln_in_parallel_attn", 2 if new else 1, high=2)
        if new and not parallel:
            fields.unsupported("parallel_attn", "is false, which the published code does not compute in a new_decoder_architecture")
        if norms == 2 and not new:
            fields.unsupported("num_ln_in_parallel_attn", "is 2, which the published code computes in a new_decoder_architecture alone")
        if fields.right("num_attention_heads", "num_kv_heads") and heads % groups:
            fields.fail("num_kv_heads", f"is {groups}, which does not divide num_attention_heads {heads}")
        features = max(width // heads, 1)
        alibi = fields.flag("alibi", False)
        if not alibi and fields.right("hidden_size", "num_attention_heads") and features % 2:
            fields.fail("num_attention_heads", f"makes heads of {features} features: rotary positions turn pairs of them")
        return cls(
            vocab_size=fields.whole("vocab_size"),
            hidden_size=width,
            num_hidden_layers=fields.whole("num_hidden_layers", low=0, high=10_000),
            num_attention_heads=heads,
            num_kv_heads=groups,
            ffn_hidden_size=fields.whole("ffn_hidden_size", 4 * width),
            max_position_embeddings=longest,
            rotary=None if alibi else Rotary.read(fields, features, longest),
            parallel=parallel,
            norms=norms,
            bias=fields.flag("bias", False),
            activation=fields.choice("activation", ACTIVATIONS, "gelu"),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )


class Alibi:
    """Press, Smith & Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation" (2021): scores of a key grow
    with its position, by a slope for each head; before they are scaled by ``1 / sqrt(features)``, and rounded to bf16, as the published code has it.

    Positions are those of ids: it counts from the first token, which is the same but for that rounding where a text begins with padding.
    """

    def __init__(self, heads: int, features: int) -> None:
        power = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
        slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power) + 1, 2)]
        self.slopes = np.array(slopes, np.float32)
        self.scale = 1 / math.sqrt(features)

    def __call__(self, keys: Tensor) -> Tensor:
        """``[1, heads, 1, keys]`` for the positions ``i64[keys]``."""
        slopes = F.tensor(self.slopes).to(DType.bf16).to(DType.f32)[None, :, None, None]
        return (slopes * keys.to(DType.f32)).to(DType.bf16).to(DType.f32) * self.scale


def falcon_layer(config: FalconConfig, scope: Scope, layer: int) -> Layer:
    """A layer; ``layer`` counts from 0."""
    h, heads, groups, bias = config.hidden_size, config.num_attention_heads, config.num_kv_heads, config.bias
    features = h // heads
    inner, mlp = scope.child("self_attention"), scope.child("mlp")
    attention = CausalAttention(
        MixedHeads(Linear(inner.child("query_key_value"), h, (heads + 2 * groups) * features, bias), heads, groups),
        Linear(inner.child("dense"), h, h, bias),
        layer,
        bias=Alibi(heads, features) if config.rotary is None else None,
    )
    network = FeedForward(
        inner=Linear(mlp.child("dense_h_to_4h"), h, config.ffn_hidden_size, bias),
        outer=Linear(mlp.child("dense_4h_to_h"), config.ffn_hidden_size, h, bias),
        activation=ACTIVATIONS[config.activation],
    )

    def norm(name: str) -> LayerNorm:
        return LayerNorm(scope.child(name), h, config.layer_norm_epsilon)

    if not config.parallel:
        return PreNormLayer(norm("input_layernorm"), attention, norm("post_attention_layernorm"), network)
    if config.norms == 2:
        return ParallelLayer(norm("ln_attn"), attention, network, norm("ln_mlp"))
    return ParallelLayer(norm("input_layernorm"), attention, network)


class Falcon(Decoder):
    """The decoder; its states have ``hidden_size`` features."""

    def __init__(self, config: FalconConfig, scope: Scope) -> None:
        longest, rotary = config.max_position_embeddings, config.rotary
        super().__init__(
            Embedding(scope.child("word_embeddings"), config.vocab_size, config.hidden_size),
            layers=[falcon_layer(config, scope.child("h", i), i) for i in range(config.num_hidden_layers)],
            norm=LayerNorm(scope.child("ln_f"), config.hidden_size, config.layer_norm_epsilon),
            longest=longest if rotary is None else rotary.longest(longest),
            rotary=rotary,
        )


class FalconLanguageModel(LanguageModel, Falcon):
    """The decoder with a head, which is the token embedding, unless the config unties them."""

    def __init__(self, config: FalconConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


def _size(layers: int, width: int, heads: int) -> dict[str, int]:
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}


_GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 8}
_PLAIN = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}

FAMILY = Family(
    model_type="falcon",
    read_config=FalconConfig.read,
    architectures={"FalconModel": Falcon, "FalconForCausalLM": FalconLanguageModel},
    prefix="transformer",
    base={"vocab_size": 65024, "max_position_embeddings": 2048, **_size(32, 4544, 71)},  # 7B
    presets={  # table 16; configs as published
        "rw-1b": _size(24, 2048, 32) | {"vocab_size": 50304} | _PLAIN,
        "40b": _size(60, 8192, 128) | _GROUPED,
        "180b": _size(80, 14848, 232) | _GROUPED,
    },
    parts=("lm_head", "score", "classifier", "qa_outputs"),
    ignorable=(r"(h\.\d+\.self_attention\.)?rotary_emb\.inv_freq", r"lm_head\.weight"),
    aliases={"n_embed": "hidden_size", "num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size", "hidden_act": "activation"},
)
