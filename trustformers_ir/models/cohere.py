"""Command-R of Cohere (2024), described by its published code.

A LLaMA whose attention and network stand beside each other, of one layer norm without a bias; rotary positions turn neighbours, 0 and 1, 2 and 3, …,
and scores of tokens are scaled. The larger one has norms of each head of queries and keys. Names of parameters are those of Hugging Face checkpoints,
without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import Activation, HeadNorm, LayerNorm, ParallelLayer
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import LanguageModel, Layer
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, gated_network, grouped_size, llama_attention, llama_sizes


@dataclass(frozen=True)
class CohereConfig(LlamaConfig):
    """The sizes of a Command-R. Scores of tokens are multiplied by ``logit_scale``."""

    logit_scale: float = 0.0625

    @classmethod
    def read(cls, fields: Fields) -> CohereConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        sizes = llama_sizes(fields, longest=8192, eps=1e-5, eps_name="layer_norm_eps", tied=True, theta=500000.0)
        return cls(
            **sizes | {"rotary": replace(sizes["rotary"], interleaved=True)},
            attention_bias=fields.flag("attention_bias", False),
            head_norms=fields.flag("use_qk_norm", False),
            logit_scale=fields.number("logit_scale", 0.0625),
        )

    def norm(self, scope: Scope) -> Activation:
        return LayerNorm(scope, self.hidden_size, self.norm_eps, bias=False)

    def head_norm(self, scope: Scope, heads: int) -> Activation:
        return HeadNorm(scope.param("weight", (heads, self.head_dim)), self.norm_eps)


class Cohere(Llama):
    """The decoder; its states have ``hidden_size`` features."""

    def layer(self, config: LlamaConfig, scope: Scope, number: int) -> Layer:
        attention = llama_attention(config, scope.child("self_attn"), number)
        return ParallelLayer(config.norm(scope.child("input_layernorm")), attention, gated_network(config, scope.child("mlp")))


class CohereLanguageModel(LanguageModel, Cohere):
    """The decoder with a head, which is the token embedding, unless the config unties them."""

    def __init__(self, config: CohereConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)
        self.logit_scale = config.logit_scale

    def shaped(self, logits: Tensor) -> Tensor:
        scaled: Tensor = logits * self.logit_scale
        return scaled


FAMILY = Family(
    model_type="cohere",
    read_config=CohereConfig.read,
    architectures={"CohereModel": Cohere, "CohereForCausalLM": CohereLanguageModel},
    base={  # Command-R, 35B
        "vocab_size": 256000,
        "max_position_embeddings": 131072,
        "rope_theta": 8000000.0,
        **grouped_size(40, 8192, 64, 64, 22528),
    },
    presets={  # configs as published
        "r-plus": grouped_size(64, 12288, 96, 8, 33792) | {"rope_theta": 75000000.0, "use_qk_norm": True, "logit_scale": 0.8333333333333334},
        "aya-8b": grouped_size(32, 4096, 32, 8, 14336) | {"max_position_embeddings": 8192, "rope_theta": 10000.0},
    },
    **CHECKPOINT,
)
