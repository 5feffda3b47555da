"""Sentence embeddings: one vector per text from the hidden states of its tokens (Reimers & Gurevych, "Sentence-BERT", 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.family import Model


def mean_pooling(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the states of tokens, without padding."""
    tokens = attention_mask.to(hidden.dtype)[:, :, None]
    return (hidden * tokens).sum(dim=1) / tokens.sum(dim=1).clamp(min=1e-9)


def mean_sqrt_len_pooling(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The sum of the states of tokens, divided by the square root of their number."""
    tokens = attention_mask.to(hidden.dtype)[:, :, None]
    return (hidden * tokens).sum(dim=1) / tokens.sum(dim=1).clamp(min=1e-9).sqrt()


def max_pooling(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The largest state of a token, feature by feature."""
    return hidden.masked_fill((attention_mask == 0)[:, :, None], -1e9).amax(dim=1)


def cls_pooling(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The state of the first token."""
    return hidden[:, 0]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pooling_mode_cls_token": cls_pooling,
    "pooling_mode_max_tokens": max_pooling,
    "pooling_mode_mean_tokens": mean_pooling,
    "pooling_mode_mean_sqrt_len_tokens": mean_sqrt_len_pooling,
}
"""Settings of a sentence-transformers ``Pooling`` module; vectors of several that are set stand one after another, in this order."""


class SentenceEncoder:
    """An encoder with one more output, ``sentence_embedding``."""

    def __init__(self, encoder: Model, poolings: tuple[str, ...], normalize: bool) -> None:
        self.encoder = encoder
        self.poolings = poolings
        self.normalize = normalize

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        return self.encoder.inputs

    @property
    def facts(self) -> Mapping[str, SymbolFact]:
        return self.encoder.facts

    @property
    def defaults(self) -> Mapping[str, int]:
        return self.encoder.defaults

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = dict(self.encoder(**inputs))
        hidden, mask = outputs["last_hidden_state"], inputs["attention_mask"]
        vector = F.concat([pool(hidden, mask) for name, pool in POOLINGS.items() if name in self.poolings], dim=-1)
        return outputs | {"sentence_embedding": F.normalize(vector) if self.normalize else vector}
