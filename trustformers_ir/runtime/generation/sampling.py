"""The choice of the next token from the scores of all.

In this order, as in transformers: scores of tokens that occurred are made less likely (``repetition_penalty``: Keskar et al., "CTRL", 2019); they are
divided by ``temperature``; then only the ``top_k`` likeliest stay (Fan et al. 2018), the smallest set that has at least ``top_p`` of the probability
(Holtzman et al. 2020), and those that are at least ``min_p`` times as likely as the likeliest (Nguyen et al. 2024). One of them is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, Collector


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. ``temperature`` 0 takes the likeliest, the first of equals. None: not asked for."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        with Collector() as problems:

            def check(name: str, fits: bool, help: str) -> None:
                if not fits:
                    problems.add(Code.USAGE, f"{name} is {getattr(self, name)!r}", help=help)

            check("temperature", _number(self.temperature, 0.0, math.inf), "a number that is 0 or more")
            check("top_k", self.top_k is None or (_whole(self.top_k) and self.top_k >= 1), "a whole number from 1 on, or None")
            check("top_p", self.top_p is None or (_number(self.top_p, 0.0, 1.0) and self.top_p > 0), "a number above 0, up to 1, or None")
            check("min_p", self.min_p is None or _number(self.min_p, 0.0, 1.0), "a number from 0 to 1, or None")
            check("repetition_penalty", _number(self.repetition_penalty, 0.0, math.inf) and self.repetition_penalty > 0, "a number above 0")

    def penalised(self, scores: np.ndarray, seen: Sequence[int] | np.ndarray) -> np.ndarray:
        """The scores ``[vocab]`` with those of tokens that occurred made less likely."""
        if self.repetition_penalty == 1.0 or not len(seen):
            return scores
        tokens = np.unique(np.asarray(seen, np.int64))
        changed = scores.astype(np.float32, copy=True)
        had = changed[tokens]
        changed[tokens] = np.where(had < 0, had * np.float32(self.repetition_penalty), had / np.float32(self.repetition_penalty))
        return changed

    def kept(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may be drawn, the likeliest first and equals by number, and the probability of each in f64. For temperatures above 0."""
        wide = scores.astype(np.float64) / self.temperature
        count = len(wide) if self.top_k is None else min(self.top_k, len(wide))
        if count < len(wide):
            least = np.partition(wide, len(wide) - count)[len(wide) - count]
            tokens = np.flatnonzero(wide >= least)  # equals of the last one stay
        else:
            tokens = np.arange(len(wide))
        tokens = tokens[np.argsort(-wide[tokens], kind="stable")]
        weights = np.exp(wide[tokens] - wide[tokens[0]])
        weights /= weights.sum()
        if self.top_p is not None and self.top_p < 1:
            before = np.cumsum(weights) - weights
            stay = before < self.top_p
            stay[0] = True
            tokens, weights = tokens[stay], weights[stay]
        if self.min_p is not None:
            stay = weights >= self.min_p * weights[0]
            tokens, weights = tokens[stay], weights[stay]
        return tokens, weights / weights.sum()

    def choose(self, scores: np.ndarray, seen: Sequence[int] | np.ndarray, random: np.random.Generator) -> int:
        """The next token; ``seen`` are those of the text until now."""
        scores = self.penalised(scores, seen)
        best = int(np.argmax(scores))
        if self.temperature == 0 or not math.isfinite(scores[best]):
            return best
        tokens, weights = self.kept(scores)
        at = int(np.searchsorted(np.cumsum(weights), random.random(), side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
