"""A text that is read in pieces: keys and values of the tokens before are in a cache, to which each piece adds its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import LearnedPositions, Text, merge_heads


class CachedText(Text):
    """The next ``length`` tokens of each text of a batch; ``start``, ``i64[batch]``, says how many came before. More may follow that had been written
    when these were read: ``whole``, ``i64[batch]``, counts all.

    ``caches`` are those of keys and of values, one after the other for each layer, ``[batch, heads, places, features]``; afterwards they hold what
    the next call takes.
    """

    def __init__(self, length: Dim, start: Tensor, whole: Tensor, caches: Sequence[Tensor]) -> None:
        super().__init__(length, None)
        self.start, self.whole, self.caches = start, whole, list(caches)

    @functools.cached_property
    def positions(self) -> Tensor:
        """``i64[batch, 1, length]``: where each token stands in its text."""
        return self.start[:, None, None] + F.arange(self.length)

    @functools.cached_property
    def reach(self) -> Tensor:
        """``i64[batch, 1, 1, 1]``: how many tokens of each text had been written when these were read."""
        return self.whole[:, None, None, None]

    def placed(self, table: LearnedPositions) -> Tensor:
        """The vector of each position, ``[batch, length, features]``."""
        return table(self.start[:, None] + F.arange(self.length))

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        bias: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """As ``Text.attend``, over the tokens before as well."""
        here = slice(2 * layer, 2 * layer + 2)
        keys, values = (F.cache_write(cache, new, self.start) for cache, new in zip(self.caches[here], (k, v), strict=True))
        self.caches[here] = keys, values
        added = None if bias is None else bias(F.arange(keys.shape[2]))
        keys, values = keys.to(q.dtype), values.to(q.dtype)
        seen = F.cached_attention(q, keys, values, self.start, None, added, scale=scale, window=window, softcap=softcap)
        return merge_heads(seen)
