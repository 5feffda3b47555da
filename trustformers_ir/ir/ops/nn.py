"""Whole layers that the compiler knows as one op: norms, rotary embedding, attention, dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import BOOL, FLOATS, DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_expands, require_same_dtype, require_same_shape
from trustformers_ir.ir.ops.index import resolve_indices
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType

STARTS = frozenset({DType.i32, DType.i64})


def normalised_axes(*parameters: TensorType | np.ndarray | None) -> int:
    """How many trailing axes a norm covers: as many as its weight (or bias) has, one without."""
    return next((len(p.shape) for p in parameters if p is not None), 1)


@dataclass(frozen=True)
class LayerNorm(Op):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` (Ba et al. 2016), mean and (biased) variance over the trailing axes.

    The trailing axes are those that weight (or else bias) has; the last axis when both are absent.
    """

    eps: float = 1e-5

    mnemonic = "layer_norm"
    operands = (Operand("x", FLOATS), Operand("weight", FLOATS, optional=True), Operand("bias", FLOATS, optional=True))
    constraints = {
        1: "the operands have one dtype",
        2: "weight and bias have an axis and no more axes than x",
        3: "weight and bias provably have the trailing shape of x",
        4: "eps is not negative",
    }
    fusion = FusionKind.REDUCTION

    def infer(self, ctx: InferContext, x: TensorType, weight: TensorType | None, bias: TensorType | None) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (x, weight, bias))
        count = normalised_axes(weight, bias)
        self.require(2, 1 <= count <= x.rank, f"{x}, {weight}, {bias}")
        for p in (weight, bias):
            if p is not None:
                require_same_shape(self, 3, ctx, p.shape, x.shape[x.rank - count :], "trailing shape")
        self.require(4, self.eps >= 0, f"eps {self.eps}")
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None) -> Any:
        axes = tuple(range(-normalised_axes(weight, bias), 0))
        centred = x - np.mean(x, axis=axes, keepdims=True)
        y = centred / np.sqrt(np.mean(centred**2, axis=axes, keepdims=True) + self.eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 8 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 37], DType.f32[37], DType.f32[37]))
        yield Sample(cls(1e-12), (DType.f32["b", "s", 16], DType.f32[16], None))
        yield Sample(cls(), (DType.bf16["n", 8], DType.bf16[8], DType.bf16[8]))
        yield Sample(cls(), (DType.f16[2, 3, 4], DType.f16[3, 4], DType.f16[3, 4]))
        yield Sample(cls(0.1), (DType.f64[2, 5], None, None))
        yield Sample(cls(), (DType.f64[2, 5], None, DType.f64[5]))


@dataclass(frozen=True)
class RmsNorm(Op):
    """``x / sqrt(mean(x**2) + eps) * (weight + offset)`` (Zhang & Sennrich 2019) over the trailing axes that weight has.

    Without a weight over the last axis, and nothing is multiplied. ``offset=1`` is Gemma's convention of storing ``weight - 1``.
    """

    eps: float = 1e-6
    offset: float = 0.0

    mnemonic = "rms_norm"
    operands = (Operand("x", FLOATS), Operand("weight", FLOATS, optional=True))
    constraints = {
        1: "the operands have one dtype",
        2: "weight has an axis and no more axes than x",
        3: "weight provably has the trailing shape of x",
        4: "eps is not negative",
    }
    fusion = FusionKind.REDUCTION

    def infer(self, ctx: InferContext, x: TensorType, weight: TensorType | None) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (x, weight))
        count = normalised_axes(weight)
        self.require(2, 1 <= count <= x.rank, f"{x}, {weight}")
        if weight is not None:
            require_same_shape(self, 3, ctx, weight.shape, x.shape[x.rank - count :], "trailing shape")
        self.require(4, self.eps >= 0, f"eps {self.eps}")
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray, weight: np.ndarray | None) -> Any:
        axes = tuple(range(-normalised_axes(weight), 0))
        y = x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + self.eps)
        return y if weight is None else y * (weight + self.offset)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 4 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 37], DType.f32[37]))
        yield Sample(cls(1e-5, 1.0), (DType.bf16["b", "s", 16], DType.bf16[16]))
        yield Sample(cls(), (DType.f16[2, 3, 4], DType.f16[3, 4]))
        yield Sample(cls(0.0), (DType.f64["n", 5], None))


