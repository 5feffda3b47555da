"""Attention on NaN, infinities, overflowing scores and rows that see nothing: as the reference, in blocks of keys and by the plain definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from accuracy import differs
from lowering_harness import compile_modules
from random_graphs import wrap

import trustformers_ir as tfir
from trustformers_ir.ir.conformance import random_array
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import attention
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.text import parse_module
from trustformers_ir.runtime.executable import Executable

QUERIES, KEYS, FEATURES = 9, 70, 8  # two blocks of keys, two tiles of queries
Arrays = dict[str, np.ndarray]


def module(dtype: DType, features: str) -> Module:
    """Symbolic features take the plain definition, constant ones the loops over blocks of keys."""
    q, kv, score = f"{dtype}[1, 2, s, {features}]", f"{dtype}[1, 1, t, {features}]", f"{dtype}[1, 2, s, t]"
    symbols = "\n".join(f"  symbol {n} : [1, inf]" for n in ("d", "s", "t"))
    return parse_module(
        f"module @attention {{\n{symbols}\n  func @main(%q: {q}, %k: {kv}, %v: {kv}, %m: bool[1, 2, s, t], %b: {score}) -> ({q}) {{\n"
        f"    %0 = attention(%q, %k, %v, %m, %b) : {q}\n    return %0\n  }}\n}}\n"
    )


def _set(name: str, at: tuple[int | slice, ...], value: float | bool) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][at] = value

    return change


def _all(*changes: Callable[[Arrays], None]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for c in changes:
            c(arrays)

    return change


def _hide(keys: slice) -> Callable[[Arrays], None]:
    return _set("m", (0, 1, 4, keys), False)


ROW, EVERY = (0, 1, 4), slice(None)
SPECIAL: dict[str, Callable[[Arrays], None]] = {
    "nothing": _all(),
    "NaN in q": _set("q", (0, 1, 4, 3), np.nan),
    "inf in q": _set("q", (0, 1, 4, 3), np.inf),
    "NaN in k, first block": _set("k", (0, 0, 2, 0), np.nan),
    "NaN in k, second block": _set("k", (0, 0, 66, 0), np.nan),
    "inf in k, first block": _set("k", (0, 0, 2, 0), np.inf),
    "inf in k, second block": _set("k", (0, 0, 66, 0), -np.inf),
    "NaN in v": _set("v", (0, 0, 66, 1), np.nan),
    "inf in v": _set("v", (0, 0, 2, 1), np.inf),
    "NaN in v of a hidden key": _all(_hide(slice(2, 4)), _set("v", (0, 0, 2, 1), np.nan)),
    "NaN in k of a hidden key": _all(_set("m", (0, EVERY, EVERY, 2), False), _set("k", (0, 0, 2, 1), np.nan)),
    "bias of NaN": _set("b", (*ROW, 66), np.nan),
    "bias of inf": _set("b", (*ROW, 2), np.inf),
    "bias of inf twice, in both blocks": _all(_set("b", (*ROW, 2), np.inf), _set("b", (*ROW, 66), np.inf)),
    "bias of inf after a hidden block": _all(_hide(slice(0, 64)), _set("b", (*ROW, 66), np.inf)),
    "bias of inf before a hidden block": _all(_hide(slice(64, 70)), _set("b", (*ROW, 2), np.inf)),
    "bias of -inf at one key": _set("b", (*ROW, 2), -np.inf),
    "bias of -inf at the first block": _set("b", (*ROW, slice(0, 64)), -np.inf),
    "bias of -inf everywhere": _set("b", (*ROW, EVERY), -np.inf),
    "no key is seen": _hide(EVERY),
    "no key is seen, NaN in q": _all(_hide(EVERY), _set("q", (0, 1, 4, 3), np.nan)),
    "no key is seen, NaN in v": _all(_hide(EVERY), _set("v", (0, 0, 66, 1), np.nan)),
}


def arrays(dtype: DType) -> Arrays:
    rng = np.random.default_rng(5)
    shapes = {"q": (1, 2, QUERIES, FEATURES), "k": (1, 1, KEYS, FEATURES), "v": (1, 1, KEYS, FEATURES), "b": (1, 2, QUERIES, KEYS)}
    out = {n: round_to(rng.uniform(-2, 2, s), dtype) for n, s in shapes.items()}
    out["m"] = rng.random((1, 2, QUERIES, KEYS)) < 0.9
    return {n: out[n] for n in ("q", "k", "v", "m", "b")}


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16, DType.f32, DType.f64], ids=str)
def test_special_values(dtype: DType) -> None:
    runners = compile_modules([module(dtype, str(FEATURES)), module(dtype, "d")])
    bound = {DType.f16: 2e-3, DType.bf16: 2e-2, DType.f32: 2e-6, DType.f64: 1e-14}[dtype]
    for name, change in SPECIAL.items():
        given = arrays(dtype)
        change(given)
        inputs, dims = list(given.values()), {"d": FEATURES, "s": QUERIES, "t": KEYS}
        want = evaluate(module(dtype, str(FEATURES)), *inputs, dims=dims)
        assert isinstance(want, np.ndarray)
        for form, run in zip(("blocks", "plain"), runners, strict=True):
            (got,) = run(inputs, dims)
            assert not differs(got, want, bound).any(), f"{name}, {form}: {got[ROW]} != {want[ROW]}"


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f32, DType.f64], ids=str)
def test_a_score_that_overflows_makes_its_row_nan(dtype: DType) -> None:
    """In the dtype of the arithmetic, f32 at least: the reference of f32 has room in f64. Rows whose scores are finite keep their numbers."""
    huge = 1e200 if dtype is DType.f64 else 1e25
    given = arrays(dtype)
    given["q"][0, 1, 4] = given["k"][0, 0, 66] = huge
    given["m"][0, :, :4, 66] = False
    given["m"][0, :, 5:, 66] = False
    given["m"][0, 0, 4, 66] = False
    given["m"][ROW] = True
    for run in compile_modules([module(dtype, str(FEATURES)), module(dtype, "d")]):
        (got,) = run(list(given.values()), {"d": FEATURES, "s": QUERIES, "t": KEYS})
        nan = np.isnan(got.astype(np.float64))
        assert nan[ROW].all() and nan.sum() == FEATURES


BEHIND = {
    "a rope, which reads pairs of features": (
        "%g: f32[2, 1, s, 4], %h: f32[2, 1, s, 4]",
        "%1 = rope(%0, %g, %h) : f32[2, 8, s, 8]",
    ),
    "its own flip": (
        "%g: f32[2, 8, s, 8], %h: f32[s, 8]",
        """%2 = flip(%0) {axis = 1} : f32[2, 8, s, 8]
    %1 = sub(%0, %2) : f32[2, 8, s, 8]""",
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_regions_that_read_attention_at_other_places(name: str) -> None:
    """The loops over blocks of keys have each element once, so the plain definition serves."""
    arguments, behind = BEHIND[name]
    source = (
        "module @behind {\n  symbol s : [1, inf]\n  symbol t : [1, inf]\n"
        f"  func @main(%q: f32[2, 8, s, 8], %k: f32[2, 4, t, 8], %v: f32[2, 4, t, 8], {arguments}) -> (f32[2, 8, s, 8]) {{\n"
        f"    %0 = attention(%q, %k, %v, none, none) : f32[2, 8, s, 8]\n    {behind}\n    return %1\n  }}\n}}\n"
    )
    whole = parse_module(source)
    wrap([o for o in whole.main.body if not o.op.terminator])
    (run,) = compile_modules([whole])
    for dims in ({"s": 1, "t": 1}, {"s": 17, "t": 70}):
        inputs = [random_array(t, dims, np.random.default_rng(1)) for t in whole.main.input_types]
        want = evaluate(parse_module(source), *inputs, dims=dims)
        assert isinstance(want, np.ndarray)
        np.testing.assert_allclose(run(inputs, dims, 2)[0], want, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 7), (33, 70), (47, 129), (64, 64)])
def test_bits_do_not_depend_on_how_the_work_is_cut(exes: list[Executable], queries: int, keys: int) -> None:
    """Machines, threads, one sequence alone, padding keys left out, one query alone: the same bits."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, n, 40)).astype(np.float32) for n in (queries, keys, keys))
    seen = keys // 2 + 1
    mask = np.broadcast_to(np.arange(keys) < seen, (2, 1, 1, keys)).astype(np.float32)
    want, *others = [e(q, k, v, mask) for e in exes]
    assert all(np.array_equal(y, want) for y in others)
    one = exes[0]
    assert np.array_equal(one(q[1:], k[1:], v[1:], mask[1:]), want[1:])
    assert np.array_equal(one(q, k[:, :, :seen], v[:, :, :seen], mask[..., :seen]), want)
    for i in range(0, queries, 7):
        assert np.array_equal(one(q[:, :, i : i + 1], k, v, mask), want[:, :, i : i + 1])


