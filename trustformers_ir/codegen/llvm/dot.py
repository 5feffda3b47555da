"""Sums of products of bytes, four at a time: which folds they are, and the instructions of each machine for them.

A fold with a DOT axis is ``sum over k, d < 4 of i32(u8) * i32(i8)`` along memory in which the four bytes of d lie beside each other. One side belongs
to a row (the same for every lane): four of its bytes are one 32-bit load, put into every lane. The other belongs to a column: lane j reads the bytes
``4 j … 4 j + 3``, so 16 lanes are one 64-byte load. The unsigned bytes may be those of the row (activations with a zero point by signed weights)
or of the column (signed activations by codes); they may be the low or the high four bits of what is loaded, with a few bits of other bytes above
them. Then

* AVX-512 VNNI, AVX-VNNI: ``vpdpbusd`` adds the four products of each lane to its accumulator, exactly (the form without saturation);
* AVX-512 and AVX2 without them: both vectors are split into their even and odd bytes, widened to 16 bits (the unsigned ones by masks and
  shifts, the signed ones by shifts), and ``vpmaddwd`` adds up two products of 16 bits in each 32-bit lane. A product is at most 255 * 128, so
  two of them are far from 2^31. ``vpmaddubsw``, which would do without the split, saturates at 2^15 and is not used.

An i32 sum wraps, so it has no order, and all machines give the same bits. Where the fold does not have this form (another layout, sizes known only at
run time) it is emitted as any other fold.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, replace

from trustformers_ir.codegen.kernel_ir.nodes import DOT, LANES, UNROLL, Axis, Buffer, Const, Expr, Reduce, const
from trustformers_ir.codegen.kernel_ir.rewrite import substitute
from trustformers_ir.codegen.kernel_ir.verify import ByteFactor, byte_factors
from trustformers_ir.codegen.llvm.memory import Addressing, Memory
from trustformers_ir.codegen.llvm.text import Val, vector_of
from trustformers_ir.codegen.llvm.values import Ops
from trustformers_ir.ir.dtypes import DType

DEPTH = 4  # bytes of a lane


class DotKind(enum.Enum):
    """The instructions of a machine: (those of VNNI, lanes of one register)."""

    VNNI_512 = (True, 16)
    VNNI_256 = (True, 8)
    MADD_512 = (False, 16)
    MADD_256 = (False, 8)

    @classmethod
    def of(cls, features: Collection[str]) -> DotKind | None:
        """The best that a machine with these features has."""
        if {"avx512vnni", "avx512f"} <= set(features):
            return cls.VNNI_512
        if "avx512bw" in features:
            return cls.MADD_512
        if "avxvnni" in features:
            return cls.VNNI_256
        return cls.MADD_256 if "avx2" in features else None


@dataclass(frozen=True)
class Bytes:
    """Four neighbouring bytes, or the first ``count`` of them: of one row, or of each of 16 columns. ``shift``: four bits of each, from there on, and
    above them ``bits`` bits of each byte of ``high``, from its shift on."""

    buffer: Buffer
    start: Expr
    count: int
    column: bool
    shift: Expr | None = None
    high: Bytes | None = None
    bits: int = 0

    @property
    def signed(self) -> bool:
        return self.buffer.dtype is DType.i8


@dataclass(frozen=True)
class Groups:
    """A fold as groups of four bytes: ``whole`` of them along ``axis``, and what is left over; each for all points of the ``unrolled`` axes.
    The first of two factors is unsigned."""

    axis: Axis
    whole: int
    factors: tuple[Bytes, Bytes]
    rest: tuple[Bytes, Bytes] | None
    unrolled: tuple[Axis, ...]


class Grouping:
    """Finds the groups of a fold over a vector of 16 lanes."""

    def __init__(self, e: Reduce, vector: Axis, addressing: Addressing) -> None:
        self.e, self.vector, self.addressing = e, vector, addressing

    def groups(self) -> Groups | None:
        """None when the fold has another form."""
        pair, *before, inner = byte_factors(self.e), *self.e.axes
        around = [a for a in before if a.kind is not UNROLL]
        unrolled = tuple(a for a in before if a.kind is UNROLL)
        if pair is None or inner.kind is not DOT or len(around) > 1 or (unrolled and self.e.guard is not None):
            return None
        outer = around[0] if around else None
        blocks = 1 if outer is None else outer.static_extent or 0
        left_over = self._left_over(outer, blocks, inner)
        if left_over is None:
            return None
        whole = blocks - bool(left_over)
        axis = Axis(f"{inner.name}.g", whole)
        body = self._bytes(pair, _place(outer, axis), inner, DEPTH)
        rest = self._bytes(pair, _place(outer, const(whole)), inner, left_over) if left_over else None
        if body is None or (left_over and rest is None):
            return None
        return Groups(axis, whole, body, rest, unrolled)

    def _left_over(self, outer: Axis | None, blocks: int, inner: Axis) -> int | None:
        """How many bytes of the last group exist when not all do: for the guard ``outer * 4 + inner < size``."""
        guard = self.e.guard
        if not blocks:
            return None
        if guard is None:
            return 0
        limit = self.addressing.limit(guard, inner)
        if limit is None:
            return None
        exist = [self.addressing.simplifier(substitute(limit, _place(outer, const(n)))) for n in range(max(blocks - 2, 0), blocks)]
        counts = [int(n.value) for n in exist if isinstance(n, Const)]
        if len(counts) != len(exist) or not 1 <= counts[-1] <= DEPTH or (blocks > 1 and counts[0] != counts[-1] + DEPTH):
            return None
        return counts[-1] % DEPTH

    def _bytes(self, pair: tuple[ByteFactor, ByteFactor], place: dict[Expr, Expr], inner: Axis, count: int) -> tuple[Bytes, Bytes] | None:
        """What both sides read there; None when it is not known to be inside the buffers, or lies otherwise."""
        found: list[Bytes] = []
        for factor in pair:
            part = self._part(factor, place, inner, count)
            if part is None:
                return None
            if factor.high is not None:
                high = self._part(factor.high, place, inner, count)
                if high is None or not high.column or not part.column:
                    return None
                part = replace(part, high=high, bits=factor.bits)
            found.append(part)
        return (found[0], found[1]) if found[0].column is not found[1].column else None

    def _part(self, factor: ByteFactor, place: dict[Expr, Expr], inner: Axis, count: int) -> Bytes | None:
        """What one load reads."""
        simplifier = self.addressing.simplifier
        load = factor.load
        index = tuple(simplifier(substitute(i, place)) for i in load.index)
        along = self.addressing.line(self.addressing.flat(load.buffer, index), inner)
        across = None if along is None or along.step != 1 else self.addressing.line(along.rest, self.vector)
        if across is None or across.step not in (0, DEPTH):
            return None
        column = across.step == DEPTH
        last: dict[Expr, Expr] = {inner: const(count - 1)}
        exists = index if count == DEPTH or column else tuple(simplifier(substitute(i, last)) for i in index)
        shift = None if factor.shift is None else simplifier(substitute(factor.shift, place))
        if not self.addressing.safe(load.buffer, exists) or (shift is not None and not column):
            return None
        return Bytes(load.buffer, across.rest, DEPTH if column else count, column, shift)


def _place(outer: Axis | None, at: Expr) -> dict[Expr, Expr]:
    return {} if outer is None else {outer: at}


class Dots:
    """Writes the instructions of one kind of machine. Operands are prepared once and then used for many accumulators."""

    def __init__(self, ops: Ops, memory: Memory, kind: DotKind) -> None:
        self.ops, self.w, self.memory = ops, ops.w, memory
        self.fused, self.lanes = kind.value

    def operand(self, b: Bytes, start: Val, shift: int | None, above: list[Val] | None = None) -> list[Val]:
        """Bytes that begin at ``start``, as :meth:`add` wants them; ``shift`` is the number that ``b.shift`` is here. ``above``: what :meth:`above`
        gave."""
        found = self._column(b, start, shift) if b.column else self._row(b, start)
        if above is None:
            return found
        return [x.named(self.w.op(f"or {x.typed}, {y.text}")) for x, y in zip(found, above, strict=True)]

    def above(self, b: Bytes, start: Val, shift: int, bits: int) -> list[Val]:
        """``bits`` bits of each byte from ``shift`` on, as bits 4 and up of the bytes that :meth:`operand` gives."""
        mask, out = ((1 << bits) - 1) << 4, []
        for x in self._loaded(b, start):
            for by in (shift - 4,) if self.fused else (shift - 4, shift + 4):  # of words, the even bytes and then the odd ones
                moved = x if by == 0 else self._shifted("lshr", x, by) if by > 0 else self._shifted("shl", x, -by)
                out.append(self._shifted("and", moved, mask))
        return out

    def _row(self, b: Bytes, start: Val) -> list[Val]:
        """The bytes of a row in every lane; those that do not exist are 0."""
        p = self.memory.pointer(b.buffer, start)
        if b.count == DEPTH:
            quad = self.w.op(f"load i32, ptr {p}, align 1")
        else:
            quad = self.w.op(f"zext i8 {self.w.op(f'load i8, ptr {p}, align 1')} to i32")
            for n in range(1, b.count):
                at = self.w.op(f"getelementptr i8, ptr {p}, i64 {n}")
                byte = self.w.op(f"zext i8 {self.w.op(f'load i8, ptr {at}, align 1')} to i32")
                quad = self.w.op(f"or i32 {quad}, {self.w.op(f'shl i32 {byte}, {8 * n}')}")
        x = self.ops.splat(Val(quad, DType.i32), self.lanes)
        return [self._as(x, DType.u8)] if self.fused else self._words(self._as(x, DType.u16), b.signed, None)

    def _column(self, b: Bytes, start: Val, shift: int | None) -> list[Val]:
        """The bytes of 16 columns."""
        out: list[Val] = []
        for x in self._loaded(b, start):
            if not self.fused:
                out += self._words(x, b.signed, shift)
            elif shift is None:
                out.append(x)
            else:
                out.append(self._shifted("lshr", x, 4) if shift else self._shifted("and", x, 15))
        return out

    def _loaded(self, b: Bytes, start: Val) -> list[Val]:
        """The bytes of 16 columns in registers, as bytes or as words."""
        p = self.memory.pointer(b.buffer, start)
        out: list[Val] = []
        for first in range(0, LANES, self.lanes):
            at = self.w.op(f"getelementptr i8, ptr {p}, i64 {first * DEPTH}") if first else p
            dtype = DType.i8 if self.fused else DType.i16
            count = self.lanes * 32 // dtype.bits
            out.append(Val(self.w.op(f"load {vector_of(f'i{dtype.bits}', count)}, ptr {at}, align 1"), dtype, count))
        return out

    def _words(self, x: Val, signed: bool, shift: int | None) -> list[Val]:
        """The even and the odd bytes of words, as words of their own; or four bits of each."""
        if signed:
            return [self._shifted("ashr", self._shifted("shl", x, 8), 8), self._shifted("ashr", x, 8)]
        if shift is None:
            return [self._shifted("and", x, 255), self._shifted("lshr", x, 8)]
        even = self._shifted("lshr", x, shift) if shift else x
        odd = self._shifted("lshr", x, 8 + shift)
        return [self._shifted("and", even, 15), odd if shift else self._shifted("and", odd, 15)]

    def add(self, total: Val, unsigned: list[Val], signed: list[Val]) -> Val:
        """``total`` with the products of the groups added."""
        parts = [total] if self.lanes == LANES else list(self.ops.halves(total))
        each = max(len(unsigned), len(signed)) // len(parts)

        def half(side: list[Val], n: int) -> list[Val]:
            return side if len(side) == each else side[n * each : (n + 1) * each]

        parts = [self._add(part, half(unsigned, n), half(signed, n)) for n, part in enumerate(parts)]
        return parts[0] if len(parts) == 1 else self._joined(*parts)

    def _add(self, total: Val, unsigned: list[Val], signed: list[Val]) -> Val:
        if self.fused:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            return total.named(self.w.call(name, total.type, total.typed, unsigned[0].typed, signed[0].typed))
        name = "llvm.x86.avx512.pmaddw.d.512" if self.lanes == LANES else "llvm.x86.avx2.pmadd.wd"
        for a, b in zip(unsigned, signed, strict=True):
            pair = self.w.call(name, total.type, a.typed, b.typed)
            total = total.named(self.w.op(f"add {total.typed}, {pair}"))
        return total

    def _as(self, x: Val, dtype: DType) -> Val:
        """The same bits as lanes of a narrower dtype."""
        count = x.lanes * x.dtype.bits // dtype.bits
        return Val(self.w.op(f"bitcast {x.typed} to {vector_of(f'i{dtype.bits}', count)}"), dtype, count)

    def _shifted(self, instruction: str, x: Val, by: int) -> Val:
        return x.named(self.w.op(f"{instruction} {x.typed}, splat (i{x.dtype.bits} {by})"))

    def _joined(self, low: Val, high: Val) -> Val:
        order = ", ".join(f"i32 {n}" for n in range(LANES))
        return Val(self.w.op(f"shufflevector {low.typed}, {high.typed}, <{LANES} x i32> <{order}>"), low.dtype, LANES)