@dataclass(frozen=True)
class Rope(Op):
    """Rotary position embedding (Su et al. 2021): pairs of x's first R features are rotated, the other D - R pass through.

    x is ``[…, S, D]``; cos and sin are ``[…, S, R / 2]`` and broadcast over x's leading axes. Pair i is ``(x[i], x[i + R/2])``,
    ``(x[2i], x[2i + 1])`` when ``interleaved``, and becomes ``(a * cos[i] - b * sin[i], b * cos[i] + a * sin[i])``.
    """

    interleaved: bool = False

    mnemonic = "rope"
    operands = (Operand("x", FLOATS), Operand("cos", FLOATS), Operand("sin", FLOATS))
    constraints = {
        1: "the operands have one dtype",
        2: "x has an axis, and so have cos and sin, whose shapes are provably equal",
        3: "the last size of x and of cos are constants, and R, twice that of cos, is at most D",
        4: "the leading axes of cos provably broadcast to those of x",
    }
    fusion = FusionKind.INJECTIVE

    def infer(self, ctx: InferContext, x: TensorType, cos: TensorType, sin: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (x, cos, sin))
        self.require(2, x.rank >= 1 and cos.rank >= 1, f"{x}, {cos}")
        require_same_shape(self, 2, ctx, cos.shape, sin.shape, "cos and sin")
        half, features = cos.shape[-1], x.shape[-1]
        if not isinstance(half, int) or not isinstance(features, int) or 2 * half > features:
            self.fail(3, f"{x}, {cos}")
        require_expands(self, 4, ctx, cos.shape[:-1], x.shape[:-1])
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> Any:
        half = cos.shape[-1]
        first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if self.interleaved else (slice(0, half), slice(half, 2 * half))
        y = np.array(x)
        a, b = x[..., first], x[..., second]
        y[..., first] = a * cos - b * sin
        y[..., second] = b * cos + a * sin
        return y

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 3 * results[0].elements

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[2, 3, 5, 8], DType.f32[5, 4], DType.f32[5, 4]))
        yield Sample(cls(True), (DType.f32["b", 2, "s", 8], DType.f32["s", 4], DType.f32["s", 4]))
        yield Sample(cls(), (DType.bf16["b", 2, "s", 16], DType.bf16["b", 1, "s", 4], DType.bf16["b", 1, "s", 4]))
        yield Sample(cls(True), (DType.f16[3, 7], DType.f16[1, 2], DType.f16[1, 2]))
        yield Sample(cls(), (DType.f64[4, 6], DType.f64[4, 3], DType.f64[4, 3]))


