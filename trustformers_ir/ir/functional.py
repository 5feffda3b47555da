"""Free functions on symbolic tensors, with the names of numpy and torch. Model code reads ``F.softmax(scores, dim=-1)``.

Tensors may be given as parameters, numpy arrays or numbers wherever a tensor is taken. What is also a method is defined there
(:mod:`.tensor`); layers that the compiler knows as one op are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir import ops
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import Dim, SymExpr, floordiv
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.tensor import Ranked, Tensor, aligned, as_tensor
from trustformers_ir.ir.tracing import (
    as_dims,
    as_dtype,
    current_trace,
    default_dtype,
    static,
    trace_error,
    weak_scalar,
)

__all__ = [
    "Ranked",
    "Tensor",
    "arange",
    "attention",
    "cat",
    "concat",
    "concatenate",
    "conv1d",
    "conv2d",
    "dropout",
    "einsum",
    "elu",
    "embedding",
    "expert_matmul",
    "eye",
    "full",
    "full_like",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "make_complex",
    "matmul",
    "maximum",
    "minimum",
    "mish",
    "normalize",
    "one_hot",
    "ones",
    "ones_like",
    "outer",
    "packed_attention",
    "pad",
    "relu",
    "rms_norm",
    "rope",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "stack",
    "tanh",
    "tensor",
    "topk",
    "where",
    "zeros",
    "zeros_like",
]


# --- making tensors ----------------------------------------------------------------------------------------------------------------


def tensor(value: Any, dtype: Any = None) -> Tensor:
    """A number, nested list, array, dim or parameter as a tensor. Python floats are f32, ints i64."""
    wanted = None if dtype is None else as_dtype(dtype)
    if isinstance(value, (list, tuple)):
        array = np.asarray(value)
        value = array.astype(np.float32) if wanted is None and array.dtype == np.float64 else array
    return as_tensor(value, wanted)


def full(shape: Any, value: Any, dtype: Any = None) -> Tensor:
    """A tensor of one value."""
    scalar = value if isinstance(value, SymExpr) else weak_scalar(value)
    wanted = as_dtype(dtype) if dtype is not None else None if scalar is None else default_dtype(scalar)
    return as_tensor(value, wanted).expand(*as_dims(tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)))


def zeros(*shape: Any, dtype: Any = DType.f32) -> Tensor:
    return full(as_dims(shape), 0, dtype)


def ones(*shape: Any, dtype: Any = DType.f32) -> Tensor:
    return full(as_dims(shape), 1, dtype)


def full_like(x: Any, value: Any, dtype: Any = None) -> Tensor:
    x = as_tensor(x)
    return full(x.shape, value, dtype or x.dtype)


def zeros_like(x: Any, dtype: Any = None) -> Tensor:
    return full_like(x, 0, dtype)


def ones_like(x: Any, dtype: Any = None) -> Tensor:
    return full_like(x, 1, dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """``start, start + step, …`` below ``stop``; bounds are numbers or dims. Integers are i64, floats f32 unless a dtype is given."""
    start, stop = (0, start) if stop is None else (start, stop)
    if any(isinstance(b, (float, np.floating)) for b in (start, stop, step)):
        if any(isinstance(b, SymExpr) for b in (start, stop)):
            raise trace_error(Code.TRACE_UNSUPPORTED, "arange of floats with symbolic bounds", "arange(n) * step + start")
        return tensor(np.arange(start, stop, step), as_dtype(dtype or DType.f32))
    low, high = as_dims((start, stop))
    by = static(step, "the step")
    if by == 0:
        raise trace_error(Code.TRACE_UNSUPPORTED, "arange with step 0")
    size: Dim = floordiv(high - low + by - 1, by) if by > 0 else floordiv(low - high - by - 1, -by)
    size = max(size, 0) if isinstance(size, int) else size
    trace = current_trace()
    wanted = DType.i64 if dtype is None else as_dtype(dtype)
    x = Tensor(trace, trace.emit(ops.Iota(size, wanted)))
    x = x if by == 1 else x * by
    return x if not isinstance(low, SymExpr) and low == 0 else x + low


def eye(n: Any, dtype: Any = DType.f32) -> Tensor:
    """The identity matrix."""
    (size,) = as_dims((n,))
    return arange(size)._emit(ops.OneHot(size, as_dtype(dtype)))


def one_hot(ids: Any, num_classes: Any, dtype: Any = DType.i64) -> Tensor:
    """A row per id with a single 1; an id outside of ``0 .. num_classes - 1`` gives zeros."""
    (depth,) = as_dims((num_classes,))
    return as_tensor(ids)._emit(ops.OneHot(depth, as_dtype(dtype)))


def make_complex(real: Any, imag: Any) -> Tensor:
    """``real + i * imag``."""
    a, b = aligned(real, imag, floating=True)
    return a._emit(ops.MakeComplex(), b)


# --- joining -----------------------------------------------------------------------------------------------------------------------


def concat(tensors: Sequence[Any], dim: Any = 0, *, axis: Any = None) -> Tensor:
    """The tensors one after another along an axis, in the dtype in which they meet."""
    if not tensors:
        raise trace_error(Code.TRACE_UNSUPPORTED, "nothing to concatenate")
    xs = aligned(*tensors)
    at = xs[0]._axis(dim if axis is None else axis)
    return xs[0] if len(xs) == 1 else xs[0]._emit(ops.Concat(at), *xs[1:])


cat = concatenate = concat


def stack(tensors: Sequence[Any], dim: Any = 0, *, axis: Any = None) -> Tensor:
    """The tensors beside each other along a new axis."""
    if not tensors:
        raise trace_error(Code.TRACE_UNSUPPORTED, "nothing to stack")
    xs = aligned(*tensors)
    at = xs[0]._axis(dim if axis is None else axis, extra=1)
    return concat([x.unsqueeze(at) for x in xs], at)


def pad(x: Any, pad: Sequence[Any], mode: str = "constant", value: float = 0.0) -> Tensor:
    """torch's order: ``(before, after)`` of the last axis, then of the one before it, and so on.

    The modes are constant, reflect and replicate (or edge).
    """
    y = as_tensor(x)
    modes = {"constant": ops.PadMode.CONSTANT, "reflect": ops.PadMode.REFLECT, "replicate": ops.PadMode.EDGE, "edge": ops.PadMode.EDGE}
    widths = as_dims((tuple(pad),))
    if mode not in modes or len(widths) % 2 or len(widths) > 2 * y.ndim:
        help = "two sizes per axis, the last axis first; mode constant, reflect or replicate"
        raise trace_error(Code.TRACE_UNSUPPORTED, f"pad with mode={mode!r} and {len(widths)} sizes for rank {y.ndim}", help)
    zeros: tuple[Dim, ...] = (0,) * (y.ndim - len(widths) // 2)
    low, high = (*zeros, *widths[-2::-2]), (*zeros, *widths[::-2])
    return y._emit(ops.Pad(low, high, modes[mode], float(value)))


# --- choosing ----------------------------------------------------------------------------------------------------------------------


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """``a`` where the condition holds, ``b`` elsewhere."""
    x, y = aligned(a, b)
    return as_tensor(condition, DType.bool)._emit(ops.Select(), x, y)


def maximum(a: Any, b: Any) -> Tensor:
    x, y = aligned(a, b)
    return x.maximum(y)


def minimum(a: Any, b: Any) -> Tensor:
    x, y = aligned(a, b)
    return x.minimum(y)


def topk(x: Any, k: Any, dim: Any = -1, largest: bool = True) -> Ranked:
    return as_tensor(x).topk(k, dim, largest)


# --- activations -------------------------------------------------------------------------------------------------------------------


def relu(x: Any) -> Tensor:
    return as_tensor(x).relu()


def sigmoid(x: Any) -> Tensor:
    return as_tensor(x).sigmoid()


def tanh(x: Any) -> Tensor:
    return as_tensor(x).tanh()


def silu(x: Any) -> Tensor:
    return as_tensor(x).silu()


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """The exact GELU, or with ``approximate="tanh"`` the usual approximation."""
    return as_tensor(x).gelu(approximate)


def softplus(x: Any) -> Tensor:
    return as_tensor(x).apply(ops.Softplus())


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    return as_tensor(x).apply(ops.Elu(alpha))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    return as_tensor(x).apply(ops.LeakyRelu(negative_slope))


def hard_swish(x: Any) -> Tensor:
    return as_tensor(x).apply(ops.HardSwish())


def hard_sigmoid(x: Any) -> Tensor:
    return as_tensor(x).apply(ops.HardSigmoid())


def mish(x: Any) -> Tensor:
    return as_tensor(x).apply(ops.Mish())


def softmax(x: Any, dim: Any = -1) -> Tensor:
    return as_tensor(x).softmax(dim)


def log_softmax(x: Any, dim: Any = -1) -> Tensor:
    return as_tensor(x).log_softmax(dim)


def normalize(x: Any, dim: Any = -1, eps: float = 1e-12) -> Tensor:
    """Scaled to Euclidean length 1 along an axis."""
    y = as_tensor(x)
    return y / y.norm(2, dim, keepdim=True).clamp(min=eps)


def dropout(x: Any, p: float = 0.5) -> Tensor:
    """The identity, kept for export: nothing is dropped at inference."""
    return as_tensor(x).apply(ops.Dropout(p))


# --- products ----------------------------------------------------------------------------------------------------------------------


def matmul(a: Any, b: Any) -> Tensor:
    return as_tensor(a).matmul(b)


def outer(a: Any, b: Any) -> Tensor:
    return as_tensor(a).unsqueeze(1) * as_tensor(b).unsqueeze(0)


def einsum(equation: str, *tensors: Any) -> Tensor:
    """Einstein summation. Without ``->`` the output has the letters that occur once, in alphabetical order, after ``...``."""
    xs = aligned(*tensors)
    terms, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = terms.replace("...", "").replace(",", "")
        output = ("..." if "..." in terms else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return xs[0]._emit(ops.Einsum(f"{terms}->{output}"), *xs[1:])


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """``x @ weight.T + bias``; a weight is stored as ``[outputs, inputs]``."""
    return _layer(ops.Linear(), x, weight, bias)


def conv1d(x: Any, weight: Any, bias: Any = None, stride: int = 1, padding: Any = 0, dilation: int = 1, groups: int = 1) -> Tensor:
    """Cross-correlation over ``[batch, channels, length]``; padding is one number, or (before, after)."""
    before, after = _pair(padding)
    return _layer(ops.Conv1d(stride, (before, after), dilation, groups), x, weight, bias)


def conv2d(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Tensor:
    """Cross-correlation over ``[batch, channels, height, width]``; padding is one number or (vertical, horizontal)."""
    vertical, horizontal = _pair(padding)
    return _layer(ops.Conv2d(_pair(stride), (vertical, vertical, horizontal, horizontal), _pair(dilation), groups), x, weight, bias)


def _pair(value: Any) -> tuple[int, int]:
    a, b = value if isinstance(value, (tuple, list)) else (value, value)
    return (a, b)


# --- layers ------------------------------------------------------------------------------------------------------------------------


def embedding(ids: Any, weight: Any) -> Tensor:
    """Rows of a table (``weight[ids]``)."""
    return as_tensor(weight)._emit(ops.Embedding(), as_tensor(ids))


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 over the trailing axes that the weight has, then scaled and shifted (Ba et al. 2016)."""
    return _layer(ops.LayerNorm(eps), x, weight, bias)


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    """Mean square 1, then scaled by ``weight + offset`` (Zhang & Sennrich 2019)."""
    return _layer(ops.RmsNorm(eps, offset), x, weight)


