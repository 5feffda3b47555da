"""Sums of products: matrix products, einsum, convolutions, and the packing of their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim, SymbolFact, floordiv, product
from trustformers_ir.ir.dtypes import HALVES, NUMERIC, REAL, DType
from trustformers_ir.ir.ops.broadcast import (
    BroadcastError,
    broadcast_shapes,
    require_equal,
    require_less_equal,
    require_same_dtype,
)
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import ROW_MAJOR, Layout, Panels, TensorType


@dataclass(frozen=True)
class MatMul(Op):
    """``y[…, m, n] = sum over k of a[…, m, k] * b[…, k, n]``; leading axes broadcast. Integers wrap."""

    mnemonic = "matmul"
    operands = (Operand("a", NUMERIC), Operand("b", NUMERIC))
    constraints = {
        1: "a and b have one dtype",
        2: "a and b are at least matrices",
        3: "the columns of a and the rows of b are provably equally many",
        4: "the leading axes of a and b provably broadcast",
    }
    fusion = FusionKind.CONTRACTION

    def infer(self, ctx: InferContext, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (a, b))
        self.require(2, a.rank >= 2 and b.rank >= 2, f"{a} and {b}")
        require_equal(self, 3, ctx, a.shape[-1], b.shape[-2], "the contracted sizes")
        try:
            batch = broadcast_shapes(ctx.facts, a.shape[:-2], b.shape[:-2])
        except BroadcastError as error:
            self.fail(4, str(error))
        return (TensorType((*batch, a.shape[-2], b.shape[-1]), a.dtype),)

    def reference(self, ctx: EvalContext, a: np.ndarray, b: np.ndarray) -> Any:
        return np.matmul(a, b)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[5, 7], DType.f32[7, 3]))
        yield Sample(cls(), (DType.f32[2, 1, 4, 33], DType.f32[3, 33, 20]))
        yield Sample(cls(), (DType.bf16["b", "s", 16], DType.bf16[16, 8]))
        yield Sample(cls(), (DType.f16["b", 2, "s", 4], DType.f16["b", 2, 4, "s"]))
        yield Sample(cls(), (DType.f64[1, 1], DType.f64[1, 1]))
        yield Sample(cls(), (DType.i32[3, 4], DType.i32[4, 2]))
        yield Sample(cls(), (DType.i8[2, 40], DType.i8[40, 2]))
        yield Sample(cls(), (DType.c64[2, 3], DType.c64[3, 2]))
        yield Sample(cls(), (DType.f32[2, 0], DType.f32[0, 3]))


@dataclass(frozen=True)
class Linear(Op):
    """``y[…, n] = sum over k of x[…, k] * weight[n, k] + bias[n]``. The weight may be packed; that does not change the result. Where x is f32 it may
    be stored as f16 or bf16: its values are f32 like any others."""

    mnemonic = "linear"
    operands = (Operand("x", NUMERIC), Operand("weight", NUMERIC, any_layout=True), Operand("bias", NUMERIC, optional=True))
    constraints = {
        1: "the operands have one dtype, but for a weight in f16 or bf16 where x is f32",
        2: "x has an axis, weight is a matrix, bias a vector",
        3: "the last size of x and of weight are provably equal",
        4: "the sizes of bias and the rows of weight are provably equal",
    }
    fusion = FusionKind.CONTRACTION

    def infer(self, ctx: InferContext, x: TensorType, weight: TensorType, bias: TensorType | None) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (x, None if x.dtype is DType.f32 and weight.dtype in HALVES else weight, bias))
        self.require(2, x.rank >= 1 and weight.rank == 2 and (bias is None or bias.rank == 1), f"{x}, {weight}, {bias}")
        require_equal(self, 3, ctx, x.shape[-1], weight.shape[1], "the contracted sizes")
        if bias is not None:
            require_equal(self, 4, ctx, bias.shape[0], weight.shape[0], "the outputs")
        return (TensorType((*x.shape[:-1], weight.shape[0]), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Any:
        type = ctx.operands[1]
        assert type is not None
        weight = unpacked(weight, type.layout, (ctx.result_shape[-1], x.shape[-1]))
        y = np.matmul(x, weight.T) if x.ndim > 1 else np.matmul(x[None], weight.T)[0]
        return y if bias is None else y + bias

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[5, 7], DType.f32[3, 7], None))
        yield Sample(cls(), (DType.f32["b", "s", 16], DType.f32[20, 16], DType.f32[20]))
        yield Sample(cls(), (DType.bf16["n", 33], DType.bf16[8, 33], DType.bf16[8]))
        yield Sample(cls(), (DType.f16[6], DType.f16[4, 6], None))
        yield Sample(cls(), (DType.f64[2, 1, 3], DType.f64[1, 3], DType.f64[1]))
        yield Sample(cls(), (DType.i32[3, 4], DType.i32[2, 4], DType.i32[2]))
        yield Sample(cls(), (DType.f32["n", 12], TensorType((20, 12), DType.f32, Panels(16)), DType.f32[20]))
        yield Sample(cls(), (DType.f32[3, 5], TensorType((32, 5), DType.f32, Panels(16)), None))
        yield Sample(cls(), (DType.f32[3, 5], TensorType((20, 5), DType.f32, Panels(16, 2)), None))
        yield Sample(cls(), (DType.f32["n", 9], DType.bf16[6, 9], DType.f32[6]))
        yield Sample(cls(), (DType.f32["n", 12], TensorType((20, 12), DType.bf16, Panels(16)), DType.f32[20]))
        yield Sample(cls(), (DType.f32["b", "s", 7], TensorType((33, 7), DType.f16, Panels(48)), None))


def pack_panels(matrix: np.ndarray, width: int, depth: int = 1) -> np.ndarray:
    """``[…, N, K]`` to ``[…, ceil(N / width), K, width]``: ``p[…, j, k, i] = m[…, j * width + i, k]``, zero beyond row N.

    With a depth, to ``[…, ceil(N / width), ceil(K / depth), width, depth]``: ``p[…, j, k, i, d] = m[…, j * width + i, k * depth + d]``,
    zero beyond row N and column K.
    """
    *batch, n, k = matrix.shape
    whole, rest = divmod(n, width)
    if depth > 1:
        packed = np.zeros((*batch, whole + bool(rest), -(-k // depth), width, depth), matrix.dtype)
        padded = np.zeros((*batch, width, packed.shape[-3] * depth), matrix.dtype)
        for j in range(whole + bool(rest)):
            rows = matrix[..., j * width : (j + 1) * width, :]
            padded[..., : rows.shape[-2], :k] = rows
            padded[..., rows.shape[-2] :, :] = 0
            packed[..., j, :, :, :] = np.swapaxes(padded.reshape(*batch, width, -1, depth), -3, -2)
        return packed
    panels = np.empty((*batch, whole + bool(rest), k, width), matrix.dtype)
    for j in range(whole):  # panel by panel: the rows of one stay in the cache while they are gathered
        panels[..., j, :, :] = np.swapaxes(matrix[..., j * width : (j + 1) * width, :], -1, -2)
    if rest:
        panels[..., whole, :, :rest] = np.swapaxes(matrix[..., whole * width :, :], -1, -2)
        panels[..., whole, :, rest:] = 0
    return panels


def unpack_panels(panels: np.ndarray, n: int, k: int | None = None, depth: int = 1) -> np.ndarray:
    """The inverse of :func:`pack_panels` for a matrix of ``n`` rows and ``k`` columns (all that are there when not given)."""
    if depth > 1:
        *batch, count, groups, width, _ = panels.shape
        rows = np.swapaxes(panels, -3, -2).reshape(*batch, count * width, groups * depth)
    else:
        *batch, count, columns, width = panels.shape
        rows = np.swapaxes(panels, -1, -2).reshape(*batch, count * width, columns)
    return rows[..., :n, :k]


def unpacked(stored: np.ndarray, layout: Layout, shape: tuple[int, int]) -> np.ndarray:
    """The last two axes of what is stored in ``layout``, as a matrix of ``shape``."""
    return unpack_panels(stored, *shape, layout.depth) if isinstance(layout, Panels) else stored


@dataclass(frozen=True)
class Pack(Op):
    """The same matrix in another layout of its bytes. On a weight it folds away at build time."""

    layout: Layout

    mnemonic = "pack"
    operands = (Operand("x"),)
    constraints = {1: "layout is a packed one", 2: "x is at least a matrix"}
    fusion = FusionKind.OPAQUE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, self.layout != ROW_MAJOR)
        self.require(2, x.rank >= 2, str(x))
        return (TensorType(x.shape, x.dtype, self.layout),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        assert isinstance(self.layout, Panels)
        return pack_panels(x, self.layout.width, self.layout.depth)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 0

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(Panels(16)), (DType.f32[20, 5],))
        yield Sample(cls(Panels(8)), (DType.bf16[16, 3],))
        yield Sample(cls(Panels(4)), (DType.i8[2, 6, 7],))
        yield Sample(cls(Panels(1)), (DType.f64[3, 2],))
        yield Sample(cls(Panels(16, 4)), (DType.i8[20, 10],))
        yield Sample(cls(Panels(3, 2)), (DType.f32["b", 5, 6],))


_TERM = re.compile(r"[A-Za-z]*(\.\.\.[A-Za-z]*)?\Z")


@dataclass(frozen=True)
class Einsum(Op):
    """Einstein summation (numpy.einsum): the product of all operands, summed over every letter that is not in the output.

    ``"…ij,…jk->…ik"``: letters name axes; ``...`` stands for leading axes that broadcast. The output is always written.
    """

    equation: str

    mnemonic = "einsum"
    operands = (Operand("xs", NUMERIC, variadic=True),)
    constraints = {
        1: "the equation is 'terms->output' of letters with at most one '...' each, without blanks",
        2: "there is one term per operand, and an operand",
        3: "the operands have one dtype",
        4: "every operand has the rank of its term",
        5: "the axes of a letter provably have one size, those of '...' provably broadcast",
        6: "the output names letters of the terms, each once, and '...' when a term does",
    }
    fusion = FusionKind.CONTRACTION

    @property
    def terms(self) -> list[str]:
        return self.equation.split("->")[0].split(",")

    @property
    def output(self) -> str:
        return self.equation.split("->")[1]

    def infer(self, ctx: InferContext, *xs: TensorType) -> tuple[TensorType, ...]:
        self.require(1, self.equation.count("->") == 1, self.equation)
        self.require(1, all(_TERM.match(t) for t in [*self.terms, self.output]), self.equation)
        self.require(2, len(xs) == len(self.terms) and bool(xs), f"{len(self.terms)} terms, {len(xs)} operands")
        require_same_dtype(self, 3, xs)
        sizes, spread = self._sizes(ctx, xs)
        letters = self.output.replace("...", "")
        self.require(6, len(set(letters)) == len(letters) and set(letters) <= set(sizes), self.equation)
        self.require(6, ("..." in self.output) == any("..." in t for t in self.terms), self.equation)
        shape: list[Dim] = []
        for part in re.findall(r"\.\.\.|[A-Za-z]", self.output):
            shape.extend(spread if part == "..." else [sizes[part]])
        return (TensorType(tuple(shape), xs[0].dtype),)

    def _sizes(self, ctx: InferContext, xs: Sequence[TensorType]) -> tuple[dict[str, Dim], tuple[Dim, ...]]:
        """The size of every letter, and the broadcast shape of ``...``."""
        sizes: dict[str, Dim] = {}
        spreads: list[tuple[Dim, ...]] = []
        for number, (term, x) in enumerate(zip(self.terms, xs, strict=True)):
            before, dots, after = term.partition("...")
            free = x.rank - len(before) - len(after)
            self.require(4, free >= 0 if dots else free == 0, f"term '{term}' and operand {number} of type {x}")
            spreads.append(x.shape[len(before) : len(before) + free])
            for letter, d in zip(before + after, x.shape[: len(before)] + x.shape[len(before) + free :], strict=True):
                require_equal(self, 5, ctx, sizes.setdefault(letter, d), d, f"letter '{letter}' of operand {number}")
        try:
            return sizes, broadcast_shapes(ctx.facts, *spreads)
        except BroadcastError as error:
            self.fail(5, str(error))

    def reference(self, ctx: EvalContext, *xs: np.ndarray) -> Any:
        return np.einsum(self.equation, *xs, dtype=xs[0].dtype)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        sizes: dict[str, Dim] = {}
        for term, x in zip(self.terms, types, strict=True):
            assert x is not None
            before, _, after = term.partition("...")
            sizes.update(zip(before, x.shape, strict=False))
            sizes.update(zip(reversed(after), reversed(x.shape), strict=False))
        summed = set(sizes) - set(self.output)
        return len(self.terms) * results[0].elements * product([sizes[s] for s in sorted(summed)])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls("ij,jk->ik"), (DType.f32[3, 4], DType.f32[4, 5]))
        yield Sample(cls("bhid,bhjd->bhij"), (DType.bf16["b", 2, "s", 8], DType.bf16["b", 2, "t", 8]))
        yield Sample(cls("...ij,...jk->...ik"), (DType.f64[2, 1, 3, 4], DType.f64[5, 4, 2]))
        yield Sample(cls("i,j->ij"), (DType.f16[3], DType.f16[4]))
        yield Sample(cls("ij->ji"), (DType.i32["n", 3],))
        yield Sample(cls("ii->i"), (DType.f32[4, 4],))
        yield Sample(cls("ij,ij->"), (DType.f32[3, 5], DType.f32[3, 5]))
        yield Sample(cls("ab,bc,cd->ad"), (DType.f32[2, 3], DType.f32[3, 4], DType.f32[4, 2]))
        yield Sample(cls("...d->..."), (DType.f32["b", 2, 5],))
        yield Sample(cls("bn,bn->b"), (DType.c64[2, 3], DType.c64[2, 3]))


# --- convolutions ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvOp(Op):
    """Base of the convolutions (cross-correlations, as in every framework): what ``Conv1d`` says, over any number of window axes."""

    operands = (Operand("x", REAL), Operand("weight", REAL), Operand("bias", REAL, optional=True))
    constraints = {
        1: "the operands have one dtype",
        2: "x and weight have a batch (or output), a channel and the window axes; bias is a vector",
        3: "strides, dilations and groups are at least 1, paddings at least 0",
        4: "channels of x and groups * channels of weight are provably equal",
        5: "groups provably divides the outputs of weight",
        6: "the bias has one element per output, provably",
        7: "the window provably fits into the padded x",
    }
    fusion = FusionKind.CONTRACTION

    def geometry(self) -> tuple[tuple[int, int, int, int], ...]:
        """(stride, padding before, padding after, dilation) per window axis."""
        raise NotImplementedError

    @property
    def group_count(self) -> int:
        raise NotImplementedError

    def infer(self, ctx: InferContext, x: TensorType, weight: TensorType, bias: TensorType | None) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (x, weight, bias))
        windows, groups = self.geometry(), self.group_count
        rank = 2 + len(windows)
        self.require(2, x.rank == weight.rank == rank and (bias is None or bias.rank == 1), f"{x}, {weight}, {bias}")
        valid = all(s >= 1 and d >= 1 and before >= 0 and after >= 0 for s, before, after, d in windows)
        self.require(3, valid and groups >= 1, str(self))
        require_equal(self, 4, ctx, x.shape[1], groups * weight.shape[1], "the channels")
        self.require(5, ctx.facts.divisible(weight.shape[0], groups), f"{weight.shape[0]} outputs in {groups} groups")
        if bias is not None:
            require_equal(self, 6, ctx, bias.shape[0], weight.shape[0], "the outputs")
        out: list[Dim] = []
        for axis, (stride, before, after, dilation) in enumerate(windows, 2):
            padded = x.shape[axis] + before + after
            window = dilation * (weight.shape[axis] - 1) + 1
            require_less_equal(self, 7, ctx, window, padded, f"axis {axis}")
            out.append(floordiv(padded - window, stride) + 1)
        return (TensorType((x.shape[0], weight.shape[0], *out), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Any:
        windows, groups = self.geometry(), self.group_count
        x = np.pad(x, [(0, 0), (0, 0), *((before, after) for _, before, after, _ in windows)])
        out_shape = ctx.result_shape
        batch, outputs = out_shape[:2]
        xg = x.reshape(batch, groups, x.shape[1] // groups, *x.shape[2:])
        wg = weight.reshape(groups, outputs // groups, *weight.shape[1:])
        y = np.zeros((batch, groups, outputs // groups, *out_shape[2:]), x.dtype)
        for tap in np.ndindex(weight.shape[2:]):
            reach = tuple(
                slice(t * dilation, t * dilation + stride * (size - 1) + 1, stride)
                for t, size, (stride, _, _, dilation) in zip(tap, out_shape[2:], windows, strict=True)
            )
            here: Any = (..., *reach)
            y += np.einsum("bgc...,goc->bgo...", xg[here], wg[(slice(None),) * 3 + tap], dtype=x.dtype)
        y = y.reshape(out_shape)
        return y if bias is None else y + bias.reshape(-1, *(1,) * len(windows))

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[1] is not None
        return 2 * results[0].elements * product(types[1].shape[1:])


@dataclass(frozen=True)
class Conv1d(ConvOp):
    """``y[b, o, i] = bias[o] + sum over c, t of x[b, c', i * stride + t * dilation - padding[0]] * weight[o, c, t]``, zero outside of x.

    x is ``[B, C, L]``, weight ``[O, C / groups, K]``; output o reads the channels of its group,
    ``c' = (o // (O / groups)) * (C / groups) + c``.
    """

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1

    mnemonic = "conv1d"

    def geometry(self) -> tuple[tuple[int, int, int, int], ...]:
        return ((self.stride, *self.padding, self.dilation),)

    @property
    def group_count(self) -> int:
        return self.groups

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[2, 3, 9], DType.f32[4, 3, 3], None))
        yield Sample(cls(2, (1, 2)), (DType.f32["b", 3, 10], DType.f32[4, 3, 3], DType.f32[4]))
        yield Sample(cls(1, (2, 0), 2), (DType.f64[1, 2, "n"], DType.f64[3, 2, 3], None), facts={"n": SymbolFact(low=3)})
        yield Sample(cls(groups=4, padding=(3, 0)), (DType.bf16["b", 4, "s"], DType.bf16[4, 1, 4], DType.bf16[4]))
        yield Sample(cls(3, groups=2), (DType.f16[1, 4, 12], DType.f16[6, 2, 2], None))
        yield Sample(cls(padding=(1, 1)), (DType.i32[1, 2, 5], DType.i32[2, 2, 3], DType.i32[2]))


@dataclass(frozen=True)
class Conv2d(ConvOp):
    """The two-dimensional ``conv1d``: x is ``[B, C, H, W]``, weight ``[O, C / groups, KH, KW]``.

    ``stride`` and ``dilation`` are (vertical, horizontal), ``padding`` is (top, bottom, left, right).
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    mnemonic = "conv2d"

    def geometry(self) -> tuple[tuple[int, int, int, int], ...]:
        top, bottom, left, right = self.padding
        return ((self.stride[0], top, bottom, self.dilation[0]), (self.stride[1], left, right, self.dilation[1]))

    @property
    def group_count(self) -> int:
        return self.groups

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[2, 3, 6, 7], DType.f32[4, 3, 3, 3], DType.f32[4]))
        yield Sample(cls((4, 4)), (DType.f32["b", 3, 8, 8], DType.f32[5, 3, 4, 4], DType.f32[5]))
        yield Sample(cls((2, 1), (1, 0, 2, 1), (1, 2)), (DType.f64[1, 2, 5, 6], DType.f64[3, 2, 3, 2], None))
        yield Sample(cls(padding=(1, 1, 1, 1), groups=4), (DType.bf16["b", 4, "h", "w"], DType.bf16[4, 1, 3, 3], None))
        yield Sample(cls(groups=2), (DType.f16[1, 4, 4, 4], DType.f16[2, 2, 1, 1], DType.f16[2]))


