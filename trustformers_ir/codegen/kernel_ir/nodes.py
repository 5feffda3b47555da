"""Expressions of the kernel IR: immutable, hash-consed, typed.

Two expressions built from the same parts are the same object, so equality is identity, any node can key a dict, and a
walk with a memo touches each distinct sub-expression once. Each node knows at birth its dtype, the axes that it depends on
(``free_axes``) and the buffers that it reads (``loads``).

Python operators build nodes (``a + 1``, ``x < y``, ``i // 16``); only ``==`` does not, it stays identity: write ``eq(a, b)``.
The smart constructors ``unary``, ``binary`` … fold integer constants and drop integer identities; floats are never touched.
"""

from __future__ import annotations

import enum
import itertools
import struct
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.rounding import round_to

_EMPTY: frozenset[Any] = frozenset()


class _Interned(type):
    """Metaclass of hash-consed classes: a call with the same arguments gives the same object."""

    _lock = threading.RLock()

    if not TYPE_CHECKING:
        _table = weakref.WeakValueDictionary()

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls._late_key is not None or kwargs:
                node = super().__call__(*args, **kwargs)
                if cls._late_key is None:
                    raise TypeError(f"{cls.__name__} takes positional arguments only")
                key = (cls, *cls._late_key(node))
                with _Interned._lock:
                    return _Interned._table.setdefault(key, node)
            key = (cls, *cls._intern_key(args))
            with _Interned._lock:
                node = _Interned._table.get(key)
                if node is None:
                    node = super().__call__(*args)
                    _Interned._table[key] = node
                return node


