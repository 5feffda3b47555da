"""What each scalar operator of the kernel IR is in Triton: a table of texts, and the few functions that they call.

``{0}``, ``{1}`` are the operands. Operators without a row are expanded (``codegen/math.py``) into a function of the generated file, or, in f64,
called in libdevice. Results are those of the kernel IR to the bit, but for ``fast_exp2``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trustformers_ir.ir.dtypes import DType, Kind

TYPES: Mapping[DType, str] = {
    DType.bool: "tl.int1",
    DType.f8e4m3: "tl.uint8",  # the bits; what matrix instructions take them for is a matter of the chip (``EIGHTHS_OF``)
    DType.f16: "tl.float16",
    DType.bf16: "tl.bfloat16",
    DType.f32: "tl.float32",
    DType.f64: "tl.float64",
    **{d: f"tl.{'u' if d.kind is Kind.UINT else ''}int{d.bits}" for d in DType if d.kind in (Kind.INT, Kind.UINT)},
}

#: the letter under which each group of dtypes is looked up in the tables below
_GROUP = {DType.bool: "b", DType.f8e4m3: "h", DType.f16: "h", DType.bf16: "h", DType.f32: "f", DType.f64: "d"}

#: texts by operator and group (f: f32, d: f64, h: narrower floats, i: integers, b: bool), or for all groups alike
UNARY: Mapping[tuple[str, str] | str, str] = {
    ("neg", "i"): "-{0}",
    "neg": "{0} * -1.0",  # 0 - x, which is what -x becomes, would be +0 for x = 0
    "abs": "tl.abs({0})",
    ("sign", "i"): "sign({0})",
    "sign": "float_sign({0})",
    "not": "~{0}",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "trunc": "trunc({0})",
    ("round_even", "f"): "round_even({0}, 8388608.0)",
    ("round_even", "d"): "round_even({0}, 4503599627370496.0)",
    ("sqrt", "f"): "tl.sqrt_rn({0})",
    ("sqrt", "d"): "tl.sqrt({0})",
    ("recip", "f"): "tl.div_rn(1.0, {0})",
    ("recip", "d"): "1.0 / {0}",
    "fast_exp2": "tl.exp2({0})",
    "isnan": "{0} != {0}",
}

BINARY: Mapping[tuple[str, str] | str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    ("div", "f"): "tl.div_rn({0}, {1})",
    ("div", "d"): "{0} / {1}",
    ("div", "i"): "quotient({0}, {1})",
    ("floordiv", "i"): "floor_quotient({0}, {1})",
    ("mod", "i"): "floor_remainder({0}, {1})",
    "rem": "{0} % {1}",
    ("min", "f"): "minimum({0}, {1})",
    ("min", "d"): "minimum({0}, {1})",
    ("max", "f"): "maximum({0}, {1})",
    ("max", "d"): "maximum({0}, {1})",
    "min": "tl.minimum({0}, {1})",
    "max": "tl.maximum({0}, {1})",
    **{op: "{0} " + symbol + " {1}" for op, symbol in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))},
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "shl": "shift_left({0}, {1})",
    "shr": "shift_right({0}, {1})",
}

#: Functions that the texts call. Each is put into a generated file that needs it.
FUNCTIONS: Mapping[str, str] = {
    "sign": "def sign(x):\n    return tl.cast(x > 0, x.dtype) - tl.cast(x < 0, x.dtype)",
    "float_sign": "def float_sign(x):\n    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))",
    "trunc": "def trunc(x):\n    return tl.where(x < 0, tl.ceil(x), tl.floor(x))",
    "round_even": (
        "def round_even(x, whole: tl.constexpr):\n"
        "    # numbers from `whole` on have no fraction; below, adding it leaves no room for one\n"
        "    near = (tl.abs(x) + whole) - whole\n"
        "    return tl.where(tl.abs(x) < whole, tl.where(x < 0, near * -1.0, tl.where(x == 0, x, near)), x)"
    ),
    "minimum": "def minimum(a, b):\n    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)",
    "maximum": "def maximum(a, b):\n    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)",
    "product": "def product(a, b):\n    return a * b",
    "quotient": "def quotient(a, b):\n    return tl.where(b == 0, 0, a // tl.where(b == 0, 1, b))",
    "floor_quotient": (
        "def floor_quotient(a, b):\n"
        "    d = tl.where(b == 0, 1, b)\n"
        "    down = (a % d != 0) & ((a < 0) != (b < 0))\n"
        "    return tl.where(b == 0, 0, a // d - tl.cast(down, a.dtype))"
    ),
    "floor_remainder": (
        "def floor_remainder(a, b):\n"
        "    d = tl.where(b == 0, 1, b)\n"
        "    r = a % d\n"
        "    return tl.where(b == 0, 0, tl.where((r != 0) & ((a < 0) != (b < 0)), r + b, r))"
    ),
    "shift_left": (
        "def shift_left(a, n):\n    within = (n >= 0) & (n < a.dtype.primitive_bitwidth)\n    return tl.where(within, a << tl.where(within, n, 0), 0)"
    ),
    "shift_right": (
        "def shift_right(a, n):\n"
        "    within = (n >= 0) & (n < a.dtype.primitive_bitwidth)\n"
        "    return tl.where(within, a >> tl.where(within, n, 0), tl.where(a < 0, -1, 0).to(a.dtype))"
    ),
    "to_integer": (
        "def to_integer(x, low: tl.constexpr, high: tl.constexpr, below: tl.constexpr, dtype: tl.constexpr):\n"
        "    # toward zero; NaN gives 0, what lies outside the nearest end. `below` is the first float beyond `high`.\n"
        "    inside = (x >= low) & (x < below)\n"
        "    t = tl.cast(tl.where(inside, x, 0.0), dtype)\n"
        "    return tl.where(x >= below, tl.full([], high, dtype), tl.where(x < low, tl.full([], low, dtype), t))"
    ),
    "narrow": (
        "def narrow(x, dtype: tl.constexpr):\n"
        "    # f64 to f16 or bf16 with one rounding: by way of f32 rounded to odd\n"
        "    f = tl.cast(x, tl.float32)\n"
        "    back = tl.cast(f, tl.float64)\n"
        "    bits = tl.cast(f, tl.int32, bitcast=True)\n"
        "    bits = tl.where(tl.abs(back) > tl.abs(x), bits - 1, bits)\n"
        "    bits = tl.where((back == back) & (back != x), bits | 1, bits)\n"
        "    return tl.cast(tl.cast(bits, tl.float32, bitcast=True), dtype)"
    ),
    "squeeze": (
        "def squeeze(x):\n"
        "    # an integer of 64 bits, its low 12 bits gathered in the highest of them where f64 could not hold all: `narrow` rounds it the same\n"
        "    big = (x > 9007199254740992) | (x < -9007199254740992)\n"
        "    return tl.where(big & ((x & 4095) != 0), (x & -4096) | 2048, x)"
    ),
    "squeeze_unsigned": (
        "def squeeze_unsigned(x):\n"
        "    # the same without a sign\n"
        "    return tl.where((x > 9007199254740992) & ((x & 4095) != 0), (x & 18446744073709547520) | 2048, x)"
    ),
    "small": (
        "def small(code, bits: tl.constexpr, less: tl.constexpr, dtype: tl.constexpr):\n"
        "    # a small integer without a conversion: put into the last digits of a number (`bits`) from which on neighbours are 1 apart\n"
        "    return tl.cast(tl.cast(code, tl.int16) | bits, dtype, bitcast=True) - less"
    ),
    **{
        name: f"def {name}(codes, bits: tl.constexpr, less: tl.constexpr, dtype: tl.constexpr):\n    return small({half}, bits, less, dtype)"
        for name, half in (("low_bits", "codes & 15"), ("high_bits", "codes >> 4"))
    },
    "eighths": "def eighths(pointer):\n    # the memory of f8e4m3\n    return pointer",
    "eighth_of_bits": "def eighth_of_bits(bits):\n    return bits",
    "float_of_eighth": (
        "def float_of_eighth(x):\n"
        "    # exponent and fraction as those of an f32 that is 2**120 times too small\n"
        "    bits = tl.cast(tl.cast(x, tl.uint8, bitcast=True), tl.int32)\n"
        "    size = tl.cast((bits & 127) << 20, tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0\n"
        "    size = tl.where((bits & 127) == 127, float(\"nan\"), size)\n"
        "    return tl.where(bits > 127, size * -1.0, size)"
    ),
    "eighth_of_float": (
        "def eighth_of_float(x):\n"
        "    # one rounding, ties to even, 448 at most. Below 2**-6 steps are even: 2**14 is added, whose own steps are as large\n"
        "    bits = tl.cast(x, tl.int32, bitcast=True)\n"
        "    size = tl.minimum(bits & 2147483647, 1138753536)\n"
        "    near = ((size + 524287 + ((size >> 20) & 1)) >> 20) - 960\n"
        "    small = tl.cast(tl.abs(x) + 16384.0, tl.int32, bitcast=True) - 1182793728\n"
        "    near = tl.where(tl.abs(x) < 0.015625, small, near)\n"
        "    near = tl.where(x == x, near, 127)\n"
        "    return eighth_of_bits(tl.cast(near | ((bits >> 24) & 128), tl.uint8))"
    ),
    "eighth_factor": (
        "def eighth_factor(x):\n"
        "    # a factor of a product of matrices: as f16, which holds it\n"
        "    bits = tl.cast(x, tl.int16)\n"
        "    half = tl.cast(((bits & 128) << 8) | ((bits & 127) << 7), tl.float16, bitcast=True) * 256.0\n"
        "    return tl.where((bits & 127) == 127, float(\"nan\"), half)"
    ),
    "eighth_product": "def eighth_product(sums):\n    # sums of products of such factors\n    return sums",
    "checked": (
        "def checked(index, bound, mask, status, site: tl.constexpr):\n"
        "    # a data-dependent index: negative ones count from the end; one out of range is reported and clamped\n"
        "    at = tl.where(index < 0, index + bound, index)\n"
        "    wrong = mask & ((at < 0) | (at >= bound))\n"
        "    where = status + tl.zeros_like(wrong).to(tl.int32)\n"
        "    tl.store(where, tl.cast(site, tl.int64), mask=wrong)\n"
        "    tl.store(where + 1, tl.cast(index, tl.int64), mask=wrong)\n"
        "    return tl.maximum(tl.minimum(at, bound - 1), 0)"
    ),
}


def _four_at_a_time(name: str, take: str) -> str:
    """``low_bits`` or ``high_bits`` for NVIDIA. Triton takes each byte apart by itself, some four instructions for a code. Four codes of four bytes
    are one ``and``; ``prmt`` puts each below the byte 0x43 or 0x64, and two numbers of 16 bits are there: 1.25 instructions for a code, with the
    subtraction (PTX ISA 8.5, 9.7.9.7)."""

    def asm(ones: int, dtype: str) -> str:
        pick = " ".join(f"prmt.b32 ${i}, c, {ones * 0x01010101:#x}, {pairs:#x};" for i, pairs in enumerate((0x4140, 0x4342)))
        return f'tl.inline_asm_elementwise("{{ .reg .b32 c; {take} {pick} }}", "=r,=r,r", [codes], dtype={dtype}, is_pure=True, pack=4)'

    return (
        f"def {name}(codes, bits: tl.constexpr, less: tl.constexpr, dtype: tl.constexpr):\n"
        "    if dtype == tl.bfloat16:\n"
        f"        x = {asm(0x43, 'tl.bfloat16')}\n"
        "    else:\n"
        f"        x = {asm(0x64, 'tl.float16')}\n"
        "    return x - less"
    )


#: What functions of 8-bit floats are where matrix instructions take them: E4M3 of the OCP, or AMD's own, in which the same bits are half of that
#: number and NaN stands in place of the zero below zero (CDNA3 ISA, section 6.3).
EIGHTHS_OF: Mapping[str, Mapping[str, str]] = {
    "e4nv": {
        "eighths": "def eighths(pointer):\n    # the memory of f8e4m3\n    return tl.cast(pointer, tl.pointer_type(tl.float8e4nv), bitcast=True)",
        "eighth_of_bits": "def eighth_of_bits(bits):\n    return tl.cast(bits, tl.float8e4nv, bitcast=True)",
        "eighth_factor": "def eighth_factor(x):\n    # a factor of a product of matrices\n    return x",
        "float_of_eighth": "def float_of_eighth(x):\n    return tl.cast(x, tl.float32)",
        "eighth_of_float": (
            "def eighth_of_float(x):\n"
            "    # one rounding, ties to even, 448 at most\n"
            "    return tl.cast(x, tl.float8e4nv)"
        ),
    },
    "e4b8": {
        "eighth_factor": (
            "def eighth_factor(bits):\n"
            "    # half of a factor of a product of matrices\n"
            "    known = tl.where(bits == 128, 0, bits)\n"
            "    return tl.cast(tl.where((bits & 127) == 127, 128, known).to(tl.uint8), tl.float8e4b8, bitcast=True)"
        ),
        "eighth_product": "def eighth_product(sums):\n    # sums of products of such halves\n    return sums * 4.0",
    },
}

#: What some of these functions are on a GPU of NVIDIA's.
NVIDIA: Mapping[str, str] = {
    "low_bits": _four_at_a_time("low_bits", "and.b32 c, $2, 0x0f0f0f0f;"),
    "high_bits": _four_at_a_time("high_bits", "shr.b32 c, $2, 4; and.b32 c, c, 0x0f0f0f0f;"),
}


def functions(backend: str, eighths: str = "") -> Mapping[str, str]:
    """The functions for a kind of GPU, as Triton names it (``""``: any), and for the 8-bit floats that its matrix instructions take."""
    return {**FUNCTIONS, **(NVIDIA if backend == "cuda" else {}), **EIGHTHS_OF.get(eighths, {})}


def group(dtype: DType) -> str:
    """The group of a dtype in the tables."""
    return _GROUP.get(dtype, "i")


def text_of(table: Mapping[tuple[str, str] | str, str], op: str, dtype: DType) -> str | None:
    """The text of an operator on that dtype; None where there is no row."""
    return table.get((op, group(dtype)), table.get(op))


def functions_in(text: str) -> list[str]:
    """The names of the functions that a text calls."""
    return [name for name in dict.fromkeys(re.findall(r"(?<![.\w])(\w+)\(", text)) if name in FUNCTIONS]
