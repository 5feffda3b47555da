"""Elementary functions as kernel IR, so that every backend computes the same bits.

An f32 function is one expression of additions, multiplications, fused multiply-adds, comparisons, selects and integer operations on the
bits. Coefficients are minimax fits (Lawson's iteration in 80-bit arithmetic, on Chebyshev grids, targets evaluated with 120 bits).

* *Hot* functions (exp, expm1, sigmoid, tanh, erf, log) work in f32: at most 3 ulp, denormals, infinities and NaN included.
* *The others* widen to f64, use polynomials good to 1e-15 there, and round once: about 0.5 ulp.

f64 functions are those of the C library (``LIBM``), called lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trustformers_ir.codegen.kernel_ir.nodes import (
    Binary,
    Const,
    Expr,
    Unary,
    binary,
    cast,
    const,
    eq,
    fma,
    maximum,
    minimum,
    ne,
    select,
    unary,
)
from trustformers_ir.codegen.kernel_ir.optable import LIBM_UNARY
from trustformers_ir.ir.dtypes import DType

f32, f64, i32, i64 = DType.f32, DType.f64, DType.i32, DType.i64

#: The C library's name of each function that f64 uses.
LIBM: dict[str, str] = {name: name for name in (*LIBM_UNARY, "pow", "atan2")}

LN2 = 0.6931471805599453
PI_2, PI_2_LO = 1.5707963267948966, 6.123233995736766e-17


def expand(e: Unary | Binary) -> Expr | None:
    """The expansion of an operator, or None when it is primitive or the C library's."""
    if isinstance(e, Unary):
        both = _UNARY_ANY.get(e.op)
        if both is not None:
            return both(e.x)
        rule = _UNARY_F32.get(e.op)
        return rule(e.x) if rule is not None and e.x.dtype is f32 else None
    if e.op not in _BINARY or not e.a.dtype.is_float:
        return None
    return _BINARY[e.op](e.a, e.b)


def _c(value: float, like: Expr) -> Const:
    return const(value, like.dtype)