class Node(metaclass=_Interned):
    """Base of everything hash-consed here."""

    __slots__ = ("__weakref__",)
    #: set by classes whose key is known only once the arguments are normalised
    _late_key: ClassVar[Callable[[Any], tuple[Any, ...]] | None] = None

    @staticmethod
    def _intern_key(args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What identifies the node, from its arguments."""
        return args


class Expr(Node):
    """A typed scalar value at one point of the loop nest."""

    __slots__ = ("checked", "children", "dtype", "free_axes", "loads", "pure_index")
    dtype: DType
    children: tuple[Expr, ...]
    #: axes on which the value depends (those bound by an inner Reduce excluded)
    free_axes: frozenset[Axis]
    #: buffers read anywhere inside
    loads: frozenset[Buffer]
    #: built from axes, symbols and constants alone: cannot overflow, cannot fail
    pure_index: bool
    #: holds a CheckedIndex, that is, may report an error
    checked: bool

    def _setup(self, dtype: DType, children: tuple[Expr, ...]) -> None:
        self.dtype = dtype
        self.children = children
        if not children:
            self.free_axes, self.loads, self.pure_index, self.checked = _EMPTY, _EMPTY, True, False
        elif len(children) == 1:
            (c,) = children
            self.free_axes, self.loads, self.pure_index, self.checked = c.free_axes, c.loads, c.pure_index, c.checked
        else:
            self.free_axes = frozenset().union(*[c.free_axes for c in children])
            self.loads = frozenset().union(*[c.loads for c in children])
            self.pure_index = all(c.pure_index for c in children)
            self.checked = any(c.checked for c in children)

    def __add__(self, other: ExprLike) -> Expr:
        return binary("add", self, as_expr(other, self.dtype))

    def __radd__(self, other: ExprLike) -> Expr:
        return binary("add", as_expr(other, self.dtype), self)

    def __sub__(self, other: ExprLike) -> Expr:
        return binary("sub", self, as_expr(other, self.dtype))

    def __rsub__(self, other: ExprLike) -> Expr:
        return binary("sub", as_expr(other, self.dtype), self)

    def __mul__(self, other: ExprLike) -> Expr:
        return binary("mul", self, as_expr(other, self.dtype))

    def __rmul__(self, other: ExprLike) -> Expr:
        return binary("mul", as_expr(other, self.dtype), self)

    def __truediv__(self, other: ExprLike) -> Expr:
        return binary("div", self, as_expr(other, self.dtype))

    def __rtruediv__(self, other: ExprLike) -> Expr:
        return binary("div", as_expr(other, self.dtype), self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return binary("floordiv", self, as_expr(other, self.dtype))

    def __mod__(self, other: ExprLike) -> Expr:
        return binary("mod", self, as_expr(other, self.dtype))

    def __and__(self, other: ExprLike) -> Expr:
        return binary("and", self, as_expr(other, self.dtype))

    def __or__(self, other: ExprLike) -> Expr:
        return binary("or", self, as_expr(other, self.dtype))

    def __xor__(self, other: ExprLike) -> Expr:
        return binary("xor", self, as_expr(other, self.dtype))

    def __lshift__(self, other: ExprLike) -> Expr:
        return binary("shl", self, as_expr(other, self.dtype))

    def __rshift__(self, other: ExprLike) -> Expr:
        return binary("shr", self, as_expr(other, self.dtype))

    def __lt__(self, other: ExprLike) -> Expr:
        return binary("lt", self, as_expr(other, self.dtype))

    def __le__(self, other: ExprLike) -> Expr:
        return binary("le", self, as_expr(other, self.dtype))

    def __gt__(self, other: ExprLike) -> Expr:
        return binary("gt", self, as_expr(other, self.dtype))

    def __ge__(self, other: ExprLike) -> Expr:
        return binary("ge", self, as_expr(other, self.dtype))

    def __neg__(self) -> Expr:
        return unary("neg", self)

    def __invert__(self) -> Expr:
        return unary("not", self)

    def __abs__(self) -> Expr:
        return unary("abs", self)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of {self!r} is known only at run time; use select(), or `is` for identity")

    def __repr__(self) -> str:
        return describe(self, 6)


ExprLike = Expr | int | float | bool


def _round_float(value: float, dtype: DType) -> float:
    if dtype is DType.f64:
        return float(value)
    return float(round_to(np.float64(value), dtype))


class Const(Expr):
    """A literal, already rounded or wrapped into its dtype. ``value`` is an int (also for bool) or a float."""

    __slots__ = ("value",)
    value: int | float

    def __init__(self, value: float | bool, dtype: DType) -> None:
        if dtype not in optable.SUPPORTED:
            raise TypeError(f"no constants of dtype {dtype}")
        self.value = _round_float(value, dtype) if dtype.is_float else optable.wrap(int(value), dtype)
        self._setup(dtype, ())

    def _late_key(self) -> tuple[Any, ...]:
        return (struct.pack("<d", self.value) if self.dtype.is_float else self.value, self.dtype)


class Sym(Expr):
    """A dimension known only at call time, by name (i64)."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        self.name = name
        self._setup(DType.i64, ())


class AxisKind(enum.Enum):
    """How a loop runs. The meaning of a kernel does not depend on it, but for VECTOR in a Reduce (the 16-lane fold), and TILE there.

    DOT is for reduce axes alone: four products of bytes that one instruction may add up (K11). TILE is a dimension of the blocks of values that
    a GPU works on; a Reduce over one folds its points in any order, so that a sum of floats is known up to rounding only (K12). WALK is the loop in
    which a program goes through its share of a PARALLEL one: its turns are independent, so that one may begin before the last has ended (K13).
    """

    PARALLEL = "parallel"
    SEQ = "seq"
    VECTOR = "vector"
    UNROLL = "unroll"
    DOT = "dot"
    TILE = "tile"
    WALK = "walk"


PARALLEL, SEQ, VECTOR, UNROLL, DOT, TILE = AxisKind.PARALLEL, AxisKind.SEQ, AxisKind.VECTOR, AxisKind.UNROLL, AxisKind.DOT, AxisKind.TILE
WALK = AxisKind.WALK

#: Lanes of the fixed vector fold and of one strip of a VECTOR loop, on every machine.
LANES = 16

_axis_ids = itertools.count(1)


class Axis(Expr):
    """A loop variable running over ``0 … extent-1``. An identity: two axes are never equal, however alike."""

    __slots__ = ("extent", "kind", "name", "uid")
    name: str
    extent: Expr
    kind: AxisKind
    uid: int

    def __init__(self, name: str, extent: ExprLike, kind: AxisKind = SEQ) -> None:
        self._setup(DType.i64, ())
        self.name = name
        self.extent = as_expr(extent, DType.i64)
        self.kind = kind
        self.uid = next(_axis_ids)
        self.free_axes = frozenset({self})

    def _late_key(self) -> tuple[Any, ...]:
        return (self.uid,)

    def like(self, *, name: str | None = None, extent: ExprLike | None = None, kind: AxisKind | None = None) -> Axis:
        """A fresh axis that differs in what is given."""
        return Axis(name or self.name, self.extent if extent is None else extent, kind or self.kind)

    @property
    def static_extent(self) -> int | None:
        """The extent where it is a constant."""
        return int(self.extent.value) if isinstance(self.extent, Const) else None


class Space(enum.Enum):
    """Where a buffer lives: handed in by the caller, or private to each worker."""

    GLOBAL = "global"
    SCRATCH = "scratch"


GLOBAL, SCRATCH = Space.GLOBAL, Space.SCRATCH


@dataclass(frozen=True)
class Ahead:
    """What a vector load asks to come into the L2 cache before its turn: what lies ``elements`` further. Where each turn of the loop called
    ``among`` reads the same ``elements``, each turn asks for its part of the next ones; if there is one turn only, it asks for what
    lies ``alone`` further (0: as many as else)."""

    elements: int
    among: str = ""
    alone: int = 0


class Buffer(Node):
    """Typed memory with a shape and element strides (row-major when not given).

    ``readonly``: no store in this kernel. ``noalias``: no other buffer of the kernel overlaps it (switch it off on both
    sides of an in-place operation). ``ahead``: what else a vector load asks for; a hint without meaning.
    """

    __slots__ = ("ahead", "dtype", "name", "noalias", "readonly", "shape", "space", "strides")
    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    space: Space
    readonly: bool
    noalias: bool
    ahead: Ahead | None

    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: Sequence[ExprLike],
        strides: Sequence[ExprLike] | None = None,
        space: Space = GLOBAL,
        readonly: bool = False,
        noalias: bool = True,
        ahead: Ahead | None = None,
    ) -> None:
        if dtype not in optable.SUPPORTED:
            raise TypeError(f"buffer {name}: dtype {dtype} is not supported; view complex as floats with a trailing dimension of 2")
        self.name, self.dtype, self.space, self.readonly, self.noalias = name, dtype, space, readonly, noalias
        self.ahead = ahead
        self.shape = tuple(as_expr(d, DType.i64) for d in shape)
        self.strides = row_major(self.shape) if strides is None else tuple(as_expr(s, DType.i64) for s in strides)
        if len(self.shape) != len(self.strides):
            raise TypeError(f"buffer {name}: {len(self.shape)} dimensions but {len(self.strides)} strides")

    def _late_key(self) -> tuple[Any, ...]:
        return (self.name, self.dtype, self.shape, self.strides, self.space, self.readonly, self.noalias, self.ahead)

    def __getitem__(self, index: ExprLike | tuple[ExprLike, ...]) -> Load:
        """``A[i, k]`` is the load of that element."""
        return load(self, *(index if isinstance(index, tuple) else (index,)))

    @property
    def size(self) -> Expr:
        """Number of elements spanned: 1 + sum of (d - 1) * stride, for a scratch buffer's allocation."""
        total: Expr = Const(1, DType.i64)
        for d in self.shape:
            total = total * d
        return total

    def __repr__(self) -> str:
        return f"%{self.name}"