def expert_matmul(x: Any, weight: Any, experts: Any) -> Tensor:
    """``x[…, K]`` by the matrix of ``weight[E, K, N]`` that ``experts[…]`` says for each row; leading axes of x broadcast to those of ``experts``."""
    y, w = aligned(x, weight, floating=True)
    return y._emit(ops.ExpertMatMul(), w, as_tensor(experts))


def rope(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of ``[…, length, features]`` by angles ``[…, length, features / 2]``."""
    return _layer(ops.Rope(interleaved), x, cos, sin)


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    bias: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) over ``[batch, heads, length, features]``, queries grouped over fewer key heads.

    ``mask`` is true where a key may be seen, ``bias`` is added to the scaled scores; both broadcast to ``[batch, heads, queries, keys]``.
    """
    q, k, v = aligned(q, k, v)
    mask = None if mask is None else as_tensor(mask, DType.bool)
    bias = None if bias is None else as_tensor(bias, q.dtype)
    return q._emit(ops.Attention(causal, scale, window, softcap), k, v, mask, bias)  # type: ignore[no-any-return]


def cached_attention(
    q: Any,
    k: Any,
    v: Any,
    start: Any,
    mask: Any = None,
    bias: Any = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal ``attention`` of new tokens to a cache: k and v are ``[batch, heads, places, features]``, with what was written for these tokens and
    those before, and ``start[batch]`` is the place of the first query of each sequence."""
    q, k, v = aligned(q, k, v)
    mask = None if mask is None else as_tensor(mask, DType.bool)
    bias = None if bias is None else as_tensor(bias, q.dtype)
    op = ops.CachedAttention(True, scale, window, softcap)
    return q._emit(op, k, v, mask, bias, as_tensor(start))  # type: ignore[no-any-return]


def cache_write(cache: Any, rows: Any, start: Any) -> Tensor:
    """``cache[batch, heads, places, features]`` with ``rows[batch, heads, length, features]`` at the places from ``start[batch]`` on."""
    cache = as_tensor(cache)
    return cache._emit(ops.CacheWrite(), as_tensor(rows, cache.dtype), as_tensor(start))  # type: ignore[no-any-return]


def paged_write(pool: Any, rows: Any, start: Any, pages: Any) -> Tensor:
    """``pool[pages, heads, places, features]`` with ``rows[batch, heads, length, features]`` at the places from ``start[batch]`` on of the pages that
    ``pages[batch, table]`` names."""
    pool = as_tensor(pool)
    return pool._emit(ops.PagedWrite(), as_tensor(rows, pool.dtype), as_tensor(start), as_tensor(pages))  # type: ignore[no-any-return]


def paged_read(pool: Any, pages: Any) -> Tensor:
    """The pages of each sequence of a batch behind each other, ``[batch, heads, table * places, features]``."""
    return as_tensor(pool)._emit(ops.PagedRead(), as_tensor(pages))


def quantize_groups(x: Any, group: int) -> tuple[Tensor, Tensor]:
    """8-bit codes of each ``group`` of the last axis of ``x``, ``i8`` of its shape, and their scales, ``f32[…, columns / group]``."""
    x = as_tensor(x, DType.f32)
    codes, scale, *_ = x.trace.emit_all(ops.QuantizeGroups(group), x.value).results
    return Tensor(x.trace, codes), Tensor(x.trace, scale)


def dequantize_groups(q: Any, scale: Any, group: int) -> Tensor:
    """The numbers in f32 behind 8-bit codes in groups."""
    return as_tensor(q)._emit(ops.DequantizeGroups(group), as_tensor(scale))


def packed_attention(
    q: Any,
    k: Any,
    v: Any,
    q_starts: Any,
    k_starts: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``attention`` of sequences of any lengths in ``[tokens, heads, features]``, one behind the other.

    ``q_starts[n]`` is the first query of sequence n, ``k_starts[n]`` its first key; one more stands behind the last. Without ``k_starts`` they
    are the same.
    """
    q, k, v = aligned(q, k, v)
    starts = as_tensor(q_starts)
    others = starts if k_starts is None else as_tensor(k_starts, starts.dtype)
    return q._emit(ops.PackedAttention(causal, scale, window, softcap), k, v, starts, others)  # type: ignore[no-any-return]


def _layer(op: Op, x: Any, *parameters: Any) -> Tensor:
    """An op whose operands meet in one dtype; absent ones stay absent."""
    given = [p for p in parameters if p is not None]
    present = iter(aligned(x, *given))
    first = next(present)
    return first._emit(op, *(None if p is None else next(present) for p in parameters))
