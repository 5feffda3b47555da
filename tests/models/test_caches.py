"""How keys and values are kept: 16 bits, 8-bit codes, pages. Pages change no bit; the rest rounds once, on the way in."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trustformers_ir as tfir
from trustformers_ir.ir.abi import Port
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.models.cached import CacheForm, group_of
from trustformers_ir.runtime.generation.pages import PagedCaches, Pool
from trustformers_ir.runtime.generation.session import Session
from trustformers_ir.runtime.runnable import Runnable

LLAMA = (
    "random:llama?architecture=LlamaForCausalLM&num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&"
    "num_key_value_heads=2&vocab_size=99&max_position_embeddings=600"
)
WINDOW = 70
MODELS = {
    "llama": LLAMA,
    "mistral": LLAMA.replace("llama?", "mistral?").replace("Llama", "Mistral") + f"&sliding_window={WINDOW}",
    "gemma3": LLAMA.replace("llama?", "gemma3_text?").replace("LlamaFor", "Gemma3For") + "&sliding_window=70&head_dim=16&sliding_window_pattern=2",
    "falcon": "random:falcon?architecture=FalconForCausalLM&num_hidden_layers=2&hidden_size=64&num_attention_heads=4&vocab_size=99&alibi=true",
}


@functools.cache
def compiled(model: str, form: str | None = None) -> Runnable:
    return tfir.compile(MODELS[model], cache=form)


def texts(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 99, n) for n in lengths]


def scores(exe: Runnable, pieces: tuple[int, ...], prompts: list[np.ndarray], steps: int) -> list[np.ndarray]:
    """What comes after pieces of texts, and after single tokens behind them."""
    session, out, at = Session(exe, len(prompts)), [], 0
    for n in pieces:
        out.append(session.read([p[at : at + n] for p in prompts]).copy())
        at += n
    out.append(session.read([p[at:] for p in prompts]).copy())
    return out + [session.step([n, 2 * n]).copy() for n in range(steps)]


@pytest.mark.parametrize("model", [pytest.param(m, marks=[pytest.mark.long] * (m != "gemma3")) for m in MODELS])
def test_pages_change_no_bit(model: str) -> None:
    prompts = texts(150, 101)
    plain, paged = compiled(model), compiled(model, "paged")
    for pieces in ((), (1, 63, 20)):
        for got, want in zip(scores(paged, pieces, prompts, 40), scores(plain, pieces, prompts, 40), strict=True):
            assert (got == want).all()
    new = (exe.generate(prompts[0], max_new_tokens=30, num_beams=4).tolist() for exe in (plain, paged))
    assert next(new) == next(new)


@pytest.mark.parametrize(("form", "bound"), [("f16", 2e-3), ("bf16", 1.5e-2), ("q8_0", 3e-2), ("paged,q8_0", 3e-2)])
def test_what_is_kept_in_fewer_bits(form: str, bound: float) -> None:
    """Close to what is kept in f32, and the same however a text is cut into pieces."""
    prompts = texts(150, 101)
    plain, exe = compiled("llama"), compiled("llama", form)
    got, want = (scores(e, (), prompts, 20) for e in (exe, plain))
    error = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))
    assert 0 < error < bound
    assert all((a == b).all() for a, b in zip(got, scores(exe, (1, 63, 20), prompts, 20)[3:], strict=True))


def test_the_first_layer_keeps_what_it_computes_rounded_once() -> None:
    """Keys of the first layer do not depend on what is kept, so those in f32 say what the others hold."""
    kept: dict[str | None, Any] = {}
    for form in (None, "f16", "q8_0"):
        session = Session(compiled("llama", form), 1)
        session.read(texts(70))
        kept[form] = session.caches
    keys = kept[None].arrays[0]
    assert (kept["f16"].arrays[0] == keys.astype(np.float16)).all()
    codes, scale = kept["q8_0"].arrays[:2]
    groups = keys.reshape(*keys.shape[:-1], -1, 16)
    exact = np.abs(groups).max(-1) / np.float32(127)
    assert (scale == exact.astype(np.float16)).all()
    assert np.abs(codes.reshape(groups.shape) * exact[..., None] - groups).max() <= exact.max() * 0.5001
    sizes = [sum(a.nbytes for a in c.arrays) for c in kept.values()]
    assert sizes[0] == 2 * sizes[1] and sizes[2] / sizes[0] == (1 + 2 / 16) / 4


def test_pages_behind_a_window_are_given_back() -> None:
    """400 tokens behind each other need as many pages as a window and the page that is written to."""
    exe = compiled("mistral", "paged")
    session = Session(exe, 2)
    session.read([*texts(500, 65)])
    for n in range(80):
        session.step([n, n])
    assert isinstance(session.caches, PagedCaches)
    (table,) = session.caches.tables
    assert table.entries.shape[1] * 64 >= 580
    for row in table.entries:
        assert 0 < np.count_nonzero(row) <= (WINDOW + 2 * 64) // 64
    pool = table.pool
    assert sum(n > 0 for n in pool.owners[1:]) == np.count_nonzero(table.entries)


def test_layers_with_and_without_a_window_have_pools_of_their_own() -> None:
    exe = compiled("gemma3", "paged")
    names = [p.name for p in exe.called("decode").entry.inputs]
    assert {"pages", "pages_70"} <= set(names)
    session = Session(exe, 1)
    session.read(texts(320))
    session.step([1])  # on a new page, for which those go that nobody sees any more
    assert isinstance(session.caches, PagedCaches)
    used = {t.window: np.count_nonzero(t.entries) for t in session.caches.tables}
    assert used == {None: 6, 70: 3}


def test_memory_follows_what_was_read() -> None:
    """A long text beside short ones: contiguous caches have room for the longest of each, pages for what there is."""
    plain, paged = (Session(compiled("llama", c), 8) for c in (None, "paged"))
    for session in (plain, paged):
        session.read(texts(500, *[5] * 7))
    sizes = [sum(a.nbytes for a in s.caches.of(slice(None))) for s in (plain, paged)]
    assert sizes[1] < sizes[0] / 3


def ports() -> list[Port]:
    pages = Port("pages", DType.i32["batch", "table"])
    return [pages, Port("key_0", DType.f32["pool", 1, 4, 2]), Port("value_0", DType.f32["pool", 1, 4, 3])]


@pytest.mark.usefixtures("few_objects")
@given(st.lists(st.tuples(st.sampled_from(["write", "reorder", "repeat"]), st.integers(1, 9), st.integers(0, 1 << 30)), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_keep_their_own_whatever_is_shared(steps: list[tuple[str, int, int]]) -> None:
    """Against lists: texts are written to, become copies of each other, and multiply."""
    caches, want = PagedCaches(ports()), [[] for _ in range(2)]  # type: ignore[var-annotated]
    caches.grow(2, 400)
    for n, (what, count, seed) in enumerate(steps):
        random = np.random.default_rng(seed)
        if what == "write":
            lengths = np.array([len(w) for w in want])
            caches.extend(slice(None), lengths, count)
            for b, row in enumerate(want):
                for i in range(count):
                    page, place = divmod(len(row), 4)
                    value = n * 1000 + b * 100 + i
                    assert caches.tables[0].pool.owners[caches.tables[0].entries[b, page]] == 1
                    caches.arrays[0][caches.tables[0].entries[b, page], 0, place] = value
                    row.append(value)
        elif what == "reorder":
            rows = random.integers(0, len(want), len(want))
            caches.reorder(rows, 0)
            want = [list(want[r]) for r in rows]
        elif len(want) < 8:
            caches = caches.repeated(2)
            want = [list(w) for w in want for _ in range(2)]
    table = caches.tables[0]
    for b, row in enumerate(want):
        got = [caches.arrays[0][table.entries[b, p // 4], 0, p % 4, 0] for p in range(len(row))]
        assert got == row
    gc.collect()
    counts = np.bincount(table.entries[table.entries > 0], minlength=len(table.pool.owners))
    assert table.pool.owners[1:] == counts[1:].tolist()
    pool = table.pool
    del caches, table
    gc.collect()
    assert not any(pool.owners[1:]) and len(set(pool.free)) == len(pool.free) == pool.used - 1


def test_a_page_that_comes_back_is_empty() -> None:
    pool = Pool(ports()[1:])
    page = pool.take()
    pool.arrays[1][page] = np.inf
    pool.give_back(page)
    assert pool.take() == page and not pool.arrays[1][page].any()


def test_forms() -> None:
    assert CacheForm.parse("paged, f16") == CacheForm(DType.f16, True) and CacheForm.parse("q8_0") == CacheForm(DType.i8)
    assert [group_of(n) for n in (128, 64, 80, 20, 7, 37)] == [32, 32, 20, 20, 7, 1]


@pytest.mark.parametrize("form", ["f64", "paged,paged", "f16,q8_0", "", 3])
def test_forms_that_there_are_not(form: Any) -> None:
    with pytest.raises(CompilerError) as caught:
        tfir.compile(LLAMA, cache=form)
    assert caught.value.diagnostics[0].code is Code.USAGE and "q8_0" in str(caught.value)


def test_caches_of_what_writes_no_text(tmp_path: Path) -> None:
    for options in ({"model": "random:bert?num_hidden_layers=1&hidden_size=16&num_attention_heads=1&vocab_size=20"}, {"dynamic": ("seq",)}):
        with pytest.raises(CompilerError) as caught:
            tfir.compile(**({"model": LLAMA, "cache": "f16"} | options))  # type: ignore[arg-type]
        assert caught.value.diagnostics[0].code is Code.USAGE
    with pytest.raises(CompilerError) as caught:
        tfir.compile(LLAMA, cache="paged", target="cuda:sm_90")
    assert caught.value.diagnostics[0].code is Code.NOT_BUILT


def test_artifacts_keep_the_form(tmp_path: Path) -> None:
    exe = compiled("llama", "paged,q8_0")
    exe.save(str(tmp_path / "m.tfc"))
    prompt = texts(70)[0]
    assert tfir.load(str(tmp_path / "m.tfc")).generate(prompt, max_new_tokens=9).tolist() == exe.generate(prompt, max_new_tokens=9).tolist()


def test_a_page_that_is_none_is_an_error() -> None:
    """Memory outside of the pool is not touched, whatever a table says."""
    exe = compiled("llama", "paged")
    entry = exe.called("decode").entry
    states = [np.zeros(p.type.concrete({"pool": 3}), p.type.dtype.numpy) for p in entry.inputs[3:]]
    for page, problem in ((3, "page is 3, out of range"), (-4, "page is -4")):
        with pytest.raises(CompilerError, match=problem) as caught:
            exe.called("decode")((np.array([[1]]), np.array([0]), np.array([[page]], np.int32), *states), {})
        assert caught.value.diagnostics[0].code is Code.INDEX_OUT_OF_RANGE
