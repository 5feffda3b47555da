"""Two products of one activation in one kernel: the bits of two kernels, whatever the rows, columns, dtypes, threads and machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.passes import pipelines

TERMS = 330
ROWS = (1, 5, 8, 9, 70)
GATES = {"silu": F.silu, "relu": F.relu, "linear": lambda x: x}


def network(columns: int, gate: str, bias: bool) -> Module:
    random = np.random.default_rng(0)
    w, v, b, c = (random.standard_normal(shape).astype(np.float32) for shape in ((columns, TERMS),) * 2 + ((columns,),) * 2)

    def gated(x: Any) -> Any:
        return GATES[gate](F.linear(x, w, b if bias else None)) * F.linear(x, v, c if bias else None)

    return tfir.trace(gated, tfir.f32["n", TERMS])


def inputs() -> list[np.ndarray]:
    return [np.random.default_rng(n).standard_normal((n, TERMS)).astype(np.float32) for n in ROWS]


def results(module: Module, kernels: int, **how: Any) -> list[np.ndarray]:
    exe = tfir.compile(module, **how)
    assert len(exe.manifest.entries[0].kernels) == kernels
    return [exe(x) for x in inputs()]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("columns", "bias"), [(96, False), (100, True), (17, True), (1, False)])
def test_one_kernel_has_the_bits_of_two(gate: str, columns: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network(columns, gate, bias)
    together = results(module, 1)
    for x, y in zip(inputs(), together, strict=True):
        want = evaluate(module, x)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))
    monkeypatch.setattr(pipelines, "TWIN_BYTES", 0)
    for one, two in zip(together, results(module, 2), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("recipe", [None, "bf16", "f16"])
def test_every_machine_and_number_of_threads_gives_the_same_bits(recipe: str | None) -> None:
    module = network(100, "silu", True)
    first = results(module, 1, threads=1, quantize=recipe)
    for how in ({"threads": 3}, {"threads": 2, "target": "cpu:avx2"}, {"threads": 2, "target": "cpu:avx2,cpu:avx512"}):
        for a, b in zip(first, results(module, 1, quantize=recipe, **how), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_view_of_the_result_costs_nothing() -> None:
    random = np.random.default_rng(0)
    w, v = (random.standard_normal((96, TERMS)).astype(np.float32) for _ in range(2))

    def heads(x: Any) -> Any:
        y = F.silu(F.linear(x, w)) * F.linear(x, v)
        return y.reshape(x.shape[0], x.shape[1], 4, 24).transpose(1, 2)

    module = tfir.trace(heads, tfir.f32["b", "s", TERMS])
    exe = tfir.compile(module)
    assert len(exe.manifest.entries[0].kernels) == 1
    x = random.standard_normal((2, 11, TERMS)).astype(np.float32)
    np.testing.assert_allclose(exe(x), evaluate(module, x), rtol=1e-5, atol=1e-2)


def test_bytes_stay_apart() -> None:
    """Codes of the activation, and two products of them."""
    exe = tfir.compile(network(96, "silu", True), quantize="int8{heads=true}")
    assert sum("linear_int8" in k.label for k in exe.manifest.entries[0].kernels) == 2
