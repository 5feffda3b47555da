"""Rotary positions: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), and how they are stretched to longer texts.

Pair i of the features of a head at position p turns by the angle ``p * f_i``, ``f_i = theta ** (-2i / d)``. Published models rest on the
rounding of their code: frequencies and angles are f32, rounded at each step, as ``transformers`` has them. Cosines and sines are computed when the
model runs, once for all layers, so the longest text costs no table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.config import Fields

THETA = 10000.0
KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """``features`` of each head turn. ``kind`` says how frequencies are changed: not at all (default), divided by ``factor`` (linear: Chen et al.,
    "Extending Context Window of Large Language Models via Positional Interpolation", 2023), or so for long waves only (llama3: Dubey et al., "The
    Llama 3 Herd of Models", 2024): waves that fit ``high`` times into a text of ``original`` tokens stay, those that fit ``low`` times or less
    are divided, and between the two it goes linearly from one to the other. ``divided``, which files with numbers in place of a rule have: by
    ``divisors``, one for each pair."""

    features: int
    theta: float = THETA
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    divisors: tuple[float, ...] = ()

    @classmethod
    def read(cls, fields: Fields, features: int, longest: int) -> Rotary:
        """From ``rope_theta`` and ``rope_scaling``, or from ``rope_parameters``, which holds both and is what transformers 5 writes.

        ``longest`` is ``max_position_embeddings``. Problems go to the fields' collector; other kinds of scaling are not supported.
        """
        theta = fields.number("rope_theta", THETA, low=1.0)
        name = next((n for n in ("rope_scaling", "rope_parameters") if fields.raw.get(n)), "rope_scaling")
        inner = fields.inner(name)
        if fields.number("partial_rotary_factor", 1.0) != 1 or inner.number("partial_rotary_factor", 1.0) != 1:
            fields.unsupported("partial_rotary_factor", "is not 1: all features of a head turn")
        kind = inner.choice("rope_type", KINDS, inner.choice("type", KINDS, "default"))
        theta = inner.number("rope_theta", theta, low=1.0)
        if kind == "default":
            return cls(features, theta)
        factor = inner.number("factor", low=1.0)
        if kind == "linear":
            return cls(features, theta, kind, factor)
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if inner.right("low_freq_factor", "high_freq_factor") and not 0 < low < high:
            inner.fail("high_freq_factor", f"is {high:g}, which is not above low_freq_factor {low:g}, or that is 0")
        return cls(features, theta, kind, factor, low, high, inner.whole("original_max_position_embeddings", longest))

    @property
    def frequencies(self) -> np.ndarray:
        """``f32[features / 2]``, in radians per token."""
        one = np.float32(1)
        with np.errstate(over="ignore"):
            exponent = np.arange(0, self.features, 2, dtype=np.float32) / np.float32(self.features)
            frequency = one / (self.theta ** exponent.astype(np.float64)).astype(np.float32)
        factor = np.float32(self.factor)
        if self.kind == "linear":
            return frequency / factor
        if self.kind == "default":
            return frequency
        if self.kind == "divided":
            return frequency / np.array(self.divisors, np.float32)
        wave = np.float32(2 * math.pi) / frequency
        smooth = (np.float32(self.original) / wave - np.float32(self.low)) / np.float32(self.high - self.low)
        between = (one - smooth) * frequency / factor + smooth * frequency
        long, short = wave > self.original / self.low, wave < self.original / self.high
        return np.where(long, frequency / factor, np.where(short, frequency, between)).astype(np.float32)

    def turning(self, positions: Tensor, dtype: DType) -> Callable[[Tensor], Tensor]:
        """A function that turns ``[batch, heads, length, features]`` by the angles of ``positions``, whole numbers ``[length]``, or ``[batch, 1,
        length]`` where texts of a batch stand at different ones."""
        angle = positions.to(DType.f32).unsqueeze(-1) * F.tensor(self.frequencies)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        return lambda x: F.rope(x, cos, sin)
