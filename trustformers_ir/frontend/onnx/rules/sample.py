"""Ops that read images at computed places: GridSample, RoiAlign, DeformConv."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from trustformers_ir.frontend.onnx.narrow import fixed
from trustformers_ir.frontend.onnx.node import Node, emit, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, SymExpr, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange, concat, einsum, where
from trustformers_ir.ir.tensor import Tensor, as_tensor


def _real(size: Dim, dtype: DType) -> Tensor:
    return as_tensor(size, DType.i64).to(dtype)


def pixels(x: Tensor, places: Sequence[Tensor], outside_zero: bool) -> Tensor:
    """``x[b, c, places…]`` for ``x[B, C, …]`` and whole places ``[B, P]`` (as floats); clamped, or zero outside of x. ``[B, C, P]``."""
    batch, channels, *sizes = x.shape
    flat: Tensor | None = None
    inside: Tensor | None = None
    for place, size in zip(places, sizes, strict=True):
        last = _real(size, place.dtype) - 1.0
        if outside_zero:
            here = (place >= 0.0) & (place <= last)
            inside = here if inside is None else inside & here
        at = place.maximum(0.0).minimum(last).to(DType.i64)
        flat = at if flat is None else flat * as_tensor(size, DType.i64) + at
    assert flat is not None
    count = flat.shape[1]
    index = flat.unsqueeze(1).expand(batch, channels, count)
    found = emit(x.reshape(batch, channels, product(sizes)), ops.GatherElements(2), index)
    return found if inside is None else where(inside.unsqueeze(1), found, fixed(0, x.dtype))


def linear(x: Tensor, places: Sequence[Tensor], outside_zero: bool) -> Tensor:
    """Multilinear interpolation at ``places`` ``[B, P]``."""
    lows = [p.floor() for p in places]
    total: Tensor | None = None
    for corner in itertools.product((0, 1), repeat=len(places)):
        weight: Tensor | None = None
        at: list[Tensor] = []
        for p, low, up in zip(places, lows, corner, strict=True):
            part = p - low if up else 1.0 - (p - low)
            weight = part if weight is None else weight * part
            at.append(low + 1.0 if up else low)
        assert weight is not None
        term = pixels(x, at, outside_zero) * weight.unsqueeze(1).to(x.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


@onnx_op("GridSample")
def _grid_sample(n: Node) -> Tensor:
    x, grid = n.t(0), n.t(1)
    dtype = x.dtype
    x = widened(x)
    grid = widened(grid).to(x.dtype if x.dtype.is_float else DType.f32)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(n.attr("mode", "linear"), n.attr("mode", "linear"))
    padding, align = n.attr("padding_mode", "zeros"), bool(n.attr("align_corners", 0))
    batch, channels, *sizes = x.shape
    rank = len(sizes)
    n.require(grid.ndim == rank + 2 and grid.shape[-1] == rank, f"a grid {grid.type} for {x.type}")
    places_shape = grid.shape[1:-1]
    points = grid.reshape(batch, product(places_shape), rank)
    places: list[Tensor] = []
    spans: list[tuple[Tensor, Tensor]] = []
    for axis, size in enumerate(sizes):
        g = points.select(2, rank - 1 - axis)
        length = _real(size, g.dtype)
        at = (g + 1.0) * 0.5 * (length - 1.0) if align else ((g + 1.0) * length - 1.0) * 0.5
        low, high = (fixed(0.0, g.dtype), length - 1.0) if align else (fixed(-0.5, g.dtype), length - 0.5)
        spans.append((low, high))
        if mode == "nearest":
            at = at.round()
        if padding == "border":
            at = at.maximum(0.0).minimum(length - 1.0) if mode != "cubic" else at
        elif padding == "reflection" and mode != "cubic":
            at = _reflected(at, low, high)
        places.append(at)
    zero = padding == "zeros"
    if mode == "nearest":
        y = pixels(x, places, zero)
    elif mode == "linear":
        y = linear(x, places, zero)
    elif mode == "cubic":
        y = _cubic(x, places, spans, padding)
    else:
        raise Refused(f"the mode {mode}", broken=True)
    return y.reshape(batch, channels, *places_shape).to(dtype)


def _reflected(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mirrored at both ends until it lies between them."""
    span = high - low
    safe = where(span == 0.0, span * 0.0 + 1.0, span)
    away = where(x < low, low - x, where(x > high, x - high, x * 0.0))
    times = (away / safe).trunc()
    rest = away - times * safe
    even = (times / 2.0).trunc() * 2.0 == times
    below = where(even, low + rest, high - rest)
    above = where(even, high - rest, low + rest)
    return where(x < low, below, where(x > high, above, x))


