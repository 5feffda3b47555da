"""Writing one LLVM function as text: fresh names, blocks, loops with accumulators, types and literals.

Text is written directly because llvmlite's IR builder costs more than LLVM's own parser on large functions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.dtypes import DType

_SCALAR = {DType.bool: "i1", DType.f16: "half", DType.bf16: "i16", DType.f32: "float", DType.f64: "double"}
_SUFFIX = {"half": "f16", "float": "f32", "double": "f64"}


def scalar_type(dtype: DType) -> str:
    """LLVM type of a value in a register. A bf16 is carried as its 16 bits, an f8e4m3 as its 8, a bool as i1."""
    return _SCALAR.get(dtype) or f"i{dtype.bits}"


def memory_type(dtype: DType) -> str:
    """LLVM type of one element in memory: a bool is a byte."""
    return "i8" if dtype is DType.bool else scalar_type(dtype)


def vector_of(scalar: str, lanes: int) -> str:
    """``scalar`` itself for 0 lanes, else a vector of it."""
    return f"<{lanes} x {scalar}>" if lanes else scalar


def suffix(scalar: str, lanes: int) -> str:
    """The mangled name of a type inside an intrinsic's name: ``v16f32``, ``i64``."""
    name = _SUFFIX.get(scalar, scalar)
    return f"v{lanes}{name}" if lanes else name


@dataclass(frozen=True, slots=True)
class Val:
    """A value in a register: its text (a name or a literal), dtype and lanes (0: one scalar)."""

    text: str
    dtype: DType
    lanes: int = 0
    #: the value of an integer or bool literal
    literal: int | None = None

    @property
    def type(self) -> str:
        """LLVM type."""
        return vector_of(scalar_type(self.dtype), self.lanes)

    @property
    def typed(self) -> str:
        """``type text``, as an operand is written."""
        return f"{self.type} {self.text}"

    def named(self, text: str) -> Val:
        """A value of the same type under another name."""
        return Val(text, self.dtype, self.lanes)


def literal(value: float, dtype: DType) -> Val:
    """A constant."""
    if dtype is DType.bool:
        return Val("true" if value else "false", dtype, 0, int(bool(value)))
    if dtype in (DType.f32, DType.f64):
        return Val(f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}", dtype)
    if dtype is DType.f16:
        return Val(f"0xH{struct.unpack('<H', struct.pack('<e', value))[0]:04X}", dtype)
    if dtype is DType.bf16:
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
        return Val(str(bits >> 16), dtype)
    if dtype is DType.f8e4m3:
        return Val(str(int(np.float32(value).astype(dtype.numpy).view(np.int8))), dtype)
    return Val(str(int(value)), dtype, 0, int(value))


class Writer:
    """The body of one function under construction, and the declarations that it needs."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declarations: dict[str, str] = {}
        self.block = "entry"
        self._next = 0

    def fresh(self, stem: str = "v") -> str:
        """A new name without its sigil."""
        self._next += 1
        return f"{stem}{self._next}"

    def line(self, text: str) -> None:
        """One instruction without a result."""
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        """One instruction; gives the name of its result."""
        self._next += 1
        name = f"%v{self._next}"
        self.lines.append(f"  {name} = {text}")
        return name

    def label(self, name: str) -> None:
        """Starts a block."""
        self.lines.append(f"{name}:")
        self.block = name

    def declare(self, name: str, signature: str) -> None:
        """Remembers ``declare <signature>`` under its symbol."""
        self.declarations[name] = f"declare {signature}"

    def call(self, name: str, result: str, *args: str, attributes: str = "") -> str:
        """Calls an intrinsic or external function and declares it; ``args`` are typed operands."""
        types = ", ".join(_type_of(a) for a in args)
        self.declare(name, f"{result} @{name}({types}){' ' + attributes if attributes else ''}")
        text = f"call {result} @{name}({', '.join(args)})"
        if result == "void":
            self.line(text)
            return ""
        return self.op(text)

    def loop(
        self,
        start: Val,
        stop: Val,
        carried: Sequence[Val],
        body: Callable[[Val, list[Val]], Sequence[Val]],
        *,
        step: int = 1,
        may_skip: bool = True,
    ) -> list[Val]:
        """``for i in start..stop step``: runs ``body(i, values)``, which gives the values carried to the next turn.

        Written bottom-tested, as loop rotation would leave it. ``may_skip``: the range may be empty. Gives the final values.
        """
        header, done = self.fresh("loop"), self.fresh("done")
        before = self.block
        if may_skip:
            some = self.op(f"icmp slt i64 {start.text}, {stop.text}")
            self.line(f"br i1 {some}, label %{header}, label %{done}")
        else:
            self.line(f"br label %{header}")
        self.label(header)
        at = len(self.lines)
        index, following = f"%{self.fresh('i')}", f"%{self.fresh('n')}"
        phis = [c.named(f"%{self.fresh('p')}") for c in carried]
        results = list(body(Val(index, DType.i64), phis))
        latch = self.block
        head = [f"  {index} = phi i64 [ {start.text}, %{before} ], [ {following}, %{latch} ]"]
        for p, c, r in zip(phis, carried, results, strict=True):
            head.append(f"  {p.text} = phi {p.type} [ {c.text}, %{before} ], [ {r.text}, %{latch} ]")
        self.lines[at:at] = head
        self.line(f"{following} = add nuw nsw i64 {index}, {step}")
        again = self.op(f"icmp slt i64 {following}, {stop.text}")
        self.line(f"br i1 {again}, label %{header}, label %{done}")
        self.label(done)
        if not may_skip:
            return results
        out = []
        for c, r in zip(carried, results, strict=True):
            out.append(c.named(self.op(f"phi {c.type} [ {c.text}, %{before} ], [ {r.text}, %{latch} ]")))
        return out

    def branch(self, condition: Val, then: Callable[[], Sequence[Val]], otherwise: Sequence[Val] = ()) -> list[Val]:
        """``if condition``: gives the values of ``then``, or ``otherwise`` (same types) when it did not run."""
        yes, done = self.fresh("then"), self.fresh("endif")
        before = self.block
        self.line(f"br i1 {condition.text}, label %{yes}, label %{done}")
        self.label(yes)
        results = list(then())
        last = self.block
        self.line(f"br label %{done}")
        self.label(done)
        out = []
        for o, r in zip(otherwise, results, strict=True):
            out.append(o.named(self.op(f"phi {o.type} [ {r.text}, %{last} ], [ {o.text}, %{before} ]")))
        return out


def _type_of(operand: str) -> str:
    """The type part of a typed operand (``<16 x i32> %x`` or ``ptr align 4 %p``)."""
    return operand[: operand.rindex(">") + 1] if operand.startswith("<") and "splat" not in operand else _plain_type(operand)


def _plain_type(operand: str) -> str:
    if operand.startswith("<"):
        return operand[: operand.index(">") + 1]
    return operand.split(" ", 1)[0]