@dataclass(frozen=True)
class _Scored(Op):
    """What ``attention`` and ``packed_attention`` share: attributes, their checks, and scores."""

    causal: bool = False
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None

    fusion = FusionKind.ATTENTION

    def require_groups(self, number: int, ctx: InferContext, heads: Dim, key_heads: Dim) -> None:
        """The constraint that heads of keys provably divide those of queries."""
        grouped = isinstance(key_heads, int) and key_heads > 0 and ctx.facts.divisible(heads, key_heads)
        self.require(number, grouped or ctx.facts.is_equal(heads, key_heads), f"{heads} heads of q, {key_heads} heads of k")

    def require_settings(self, number: int) -> None:
        """The constraint on the attributes."""
        positive = (self.window is None or self.window >= 1) and (self.softcap is None or 0 < self.softcap < math.inf)
        self.require(number, positive and (self.scale is None or math.isfinite(self.scale)), str(self))

    def scores(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """``[…, queries, keys]`` of ``q[…, queries, features]`` and ``k[…, keys, features]``, before bias and mask."""
        scale = 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        scores = np.matmul(q, np.swapaxes(k, -1, -2)) * scale
        return np.asarray(scores if self.softcap is None else self.softcap * np.tanh(scores / self.softcap))


@dataclass(frozen=True)
class Attention(_Scored):
    """Scaled dot-product attention (Vaswani et al. 2017) with grouped queries (Ainslie et al. 2023).

    q is ``[B, Hq, Sq, D]``, k ``[B, Hk, Sk, D]``, v ``[B, Hk, Sk, Dv]``; query head h reads head ``h // (Hq / Hk)`` of k and v.
    ``s[i, j] = scale * (q[i] . k[j])``, then ``softcap * tanh(s / softcap)``, then ``+ bias[i, j]``. ``scale=None`` is ``1 / sqrt(D)``.
    Key j is visible to query i when ``mask[i, j]``, when ``j <= i + Sk - Sq`` if ``causal`` (aligned at the last query and key), and when
    ``j > i + Sk - Sq - window`` if there is a window. The result is ``softmax(s over the visible keys) @ v``;
    a query without a visible key (or with all scores -inf) gives zeros, and an invisible value has no influence unless v is not finite.
    """

    mnemonic = "attention"
    operands = (
        Operand("q", FLOATS),
        Operand("k", FLOATS),
        Operand("v", FLOATS),
        Operand("mask", BOOL, optional=True),
        Operand("bias", FLOATS, optional=True),
    )
    constraints = {
        1: "q, k, v and bias have one dtype",
        2: "q, k and v have four axes",
        3: "batch, key heads, keys and features of q, k and v provably agree",
        4: "the heads of k provably divide the heads of q",
        5: "mask and bias provably broadcast to [B, Hq, Sq, Sk]",
        6: "window is at least 1, softcap is positive, scale is finite",
    }

    def infer(
        self, ctx: InferContext, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None, bias: TensorType | None
    ) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (q, k, v, bias))
        self.require(2, q.rank == k.rank == v.rank == 4, f"{q}, {k}, {v}")
        require_equal(self, 3, ctx, q.shape[0], k.shape[0], "batch of q and k")
        require_same_shape(self, 3, ctx, k.shape[:3], v.shape[:3], "k and v")
        require_equal(self, 3, ctx, q.shape[3], k.shape[3], "features of q and k")
        self.require_groups(4, ctx, q.shape[1], k.shape[1])
        for extra in (mask, bias):
            if extra is not None:
                require_expands(self, 5, ctx, extra.shape, (*q.shape[:3], k.shape[2]))
        self.require_settings(6)
        return (TensorType((*q.shape[:3], v.shape[3]), q.dtype),)

    def reference(
        self, ctx: EvalContext, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, bias: np.ndarray | None
    ) -> Any:
        return self.attend(q, k, v, mask, bias, np.array(k.shape[2] - q.shape[2]))

    def attend(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, bias: np.ndarray | None, first: np.ndarray
    ) -> np.ndarray:
        """The result where the first query stands at position ``first``, broadcastable to the scores."""
        group = q.shape[1] // k.shape[1] if k.shape[1] else 1
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = self.scores(q, k)
        if bias is not None:
            scores = scores + bias
        return _averaged(np.where(self.visible(first + np.arange(q.shape[2])[:, None], k.shape[2], mask), scores, -np.inf), v)

    def visible(self, position: np.ndarray, keys: int, mask: np.ndarray | None) -> np.ndarray:
        """Which key a query at each position may see, broadcastable to the scores."""
        j = np.arange(keys)[None, :]
        seen = np.ones(np.broadcast_shapes(position.shape, j.shape), bool)
        if self.causal:
            seen &= j <= position
        if self.window is not None:
            seen &= j > position - self.window
        return seen if mask is None else seen & mask

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        q, k, v = types[:3]
        assert q is not None and k is not None and v is not None
        rows = q.shape[0] * q.shape[1] * q.shape[2]
        return 2 * rows * k.shape[2] * (q.shape[3] + v.shape[3]) + 5 * rows * k.shape[2]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32, bf16 = DType.f32, DType.bf16
        yield Sample(cls(), (f32[2, 3, 5, 8], f32[2, 3, 7, 8], f32[2, 3, 7, 4], None, None))
        yield Sample(cls(causal=True), (f32["b", 4, "s", 8], f32["b", 2, "s", 8], f32["b", 2, "s", 8], None, None))
        yield Sample(cls(causal=True, window=3), (f32[1, 2, 4, 8], f32[1, 1, 9, 8], f32[1, 1, 9, 8], None, None))
        yield Sample(cls(scale=0.5, softcap=2.0), (DType.f64[1, 2, 3, 4], DType.f64[1, 2, 3, 4], DType.f64[1, 2, 3, 4], None, None))
        yield Sample(cls(), (bf16["b", 4, "s", 16], bf16["b", 4, "t", 16], bf16["b", 4, "t", 16], DType.bool["b", 1, 1, "t"], None))
        yield Sample(cls(), (f32[2, 2, 3, 4], f32[2, 2, 5, 4], f32[2, 2, 5, 4], None, f32[2, 3, 5]))
        yield Sample(
            cls(causal=True), (DType.f16[1, 4, 6, 8], DType.f16[1, 2, 3, 8], DType.f16[1, 2, 3, 8], DType.bool[6, 3], DType.f16[1, 4, 1, 3])
        )
        yield Sample(cls(window=2), (f32[1, 1, 5, 4], f32[1, 1, 5, 4], f32[1, 1, 5, 6], None, None))


