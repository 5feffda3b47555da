"""Pooling and transposed convolutions next to torch, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import ops, windows
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.types import TensorType

torch = pytest.importorskip("torch")
F: Any = torch.nn.functional
CASES = [(*moves, dilation, ceil) for moves in ((3, 2, 1), (2, 3, 0), (3, 1, 1), (2, 2, 1)) for dilation in (1, 2) for ceil in (False, True)]


def data(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(7).standard_normal(shape).astype(np.float32))


def moved(x: Any, w: Window, rank: int, ceil: bool) -> tuple[Window, ...]:
    return windows.with_ceiling(x, (w,) * rank) if ceil else (w,) * rank


@pytest.mark.parametrize(("kernel", "stride", "pad", "dilation", "ceil"), CASES)
def test_max_pool(kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> None:
    x = data(2, 3, 9, 10)
    w = Window(kernel, stride, pad, pad, dilation)
    wanted, index = F.max_pool2d(x, kernel, stride, pad, dilation, ceil, return_indices=True)

    def pool(t: Any) -> Any:
        found = windows.max_pool_places(t, moved(t, w, 2, ceil))
        return found.values, found.places[0] * 10 + found.places[1], windows.max_pool(t, moved(t, w, 2, ceil))

    values, places, again = tfir.compile(pool, TensorType((2, 3, 9, 10), DType.f32))(x.numpy())
    np.testing.assert_array_equal(values, wanted.numpy())
    np.testing.assert_array_equal(again, wanted.numpy())
    np.testing.assert_array_equal(places, index.numpy())


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), [(3, 2, 1, False), (3, 2, 1, True), (2, 3, 0, True), (3, 3, 1, True)])
def test_avg_pool_of_symbolic_sizes(kernel: int, stride: int, pad: int, ceil: bool, include: bool) -> None:
    w = (Window(kernel, stride, pad, pad),) * 2
    shape: tuple[Any, ...] = ("b", 3, 9, 10) if stride > kernel - 1 else ("b", 3, "h", "w")
    facts = {"h": (3, 99), "w": (3, 99)} if "h" in shape else {}
    module = tfir.trace(lambda t: windows.avg_pool(t, w, include, ceil), TensorType(shape, DType.f32), facts=facts)
    exe = tfir.compile(module)
    for batch in (1, 2):
        x = data(batch, 3, 9, 10)
        np.testing.assert_allclose(exe(x.numpy()), F.avg_pool2d(x, kernel, stride, pad, ceil, include).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("stride", "pad", "extra", "dilation", "groups"), [(1, 0, 0, 1, 1), (2, 1, 1, 1, 2), (3, 2, 1, 2, 1), (2, 3, 0, 1, 1)])
def test_conv_transpose(rank: int, stride: int, pad: int, extra: int, dilation: int, groups: int) -> None:
    x, weight, bias = data(2, 4, *(5, 4, 6)[:rank]), data(4, 3, *(3, 2, 3)[:rank]), data(3 * groups)
    wanted = getattr(F, f"conv_transpose{rank}d")(x, weight, bias, stride, pad, extra, groups, dilation)
    w = [Window(n, stride, pad, pad, dilation) for n in weight.shape[2:]]
    exe = tfir.compile(lambda *t: windows.conv_transpose(*t, w, groups, [extra] * rank), (x.numpy(), weight.numpy(), bias.numpy()))
    np.testing.assert_allclose(exe(x.numpy(), weight.numpy(), bias.numpy()), wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_lp_pool() -> None:
    x = data(2, 3, 8)
    exe = tfir.compile(lambda t: windows.lp_pool(t, [Window(3, 2)], 3.0), x.numpy())
    np.testing.assert_allclose(exe(x.numpy()), F.lp_pool1d(x.abs(), 3, 3, 2).numpy(), rtol=1e-5)


def test_sorting_an_axis_of_any_size() -> None:
    exe = tfir.compile(lambda t: tuple(t.sort(-1)), TensorType(("b", "n"), DType.f32))
    for n in (1, 5, 33):
        x = data(3, n)
        values, order = exe(x.numpy())
        np.testing.assert_array_equal(values, np.sort(x.numpy()))
        np.testing.assert_array_equal(order, np.argsort(x.numpy(), kind="stable"))


def test_bitcast_is_what_numpy_views() -> None:
    x = np.array([1.0, -0.0, np.inf, 3.5], np.float32)
    (bits,) = evaluate_operation(ops.BitCast(DType.u32), (x,), (DType.u32[4],))
    np.testing.assert_array_equal(bits, x.view(np.uint32))
