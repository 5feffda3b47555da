"""Attention beside the backends of torch's scaled_dot_product_attention, in bf16: ``python -m trustformers_ir.tools.bench.gpu.attention [--small]``.

Of causal attention the half that is computed counts. Nothing was measured with this yet: no GPU was there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.tools.bench.gpu.contest import run
from trustformers_ir.tools.bench.gpu.work import MATRIX, Call, Goal, Place, Work, faster, share

BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
LONG = 16384  # keys from which on the matrix rate counts


@dataclass(frozen=True)
class Attention(Work):
    """One attention: batch, heads of queries and of keys, queries, keys, features."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    features: int
    causal: bool = False

    @property
    def flops(self) -> float:
        """Of both products, without what a causal mask hides."""
        pairs = self.queries * self.keys - (self.queries * (self.queries - 1) / 2 if self.causal else 0)
        return 4.0 * self.batch * self.heads * pairs * self.features

    @property
    def dims(self) -> Mapping[str, int]:
        return {"batch": self.batch, "keys": self.keys}

    @property
    def goals(self) -> Sequence[Goal]:
        rate = (share(0.7, MATRIX),) if self.queries == self.keys >= LONG else ()
        return faster(1.0, "torch's best"), *rate

    def module(self) -> Module:
        """The number of queries is one, or it is the number of keys."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.attention(q, k, v, causal=self.causal)

        keys: Any = "keys"
        queries = 1 if self.queries == 1 else keys
        kv = DType.bf16["batch", self.kv_heads, keys, self.features]
        return tfir.trace(attend, DType.bf16["batch", self.heads, queries, self.features], kv, kv)

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        found = {name.removesuffix("_ATTENTION").lower(): self.backend(name, *tensors) for name in BACKENDS}
        return {name: call for name, call in found.items() if call is not None}

    def backend(self, name: str, *tensors: Any) -> Call | None:
        """A call of that backend of torch; None where it refuses the work."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attend = torch.nn.functional.scaled_dot_product_attention
        grouped = functools.partial(attend, *tensors, is_causal=self.causal, enable_gqa=self.heads != self.kv_heads)

        def call() -> Any:
            with sdpa_kernel(getattr(SDPBackend, name)):
                return grouped()

        try:
            call()
        except RuntimeError:
            return None
        return call

    def __str__(self) -> str:
        kind = "decode" if self.queries == 1 else "causal" if self.causal else "plain"
        return f"{kind} attention, head {self.features}, {self.keys} keys, batch {self.batch}, {self.heads}/{self.kv_heads} heads"


def works(small: bool) -> Iterator[Work]:
    """16k tokens in each row, head 64 and 128; and decoding as LLaMA-8B does."""
    if small:
        yield from (Attention(1, 2, 1, 130, 130, 64, causal) for causal in (False, True))
        yield Attention(1, 4, 2, 1, 600, 128)
        return
    for features in (64, 128):
        for causal in (False, True):
            for length in (1024, 2048, 4096, 8192, LONG):
                yield Attention(LONG // length, 2048 // features, 2048 // features, length, length, features, causal)
    for keys in (1024, 4096, 16384, 65536):
        yield Attention(1, 32, 8, 1, keys, 128)


if __name__ == "__main__":
    run(works)
