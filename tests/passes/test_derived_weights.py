"""Weights that are made of weights: one for each origin, whatever names a checkpoint uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.tensor import Tensor, as_tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.fold_weights import FoldWeights
from trustformers_ir.passes.manager import Pass, PassManager
from trustformers_ir.passes.merge_linears import MergeLinears
from trustformers_ir.passes.pack_weights import PackWeights
from trustformers_ir.passes.quantize_int8 import QuantizeInt8
from trustformers_ir.passes.weights import derived

RANDOM = np.random.default_rng(3)


def matrix(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def weight(name: str, *shape: int) -> Tensor:
    return as_tensor(Parameter(name, shape))


def traced(fn: Callable[..., object], weights: dict[str, np.ndarray], *specs: object) -> Module:
    return tfir.trace(fn, *specs, weights=weights)


def same_after(module: Module, *passes: Pass, inputs: tuple[np.ndarray, ...], exact: bool = True) -> Module:
    """The module after the passes, which must not change what it computes."""
    before = clone_module(module)
    PassManager(list(passes), verify=True).run(module)
    want, got = evaluate(before, *inputs), evaluate(module, *inputs)
    if exact:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, atol=0.3)
    return module


def test_a_checkpoint_that_uses_the_name_of_a_folded_weight() -> None:
    weights = {"w": matrix(20, 20), "w.transpose_1_0": matrix(20, 20)}
    module = traced(lambda x: (x @ weight("w", 20, 20).transpose(0, 1)) + x @ weight("w.transpose_1_0", 20, 20), weights, tfir.f32["n", 20])
    same_after(module, FoldWeights(), inputs=(matrix(3, 20),))


def test_weights_that_lie_side_by_side_are_one() -> None:
    weights = {name: matrix(6, 5) for name in ("a", "b")}

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = weight("a", 6, 5), weight("b", 6, 5)
        return x @ F.stack([a.transpose(0, 1), b.transpose(0, 1)]), x @ F.concat([b, a], 0).transpose(0, 1)

    module = traced(model, weights, tfir.f32["n", 5])
    before = clone_module(module)
    PassManager([FoldWeights()], verify=True).run(module)
    assert not any(o.op.mnemonic in ("concat", "transpose", "reshape") for o in module.walk())
    x = matrix(3, 5)
    for have, want in zip(evaluate(module, x), evaluate(before, x), strict=True):
        np.testing.assert_array_equal(have, want)


def test_a_checkpoint_that_uses_the_name_of_a_packed_weight() -> None:
    """Of the same shape as well, but not in panels."""
    weights = {"w": matrix(32, 20), "w.panels32": matrix(32, 20)}
    module = traced(lambda x: F.linear(x, weight("w", 32, 20)) + F.linear(x, weight("w.panels32", 32, 20)), weights, tfir.f32["n", 20])
    same_after(module, PackWeights(), inputs=(matrix(3, 20),))


def test_a_checkpoint_that_uses_the_name_of_merged_weights() -> None:
    weights = {"q": matrix(16, 16), "k": matrix(16, 16), "v": matrix(16, 16), "q+k+v": matrix(48, 16)}

    def attention(x: Tensor) -> object:
        q, k, v = (F.linear(x, weight(n, 16, 16)).reshape(1, -1, 2, 8).transpose(1, 2) for n in "qkv")
        return F.attention(q, k, v).transpose(1, 2).reshape(1, -1, 16) @ weight("q+k+v", 48, 16).transpose(0, 1)

    same_after(traced(attention, weights, tfir.f32[1, "s", 16]), MergeLinears(), inputs=(matrix(1, 5, 16),))


@pytest.mark.parametrize("taken", ["w.int8", "w.int8.scale", "w.int8.sum"])
def test_a_checkpoint_that_uses_a_name_of_an_8_bit_weight(taken: str) -> None:
    shape = (48, 48) if taken == "w.int8" else (48,)
    weights = {"w": matrix(48, 48), taken: matrix(*shape) * 100}
    module = traced(lambda x: F.linear(x, weight("w", 48, 48)) + weight(taken, *shape)[0], weights, tfir.f32["n", 48])
    same_after(module, QuantizeInt8(heads=True), inputs=(matrix(3, 48),), exact=False)


def test_one_weight_for_one_origin() -> None:
    """Two uses of a weight share what is made of it, also in a second run of the pass."""
    weights = {"w": matrix(32, 32)}
    module = traced(lambda x: F.linear(x, weight("w", 32, 32)) + F.tanh(F.linear(x + 1, weight("w", 32, 32))), weights, tfir.f32["n", 32])
    other = clone_module(module)
    for m in (module, other):
        same_after(m, QuantizeInt8(heads=True), PackWeights(), inputs=(matrix(3, 32),), exact=False)
        assert sorted(m.weights) == ["w", "w.int8", "w.int8.panels32x4", "w.int8.scale", "w.int8.sum"]


def test_names_are_free_ones() -> None:
    module = Module()
    source, foreign = Weight("w", tfir.f32[2], matrix(2)), Weight("w.half.2", tfir.f32[2], matrix(2))
    module.add_weight(source)
    module.add_weight(foreign)

    def half(kind: DType) -> Weight:
        return derived(module, "w.half", TensorType((2,), kind), lambda: (source.data / 2).astype(kind.numpy), ("half", source))

    first = half(DType.f32)
    assert first.name == "w.half" and half(DType.f32) is first
    second = half(DType.f16)
    assert second.name == "w.half.3" and half(DType.f16) is second
    other = derived(module, "w.half", tfir.f32[2], lambda: foreign.data / 2, ("half", foreign))
    assert other.name == "w.half.4"
    first.settle(np.asarray(first.data))
    assert first.origin is None  # what it was made of may go
