"""Outliers move from activations into weights before both become 8 bits (Xiao et al., "SmoothQuant", 2022).

``sum over k of x[k] * w[n, k]`` is ``sum of (x[k] / s[k]) * (s[k] * w[n, k])`` for any positive ``s``. A transformer has features whose values are
many times those of the others, always the same ones (Bondarenko et al. 2021, Dettmers et al. 2022); one scale for a whole activation leaves
the others a few of 256 codes. Dividing such a feature by ``s[k]`` and multiplying its column of the weight evens both out (equation 4)::

    s[k] = max |x[k]| ** alpha / max |w[:, k]| ** (1 - alpha)

There the division goes into the norm before. Here it is a product with a vector in the kernel that makes the codes: in models such as BERT the
norm's result is also what the residual sum adds, and activations behind GELU or attention can be divided as well.

No one alpha fits all products, so each gets that of ``ALPHAS``, or none, whose product in integers is nearest to the one in f32: on rows of the
activation that calibration keeps as a sample (:class:`Sample`), and on some outputs of the weight, by the mean square of the difference. Factors and
ranges come from one half of the examples and are judged by the other. Features that were evened out come near the ends of the range more often, so
the range may be wider than what was seen, by the best of ``MARGINS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.ops.quantized import scale_between
from trustformers_ir.passes.calibration import LEVELS, Range
from trustformers_ir.passes.weights import step_of, steps_of

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MARGINS = (1.0, 1.1, 1.25, 1.5)  # by which a range is wider than what was seen
ROWS = 128  # of either half of an activation that are kept
OUTPUTS = 256  # of a weight that are looked at
DIGITS = 6  # of errors
WIDEST = 2.0**20  # of the ratio of two factors

Matrix = Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class Smoothing:
    """``factors`` f32[k], by which an activation is divided and the columns of its weights are multiplied; ``alpha`` is what they were made with,
    ``before`` and ``after`` are the relative errors of the products on the sample, without and with such."""

    factors: np.ndarray
    alpha: float
    before: float
    after: float

    def as_dict(self) -> dict[str, float]:
        """Plain data for reports, without the factors."""
        return {"alpha": self.alpha, "before": self.before, "after": self.after}


class Part:
    """The largest and smallest value of each feature of an activation, and some of its rows: the first ones and, as more come, every second, every
    fourth … so that they are spread over everything seen, however much it is."""

    def __init__(self) -> None:
        self.low: np.ndarray | None = None
        self.high: np.ndarray | None = None
        self._rows: list[np.ndarray] = []
        self._seen = 0
        self._every = 1

    def see(self, rows: np.ndarray) -> None:
        """More rows, f32[n, k], all finite."""
        if not len(rows):
            return
        low, high = rows.min(0), rows.max(0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        first = -self._seen % self._every
        self._rows += [row.copy() for row in rows[first :: self._every]]
        self._seen += len(rows)
        while len(self._rows) > ROWS:
            self._rows = self._rows[::2]
            self._every *= 2

    @property
    def rows(self) -> np.ndarray:
        """f32[at most ``ROWS``, k]."""
        return np.stack(self._rows)


class Sample:
    """What was seen of an activation, in two halves: what one half suggests is judged by the other. Factors even features out, so that more of them
    come near the ends of the range; judged by the examples that it was made from, a range never looks too narrow."""

    def __init__(self) -> None:
        self.halves = Part(), Part()
        self._arrays = 0

    def see(self, array: np.ndarray) -> None:
        """More rows, f32[…, k]. Half of the items of the first axis go to either half; an array of one item goes to one of them as a whole."""
        rows = array.reshape(-1, array.shape[-1])
        items = array.shape[0] if array.ndim > 1 else 1
        cut = (items + self._arrays % 2) // 2 * (len(rows) // max(items, 1))
        self.halves[0].see(rows[:cut])
        self.halves[1].see(rows[cut:])
        self._arrays += 1


def smoothed(sample: Sample, weights: Sequence[Matrix], *, per_row: bool) -> tuple[Smoothing, Range] | None:
    """The factors for an activation and the range of what it becomes; None when no factors are better. ``weights`` are those of the products
    that read it, f32[n, k] each; with ``per_row`` each row gets a scale of its own when it runs."""
    parts = [p for p in sample.halves if p.low is not None]
    if not parts:
        return None
    chosen, largest = [], np.zeros(len(parts[0].rows[0]), np.float32)
    for matrix in weights:
        w = matrix()
        for at in range(0, len(w), OUTPUTS):
            np.maximum(largest, np.abs(w[at : at + OUTPUTS]).max(0), out=largest)
        chosen.append(np.ascontiguousarray(w[:: max(1, len(w) // OUTPUTS)]))
    w = np.concatenate(chosen)
    folds = [(fit, judge.rows, _product(judge.rows, w.T)) for fit, judge in zip(parts, reversed(parts), strict=True)]
    signal = sum(float(np.square(wanted).sum()) for _, _, wanted in folds) or 1.0

    def errors(alpha: float | None, margins: Sequence[float]) -> list[float]:
        noise = np.zeros(len(margins))
        for fit, x, wanted in folds:
            low, high = _ends([fit])
            factors = np.ones_like(largest) if alpha is None else _factors(np.maximum(-low, high), largest, alpha)
            steps, divided = _steps(w * factors).T, x / factors
            for n, margin in enumerate(margins):
                have = _product(_rounded(divided, None if per_row else _range(low, high, factors, margin)), steps)
                noise[n] += np.square(have - wanted).sum()
        return [float(f"{error:.{DIGITS}g}") for error in np.sqrt(noise / signal)]

    (before,) = errors(None, (1.0,))
    margins = (1.0,) if per_row else MARGINS
    after, alpha, margin = min((e, alpha, m) for alpha in ALPHAS for e, m in zip(errors(alpha, margins), margins, strict=True))
    if not after < before:
        return None
    low, high = _ends(parts)
    factors = _factors(np.maximum(-low, high), largest, alpha)
    return Smoothing(factors, alpha, before, after), _range(low, high, factors, margin)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In f64, so that the order of sums, which differs from machine to machine, does not show in ``DIGITS`` of what comes of it."""
    found: np.ndarray = a.astype(np.float64) @ b.astype(np.float64)
    return found


