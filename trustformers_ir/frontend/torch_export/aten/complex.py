"""Complex numbers, and Fourier transforms as products with the matrix of the transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.aten.reduce import parts
from trustformers_ir.frontend.torch_export.registry import Call, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor


@aten("real")
def real(c: Call, x: Tensor) -> Tensor:
    return x.apply(ops.Real()) if x.dtype.is_complex else x


@aten("imag")
def imag(c: Call, x: Tensor) -> Tensor:
    return x.apply(ops.Imag())


@aten("view_as_real", "view_as_real_copy")
def view_as_real(c: Call, x: Tensor) -> Tensor:
    return F.stack(list(parts(x)), -1)


@aten("view_as_complex", "view_as_complex_copy")
def view_as_complex(c: Call, x: Tensor) -> Tensor:
    return F.make_complex(x.select(-1, 0), x.select(-1, 1))


@aten("complex")
def make(c: Call, re: Tensor, im: Tensor) -> Tensor:
    return F.make_complex(re, im)


@aten("polar")
def polar(c: Call, size: Tensor, angle: Tensor) -> Tensor:
    return F.make_complex(size * angle.cos(), size * angle.sin())


@aten("conj", "_conj", "_conj_copy", "conj_physical", "_conj_physical")
def conj(c: Call, x: Tensor) -> Tensor:
    return x.conj() if x.dtype.is_complex else x


@aten("angle")
def angle(c: Call, x: Tensor) -> Tensor:
    if x.dtype.is_complex:
        return parts(x)[1].atan2(parts(x)[0])
    y = x.to(c.dtype)
    return F.where(y.isnan(), y, F.where(y.lt(constant(c, 0, y.dtype)), constant(c, math.pi, y.dtype), constant(c, 0, y.dtype)))


def _parts(x: Tensor) -> tuple[Tensor, Tensor | None]:
    return parts(x) if x.dtype.is_complex else (x, None)


def _waves(n: Dim, count: Dim, sign: int, dtype: DType) -> tuple[Tensor, Tensor]:
    """cos and sin of ``sign * 2 pi j k / n``, ``[n, count]``. j k is taken modulo n first: the angles stay small and exact."""
    turns = (F.arange(n).unsqueeze(1) * F.arange(count).unsqueeze(0)) % n
    angles = turns.to(DType.f64) * (sign * 2 * math.pi) / F.tensor(n).to(DType.f64)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _transformed(re: Tensor, im: Tensor | None, axis: int, count: Dim, sign: int) -> tuple[Tensor, Tensor]:
    """The discrete Fourier transform along one axis; its first ``count`` frequencies."""
    cos, sin = _waves(re.shape[axis], count, sign, re.dtype)
    a = re.movedim(axis, -1)
    real, imaginary = a.matmul(cos), a.matmul(sin)
    if im is not None:
        b = im.movedim(axis, -1)
        real, imaginary = real - b.matmul(sin), imaginary + b.matmul(cos)
    return real.movedim(-1, axis), imaginary.movedim(-1, axis)


def _scale(x: Tensor, dims: Sequence[int], normalization: int, sizes: Sequence[Dim] | None = None) -> Tensor | None:
    """The factor of pocketfft's normalisations: 0 none, 1 by the root, 2 by the number of elements."""
    if normalization == 0:
        return None
    n = F.tensor(product(list(sizes or [x.shape[d] for d in dims]))).to(x.dtype)
    return n.rsqrt() if normalization == 1 else n.reciprocal()


@aten("_fft_c2c")
def fft_c2c(c: Call, x: Tensor, dim: Sequence[int], normalization: int, forward: bool) -> Tensor:
    re, im = _parts(x)
    scale = _scale(re, dim, normalization)
    i: Tensor | None = im
    for d in dim:
        re, i = _transformed(re, i, d % x.ndim, x.shape[d % x.ndim], -1 if forward else 1)
    assert i is not None
    return F.make_complex(re, i) if scale is None else F.make_complex(re * scale, i * scale)


@aten("_fft_r2c")
def fft_r2c(c: Call, x: Tensor, dim: Sequence[int], normalization: int, onesided: bool) -> Tensor:
    scale = _scale(x, dim, normalization)
    *others, last = [d % x.ndim for d in dim]
    re, im = _transformed(x, None, last, c.shape[last], -1)
    for d in others:
        re, im = _transformed(re, im, d, x.shape[d], -1)
    return F.make_complex(re, im) if scale is None else F.make_complex(re * scale, im * scale)


@aten("_fft_c2r")
def fft_c2r(c: Call, x: Tensor, dim: Sequence[int], normalization: int, last_dim_size: Any) -> Tensor:
    """Of a spectrum of which the upper half is left out because it mirrors the lower."""
    *others, last = [d % x.ndim for d in dim]
    re, im = parts(x)
    sizes = [*(x.shape[d] for d in others), last_dim_size]
    scale = _scale(re, dim, normalization, sizes)
    for d in others:
        re, im = _transformed(re, im, d, x.shape[d], 1)
    n, half = last_dim_size, x.shape[last]
    k = F.arange(half)
    turns = (k.unsqueeze(1) * F.arange(n).unsqueeze(0)) % n
    angles = turns.to(DType.f64) * (2 * math.pi) / F.tensor(n).to(DType.f64)
    twice = F.where(k.eq(0).logical_or((k * 2).eq(n)), 1.0, 2.0).to(DType.f64).unsqueeze(1)
    cos, sin = (angles.cos() * twice).to(re.dtype), (angles.sin() * twice).to(re.dtype)
    out = (re.movedim(last, -1).matmul(cos) - im.movedim(last, -1).matmul(sin)).movedim(-1, last)
    return out if scale is None else out * scale

