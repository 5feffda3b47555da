"""Whole models on Triton's interpreter, next to the code of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from triton_harness import interpret_modules

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

TEXT = "A graph compiler fuses what belongs together."


def test_minilm_on_a_sentence(minilm: Path) -> None:
    """The hidden states of a real sentence are those of the CPU but for roundings: another order of the same sums."""
    ids = np.array([tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json")).encode(TEXT).ids], np.int64)
    module = load_checkpoint(minilm)
    names = argument_names(module.main)
    PassManager(pipelines.gpu()).run(module)
    (run,) = interpret_modules([module])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    got = run([given[n] for n in names], {"batch": 1, "seq": ids.shape[1]})
    want = tfir.compile(minilm)(**{n: given[n] for n in names})
    for g, w in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        assert np.abs(g - w).max() < 2e-5
        assert float(g.reshape(-1) @ w.reshape(-1) / np.linalg.norm(g) / np.linalg.norm(w)) == pytest.approx(1.0, abs=1e-6)