def row_major(shape: Sequence[Expr]) -> tuple[Expr, ...]:
    """Element strides of a dense row-major array."""
    strides: list[Expr] = []
    step: Expr = Const(1, DType.i64)
    for d in reversed(shape):
        strides.append(step)
        step = d * step
    return tuple(reversed(strides))


class Unary(Expr):
    """``op(x)``; see ``optable.UNARY``."""

    __slots__ = ("op", "x")
    op: str
    x: Expr

    def __init__(self, op: str, x: Expr) -> None:
        self.op, self.x = op, x
        self._setup(optable.unary_dtype(op, x.dtype), (x,))
        self.pure_index = False


class Binary(Expr):
    """``a op b``; see ``optable.BINARY``."""

    __slots__ = ("a", "b", "op")
    op: str
    a: Expr
    b: Expr

    def __init__(self, op: str, a: Expr, b: Expr) -> None:
        self.op, self.a, self.b = op, a, b
        self._setup(optable.binary_dtype(op, a.dtype, b.dtype), (a, b))
        self.pure_index = self.pure_index and op not in ("and", "or", "xor", "shl", "shr")


class Select(Expr):
    """``a if c else b``. Lazy in memory: the side not taken never touches memory and reports no error."""

    __slots__ = ("a", "b", "c")
    c: Expr
    a: Expr
    b: Expr

    def __init__(self, c: Expr, a: Expr, b: Expr) -> None:
        if c.dtype is not DType.bool or a.dtype is not b.dtype:
            raise TypeError(f"select needs (bool, T, T), got ({c.dtype}, {a.dtype}, {b.dtype})")
        self.c, self.a, self.b = c, a, b
        self._setup(a.dtype, (c, a, b))


