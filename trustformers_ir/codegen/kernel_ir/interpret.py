"""The slow obvious meaning of a kernel: one element at a time, in program order, in numpy scalars.

This is the twin of every compiled kernel. Arithmetic is the kernel's own (f32 stays f32, one rounding per operation, fused multiply-adds from the C
library, expansions of ``codegen.math``), so compiled code must give the very same bits. ``exact=True`` evaluates elementary functions with the C
library in f64 instead of expanding them.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from trustformers_ir.codegen import math as functions
from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk
from trustformers_ir.codegen.kernel_ir.nodes import (
    LANES,
    VECTOR,
    Axis,
    Binary,
    Buffer,
    Cast,
    CheckedIndex,
    Const,
    Expr,
    Fma,
    Load,
    Reduce,
    Select,
    Sym,
    Unary,
)
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.rounding import round_to


class OutOfBounds(IndexError):
    """A kernel touched memory outside a buffer's shape: a defect of whoever built it."""


@deep
def interpret(
    kernel: Kernel,
    arrays: Sequence[np.ndarray],
    dims: Mapping[str, int] | None = None,
    status: np.ndarray | None = None,
    *,
    exact: bool = False,
) -> None:
    """Runs the kernel on arrays (one per parameter; shaped or flat, written in place)."""
    env = _Environment(kernel, arrays, dims or {}, status, exact)
    with np.errstate(all="ignore"):
        env.statements(kernel.body)


@functools.cache
def _libm() -> Any:
    return ctypes.CDLL("libm.so.6")


@functools.cache
def _c_function(name: str, arity: int, single: bool = False) -> Callable[..., float]:
    f = getattr(_libm(), name + ("f" if single else ""))
    kind = ctypes.c_float if single else ctypes.c_double
    f.restype, f.argtypes = kind, [kind] * arity
    return f  # type: ignore[no-any-return]