@dataclass(frozen=True)
class Conv(ConvOp):
    """``conv1d`` over any number of window axes: x is ``[B, C, …]``, weight ``[O, C / groups, …]``.

    ``stride``, ``before``, ``after`` (what is added on each side) and ``dilation`` have one entry per window axis.
    """

    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    mnemonic = "conv"
    constraints = {**ConvOp.constraints, 8: "stride, before, after and dilation are equally long, at least one entry"}

    def geometry(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple(zip(self.stride, self.before, self.after, self.dilation, strict=True))

    @property
    def group_count(self) -> int:
        return self.groups

    def infer(self, ctx: InferContext, x: TensorType, weight: TensorType, bias: TensorType | None) -> tuple[TensorType, ...]:
        lengths = {len(self.stride), len(self.before), len(self.after), len(self.dilation)}
        self.require(8, len(lengths) == 1 and bool(self.stride), str(self))
        return super().infer(ctx, x, weight, bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls((1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1)), (DType.f32[2, 3, 4, 5, 3], DType.f32[4, 3, 2, 3, 2], DType.f32[4]))
        yield Sample(cls((2, 1, 1), (1, 0, 1), (0, 2, 1), (1, 2, 1), 2), (DType.f64[1, 4, 3, 5, 3], DType.f64[2, 2, 2, 2, 3], None))
        yield Sample(cls((2,), (1,), (1,), (1,)), (DType.bf16["b", 2, 6], DType.bf16[3, 2, 3], DType.bf16[3]))
        yield Sample(cls((1, 1), (1, 1), (1, 1), (1, 1)), (DType.i32[1, 2, 4, 4], DType.i32[2, 2, 3, 3], None))