def _averaged(scores: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``softmax(scores) @ v`` along the last axis of the scores; zeros where every score is -inf."""
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(top == -np.inf, 0.0, top))
    total = np.sum(weights, axis=-1, keepdims=True)
    return np.asarray(np.matmul(weights / np.where(total == 0, 1.0, total), v))


@dataclass(frozen=True)
class PackedAttention(_Scored):
    """``attention`` of sequences of any lengths that lie one behind the other, without padding.

    q is ``[Tq, Hq, D]``, k ``[Tk, Hk, D]``, v ``[Tk, Hk, Dv]``; sequence n has the queries ``q_starts[n] <= i < q_starts[n + 1]`` and the keys
    ``k_starts[n] <= j < k_starts[n + 1]``, so the starts rise and one more stands behind the last sequence (``cu_seqlens`` elsewhere). A sequence may
    be empty on either side. ``causal`` and ``window`` count from its last query and its last key, as in ``attention``.

    For any starts, also such as do not rise: query i sees key j when ``max{k_starts[n]: q_starts[n] <= i} <= j < e`` with
    ``e = min{k_starts[n]: q_starts[n] > i}``; if ``causal``, when ``j <= p`` with ``p = i + e - min{q_starts[n]: q_starts[n] > i}``; and when
    ``j > p - window`` if there is a window. Where such a set is empty, and for a query that sees no key, the result is zeros.
    """

    mnemonic = "packed_attention"
    operands = (
        Operand("q", FLOATS),
        Operand("k", FLOATS),
        Operand("v", FLOATS),
        Operand("q_starts", STARTS),
        Operand("k_starts", STARTS),
    )
    constraints = {
        1: "q, k and v have one dtype, the starts another",
        2: "q, k and v have three axes, the starts one",
        3: "tokens and heads of k and v, features of q and k, and both numbers of starts provably agree",
        4: "the heads of k provably divide the heads of q",
        5: "window is at least 1, softcap is positive, scale is finite",
    }

    def infer(
        self, ctx: InferContext, q: TensorType, k: TensorType, v: TensorType, q_starts: TensorType, k_starts: TensorType
    ) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (q, k, v))
        require_same_dtype(self, 1, (q_starts, k_starts))
        self.require(2, q.rank == k.rank == v.rank == 3 and q_starts.rank == k_starts.rank == 1, f"{q}, {k}, {v}, {q_starts}, {k_starts}")
        require_same_shape(self, 3, ctx, k.shape[:2], v.shape[:2], "k and v")
        require_equal(self, 3, ctx, q.shape[2], k.shape[2], "features of q and k")
        require_equal(self, 3, ctx, q_starts.shape[0], k_starts.shape[0], "starts")
        self.require_groups(4, ctx, q.shape[1], k.shape[1])
        self.require_settings(5)
        return (TensorType((*q.shape[:2], v.shape[2]), q.dtype),)

    def reference(
        self, ctx: EvalContext, q: np.ndarray, k: np.ndarray, v: np.ndarray, q_starts: np.ndarray, k_starts: np.ndarray
    ) -> Any:
        group = q.shape[1] // k.shape[1] if k.shape[1] else 1
        k, v = (np.swapaxes(np.repeat(x, group, axis=1), 0, 1) for x in (k, v))
        scores = self.scores(np.swapaxes(q, 0, 1), k)
        seen = np.zeros((q.shape[0], k.shape[1]), bool)
        j = np.arange(k.shape[1])
        for i in range(q.shape[0]):
            before, behind = q_starts <= i, q_starts > i
            if before.any() and behind.any():
                first, end = int(k_starts[before].max()), int(k_starts[behind].min())
                position = i + end - int(q_starts[behind].min())
                seen[i] = (first <= j) & (j < end)
                if self.causal:
                    seen[i] &= j <= position
                if self.window is not None:
                    seen[i] &= j > position - self.window
        return np.swapaxes(_averaged(np.where(seen, scores, -np.inf), v), 0, 1)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        """Of one sequence: how long each is is not known before a call."""
        q, k, v = types[:3]
        assert q is not None and k is not None and v is not None
        rows = q.shape[0] * q.shape[1]
        return 2 * rows * k.shape[0] * (q.shape[2] + v.shape[2]) + 5 * rows * k.shape[0]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32, bf16, i32, i64 = DType.f32, DType.bf16, DType.i32, DType.i64
        low, high = {"q_starts": 0.0, "k_starts": 0.0}, {"q_starts": 9.0, "k_starts": 7.0}
        yield Sample(cls(), (f32[9, 3, 8], f32[7, 3, 8], f32[7, 3, 4], i32[2], i32[2]), low, high)
        yield Sample(cls(causal=True), (f32["s", 4, 8], f32["s", 2, 8], f32["s", 2, 8], i32["n"], i32["n"]), low, high)
        yield Sample(cls(causal=True, window=2), (bf16["s", 2, 16], bf16["t", 1, 16], bf16["t", 1, 16], i64[3], i64[3]), low, high)
        yield Sample(cls(scale=0.5, softcap=2.0), (DType.f64[5, 1, 4], DType.f64[6, 1, 4], DType.f64[6, 1, 4], i64[2], i64[2]), low, high)
        yield Sample(cls(window=3), (DType.f16[8, 2, 16], DType.f16[8, 2, 16], DType.f16[8, 2, 24], i32[3], i32[3]), low, high)


@dataclass(frozen=True)
class ExpertMatMul(Op):
    """``y[i, n] = sum_k x[i, k] * weight[experts[i], k, n]``: each row by the matrix that was chosen for it (Shazeer et al. 2017).

    x is ``[…, K]``, weight ``[E, K, N]`` and experts ``[…]``, to which the leading axes of x broadcast; the result is ``[…, N]``. Only the matrices
    that were chosen are read.
    """

    mnemonic = "expert_matmul"
    operands = (Operand("x", FLOATS), Operand("weight", FLOATS), Operand("experts", STARTS))
    constraints = {
        1: "x and weight have one dtype",
        2: "x has an axis, weight three",
        3: "the last size of x and the second of weight are provably equal",
        4: "the leading axes of x provably broadcast to those of experts",
    }
    fusion = FusionKind.CONTRACTION

    def infer(self, ctx: InferContext, x: TensorType, weight: TensorType, experts: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (x, weight))
        self.require(2, x.rank >= 1 and weight.rank == 3, f"{x}, {weight}")
        require_equal(self, 3, ctx, x.shape[-1], weight.shape[1], "terms of x and weight")
        require_expands(self, 4, ctx, x.shape[:-1], experts.shape)
        return (TensorType((*experts.shape, weight.shape[2]), x.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray, weight: np.ndarray, experts: np.ndarray) -> Any:
        chosen = resolve_indices(self, experts, weight.shape[0])
        rows = np.broadcast_to(x, (*chosen.shape, x.shape[-1]))
        y = np.zeros((*chosen.shape, weight.shape[2]), x.dtype)
        for expert in np.unique(chosen):
            y[chosen == expert] = rows[chosen == expert] @ weight[expert]
        return y

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        x = types[0]
        assert x is not None
        return 2 * results[0].elements * x.shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        f32, i32, i64 = DType.f32, DType.i32, DType.i64
        yield Sample(cls(), (f32[4, 7], f32[3, 7, 5], i64[4]), {"experts": 0}, {"experts": 2})
        yield Sample(cls(), (f32["b", "s", 1, 8], f32[4, 8, 33], i64["b", "s", 2]), {"experts": 0}, {"experts": 3})
        yield Sample(cls(), (DType.bf16["n", 16], DType.bf16[2, 16, 16], i32["n"]), {"experts": -2}, {"experts": 1})
        yield Sample(cls(), (DType.f64[3], DType.f64[2, 3, 2], i32[5]), {"experts": 0}, {"experts": 1})
        yield Sample(cls(), (DType.f16[2, 3, 4], DType.f16[5, 4, 6], i64[2, 3]), {"experts": 0}, {"experts": 4})


@dataclass(frozen=True)
class Dropout(Op):
    """The identity: at inference nothing is dropped. ``p`` is kept for export."""

    p: float = 0.0

    mnemonic = "dropout"
    operands = (Operand("x", FLOATS),)
    constraints = {1: "0 <= p <= 1"}
    fusion = FusionKind.ELEMENTWISE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, 0 <= self.p <= 1, f"p {self.p}")
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return x

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        return 0

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 4],))
        yield Sample(cls(0.5), (DType.bf16["n"],))
