"""Inline constants as text: ``f32[2, 2] dense [1.0, 2.0, 3.0, 4.0]``, ``f32[4] splat 1.0``, or ``f32[2] hex "0000803f00000040"``.

``dense`` and ``splat`` are used where they give the same bytes back, hex (little endian, C order) everywhere else: for long constants and for
NaNs with a payload. A splat is small text for many bytes, so the bytes that splats may ask for are limited, each and together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dtypes import DType, Kind
from trustformers_ir.ir.ops.data import Literal
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.text.lexer import MAX_INTEGER, Lexer
from trustformers_ir.ir.text.scalars import float_text, parse_float

MAX_DENSE = 64  # elements written one by one
MAX_SPLAT = 1 << 20  # bytes of one splat
MAX_SPLATS = 1 << 24  # bytes of all splats of a module
MAX_RANK = 32  # numpy's limit
MAX_SIZE = (1 << 31) - 1  # of one axis of a literal


@dataclass
class SplatBudget:
    """How many bytes the splats of a module may still ask for. Printer and parser count alike."""

    left: int = MAX_SPLATS

    def take(self, size: int) -> bool:
        if size > min(MAX_SPLAT, self.left):
            return False
        self.left -= size
        return True


def literal_text(literal: Literal, budget: SplatBudget) -> str:
    """The text of a literal; :func:`parse_literal` gives the same bytes back."""
    kind = f"{literal.dtype}[{', '.join(map(str, literal.shape))}]"
    size = literal.dtype.itemsize
    count = len(literal.data) // size
    if count > 1 and literal.data == literal.data[:size] * count:
        element = _element_texts(Literal(literal.dtype, (1,), literal.data[:size]))
        if element is not None and budget.take(len(literal.data)):
            return f"{kind} splat {element[0]}"
    elements = _element_texts(literal) if count <= MAX_DENSE else None
    if elements is not None:
        return f"{kind} dense [{', '.join(elements)}]"
    return f'{kind} hex "{literal.data.hex()}"'


def parse_literal(lexer: Lexer, budget: SplatBudget) -> Literal:
    token = lexer.expect_kind("name", "a dtype")
    if token.text not in DType.__members__:
        lexer.fail(f"{token} is not a dtype", token, Code.BAD_TYPE)
    dtype = DType[token.text]
    lexer.expect("[")
    shape: list[int] = []
    while not lexer.accept("]"):
        if shape:
            lexer.expect(",")
        shape.append(lexer.integer("a size", 0, MAX_SIZE))
        if len(shape) > MAX_RANK:
            lexer.fail(f"a literal of more than {MAX_RANK} axes", code=Code.TEXT_LIMIT)
    count = math.prod(shape)
    form = lexer.expect_kind("name", "dense, splat or hex")
    match form.text:
        case "dense":
            data = _parse_dense(lexer, dtype, count)
        case "splat":
            if not budget.take(count * dtype.itemsize):
                message = f"a splat of {count * dtype.itemsize} bytes; {MAX_SPLAT} are the most for one, {MAX_SPLATS} for a module"
                lexer.fail(message, form, Code.TEXT_LIMIT, "make it a weight, or broadcast a scalar")
            data = _parse_element(lexer, dtype) * count
        case "hex":
            data = _parse_hex(lexer, count * dtype.itemsize)
        case _:
            lexer.fail(f"expected dense, splat or hex, found {form}", form)
    return Literal(dtype, tuple(shape), data)


# --- printing ----------------------------------------------------------------------------------------------------------------------


def _element_texts(literal: Literal) -> list[str] | None:
    """One text per element, or None when the bytes cannot be had back from texts."""
    if literal.dtype.kind is Kind.BOOL and set(literal.data) - {0, 1}:
        return None
    elements = literal.array.reshape(-1)
    size = literal.dtype.itemsize
    out = []
    for i, element in enumerate(elements):
        data = literal.data[i * size : (i + 1) * size]
        text = next((t for t in _candidates(element, literal.dtype) if _parse_element(Lexer(t), literal.dtype) == data), None)
        if text is None:
            return None
        out.append(text)
    return out


def _candidates(element: Any, dtype: DType) -> list[str]:
    """Texts that may stand for the element, the shortest first. Of a float: the shortest decimal of its own width, then that of f64."""
    if dtype.kind is Kind.BOOL:
        return ["true" if element else "false"]
    if dtype.is_integer:
        return [str(int(element))]
    if dtype.is_complex:
        real, imag = (_candidates(part, DType.f32 if dtype is DType.c64 else DType.f64) for part in (element.real, element.imag))
        return [f"({r}, {i})" for r, i in zip(real, imag, strict=True)]
    wide = float(element)
    return [float_text(float(str(element))) if math.isfinite(wide) else float_text(wide), float_text(wide)]


# --- parsing -----------------------------------------------------------------------------------------------------------------------


def _parse_dense(lexer: Lexer, dtype: DType, count: int) -> bytes:
    opening = lexer.expect("[")
    if count > len(lexer.text) - opening.end:
        lexer.fail(f"{count} elements are announced, and the text ends before that", opening, Code.BAD_ATTRIBUTE)
    data = bytearray()
    lexer.skip_newlines()
    found = 0
    while not lexer.at("]"):
        if found:
            lexer.expect(",")
            lexer.skip_newlines()
        if found == count:
            lexer.fail(f"more than the {count} elements that the shape announces", code=Code.BAD_ATTRIBUTE)
        data += _parse_element(lexer, dtype)
        found += 1
        lexer.skip_newlines()
    if found != count:
        lexer.fail(f"{found} elements where the shape announces {count}", code=Code.BAD_ATTRIBUTE)
    lexer.take()
    return bytes(data)


def _parse_element(lexer: Lexer, dtype: DType) -> bytes:
    start = lexer.peek()
    if dtype.kind is Kind.BOOL:
        if not (lexer.at("true") or lexer.at("false")):
            lexer.fail(f"expected true or false, found {start}", code=Code.BAD_ATTRIBUTE)
        return b"\x01" if lexer.take().text == "true" else b"\x00"
    if dtype.is_integer:
        value = lexer.integer(f"a {dtype}", -MAX_INTEGER, MAX_INTEGER)
        if not dtype.min <= value <= dtype.max:
            lexer.fail(f"{value} does not fit {dtype}", start, Code.BAD_ATTRIBUTE)
        return value.to_bytes(dtype.itemsize, "little", signed=dtype.is_signed)
    if dtype.is_complex:
        part = DType.f32 if dtype is DType.c64 else DType.f64
        lexer.expect("(")
        real = _parse_element(lexer, part)
        lexer.expect(",")
        imag = _parse_element(lexer, part)
        lexer.expect(")")
        return real + imag
    number = parse_float(lexer)
    rounded = round_to(np.float64(number), dtype)
    if math.isfinite(number) and not np.isfinite(rounded.astype(np.float64)):
        lexer.fail(f"{start} is beyond the range of {dtype}", start, Code.BAD_ATTRIBUTE, "infinity is written inf or -inf")
    return rounded.tobytes()


def _parse_hex(lexer: Lexer, size: int) -> bytes:
    token = lexer.peek()
    digits = lexer.string("the bytes as hex digits", limit=None)
    if len(digits) != 2 * size:
        lexer.fail(f"{len(digits)} hex digits where the shape needs {2 * size}", token, Code.BAD_ATTRIBUTE)
    try:
        data = bytes.fromhex(digits)
    except ValueError:
        data = b""
    if len(data) != size:  # fromhex skips blanks
        lexer.fail("the string holds something that is not a hex digit", token, Code.BAD_ATTRIBUTE)
    return data
