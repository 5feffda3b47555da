"""Products: matrices, einsum, convolutions, and their integer and quantized forms."""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.frontend.onnx.elements import I32
from trustformers_ir.frontend.onnx.node import Node, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Item, Refused
from trustformers_ir.ir import windows
from trustformers_ir.ir.dims import Dim, SymExpr
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import einsum
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.tensor import Tensor


@onnx_op("MatMul")
def _matmul(n: Node) -> Tensor:
    return n.t(0).matmul(n.t(1))


@onnx_op("Gemm")
def _gemm(n: Node) -> Tensor:
    """``alpha * a' @ b' + beta * c``."""
    a, b = n.t(0), n.t(1)
    dtype = a.dtype
    wide = widened(a) if dtype.is_float else a
    wide_b = b.to(wide.dtype)
    alpha, beta = float(n.attr("alpha", 1.0)), float(n.attr("beta", 1.0))
    wide = wide.transpose(0, 1) if n.attr("transA", 0) else wide
    wide_b = wide_b.transpose(0, 1) if n.attr("transB", 0) else wide_b
    y = wide.matmul(wide_b)
    y = _scaled(y, alpha)
    if n.has(2):
        y = y + _scaled(n.t(2).to(y.dtype), beta)
    return y.to(dtype)


def _scaled(x: Tensor, by: float) -> Tensor:
    if by == 1.0:
        return x
    if not x.dtype.is_float:
        return x * int(by) if by == int(by) else (x.to(DType.f64) * by).to(x.dtype)
    return x * by


