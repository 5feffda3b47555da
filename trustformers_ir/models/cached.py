"""A text that is read in pieces: keys and values of the tokens before are in a cache, to which each piece adds its own.

How they lie there is a :class:`CacheForm`: in numbers of 16 bits or in 8-bit codes, one text beside the other or all in pages of one pool. What a
model computes is the same but for how numbers are rounded on their way into the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.abi import POOL
from trustformers_ir.ir.dims import Dim, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.blocks import LearnedPositions, Text, merge_heads

PAGE = 64  # places of a page: the keys that attention takes in one step
GROUP = 32  # codes that share a scale, as in GGML's q8_0
STORAGES = {"f32": DType.f32, "f16": DType.f16, "bf16": DType.bf16, "q8_0": DType.i8}


@dataclass(frozen=True)
class CacheForm:
    """How keys and values are kept: as ``storage`` (i8: codes in groups with a scale of 16 bits each; None: as the model computes them), and in pages
    where ``paged``. ``places``: of how many tokens for good, of one text; None: as many as a call brings memory for."""

    storage: DType | None = None
    paged: bool = False
    places: int | None = None

    @classmethod
    def parse(cls, text: object) -> CacheForm:
        """``"f16"``, ``"q8_0"``, ``"paged"``, ``"paged,bf16"``. ``ValueError`` for anything else."""
        words = [w.strip() for w in text.split(",")] if isinstance(text, str) else [""]
        stored = [w for w in words if w in STORAGES]
        if len(stored) > 1 or len(set(words)) < len(words) or not {*words} <= {"paged", *STORAGES}:
            raise ValueError(f"a cache is 'paged', one of {', '.join(STORAGES)}, or both with a comma between")
        return cls(STORAGES[stored[0]] if stored else None, "paged" in words)

    def states(self, name: str, kept: TensorType, window: int | None) -> dict[str, TensorType]:
        """What keeps ``kept[batch, heads, length, features]`` of a layer that sees so many tokens: the types by name."""
        batch, heads, _, features = kept.shape
        if self.places is not None:
            return {name: TensorType((1, heads, self.places, features), self.storage or kept.dtype)}
        lead = (symbol(POOL.of(window)), heads, PAGE) if self.paged else (batch, heads, symbol("capacity"))
        if self.storage is not DType.i8:
            return {name: TensorType((*lead, features), self.storage or kept.dtype)}
        assert isinstance(features, int)
        groups = features // group_of(features)
        return {name: TensorType((*lead, features), DType.i8), f"{name}_scale": TensorType((*lead, groups), DType.f16)}

    def tables(self, windows: Sequence[int | None], batch: Dim) -> dict[int | None, TensorType]:
        """For each window that layers have, the type of the table that says which pages a text has."""
        return {w: TensorType((batch, symbol("table")), DType.i32) for w in dict.fromkeys(windows)} if self.paged else {}

    def codes(self, rows: Tensor) -> list[Tensor]:
        """What is written for ``rows``, one tensor for each state."""
        if self.storage is not DType.i8:
            return [rows if self.storage is None else rows.to(self.storage)]
        codes, scale = F.quantize_groups(rows.to(DType.f32), group_of(_columns(rows)))
        return [codes, scale.to(DType.f16)]

    def numbers(self, kept: Sequence[Tensor], dtype: DType) -> Tensor:
        """What is kept, in ``dtype``."""
        if self.storage is DType.i8:
            return F.dequantize_groups(kept[0], kept[1], group_of(_columns(kept[0]))).to(dtype)
        return kept[0].to(dtype)


CONTIGUOUS = CacheForm()


def group_of(features: int) -> int:
    """How many features share a scale: as many as a row has equal groups of, up to 32."""
    return max(n for n in range(1, min(features, GROUP) + 1) if features % n == 0)


def _columns(x: Tensor) -> int:
    columns = x.shape[-1]
    assert isinstance(columns, int)
    return columns


class CachedText(Text):
    """The next ``length`` tokens of each text of a batch; ``start``, ``i64[batch]``, says how many came before. More may follow that had been written
    when these were read: ``whole``, ``i64[batch]``, counts all.

    ``caches`` are the states of the keys and of the values, one after the other for each layer, as ``form`` has them; afterwards they hold what the
    next call takes. ``tables`` are those of pages, by the window of the layers that they are for.
    """

    def __init__(
        self, length: Dim, start: Tensor, whole: Tensor, caches: Sequence[Tensor], form: CacheForm, tables: Mapping[int | None, Tensor]
    ) -> None:
        super().__init__(length, None)
        self.start, self.whole, self.caches, self.form, self.tables = start, whole, list(caches), form, tables
        self.each = 2 if form.storage is DType.i8 else 1  # states of a cache

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
        first = 2 * layer * self.each
        keys = self._kept(slice(first, first + self.each), k, window).to(q.dtype)
        values = self._kept(slice(first + self.each, first + 2 * self.each), v, window).to(q.dtype)
        added = None if bias is None else bias(F.arange(keys.shape[2]))
        seen = F.cached_attention(q, keys, values, self.start, None, added, scale=scale, window=window, softcap=softcap)
        return merge_heads(seen)

    def _kept(self, states: slice, rows: Tensor, window: int | None) -> Tensor:
        """Writes ``rows`` into the states of a cache; all that is in it."""
        pages = self.tables.get(window)
        written = []
        for state, new in zip(self.caches[states], self.form.codes(rows), strict=True):
            written.append(F.cache_write(state, new, self.start) if pages is None else F.paged_write(state, new, self.start, pages))
        self.caches[states] = written
        return self.form.numbers(written if pages is None else [F.paged_read(w, pages) for w in written], rows.dtype)
