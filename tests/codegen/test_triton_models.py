"""Whole models on Triton's interpreter, next to the code of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from triton_harness import interpret_modules

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.tools.probes import draw_inputs

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


SMALL = {
    "gpt2": "random:gpt2?n_layer=2&n_embd=64&n_head=2&vocab_size=99&n_positions=64",
    "llama": "random:llama?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=99",
    "vit": "random:vit?num_hidden_layers=1&hidden_size=48&num_attention_heads=3&intermediate_size=64&image_size=64",
    "bert": "random:bert?num_hidden_layers=1&hidden_size=64&num_attention_heads=2&intermediate_size=64&vocab_size=99",
}


@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_every_family(name: str) -> None:
    """Two sequences, a length that no block divides: f32 up to another order of the same sums."""
    module = random_model(SMALL[name])
    exe = tfir.compile(SMALL[name])
    dims = {"batch": 2, "seq": 37}
    given = draw_inputs(exe.module, {s: dims[s] for s in exe.module.facts.symbols}, np.random.default_rng(0))
    names = argument_names(module.main)
    PassManager(pipelines.gpu()).run(module)
    (run,) = interpret_modules([module])
    got = run([given[n] for n in names], {s: dims[s] for s in module.facts.symbols})
    want = exe(**{n: given[n] for n in names})
    for g, w in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        assert np.abs(g - w).max() <= 1e-5 * max(1.0, float(np.abs(w).max()))
