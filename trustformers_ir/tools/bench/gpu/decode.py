"""One token of a LLaMA after those before it, batch 1: ``python -m trustformers_ir.tools.bench.gpu.decode [--small]``.

A step reads every weight once, so the memory's rate is its limit. Keys and values lie in memory that it writes in place, ours as the peer's. Random
weights in bf16, the same for all. Nothing was measured with this yet: no GPU was there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np

from trustformers_ir.frontend.random_model import RandomModel, untraced_model
from trustformers_ir.frontend.trace import trace_into
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.cached import CONTIGUOUS, CachedText
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
        return {"capacity": self.past + 1}

    @property
    def goals(self) -> Sequence[Goal]:
        return share(0.85 if self.recipe is None else 0.75, COPY), faster(1.0, "torch.compile with CUDA graphs, bf16")

    def module(self) -> Module:
        model, s = random(self.size).model, self.size
        assert isinstance(model, LlamaLanguageModel)
        caches = [DType.bf16[1, s.key_heads, "capacity", s.features]] * (2 * s.layers)
        module, given = Module("step"), (DType.i64[1, 1], DType.i64[1], *caches)
        facts = {"capacity": (1, 1 << 17)}
        trace_into(module, "main", functools.partial(step, model), *given, facts=facts, weights=random(self.size).weights, states=len(caches))
        return module

    def drawn(self, module: Module) -> list[np.ndarray]:
        ids, start, *caches = super().drawn(module)
        return [ids, np.full_like(start, self.past), *caches]

    def unread(self, module: Module) -> int:
        return 2 * (self.size.vocabulary - 1) * self.size.width  # all rows of the table of tokens but one

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        return {"torch.compile": torch_llama.make(random(self.size), place, tensors)}

    def __str__(self) -> str:
        s = self.size
        return f"token of a LLaMA, {s.layers} layers of {s.width}, {self.past} tokens before, {self.recipe or 'bf16'}"


def step(model: LlamaLanguageModel, ids: Tensor, start: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """Scores of the token after ``ids``, which ``start`` others stand in front of, then the caches with its keys and values."""
    text = CachedText(1, start, start + 1, kept, CONTIGUOUS, {})
    return model.read_on(ids, text, None), *text.caches


def works(small: bool) -> Iterator[Work]:
    """LLaMA-8B with short and long texts."""
    for recipe in (None, "int4{group=32}", "q4_0"):
        for past in (37,) if small else (512, 4096):
            yield Step(SMALL if small else LLAMA_8B, past, recipe)


if __name__ == "__main__":
    run(works)