def _horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """``c0 + c1*x + c2*x^2 + …``, one fma each."""
    total: Expr = _c(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        total = fma(total, x, _c(c, x))
    return total


def _bits(x: Expr) -> Expr:
    return unary("bits", x)


def _from_bits(x: Expr) -> Expr:
    return unary("from_bits", x)


def _signed(magnitude: Expr, sign: Expr) -> Expr:
    """``magnitude`` (not negative) with the sign bit of ``sign``."""
    integer = i32 if sign.dtype is f32 else i64
    return _from_bits(_bits(magnitude) | (_bits(sign) & const(integer.min, integer)))


def _odd_at_zero(x: Expr, y: Expr, tiny: float = 1e-20) -> Expr:
    """``y``, but ``x`` itself where that is the result anyway: keeps -0 and the last bit of denormals."""
    return select(abs(x) < tiny, x, y)


# -- f32: exp and its family ---------------------------------------------------------------------------------------------
#
# exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n*ln 2 (in two parts, the first with trailing zeros so that n*HI is exact).
# Adding 1.5*2^23 rounds to an integer and leaves it in the low bits. exp(r) = 1 + r + r^2 q(r) on |r| <= ln2 / 2.
# 2^n may lie outside the normal range while 2^n * exp(r) does not (and a denormal must be rounded once): multiply by 2^(n//2) and
# 2^(n - n//2); the first product is exact.

_MAGIC32, _MAGIC32_BITS = 12582912.0, 0x4B400000
_EXP_HI, _EXP_LO = 0.693145751953125, 1.42860677e-06
_EXP = (0.5, 0.1666666567325592, 0.041666463017463684, 0.008333570323884487, 0.001393508748151362, 0.00019740320567507297)
_EXPM1 = (0.5, 0.1666666567325592, 0.04166649281978607, 0.008333545178174973, 0.0013932330766692758, 0.00019762571901082993)


def _reduce_exp(x: Expr) -> tuple[Expr, Expr]:
    """(n as i32, r)."""
    shifted = fma(x, math.log2(math.e), _MAGIC32)
    n = shifted - _MAGIC32
    r = fma(n, -_EXP_LO, fma(n, -_EXP_HI, x))
    return _bits(shifted) - _MAGIC32_BITS, r


def _power_of_two(n: Expr) -> Expr:
    """2^n for a normal exponent, n being i32."""
    return _from_bits((n + 127) << 23)


def exp(x: Expr) -> Expr:
    """e^x in f32."""
    n, r = _reduce_exp(x)
    p = fma(_horner(r, _EXP), r * r, r) + 1.0
    half = n >> 1
    y = p * _power_of_two(half) * _power_of_two(n - half)
    y = select(x > 88.72283935546875, math.inf, y)
    return select(x < -103.97208404541016, 0.0, y)


def exp_down(x: Expr) -> Expr:
    """e^x for ``x <= 0`` (or NaN), as softmax needs it: ``exp`` in two thirds of its instructions, but 0 below -87, near the end of f32's
    range. The C library's exp in f64."""
    if x.dtype is not f32:
        return unary("exp", x)
    shifted = fma(x, math.log2(math.e), _MAGIC32)
    n = shifted - _MAGIC32
    r = fma(n, -_EXP_LO, fma(n, -_EXP_HI, x))
    p = fma(_horner(r, _EXP), r * r, r) + 1.0
    return select(x < -87.0, 0.0, p * _from_bits((_bits(shifted) << 23) + 0x3F800000))


def _expm1_core(x: Expr) -> Expr:
    """e^x - 1 where it is finite and x >= -100: 2 * (2^(n-1) (exp(r) - 1) + (2^(n-1) - 1/2)), with n - 1 so that the largest
    results do not overflow early."""
    n, r = _reduce_exp(x)
    p = fma(_horner(r, _EXPM1), r * r, r)
    s = _power_of_two(n - 1)
    return fma(s, p, s - 0.5) * 2.0


def expm1(x: Expr) -> Expr:
    """e^x - 1 in f32."""
    y = select(x > 88.72283935546875, math.inf, _expm1_core(x))
    y = select(x < -20.0, -1.0, y)
    return _odd_at_zero(x, y, 2.0**-26)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x), written with e = exp(-|x|) so that nothing overflows and the small tail keeps its digits."""
    if x.dtype is f64:
        return unary("recip", unary("exp", -x) + 1.0)
    e = exp(-abs(x))
    return select(x < 0.0, e, 1.0) / (e + 1.0)


# -- f32: tanh and erf -----------------------------------------------------------------------------------------------------
#
# tanh a = m / (m + 2) with m = e^(2a) - 1 and a = |x|: near 1 the error of m cancels, near 0 it is that of expm1.
#
# erf: below 1.25 the odd polynomial x + x * S(x^2), S(0) = 2/sqrt(pi) - 1 (1.3e-9). From there 1 - 1 / L(|x|)^8, where L is fitted to
# erfc^(-1/8), which grows gently, for an error of 4e-9 in erfc; rounding L matters 8 erfc(1.25) = 0.6 times. L^8 overflows to inf in time.

_ERF_SMALL = (
    0.12837916612625122,
    -0.3761262893676758,
    0.11283658444881439,
    -0.026859493926167488,
    0.005207476671785116,
    -0.000832383637316525,
    0.00010315333202015609,
    -7.420451765938196e-06,
)
_ERF_LARGE = (
    0.9859175682067871,
    0.20326410233974457,
    -0.02831757254898548,
    0.148962140083313,
    -0.07612133026123047,
    0.03235163167119026,
    -0.006710402201861143,
    0.0007556808996014297,
)


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent in f32."""
    a = abs(x)
    m = _expm1_core(a + a)
    y = select(a > 9.02, 1.0, m / (m + 2.0))
    return _odd_at_zero(x, _signed(y, x), 2.0**-12)


def erf(x: Expr) -> Expr:
    """Error function in f32."""
    a, z = abs(x), x * x
    small = fma(_horner(z, _ERF_SMALL), x, x)
    root = _horner(a, _ERF_LARGE)
    square = root * root
    fourth = square * square
    large = 1.0 - unary("recip", fourth * fourth)
    return select(a < 1.25, small, _signed(large, x))


# -- f32: the normal distribution function ---------------------------------------------------------------------------------
#
# Phi(x) = 1/2 + copysign(F(|x|), x), where 1 - 2 F = 2 Q(a) is twice the upper tail. Like Abramowitz & Stegun 7.1.28 it takes an eighth root of
# the tail, a function so gentle that a short polynomial does; but three squarings lead back from it where they divide by an eighth power: with
# 1 - 2 g = (1 - 2 f)^2 comes g = 2 f - 2 f^2, an addition and a fused multiply-add that keep the digits of small f. The polynomial
# f = (1 - (2 Q)^(1/8)) / 2 has no constant term and is off by 2.2e-9 in Phi. From 5.5 on F rounds to 1/2.
#
# Pairs of terms, then a chain over a^2: one multiplication more than Horner's chain, and 12 cycles shorter. Behind a product it is the length of
# chains that counts. 16 values take 11 cycles of a Zen 5 core, and 21 with the erf above (two polynomials, a division, a select). x Phi(x) is off by
# 0.56 * 2^-24 |x| on average and 2.1 at most, where erf gave 0.55 and 1.8; to the left of -5.5 it is -0 as before.