class _Environment:
    def __init__(self, kernel: Kernel, arrays: Sequence[np.ndarray], dims: Mapping[str, int], status: np.ndarray | None, exact: bool) -> None:
        if len(arrays) != len(kernel.params):
            raise ValueError(f"kernel {kernel.name} takes {len(kernel.params)} arrays, got {len(arrays)}")
        self.dims, self.exact = dims, exact
        self.status = np.zeros(2, np.int64) if status is None else status
        self.axes: dict[Axis, int] = {}
        self.memory: dict[Buffer, np.ndarray] = {}
        # Values of folds, by the places of the axes they depend on, until a buffer that they read is stored to.
        self.folds: dict[tuple[Reduce, tuple[int, ...]], Any] = {}
        for b, a in zip(kernel.params, arrays, strict=True):
            if a.dtype != b.dtype.numpy or not a.flags.c_contiguous:
                raise ValueError(f"{b.name} needs a C-contiguous array of {b.dtype}, got {a.dtype}")
            self.memory[b] = a.reshape(-1)
        for b in kernel.scratch:
            self.memory[b] = np.zeros(int(self.value(b.size)), b.dtype.numpy)

    # -- statements ----------------------------------------------------------------------------------------------------

    def statements(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            if isinstance(s, Store):
                x = self.value(s.value)
                if self.exists(s.index):
                    self.memory[s.buffer][self.offset(s.buffer, s.index)] = x
                self.folds = {k: v for k, v in self.folds.items() if s.buffer not in k[0].loads}
            elif isinstance(s, For):
                for i in range(int(self.value(s.axis.extent))):
                    self.axes[s.axis] = i
                    if s.guard is None or self.value(s.guard):
                        self.statements(s.body)

    def exists(self, index: tuple[Expr, ...]) -> bool:
        """Evaluates an index; False when it picks from a dimension of size 0, which is reported: then no memory is touched."""
        for i in index:
            if i.checked:
                self.value(i)
        checks = {n for i in index if i.checked for n in walk(i) if isinstance(n, CheckedIndex)}
        return all(int(self.value(c.bound)) > 0 for c in checks)

    def offset(self, b: Buffer, index: tuple[Expr, ...]) -> int:
        at = 0
        for i, d, s in zip(index, b.shape, b.strides, strict=True):
            n, extent = int(self.value(i)), int(self.value(d))
            if not 0 <= n < extent:
                raise OutOfBounds(f"index {n} of {b.name} is outside [0, {extent})")
            at += n * int(self.value(s))
        return at

    # -- expressions ---------------------------------------------------------------------------------------------------

    def value(self, root: Expr, memo: dict[Expr, Any] | None = None) -> Any:
        """The value as a numpy scalar of its dtype."""
        memo = {} if memo is None else memo
        if root in memo:
            return memo[root]
        out = memo[root] = self._value(root, memo)
        return out

    def _value(self, e: Expr, memo: dict[Expr, Any]) -> Any:
        if isinstance(e, Const):
            return e.dtype.numpy.type(e.value)
        if isinstance(e, Sym):
            return np.int64(self.dims[e.name])
        if isinstance(e, Axis):
            return np.int64(self.axes[e])
        if isinstance(e, Select):
            return self.value(e.a if self.value(e.c, memo) else e.b, memo)
        if isinstance(e, Load):
            return self._load(e)
        if isinstance(e, Reduce):
            place = (e, tuple(self.axes[a] for a in sorted(e.free_axes, key=lambda a: a.uid)))
            if place not in self.folds:
                self.folds[place] = self._reduce(e)
            return self.folds[place]
        if isinstance(e, CheckedIndex):
            return self._checked(int(self.value(e.index, memo)), int(self.value(e.bound, memo)), e.site)
        kids = [self.value(c, memo) for c in e.children]
        if isinstance(e, Cast):
            return convert(kids[0], e.x.dtype, e.dtype)
        if isinstance(e, Fma):
            return fused(*kids)
        if isinstance(e, (Unary, Binary)):
            transcendental = (optable.UNARY if isinstance(e, Unary) else optable.BINARY)[e.op].transcendental
            if self.exact and transcendental and e.dtype.is_float and e.op in functions.LIBM:
                return e.dtype.numpy.type(_c_function(functions.LIBM[e.op], len(kids))(*map(float, kids)))
            expanded = functions.expand(e)
            if expanded is not None:
                return self.value(expanded, memo)
            if transcendental:
                return np.float64(_c_function(functions.LIBM[e.op], len(kids))(*map(float, kids)))
            return unary_value(e.op, kids[0], e.x.dtype) if isinstance(e, Unary) else binary_value(e.op, kids[0], kids[1], e.a.dtype)
        raise TypeError(f"cannot interpret {type(e).__name__}")

    def _load(self, e: Load) -> Any:
        if not self.exists(e.index):
            return e.dtype.numpy.type(0)
        return self.memory[e.buffer][self.offset(e.buffer, e.index)]

    def _checked(self, index: int, bound: int, site: int) -> Any:
        n = index + bound if index < 0 else index
        if not 0 <= n < bound and self.status[0] == 0:
            self.status[0], self.status[1] = site + 1, index
        return np.int64(max(min(n, bound - 1), 0))

    def _reduce(self, e: Reduce) -> Any:
        laned = e.axes[-1].kind is VECTOR
        start = neutral(e.kind, e.body.dtype)
        lanes = [start] * (LANES if laned else 1)
        product = e.kind == "sum" and e.body.dtype.is_float and isinstance(e.body, Binary) and e.body.op == "mul"

        def walk(depth: int) -> None:
            if depth < len(e.axes):
                for i in range(int(self.value(e.axes[depth].extent))):
                    self.axes[e.axes[depth]] = i
                    walk(depth + 1)
                return
            if e.guard is not None and not self.value(e.guard):
                return
            lane = self.axes[e.axes[-1]] % LANES if laned else 0
            memo: dict[Expr, Any] = {}
            if product and isinstance(e.body, Binary):
                lanes[lane] = (fused(self.value(e.body.a, memo), self.value(e.body.b, memo), lanes[lane][0]),)
            else:
                lanes[lane] = fold(e.kind, lanes[lane], self.value(e.body, memo), self.axes[e.axes[0]], e.body.dtype)

        walk(0)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [merge(e.kind, lanes[j], lanes[j + half], e.body.dtype) for j in range(half)]
        if e.kind.startswith("arg"):
            return np.int64(max(lanes[0][1], 0))
        return lanes[0][0]


# -- scalar arithmetic ---------------------------------------------------------------------------------------------------


def fused(a: Any, b: Any, c: Any) -> Any:
    """``a*b + c`` with one rounding, in the dtype of the operands."""
    single = isinstance(a, np.float32)
    return type(a)(_c_function("fma", 3, single)(float(a), float(b), float(c)))


def convert(x: Any, source: DType, to: DType) -> Any:
    """A ``Cast``."""
    kind = to.numpy.type
    if to is DType.bool:
        return np.bool_(float(x) != 0.0 if source.is_float else bool(x))
    if source.is_float and not to.is_float:
        v = float(x)
        if math.isnan(v):
            return kind(0)
        return kind(to.min if v <= to.min else to.max if v >= to.max else int(v))
    if to.is_float:
        if to in (DType.f16, DType.bf16) and source not in (DType.f32, DType.f16, DType.bf16):
            return _round_narrow(float(x) if source.is_float else int(x), to)
        return round_to(x, to)[()]
    return kind(optable.wrap(int(x), to))


def _round_narrow(x: float, to: DType) -> Any:
    """To f16 or bf16 with one rounding, by picking the nearest neighbour exactly."""
    if isinstance(x, float) and not math.isfinite(x):
        return np.asarray(x).astype(to.numpy)[()]
    guess = np.asarray(float(x)).astype(np.float32).astype(to.numpy)[()]
    bits = int(np.asarray(guess).view(np.uint16))
    best = guess
    for near in (bits - 1, bits + 1):
        candidate = np.asarray(near & 0xFFFF, np.uint16).view(to.numpy)[()]
        if not (np.isfinite(float(candidate)) and np.isfinite(float(best))):
            continue
        a, b = abs(_exact_difference(x, float(candidate))), abs(_exact_difference(x, float(best)))
        if a < b or (a == b and near % 2 == 0):
            best = candidate
    return best


def _exact_difference(x: float, y: float) -> Any:
    return Fraction(x) - Fraction(y)


def unary_value(op: str, x: Any, d: DType) -> Any:
    """A primitive unary operator."""
    kind = d.numpy.type
    if op == "bits":
        return np.asarray(x).view(optable.unary_dtype("bits", d).numpy)[()]
    if op == "from_bits":
        return np.asarray(x).view(optable.unary_dtype("from_bits", d).numpy)[()]
    if op == "not":
        return np.bool_(not x) if d is DType.bool else kind(optable.wrap(~int(x), d))
    if d.is_float:
        if op == "recip":
            return kind(1) / x
        if op == "sign":
            return kind(1) if x > 0 else kind(-1) if x < 0 else x
        table = {"neg": np.negative, "abs": np.abs, "isnan": np.isnan, "floor": np.floor, "ceil": np.ceil}
        table |= {"trunc": np.trunc, "round_even": np.rint, "sqrt": np.sqrt}
        return table[op](x)
    v = int(x)
    return kind(optable.wrap({"neg": -v, "abs": abs(v), "sign": (v > 0) - (v < 0)}[op], d))


def binary_value(op: str, a: Any, b: Any, d: DType) -> Any:
    """A primitive binary operator."""
    if not d.is_float:
        value = optable.fold_int(op, int(a), int(b), d)
        return optable.binary_dtype(op, d, d).numpy.type(value)
    if op in ("eq", "ne", "lt", "le", "gt", "ge"):
        x, y = float(a), float(b)
        return np.bool_({"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[op])
    if op in ("min", "max"):
        better = a > b if op == "max" else a < b
        return a if better or np.isnan(a) else b
    table: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "rem": np.fmod}
    return table[op](a, b)


def neutral(kind: str, d: DType) -> tuple[Any, ...]:
    """The accumulator before the first element."""
    start = d.numpy.type(optable.neutral(kind, d))
    return (start, -1) if kind.startswith("arg") else (start,)


def fold(kind: str, acc: tuple[Any, ...], x: Any, position: int, d: DType) -> tuple[Any, ...]:
    """The accumulator after one more element."""
    if kind.startswith("arg"):
        value, at = acc
        better = x > value if kind == "argmax" else x < value
        if at < 0 or better or (d.is_float and np.isnan(x) and not np.isnan(value)):
            return x, position
        return acc
    if kind in ("max", "min"):
        return (binary_value(kind, x, acc[0], d),)
    if kind in ("any", "all"):
        return (np.bool_(acc[0] or x if kind == "any" else acc[0] and x),)
    return (binary_value("add" if kind == "sum" else "mul", acc[0], x, d),)


def merge(kind: str, low: tuple[Any, ...], high: tuple[Any, ...], d: DType) -> tuple[Any, ...]:
    """Two lanes joined."""
    if not kind.startswith("arg"):
        return fold(kind, low, high[0], 0, d)
    (a, i), (b, j) = low, high
    if j < 0 or i < 0:
        return low if j < 0 else high
    a_nan, b_nan = (d.is_float and bool(np.isnan(v)) for v in (a, b))
    if a_nan and b_nan:
        return high if j < i else low
    if a_nan or b_nan:
        return low if a_nan else high
    better = b > a if kind == "argmax" else b < a
    return high if better or (a == b and j < i) else low
