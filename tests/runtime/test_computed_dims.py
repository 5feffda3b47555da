"""Sizes that only the run knows: planned for the most that they can be, given as they are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.nonzero import most
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import current_trace
from trustformers_ir.ir.types import TensorType


def positions(mask: Tensor, name: str = "found") -> Tensor:
    """The positions of true elements, whose number is a dim of that name."""
    current_trace().module.facts.declare(name, SymbolFact(0))
    return mask._emit(ops.NonZero(symbol(name)))


def kept(x: Tensor) -> Any:
    """The elements above zero; twice each, with a size of their own; how many there are."""
    at = positions(x > 0.0)
    chosen = x._emit(ops.Gather(0), at)
    return chosen, F.concat([chosen, -chosen]), F.tensor(at.shape[0]), F.stack([chosen, chosen * 2.0], 1)


def check(exe: Any, x: np.ndarray) -> None:
    want = x[x > 0]
    chosen, twice, count, pairs = exe(x)
    np.testing.assert_array_equal(chosen, want)
    np.testing.assert_array_equal(twice, np.concatenate([want, -want]))
    np.testing.assert_array_equal(pairs, np.stack([want, want * 2], 1))
    assert count == len(want)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("size", [9, "n"])
def test_results_have_the_sizes_that_the_run_finds(size: Any, threads: int) -> None:
    module = tfir.trace(kept, TensorType((size,), DType.f32))
    exe = tfir.compile(module, threads=threads)
    rng = np.random.default_rng(0)
    for n in (9, 9, 9) if size == 9 else (1, 300, 5000, 3):
        for shift in (0.0, -5.0, 5.0, -1.0, 0.0):  # none, all and some: nothing is left of the call before
            x = (rng.standard_normal(n) + shift).astype(np.float32)
            check(exe, x)
            for got, wanted in zip(exe(x), tfir.evaluate(module, x), strict=True):
                np.testing.assert_array_equal(got, wanted)


def test_a_count_that_is_all_that_is_read() -> None:
    exe = tfir.compile(lambda x: F.tensor(positions(x).shape[0]), TensorType((6,), DType.bool))
    assert exe(np.array([1, 0, 1, 1, 0, 0], bool)) == 3


def test_one_computed_size_within_another() -> None:
    def twice(x: Tensor) -> Tensor:
        some = x._emit(ops.Gather(0), positions(x > 0.0, "a"))
        return some._emit(ops.Gather(0), positions(some < 1.0, "b"))

    exe = tfir.compile(twice, TensorType(("n",), DType.f32))
    for n in (7, 100):
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        np.testing.assert_array_equal(exe(x), x[(x > 0) & (x < 1)])


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    tfir.compile(kept, TensorType(("n",), DType.f32)).save(tmp_path / "m.tfc")
    check(tfir.load(tmp_path / "m.tfc"), np.array([1.0, -1.0, 2.0], np.float32))


def test_a_library_says_that_it_has_none(tmp_path: Path) -> None:
    exe = tfir.compile(kept, TensorType(("n",), DType.f32))
    with pytest.raises(CompilerError) as caught:
        exe.save(tmp_path / "m.so")
    assert caught.value.codes == (Code.NOT_BUILT,)


def test_threads_that_call_at_once_get_their_own_sizes() -> None:
    exe = tfir.compile(kept, TensorType((64,), DType.f32), threads=2)
    failed: list[BaseException] = []

    def call(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(50):
                check(exe, (rng.standard_normal(64) + rng.uniform(-2, 2)).astype(np.float32))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed


def test_bounds_of_sizes() -> None:
    n, a = symbol("n"), symbol("a")
    assert most(a * 3 + 1, {"a": n}) == n * 3 + 1
    assert most(n, {"a": 5}) == n
    assert most((a + 1) // 2, {"a": n}) == (n + 1) // 2
    for shrinks in (n - a, 7 - a, a % 4):
        with pytest.raises(ValueError, match="may grow"):
            most(shrinks, {"a": n})


def test_constraints() -> None:
    for x, name in ((TensorType((2, 3), DType.bool), "found"), (TensorType(("found",), DType.bool), "found")):
        with pytest.raises(CompilerError, match=r"nonzero\.C"):
            tfir.trace(lambda t, name=name: positions(t, name), x)