_NORMAL = (
    0.04986777529120445,
    0.017407702282071114,
    0.0003688973083626479,
    -0.0008230293169617653,
    -1.698801679594908e-05,
    3.226416083634831e-05,
    -3.971962996729417e-06,
    1.5363431771220348e-07,
)


def normal_cdf(x: Expr) -> Expr:
    """The probability that a standard normal variable is at most ``x``; 0 or 1 beyond 5.7, for NaN one of both."""
    if x.dtype is not f32:
        return fma(unary("erf", x * math.sqrt(0.5)), 0.5, 0.5)
    a = abs(x)
    a = select(a < 5.7, a, 5.7)
    square = a * a
    pairs = [fma(_c(odd, a), a, even) for even, odd in zip(_NORMAL[::2], _NORMAL[1::2], strict=True)]
    total = pairs[-1]
    for pair in reversed(pairs[:-1]):
        total = fma(total, square, pair)
    f = total * a
    for _ in range(3):
        twice = f + f
        f = fma(-f, twice, twice)
    return _signed(f, x) + 0.5


# -- f32: log --------------------------------------------------------------------------------------------------------------
#
# x = 2^e * m, sqrt(1/2) <= m < sqrt(2), read off the bits (denormals first times 2^23). With f = m - 1, exact:
# log(m) = f - f^2/2 + f^3 P(f); e*ln2 is added in two parts, small terms first.

_LOG = (
    0.3333331346511841,
    -0.25000008940696716,
    0.2000207155942917,
    -0.16667990386486053,
    0.14220362901687622,
    -0.12406208366155624,
    0.1188347116112709,
    -0.11670183390378952,
    0.06749540567398071,
)


def log(x: Expr) -> Expr:
    """Natural logarithm in f32."""
    small = x < 2.0**-126
    bits = _bits(select(small, x * 2.0**23, x))
    e = (bits - 0x3F3504F3) >> 23
    f = _from_bits(bits - (e << 23)) - 1.0
    n = cast(e, f32) - select(small, const(23.0, f32), 0.0)
    z = f * f
    y = fma(n, _EXP_LO, _horner(f, _LOG) * (z * f))
    y = fma(z, -0.5, y) + f
    y = fma(n, _EXP_HI, y)
    y = select(eq(x, 0.0), -math.inf, y)
    y = select(eq(x, math.inf), math.inf, y)
    return select(x < 0.0, math.nan, select(unary("isnan", x), x, y))


# -- f64 polynomials for the less hot f32 functions -----------------------------------------------------------------------

_MAGIC64 = 6755399441055744.0
_EXP_WIDE = (
    0.4999999999999832,
    0.16666666666611332,
    0.04166666666814239,
    0.008333333370983046,
    0.001388888851510625,
    0.00019841185066643598,
    2.4801932407229878e-05,
    2.7635068586142187e-06,
    2.747671679057397e-07,
)
_LOG_WIDE = (
    0.6666666666666735,
    0.3999999999941105,
    0.28571428743271715,
    0.22222198475083813,
    0.1818356978467372,
    0.15313902162796758,
    0.14797517853591227,
)
_SIN_WIDE = (
    -0.16666666666666632,
    0.008333333333322368,
    -0.00019841269829769533,
    2.7557313678104497e-06,
    -2.5050755875694754e-08,
    1.5896661706509464e-10,
)
_COS_WIDE = (
    0.0416666666666666,
    -0.0013888888888874027,
    2.4801587289418874e-05,
    -2.75573143335235e-07,
    2.08757206605286e-09,
    -1.1359510170385569e-11,
)
_ATAN_WIDE = (
    -0.33333333333261,
    0.19999999982844602,
    -0.14285712882544407,
    0.11111054687038678,
    -0.09089619449354007,
    0.07674358757729198,
    -0.0651045844892987,
    0.050380076885542746,
    -0.02548096423124214,
)


def _exp2_wide(t: Expr) -> Expr:
    """2^t for f64, |t| cut to 1000: far outside f32."""
    t = maximum(minimum(t, 1000.0), -1000.0)
    shifted = t + _MAGIC64
    r = (t - (shifted - _MAGIC64)) * LN2
    p = fma(_horner(r, _EXP_WIDE), r * r, r) + 1.0
    return p * _from_bits((_bits(shifted) + 1023) << 52)


def _exp_wide(x: Expr) -> Expr:
    return _exp2_wide(x * (1.0 / LN2))


