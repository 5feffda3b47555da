"""Gemma: Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology" (2024).

A LLaMA with vectors of tokens that are scaled by the root of their width, norms that are scaled by ``1 + weight``, heads of their own width and GeGLU
(section 2). Names of parameters are those of Hugging Face checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import Text
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import LanguageModel
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, grouped_size, llama_sizes

GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """The sizes of a Gemma. ``logit_softcap`` bounds the scores of tokens."""

    logit_softcap: float | None = None

    @classmethod
    def read(cls, fields: Fields) -> GemmaConfig:
        """The config of a ``config.json``; problems go to the fields' collector. Old ones say gelu and mean its approximation."""
        if fields.raw.get("hidden_act") == "gelu":
            fields.raw = {**fields.raw, "hidden_act": GELU}
        return cls(**gemma_sizes(fields, longest=8192, key_heads=16))


def gemma_sizes(fields: Fields, *, longest: int, key_heads: int, theta: float = 10000.0) -> dict[str, Any]:
    """The fields that all Gemmas have."""
    sizes = llama_sizes(fields, longest=longest, key_heads=key_heads, head_dim=256, activation=GELU, tied=True, theta=theta)
    if fields.flag("use_bidirectional_attention", False):
        fields.unsupported("use_bidirectional_attention", "is true: Gemma is supported as a decoder")
    return {**sizes, "attention_bias": fields.flag("attention_bias", False), "norm_offset": 1.0}


class Gemma(Llama):
    """The decoder; its states have ``hidden_size`` features."""

    def __init__(self, config: GemmaConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.scale = config.hidden_size**0.5

    def embedded(self, input_ids: Tensor, text: Text) -> Tensor:
        grown: Tensor = super().embedded(input_ids, text) * self.scale
        return grown


class GemmaHead(LanguageModel):
    """A head, which is the token embedding where the config ties them, and bounded scores."""

    softcap: float | None

    def give_gemma_head(self, config: GemmaConfig, scope: Scope) -> None:
        self.give_head(scope, tied=config.tie_word_embeddings)
        self.softcap = config.logit_softcap

    def shaped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else F.tanh(logits / self.softcap) * self.softcap


class GemmaLanguageModel(GemmaHead, Gemma):
    """The decoder with a head."""

    def __init__(self, config: GemmaConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_gemma_head(config, scope)


FAMILY = Family(
    model_type="gemma",
    read_config=GemmaConfig.read,
    architectures={"GemmaModel": Gemma, "GemmaForCausalLM": GemmaLanguageModel},
    base={"vocab_size": 256000, "max_position_embeddings": 8192, "head_dim": 256, **grouped_size(28, 3072, 16, 16, 24576)},  # table 1, 7B
    presets={"2b": grouped_size(18, 2048, 8, 1, 16384)},
    **CHECKPOINT,
)
