"""Writing text on a GPU, that is on Triton's interpreter: states lie there and are written in place; the tokens are those of the CPU."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="pip install triton")

import torch

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.runtime.generation import session as sessions
from trustformers_ir.runtime.generation.caches import HostCaches
from trustformers_ir.runtime.generation.session import Session
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.gpu.interpreter import Interpreter
from trustformers_ir.runtime.gpu.states import DeviceArray, DeviceCaches

TARGET = "triton:interpreter"
LLAMA = (
    "random:llama?architecture=LlamaForCausalLM&num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&"
    "num_key_value_heads=2&vocab_size=99"
)
FAMILIES = {
    "llama": LLAMA,
    "gpt2": "random:gpt2?architecture=GPT2LMHeadModel&n_layer=2&n_embd=64&n_head=2&vocab_size=99&n_positions=64",
    "mistral": LLAMA.replace("llama?", "mistral?").replace("Llama", "Mistral") + "&sliding_window=5",
    "falcon": "random:falcon?architecture=FalconForCausalLM&num_hidden_layers=2&hidden_size=64&num_attention_heads=4&vocab_size=99&alibi=true",
}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 8, 9]]


def compiled(source: str, **options: Any) -> tuple[GpuExecutable, Any]:
    exe = tfir.compile(source, target=TARGET, **options)
    assert isinstance(exe, GpuExecutable)
    return exe, tfir.compile(source, **options)


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.long] * (f in ("falcon", "gpt2", "mistral"))) for f in FAMILIES])
def test_tokens_are_those_of_the_cpu(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths, caches that grow on the way, pieces of a prompt."""
    monkeypatch.setattr(sessions, "STEP", 8)
    monkeypatch.setattr(sessions, "CHUNK", 4)
    exe, cpu = compiled(FAMILIES[family])
    got, want = (e.generate(PROMPTS, max_new_tokens=6) for e in (exe, cpu))
    assert [g.tolist() for g in got] == [w.tolist() for w in want]


def test_scores_after_growing_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "STEP", 4)
    exe, cpu = compiled(LLAMA)
    session = Session(exe, 1)
    assert isinstance(session.caches, DeviceCaches)
    session.read([PROMPTS[1]])
    for token in (11, 12, 13):
        scores = session.step([token])
    assert session.capacity == 8 and session.lengths.tolist() == [6]
    ids = np.array([[*PROMPTS[1], 11, 12, 13]])
    want = cpu(input_ids=ids, attention_mask=np.ones_like(ids))[:, -1]
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.long
def test_beams_take_states_from_each_other() -> None:
    exe, cpu = compiled(LLAMA)
    assert exe.generate(PROMPTS[1], max_new_tokens=5, num_beams=3).tolist() == cpu.generate(PROMPTS[1], max_new_tokens=5, num_beams=3).tolist()


@pytest.mark.long
def test_16_bits_and_blocks_of_weights() -> None:
    exe, cpu = compiled(LLAMA, dtype="bf16", quantize="q4_0")
    got, want = Session(exe, 2), Session(cpu, 2)
    for tokens in ([[3, 4, 5], [6, 7]], [[8], [9]]):
        a, b = (s.read(tokens) for s in (got, want))
        assert np.abs(a - b).max() <= 0.05 * np.abs(b).max()


def test_memory_goes_with_the_session() -> None:
    driver = Interpreter(lazy=True)
    exe = GpuExecutable(compiled(LLAMA)[0].compiled, driver=driver)
    session = Session(exe, 2, 9)
    session.read(PROMPTS)
    before = driver.blocks
    other = session.repeated(2)
    assert driver.blocks == before + 1
    other.reorder([1, 0, 3, 2])
    other.step([1, 2, 3, 4])
    del other
    gc.collect()
    assert driver.blocks == before
    del session
    gc.collect()
    assert driver.blocks == before - 1


def given(exe: GpuExecutable) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The inputs of ``decode`` for one text, and its states."""
    ports = exe.called("decode").entry.inputs
    states = HostCaches(ports[2:])
    states.grow(1, 8)
    return [np.array([[5]]), np.array([0])], states.arrays


def test_states_of_the_caller_are_written_in_place() -> None:
    exe, cpu = compiled(LLAMA)
    want_inputs, want = given(exe)
    scores = cpu.run(*want_inputs, *want, entry="decode")
    inputs, states = given(exe)
    got = exe.run(*inputs, *states, entry="decode")
    np.testing.assert_allclose(got, scores, rtol=0, atol=1e-5)
    assert all(w.any() for w in want)
    for a, b in zip(states, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    inputs, states = given(exe)
    tensors = [torch.from_numpy(a) for a in states]
    exe.run(*map(torch.from_numpy, inputs), *tensors, entry="decode")
    for t, b in zip(tensors, want, strict=True):
        np.testing.assert_allclose(t.numpy(), b, rtol=0, atol=1e-5)


def test_states_that_would_have_to_be_copied_are_refused() -> None:
    exe, _ = compiled(LLAMA)
    inputs, states = given(exe)
    for wrong, where in (
        (states[0][:, ::-1], inputs),
        (states[0].copy(), [torch.from_numpy(a) for a in inputs]),  # beside tensors of the GPU
        (torch.zeros(states[0].size + 1)[1:].reshape(states[0].shape), inputs),  # not where kernels take it
    ):
        with pytest.raises(tfir.CompilerError) as caught:
            exe.run(*where, wrong, *states[1:], entry="decode")
        assert caught.value.codes == (Code.INPUT_STATE,)


def test_an_array_of_the_gpu_is_seen_by_rows() -> None:
    driver = Interpreter()
    exe = GpuExecutable(compiled(LLAMA)[0].compiled, driver=driver)
    caches = exe.caches(exe.called("decode").entry.inputs[2:])
    caches.grow(3, 8)
    whole, (second, *_) = caches.arrays[0], caches.of(slice(1, 2))
    assert isinstance(second, DeviceArray) and second.shape == (1, *whole.shape[1:]) and second.address - whole.address == whole.row
    assert whole.row == 2 * 8 * 16 * 4
