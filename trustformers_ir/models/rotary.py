"""Rotary positions: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), and how they are stretched to longer texts.

Pair i of the features of a head at position p turns by the angle ``p * f_i``, ``f_i = theta ** (-2i / d)``. Published models rest on the
rounding of their code: frequencies and angles are f32, rounded at each step, as ``transformers`` has them. Cosines and sines are computed when the
model runs, once for all layers, so the longest text costs no table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import Activation, Text
from trustformers_ir.models.config import Fields

THETA = 10000.0
KINDS = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
STRETCHED = ("linear", "dynamic", "yarn")  # texts become as much longer as the factor says


@dataclass(frozen=True)
class Rotary:
    """``features`` of each head turn: pairs ``(i, i + features / 2)``, or ``(2i, 2i + 1)`` where they are ``interleaved``. ``kind`` says how
    frequencies are changed for texts that are longer than the ``original`` ones that a model was trained on:

    * default: not at all.
    * linear: divided by ``factor`` (Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", 2023).
    * dynamic: by a larger theta, for a text that is longer, the longer it is ("Dynamically Scaled RoPE", emozilla 2023).
    * yarn: divided, where a wave fits ``low`` times or less into an original text; where it fits ``high`` times it stays, and in between it goes
      linearly, pair by pair (Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023). ``whole``: limits are pairs.
    * llama3: the same, but it goes linearly from wave to wave (Dubey et al., "The Llama 3 Herd of Models", 2024).
    * longrope: divided by ``divisors``, one for each pair, or by those of ``long`` for a text that is longer than the original ones (Ding et al.,
      "LongRoPE", 2024).
    * divided: by ``divisors``; files with numbers in place of a rule have it.

    What was turned is scaled by ``scale``, which makes up for flatter scores of long texts.
    """

    features: int
    theta: float = THETA
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    whole: bool = True
    divisors: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    scale: float = 1.0
    interleaved: bool = False

    @classmethod
    def read(
        cls,
        fields: Fields,
        head_dim: int,
        longest: int,
        theta: float = THETA,
        partial: float | None = None,
        original: int | None = None,
        name: str = "",
        interleaved: bool = False,
    ) -> Rotary:
        """From ``rope_theta`` and ``rope_scaling``, or from ``rope_parameters``, which holds both and is what transformers 5 writes; or from the
        object ``name``.

        ``longest`` is ``max_position_embeddings``, ``theta`` a default, ``partial`` that of ``partial_rotary_factor``: the part of the ``head_dim``
        features of a head that turn; families without it (None) turn all. ``original`` is a default of ``original_max_position_embeddings``, which is
        else the longest text. Problems go to the fields' collector.
        """
        theta = fields.number("rope_theta", theta, low=1.0)
        name = name or next((n for n in ("rope_scaling", "rope_parameters") if fields.raw.get(n)), "rope_scaling")
        inner = fields.inner(name)
        part = inner.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0 if partial is None else partial, high=1.0), high=1.0)
        if partial is None and part != 1:
            fields.unsupported("partial_rotary_factor", "is not 1: all features of a head turn")
        features = int(head_dim * part)
        if partial is not None and (features % 2 or not features) and fields.right("partial_rotary_factor"):
            fields.fail("partial_rotary_factor", f"makes {features} of {head_dim} features of a head turn: rotary positions turn pairs of them")
        kind = inner.choice("rope_type", KINDS, inner.choice("type", KINDS, "default"))
        theta = inner.number("rope_theta", theta, low=1.0)
        plain = cls(features, theta, interleaved=interleaved)
        return plain if kind == "default" else plain._scaled(kind, fields, inner, longest, original)
    def _scaled(self, kind: str, fields: Fields, inner: Fields, longest: int, original: int | None) -> Rotary:
        """The same with a scaling of that kind, which ``inner`` describes."""
        made = replace(self, kind=kind, original=longest)
        if kind in ("linear", "dynamic"):
            if kind == "dynamic" and self.features < 4:
                fields.unsupported("rope_scaling", f"is dynamic, and {self.features} features of a head turn: one pair has no other theta")
            return replace(made, factor=inner.number("factor", low=1.0))
        original = fields.whole("original_max_position_embeddings", original or inner.whole("original_max_position_embeddings", longest))
        made = replace(made, original=original)
        if kind == "longrope":
            factor = inner.number("factor", longest / original)
            grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
            pairs = self.features // 2
            short, long = inner.numbers("short_factor", pairs), inner.numbers("long_factor", pairs)
            return replace(made, factor=factor, divisors=short, long=long, scale=inner.number("attention_factor", grown))
        factor = inner.number("factor", low=1.0)
        if kind == "yarn":
            fast, slow = inner.number("beta_fast", 32.0), inner.number("beta_slow", 1.0)
            if not 0 < slow <= fast:
                inner.fail("beta_fast", f"is {fast:g}, which is below beta_slow {slow:g}, or that is 0")
            above, below = inner.number("mscale", 0.0), inner.number("mscale_all_dim", 0.0)
            grown = _grown(factor, above) / _grown(factor, below) if above and below else _grown(factor, 1.0)
            scale, whole = inner.number("attention_factor", grown), inner.flag("truncate", True)
            return replace(made, factor=factor, low=slow, high=fast, whole=whole, scale=scale)
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if inner.right("low_freq_factor", "high_freq_factor") and not 0 < low < high:
            inner.fail("high_freq_factor", f"is {high:g}, which is not above low_freq_factor {low:g}, or that is 0")
        return replace(made, factor=factor, low=low, high=high)

    def longest(self, tokens: int) -> int:
        """How long texts may be, where the config says ``max_position_embeddings`` is ``tokens``."""
        return max(tokens, int(self.factor * self.original)) if self.kind in STRETCHED else tokens

    @property
    def _exponents(self) -> np.ndarray:
        return np.arange(0, self.features, 2, dtype=np.float32) / np.float32(self.features)

    @property
    def frequencies(self) -> np.ndarray:
        """``f32[features / 2]``, in radians per token; of texts that are not longer than the original ones, where that matters."""
        one = np.float32(1)
        with np.errstate(over="ignore"):
            power = (self.theta ** self._exponents.astype(np.float64)).astype(np.float32)
        frequency = one / power
        factor = np.float32(self.factor)
        if self.kind in ("default", "dynamic"):
            return frequency
        if self.kind == "linear":
            return frequency / factor
        if self.kind == "divided":
            return frequency / np.array(self.divisors, np.float32)
        if self.kind == "longrope":
            return one / (np.array(self.divisors, np.float32) * power)
        if self.kind == "yarn":
            stays = one - self._ramp()
            return np.asarray(one / (factor * power) * (one - stays) + frequency * stays)
        wave = np.float32(2 * math.pi) / frequency
        smooth = (np.float32(self.original) / wave - np.float32(self.low)) / np.float32(self.high - self.low)
        between = (one - smooth) * frequency / factor + smooth * frequency
        long, short = wave > self.original / self.low, wave < self.original / self.high
        return np.where(long, frequency / factor, np.where(short, frequency, between)).astype(np.float32)

    def _ramp(self) -> np.ndarray:
        """Of yarn: how far each pair is on the way from staying (0) to being divided (1)."""

        def pair(fits: float) -> float:
            """The number of the pair whose wave fits so many times into an original text."""
            return self.features * math.log(self.original / (fits * 2 * math.pi)) / (2 * math.log(self.theta))

        begin, end = pair(self.high), pair(self.low)
        begin, end = (math.floor(begin), math.ceil(end)) if self.whole else (begin, end)
        begin, end = max(begin, 0), min(end, self.features - 1)
        end = end + 0.001 if begin == end else end
        pairs = np.arange(self.features // 2, dtype=np.float32)
        return np.asarray(np.clip((pairs - np.float32(begin)) / np.float32(end - begin), 0, 1))

    def _frequencies(self, text: Text) -> Tensor:
        """The frequencies for a text of that many tokens, which some kinds depend on."""
        if self.kind == "dynamic":
            length = text.reach.maximum(self.original).to(DType.f32)
            longer = self.factor * length / self.original - (self.factor - 1)
            theta = self.theta * longer ** (self.features / (self.features - 2))
            return 1 / theta ** F.tensor(self._exponents)
        if self.kind == "longrope":
            long = replace(self, divisors=self.long).frequencies
            return F.where(text.reach > self.original, long, self.frequencies)
        return F.tensor(self.frequencies)

    def turning(self, text: Text, dtype: DType) -> Activation:
        """A function that turns ``[batch, heads, length, features]`` by the positions of the text's tokens."""
        angle = text.positions.to(DType.f32).unsqueeze(-1) * self._frequencies(text)
        cos, sin = angle.cos(), angle.sin()
        if self.scale != 1:
            cos, sin = cos * self.scale, sin * self.scale
        cos, sin = cos.to(dtype), sin.to(dtype)
        return lambda x: F.rope(x, cos, sin, self.interleaved)


def _grown(factor: float, slope: float) -> float:
    """What yarn scales by for texts so many times as long (Peng et al., equation 22)."""
    return 0.1 * slope * math.log(factor) + 1.0