@pytest.fixture(scope="module")
def exes() -> list[Executable]:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v, mask > 0)

    f32 = tfir.f32
    specs = f32["b", 3, "s", 40], f32["b", 3, "t", 40], f32["b", 3, "t", 40], f32["b", 1, 1, "t"]
    return [tfir.compile(tfir.trace(attend, *specs), target=t, threads=n) for t in ("cpu", "cpu:avx2") for n in (1, 2)]


POSITIONS = {"causal": (True, None), "a window": (False, 30), "causal, in a window": (True, 90)}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("target", ["cpu", "cpu:avx2"])
def test_blocks_that_no_query_sees_are_left_out_unless_they_hold_nan(name: str, target: str) -> None:
    """NaN and infinities in v come through as in the reference, and the first queries alone have the bits that they have among all."""
    causal, window = POSITIONS[name]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=causal, window=window)

    f32, rng = tfir.f32, np.random.default_rng(0)
    whole = tfir.trace(attend, f32["b", 2, "s", 20], f32["b", 2, "t", 20], f32["b", 2, "t", 20])
    exe = tfir.compile(whole, target=target)
    for queries, keys in ((200, 200), (40, 300), (300, 40), (1, 130)):
        q, k, v = (rng.standard_normal((1, 2, n, 20)).astype(np.float32) for n in (queries, keys, keys))
        v[0, 0, 3, 5], v[0, 0, keys - 1, 6], v[0, 1, keys // 2, 7] = np.nan, np.inf, -np.inf
        got, want = exe(q, k, v), evaluate(whole, q, k, v)
        assert isinstance(got, np.ndarray) and isinstance(want, np.ndarray)
        assert not differs(got, want, 2e-6).any()
        v = np.where(np.isfinite(v), v, 0)
        everyone = exe(q, k, v)
        for i in (1, 33, 64):
            if causal and i < queries <= keys:  # the first i queries see none of the keys of the others
                seen = keys - queries + i
                assert np.array_equal(exe(q[:, :, :i], k[:, :, :seen], v[:, :, :seen]), everyone[:, :, :i])


@pytest.mark.parametrize("features", [1, 17])
def test_heads_of_one_feature_joined_again(features: int) -> None:
    """The last lane of a row stands at an index that the heads alone decide."""

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = attention(q, k, v, causal=True)
        batch, heads, length, width = y.shape
        return y.transpose(1, 2).reshape(batch, length, heads * width)

    heads = DType.f32["b", 5, "s", features]
    traced = tfir.trace(joined, heads, heads, heads)
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((2, 5, 19, features)).astype(np.float32) for _ in range(3)]
    np.testing.assert_allclose(tfir.compile(traced)(*arrays), evaluate(traced, *arrays), rtol=1e-5, atol=1e-6)
