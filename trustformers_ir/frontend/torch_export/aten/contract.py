"""Products: matrices, linear layers, einsum, convolutions, experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import trace_error


@aten("mm", "bmm", "matmul", "dot", "mv")
def matmul(c: Call, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype is not b.dtype:
        message = f"a product of {a.dtype} and {b.dtype}, which torch refuses as well"
        raise trace_error(Code.TRACE_SHAPE, message, "convert one of them: x.to(y.dtype)")
    return a.matmul(b)


@aten("mm.dtype", "bmm.dtype")
def matmul_as(c: Call, a: Tensor, b: Tensor, dtype: DType) -> Tensor:
    return a.to(dtype).matmul(b.to(dtype))


@aten("linear")
def linear(c: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.ndim == 1:
        y = x.matmul(weight)
        return y if bias is None else y + bias
    if bias is not None and bias.ndim != 1:
        return F.linear(x, weight) + bias
    return F.linear(x, weight, bias)


@aten("addmm")
def addmm(c: Call, x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _added(c, x, a.matmul(b), beta, alpha)


@aten("baddbmm")
def baddbmm(c: Call, x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _added(c, x, a.matmul(b), beta, alpha)


@aten("addmv")
def addmv(c: Call, x: Tensor, a: Tensor, v: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _added(c, x, a.matmul(v), beta, alpha)


@aten("addbmm")
def addbmm(c: Call, x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _added(c, x, a.matmul(b).sum(0), beta, alpha)


def _added(c: Call, x: Tensor, y: Tensor, beta: Any, alpha: Any) -> Tensor:
    """``beta * x + alpha * y``; nothing of x, NaN neither, where beta is 0."""
    y = y.to(c.dtype)
    y = y if alpha == 1 else y * constant(c, alpha, c.dtype)
    if isinstance(beta, (int, float, complex)) and beta == 0:
        return y.expand(*c.shape)
    x = x.to(c.dtype)
    return (x if beta == 1 else x * constant(c, beta, c.dtype)) + y


@aten("einsum")
def einsum(c: Call, equation: str, tensors: Sequence[Tensor], *, path: Any = None) -> Tensor:
    return F.einsum(equation, *tensors)


@aten("outer", "ger")
def outer(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return a.to(c.dtype).unsqueeze(1) * b.to(c.dtype).unsqueeze(0)


# --- convolutions ------------------------------------------------------------------------------------------------------------------


@aten("convolution")
def convolution(
    c: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    rank = weight.ndim - 2
    stride, padding, dilation = (list(v) * rank if len(v) == 1 else list(v) for v in (stride, padding, dilation))
    single = x.ndim == rank + 1
    x = x.unsqueeze(0) if single else x
    bias = None if bias is None else bias.to(x.dtype)
    if transposed:
        weight, x = _as_plain(c, x, weight, stride, padding, dilation, list(output_padding) * (rank if len(output_padding) == 1 else 1), groups)
        stride, padding = [1] * rank, [0] * rank
    if x.dtype in HALVES and not x.dtype.is_float:
        raise Refused(f"a convolution of {x.dtype}", "convolve in float32")
    if rank == 1:
        y = F.conv1d(x, weight, bias, stride[0], padding[0], dilation[0], groups)
    elif rank == 2:
        y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    else:
        y = _volumes(c, x, weight, bias, stride, padding, dilation, groups)
    return y.reshape(*c.shape) if single else y


def _volumes(
    c: Call, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """A convolution over three axes: one over two of them for each tap along the first, added up."""
    if padding[0]:
        x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
    taps = weight.shape[2]
    assert isinstance(taps, int)
    depth = c.type.shape[-3]
    total: Tensor | None = None
    n, channels, _, h, w = x.shape
    for tap in range(taps):
        at = F.arange(depth) * stride[0] + tap * dilation[0]
        plane = x.index_select(2, at).transpose(1, 2).reshape(n * depth, channels, h, w)
        y = F.conv2d(plane, weight.select(2, tap), None, tuple(stride[1:]), tuple(padding[1:]), tuple(dilation[1:]), groups)
        total = y if total is None else total + y
    assert total is not None
    out = total.reshape(n, depth, *total.shape[1:]).transpose(1, 2)
    return out if bias is None else out + bias.reshape(-1, 1, 1, 1)


def _as_plain(
    c: Call, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], extra: list[int], groups: int
) -> tuple[Tensor, Tensor]:
    """A transposed convolution as a plain one: zeros between the elements of x, and the kernel turned around."""
    rank = weight.ndim - 2
    for i in range(rank):
        axis = x.ndim - rank + i
        size, by = x.shape[axis], stride[i]
        if by > 1:
            spread = x.unsqueeze(axis + 1)
            widths = [0] * spread.ndim
            widths[axis + 1] = by - 1
            spread = c.emit(ops.Pad((0,) * spread.ndim, tuple(widths)), spread)
            x = spread.reshape(*x.shape[:axis], size * by, *x.shape[axis + 1 :])
            x = x.narrow(axis, 0, (size - 1) * by + 1)
        kernel = weight.shape[2 + i]
        assert isinstance(kernel, int)
        before = dilation[i] * (kernel - 1) - padding[i]
        after = before + extra[i]
        low, high = [0] * x.ndim, [0] * x.ndim
        low[axis], high[axis] = max(before, 0), max(after, 0)
        x = c.emit(ops.Pad(tuple(low), tuple(high)), x)
        if before < 0 or after < 0:
            cut = max(-before, 0)
            x = x.narrow(axis, cut, x.shape[axis] - cut - max(-after, 0))
        weight = c.emit(ops.Flip(2 + i), weight)
    inner, per, *kernels = weight.shape
    w = weight.reshape(groups, inner // groups, per, *kernels).transpose(1, 2)
    return w.reshape(per * groups, inner // groups, *kernels), x


# --- experts -----------------------------------------------------------------------------------------------------------------------


@aten("_grouped_mm", "transformers.grouped_mm_fallback.default")
def grouped_mm(c: Call, a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None) -> Tensor:
    """Rows of ``a[M, K]`` in groups that end at ``offs[E]``, each group by its own matrix of ``b[E, K, N]``. Rows behind the last group are zeros."""
    if a.ndim == 3 and b.ndim == 3 and offs is None:
        return a.matmul(b).to(c.dtype)
    if a.ndim != 2 or b.ndim != 3 or offs is None:
        raise Refused("a grouped product whose groups are not rows of the first operand", "multiply rows [M, K] by matrices [E, K, N] with offsets")
    rows = F.arange(a.shape[0])
    group = rows.unsqueeze(1).ge(offs.long().unsqueeze(0)).long().sum(-1)  # how many groups end at or before the row
    last = b.shape[0] - 1
    y = F.expert_matmul(a, b, group.minimum(last))
    y = F.where(group.le(last).unsqueeze(1), y, constant(c, 0, y.dtype))
    return (y if bias is None else y + bias).to(c.dtype)