def _ends(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest value of each feature, zero or beyond."""
    low, high = np.zeros(1, np.float32), np.zeros(1, np.float32)
    for p in parts:
        assert p.low is not None and p.high is not None
        low, high = np.minimum(low, p.low), np.maximum(high, p.high)
    return low, high


def _factors(reach: np.ndarray, largest: np.ndarray, alpha: float) -> np.ndarray:
    """1 where the feature or its weights are zero; around 1 in the (geometric) middle. Each is the reciprocal of its reciprocal, which graphs and
    files keep: it can be told from that."""
    there = (reach > 0) & (largest > 0)
    logs = np.zeros(len(reach))
    logs[there] = alpha * np.log2(reach[there].astype(np.float64)) - (1 - alpha) * np.log2(largest[there].astype(np.float64))
    if there.any():
        logs[there] -= np.median(logs[there])
    widest = np.log2(WIDEST) / 2
    one = np.float32(1)
    factors: np.ndarray = one / (one / np.exp2(np.clip(logs, -widest, widest)).astype(np.float32))
    return factors


def _range(low: np.ndarray, high: np.ndarray, factors: np.ndarray, margin: float) -> Range:
    return Range(margin * float((low / factors).min()), margin * float((high / factors).max()))


def _rounded(x: np.ndarray, known: Range | None) -> np.ndarray:
    """What the codes of an activation stand for."""
    if known is None:
        low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
        step = scale_between(low, high)
        zero = np.rint(-low / step)
    else:
        step, zero = known.scale, np.float32(known.zero)
    rounded: np.ndarray = (np.clip(np.rint(x / step) + zero, 0, LEVELS) - zero) * step
    return rounded


def _steps(w: np.ndarray) -> np.ndarray:
    """What the integers of a weight stand for."""
    scale = step_of(np.abs(w).max(1))
    steps: np.ndarray = steps_of(w, scale) * scale[:, None]
    return steps
