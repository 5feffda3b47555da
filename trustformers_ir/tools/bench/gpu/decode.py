"""One token of a LLaMA after those before it, batch 1: ``python -m trustformers_ir.tools.bench.gpu.decode [--small]``.

A step reads every weight once, so the memory's rate is its limit. Keys and values of the tokens before come in as inputs, those of the token go out;
putting them behind each other is a copy of ours that the peer, which writes into memory that it keeps, does not make, and counts against us. Random
weights in bf16, the same for all. Nothing was measured with this yet: no GPU was there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import trustformers_ir as tfir
from trustformers_ir.frontend.random_model import RandomModel, untraced_model
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import Text, merge_heads
from trustformers_ir.models.llama import LlamaLanguageModel
from trustformers_ir.tools.bench.gpu import torch_llama
from trustformers_ir.tools.bench.gpu.contest import run
from trustformers_ir.tools.bench.gpu.work import COPY, Call, Goal, Place, Work, faster, share


@dataclass(frozen=True)
class Size:
    """``heads`` of queries and ``key_heads`` of keys, of ``features`` each."""

    layers: int
    width: int
    heads: int
    key_heads: int
    features: int
    inner: int
    vocabulary: int

    @property
    def fields(self) -> Mapping[str, object]:
        """As a config.json has it."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.features,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
        }


LLAMA_8B = Size(32, 4096, 32, 8, 128, 14336, 128256)  # Dubey et al., "The Llama 3 Herd of Models" (2024), table 3
SMALL = Size(2, 64, 4, 2, 32, 96, 64)


@functools.cache
def random(size: Size) -> RandomModel:
    """The model, whose weights all steps share."""
    return untraced_model(f"random:llama?{urlencode({'architecture': 'LlamaForCausalLM', 'dtype': 'bf16', **size.fields})}", DType.bf16)


@dataclass(frozen=True)
class Step(Work):
    """The token behind ``past`` others, by weights in bf16, or quantized by a recipe."""

    size: Size
    past: int
    recipe: str | None = None

    bound = 2.0**-5
    cold = False

    @property
    def quantize(self) -> str | None:
        return self.recipe

    @property
    def dims(self) -> Mapping[str, int]:
        return {"past": self.past}

    @property
    def goals(self) -> Sequence[Goal]:
        return share(0.85 if self.recipe is None else 0.75, COPY), faster(1.0, "torch.compile with CUDA graphs, bf16")

    def module(self) -> Module:
        model, s = random(self.size).model, self.size
        assert isinstance(model, LlamaLanguageModel)
        kv = DType.bf16[1, s.key_heads, "past", s.features]
        weights = random(self.size).weights
        return tfir.trace(functools.partial(step, model), DType.i64[1, 1], [(kv, kv)] * s.layers, facts={"past": (1, 1 << 17)}, weights=weights)

    def unread(self, module: Module) -> int:
        return 2 * (self.size.vocabulary - 1) * self.size.width  # all rows of the table of tokens but one

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        return {"torch.compile": torch_llama.make(random(self.size), place, tensors)}

    def __str__(self) -> str:
        s = self.size
        return f"token of a LLaMA, {s.layers} layers of {s.width}, {self.past} tokens before, {self.recipe or 'bf16'}"


class Continued(Text):
    """One more token of a text whose keys and values, a pair for each layer, are ``past``. ``made`` gathers those of the token."""

    def __init__(self, past: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(1, None)
        self.past, self.made = past, list[Tensor]()

    @functools.cached_property
    def positions(self) -> Tensor:
        return F.full((1,), self.past[0][0].shape[2], DType.i64)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        keys, values = self.past[layer]
        self.made += k, v
        return merge_heads(F.attention(q, F.concat([keys, k], 2), F.concat([values, v], 2), scale=settings["scale"]))


def step(model: LlamaLanguageModel, ids: Tensor, past: Sequence[tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
    """Scores of the token after ``ids``, then its keys and values, of each layer."""
    text = Continued(past)
    return F.linear(model.states(ids, text), model.head), *text.made


def works(small: bool) -> Iterator[Work]:
    """LLaMA-8B with short and long texts."""
    for recipe in (None, "int4{group=32}", "q4_0"):
        for past in (37,) if small else (512, 4096):
            yield Step(SMALL if small else LLAMA_8B, past, recipe)


if __name__ == "__main__":
    run(works)
