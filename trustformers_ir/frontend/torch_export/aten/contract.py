"""Products: matrices, linear layers, einsum, convolutions, experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.aten.reduce import vector_norm
from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops, windows
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import static, trace_error


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
    if x.ndim == 1 and x.dtype is a.dtype in HALVES and alpha == 1 and beta == 1 and c.facts.is_equal(x.shape[0], b.shape[1]):
        return F.linear(a, b.transpose(0, 1), x)  # weights in 16 bits stay so
    return _added(c, x, _wide(a).matmul(_wide(b)), beta, alpha)


@aten("baddbmm", "addmv")
def added_product(c: Call, x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _added(c, x, _wide(a).matmul(_wide(b)), beta, alpha)


@aten("addbmm")
def addbmm(c: Call, x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _added(c, x, _wide(a).matmul(_wide(b)).sum(0), beta, alpha)


def _wide(x: Tensor) -> Tensor:
    """In f32 where it has 16 bits: torch rounds a product with something added to it once, at its end."""
    return x.to(DType.f32) if x.dtype in HALVES else x


def _added(c: Call, x: Tensor, y: Tensor, beta: Any, alpha: Any) -> Tensor:
    """``beta * x + alpha * y`` in the dtype of ``y``, then in that of the result; nothing of x, NaN neither, where beta is 0."""
    if c.dtype is DType.bool:
        return x.bool().logical_and(bool(beta)).logical_or(y.bool().logical_and(bool(alpha)))
    y = y if y.dtype is DType.f32 else y.to(c.dtype)
    y = y if alpha == 1 else y * constant(c, alpha, y.dtype)
    if isinstance(beta, (int, float, complex)) and beta == 0:
        return y.expand(*c.shape).to(c.dtype)
    x = x.to(y.dtype)
    return ((x if beta == 1 else x * constant(c, beta, y.dtype)) + y).to(c.dtype)


@aten("einsum")
def einsum(c: Call, equation: str, tensors: Sequence[Tensor], *, path: Any = None) -> Tensor:
    left, arrow, right = equation.replace(" ", "").partition("->")
    if arrow and "..." in left and "..." not in right:
        raise Refused("einsum that adds up the axes of an ellipsis", "name the axes, or keep the ellipsis in the result and add them up behind it")
    return F.einsum(equation, *tensors)


@aten("outer", "ger")
def outer(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return c.emit(ops.And() if c.dtype is DType.bool else ops.Mul(), a.to(c.dtype).unsqueeze(1), b.to(c.dtype).unsqueeze(0))


@aten("_trilinear")
def trilinear(
    c: Call, a: Tensor, b: Tensor, d: Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int], sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """The product of three tensors with axes of size 1 put in, summed over some axes."""
    grown: list[Tensor] = []
    for t, axes in ((a, expand1), (b, expand2), (d, expand3)):
        for axis in sorted(axes):
            t = t.unsqueeze(axis)
        grown.append(_wide(t))
    return (grown[0] * grown[1] * grown[2]).sum(list(sumdim)).to(c.dtype)


@aten("_cdist_forward")
def cdist(c: Call, x: Tensor, y: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """Distances of all pairs of rows."""
    return vector_norm(c, x.unsqueeze(-2) - y.unsqueeze(-3), p, [-1])


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
    settings = zip(weight.shape[2:], stride, padding, dilation, strict=True)
    if transposed or rank > 2:
        moved = [Window(static(k, "the size of a kernel"), by, added, added, spread) for k, by, added, spread in settings]
        extra = list(output_padding) * (rank if len(output_padding) == 1 else 1)
        y = windows.conv_transpose(x, weight, bias, moved, groups, extra) if transposed else windows.conv(x, weight, bias, moved, groups)
    elif rank == 1:
        y = F.conv1d(x, weight, bias, stride[0], padding[0], dilation[0], groups)
    else:
        y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    return y.reshape(*c.shape) if single else y


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