def _cubic(x: Tensor, places: list[Tensor], spans: list[tuple[Tensor, Tensor]], padding: str) -> Tensor:
    """Cubic convolution (Keys 1981, a = -0.75), of 4 elements along every axis."""
    a = -0.75
    lows = [p.floor() for p in places]
    weights: list[list[Tensor]] = []
    for p, low in zip(places, lows, strict=True):
        t = p - low
        row = []
        for k in range(-1, 3):
            d = (t - float(k)).abs()
            near = ((a + 2) * d - (a + 3)) * d * d + 1.0
            far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            row.append(where(d <= 1.0, near, far))
        weights.append(row)
    total: Tensor | None = None
    for corner in itertools.product(range(4), repeat=len(places)):
        weight: Tensor | None = None
        at: list[Tensor] = []
        for axis, k in enumerate(corner):
            weight = weights[axis][k] if weight is None else weight * weights[axis][k]
            place = lows[axis] + float(k - 1)
            at.append(_reflected(place, *spans[axis]) if padding == "reflection" else place)
        assert weight is not None
        term = pixels(x, at, padding == "zeros") * weight.unsqueeze(1)
        total = term if total is None else total + term
    assert total is not None
    return total


@onnx_op("RoiAlign")
def _roi_align(n: Node) -> Tensor:
    """Means (or maxima) of samples in the bins of regions (He et al. 2017)."""
    x, rois, batch_of = n.t(0), n.t(1), n.t(2)
    dtype = x.dtype
    x, rois = widened(x), widened(rois)
    height, width = int(n.attr("output_height", 1)), int(n.attr("output_width", 1))
    ratio, scale = int(n.attr("sampling_ratio", 0)), float(n.attr("spatial_scale", 1.0))
    half = n.version >= 16 and n.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    _, channels, rows, columns = n.sizes(x, 4)
    regions = rois.shape[0]
    shift = 0.5 if half else 0.0
    x1, y1, x2, y2 = (rois.select(1, i) * scale - shift for i in range(4))
    w, h = x2 - x1, y2 - y1
    if not half:
        w, h = w.maximum(1.0), h.maximum(1.0)
    if ratio > 0:
        most = (ratio, ratio)
        counts = [fixed(float(ratio), x.dtype).expand(regions)] * 2
    else:
        values = n.const(1).astype(np.float64) * scale
        sizes = [values[:, 3] - values[:, 1], values[:, 2] - values[:, 0]]
        if not half:
            sizes = [np.maximum(s, 1.0) for s in sizes]
        found = [np.maximum(np.ceil(s / k), 0 if half else 1) for s, k in zip(sizes, (height, width), strict=True)]
        most = tuple(max(1, int(f.max(initial=1))) for f in found)  # type: ignore[assignment]
        if max(most) > 1 << 10:
            raise Refused("regions of more than a thousand samples to a bin", "give a sampling_ratio")
        counts = [as_tensor(f.astype(x.dtype.numpy)) for f in found]

    def line(start: Tensor, length: Tensor, bins: int, samples: int, count: Tensor) -> tuple[Tensor, Tensor]:
        """Places ``[regions, bins * samples]`` and which of them count."""
        i = arange(bins).to(x.dtype).reshape(1, bins, 1)
        k = arange(samples).to(x.dtype).reshape(1, 1, samples)
        size = (length / float(bins)).reshape(-1, 1, 1)
        number = count.reshape(-1, 1, 1)
        at = start.reshape(-1, 1, 1) + i * size + (k + 0.5) * size / number.maximum(1.0)
        live = (k < number).expand(regions, bins, samples)
        return at.reshape(regions, bins * samples), live.reshape(regions, bins * samples)

    at_y, live_y = line(y1, h, height, most[0], counts[0])
    at_x, live_x = line(x1, w, width, most[1], counts[1])
    tall, wide = height * most[0], width * most[1]
    places_y = at_y.unsqueeze(2).expand(regions, tall, wide).reshape(regions, tall * wide)
    places_x = at_x.unsqueeze(1).expand(regions, tall, wide).reshape(regions, tall * wide)
    live = (live_y.unsqueeze(2) & live_x.unsqueeze(1)).reshape(regions, tall * wide)
    own = emit(x, ops.Gather(0), batch_of)
    is_max = n.attr("mode", "avg") == "max"
    terms = _bilinear_terms(own, places_y, places_x, rows, columns)
    bins = (regions, channels, height, most[0], width, most[1])
    if is_max:
        value = terms[0].maximum(terms[1]).maximum(terms[2]).maximum(terms[3])
        value = where(live.unsqueeze(1), value, fixed(-np.inf, x.dtype)).reshape(*bins)
        return value._emit(ops.ReduceMax((3, 5))).to(dtype)
    value = terms[0] + terms[1] + terms[2] + terms[3]
    value = where(live.unsqueeze(1), value, fixed(0.0, x.dtype)).reshape(*bins)
    total = value._emit(ops.ReduceSum((3, 5)))
    number = (counts[0] * counts[1]).maximum(1.0).reshape(-1, 1, 1, 1)
    return (total / number).to(dtype)


