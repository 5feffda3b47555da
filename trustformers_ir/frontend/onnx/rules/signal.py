"""Fourier transforms and the filters of mel spectra."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trustformers_ir.frontend.onnx.node import Node, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Item, Refused
from trustformers_ir.ir import windows
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import concat, pad, stack
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.tensor import Tensor, as_tensor

MOST = 1 << 11  # the largest prime factor: the matrix of its transform has the square


def _radices(points: int) -> list[int]:
    """The factors of a transform, few and small ones: 8 and 4, a 2 in front, then odd primes."""
    out: list[int] = []
    rest = points
    for factor in (8, 4):
        while rest % factor == 0:
            out.append(factor)
            rest //= factor
    if rest % 2 == 0:
        out.insert(0, 2)
        rest //= 2
    factor = 3
    while rest > 1:
        while rest % factor == 0:
            out.append(factor)
            rest //= factor
        factor += 2
        if rest > 1 and factor > MOST:
            raise Refused(f"a Fourier transform of {points} points", f"their largest prime factor may be {MOST}")
    return out


def _turns(rows: int, columns: int, points: int, inverse: bool, dtype: DType) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of ``exp(-2 pi i j k / points)``, ``[rows, columns]``; of the inverse with the other sign."""
    angle = 2 * np.pi * ((np.arange(rows)[:, None] * np.arange(columns)[None]) % points) / points
    sine = np.sin(angle) * (1 if inverse else -1)
    return as_tensor(np.cos(angle).astype(dtype.numpy)), as_tensor(sine.astype(dtype.numpy))