@onnx_op("Einsum")
def _einsum(n: Node) -> Tensor:
    xs = n.tensors()
    equation = str(n.attr("equation")).replace(" ", "")
    terms, arrow, output = equation.partition("->")
    letters = terms.replace(".", "").replace(",", "")
    if not arrow:
        output = ("..." if "..." in terms else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if "..." in terms and "..." not in output:
        raise Refused("an einsum that sums over the axes of '...'")
    wide = [widened(x) for x in xs]
    return einsum(f"{terms}->{output}", *wide).to(xs[0].dtype)


# --- convolutions ------------------------------------------------------------------------------------------------------------------


def window_of(n: Node, sizes: Sequence[Dim], spatial: Sequence[Dim]) -> list[Window]:
    """The windows of a convolution or pooling, by its attributes."""
    rank = len(spatial)
    strides, dilations = n.ints("strides", [1] * rank), n.ints("dilations", [1] * rank)
    pads, auto = n.ints("pads", [0] * (2 * rank)), n.attr("auto_pad", "NOTSET")
    assert strides is not None and dilations is not None and pads is not None
    n.require(len(strides) == len(dilations) == len(sizes) == rank and len(pads) == 2 * rank, f"attributes of {rank} window axes differ in length")
    given = n.ints("kernel_shape")
    n.require(given is None or given == list(sizes), f"kernel_shape is {given}, and the kernel has {list(sizes)}")
    out: list[Window] = []
    for i, (size, total) in enumerate(zip(sizes, spatial, strict=True)):
        if isinstance(size, SymExpr):
            raise Refused(f"a window of the symbolic size {size}")
        w = Window(size, strides[i], pads[i], pads[rank + i], dilations[i])
        n.require(min(w.size, w.stride, w.dilation) >= 1, f"a window {w}")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if isinstance(total, SymExpr) and w.stride > 1:
                raise Refused(f"auto_pad along an axis of the symbolic size {total}", "give that axis a fixed size")
            added = w.span - 1 if isinstance(total, SymExpr) else max(0, (-(-total // w.stride) - 1) * w.stride + w.span - total)
            low = added // 2 if auto == "SAME_UPPER" else added - added // 2
            w = Window(w.size, w.stride, low, added - low, w.dilation)
        elif auto == "VALID":
            w = Window(w.size, w.stride, 0, 0, w.dilation)
        else:
            n.require(auto == "NOTSET", f"auto_pad is {auto}")
            n.require(min(w.before, w.after) >= 0, "a negative padding")
        out.append(w)
    return out


@onnx_op("Conv")
def _conv(n: Node) -> Tensor:
    x, weight = n.t(0), n.t(1)
    n.require(x.ndim >= 3 and weight.ndim == x.ndim, f"a convolution of {x.type} by {weight.type}")
    w = window_of(n, weight.shape[2:], x.shape[2:])
    return windows.conv(x, weight, n.opt(2), w, int(n.attr("group", 1)))


@onnx_op("ConvTranspose")
def _conv_transpose(n: Node) -> Tensor:
    x, weight = n.t(0), n.t(1)
    rank = x.ndim - 2
    n.require(rank >= 1 and weight.ndim == x.ndim, f"a transposed convolution of {x.type} by {weight.type}")
    strides, dilations = n.ints("strides", [1] * rank), n.ints("dilations", [1] * rank)
    pads, extra = n.ints("pads", [0] * (2 * rank)), n.ints("output_padding", [0] * rank)
    shape, auto = n.ints("output_shape"), n.attr("auto_pad", "NOTSET")
    assert strides is not None and dilations is not None and pads is not None and extra is not None
    lengths = {len(strides), len(dilations), len(extra), len(pads) / 2, rank if shape is None else len(shape[-rank:])}
    n.require(lengths == {rank}, f"attributes of {rank} window axes differ in length")
    out: list[Window] = []
    for i in range(rank):
        size, total = weight.shape[2 + i], x.shape[2 + i]
        if isinstance(size, SymExpr):
            raise Refused(f"a window of the symbolic size {size}")
        span = dilations[i] * (size - 1) + 1
        low, high = pads[i], pads[rank + i]
        if shape is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
            if isinstance(total, SymExpr) and shape is not None:
                raise Refused(f"an output_shape along an axis of the symbolic size {total}")
            if shape is not None:
                wanted = shape[-rank:][i]
                added = strides[i] * (int(total) - 1) + extra[i] + span - wanted  # type: ignore[arg-type]
            else:
                added = extra[i] + span - strides[i]
            if auto == "SAME_UPPER":
                low, high = added // 2, added - added // 2
            else:
                low, high = added - added // 2, added // 2
        elif auto == "VALID":
            low = high = 0
        out.append(Window(size, strides[i], low, high, dilations[i]))
    return windows.conv_transpose(x, weight, n.opt(2), out, int(n.attr("group", 1)), extra)


@onnx_op("ConvInteger")
def _conv_integer(n: Node) -> Item:
    x, weight = n.t(0).to(DType.i32), n.t(1).to(DType.i32)
    x = x - n.t(2).reshape().to(DType.i32) if n.has(2) else x
    weight = weight - _per_output(n.t(3), weight) if n.has(3) else weight
    w = window_of(n, weight.shape[2:], x.shape[2:])
    return Item.of(windows.conv(x, weight, None, w, int(n.attr("group", 1))), I32)


def _per_output(zero: Tensor, weight: Tensor) -> Tensor:
    """One number, or one for each output of a convolution."""
    whole = zero.to(DType.i32)
    return whole.reshape() if zero.numel() == 1 else whole.reshape(-1, *(1,) * (weight.ndim - 1))


@onnx_op("MatMulInteger")
def _matmul_integer(n: Node) -> Item:
    a, b = n.t(0).to(DType.i32), n.t(1).to(DType.i32)
    if n.has(2):
        zero = n.t(2).to(DType.i32)
        a = a - (zero.reshape() if zero.numel() == 1 else zero.unsqueeze(-1) if zero.ndim == 1 else zero)
    if n.has(3):
        zero = n.t(3).to(DType.i32)
        b = b - (zero.reshape() if zero.numel() == 1 else zero)
    return Item.of(a.matmul(b), I32)

