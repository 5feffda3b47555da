"""BERT-large beside torch.compile: ``python -m trustformers_ir.tools.bench.gpu.bert_large [--small]``.

Random weights in bf16, the same for both, and texts without padding, for which both leave out the mask. The peer is the model of transformers.
Nothing was measured with this yet: no GPU was there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import trustformers_ir as tfir
from trustformers_ir.frontend.random_model import RandomModel, untraced_model
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.models.bert import FAMILY, Bert
from trustformers_ir.models.family import transformer_size
from trustformers_ir.tools.bench.gpu.contest import run
from trustformers_ir.tools.bench.gpu.work import Call, Goal, Place, Work, faster


@dataclass(frozen=True)
class Encoder(Work):
    """``layers`` layers of ``width`` features in ``heads`` heads, ``batch`` texts of ``seq`` tokens."""

    layers: int
    width: int
    heads: int
    batch: int
    seq: int

    bound = 2.0**-5  # each layer rounds a dozen times
    cold = False

    @property
    def dims(self) -> Mapping[str, int]:
        return {"batch": self.batch, "seq": self.seq}

    @property
    def goals(self) -> Sequence[Goal]:
        return (faster(1.15, "torch.compile max-autotune"),)

    @property
    def flops(self) -> float:
        """Of the products with weights (12 squares of ``width`` in a layer) and of attention."""
        return self.layers * self.batch * self.seq * (24.0 * self.width**2 + 4 * self.seq * self.width)

    @functools.cached_property
    def random(self) -> RandomModel:
        fields = {"dtype": "bf16", **transformer_size(self.layers, self.width, self.heads)}
        return untraced_model(f"random:bert?{urlencode(fields)}", DType.bf16)

    def module(self) -> Module:
        model = self.random.model
        assert isinstance(model, Bert)
        return tfir.trace(model.encode, DType.i64["batch", "seq"], facts=model.facts, weights=self.random.weights)

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        import torch
        import transformers

        config = transformers.BertConfig(**{**FAMILY.base, **transformer_size(self.layers, self.width, self.heads)})
        model = transformers.BertModel(config, add_pooling_layer=False).to(tensors[0].device, torch.bfloat16).eval()
        model.load_state_dict({n: place.tensor(w.data) for n, w in self.random.weights.items() if not n.startswith("pooler.")})
        call = place.compiled(model)
        return {"torch.compile": torch.no_grad()(lambda: call(*tensors)[0])}

    def __str__(self) -> str:
        return f"BERT of {self.layers} layers of {self.width}, batch {self.batch} seq {self.seq}"


def works(small: bool) -> Iterator[Work]:
    """BERT-large (Devlin et al. 2019, section 3)."""
    yield Encoder(1, 64, 2, 2, 20) if small else Encoder(24, 1024, 16, 32, 512)


if __name__ == "__main__":
    run(works)
