"""Arithmetic on registers: each kernel-IR operator as LLVM instructions, for scalars and vectors alike.

Every rule that the language gives (wrapping, division by zero, NaN, rounding of narrow floats) is written out here, so that
nothing depends on the target or on poison. No fast-math flag is ever set.
"""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.nodes import LANES
from trustformers_ir.codegen.llvm.text import Val, Writer, literal, scalar_type, suffix, vector_of
from trustformers_ir.ir.dtypes import DType, Kind

_FLOAT_COMPARE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_INT_ARITHMETIC = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}
_FLOAT_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv", "rem": "frem"}
_INTRINSIC = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round_even": "roundeven", "sqrt": "sqrt", "abs": "fabs"}
#: Attributes of the C library's mathematical functions.
PURE = "nounwind willreturn memory(none)"


class Ops:
    """Instruction selection over a writer."""

    def __init__(self, writer: Writer) -> None:
        self.w = writer

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def splat(self, x: Val, lanes: int) -> Val:
        """``x`` in every lane (a vector stays as it is)."""
        if x.lanes or not lanes:
            return x
        scalar = scalar_type(x.dtype)
        if not x.text.startswith("%"):
            return Val(f"splat ({scalar} {x.text})", x.dtype, lanes)
        vector = vector_of(scalar, lanes)
        first = self.w.op(f"insertelement {vector} poison, {scalar} {x.text}, i64 0")
        return Val(self.w.op(f"shufflevector {vector} {first}, {vector} poison, <{lanes} x i32> zeroinitializer"), x.dtype, lanes)

    def unify(self, *values: Val) -> list[Val]:
        """The values, all as vectors when any of them is one."""
        lanes = max(v.lanes for v in values)
        return [self.splat(v, lanes) for v in values]

    def zero(self, dtype: DType, lanes: int = 0) -> Val:
        """Zero in every lane."""
        return self.splat(literal(0, dtype), lanes)

    def like(self, x: Val, value: float, dtype: DType | None = None) -> Val:
        """A constant with as many lanes as ``x``."""
        return self.splat(literal(value, dtype or x.dtype), x.lanes)

    def iota(self, lanes: int, dtype: DType = DType.i64, scale: int = 1) -> Val:
        """``0, scale, 2*scale, …``"""
        t = scalar_type(dtype)
        return Val("<" + ", ".join(f"{t} {n * scale}" for n in range(lanes)) + ">", dtype, lanes)

    def extract(self, x: Val, lane: int) -> Val:
        """One lane."""
        return Val(self.w.op(f"extractelement {x.typed}, i64 {lane}"), x.dtype)

    def halves(self, x: Val) -> tuple[Val, Val]:
        """Lower and upper lanes."""
        n = x.lanes // 2
        parts = []
        for base in (0, n):
            indices = ", ".join(f"i32 {base + j}" for j in range(n))
            parts.append(Val(self.w.op(f"shufflevector {x.typed}, {x.type} poison, <{n} x i32> <{indices}>"), x.dtype, n))
        return parts[0], parts[1]

    def transpose(self, rows: Sequence[Val]) -> list[Val]:
        """The 16 columns of 16 vectors of 16 lanes, in 64 shuffles of one instruction each: pairs of lanes inside 128 bits, pairs of pairs, then
        whole quarters twice."""
        quarters = range(0, LANES, 4)
        pairs = [q + n for q in quarters for n in (0, LANES, 1, LANES + 1)]  # a0 b0 a1 b1 of each quarter; two lanes on: a2 b2 a3 b3
        doubles = [q + n for q in quarters for n in (0, 1, LANES, LANES + 1)]
        even = [half + q + n for half in (0, LANES) for q in (0, 8) for n in range(4)]  # quarters 0 and 2 of both
        tiles: list[list[Val]] = []  # of four rows each; vector m holds in quarter q what column 4q + m has in these rows
        for r in range(0, LANES, 4):
            (a, b), (c, d) = (self._both_halves(rows[r + n], rows[r + n + 1], pairs, 2) for n in (0, 2))
            tiles.append([*self._both_halves(a, c, doubles, 2), *self._both_halves(b, d, doubles, 2)])
        columns: list[Val] = [rows[0]] * LANES
        for m in range(4):
            upper, lower = (self._both_halves(tiles[t][m], tiles[t + 1][m], even, 4) for t in (0, 2))
            for q in (0, 1):
                columns[4 * q + m], columns[4 * q + 8 + m] = self._both_halves(upper[q], lower[q], even, 4)
        return columns

    def _both_halves(self, a: Val, b: Val, pick: Sequence[int], step: int) -> tuple[Val, Val]:
        """The lanes of two vectors at ``pick``, and those ``step`` lanes further on."""
        return self._shuffle(a, b, pick), self._shuffle(a, b, [n + step for n in pick])

    def _shuffle(self, a: Val, b: Val, pick: Sequence[int]) -> Val:
        order = ", ".join(f"i32 {n}" for n in pick)
        return a.named(self.w.op(f"shufflevector {a.typed}, {b.typed}, <{len(pick)} x i32> <{order}>"))

    def any_lane(self, x: Val) -> Val:
        """Whether a bool holds in some lane."""
        if not x.lanes:
            return x
        return Val(self.w.call(f"llvm.vector.reduce.or.v{x.lanes}i1", "i1", x.typed), DType.bool)

    def opaque(self, x: Val) -> Val:
        """The same scalar in a form that LLVM cannot see through, for the limits of masks.

        Given a constant mask of one lane, the x86 back end up to LLVM 22 writes the element before truncation (llvm-project issue 179489):
        two or three bytes too many. A compare with an unknown limit costs one instruction and has no such special cases.
        """
        return x.named(self.w.op(f'call {x.type} asm "", "=r,0"({x.typed}) nounwind willreturn memory(none)'))

    # -- instructions --------------------------------------------------------------------------------------------------

    def _two(self, instruction: str, a: Val, b: Val, dtype: DType | None = None) -> Val:
        a, b = self.unify(a, b)
        return Val(self.w.op(f"{instruction} {a.typed}, {b.text}"), dtype or a.dtype, a.lanes)

    def _intrinsic(self, name: str, *args: Val, dtype: DType | None = None) -> Val:
        values = self.unify(*args)
        x = values[0]
        out = Val("", dtype or x.dtype, x.lanes)
        mangled = suffix(scalar_type(x.dtype), x.lanes)
        return out.named(self.w.call(f"llvm.{name}.{mangled}", out.type, *[v.typed for v in values]))

    def choose(self, c: Val, a: Val, b: Val) -> Val:
        """``a if c else b``; one scalar condition may rule two vectors."""
        if c.literal is not None:
            return a if c.literal else b
        if c.lanes:
            c, a, b = self.unify(c, a, b)
        else:
            a, b = self.unify(a, b)
        return Val(self.w.op(f"select {c.typed}, {a.typed}, {b.typed}"), a.dtype, a.lanes)

    def logic(self, op: str, a: Val, b: Val) -> Val:
        """``and``/``or``/``xor`` of integers or bools, dropping literal bools."""
        for x, y in ((a, b), (b, a)):
            if x.dtype is DType.bool and x.literal is not None and op in ("and", "or"):
                return y if bool(x.literal) is (op == "and") else x
        return self._two(op, a, b)

    def both(self, a: Val | None, b: Val) -> Val:
        """``a and b``; None is a condition that always holds."""
        return b if a is None else self.logic("and", a, b)

    def fma(self, a: Val, b: Val, c: Val) -> Val:
        """``a * b + c``, one rounding."""
        return self._intrinsic("fma", a, b, c)

    def bitcast(self, x: Val, dtype: DType) -> Val:
        """The same bits as another dtype of the same width."""
        if scalar_type(x.dtype) == scalar_type(dtype):
            return Val(x.text, dtype, x.lanes)
        return Val(self.w.op(f"bitcast {x.typed} to {vector_of(scalar_type(dtype), x.lanes)}"), dtype, x.lanes)

    # -- unary ---------------------------------------------------------------------------------------------------------

    def unary(self, op: str, x: Val) -> Val:
        """A primitive unary operator."""
        d = x.dtype
        if op == "bits":
            return self.bitcast(x, optable.unary_dtype("bits", d))
        if op == "from_bits":
            return self.bitcast(x, optable.unary_dtype("from_bits", d))
        if op == "not":
            return self._two("xor", x, self.like(x, 1 if d is DType.bool else -1))
        if d is DType.bf16:  # neg and abs touch the sign bit alone
            as_int = Val(x.text, DType.i16, x.lanes)
            mask = literal(-32768 if op == "neg" else 32767, DType.i16)
            return self.bitcast(self._two("xor" if op == "neg" else "and", as_int, mask), d)
        if d.is_float:
            return self._float_unary(op, x)
        zero = self.like(x, 0)
        if op == "neg":
            return self._two("sub", zero, x)
        if op == "abs":
            return x if d.kind is Kind.UINT else self.choose(self.compare("lt", x, zero), self._two("sub", zero, x), x)
        if op == "sign":
            negative = self.choose(self.compare("lt", x, zero), self.like(x, -1), zero) if d.kind is Kind.INT else zero
            return self.choose(self.compare("gt", x, zero), self.like(x, 1), negative)
        raise NotImplementedError(f"{op} of {d}")

    def _float_unary(self, op: str, x: Val) -> Val:
        if op == "neg":
            return Val(self.w.op(f"fneg {x.typed}"), x.dtype, x.lanes)
        if op in _INTRINSIC:
            return self._intrinsic(_INTRINSIC[op], x)
        if op == "recip":
            return self._two("fdiv", self.like(x, 1.0), x)
        if op == "isnan":
            return self._two("fcmp uno", x, x, DType.bool)
        if op == "sign":
            negative = self.choose(self.compare("lt", x, self.like(x, 0.0)), self.like(x, -1.0), x)
            return self.choose(self.compare("gt", x, self.like(x, 0.0)), self.like(x, 1.0), negative)
        raise NotImplementedError(f"{op} of {x.dtype}")

    def libm(self, name: str, *args: Val) -> Val:
        """A function of the C library on each lane of f64 (or f32, whose names end in ``f``)."""
        args = tuple(self.unify(*args))
        scalar = scalar_type(args[0].dtype)
        symbol = name + ("f" if scalar == "float" else "")
        lanes = args[0].lanes
        if not lanes:
            return args[0].named(self.w.call(symbol, scalar, *[a.typed for a in args], attributes=PURE))
        out = Val("poison", args[0].dtype, lanes)
        for lane in range(lanes):
            y = self.w.call(symbol, scalar, *[self.extract(a, lane).typed for a in args], attributes=PURE)
            out = out.named(self.w.op(f"insertelement {out.typed}, {scalar} {y}, i64 {lane}"))
        return out

    # -- binary --------------------------------------------------------------------------------------------------------

    def binary(self, op: str, a: Val, b: Val, *, index: bool = False, positive: bool = False) -> Val:
        """A primitive binary operator. ``index``: i64 arithmetic that cannot overflow. ``positive``: a >= 0 and b > 0."""
        d = a.dtype
        if a.literal is not None and b.literal is not None and not d.is_float:
            return literal(optable.fold_int(op, a.literal, b.literal, d), optable.binary_dtype(op, d, d))
        if op in _FLOAT_COMPARE:
            return self.compare(op, a, b)
        if op in ("min", "max"):
            return self.extremum(op, a, b)
        if d.is_float:
            return self._two(_FLOAT_ARITHMETIC[op], a, b)
        if op in ("and", "or", "xor"):
            return self.logic(op, a, b)
        if op in _INT_ARITHMETIC:
            if index:
                for x, y in ((a, b), (b, a)):
                    if (x.literal == 0 and op == "add") or (x.literal == 1 and op == "mul"):
                        return y
                if b.literal == 0 and op == "sub":
                    return a
                if 0 in (a.literal, b.literal) and op == "mul":
                    return literal(0, d)
            return self._two(_INT_ARITHMETIC[op] + (" nsw" if index else ""), a, b)
        if op in ("shl", "shr"):
            return self._shift(op, a, b)
        return self._divide(op, a, b, positive)

    def compare(self, op: str, a: Val, b: Val) -> Val:
        """A comparison; false for NaN, but for ``ne``."""
        d = a.dtype
        if d is DType.bf16:
            return self.compare(op, self.cast(a, DType.f32), self.cast(b, DType.f32))
        if d.is_float:
            return self._two(f"fcmp {_FLOAT_COMPARE[op]}", a, b, DType.bool)
        signed = "s" if d.kind is Kind.INT else "u"
        return self._two("icmp " + (op if op in ("eq", "ne") else signed + op), a, b, DType.bool)

    def extremum(self, op: str, a: Val, b: Val) -> Val:
        """``a`` where it beats ``b`` or is NaN, else ``b``. For floats that is one ``maxps``/``minps``, a compare and a blend,
        and only the ``maxps`` lies on the path through ``b``, the accumulator of a fold."""
        better = self.choose(self.compare("gt" if op == "max" else "lt", a, b), a, b)
        if not a.dtype.is_float:
            return better
        a, better = self.unify(a, better)
        return self.choose(self._two("fcmp uno", a, a, DType.bool), a, better)

    def _shift(self, op: str, a: Val, b: Val) -> Val:
        d = a.dtype
        if b.literal is not None and 0 <= b.literal < d.bits:
            return self._two("shl" if op == "shl" else "ashr" if d.kind is Kind.INT else "lshr", a, b)
        a, b = self.unify(a, b)
        fits = self._two("icmp ult", b, self.like(b, d.bits), DType.bool)
        if op == "shr" and d.kind is Kind.INT:
            return self._two("ashr", a, self.choose(fits, b, self.like(b, d.bits - 1)))
        count = self.choose(fits, b, self.like(b, 0))
        return self.choose(fits, self._two("shl" if op == "shl" else "lshr", a, count), self.like(a, 0))

    def _divide(self, op: str, a: Val, b: Val, positive: bool) -> Val:
        """div (toward zero), floordiv and mod (toward minus infinity); by zero gives 0, and INT_MIN / -1 wraps."""
        d = a.dtype
        remainder = op == "mod"
        if positive or d.kind is Kind.UINT:
            if not positive and not b.literal:
                a, b = self.unify(a, b)
                zero = self.compare("eq", b, self.like(b, 0))
                q = self._two("urem" if remainder else "udiv", a, self.choose(zero, self.like(b, 1), b))
                return self.choose(zero, self.like(q, 0), q)
            return self._two("urem" if remainder else "udiv", a, b)
        a, b = self.unify(a, b)
        zero = self.compare("eq", b, self.like(b, 0))
        minus = self.compare("eq", b, self.like(b, -1))
        safe = self.choose(self.logic("or", zero, minus), self.like(b, 1), b)
        q = self._two("sdiv", a, safe)
        if op == "div":
            q = self.choose(minus, self._two("sub", self.like(a, 0), a), q)
            return self.choose(zero, self.like(q, 0), q)
        r = self._two("sub", a, self._two("mul", q, safe))
        wrong_sign = self.compare("lt", self._two("xor", r, safe), self.like(r, 0))
        fix = self.logic("and", self.compare("ne", r, self.like(r, 0)), wrong_sign)
        if remainder:  # by -1 and by 0 the remainder is 0, which is what dividing by 1 gave
            return self.choose(fix, self._two("add", r, safe), r)
        q = self.choose(fix, self._two("sub", q, self.like(q, 1)), q)
        q = self.choose(minus, self._two("sub", self.like(a, 0), a), q)
        return self.choose(zero, self.like(q, 0), q)

    # -- conversions ---------------------------------------------------------------------------------------------------

    def cast(self, x: Val, to: DType) -> Val:
        """Conversion by the rules of ``Cast``."""
        d = x.dtype
        if d is to:
            return x
        if d is DType.f8e4m3:
            return self.cast(self._from_eighth(x), to)
        if to is DType.bool:
            if d is DType.bf16:
                return self.cast(self.cast(x, DType.f32), to)
            return self._two("fcmp une" if d.is_float else "icmp ne", x, self.like(x, 0), DType.bool)
        if to is DType.f8e4m3:
            return self._to_eighth(self.cast(x, DType.f32))
        if d in (DType.f16, DType.bf16):
            wide = self._widen(x)
            return wide if to is DType.f32 else self.cast(wide, to)
        if to in (DType.f16, DType.bf16):
            return self._narrow(x, to)
        target = vector_of(scalar_type(to), x.lanes)
        if d.is_float and to.is_float:
            return Val(self.w.op(f"{'fpext' if to is DType.f64 else 'fptrunc'} {x.typed} to {target}"), to, x.lanes)
        if d.is_float:
            name = (
                f"llvm.fpto{'s' if to.kind is Kind.INT else 'u'}i.sat.{suffix(scalar_type(to), x.lanes)}.{suffix(scalar_type(d), x.lanes)}"
            )
            return Val(self.w.call(name, target, x.typed), to, x.lanes)
        signed = d.kind is Kind.INT
        if to.is_float:
            return Val(self.w.op(f"{'si' if signed else 'ui'}tofp {x.typed} to {target}"), to, x.lanes)
        if x.literal is not None:
            return literal(optable.wrap(x.literal, to), to)
        width = 1 if d is DType.bool else d.bits
        if width == to.bits:
            return Val(x.text, to, x.lanes)
        how = "trunc" if width > to.bits else "sext" if signed else "zext"
        return Val(self.w.op(f"{how} {x.typed} to {target}"), to, x.lanes)

    def _widen(self, x: Val) -> Val:
        if x.dtype is DType.f16:
            return Val(self.w.op(f"fpext {x.typed} to {vector_of('float', x.lanes)}"), DType.f32, x.lanes)
        wide = Val(self.w.op(f"zext {x.typed} to {vector_of('i32', x.lanes)}"), DType.i32, x.lanes)
        return self.bitcast(self._two("shl", wide, self.like(wide, 16)), DType.f32)

    def _narrow(self, x: Val, to: DType) -> Val:
        """To f16 or bf16 with one rounding.

        f64 (and wide integers by way of f64) first goes to f32 rounded *to odd*: truncated, with the last bit set when
        anything was lost. f32 has more than two bits beyond f16 and bf16, so rounding that to nearest even is exact.
        """
        if x.dtype is not DType.f32:
            if not x.dtype.is_float:
                wide = DType.f32 if x.dtype.bits <= 16 else DType.f64
                if x.dtype.bits == 64:
                    x = self._sticky(x)
                return self._narrow(self.cast(x, wide), to)
            f = self.cast(x, DType.f32)
            back = self.cast(f, DType.f64)
            bits = self.bitcast(f, DType.i32)
            over = self._two("fcmp ogt", self._intrinsic("fabs", back), self._intrinsic("fabs", x), DType.bool)
            lower = self.choose(over, self._two("sub", bits, self.like(bits, 1)), bits)
            inexact = self._two("fcmp one", back, x, DType.bool)
            odd = self.choose(inexact, self._two("or", lower, self.like(bits, 1)), bits)
            x = self.bitcast(odd, DType.f32)
        if to is DType.f16:
            return Val(self.w.op(f"fptrunc {x.typed} to {vector_of('half', x.lanes)}"), to, x.lanes)
        # bf16: add half of the last place kept, plus one when that place is odd; the carry does the rest. NaN keeps quiet.
        bits = self.bitcast(x, DType.i32)
        top = self._two("lshr", bits, self.like(bits, 16))
        last = self._two("and", top, self.like(bits, 1))
        rounded = self._two("lshr", self._two("add", self._two("add", bits, self.like(bits, 0x7FFF)), last), self.like(bits, 16))
        quiet = self._two("or", top, self.like(bits, 0x40))
        nan = self._two("fcmp uno", x, x, DType.bool)
        out = self.choose(nan, quiet, rounded)
        return Val(self.w.op(f"trunc {out.typed} to {vector_of('i16', x.lanes)}"), to, x.lanes)

    def _from_eighth(self, x: Val) -> Val:
        """f8e4m3 to f32: its exponent and fraction as those of an f32 of ``2**-120`` of the size, which takes care of the smallest ones as well."""
        wide = Val(self.w.op(f"zext {x.typed} to {vector_of('i32', x.lanes)}"), DType.i32, x.lanes)
        size = self._two("and", wide, self.like(wide, 127))
        scaled = self.bitcast(self._two("shl", size, self.like(wide, 20)), DType.f32)
        scaled = self._two("fmul", scaled, self.like(scaled, 2.0**120))
        scaled = self.choose(self.compare("eq", size, self.like(size, 127)), self.like(scaled, float("nan")), scaled)
        sign = self._two("shl", self._two("and", wide, self.like(wide, 128)), self.like(wide, 24))
        return self.bitcast(self._two("or", self.bitcast(scaled, DType.i32), sign), DType.f32)

    def _to_eighth(self, x: Val) -> Val:
        """f32 to f8e4m3 with one rounding: like bf16; below ``2**-6``, where steps are even, 2**14 is added, whose own steps are as large."""
        bits = self.bitcast(x, DType.i32)
        size = self.bitcast(self._two("and", bits, self.like(bits, 0x7FFFFFFF)), DType.f32)
        size = self.choose(self._two("fcmp ogt", size, self.like(size, 448.0), DType.bool), self.like(size, 448.0), size)
        size_bits = self.bitcast(size, DType.i32)
        last = self._two("and", self._two("lshr", size_bits, self.like(bits, 20)), self.like(bits, 1))
        rounded = self._two("lshr", self._two("add", self._two("add", size_bits, self.like(bits, 0x7FFFF)), last), self.like(bits, 20))
        rounded = self._two("sub", rounded, self.like(bits, 120 << 3))
        moved = self.bitcast(self._two("fadd", size, self.like(size, 2.0**14)), DType.i32)
        small = self._two("sub", moved, self.like(bits, (127 + 14) << 23))
        out = self.choose(self.compare("lt", size, self.like(size, 2.0**-6)), small, rounded)
        out = self.choose(self._two("fcmp uno", x, x, DType.bool), self.like(bits, 127), out)
        out = self._two("or", out, self._two("and", self._two("lshr", bits, self.like(bits, 24)), self.like(bits, 128)))
        return Val(self.w.op(f"trunc {out.typed} to {vector_of('i8', x.lanes)}"), DType.f8e4m3, x.lanes)

    def _sticky(self, x: Val) -> Val:
        """A 64-bit integer whose low 12 bits, where its magnitude is beyond 2^53, are squeezed into their highest: exact in f64 (which keeps
        multiples of 2^11 below 2^64), and on the same side of every rounding boundary of a narrow float."""
        low = self._two("and", x, self.like(x, 4095))
        squeezed = self._two("or", self._two("and", x, self.like(x, -4096)), self.like(x, 2048))
        if x.dtype.kind is Kind.UINT:
            big = self.compare("gt", x, self.like(x, 1 << 53))
        else:  # beyond 2^52 on either side in one comparison
            big = self._two("icmp ugt", self._two("add", x, self.like(x, 1 << 52)), self.like(x, 1 << 53), DType.bool)
        some = self.compare("ne", low, self.like(low, 0))
        return self.choose(self.logic("and", big, some), squeezed, x)

    # -- folds ---------------------------------------------------------------------------------------------------------

    def neutral(self, kind: str, dtype: DType) -> list[Val]:
        """The accumulator of a fold before its first element: one value, or (value, position) for argmax and argmin."""
        start = literal(optable.neutral(kind, dtype), dtype)
        return [start, literal(-1, DType.i64)] if kind.startswith("arg") else [start]

    def fold(self, kind: str, acc: Sequence[Val], x: Val, position: Val | None = None) -> list[Val]:
        """The accumulator after one more element."""
        if kind.startswith("arg"):
            assert position is not None
            value, at = acc
            better = self.compare("gt" if kind == "argmax" else "lt", x, value)
            better = self.logic("or", better, self.compare("lt", at, self.like(at, 0)))
            if x.dtype.is_float:
                x_nan = self._two("fcmp uno", x, x, DType.bool)
                old_nan = self._two("fcmp uno", value, value, DType.bool)
                better = self.logic("or", better, self.logic("and", x_nan, self.unary("not", old_nan)))
            return [self.choose(better, x, value), self.choose(better, position, at)]
        (a,) = acc
        if kind in ("max", "min"):
            return [self.extremum(kind, x, a)]
        if kind in ("any", "all"):
            return [self.logic("or" if kind == "any" else "and", a, x)]
        return [self.binary("add" if kind == "sum" else "mul", a, x)]

    def merge(self, kind: str, low: Sequence[Val], high: Sequence[Val]) -> list[Val]:
        """Two partial accumulators of one fold joined: the step of the lane tree."""
        if not kind.startswith("arg"):
            return self.fold(kind, low, high[0])
        (a, i), (b, j) = low, high
        better = self.compare("gt" if kind == "argmax" else "lt", b, a)
        tie = self.compare("eq", a, b)
        if a.dtype.is_float:
            a_nan = self._two("fcmp uno", a, a, DType.bool)
            b_nan = self._two("fcmp uno", b, b, DType.bool)
            better = self.logic("or", better, self.logic("and", b_nan, self.unary("not", a_nan)))
            tie = self.logic("or", tie, self.logic("and", a_nan, b_nan))
        # positions compare as unsigned: -1, "nothing yet", loses every tie
        earlier = self._two("icmp ult", j, i, DType.bool)
        better = self.logic("or", better, self.logic("and", tie, earlier))
        better = self.logic("and", better, self.compare("ge", j, self.like(j, 0)))
        better = self.logic("or", better, self.compare("lt", i, self.like(i, 0)))
        return [self.choose(better, b, a), self.choose(better, j, i)]

    def tree(self, kind: str, acc: Sequence[Val]) -> list[Val]:
        """Lanes folded in halves down to one scalar."""
        current = list(acc)
        while current[0].lanes > 1:
            halves = [self.halves(v) for v in current]
            current = self.merge(kind, [h[0] for h in halves], [h[1] for h in halves])
        return [self.extract(v, 0) for v in current]
