"""Between which values an activation lies, found by running the model on examples: what static quantization needs.

An :class:`Observed` sees the values of one activation batch by batch and keeps their smallest, their largest and a histogram, in memory that does
not grow: the histogram covers ``[-a, a]`` with a fixed number of bins, and when a larger value comes, ``a`` doubles and neighbouring bins are
merged, which is exact. Three methods make a range of it, all ending within what was seen:

* ``minmax``: from the smallest to the largest value. Nothing is cut off; one outlier costs everybody resolution.
* ``percentile``: so that ``100 - percentile`` percent of the values lie below, and as many above (McKinstry et al., "Discovering Low-Precision
  Networks Close to Full-Precision Networks", 2018).
* ``entropy``: cut off at ``±t`` with the t for which the distribution of the quantized values tells the least less than that of the values, by
  Kullback-Leibler divergence (Migacz, "8-bit Inference with TensorRT", GTC 2017). See :func:`least_divergence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.ops.quantized import codes, scale_between

LEVELS = 255  # steps between the smallest and the largest of 256 codes
BINS = 4096  # of the histogram, half of them below zero
CANDIDATES = 128  # thresholds that `entropy` tries
FEWEST_BINS = 256  # of the narrowest window that `entropy` tries: at least one for each code
METHODS = ("minmax", "percentile", "entropy")


@dataclass(frozen=True)
class Range:
    """An activation lies between ``low`` and ``high``, mostly; zero lies between them, so that it is a code of its own."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low <= 0 <= self.high):
            raise ValueError(f"{self.low} … {self.high} is no range around zero")

    @property
    def scale(self) -> np.float32:
        """``(high - low) / 255`` in f32, as ``quantize_dynamic`` computes it from the smallest and the largest of a row."""
        return np.float32(scale_between(np.float32(self.low), np.float32(self.high)))

    @property
    def zero(self) -> int:
        """The code of zero."""
        return int(codes(-np.float32(self.low), self.scale, np.float32(0)))


Ranges = Mapping[str, Range]
"""By the name of a product: the range of its activation."""


class Observed:
    """What was seen of one activation."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.values = 0  # how many, without those that are not finite
        self.lost = 0  # how many were not finite
        self.reach = 0.0  # the histogram covers -reach … reach
        self.counts = np.zeros(BINS, np.int64)

    def see(self, array: np.ndarray) -> None:
        """Counts more values, f32 of any shape."""
        x = array.reshape(-1)
        finite = np.isfinite(x)
        if not finite.all():
            self.lost += int(x.size - finite.sum())
            x = x[finite]
        if not x.size:
            return
        low, high = float(x.min()), float(x.max())
        self.low, self.high, self.values = min(self.low, low), max(self.high, high), self.values + x.size
        self.reach = self.reach or max(-low, high)
        if not self.reach:
            self.counts[BINS // 2] += x.size  # zeros, which stay in this bin however far the histogram will reach
            return
        while self.reach < max(-low, high):
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.reach *= 2
        self.counts += np.histogram(x.astype(np.float64), BINS, (-self.reach, self.reach))[0]

    @property
    def edges(self) -> np.ndarray:
        """The ``BINS + 1`` edges of the bins."""
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def range(self, method: str = "minmax", percentile: float = 99.99) -> Range:
        """The range by one of ``METHODS``. ``KeyError`` for another one."""
        low, high = {"minmax": lambda: (self.low, self.high), "percentile": lambda: self._percentile(percentile), "entropy": self._entropy}[method]()
        return Range(min(0.0, max(low, self.low)), max(0.0, min(high, self.high)))

    def _percentile(self, percentile: float) -> tuple[float, float]:
        below = np.concatenate([[0], np.cumsum(self.counts)])
        outside = (100 - percentile) / 100 * self.values
        low = int(np.searchsorted(below, outside, "right")) - 1
        high = int(np.searchsorted(below, self.values - outside, "left"))
        return float(self.edges[min(max(low, 0), BINS)]), float(self.edges[min(high, BINS)])

    def _entropy(self) -> tuple[float, float]:
        t = least_divergence(self.counts) * 2 * self.reach / BINS
        return -t, t


def least_divergence(counts: np.ndarray) -> int:
    """How many bins on either side of the middle to keep: the window whose quantized distribution is nearest to the clipped one.

    For each window the reference P is the histogram with what lies outside added to the outermost bins, for there it ends up. Q is what 8 bits can
    tell: the bins of the window, without what lies outside, are pooled into 255 levels, and each level is spread evenly over those of its
    bins that are not empty. The divergence is ``sum P log(P / Q)`` (Migacz 2017). There the histogram is that of the magnitudes and there are 128
    levels; here it keeps the sign, and the window ends where the values do, as the codes of an asymmetric range do: that of a GELU, say, begins
    just below zero. An added outlier where Q is empty counts as a bin of the smallest weight, so that such windows lose.
    """
    middle = len(counts) // 2
    counts = counts.copy()
    for bin, outer in ((middle - 1, middle - 2), (middle, middle + 1)):
        counts[bin] = min(counts[bin], counts[outer])
    seen = np.flatnonzero(counts)
    if not len(seen):
        return middle
    first, last = int(seen[0]), int(seen[-1]) + 1
    widest = max(middle - first, last - middle)
    best, kept = np.inf, widest
    for half in sorted(set(np.linspace(min(FEWEST_BINS // 2, widest), widest, CANDIDATES).astype(int).tolist()), reverse=True):
        start, stop = max(middle - half, first), min(middle + half, last)
        divergence = _divergence(counts, start, stop)
        if divergence < best:
            best, kept = divergence, half
    return kept


def _divergence(counts: np.ndarray, start: int, stop: int) -> float:
    inside = counts[start:stop].astype(np.float64)
    if not inside.any():
        return np.inf
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    level = np.arange(len(inside)) * LEVELS // len(inside)
    filled = inside > 0
    total = np.bincount(level, inside, LEVELS)
    among = np.bincount(level, filled, LEVELS)
    q = np.where(filled, (total / np.maximum(among, 1))[level], 0)
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    smallest = 0.5 / counts.sum()
    return float(np.sum(p[there] * np.log(p[there] / np.maximum(q[there], smallest))))
