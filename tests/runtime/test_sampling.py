"""The choice of a token, against the processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trustformers_ir.runtime.generation.sampling import Sampling


def theirs(scores: np.ndarray, s: Sampling, seen: list[int]) -> np.ndarray:
    """The probabilities of all tokens."""
    chain = LogitsProcessorList()
    if s.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    chain.append(TemperatureLogitsWarper(s.temperature))
    if s.top_k is not None:
        chain.append(TopKLogitsWarper(s.top_k))
    if s.top_p is not None and s.top_p < 1:
        chain.append(TopPLogitsWarper(s.top_p))
    if s.min_p is not None:
        chain.append(MinPLogitsWarper(s.min_p))
    found = chain(torch.tensor([seen], dtype=torch.long), torch.from_numpy(scores.astype(np.float64))[None])
    return np.asarray(found.softmax(-1)[0].numpy())


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3.0),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.05, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    penalty=st.sampled_from([1.0, 0.7, 1.5]),
)
def test_the_same_tokens_with_the_same_probabilities(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
) -> None:
    random = np.random.default_rng(seed)
    scores, seen = random.standard_normal(30).astype(np.float32) * 3, random.integers(0, 30, 6).tolist()
    s = Sampling(temperature, top_k, top_p, min_p, penalty)
    want = theirs(scores, s, seen)
    tokens, weights = s.kept(s.penalised(scores, seen))
    have = np.zeros(30)
    have[tokens] = weights
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-6)
    assert (np.diff(weights) <= 0).all()


def test_what_is_drawn_has_the_probabilities() -> None:
    scores, random = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)), np.random.default_rng(0)
    drawn = np.bincount([Sampling(1.0).choose(scores, (), random) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], rtol=0, atol=0.03)


def test_equals_are_taken_in_order() -> None:
    scores = np.zeros(9, np.float32)
    assert Sampling().choose(scores, (), np.random.default_rng(0)) == 0
    assert Sampling(1.0, top_k=1, top_p=0.1).kept(scores)[0].tolist() == [0]


@pytest.mark.parametrize("scores", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_scores_that_are_not_finite(scores: list[float]) -> None:
    assert Sampling(1.0).choose(np.array(scores, np.float32), (), np.random.default_rng(0)) == 0