class Cast(Expr):
    """Conversion: floats round to nearest even, float to integer truncates and saturates (NaN gives 0), integers wrap,
    bool is 0 or 1, and anything to bool is ``x != 0``."""

    __slots__ = ("x",)
    x: Expr

    def __init__(self, x: Expr, dtype: DType) -> None:
        if dtype not in optable.SUPPORTED:
            raise TypeError(f"cannot cast to {dtype}")
        self.x = x
        self._setup(dtype, (x,))
        self.pure_index = False


class Fma(Expr):
    """``a * b + c`` with one rounding."""

    __slots__ = ("a", "b", "c")
    a: Expr
    b: Expr
    c: Expr

    def __init__(self, a: Expr, b: Expr, c: Expr) -> None:
        if a.dtype not in optable.COMPUTE_FLOATS or not (a.dtype is b.dtype is c.dtype):
            raise TypeError(f"fma needs three f32 or f64, got {a.dtype}, {b.dtype}, {c.dtype}")
        self.a, self.b, self.c = a, b, c
        self._setup(a.dtype, (a, b, c))


class Load(Expr):
    """One element of a buffer."""

    __slots__ = ("buffer", "index")
    buffer: Buffer
    index: tuple[Expr, ...]

    def __init__(self, buffer: Buffer, index: tuple[Expr, ...]) -> None:
        check_index(buffer, index)
        self.buffer, self.index = buffer, index
        self._setup(buffer.dtype, index)
        self.loads = self.loads | {buffer}
        self.pure_index = False


