"""The scalar operators of the kernel IR: their names, what they accept and the dtype of what they give.

One row per operator; nodes, verifier, printer, interpreter and emitters all read these tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.dtypes import DType, Kind

#: dtypes on which floating-point arithmetic is done. Narrow floats are storage: cast to f32, compute, cast back.
COMPUTE_FLOATS = frozenset({DType.f32, DType.f64})
#: dtypes that a kernel can hold at all. A complex tensor is a float buffer with a trailing dimension of 2.
SUPPORTED = frozenset(d for d in DType if not d.is_complex)
#: elementary functions of one argument that the C library has under the same name
LIBM_UNARY = (
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "tanh", "erf", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "asinh", "acosh", "atanh"),
)


@dataclass(frozen=True)
class OpRow:
    """What an operator accepts: letters ``f`` (f32, f64), ``i`` (integers), ``b`` (bool), ``h`` (f16, bf16)."""

    name: str
    accepts: str
    #: fixed result dtype, or None for "the same as the operand"
    result: DType | None = None
    symbol: str = ""
    #: elementary functions that ``codegen.math`` expands into primitive operators
    transcendental: bool = False


def _rows(*rows: OpRow) -> dict[str, OpRow]:
    return {row.name: row for row in rows}


UNARY: dict[str, OpRow] = _rows(
    OpRow("neg", "fih"),
    OpRow("abs", "fih"),
    OpRow("sign", "fi"),
    OpRow("not", "ib"),
    OpRow("floor", "f"),
    OpRow("ceil", "f"),
    OpRow("trunc", "f"),
    OpRow("round_even", "f"),
    OpRow("sqrt", "f"),
    OpRow("recip", "f"),
    OpRow("isnan", "f", DType.bool),
    OpRow("bits", "fh"),  # float -> signed integer of the same width, bit for bit
    OpRow("from_bits", "i"),  # i16 -> f16, i32 -> f32, i64 -> f64, bit for bit
    *(OpRow(name, "f", transcendental=True) for name in (*LIBM_UNARY, "sigmoid", "normal_cdf", "rsqrt", "fast_exp2")),
)

BINARY: dict[str, OpRow] = _rows(
    OpRow("add", "fi", symbol="+"),
    OpRow("sub", "fi", symbol="-"),
    OpRow("mul", "fi", symbol="*"),
    OpRow("div", "fi", symbol="/"),  # integers: toward zero, by zero gives 0
    OpRow("floordiv", "fi", symbol="//"),
    OpRow("mod", "fi", symbol="%"),  # the sign of the divisor; integers by zero give 0
    OpRow("rem", "f"),  # C fmod: the sign of the dividend
    OpRow("pow", "f", transcendental=True),
    OpRow("atan2", "f", transcendental=True),
    OpRow("min", "fi"),  # NaN wins; of equals the second operand
    OpRow("max", "fi"),
    OpRow("eq", "fibh", DType.bool, "=="),
    OpRow("ne", "fibh", DType.bool, "!="),
    OpRow("lt", "fibh", DType.bool, "<"),
    OpRow("le", "fibh", DType.bool, "<="),
    OpRow("gt", "fibh", DType.bool, ">"),
    OpRow("ge", "fibh", DType.bool, ">="),
    OpRow("and", "ib", symbol="&"),
    OpRow("or", "ib", symbol="|"),
    OpRow("xor", "ib", symbol="^"),
    OpRow("shl", "i", symbol="<<"),  # a count outside [0, width) gives 0
    OpRow("shr", "i", symbol=">>"),  # … or the sign for a signed dtype
)

REDUCTIONS = frozenset({"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"})

_BITS_OF = {DType.f16: DType.i16, DType.bf16: DType.i16, DType.f32: DType.i32, DType.f64: DType.i64}
_FLOAT_OF = {DType.i16: DType.f16, DType.i32: DType.f32, DType.i64: DType.f64}


def accepts(row: OpRow, dtype: DType) -> bool:
    """Whether an operator takes operands of that dtype."""
    if dtype is DType.bool:
        return "b" in row.accepts
    if dtype.kind in (Kind.INT, Kind.UINT):
        return "i" in row.accepts
    return ("f" in row.accepts and dtype in COMPUTE_FLOATS) or ("h" in row.accepts and dtype in (DType.f16, DType.bf16))


def unary_dtype(op: str, dtype: DType) -> DType:
    """Result dtype of a unary operator; ``TypeError`` when it does not take that operand."""
    row = UNARY.get(op)
    if row is None:
        raise TypeError(f"there is no unary operator {op!r}")
    if not accepts(row, dtype) or (op == "from_bits" and dtype not in _FLOAT_OF):
        raise TypeError(f"{op} does not take {dtype}; cast first")
    if op == "bits":
        return _BITS_OF[dtype]
    if op == "from_bits":
        return _FLOAT_OF[dtype]
    return row.result or dtype


def binary_dtype(op: str, a: DType, b: DType) -> DType:
    """Result dtype of a binary operator; ``TypeError`` when it does not take those operands."""
    row = BINARY.get(op)
    if row is None:
        raise TypeError(f"there is no binary operator {op!r}")
    if a is not b:
        raise TypeError(f"{op} needs operands of one dtype, got {a} and {b}")
    if not accepts(row, a):
        raise TypeError(f"{op} does not take {a}; cast first")
    return row.result or a


def neutral(kind: str, dtype: DType) -> int | float:
    """What a reduction holds before its first element; of ``argmax`` and ``argmin`` the value, not the place."""
    if kind in ("sum", "any"):
        return 0
    if kind in ("prod", "all"):
        return 1
    low = kind.endswith("max")
    if dtype.is_float:
        return float("-inf") if low else float("inf")
    return dtype.min if low else dtype.max


def wrap(value: int, dtype: DType) -> int:
    """An integer reduced modulo 2^bits into the range of ``dtype``."""
    if dtype is DType.bool:
        return int(value != 0)
    mask = (1 << dtype.bits) - 1
    value &= mask
    return value - (1 << dtype.bits) if dtype.kind is Kind.INT and value >> (dtype.bits - 1) else value


def fold_int(op: str, a: int, b: int, dtype: DType) -> int:
    """Value of a binary operator on two integers (or bools) of ``dtype``: the one definition of integer arithmetic."""
    if op in ("eq", "ne", "lt", "le", "gt", "ge"):
        return int({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[op])
    bits = dtype.bits
    if op == "add":
        value = a + b
    elif op == "sub":
        value = a - b
    elif op == "mul":
        value = a * b
    elif op == "div":
        value = 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    elif op == "floordiv":
        value = a // b if b else 0
    elif op == "mod":
        value = a % b if b else 0
    elif op == "min":
        value = min(a, b)
    elif op == "max":
        value = max(a, b)
    elif op == "and":
        value = a & b
    elif op == "or":
        value = a | b
    elif op == "xor":
        value = a ^ b
    elif op == "shl":
        value = a << b if 0 <= b < bits else 0
    elif op == "shr":
        value = a >> b if 0 <= b < bits else (-1 if a < 0 else 0)
    else:
        raise TypeError(f"{op} is no integer operator")
    return wrap(value, dtype)