def _bilinear_terms(x: Tensor, y: Tensor, c: Tensor, rows: Dim, columns: Dim) -> list[Tensor]:
    """The four weighted neighbours; zero farther than 1 outside of x, clamped to its edge nearer."""
    outside: Tensor | None = None
    parts = []
    for p, size in ((y, rows), (c, columns)):
        length = _real(size, p.dtype)
        away = (p < -1.0) | (p > length)
        outside = away if outside is None else outside | away
        p = p.maximum(0.0)
        low = p.floor().minimum(length - 1.0)
        top = low >= length - 1.0
        p = where(top, low, p)
        parts.append((low, where(top, low, low + 1.0), p - low))
    assert outside is not None
    (y0, y1, ly), (x0, x1, lx) = parts
    out = []
    for a, wa in ((y0, 1.0 - ly), (y1, ly)):
        for b, wb in ((x0, 1.0 - lx), (x1, lx)):
            weight = where(outside, fixed(0.0, x.dtype), wa * wb)
            out.append(pixels(x, [a, b], False) * weight.unsqueeze(1))
    return out


@onnx_op("DeformConv")
def _deform_conv(n: Node) -> Tensor:
    """A convolution whose taps lie where offsets say (Dai et al. 2017; with a mask Zhu et al. 2018)."""
    x, weight, offset = n.t(0), n.t(1), n.t(2)
    dtype = x.dtype
    x, weight, offset = widened(x), widened(weight), widened(offset)
    if x.ndim != 4:
        raise Refused(f"a deformable convolution over {x.ndim - 2} axes", "two axes are compiled")
    groups, parts = int(n.attr("group", 1)), int(n.attr("offset_group", 1))
    batch, channels, _, _ = n.sizes(x, 4)
    outputs, per_group, kh, kw = n.sizes(weight, 4)
    if any(isinstance(d, SymExpr) for d in (channels, outputs, kh, kw)):
        raise Refused("symbolic channels of a deformable convolution")
    assert isinstance(channels, int) and isinstance(kh, int) and isinstance(kw, int) and isinstance(outputs, int) and isinstance(per_group, int)
    strides, dilations = n.ints("strides", [1, 1]), n.ints("dilations", [1, 1])
    pads = n.ints("pads", [0] * 4)
    assert strides is not None and dilations is not None and pads is not None
    _, _, oh, ow = n.sizes(offset, 4)
    taps = kh * kw
    moved = offset.reshape(batch, parts, taps, 2, oh, ow)
    own: list[Tensor] = []
    for p in range(parts):
        some = x.narrow(1, p * (channels // parts), channels // parts)
        places: list[Tensor] = []
        for axis, size in enumerate((oh, ow)):
            base = arange(size) * strides[axis] - pads[axis]
            base = base.reshape(-1, 1) if axis == 0 else base.reshape(1, -1)
            tap = np.arange(taps) // kw if axis == 0 else np.arange(taps) % kw
            grid = base.unsqueeze(0) + as_tensor(tap * dilations[axis]).reshape(taps, 1, 1)
            at = grid.to(x.dtype).unsqueeze(0) + moved.select(1, p).select(2, axis)
            places.append(at.reshape(batch, taps * oh * ow))
        value = linear(some, places, True).reshape(batch, channels // parts, taps, oh * ow)
        if n.has(4):
            mask = widened(n.t(4)).reshape(batch, parts, taps, oh * ow).select(1, p)
            value = value * mask.unsqueeze(1)
        own.append(value)
    samples = concat(own, 1).reshape(batch, groups, per_group, taps, oh * ow)
    kernel = weight.reshape(groups, outputs // groups, per_group, taps)
    y = einsum("bgctp,goct->bgop", samples, kernel).reshape(batch, outputs, oh, ow)
    if n.has(3):
        y = y + widened(n.t(3)).reshape(-1, 1, 1)
    return y.to(dtype)
