"""Sequences one behind the other: each as if it were alone, on the CPU and on Triton's interpreter; any starts as the definition has it."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from accuracy import differs
from lowering_harness import compile_modules
from random_graphs import wrap
from triton_harness import interpret_modules

import trustformers_ir as tfir
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.tensor import Tensor

#: causal, window, soft cap, dtype of the starts
FORMS: dict[str, tuple[bool, int | None, float | None, DType]] = {
    "plain": (False, None, None, DType.i32),
    "causal": (True, None, None, DType.i64),
    "window": (False, 40, None, DType.i32),
    "causal, window": (True, 5, 2.0, DType.i32),
}
#: queries and keys of each sequence
LENGTHS = {
    "one": [(37, 37)],
    "none": [],
    "several in a block": [(5, 5), (1, 1), (30, 30), (17, 17)],
    "some empty": [(0, 0), (40, 40), (0, 7), (6, 0), (0, 0), (3, 9)],
    "longer than a block": [(150, 150), (20, 20), (131, 131)],
    "other numbers of keys": [(1, 90), (70, 12), (3, 200)],
}


def module(form: str, dtype: DType) -> Module:
    causal, window, softcap, index = FORMS[form]

    def f(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor) -> Tensor:
        return F.packed_attention(q, k, v, q_starts, k_starts, causal=causal, window=window, softcap=softcap)

    traced = tfir.trace(f, dtype["s", 4, 16], dtype["t", 2, 16], dtype["t", 2, 24], index["n"], index["n"])
    wrap([o for o in traced.main.body if not o.op.terminator])
    return traced


def arrays(queries: int, keys: int, dtype: DType) -> list[np.ndarray]:
    rng = np.random.default_rng(queries + keys)
    return [round_to(rng.uniform(-2, 2, shape), dtype) for shape in ((queries, 4, 16), (keys, 2, 16), (keys, 2, 24))]


def alone(q: np.ndarray, k: np.ndarray, v: np.ndarray, form: str, dtype: DType) -> np.ndarray:
    """One sequence by the op that has no others beside it."""
    causal, window, softcap, _ = FORMS[form]
    specs = [dtype[1, x.shape[1], x.shape[0], x.shape[2]] for x in (q, k, v)]
    traced = tfir.trace(lambda q, k, v: F.attention(q, k, v, causal=causal, window=window, softcap=softcap), *specs)
    out = evaluate(traced, *(np.swapaxes(x, 0, 1)[None] for x in (q, k, v)))
    assert isinstance(out, np.ndarray)
    return np.swapaxes(out[0], 0, 1)


@pytest.mark.parametrize("form", FORMS)
def test_each_sequence_is_as_if_it_were_alone(form: str) -> None:
    """By the reference, by the plain definition on the CPU, in blocks on a GPU; tokens behind the last sequence are zeros."""
    (cpu,) = compile_modules([module(form, DType.f32)])
    (wide,) = interpret_modules([module(form, DType.f32)])
    (gpu,) = interpret_modules([module(form, DType.f16)], BlockMachine(kind="hopper"))
    index = FORMS[form][3].numpy
    for name, lengths in LENGTHS.items():
        q_starts, k_starts = (np.array([0, *accumulate(n[side] for n in lengths)], index) for side in (0, 1))
        queries, keys = int(q_starts[-1]) + 2, int(k_starts[-1]) + 1
        dims = {"s": queries, "t": keys, "n": len(q_starts)}
        for runs, dtype, bound in (((cpu, wide), DType.f32, 3e-6), ((gpu,), DType.f16, 4e-3)):
            given = arrays(queries, keys, dtype)
            want = evaluate(module(form, dtype), *given, q_starts, k_starts, dims=dims)
            assert isinstance(want, np.ndarray)
            assert not want[int(q_starts[-1]) :].any()
            for n, (size, others) in enumerate(lengths):
                at, key = int(q_starts[n]), int(k_starts[n])
                if size and others and dtype is DType.f32:
                    q, k, v = given[0][at : at + size], given[1][key : key + others], given[2][key : key + others]
                    np.testing.assert_allclose(want[at : at + size], alone(q, k, v, form, dtype), rtol=0, atol=1e-6)
            for run in runs:
                (got,) = run([*given, q_starts, k_starts], dims)
                assert not differs(got, want, bound).any(), f"{name}, {dtype}"


@pytest.mark.parametrize("form", ["plain", "causal, window"])
def test_starts_that_do_not_rise(form: str) -> None:
    """They are no error and reach no memory outside: the definition holds for any numbers."""
    (cpu,) = compile_modules([module(form, DType.f32)])
    (gpu,) = interpret_modules([module(form, DType.f32)])
    rng = np.random.default_rng(0)
    for _ in range(12):
        given, count = arrays(40, 70, DType.f32), int(rng.integers(1, 6))
        starts = [rng.integers(-20, 100, count).astype(FORMS[form][3].numpy) for _ in range(2)]
        dims = {"s": 40, "t": 70, "n": count}
        want = evaluate(module(form, DType.f32), *given, *starts, dims=dims)
        assert isinstance(want, np.ndarray)
        for run in (cpu, gpu):
            assert not differs(run([*given, *starts], dims)[0], want, 3e-6).any()
