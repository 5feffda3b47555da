"""Products of rows by matrices in blocks that were chosen for them, one of several for each row: mixtures of experts.

The twins of ``expert_matmul`` for weights in blocks. The planes are those of one matrix ``[N, K]`` after the other, so each has one more axis than
for ``linear_blocks``; ``y[i] = linear_blocks(x[i], planes[experts[i]])``, and of the planes only those that were chosen are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.block_formats import ACTIVATIONS, FORMATS, Format
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.blocks import PLANE_OPERANDS, InBlocks, packed_sample, planes_sample
from trustformers_ir.ir.ops.blocks_int8 import ACTIVATION_OPERANDS, PACKED_OPERANDS, InBlocksInt8
from trustformers_ir.ir.ops.broadcast import require_expands
from trustformers_ir.ir.ops.index import resolve_indices
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Operand, Sample
from trustformers_ir.ir.types import TensorType

EXPERTS = Operand("experts", frozenset((DType.i32, DType.i64)))
_CHOSEN = "the leading axes of x provably broadcast to those of experts"


def _by_expert(op: InBlocks, experts: np.ndarray, count: int, n: int, product: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """``[*experts.shape, n]``: ``product`` makes the rows of one expert, of which it is told which they are."""
    chosen = resolve_indices(op, experts, count)
    y = np.zeros((*chosen.shape, n))
    for expert in np.unique(chosen):
        y[chosen == expert] = product(int(expert), chosen == expert)
    return y


def _rows(x: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """A row for each expert that was chosen."""
    return np.broadcast_to(x, (*experts.shape, x.shape[-1]))


@dataclass(frozen=True)
class ExpertBlocks(InBlocks):
    """``y[i, n] = sum_k x[i, k] * w[experts[i], n, k]`` with ``w`` in the given format: each row by the matrix that was chosen for it.

    x is ``[…, K]``, the planes are those of ``[E, N, K]`` and experts ``[…]``, to which the leading axes of x broadcast; the result is ``[…, N]``.
    The arithmetic is that of ``linear_blocks``, and so are ``format`` and ``group``.
    """

    mnemonic = "expert_blocks"
    operands = (Operand("x", ACTIVATIONS), *PLANE_OPERANDS, EXPERTS)
    constraints = {
        1: "x has an axis, codes three",
        3: "the last size of x is a constant, a multiple of the format's blocks",
        **InBlocks.constraints,
        6: _CHOSEN,
    }
    fusion = FusionKind.CONTRACTION

    def infer(self, ctx: InferContext, *types: TensorType | None) -> tuple[TensorType, ...]:
        x, *planes, experts = types
        codes = planes[0]
        assert x is not None and codes is not None and experts is not None
        self.require(1, x.rank >= 1 and codes.rank == 3, f"{x}, {codes}")
        self.require_group()
        k = x.shape[-1]
        self.require(3, isinstance(k, int), str(x))
        assert isinstance(k, int)
        self.require_planes(ctx, codes.shape[:2], k, *planes)
        require_expands(self, 6, ctx, x.shape[:-1], experts.shape)
        return (TensorType((*experts.shape, codes.shape[1]), x.dtype),)

    def reference(self, ctx: EvalContext, *arrays: np.ndarray | None) -> Any:
        x, *planes, experts = arrays
        assert x is not None and experts is not None
        given, rows = self.planes_of(*planes), _rows(x, experts)
        count, n = given["codes"].shape[:2]
        return _by_expert(self, experts, count, n, lambda e, mine: self.product(rows[mine], {name: p[e] for name, p in given.items()}))

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def sample(format: Format, x: TensorType, count: int, n: int, experts: TensorType, group: int = 0, low: int = 0) -> Sample:
            group = FORMATS[format].group or group
            k = x.shape[-1]
            assert isinstance(k, int)
            planes, least, most = planes_sample(format, n, k, group, (count,))
            return Sample(cls(format, group), (x, *planes, experts), {**least, "experts": low}, {**most, "experts": low + count - 1})

        f32, i32, i64 = DType.f32, DType.i32, DType.i64
        yield sample(Format.Q4_0, f32["b", "s", 1, 64], 4, 33, i64["b", "s", 2])
        yield sample(Format.Q8_0, f32[5, 64], 3, 7, i64[5], low=-3)
        yield sample(Format.Q4_1, DType.bf16["n", 64], 2, 16, i32["n"])
        yield sample(Format.Q4_K, f32["n", 2, 256], 3, 5, i64["n", 2])
        yield sample(Format.Q6_K, DType.f16[2, 256], 2, 6, i64[2])
        yield sample(Format.INT4_ZERO, f32[64], 2, 3, i64[4], group=32)


@dataclass(frozen=True)
class ExpertBlocksInt8(InBlocksInt8):
    """The same for x in groups of 8-bit codes (``quantize_groups``): ``y[i] = linear_blocks_int8(q[i], …, planes[experts[i]])``, to the bit.

    Planes may be packed, each matrix by itself.
    """

    mnemonic = "expert_blocks_int8"
    operands = (*ACTIVATION_OPERANDS, *PACKED_OPERANDS, EXPERTS)
    constraints = {
        1: "q has an axis, and codes are matrices of u8, one for each expert",
        3: "the last size of q is a constant, a multiple of the format's blocks",
        **InBlocksInt8.constraints,
        7: _CHOSEN,
    }
    fusion = FusionKind.CONTRACTION
    exact = True

    def infer(self, ctx: InferContext, *types: TensorType | None) -> tuple[TensorType, ...]:
        q, *about, codes, scale, low, steps, low_steps, high, experts = types
        assert q is not None and codes is not None and experts is not None
        self.require(1, q.rank >= 1 and codes.rank == 3 and codes.dtype is DType.u8, f"{q}, {codes}")
        self.require_group()
        k = q.shape[-1]
        self.require(3, isinstance(k, int), str(q))
        assert isinstance(k, int)
        self.require_planes(ctx, codes.shape[:2], k, codes.with_dtype(self.row.planes["codes"].dtype), scale, low, steps, low_steps, high)
        self.require_groups(ctx, q, *about)
        require_expands(self, 7, ctx, q.shape[:-1], experts.shape)
        return (TensorType((*experts.shape, codes.shape[1]), DType.f32),)

    def reference(self, ctx: EvalContext, *arrays: np.ndarray | None) -> Any:
        *activation, codes, scale, low, steps, low_steps, high, experts = arrays
        assert codes is not None and experts is not None
        rows = [_rows(a, experts) for a in activation if a is not None]
        n, k = ctx.result_shape[-1], rows[0].shape[-1]
        given = self.unpacked_planes(ctx, (codes, scale, low, steps, low_steps, high), n, k)

        def product(e: int, mine: np.ndarray) -> np.ndarray:
            q, x_scale, sums, total = (a[mine] for a in rows)
            return self.product_int8(q, x_scale, sums, total, {name: p[e] for name, p in given.items()})

        return _by_expert(self, experts, len(given["codes"]), n, product).astype(np.float32)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def sample(format: Format, q: TensorType, count: int, n: int, experts: TensorType, group: int = 0, width: int = 16, low: int = 0) -> Sample:
            group = FORMATS[format].group or group
            k = q.shape[-1]
            assert isinstance(k, int)
            planes, least, most = packed_sample(format, n, k, group, width, (count,))
            about = TensorType((*q.shape[:-1], k // group), DType.f32)
            types = (q, about, about.with_dtype(DType.i32), about, *planes, experts)
            sums = 127 * group
            least = {**least, "q": -127, "x_scale": 0.001, "sum": -sums, "experts": low}
            return Sample(cls(format, group), types, least, {**most, "q": 127, "x_scale": 0.02, "sum": sums, "experts": low + count - 1})

        i8, i32, i64 = DType.i8, DType.i32, DType.i64
        yield sample(Format.Q4_0, i8["b", "s", 1, 96], 3, 33, i64["b", "s", 2])
        yield sample(Format.Q4_0, i8["b", "s", 2, 64], 5, 48, i64["b", "s", 2])
        yield sample(Format.Q8_0, i8[29, 64], 2, 16, i64[29], low=-2)
        yield sample(Format.Q8_0, i8["n", 64], 4, 7, i32["n"], width=0)
        yield sample(Format.Q4_1, i8["n", 1, 64], 4, 40, i64["n", 3])
        yield sample(Format.Q4_K, i8["n", 256], 3, 21, i64["n"])
        yield sample(Format.Q6_K, i8["n", 1, 256], 2, 32, i64["n", 2])
        yield sample(Format.INT4_ZERO, i8[3, 128], 3, 24, i64[3], group=64)
        yield sample(Format.INT4, i8[12], 2, 3, i64[4], group=6, width=0)
