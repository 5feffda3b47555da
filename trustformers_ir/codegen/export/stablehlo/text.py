"""How MLIR writes types, names and constants. Constants come in pieces, so that a large one is never in memory as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.holes import rows_of
from trustformers_ir.ir.ops.unary import real_part

#: what the dialect calls a dtype
WORDS: Mapping[DType, str] = {
    DType.bool: "i1", DType.i8: "i8", DType.i16: "i16", DType.i32: "i32", DType.i64: "i64", DType.u8: "ui8", DType.u16: "ui16", DType.u32: "ui32",
    DType.u64: "ui64", DType.f8e4m3: "f8E4M3FN", DType.f16: "f16", DType.bf16: "bf16", DType.f32: "f32", DType.f64: "f64",
    DType.c64: "complex<f32>", DType.c128: "complex<f64>",
}  # fmt: skip
LISTED = 16  # whole numbers up to which a constant is written as a list
_LETTERS = re.compile(r"[^\w$.-]", re.ASCII)
_PLAIN = re.compile(r"[^ !#-\[\]-~]")


def tensor(dtype: DType, shape: Sequence[Dim]) -> str:
    """``tensor<?x4xf32>``: sizes that are not known before it runs are question marks."""
    return f"tensor<{''.join(f'{d}x' if isinstance(d, int) else '?x' for d in shape)}{WORDS[dtype]}>"


def identifier(like: str) -> str:
    """What may stand behind ``%`` or ``@``, and begins with a letter."""
    stem = _LETTERS.sub("_", like)
    return stem if stem and not stem[0].isdigit() and stem[0] != "-" else f"_{stem}"


def quoted(text: str) -> str:
    """A string of MLIR."""
    return '"' + _PLAIN.sub(lambda m: "".join(f"\\{b:02X}" for b in m[0].encode("utf-8", "surrogatepass")), text) + '"'


def number(value: Any, dtype: DType) -> str:
    """One element, exactly: the fewest decimals that give it back, or its bits."""
    if dtype is DType.bool:
        return "true" if value else "false"
    if dtype.is_complex:
        part = real_part(dtype)
        whole = complex(value)
        return f"({number(whole.real, part)}, {number(whole.imag, part)})"
    if not dtype.is_float:
        return str(int(value))
    if not math.isfinite(value):
        bits = np.asarray(value, dtype.numpy).view(f"u{dtype.itemsize}")
        return f"0x{int(bits):0{2 * dtype.itemsize}X}"
    mantissa, _, exponent = repr(float(value)).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{f'e{exponent}' if exponent else ''}"


def dense(array: np.ndarray, dtype: DType) -> Iterator[str]:
    """``dense<…>`` of a constant: one number where all are the same, a short list of whole numbers, or bytes in hexadecimal."""
    array = np.asarray(array, dtype.numpy)
    if not array.size:
        yield "dense<>"
        return
    if _is_splat(array):
        yield f"dense<{number(array.reshape(-1)[0], dtype)}>"
        return
    if dtype is DType.bool or (dtype.is_integer and array.size <= LISTED):
        yield f"dense<{_listed(array, dtype)}>"
        return
    yield 'dense<"0x'
    for rows in rows_of(array):
        yield np.ascontiguousarray(rows).tobytes().hex().upper()
    yield '">'


def _is_splat(array: np.ndarray) -> bool:
    """Whether all elements have the same bits."""
    first = np.ascontiguousarray(array.reshape(-1)[:1]).tobytes()
    for rows in rows_of(array):
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(-1, len(first))
        if (data[0] != data[-1]).any() or (data != np.frombuffer(first, np.uint8)).any():
            return False
    return True


def _listed(array: np.ndarray, dtype: DType) -> str:
    if array.ndim == 0:
        return number(array[()], dtype)
    return f"[{', '.join(_listed(row, dtype) for row in array)}]"
