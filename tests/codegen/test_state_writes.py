"""States on the CPU: written in place, with the bits of one pass however a text is cut, and refused where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trustformers_ir as tfir
from trustformers_ir.frontend.trace import trace_into
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.text import parse_module
from trustformers_ir.runtime.executable import Executable

HEADS, GROUPS, FEATURES = 4, 2, 16


def step(window: int | None, dtype: DType = DType.f32) -> Module:
    """Attention to a cache of what was read: queries are x, keys twice x, values x + 1."""
    module = Module("step")

    def read(x: Tensor, start: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        batch, length, _ = x.shape
        q = x.reshape(batch, length, HEADS, FEATURES).transpose(1, 2)
        new = x[:, :, : GROUPS * FEATURES].reshape(batch, length, GROUPS, FEATURES).transpose(1, 2)
        keys, values = F.cache_write(k, 2 * new, start), F.cache_write(v, new + 1, start)
        return {"y": F.cached_attention(q, keys, values, start, window=window).transpose(1, 2), "k_next": keys, "v_next": values}

    cache = dtype["b", GROUPS, "c", FEATURES]
    trace_into(module, "read", read, dtype["b", "s", HEADS * FEATURES], DType.i64["b"], cache, cache, states=2)
    return module


def caches(batch: int, capacity: int, dtype: type = np.float32) -> list[np.ndarray]:
    return [np.zeros((batch, GROUPS, capacity, FEATURES), dtype) for _ in range(2)]


def words(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, length, HEADS * FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled() -> dict[int | None, tuple[Executable, Executable]]:
    """With one thread and with three."""
    return {w: (tfir.compile(step(w), threads=1), tfir.compile(step(w), threads=3)) for w in (None, 5)}


@pytest.mark.parametrize("window", [None, 5])
def test_agrees_with_the_reference(compiled: dict[int | None, tuple[Executable, Executable]], window: int | None) -> None:
    x, (k, v) = words(2, 70), caches(2, 200)
    have = compiled[window][1](x, np.array([0, 90]), k, v)
    want, want_k, want_v = tfir.evaluate(step(window), x, np.array([0, 90]), *caches(2, 200))
    np.testing.assert_allclose(have, want, rtol=0, atol=2e-6)
    assert (k == want_k).all() and (v == want_v).all()


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    window=st.sampled_from([None, 5]),
    capacity=st.integers(0, 90),
    other=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_pieces_have_the_bits_of_the_whole(
    compiled: dict[int | None, tuple[Executable, Executable]], cuts: list[int], window: int | None, capacity: int, other: int, seed: int
) -> None:
    """However a text is cut, whatever else is in the batch, whatever the capacity, and on any number of threads."""
    one, three = compiled[window]
    length = sum(cuts)
    x = words(1, length, seed)
    whole = one(x, np.array([0]), *caches(1, length))
    kept, at = caches(2, length + other + capacity), 0
    noise = words(2, length, seed + 1)
    three(noise[:, :other], np.array([0, 0]), *kept)  # text 1 has read something else before
    for cut in cuts:
        piece = np.concatenate([x[:, at : at + cut], noise[1:, at : at + cut]])
        have = three(piece, np.array([at, other + at]), *kept)
        assert (have[0] == whole[0, at : at + cut]).all()
        at += cut


def test_halves_of_precision_in_the_cache() -> None:
    x, kept = words(1, 9).astype(np.float16), caches(1, 12, np.float16)
    exe = tfir.compile(step(None, DType.f16))
    whole = exe(x, np.array([0]), *caches(1, 9, np.float16))
    parts = [exe(x[:, i : i + 1], np.array([i]), *kept) for i in range(9)]
    assert (np.concatenate(parts, axis=1) == whole).all()


def test_a_place_outside_is_an_error_and_changes_no_other_memory() -> None:
    exe, (k, v) = tfir.compile(step(None)), caches(1, 8)
    guarded = [np.full((3, GROUPS, 8, FEATURES), 7, np.float32) for _ in range(2)]
    with pytest.raises(CompilerError) as caught:
        exe(words(1, 4), np.array([6]), *(g[1:2] for g in guarded))
    assert set(caught.value.codes) == {Code.INDEX_OUT_OF_RANGE} and "place is" in str(caught.value)
    assert all((g[[0, 2]] == 7).all() for g in guarded)
    exe(words(1, 4), np.array([4]), k, v)


def test_states_have_to_be_written() -> None:
    exe, (k, v) = tfir.compile(step(None)), caches(1, 8)
    k.flags.writeable = False
    for state in (k, np.zeros((1, 8, GROUPS, FEATURES), np.float32).transpose(0, 2, 1, 3), k.tolist()):
        with pytest.raises(CompilerError) as caught:
            exe(words(1, 1), np.array([0]), state, v)
        assert set(caught.value.codes) == {Code.INPUT_STATE}


def test_torch_tensors_are_written_in_place() -> None:
    torch = pytest.importorskip("torch")
    exe, arrays, x = tfir.compile(step(None)), caches(1, 8), words(1, 5)
    tensors = [torch.zeros(a.shape) for a in arrays]
    have = exe(torch.from_numpy(x), torch.tensor([0]), *tensors)
    want = exe(x, np.array([0]), *arrays)
    assert (have.numpy() == want).all() and all((t.numpy() == a).all() for t, a in zip(tensors, arrays, strict=True))


def test_only_the_rows_are_touched() -> None:
    exe, kept = tfir.compile(step(None)), [c + 3 for c in caches(2, 16)]
    exe(words(2, 2), np.array([3, 9]), *kept)
    for cache in kept:
        changed = (cache != 3).any(axis=(1, 3))
        assert np.flatnonzero(changed[0]).tolist() == [3, 4] and np.flatnonzero(changed[1]).tolist() == [9, 10]


READ_BEFORE = """module @m {
  func @main(%x: f32[1, 2, 1, 4], %at: i64[1], %cache: f32[1, 2, 8, 4]) -> (f32[1, 2, 8, 4], f32[1, 2, 8, 4]) states 1 {
    %0 = cache_write(%cache, %x, %at) : f32[1, 2, 8, 4]
    %1 = neg(%cache) : f32[1, 2, 8, 4]
    return %1, %0
  }
}
"""
NOT_WRITTEN = """module @m {
  func @main(%x: f32[4], %s: f32[4]) -> (f32[4], f32[4]) states 1 {
    %0 = add(%s, %x) : f32[4]
    return %x, %0
  }
}
"""


@pytest.mark.parametrize("text", [READ_BEFORE, NOT_WRITTEN])
def test_states_that_cannot_be_written_in_place(text: str) -> None:
    with pytest.raises(CompilerError) as caught:
        tfir.compile(parse_module(text))
    assert set(caught.value.codes) == {Code.UNSUPPORTED_OP} and "not written in place" in str(caught.value)


def test_a_state_may_stay_as_it_is() -> None:
    text = NOT_WRITTEN.replace("return %x, %0", "return %0, %s")
    state = np.ones(4, np.float32)
    assert (tfir.compile(parse_module(text))(np.ones(4, np.float32), state) == 2).all() and (state == 1).all()


def test_layers_share_kernels() -> None:
    """Writes of all layers are one kernel: their checks are told in the same words."""
    spec = "random:llama?num_hidden_layers=6&hidden_size=32&intermediate_size=48&num_attention_heads=2&vocab_size=40&architecture=LlamaForCausalLM"
    kernels = [k for k in tfir.compile(spec).report()["entries"]["decode"]["kernels"] if "cache_write" in k["label"]]  # type: ignore[index]
    assert len(kernels) == 12 and len({k["symbol"] for k in kernels}) == 2
