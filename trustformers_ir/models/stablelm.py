"""StableLM: Bellagente et al., "Stable LM 2 1.6B Technical Report" (2024).

A LLaMA with layer norms, biases of queries, keys and values where the config asks for them, and rotary positions of a quarter of each head (section
2); the larger ones have attention and network beside each other, and norms of each head of queries and keys. Names of parameters are those of Hugging
Face checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import Activation, HeadNorm, LayerNorm, ParallelLayer
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import LanguageModel, Layer
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, gated_network, grouped_size, llama_attention, llama_sizes


@dataclass(frozen=True)
class StableLmConfig(LlamaConfig):
    """The sizes of a StableLM. ``parallel``: attention and network stand beside each other."""

    parallel: bool = False

    @classmethod
    def read(cls, fields: Fields) -> StableLmConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        sizes = llama_sizes(fields, longest=4096, key_heads=32, eps=1e-5, eps_name="layer_norm_eps", partial=0.25)
        return cls(
            **sizes,
            attention_bias=fields.flag("use_qkv_bias", False),
            output_bias=False,
            head_norms=fields.flag("qk_layernorm", False),
            parallel=fields.flag("use_parallel_residual", False),
        )

    def norm(self, scope: Scope) -> Activation:
        return LayerNorm(scope, self.hidden_size, self.norm_eps)

    def head_norm(self, scope: Scope, heads: int) -> Activation:
        if scope.has("norms.0.weight"):
            return HeadNorm([scope.child("norms", i).param("weight", (self.head_dim,)) for i in range(heads)], self.norm_eps)
        return HeadNorm(scope.param("weight", (heads, self.head_dim)), self.norm_eps)


class StableLm(Llama):
    """The decoder; its states have ``hidden_size`` features."""

    def layer(self, config: LlamaConfig, scope: Scope, number: int) -> Layer:
        assert isinstance(config, StableLmConfig)
        if not config.parallel:
            return super().layer(config, scope, number)
        attention = llama_attention(config, scope.child("self_attn"), number)
        return ParallelLayer(config.norm(scope.child("input_layernorm")), attention, gated_network(config, scope.child("mlp")))


class StableLmLanguageModel(LanguageModel, StableLm):
    """The decoder with a head, which is the token embedding where the config ties them."""

    def __init__(self, config: StableLmConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


FAMILY = Family(
    model_type="stablelm",
    read_config=StableLmConfig.read,
    architectures={"StableLmModel": StableLm, "StableLmForCausalLM": StableLmLanguageModel},
    base={"vocab_size": 50304, "max_position_embeddings": 4096, **grouped_size(32, 2560, 32, 32, 6912)},  # 3B-4E1T
    presets={  # configs as published
        "2-1.6b": grouped_size(24, 2048, 32, 32, 5632) | {"vocab_size": 100352, "use_qkv_bias": True},
        "2-12b": grouped_size(40, 5120, 32, 8, 13824) | {"vocab_size": 100352, "use_parallel_residual": True, "qk_layernorm": True},
    },
    renames=((r"\.([qk])_layernorm\.", r".\1_norm."),),
    **CHECKPOINT,
)
