"""Whole models as artifacts for GPUs: run on Triton's interpreter through plan, arena and graphs, next to the code of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="pip install triton")

import tokenizers

import trustformers_ir as tfir
from trustformers_ir.ir.probes import draw_inputs
from trustformers_ir.runtime.gpu.executable import GpuExecutable

TEXT = "A graph compiler fuses what belongs together."
INTERPRETER = "triton:interpreter"


def close(got: object, want: object, bound: float) -> None:
    """Another order of the same sums."""
    pairs = [v if isinstance(v, tuple) else (v,) for v in (got, want)]
    for g, w in zip(*pairs, strict=True):
        assert isinstance(g, np.ndarray) and g.dtype == w.dtype and g.shape == w.shape
        assert np.abs(g.astype(np.float64) - w.astype(np.float64)).max() <= bound * max(1.0, float(np.abs(w).max()))


@pytest.mark.long
def test_minilm_on_a_real_sentence(minilm: Path, tmp_path: Path) -> None:
    """From the checkpoint to a file, from the file to hidden states: those of the CPU but for roundings."""
    path = tmp_path / "minilm.tfc"
    tfir.compile(minilm, target=INTERPRETER).save(path)
    exe, cpu = tfir.load(str(path)), tfir.compile(minilm)
    assert isinstance(exe, GpuExecutable) and exe.inputs == cpu.inputs and exe.outputs == cpu.outputs
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    ids = np.array([tokenizer.encode(TEXT).ids], np.int64)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    close(exe(**given), cpu(**given), 1e-5)


SMALL = {
    "gpt2": "random:gpt2?n_layer=2&n_embd=64&n_head=2&vocab_size=99&n_positions=64",
    "llama": "random:llama?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=99",
    "vit": "random:vit?num_hidden_layers=1&hidden_size=48&num_attention_heads=3&intermediate_size=64&image_size=64",
    "bert": "random:bert?num_hidden_layers=2&hidden_size=64&num_attention_heads=2&intermediate_size=64&vocab_size=99",
}


@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_every_family(name: str) -> None:
    """Shapes in turn, the first again as a graph."""
    exe, cpu = tfir.compile(SMALL[name], target=INTERPRETER), tfir.compile(SMALL[name])
    for batch, seq in ((2, 9), (1, 3), (2, 9)):
        dims = {s: {"batch": batch, "seq": seq}[s] for s in exe.module.facts.symbols}
        given = draw_inputs(exe.module, dims, np.random.default_rng(batch))
        close(exe(**given), cpu(**given), 1e-5)


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [
        ("bf16", None),
        (None, "int8"),
        pytest.param("bf16", "q4_0", marks=pytest.mark.long),
        pytest.param("f16", "int4{group=32,zeros=true}", marks=pytest.mark.long),
    ],
)
def test_narrow_numbers(dtype: str | None, quantize: str | None) -> None:
    """16 bits, products of bytes, weights in blocks: the roundings are the same, what they are applied to differs in the last bits."""
    model = SMALL["bert"].replace("num_hidden_layers=2", "num_hidden_layers=1")
    options = {"quantize": quantize} if quantize else {}
    if dtype is not None:
        model += f"&dtype={dtype}"
    exe, cpu = tfir.compile(model, target=INTERPRETER, **options), tfir.compile(model, **options)
    given = draw_inputs(exe.module, {"batch": 2, "seq": 9}, np.random.default_rng(0))
    close(exe(**given), cpu(**given), 0.05)