class Reduce(Expr):
    """An ordered fold of ``body`` over ``axes`` (the first axis is the outermost), skipping points where ``guard`` is false.

    The accumulator starts at the neutral element (0, 1, -inf or the smallest integer, …); a float sum whose body is a product
    is a chain of fused multiply-adds. With a VECTOR axis there are 16 accumulators, lane ``v % 16`` for the position ``v`` of
    that axis; afterwards lanes 8..15 fold into 0..7, 4..7 into 0..3, and so on. ``argmax`` and ``argmin`` give the i64
    position along their single axis of the first extremum (the first NaN wins; 0 when there is none).
    """

    __slots__ = ("axes", "body", "guard", "kind")
    kind: str
    axes: tuple[Axis, ...]
    body: Expr
    guard: Expr | None

    def __init__(self, kind: str, axes: tuple[Axis, ...], body: Expr, guard: Expr | None = None) -> None:
        if kind not in optable.REDUCTIONS:
            raise TypeError(f"there is no reduction {kind!r}")
        if kind in ("any", "all"):
            if body.dtype is not DType.bool:
                raise TypeError(f"{kind} reduces bool, got {body.dtype}")
        elif body.dtype is DType.bool or (body.dtype.is_float and body.dtype not in optable.COMPUTE_FLOATS):
            raise TypeError(f"{kind} does not reduce {body.dtype}; cast first")
        self.kind, self.axes, self.body, self.guard = kind, axes, body, guard
        self._setup(DType.i64 if kind.startswith("arg") else body.dtype, (body,) if guard is None else (body, guard))
        extents = [a.extent.free_axes for a in axes]
        self.free_axes = self.free_axes.union(*extents) - frozenset(axes)
        self.loads = self.loads.union(*[a.extent.loads for a in axes])
        self.pure_index = False

    @staticmethod
    def _intern_key(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if len(args) == 4 else (*args, None)


class CheckedIndex(Expr):
    """A data-dependent index: negative counts from the end; out of range is reported as error ``site`` and clamped."""

    __slots__ = ("bound", "index", "site")
    index: Expr
    bound: Expr
    site: int

    def __init__(self, index: Expr, bound: Expr, site: int) -> None:
        if index.dtype is not DType.i64 or bound.dtype is not DType.i64:
            raise TypeError(f"a checked index needs i64, got {index.dtype} and {bound.dtype}")
        self.index, self.bound, self.site = index, bound, site
        self._setup(DType.i64, (index, bound))
        self.pure_index = False
        self.checked = True


def as_expr(value: ExprLike, dtype: DType) -> Expr:
    """An expression as it is; a Python number as a constant of ``dtype``."""
    return value if isinstance(value, Expr) else Const(value, dtype)


def const(value: float | bool, dtype: DType = DType.i64) -> Const:
    """A literal."""
    return Const(value, dtype)


def check_index(buffer: Buffer, index: tuple[Expr, ...]) -> None:
    """``TypeError`` unless the index fits the buffer's rank and is made of i64."""
    if len(index) != len(buffer.shape):
        raise TypeError(f"{buffer.name} has rank {len(buffer.shape)} but the index has {len(index)} entries")
    for i in index:
        if i.dtype is not DType.i64:
            raise TypeError(f"index of {buffer.name} has dtype {i.dtype}, need i64")


def load(buffer: Buffer, *index: ExprLike) -> Load:
    """The element of ``buffer`` at ``index``."""
    return Load(buffer, tuple(as_expr(i, DType.i64) for i in index))


def unary(op: str, x: Expr) -> Expr:
    """``op(x)``; integer constants fold."""
    if isinstance(x, Const) and not x.dtype.is_float and op in ("neg", "abs", "not"):
        v = int(x.value)
        return Const({"neg": -v, "abs": abs(v), "not": (1 - v) if x.dtype is DType.bool else ~v}[op], x.dtype)
    return Unary(op, x)


def binary(op: str, a: Expr, b: Expr) -> Expr:
    """``a op b``; integer constants fold and integer identities vanish."""
    dtype = a.dtype
    if not dtype.is_float and dtype is b.dtype:
        ca, cb = isinstance(a, Const), isinstance(b, Const)
        if isinstance(a, Const) and isinstance(b, Const):
            return Const(optable.fold_int(op, int(a.value), int(b.value), dtype), optable.binary_dtype(op, dtype, dtype))
        va = int(a.value) if isinstance(a, Const) else None
        vb = int(b.value) if isinstance(b, Const) else None
        if op == "add" and (va == 0 or vb == 0):
            return b if va == 0 else a
        if op == "sub" and vb == 0:
            return a
        if op == "mul" and dtype is not DType.bool:
            if va == 0 or vb == 0:
                return Const(0, dtype)
            if va == 1 or vb == 1:
                return b if va == 1 else a
        if op in ("floordiv", "div") and vb == 1:
            return a
        if op == "mod" and vb == 1:
            return Const(0, dtype)
        if op == "sub" and a is b:
            return Const(0, dtype)
        if op in ("min", "max", "and", "or") and a is b:
            return a
        if dtype is DType.bool and (ca or cb):
            known, other = (va, b) if ca else (vb, a)
            if op == "and":
                return other if known else Const(0, dtype)
            if op == "or":
                return Const(1, dtype) if known else other
    return Binary(op, a, b)


def select(c: Expr, a: ExprLike, b: ExprLike) -> Expr:
    """``a if c else b``; a constant condition folds."""
    if not isinstance(a, Expr):
        if not isinstance(b, Expr):
            raise TypeError("select needs at least one expression to know its dtype")
        a = Const(a, b.dtype)
    b = as_expr(b, a.dtype)
    if isinstance(c, Const):
        return a if c.value else b
    return a if a is b and a.dtype is b.dtype else Select(c, a, b)


def cast(x: Expr, dtype: DType) -> Expr:
    """``x`` converted; a cast to its own dtype vanishes, integer constants fold."""
    if x.dtype is dtype:
        return x
    if isinstance(x, Const) and not x.dtype.is_float:
        return Const(x.value, dtype)
    return Cast(x, dtype)


def fma(a: Expr, b: ExprLike, c: ExprLike) -> Expr:
    """``a * b + c`` rounded once."""
    return Fma(a, as_expr(b, a.dtype), as_expr(c, a.dtype))


def reduce(kind: str, axes: Axis | Sequence[Axis], body: Expr, guard: Expr | None = None) -> Expr:
    """An ordered fold over any number of axes; over none it is the body itself."""
    bound = (axes,) if isinstance(axes, Axis) else tuple(axes)
    return Reduce(kind, bound, body, guard) if bound else body


def minimum(a: Expr, b: ExprLike) -> Expr:
    """The smaller; NaN wins."""
    return binary("min", a, as_expr(b, a.dtype))


def maximum(a: Expr, b: ExprLike) -> Expr:
    """The larger; NaN wins."""
    return binary("max", a, as_expr(b, a.dtype))


def conjuncts(e: Expr) -> list[Expr]:
    """The conditions of which ``e``, a bool, is the conjunction."""
    return [*conjuncts(e.a), *conjuncts(e.b)] if isinstance(e, Binary) and e.op == "and" else [e]


def eq(a: Expr, b: ExprLike) -> Expr:
    """``a == b`` as an expression."""
    return binary("eq", a, as_expr(b, a.dtype))


def ne(a: Expr, b: ExprLike) -> Expr:
    """``a != b`` as an expression."""
    return binary("ne", a, as_expr(b, a.dtype))


def describe(expr: Expr, depth: int = 100, names: Mapping[Expr, str] | None = None) -> str:
    """An expression as text. Below ``depth`` it is cut to ``…``; nodes in ``names`` (other than the root) print as their name."""

    def sub(e: Expr) -> str:
        if names is not None and e in names:
            return names[e]
        return "…" if depth <= 0 and e.children else describe(e, depth - 1, names)

    if isinstance(expr, Const):
        if expr.dtype is DType.i64:
            return str(expr.value)
        return str(bool(expr.value)).lower() if expr.dtype is DType.bool else f"{expr.value!r}:{expr.dtype}"
    if isinstance(expr, (Sym, Axis)):
        return expr.name
    if isinstance(expr, Unary):
        return f"{expr.op}({sub(expr.x)})"
    if isinstance(expr, Binary):
        symbol = optable.BINARY[expr.op].symbol
        return f"({sub(expr.a)} {symbol} {sub(expr.b)})" if symbol else f"{expr.op}({sub(expr.a)}, {sub(expr.b)})"
    if isinstance(expr, Cast):
        return f"{expr.dtype}({sub(expr.x)})"
    if isinstance(expr, Load):
        return f"{expr.buffer.name}[{', '.join(map(sub, expr.index))}]"
    if isinstance(expr, Reduce):
        axes = ", ".join(f"{a.name}:{a.kind.value}<{sub(a.extent)}" for a in expr.axes)
        guard = f" if {sub(expr.guard)}" if expr.guard is not None else ""
        return f"{expr.kind}[{axes}{guard}]({sub(expr.body)})"
    if isinstance(expr, CheckedIndex):
        return f"checked#{expr.site}({sub(expr.index)} < {sub(expr.bound)})"
    return f"{type(expr).__name__.lower()}({', '.join(map(sub, expr.children))})"
