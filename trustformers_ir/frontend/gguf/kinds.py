"""The types of tensors in GGUF files: how many elements a block has, in how many bytes, and what that is here.

Numbers, names and sizes are those of ``ggml.h``. A type that is neither a dtype nor a format of ``ir/block_formats.py`` is known by its size, so that
files can be listed and checked, but no number can be made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trustformers_ir.ir.block_formats import FORMATS, Format
from trustformers_ir.ir.dtypes import DType


@dataclass(frozen=True)
class TensorKind:
    """One type: ``elements`` of a row lie in a block of ``bytes``. At most one of ``dtype`` and ``format`` says what they are."""

    number: int
    name: str
    elements: int
    bytes: int
    dtype: DType | None = None
    format: Format | None = None


def _plain(number: int, name: str, dtype: DType) -> TensorKind:
    return TensorKind(number, name, 1, dtype.itemsize, dtype)


_FORMATS = {row.format.value: row.format for row in FORMATS.values() if row.bytes}


def _blocks(number: int, name: str, elements: int, size: int) -> TensorKind:
    return TensorKind(number, name, elements, size, format=_FORMATS.get(name.lower()))


KINDS: Mapping[int, TensorKind] = {
    kind.number: kind
    for kind in (
        _plain(0, "F32", DType.f32),
        _plain(1, "F16", DType.f16),
        _blocks(2, "Q4_0", 32, 18),
        _blocks(3, "Q4_1", 32, 20),
        _blocks(6, "Q5_0", 32, 22),
        _blocks(7, "Q5_1", 32, 24),
        _blocks(8, "Q8_0", 32, 34),
        _blocks(9, "Q8_1", 32, 40),
        _blocks(10, "Q2_K", 256, 84),
        _blocks(11, "Q3_K", 256, 110),
        _blocks(12, "Q4_K", 256, 144),
        _blocks(13, "Q5_K", 256, 176),
        _blocks(14, "Q6_K", 256, 210),
        _blocks(15, "Q8_K", 256, 292),
        _blocks(16, "IQ2_XXS", 256, 66),
        _blocks(17, "IQ2_XS", 256, 74),
        _blocks(18, "IQ3_XXS", 256, 98),
        _blocks(19, "IQ1_S", 256, 50),
        _blocks(20, "IQ4_NL", 32, 18),
        _blocks(21, "IQ3_S", 256, 110),
        _blocks(22, "IQ2_S", 256, 82),
        _blocks(23, "IQ4_XS", 256, 136),
        _plain(24, "I8", DType.i8),
        _plain(25, "I16", DType.i16),
        _plain(26, "I32", DType.i32),
        _plain(27, "I64", DType.i64),
        _plain(28, "F64", DType.f64),
        _blocks(29, "IQ1_M", 256, 56),
        _plain(30, "BF16", DType.bf16),
        _blocks(34, "TQ1_0", 256, 54),
        _blocks(35, "TQ2_0", 256, 66),
        _blocks(39, "MXFP4", 32, 17),
        _blocks(40, "NVFP4", 64, 36),
        _blocks(41, "Q1_0", 128, 18),
    )
}
