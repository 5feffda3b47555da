"""A deep model costs the compiler little more than a shallow one: what repeats is done once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import trustformers_ir as tfir
from trustformers_ir import api
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.verifier import Proven, verify_module


def _stack(layers: int) -> tfir.Module:
    """Layers of equal structure around different weights."""

    def model(x: tfir.Tensor, scale: tfir.Tensor) -> tfir.Tensor:
        for _ in range(layers):
            x = (x * scale).softmax(-1) - x
        return x

    return tfir.trace(model, tfir.f32["n", 40], tfir.f32[40])


def test_equal_layers_share_their_kernels() -> None:
    texts = {layers: api.emit(tfir.compile(_stack(layers)), "llvm") for layers in (3, 9)}
    kernels = {layers: set(re.findall(r"^define void @(tfir_kernel_\d+)", text, re.M)) for layers, text in texts.items()}
    assert len(kernels[3]) == len(kernels[9])
    entries = {layers: re.search(r"^define void @tfir_entry_.*?^}", text, re.M | re.S) for layers, text in texts.items()}
    lines = {layers: len(found[0].splitlines()) for layers, found in entries.items() if found is not None}
    assert lines[3] == lines[9], "the entry of a deep model has longer tables and no more code"


def test_shared_kernels_read_their_own_buffers() -> None:
    module = _stack(5)
    x, scale = np.random.default_rng(0).standard_normal((3, 40), np.float32), np.linspace(0.5, 2, 40, dtype=np.float32)
    np.testing.assert_allclose(tfir.compile(module)(x, scale), tfir.evaluate(module, x, scale), rtol=2e-6, atol=2e-6)


def test_attributes_are_compared_as_they_are_written() -> None:
    """-0.0 equals 0.0, and yet the two give different bits: they may not share a kernel."""
    exe = tfir.compile(lambda x: (x.softmax(-1) * 0.0, (x * 2.0).softmax(-1) * -0.0), tfir.f32[2, 4])
    plus, minus = exe(np.zeros((2, 4), np.float32))
    assert not np.signbit(plus).any() and np.signbit(minus).all()


def test_proofs_hold_only_under_their_facts() -> None:
    """A module that was right stops being right when a fact that a proof needed is gone."""
    module = trace(lambda x: x.narrow(0, 0, 4), tfir.f32["n", 8], facts={"n": SymbolFact(low=4)})
    proven = Proven()
    assert not verify_module(module, proven=proven) and not verify_module(module, proven=proven)
    module.facts.symbols["n"] = SymbolFact(low=1)
    assert verify_module(module, proven=proven)


def test_a_deep_model_can_be_saved(tmp_path: Path) -> None:
    """Sizes in the manifest say each thing once: a maximum over all calls would be nested as deeply as the model is."""
    exe = tfir.compile("random:bert?hidden_size=32&num_attention_heads=2&intermediate_size=64&num_hidden_layers=30&vocab_size=50")
    exe.save(tmp_path / "deep.tfc")
    ids = np.arange(14).reshape(2, 7)
    for mine, loaded in zip(exe(ids), tfir.load(str(tmp_path / "deep.tfc"))(ids), strict=True):
        assert np.array_equal(mine, loaded)
