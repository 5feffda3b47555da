"""Weights in blocks of a few bits: products by them, and rows of tables of them.

A matrix or a table is a handful of arrays, the *planes* of its format (the table in [quantization.md](quantization.md)): codes, and what groups of
them are multiplied by and moved by. Activations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir.block_formats import ACTIVATIONS, FORMATS, PLANES, Format, FormatRow, dequantize, parts, signed
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import HALVES, INTS, DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_same_dtype, require_same_shape
from trustformers_ir.ir.ops.contract import unpacked
from trustformers_ir.ir.ops.index import resolve_indices
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import Panels, TensorType

Planes = tuple[list[TensorType | None], dict[str, float], dict[str, float]]
CODES, _BYTES, _LOWS = (frozenset(d) for d in ((DType.u8, DType.i8), (DType.u8, DType.i8), (DType.u8, DType.f16)))
#: planes of which packed ones have four bytes of a row beside each other
DEEP = ("codes", "high")
#: the planes as operands, in the order of ``PLANES``
PLANE_OPERANDS = (
    *(Operand("codes", CODES), Operand("scale", HALVES), Operand("low", _LOWS, optional=True)),
    *(Operand("steps", _BYTES, optional=True), Operand("low_steps", _BYTES, optional=True), Operand("high", frozenset({DType.u8}), optional=True)),
)


@dataclass(frozen=True)
class InBlocks(Op):
    """An op on a matrix in blocks, whose planes are the operands from ``planes_at`` on. Constraints 2 to 5 are those of the matrix."""

    format: Format
    group: int

    planes_at: ClassVar[int] = 1
    constraints = {
        2: "group is that of the format, or an even number where it has none",
        4: "the planes are those of the format, with its dtypes",
        5: "the planes provably have the shapes that the format gives them",
    }

    @property
    def row(self) -> FormatRow:
        """The format."""
        return FORMATS[self.format]

    def require_group(self) -> None:
        row = self.row
        self.require(2, self.group == row.group if row.group else self.group >= 2 and self.group % 2 == 0, f"a group of {self.group}")

    def require_planes(self, ctx: InferContext, rows: tuple[Dim, ...], k: int, *types: TensorType | None) -> None:
        """The planes of matrices ``[*rows, k]`` are there, and k is cut into whole blocks."""
        row = self.row
        self.require(3, k > 0 and k % row.unit(self.group) == 0, f"{k}, blocks of {row.unit(self.group)}")
        given = dict(zip(PLANES, types, strict=True))
        for name, type in given.items():
            wanted = row.planes[name].dtype if name in row.planes else None
            have = None if type is None else type.dtype
            self.require(4, have is wanted, f"{name} of {row.format.value} is {wanted or 'absent'}, not {have or 'absent'}")
        for name, (_, columns) in row.shapes(0, k, self.group).items():
            type = given[name]
            assert type is not None
            require_same_shape(self, 5, ctx, type.shape, (*rows, columns), name)

    @staticmethod
    def planes_of(*arrays: np.ndarray | None) -> dict[str, np.ndarray]:
        """Those that are there, by name."""
        return {name: p for name, p in zip(PLANES, arrays, strict=True) if p is not None}

    def product(self, x: np.ndarray, planes: Mapping[str, np.ndarray]) -> np.ndarray:
        """``x[…, k]`` by the matrix ``[n, k]`` that planes stand for, in f64, group by group."""
        weights, factor, moved = parts(self.row, self.group, planes, np.float64)
        y = np.zeros((*x.shape[:-1], len(weights)))
        for g in range(factor.shape[1]):
            run = slice(g * self.group, (g + 1) * self.group)
            y = y + (x[..., run] @ weights[:, run].T.astype(x.dtype)) * factor[:, g]
            if moved is not None:
                y = y + x[..., run].sum(-1, keepdims=True) * moved[:, g]
        return y


def planes_sample(format: Format, n: Dim, k: int, group: int, lead: tuple[Dim, ...] = ()) -> Planes:
    """Types of the planes of matrices ``[*lead, n, k]``, and between which values they lie where not everything is sensible."""
    row = FORMATS[format]
    shapes = row.shapes(0, k, group)
    planes = [TensorType((*lead, n, shapes[p][1]), row.planes[p].dtype) if p in shapes else None for p in PLANES]
    low, high = _RANGES.get(format, ({}, {}))
    return planes, {"codes": 0, "high": 0, "low_steps": 0.0, **low}, {"codes": 255, "high": 255, "low_steps": 63.0, **high}


def packed_sample(format: Format, n: Dim, k: int, group: int, width: int = 16, lead: tuple[Dim, ...] = ()) -> Planes:
    """The same with unsigned codes, in panels of ``width`` columns; 0: as they are."""
    planes, low, high = planes_sample(format, n, k, group, lead)
    assert planes[0] is not None
    if planes[0].dtype is DType.i8:
        planes[0] = planes[0].with_dtype(DType.u8)
        low, high = ({**bound, "codes": bound["codes"] + 128} for bound in (low, high))
    if width:
        laid = [Panels(width, 4 if name in DEEP else 1) for name in PLANES]
        planes = [None if p is None else TensorType(p.shape, p.dtype, layout) for p, layout in zip(planes, laid, strict=True)]
    return planes, low, high


_RANGES: dict[Format, tuple[dict[str, float], dict[str, float]]] = {
    Format.Q8_0: ({"codes": -128}, {"codes": 127}),
    Format.Q4_K: ({"steps": 0}, {"steps": 63}),
    Format.Q2_K: ({"steps": 0}, {"steps": 15, "low_steps": 15}),
    Format.Q3_K: ({"steps": -32}, {"steps": 31}),
    Format.Q5_K: ({"steps": 0}, {"steps": 63}),
    Format.Q6_K: ({"steps": -128}, {"steps": 127}),
    Format.IQ4_NL: ({"codes": -127}, {"codes": 113}),
    Format.IQ4_XS: ({"codes": -127, "steps": -32}, {"codes": 113, "steps": 31}),
    Format.MXFP4: ({"codes": -12}, {"codes": 12}),
    Format.INT4_ZERO: ({"low": 0}, {"low": 15}),
}


@dataclass(frozen=True)
class LinearBlocks(InBlocks):
    """``y[…, n] = sum over k of x[…, k] * w[n, k] + bias[n]`` with ``w = scale * steps * (code - zero) + low`` in the given format.

    ``group`` is the number of elements that share a scale. Absent planes are 1 or 0. Every w is an exact real number, and the sum is rounded once;
    a scale that is not finite multiplies the sum of its group, not every element. Compiled code adds up ``x * (code - zero)``, whose factors are
    exact in f16 and bf16, and x, over each group in f32, multiplies that by the scale and the low of the group, and adds up groups in f32. So no
    weight is ever rounded to the dtype of x.
    """

    mnemonic = "linear_blocks"
    operands = (Operand("x", ACTIVATIONS), *PLANE_OPERANDS, Operand("bias", ACTIVATIONS, optional=True))
    constraints = {
        1: "x has an axis, and codes is a matrix",
        3: "the last size of x is a constant, a multiple of the format's blocks",
        **InBlocks.constraints,
        6: "bias is a vector of provably as many elements as codes has rows, with the dtype of x",
    }
    fusion = FusionKind.CONTRACTION

    def infer(
        self,
        ctx: InferContext,
        x: TensorType,
        codes: TensorType,
        scale: TensorType,
        low: TensorType | None,
        steps: TensorType | None,
        low_steps: TensorType | None,
        high: TensorType | None,
        bias: TensorType | None,
    ) -> tuple[TensorType, ...]:
        self.require(1, x.rank >= 1 and codes.rank == 2, f"{x}, {codes}")
        self.require_group()
        k, n = x.shape[-1], codes.shape[0]
        self.require(3, isinstance(k, int), str(x))
        assert isinstance(k, int)
        self.require_planes(ctx, (n,), k, codes, scale, low, steps, low_steps, high)
        if bias is not None:
            require_same_dtype(self, 6, (x, bias))
            self.require(6, bias.rank == 1, str(bias))
            require_equal(self, 6, ctx, bias.shape[0], n, "the outputs")
        return (TensorType((*x.shape[:-1], n), x.dtype),)

    def reference(
        self,
        ctx: EvalContext,
        x: np.ndarray,
        codes: np.ndarray,
        scale: np.ndarray,
        low: np.ndarray | None,
        steps: np.ndarray | None,
        low_steps: np.ndarray | None,
        high: np.ndarray | None,
        bias: np.ndarray | None,
    ) -> Any:
        y = self.product(x, self.planes_of(codes, scale, low, steps, low_steps, high))
        return y if bias is None else y + bias

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def sample(format: Format, x: TensorType, n: int, bias: bool, group: int = 0) -> Sample:
            group = FORMATS[format].group or group
            k = x.shape[-1]
            assert isinstance(k, int)
            planes, low, high = planes_sample(format, n, k, group)
            return Sample(cls(format, group), (x, *planes, TensorType((n,), x.dtype) if bias else None), low, high)

        f32, f16, bf16 = DType.f32, DType.f16, DType.bf16
        yield sample(Format.Q8_0, f32[5, 64], 7, True)
        yield sample(Format.Q8_0, bf16["b", "s", 96], 20, False)
        yield sample(Format.Q4_0, f32["n", 96], 33, False)
        yield sample(Format.Q4_0, f16["b", "s", 64], 40, True)
        yield sample(Format.Q4_0, f32[32], 4, False)
        yield sample(Format.Q4_1, f32["n", 64], 17, True)
        yield sample(Format.Q4_1, bf16[3, 128], 20, False)
        yield sample(Format.Q4_K, f32["n", 512], 5, False)
        yield sample(Format.Q4_K, f16[3, 256], 18, True)
        yield sample(Format.Q6_K, f32["n", 256], 6, True)
        yield sample(Format.Q6_K, bf16[4, 512], 16, False)
        yield sample(Format.Q5_0, f32["n", 64], 5, False)
        yield sample(Format.Q5_1, f32["n", 64], 18, True)
        yield sample(Format.Q2_K, f32[3, 256], 7, False)
        yield sample(Format.IQ4_XS, f32["n", 256], 7, True)
        yield sample(Format.MXFP4, bf16[3, 64], 20, False)
        yield sample(Format.INT4, bf16["n", 256], 48, True, group=128)
        yield sample(Format.INT4, f32[2, 12], 3, False, group=6)
        yield sample(Format.INT4_ZERO, f16["n", 128], 24, False, group=64)
        yield sample(Format.INT4_ZERO, f32["b", "s", 64], 9, True, group=32)


@dataclass(frozen=True)
class EmbeddingBlocks(InBlocks):
    """``y[i] = w[ids[i]]`` in f32, rows of a table in blocks: ``w = scale * steps * (code - zero) + low`` in the given format, computed in f32 as
    ``ir/block_formats.py: dequantize`` does, to the bit.

    ``group`` is the number of elements that share a scale. Absent planes are 1 or 0. Codes that have a sign may be stored as u8, 128 higher, and
    planes may be packed: as ``linear_blocks_int8`` reads the same matrix.
    """

    planes_at = 0
    mnemonic = "embedding_blocks"
    operands = (*(replace(p, any_layout=True) for p in PLANE_OPERANDS), Operand("ids", INTS))
    constraints = {
        1: "codes is a matrix with a constant number of columns",
        3: "the elements of a row are a multiple of the format's blocks",
        **InBlocks.constraints,
    }
    fusion = FusionKind.INJECTIVE
    exact = True

    def infer(
        self,
        ctx: InferContext,
        codes: TensorType,
        scale: TensorType,
        low: TensorType | None,
        steps: TensorType | None,
        low_steps: TensorType | None,
        high: TensorType | None,
        ids: TensorType,
    ) -> tuple[TensorType, ...]:
        columns = codes.shape[-1] if codes.rank == 2 else None
        self.require(1, isinstance(columns, int), str(codes))
        assert isinstance(columns, int)
        self.require_group()
        plane = self.row.planes["codes"]
        k = columns * plane.per
        given = codes if self.row.paired or codes.dtype is not DType.u8 else codes.with_dtype(plane.dtype)
        self.require_planes(ctx, codes.shape[:1], k, given, scale, low, steps, low_steps, high)
        return (TensorType((*ids.shape, k), DType.f32),)

    def reference(
        self,
        ctx: EvalContext,
        codes: np.ndarray,
        scale: np.ndarray,
        low: np.ndarray | None,
        steps: np.ndarray | None,
        low_steps: np.ndarray | None,
        high: np.ndarray | None,
        ids: np.ndarray,
    ) -> Any:
        stored = self.planes_of(codes, scale, low, steps, low_steps, high)
        types = dict(zip(PLANES, ctx.operands, strict=False))
        assert types["codes"] is not None
        n = ctx.size(types["codes"].shape[0])
        shapes = self.row.shapes(n, ctx.result_shape[-1], self.group)
        picked = resolve_indices(self, ids, n).reshape(-1)
        rows = {}
        for name, plane in stored.items():
            type = types[name]
            assert type is not None
            found = unpacked(plane, type.layout, shapes[name])[picked]
            lifted = name == "codes" and type.dtype is not self.row.planes[name].dtype
            rows[name] = signed(self.row, found.astype(np.uint8)) if lifted else found.astype(self.row.planes[name].dtype.numpy)
        found = dequantize(self.format, rows, self.group)
        return found.reshape(*ids.shape, found.shape[1])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def sample(format: Format, rows: Dim, k: int, ids: TensorType, group: int = 0, packed: bool = False) -> Sample:
            group = FORMATS[format].group or group
            planes, low, high = (packed_sample if packed else planes_sample)(format, rows, k, group)
            return Sample(cls(format, group), (*planes, ids), {**low, "ids": -5}, {**high, "ids": 4})

        i64, i32 = DType.i64, DType.i32
        yield sample(Format.Q8_0, 5, 64, i64["b", "s"])
        yield sample(Format.Q8_0, 20, 64, i64[7], packed=True)
        yield sample(Format.Q4_0, 5, 96, i64[3])
        yield sample(Format.Q4_1, 20, 64, i64["n"], packed=True)
        yield sample(Format.Q4_1, 7, 32, i32["n"])
        yield sample(Format.Q4_K, 5, 512, i64["n"])
        yield sample(Format.Q3_K, 5, 256, i64["n"])
        yield sample(Format.Q5_K, 5, 256, i64[2])
        yield sample(Format.Q6_K, 6, 256, i64[2, 3])
        yield sample(Format.IQ4_NL, 5, 96, i64["n"])
        yield sample(Format.INT4, 5, 12, i64[()], group=6)
        yield sample(Format.INT4_ZERO, 5, 64, i32["n", 2], group=32)