def _log_wide(x: Expr) -> Expr:
    """ln x for f64: log m = 2s + s^3 R(s^2) with s = (m-1)/(m+1); exact limits at 0, inf, NaN below 0."""
    bits = _bits(x)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = _from_bits(bits - (e << 52))
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    y = fma(cast(e, f64), LN2, fma(_horner(z, _LOG_WIDE), z * s, s * 2.0))
    y = select(eq(x, 0.0), -math.inf, select(eq(x, math.inf), math.inf, y))
    return select(x < 0.0, math.nan, select(unary("isnan", x), x, y))


def _wide(f: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    """An f32 function computed in f64."""
    return lambda x: cast(f(cast(x, f64)), f32)


def _log1p_wide(x: Expr) -> Expr:
    return select(abs(x) < 2.0**-29, x, _log_wide(x + 1.0))


def _sin_cos(x: Expr) -> tuple[Expr, Expr, Expr]:
    """(sin r, cos r, quadrant) with x = quadrant * pi/2 + r; x is f64, good to |x| = 2^50."""
    shifted = fma(x, 1.0 / PI_2, _MAGIC64)
    n = shifted - _MAGIC64
    r = fma(n, -PI_2_LO, fma(n, -PI_2, x))
    z = r * r
    return fma(_horner(z, _SIN_WIDE), z * r, r), fma(_horner(z, _COS_WIDE), z * z, fma(z, -0.5, 1.0)), _bits(shifted) & 3


def _sin_wide(x: Expr) -> Expr:
    s, c, q = _sin_cos(x)
    y = select(eq(q & 1, 0), s, c)
    return _odd_at_zero(x, select(eq(q & 2, 0), y, -y))


def _cos_wide(x: Expr) -> Expr:
    s, c, q = _sin_cos(x)
    y = select(eq(q & 1, 0), c, s)
    return select(eq((q + 1) & 2, 0), y, -y)


def _tan_wide(x: Expr) -> Expr:
    s, c, q = _sin_cos(x)
    swap = ne(q & 1, 0)
    return _odd_at_zero(x, select(swap, -c, s) / select(swap, s, c))


def _atan_unit(t: Expr) -> Expr:
    """atan on [0, 1]: above tan(pi/8) by atan t = pi/4 + atan((t-1)/(t+1))."""
    big = t > 0.41421356237309503
    u = select(big, (t - 1.0) / (t + 1.0), t)
    z = u * u
    return fma(_horner(z, _ATAN_WIDE), z * u, u) + select(big, const(PI_2 / 2, f64), 0.0)


def _atan2_wide(y: Expr, x: Expr) -> Expr:
    """The angle of (x, y), with C's answers for zeros and infinities."""
    ax, ay = abs(x), abs(y)
    steep = ay > ax
    low, high = select(steep, ax, ay), select(steep, ay, ax)
    t = select(eq(low, high), 1.0, low / high)  # also inf / inf
    t = select(eq(high, 0.0), 0.0, t)
    a = _atan_unit(t)
    a = select(steep, PI_2 - a, a)
    a = select(_bits(x) < 0, 2 * PI_2 - a, a)
    a = select(unary("isnan", x), x, select(unary("isnan", y), y, a))
    return _signed(a, y)


def _atan_wide(x: Expr) -> Expr:
    return _odd_at_zero(x, _atan2_wide(x, _c(1.0, x)))


def _asin_wide(x: Expr) -> Expr:
    return _odd_at_zero(x, _atan2_wide(x, unary("sqrt", (1.0 - x) * (x + 1.0))))


def _acos_wide(x: Expr) -> Expr:
    return _atan2_wide(unary("sqrt", (1.0 - x) * (x + 1.0)), x)


def _sinh_wide(x: Expr) -> Expr:
    e = _exp_wide(x)
    z = x * x
    series = fma(x * z, _horner(z, (1 / 6, 1 / 120)), x)
    return select(abs(x) < 0.01, series, (e - unary("recip", e)) * 0.5)


def _cosh_wide(x: Expr) -> Expr:
    e = _exp_wide(x)
    return (e + unary("recip", e)) * 0.5


def _asinh_wide(x: Expr) -> Expr:
    a = abs(x)
    z = x * x
    series = fma(x * z, _horner(z, (-1 / 6, 3 / 40)), x)
    return _odd_at_zero(x, select(a < 0.002, series, _signed(_log_wide(a + unary("sqrt", fma(a, a, 1.0))), x)))


def _acosh_wide(x: Expr) -> Expr:
    return select(x < 1.0, math.nan, _log_wide(x + unary("sqrt", (x - 1.0) * (x + 1.0))))


def _atanh_wide(x: Expr) -> Expr:
    z = x * x
    series = fma(x * z, _horner(z, (1 / 3, 1 / 5)), x)
    return select(abs(x) < 0.002, series, _log_wide((x + 1.0) / (1.0 - x)) * 0.5)


def _pow_wide(x: Expr, y: Expr) -> Expr:
    """x^y = 2^(y log2 |x|) with C's special cases, for f64 holding f32 values."""
    a = abs(x)
    t = y * (_log_wide(a) * (1.0 / LN2))
    r = select(eq(a, 1.0) | eq(y, 0.0), 1.0, _exp2_wide(t))
    whole = eq(unary("trunc", y), y)
    half = y * 0.5
    odd = whole & ne(unary("trunc", half), half)
    r = select((_bits(x) < 0) & odd, -r, r)
    bad = (x < 0.0) & (x > -math.inf) & ~whole
    r = select(bad, math.nan, r)
    r = select(unary("isnan", x) | unary("isnan", y), math.nan, r)
    return select(eq(x, 1.0) | eq(y, 0.0), 1.0, r)


# -- binary functions -----------------------------------------------------------------------------------------------------


def _pow(x: Expr, y: Expr) -> Expr | None:
    if isinstance(y, Const):
        if y.value == 1.0:
            return x
        if y.value == 2.0:
            return x * x
        if y.value == -1.0:
            return unary("recip", x)
        if y.value == 0.5:  # pow(-inf, 0.5) is inf and pow(-0, 0.5) is 0
            return select(eq(x, -math.inf), math.inf, unary("sqrt", x + 0.0))
        if y.value == 3.0 and x.dtype is f32:
            w = cast(x, f64)
            return cast(w * w * w, f32)
    if x.dtype is f64:
        return None
    return cast(_pow_wide(cast(x, f64), cast(y, f64)), f32)


def _atan2(y: Expr, x: Expr) -> Expr | None:
    return None if x.dtype is f64 else cast(_atan2_wide(cast(y, f64), cast(x, f64)), f32)


def _mod(a: Expr, b: Expr) -> Expr:
    """The remainder with the divisor's sign, as Python and numpy define it."""
    r = binary("rem", a, b)
    moved = select(ne(r < 0.0, b < 0.0), r + b, r)
    zero = _signed(_c(0.0, b), b)
    return select(eq(r, 0.0), zero, moved)


def _floordiv(a: Expr, b: Expr) -> Expr:
    """numpy's floor_divide: (a - mod) / b snapped to the nearest integer."""
    if a.dtype is f32:
        return cast(_floordiv(cast(a, f64), cast(b, f64)), f32)
    r = binary("rem", a, b)
    q = (a - r) / b
    q = select(ne(r, 0.0) & ne(b < 0.0, r < 0.0), q - 1.0, q)
    whole = unary("floor", q)
    whole = select(q - whole > 0.5, whole + 1.0, whole)
    zero = _signed(_c(0.0, a), a / b)
    return select(eq(b, 0.0), a / b, select(eq(q, 0.0), zero, whole))


_UNARY_ANY: dict[str, Callable[[Expr], Expr]] = {
    "sigmoid": sigmoid,
    "normal_cdf": normal_cdf,
    "rsqrt": lambda x: unary("recip", unary("sqrt", x)),
    "fast_exp2": lambda x: unary("exp2", x),  # where it is no instruction, which is off by up to 2^-22 and may give 0 for what is no normal number
}
_UNARY_F32: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp,
    "expm1": expm1,
    "tanh": tanh,
    "erf": erf,
    "log": log,
    "exp2": _wide(_exp2_wide),
    "log2": _wide(lambda x: _log_wide(x) * (1.0 / LN2)),
    "log10": _wide(lambda x: _log_wide(x) * (1.0 / math.log(10.0))),
    "log1p": _wide(_log1p_wide),
    "sin": _wide(_sin_wide),
    "cos": _wide(_cos_wide),
    "tan": _wide(_tan_wide),
    "asin": _wide(_asin_wide),
    "acos": _wide(_acos_wide),
    "atan": _wide(_atan_wide),
    "sinh": _wide(_sinh_wide),
    "cosh": _wide(_cosh_wide),
    "asinh": _wide(_asinh_wide),
    "acosh": _wide(_acosh_wide),
    "atanh": _wide(_atanh_wide),
}
_BINARY: dict[str, Callable[[Expr, Expr], Expr | None]] = {"pow": _pow, "atan2": _atan2, "mod": _mod, "floordiv": _floordiv}
