"""The whole graph of the real model, as text and back: before the passes, after them, and out of an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module


def test_the_traced_graph_is_printed_and_read_exactly(minilm: Path) -> None:
    module = tfir.api.to_module(minilm)
    text = str(module)
    assert str(parse_module(text)) == text
    by_digest = {w.digest: w.data for w in module.weights.values()}
    again = parse_module(text, resolve=lambda digest, type: by_digest[digest])
    ids = np.array([[101, 7592, 2088, 102]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for a, b in zip(evaluate(module, **inputs), evaluate(again, **inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_optimised_graph_is_printed_and_read_exactly(minilm: Path) -> None:
    exe = tfir.compile(minilm)
    assert str(exe.module) == exe.graph
    assert str(parse_module(exe.graph)) == exe.graph
