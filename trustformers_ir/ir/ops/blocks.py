"""Matrix products by weights in blocks of a few bits.

A weight is a handful of arrays, the *planes* of its format (the table in [quantization.md](quantization.md)): codes, and what groups of them are
multiplied by and moved by. The activation stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.block_formats import FORMATS, PLANES, Format, FormatRow, values
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.ops.broadcast import require_equal, require_same_dtype, require_same_shape
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType

_ACTIVATIONS = frozenset({DType.f32}) | HALVES
_CODES, _F16, _BYTES, _LOWS = (frozenset(d) for d in ((DType.u8, DType.i8), (DType.f16,), (DType.u8, DType.i8), (DType.u8, DType.f16)))


@dataclass(frozen=True)
class LinearBlocks(Op):
    """``y[…, n] = sum over k of x[…, k] * w[n, k] + bias[n]`` with ``w = scale * steps * (code - zero) + low`` in the given format.

    ``group`` is the number of elements that share a scale. Absent planes are 1 or 0. Every w is an exact real number, and the sum is rounded once.
    Compiled code adds up ``x * (code - zero)``, whose factors are exact in f16 and bf16, and x, over each group in f32, multiplies that by the scale
    and the low of the group, and adds up groups in f32. So no weight is ever rounded to the dtype of x.
    """

    format: Format
    group: int

    mnemonic = "linear_blocks"
    operands = (
        *(Operand("x", _ACTIVATIONS), Operand("codes", _CODES), Operand("scale", _F16), Operand("low", _LOWS, optional=True)),
        *(Operand("steps", _BYTES, optional=True), Operand("low_steps", _BYTES, optional=True), Operand("bias", _ACTIVATIONS, optional=True)),
    )
    constraints = {
        1: "x has an axis, and codes is a matrix",
        2: "group is that of the format, or an even number where it has none",
        3: "the last size of x is a constant, a multiple of the format's blocks",
        4: "the planes are those of the format, with its dtypes",
        5: "the planes provably have the shapes that the format gives them",
        6: "bias is a vector of provably as many elements as codes has rows, with the dtype of x",
    }
    fusion = FusionKind.CONTRACTION

    @property
    def row(self) -> FormatRow:
        """The format."""
        return FORMATS[self.format]

    def infer(
        self,
        ctx: InferContext,
        x: TensorType,
        codes: TensorType,
        scale: TensorType,
        low: TensorType | None,
        steps: TensorType | None,
        low_steps: TensorType | None,
        bias: TensorType | None,
    ) -> tuple[TensorType, ...]:
        row = self.row
        self.require(1, x.rank >= 1 and codes.rank == 2, f"{x}, {codes}")
        self.require(2, self.group == row.group if row.group else self.group >= 2 and self.group % 2 == 0, f"a group of {self.group}")
        k, n = x.shape[-1], codes.shape[0]
        self.require(3, isinstance(k, int) and k > 0 and k % row.unit(self.group) == 0, f"{k}, blocks of {row.unit(self.group)}")
        given = dict(zip(PLANES, (codes, scale, low, steps, low_steps), strict=True))
        for name, type in given.items():
            wanted = row.planes[name].dtype if name in row.planes else None
            have = None if type is None else type.dtype
            self.require(4, have is wanted, f"{name} of {self.format.value} is {wanted or 'absent'}, not {have or 'absent'}")
        assert isinstance(k, int)
        for name, (_, columns) in row.shapes(0, k, self.group).items():
            type = given[name]
            assert type is not None
            require_same_shape(self, 5, ctx, type.shape, (n, columns), name)
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
        bias: np.ndarray | None,
    ) -> Any:
        given = dict(zip(PLANES, (codes, scale, low, steps, low_steps), strict=True))
        weight = values(self.row, self.group, {name: p for name, p in given.items() if p is not None}, np.float64)
        y = np.matmul(x, weight.T) if x.ndim > 1 else np.matmul(x[None], weight.T)[0]
        return y if bias is None else y + bias

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        assert types[0] is not None
        return 2 * results[0].elements * types[0].shape[-1]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        bytes_low, bytes_high = {"low_steps": 0.0}, {"low_steps": 63.0}
        ranges: dict[Format, tuple[dict[str, float], dict[str, float]]] = {
            Format.Q8_0: ({"codes": -128}, {"codes": 127}),
            Format.Q4_K: ({"steps": 0}, {"steps": 63}),
            Format.Q6_K: ({"codes": -32, "steps": -128}, {"codes": 31, "steps": 127}),
            Format.INT4_ZERO: ({"low": 0}, {"low": 15}),
        }

        def sample(format: Format, x: TensorType, n: int, bias: bool, group: int = 0) -> Sample:
            row = FORMATS[format]
            group = row.group or group
            k = x.shape[-1]
            assert isinstance(k, int)
            shapes = row.shapes(n, k, group)
            planes = [TensorType(shapes[p], row.planes[p].dtype) if p in shapes else None for p in PLANES]
            low, high = ranges.get(format, ({}, {}))
            low, high = {"codes": 0, **bytes_low, **low}, {"codes": 255, **bytes_high, **high}
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
        yield sample(Format.INT4, bf16["n", 256], 48, True, group=128)
        yield sample(Format.INT4, f32[2, 12], 3, False, group=6)
        yield sample(Format.INT4_ZERO, f16["n", 128], 24, False, group=64)
        yield sample(Format.INT4_ZERO, f32["b", "s", 64], 9, True, group=32)
