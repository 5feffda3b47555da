"""GPT-J: Wang & Komatsuzaki, "GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model" (2021).

A decoder whose attention and network stand beside each other, of one norm, and whose rotary positions turn neighbours, 0 and 1, 2 and 3, …, of the
first ``rotary_dim`` features of each head. Names of parameters are those of Hugging Face checkpoints, without the prefix ``transformer.``. Positions
and padding are as in llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import (
    ACTIVATIONS,
    ApartHeads,
    CausalAttention,
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    ParallelLayer,
)
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Decoder, LanguageModel
from trustformers_ir.models.family import Family
from trustformers_ir.models.gpt2 import ALIASES
from trustformers_ir.models.rotary import Rotary


@dataclass(frozen=True)
class GptJConfig:
    """The sizes of a GPT-J, under the names of its config.json. Defaults are those of the published code."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    rotary_dim: int
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, fields: Fields) -> GptJConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        width, heads = fields.whole("n_embd"), fields.whole("n_head")
        config = cls(
            vocab_size=fields.whole("vocab_size"),
            n_positions=fields.whole("n_positions", 2048),
            n_embd=width,
            n_layer=fields.whole("n_layer", low=0, high=10_000),
            n_head=heads,
            n_inner=fields.whole("n_inner", 4 * width),
            rotary_dim=fields.whole("rotary_dim", 64),
            activation_function=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        )
        fields.divides("n_head", "n_embd")
        if fields.right("n_embd", "n_head", "rotary_dim") and (config.rotary_dim % 2 or config.rotary_dim > width // heads):
            fields.fail("rotary_dim", f"is {config.rotary_dim}: it is even, and a head has {width // heads} features")
        return config


def gptj_layer(config: GptJConfig, scope: Scope, layer: int) -> ParallelLayer:
    """A layer; ``layer`` counts from 0."""
    h, heads = config.n_embd, config.n_head
    attention, mlp = scope.child("attn"), scope.child("mlp")
    query, key, value, output = (Linear(attention.child(f"{name}_proj"), h, h, bias=False) for name in ("q", "k", "v", "out"))
    return ParallelLayer(
        LayerNorm(scope.child("ln_1"), h, config.layer_norm_epsilon),
        CausalAttention(ApartHeads(query, key, value, heads, heads), output, layer),
        FeedForward(
            inner=Linear(mlp.child("fc_in"), h, config.n_inner),
            outer=Linear(mlp.child("fc_out"), config.n_inner, h),
            activation=ACTIVATIONS[config.activation_function],
        ),
    )


class GptJ(Decoder):
    """The decoder; its states have ``n_embd`` features."""

    def __init__(self, config: GptJConfig, scope: Scope) -> None:
        super().__init__(
            Embedding(scope.child("wte"), config.vocab_size, config.n_embd),
            layers=[gptj_layer(config, scope.child("h", i), i) for i in range(config.n_layer)],
            norm=LayerNorm(scope.child("ln_f"), config.n_embd, config.layer_norm_epsilon),
            longest=config.n_positions,
            rotary=Rotary(config.rotary_dim, interleaved=True),
        )


class GptJLanguageModel(LanguageModel, GptJ):
    """The decoder with a head that has a bias."""

    def __init__(self, config: GptJConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings, bias=True)


FAMILY = Family(
    model_type="gptj",
    read_config=GptJConfig.read,
    architectures={"GPTJModel": GptJ, "GPTJForCausalLM": GptJLanguageModel},
    prefix="transformer",
    base={"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64},
    parts=("lm_head", "score", "qa_outputs"),
    ignorable=(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)", r"lm_head\.weight"),
    aliases=ALIASES,
)
