"""GPT-Neo: Black et al., "GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow" (2021).

A GPT-2 whose every second layer is local: its tokens see a window of those before them. Scores are not scaled. Names of parameters are those of
Hugging Face checkpoints, without the prefix ``transformer.``. Positions and padding are as in gpt2.py.
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
    LearnedPositions,
    Linear,
    PreNormLayer,
)
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import Decoder, LanguageModel
from trustformers_ir.models.family import Family

GLOBAL, LOCAL = "global", "local"


@dataclass(frozen=True)
class GptNeoConfig:
    """The sizes of a GPT-Neo. ``windows``: how many tokens each layer sees, all for None. Defaults are those of the published code."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    windows: tuple[int | None, ...]
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, fields: Fields) -> GptNeoConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        width = fields.whole("hidden_size")
        layers, window = fields.whole("num_layers", low=0, high=10_000), fields.whole("window_size", 256)
        config = cls(
            vocab_size=fields.whole("vocab_size"),
            max_position_embeddings=fields.whole("max_position_embeddings", 2048),
            hidden_size=width,
            num_heads=fields.whole("num_heads"),
            intermediate_size=fields.whole("intermediate_size", 4 * width),
            windows=tuple(window if kind == LOCAL else None for kind in _kinds(fields, layers)),
            activation_function=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.divides("num_heads", "hidden_size")
        return config


def _kinds(fields: Fields, layers: int) -> list[str]:
    """What each layer is, by ``attention_types``: kinds that are repeated a number of times, ``[[["global", "local"], 12]]``."""
    name = "attention_types"
    fields.asked.add(name)
    given = fields.raw.get(name)
    if given is None:
        return [LOCAL if i % 2 else GLOBAL for i in range(layers)]
    found: list[str] = []
    for part in given if isinstance(given, list) else [None]:
        kinds, times = part if isinstance(part, list) and len(part) == 2 else ([""], 0)
        right = isinstance(kinds, list) and all(k in (GLOBAL, LOCAL) for k in kinds) and isinstance(times, int) and not isinstance(times, bool)
        if not right or not 0 <= times * len(kinds) <= layers:
            fields.fail(name, f"is no list of pairs, kinds {GLOBAL} and {LOCAL} and how often they are repeated, for {layers} layers")
            return [GLOBAL] * layers
        found += kinds * times
    if len(found) != layers and fields.right("num_layers"):
        fields.fail(name, f"is of {len(found)} layers, num_layers is {layers}")
        return [GLOBAL] * layers
    return found


def gpt_neo_layer(config: GptNeoConfig, scope: Scope, layer: int) -> PreNormLayer:
    """A layer; ``layer`` counts from 0."""
    h, eps, heads = config.hidden_size, config.layer_norm_epsilon, config.num_heads
    attention, mlp = scope.child("attn", "attention"), scope.child("mlp")
    query, key, value = (Linear(attention.child(f"{name}_proj"), h, h, bias=False) for name in ("q", "k", "v"))
    return PreNormLayer(
        attention_norm=LayerNorm(scope.child("ln_1"), h, eps),
        attention=CausalAttention(
            ApartHeads(query, key, value, heads, heads),
            Linear(attention.child("out_proj"), h, h),
            layer,
            scale=1.0,
            window=config.windows[layer],
        ),
        feed_forward_norm=LayerNorm(scope.child("ln_2"), h, eps),
        feed_forward=FeedForward(
            inner=Linear(mlp.child("c_fc"), h, config.intermediate_size),
            outer=Linear(mlp.child("c_proj"), config.intermediate_size, h),
            activation=ACTIVATIONS[config.activation_function],
        ),
    )


class GptNeo(Decoder):
    """The decoder; its states have ``hidden_size`` features."""

    def __init__(self, config: GptNeoConfig, scope: Scope) -> None:
        h = config.hidden_size
        super().__init__(
            Embedding(scope.child("wte"), config.vocab_size, h),
            positions=LearnedPositions(scope.child("wpe"), config.max_position_embeddings, h),
            layers=[gpt_neo_layer(config, scope.child("h", i), i) for i in range(len(config.windows))],
            norm=LayerNorm(scope.child("ln_f"), h, config.layer_norm_epsilon),
            longest=config.max_position_embeddings,
        )


class GptNeoLanguageModel(LanguageModel, GptNeo):
    """The decoder with a head, which is the token embedding, unless the config unties them."""

    def __init__(self, config: GptNeoConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


def _size(layers: int, width: int, heads: int) -> dict[str, int]:
    return {"num_layers": layers, "hidden_size": width, "num_heads": heads}


FAMILY = Family(
    model_type="gpt_neo",
    read_config=GptNeoConfig.read,
    architectures={"GPTNeoModel": GptNeo, "GPTNeoForCausalLM": GptNeoLanguageModel},
    prefix="transformer",
    base={"vocab_size": 50257, "max_position_embeddings": 2048, **_size(24, 2048, 16)},  # 1.3B
    presets={"125m": _size(12, 768, 12), "2.7b": _size(32, 2560, 20)},  # configs as published
    parts=("lm_head", "score", "classifier", "qa_outputs"),
    ignorable=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)", r"lm_head\.weight"),
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "hidden_act": "activation_function"},
)
