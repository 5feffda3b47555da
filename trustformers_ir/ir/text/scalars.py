"""Numbers, strings and names as text, exactly: what is printed reads back bit for bit."""

from __future__ import annotations

import json
import math
import re
import struct

from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.text.lexer import MAX_NUMBER, Lexer

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*\Z")  # what may follow % or @ without quotes
# Characters that a reader cannot see or that end lines somewhere: controls, separators, direction marks, surrogates, byte order marks.
_UNSEEN = re.compile("[\x7f-\xa0\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]")
_NAN = 0x7FF8000000000000


def quote(text: str) -> str:
    """A JSON string; characters that cannot be seen are escaped."""
    return _UNSEEN.sub(lambda m: f"\\u{ord(m.group()):04x}", json.dumps(text, ensure_ascii=False))


def global_name(name: str) -> str:
    """``@name``, quoted where it is not made of letters, digits, ``_``, ``.`` and ``$``."""
    return f"@{name}" if NAME.match(name) else f"@{quote(name)}"


def float_text(value: float) -> str:
    """The shortest decimal that reads back as ``value``; ``inf``, ``nan``; a NaN of other bits as ``nan(0x…)``."""
    if math.isnan(value):
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        return "nan" if bits == _NAN else f"nan(0x{bits:016x})"
    return repr(value)


def parse_float(lexer: Lexer) -> float:
    token = lexer.peek()
    if token.kind == "name" and token.text in ("inf", "nan"):
        lexer.take()
        return _nan_bits(lexer) if token.text == "nan" and lexer.accept("(") else float(token.text)
    if token.kind != "number" or token.text.startswith(("0x", "-0x")):
        lexer.fail(f"expected a number, found {token}", code=Code.BAD_ATTRIBUTE)
    if len(token.text) > MAX_NUMBER:
        lexer.fail(f"a number of {len(token.text)} characters; {MAX_NUMBER} are the most", code=Code.TEXT_LIMIT)
    value = float(token.text)
    if math.isinf(value) and "inf" not in token.text:
        lexer.fail(f"{token} is beyond the range of f64", code=Code.BAD_ATTRIBUTE, help="infinity is written inf or -inf")
    lexer.take()
    return value


def _nan_bits(lexer: Lexer) -> float:
    token = lexer.expect_kind("number", "the bits of a NaN, as 0x7ff8000000000000")
    bits = int(token.text, 16) if token.text.startswith("0x") and len(token.text) == 18 else 0
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    if not math.isnan(value):
        lexer.fail(f"{token} is not the 64 bits of a NaN", token, Code.BAD_ATTRIBUTE)
    lexer.expect(")")
    return float(value)
