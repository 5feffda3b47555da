"""Beam search: the continuations of a text that are likeliest as a whole, followed side by side.

As transformers has it, without early stopping: of the ``(1 + ends) * beams`` best continuations of all beams by a token, at least twice as many as
there are beams, those among the first ``beams`` that end are finished, and the best ``beams`` others go on. Finished ones are compared by their mean
logarithm per token (``length_penalty`` 1). The search ends when no running one, as it is now, beats the worst of ``beams`` finished ones.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from trustformers_ir.runtime.generation.sampling import Sampling
from trustformers_ir.runtime.generation.session import Session

if TYPE_CHECKING:
    from trustformers_ir.runtime.runnable import Runnable

NEVER = np.float32(-1e9)


def beam_search(
    executable: Runnable, prompt: np.ndarray, beams: int, length_penalty: float, sampling: Sampling, most: int, ends: Collection[int]
) -> np.ndarray:
    """The new tokens of the best continuation, up to ``most``."""
    first = Session(executable, 1, len(prompt) + most - 1)
    scores = np.repeat(first.read([prompt]), beams, axis=0)
    session = first.repeated(beams)
    running = np.zeros((beams, 0), np.int64)
    total = np.full(beams, NEVER)
    total[0] = 0.0  # all are the same text still
    finished: list[tuple[float, np.ndarray]] = []
    width = max(2, 1 + len(ends)) * beams
    for length in range(1, most + 1):
        likely = np.stack([_log_softmax(row) for row in scores])
        likely = np.stack([sampling.penalised(row, np.concatenate([prompt, new])) for row, new in zip(likely, running, strict=True)])
        sums = (likely + total[:, None]).reshape(-1)
        order = _largest(sums, min(width, len(sums)))
        rows, tokens = order // likely.shape[1], order % likely.shape[1]
        texts = np.concatenate([running[rows], tokens[:, None]], axis=1)
        ended = np.isin(tokens, list(ends)) | (length == most)
        for text, value, over in zip(texts[:beams], sums[order[:beams]], ended[:beams], strict=True):
            if over and value > NEVER / 2:
                finished.append((float(value) / length**length_penalty, text))
        finished = sorted(finished, key=lambda f: -f[0])[:beams]
        going = np.flatnonzero(~ended)[:beams]
        if len(going) < beams:
            break
        running, total = texts[going], sums[order[going]]
        if len(finished) == beams and float(total[0]) / length**length_penalty <= finished[-1][0]:
            break
        session.reorder(rows[going])
        scores = session.step(tokens[going])
    return finished[0][1]


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max()
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)
    return found


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the largest values stand, the largest first, equals by place."""
    found = np.argpartition(-values, count - 1)[:count]
    order: np.ndarray = found[np.lexsort((found, -values[found]))]
    return order
