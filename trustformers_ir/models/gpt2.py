"""GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).

A decoder of pre-norm Transformer layers over the sum of token and position embeddings; section 2.3 says how it differs from GPT (Radford et al.
2018). Names of parameters are those of Hugging Face checkpoints, without the prefix ``transformer.``. Whole texts are read at once, without a
cache of keys and values.

Positions are ``0 .. seq - 1`` whatever the mask says, as in transformers' ``forward``: a text that is padded at its beginning starts at a later
position. Padding has no influence on the states of tokens; its own states say nothing, and a token of padding that sees no other one attends to none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import (
    ACTIVATIONS,
    CausalAttention,
    Embedding,
    FeedForward,
    JoinedHeads,
    LayerNorm,
    LearnedPositions,
    PreNormLayer,
)
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Decoder, LanguageModel
from trustformers_ir.models.family import Family


@dataclass(frozen=True)
class Gpt2Config:
    """The sizes of a GPT-2, under the names of its config.json. Defaults are those of the published code."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, fields: Fields) -> Gpt2Config:
        """The config of a ``config.json``; problems go to the fields' collector."""
        width = fields.whole("n_embd")
        config = cls(
            vocab_size=fields.whole("vocab_size"),
            n_positions=fields.whole("n_positions"),
            n_embd=width,
            n_layer=fields.whole("n_layer", low=0, high=10_000),
            n_head=fields.whole("n_head"),
            n_inner=fields.whole("n_inner", 4 * width),
            activation_function=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            scale_attn_weights=fields.flag("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=fields.flag("scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.divides("n_head", "n_embd")
        if fields.flag("add_cross_attention", False):
            fields.unsupported("add_cross_attention", "is true: GPT-2 is supported without an encoder")
        return config


class Conv1d:
    """``x @ weight + bias``: checkpoints of GPT-2 hold a row for each input. (A convolution of width 1, hence the name in published code.)"""

    def __init__(self, scope: Scope, inputs: int, outputs: int) -> None:
        self.weight = scope.param("weight", (inputs, outputs))
        self.bias = scope.param("bias", (outputs,))

    def __call__(self, x: Tensor) -> Tensor:
        return F.matmul(x, self.weight) + F.tensor(self.bias)


def gpt2_layer(config: Gpt2Config, scope: Scope, layer: int) -> PreNormLayer:
    """Section 2.3: layer normalization stands at the input of each block. Queries, keys and values are one product. ``layer`` counts from 0."""
    h, eps, heads = config.n_embd, config.layer_norm_epsilon, config.n_head
    attention, mlp = scope.child("attn"), scope.child("mlp")
    scale = (h // heads) ** -0.5 if config.scale_attn_weights else 1.0
    return PreNormLayer(
        attention_norm=LayerNorm(scope.child("ln_1"), h, eps),
        attention=CausalAttention(
            JoinedHeads(Conv1d(attention.child("c_attn"), h, 3 * h), heads, heads),
            Conv1d(attention.child("c_proj"), h, h),
            layer,
            scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        ),
        feed_forward_norm=LayerNorm(scope.child("ln_2"), h, eps),
        feed_forward=FeedForward(
            inner=Conv1d(mlp.child("c_fc"), h, config.n_inner),
            outer=Conv1d(mlp.child("c_proj"), config.n_inner, h),
            activation=ACTIVATIONS[config.activation_function],
        ),
    )


class Gpt2(Decoder):
    """The decoder; its states have ``n_embd`` features."""

    def __init__(self, config: Gpt2Config, scope: Scope) -> None:
        h = config.n_embd
        super().__init__(
            Embedding(scope.child("wte"), config.vocab_size, h),
            positions=LearnedPositions(scope.child("wpe"), config.n_positions, h),
            layers=[gpt2_layer(config, scope.child("h", i), i) for i in range(config.n_layer)],
            norm=LayerNorm(scope.child("ln_f"), h, config.layer_norm_epsilon),
            longest=config.n_positions,
        )


class Gpt2LanguageModel(LanguageModel, Gpt2):
    """The decoder with a head, which is the token embedding, unless the config unties them."""

    def __init__(self, config: Gpt2Config, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


_ARCHITECTURES: dict[str, Callable[[Gpt2Config, Scope], Gpt2]] = {
    "GPT2Model": Gpt2,
    "GPT2LMHeadModel": Gpt2LanguageModel,
}


def _size(layers: int, width: int, heads: int) -> dict[str, int]:
    return {"n_layer": layers, "n_embd": width, "n_head": heads}


ALIASES = {  # names that all of transformers' configs understand
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}

FAMILY = Family(
    model_type="gpt2",
    read_config=Gpt2Config.read,
    architectures=_ARCHITECTURES,
    prefix="transformer",
    base={"vocab_size": 50257, "n_positions": 1024, **_size(12, 768, 12)},
    presets={  # table 2; Sanh et al., "DistilBERT" (2019) for the small one
        "distil": _size(6, 768, 12),
        "medium": _size(24, 1024, 16),
        "large": _size(36, 1280, 20),
        "xl": _size(48, 1600, 25),
    },
    parts=("lm_head", "multiple_choice_head", "score", "classifier"),
    ignorable=(r"h\.\d+\.attn\.(bias|masked_bias)", r"lm_head\.weight"),
    aliases=ALIASES,
)
