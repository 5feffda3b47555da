"""Conversions: a chain of casts is one cast where the step in between loses nothing.

f64 -> f32 -> f16 rounds twice and stays; f16 -> f32 -> f64 does not. Integers leave through floats saturated but wrap among themselves, so
i8 -> f32 -> u8 stays as well.
"""

from __future__ import annotations

from trustformers_ir.ir.dtypes import BOOL, EVERY, INTS, REAL, DType
from trustformers_ir.ir.ops import Cast, Dropout, Imag, Real
from trustformers_ir.ir.ops.elementwise import casts_eighths
from trustformers_ir.ir.ops.unary import real_part
from trustformers_ir.ir.rewriting import Match, Rule, node, var
from trustformers_ir.passes.rules.common import everywhere, give, keeps_type

x = var("x", EVERY)

_DIGITS = {DType.f8e4m3: 4, DType.f16: 11, DType.bf16: 8, DType.f32: 24, DType.f64: 53}  # of the significand
_WIDER = {
    DType.f8e4m3: {DType.f16, DType.bf16, DType.f32, DType.f64},
    DType.f16: {DType.f32, DType.f64},
    DType.bf16: {DType.f32, DType.f64},
    DType.f32: {DType.f64},
    DType.f64: set[DType](),
}


def lossless(source: DType, target: DType) -> bool:
    """Whether ``target`` holds every value of ``source``."""
    if source is target or source is DType.bool:
        return True
    if target is DType.bool or (source.is_complex and not target.is_complex):
        return False
    source, target = real_part(source), real_part(target)
    if source.is_float:
        return source is target or target in _WIDER[source]
    if target.is_float:
        return max(source.max.bit_length(), (-source.min - 1).bit_length()) <= _DIGITS[target]
    return target.min <= source.min and source.max <= target.max


def _one_step(m: Match) -> str | None:
    source, middle, target = m["x"].type.dtype, m.op("inner").dtype, m.op().dtype
    if not lossless(source, middle):
        return f"{source} to {middle} loses values"
    if not casts_eighths(source, target):
        return f"there is no cast from {source} to {target}"
    if target.is_integer and not source.is_float and middle.is_float and not lossless(source, target):
        return f"{middle} to {target} saturates, {source} to {target} wraps"
    return None


def _truncates(m: Match) -> str | None:
    middle, target = m.op("inner").dtype, m.op().dtype
    return None if middle.is_integer and target.is_integer and target.bits <= middle.bits else f"{middle} does not hold the low bits of {target}"


def _through_float64(m: Match) -> str | None:
    """A cast to complex goes through c128: a 64-bit integer that becomes a c64 is rounded twice."""
    return None if m.type.dtype is DType.f64 or lossless(m["x"].type.dtype, DType.f64) else "the cast to complex rounds twice"


RULES: tuple[Rule, ...] = (
    Rule("cast_nothing", "a cast to x's own dtype", node(Cast, x, where=keeps_type), give("x")),
    Rule(
        "cast_cast",
        "cast(cast(x)) = cast(x) where the inner cast loses nothing",
        node(Cast, node(Cast, x, name="inner"), name="outer"),
        lambda m, b: b(m.op(), m["x"]),
        _one_step,
    ),
    Rule(
        "cast_low_bits",
        "integers cut down in two steps are cut down in one",
        node(Cast, node(Cast, var("x", INTS), name="inner")),
        lambda m, b: b(m.op(), m["x"]),
        _truncates,
    ),
    Rule(
        "real_cast",
        "real(cast(x)) = cast(x) for a real x",
        node(Real, node(Cast, var("x", REAL | BOOL))),
        lambda m, b: b(Cast(m.type.dtype), m["x"]),
        _through_float64,
    ),
    Rule("imag_cast", "imag(cast(x)) = 0 for a real x", node(Imag, node(Cast, var("x", REAL | BOOL))), everywhere(0)),
    Rule("dropout", "nothing is dropped at inference", node(Dropout, x), give("x")),
)