def _complex(a: Tensor, b: Tensor | None, c: Tensor, s: Tensor, f: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """``(a + ib) (c + is)`` by a product ``f``; b may be zero."""
    if b is None:
        return f(a, c), f(a, s)
    return f(a, c) - f(b, s), f(a, s) + f(b, c)


def _fourier(re: Tensor, im: Tensor | None, points: int, radices: list[int], inverse: bool) -> tuple[Tensor, Tensor]:
    """Mixed-radix transform along the last axis, decimation in frequency (Cooley & Tukey 1965; Gentleman & Sande 1966).

    With ``points = r * m``, ``j = m j1 + j2`` and ``k = k1 + r k2``: transforms of length r over j1, a turn by ``j2 k1 / points``, then transforms of
    length m over j2.
    """
    if not radices:
        return re, re * 0.0 if im is None else im
    r, m = radices[0], points // radices[0]
    *lead, _ = re.shape

    def split(t: Tensor) -> Tensor:
        return t.reshape(*lead, r, m).transpose(-1, -2)

    a, b = _complex(split(re), None if im is None else split(im), *_turns(r, r, r, inverse, re.dtype), Tensor.matmul)
    if m > 1:
        a, b = _complex(a, b, *_turns(m, r, points, inverse, re.dtype), Tensor.mul)
    a, b = _fourier(a.transpose(-1, -2), b.transpose(-1, -2), m, radices[1:], inverse)
    return a.transpose(-1, -2).reshape(*lead, points), b.transpose(-1, -2).reshape(*lead, points)


def transform(n: Node, real: Tensor, imaginary: Tensor | None, points: int, kept: int, inverse: bool) -> Tensor:
    """Along the last axis, which has ``points`` elements: ``[…, kept, 2]``."""
    n.require(points >= 1, f"{points} points")
    radices = _radices(points)
    n.reader.budget.makes(sum(r * r for r in radices) + 2.5 * points, f"a Fourier transform of {points} points")
    if imaginary is None:  # halves last: of real numbers the middle element is then as real as it should be
        radices.reverse()
    a, b = _fourier(real, imaginary, points, radices, inverse)
    if inverse:
        a, b = a * (1.0 / points), b * (1.0 / points)
    return stack([a.narrow(-1, 0, kept), b.narrow(-1, 0, kept)], -1)


def _fitted(n: Node, x: Tensor, points: int) -> Tensor:
    """The last axis cut, or filled with zeros."""
    if n.whole(x.shape[-1], "the size of the axis that is transformed") >= points:
        return x.narrow(-1, 0, points)
    return pad(x, (0, points - n.whole(x.shape[-1], "the size of the axis")))


@onnx_op("DFT")
def _dft(n: Node) -> Tensor:
    x = n.t(0)
    dtype = x.dtype
    x = widened(x)
    rank = x.ndim
    axis = n.place(n.scalar(2, -2) if n.version >= 20 else n.attr("axis", 1), rank)
    n.require(axis != rank - 1, "the last axis holds real and imaginary parts")
    inverse, half = bool(n.attr("inverse", 0)), bool(n.attr("onesided", 0))
    parts = x.shape[-1]
    length = n.scalar(1, None)
    if length is None:
        size = n.whole(x.shape[axis], "the size of the axis that is transformed")
        length = 2 * (size - 1) if inverse and half else size
    points = int(length)
    n.require(points >= 1, f"{points} points")
    moved = x.movedim(axis, -2)
    real = _fitted(n, moved.select(-1, 0), points if not (inverse and half) else points // 2 + 1)
    imaginary = _fitted(n, moved.select(-1, 1), points if not (inverse and half) else points // 2 + 1) if parts == 2 else None
    if inverse and half:  # the other half is the mirror image, conjugated; the result is real
        n.require(imaginary is not None, "the inverse of one side takes complex numbers")
        assert imaginary is not None
        more = points - (points // 2 + 1)
        if more:
            real = concat([real, real.narrow(-1, 1, more).flip(-1)], -1)
            imaginary = concat([imaginary, -imaginary.narrow(-1, 1, more).flip(-1)], -1)
        return transform(n, real, imaginary, points, points, True).narrow(-1, 0, 1).movedim(-2, axis).to(dtype)
    kept = points // 2 + 1 if half else points
    return transform(n, real, imaginary, points, kept, inverse).movedim(-2, axis).to(dtype)


@onnx_op("STFT")
def _stft(n: Node) -> Tensor:
    x = n.t(0)
    dtype = x.dtype
    x = widened(x)
    step = int(n.scalar(1))
    window = widened(n.t(2)) if n.has(2) else None
    length = n.scalar(3, None)
    if length is None:
        n.require(window is not None, "there is neither a window nor a frame length")
        assert window is not None
        length = window.shape[0]
    points = n.whole(length, "the length of the window")
    half = bool(n.attr("onesided", 1))
    parts = [x] if x.ndim == 2 else [x.select(-1, i) for i in range(int(x.shape[-1]))]  # type: ignore[arg-type]
    frames = [windows.unfold(p, [Window(points, step)]) for p in parts]
    if window is not None:
        frames = [f * window.to(f.dtype) for f in frames]
    return transform(n, frames[0], frames[1] if len(frames) > 1 else None, points, points // 2 + 1 if half else points, False).to(dtype)


@onnx_op("MelWeightMatrix")
def _mel(n: Node) -> Item:
    """Triangular filters of equal width on the mel scale; made while the model is read."""
    bins, points, rate = int(n.scalar(0)), int(n.scalar(1)), int(n.scalar(2))
    low, high = float(n.scalar(3)), float(n.scalar(4))
    element = n.element_attr("output_datatype", 1)
    n.require(0 < bins <= 1 << 12 and 0 < points <= 1 << 20 and rate > 0, "impossible sizes")
    n.require(-700 < low <= high <= 1e12, f"the frequencies {low} .. {high}")
    spectrum = points // 2 + 1
    n.reader.budget.makes(spectrum * bins, "the filters")
    edges = np.arange(bins + 2, dtype=np.float64)
    lowest, highest = 2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700)
    step = (highest - lowest) / len(edges)
    hertz = 700 * (10 ** ((edges * step + lowest) / 2595) - 1)
    places = ((points + 1) * hertz // rate).astype(np.int64)
    out = np.zeros((spectrum, bins))
    for i in range(bins):
        left, centre, right = places[i : i + 3]
        if centre == left:
            out[centre : centre + 1, i] = 1
        else:
            at = np.arange(left, min(centre + 1, spectrum))
            out[at, i] = (at - left) / (centre - left)
        if right > centre:
            at = np.arange(centre, min(right, spectrum))
            out[at, i] = (right - at) / (right - centre)
    return Item.array(out.astype(element.dtype.numpy), element)
