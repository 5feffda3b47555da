"""Pooling and what undoes it."""

from __future__ import annotations

from math import prod

import numpy as np

from trustformers_ir.frontend.onnx.node import Node, emit, number, onnx_op, widened
from trustformers_ir.frontend.onnx.rules.contract import window_of
from trustformers_ir.ir import ops, windows
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.tensor import Tensor, as_tensor


def _windows(n: Node, x: Tensor) -> list[Window]:
    sizes = n.ints("kernel_shape")
    n.require(sizes is not None and x.ndim == len(sizes) + 2, f"a window {sizes} over {x.type}")
    assert sizes is not None
    return window_of(n, sizes, x.shape[2:])


@onnx_op("MaxPool", keeps=True)
def _max_pool(n: Node) -> list[Tensor]:
    x = n.t(0)
    w = tuple(_windows(n, x))
    w = windows.with_ceiling(x, w) if n.attr("ceil_mode", 0) else w
    if not n.output_used(1):
        return [windows.max_pool(x, w)]
    found = windows.max_pool_places(x, w)
    sizes = list(x.shape[2:])
    order = list(range(len(sizes)))
    if n.attr("storage_order", 0):
        order.reverse()
    flat: Tensor | None = None
    for i in order:
        flat = found.places[i] if flat is None else flat * as_tensor(sizes[i], DType.i64) + found.places[i]
    assert flat is not None
    planes = arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *(1,) * len(sizes))
    return [found.values, flat + planes * as_tensor(product(sizes), DType.i64)]


@onnx_op("AveragePool")
def _average_pool(n: Node) -> Tensor:
    x = n.t(0)
    return windows.avg_pool(x, _windows(n, x), bool(n.attr("count_include_pad", 0)), bool(n.attr("ceil_mode", 0)))


@onnx_op("LpPool")
def _lp_pool(n: Node) -> Tensor:
    x = n.t(0)
    w = tuple(_windows(n, x))
    w = windows.with_ceiling(x, w) if n.attr("ceil_mode", 0) else w
    return windows.lp_pool(x, w, float(n.attr("p", 2)))


@onnx_op("GlobalAveragePool")
def _global_average(n: Node) -> Tensor:
    x = n.t(0)
    return emit(x, ops.ReduceMean(tuple(range(2, x.ndim)), True))


@onnx_op("GlobalMaxPool")
def _global_max(n: Node) -> Tensor:
    x = n.t(0)
    return emit(x, ops.ReduceMax(tuple(range(2, x.ndim)), True))


@onnx_op("GlobalLpPool")
def _global_lp(n: Node) -> Tensor:
    x, p = n.t(0), float(n.attr("p", 2))
    axes = tuple(range(2, x.ndim))
    return emit(widened(x).abs() ** p, ops.ReduceSum(axes, True)).pow(1.0 / p).to(x.dtype)


@onnx_op("MaxUnpool")
def _max_unpool(n: Node) -> Tensor:
    x, at = n.t(0), n.t(1)
    sizes = n.ints("kernel_shape")
    n.require(sizes is not None and len(sizes) == x.ndim - 2, f"a window {sizes} over {x.type}")
    assert sizes is not None
    strides, pads = n.ints("strides", [1] * len(sizes)), n.ints("pads", [0] * (2 * len(sizes)))
    assert strides is not None and pads is not None
    rank = len(sizes)
    inferred: list[Dim] = [(d - 1) * strides[i] - pads[i] - pads[rank + i] + sizes[i] for i, d in enumerate(x.shape[2:])]
    whole: list[Dim] = [*x.shape[:2], *inferred]
    target = n.dims(2) if n.has(2) else whole
    flat = number(0, x).expand(product(whole))._emit(ops.ScatterElements(0), at.flatten(), x.flatten()).reshape(*whole)
    if list(target) == whole:
        return flat
    # indices count in the output as it is inferred; a larger one that is asked for has zeros behind
    high = tuple(b - a for a, b in zip(whole, target, strict=True))
    return emit(flat, ops.Pad((0,) * x.ndim, high))


@onnx_op("LRN")
def _lrn(n: Node) -> Tensor:
    """Local response normalization over neighbouring channels (Krizhevsky et al. 2012)."""
    x = widened(n.t(0))
    size = int(n.attr("size"))
    n.require(size >= 1, f"the size {size}")
    alpha, beta, bias = float(n.attr("alpha", 1e-4)), float(n.attr("beta", 0.75)), float(n.attr("bias", 1.0))
    square = (x * x).movedim(1, -1)
    total = windows.sum_pool(square, [Window(size, 1, (size - 1) // 2, size - 1 - (size - 1) // 2)]).movedim(-1, 1)
    return (x / (total * (alpha / size) + bias) ** beta).to(n.t(0).dtype)


@onnx_op("Col2Im")
def _col2im(n: Node) -> Tensor:
    """The transpose of taking blocks: blocks are added up where they lie."""
    x = n.t(0)
    image = n.wholes(1)
    block = n.wholes(2)
    rank = len(image)
    strides, dilations = n.ints("strides", [1] * rank), n.ints("dilations", [1] * rank)
    pads = n.ints("pads", [0] * (2 * rank))
    assert strides is not None and dilations is not None and pads is not None
    n.require(len(block) == rank and x.ndim == 3, f"blocks {block} of an image {image} from {x.type}")
    w = [Window(block[i], strides[i], pads[i], pads[rank + i], dilations[i]) for i in range(rank)]
    places = [int(v.places(d)) for v, d in zip(w, image, strict=True)]  # type: ignore[arg-type]
    batch, rows, _ = n.sizes(x, 3)
    taps = prod(block)
    n.require(taps > 0, f"blocks {block}")
    channels = n.whole(rows, "the number of channels") // taps
    # where each element of a block lies in the padded image; the sum is a scatter along the flat image
    padded = [d + v.before + v.after for v, d in zip(w, image, strict=True)]
    n.require(min(places) >= 0, f"blocks {block} of an image {image}")
    n.reader.budget.makes(prod(block) * prod(places), f"an image {image} of blocks {block}")
    at = np.zeros((*block, *places), np.int64)
    for i in range(rank):
        line = np.arange(block[i])[:, None] * dilations[i] + np.arange(places[i])[None] * strides[i]
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = block[i], places[i]
        at = at * padded[i] + line.reshape(shape)
    where = as_tensor(at.reshape(1, 1, -1)).expand(batch, channels, at.size)
    zero = number(0, x).expand(batch, channels, prod(padded))
    y = zero._emit(ops.ScatterElements(2, ops.ScatterReduce.ADD), where, x.reshape(batch, channels, at.size))
    y = y.reshape(batch, channels, *padded)
    for i, v in enumerate(w):
        y = y.narrow(2 + i, v.before, image[i])
    return y

