"""Loads and stores: which form an access takes along the vector axis, and how it is kept from touching foreign memory.

Along the vector axis an address is ``rest + slope * lane``. Slope 0 is a scalar load, 1 a vector load, -1 a vector load turned round,
anything else (or an address that is no such line) a gather. An access whose indices are provably inside the buffer's shape is
plain. Otherwise it obeys the tile's lane mask and the conditions of the ``Select`` branches around it: a vector of conditions
masks lanes; a scalar condition turns the address to a block of zeros, which costs no branch.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import Kernel, walk
from trustformers_ir.codegen.kernel_ir.nodes import Axis, Binary, Buffer, CheckedIndex, Const, Expr, const
from trustformers_ir.codegen.kernel_ir.simplify import Poly, Simplifier
from trustformers_ir.codegen.llvm.text import Val, literal, memory_type, suffix, vector_of
from trustformers_ir.codegen.llvm.values import Ops
from trustformers_ir.ir.dtypes import DType

#: A block of zeros that skipped accesses read; 16 lanes of 8 bytes.
ZEROS = "tfir_zeros"
ZEROS_DEFINITION = f"@{ZEROS} = internal unnamed_addr constant [128 x i8] zeroinitializer, align 64"


@dataclass(frozen=True)
class Line:
    """An address as ``rest + slope * axis``."""

    rest: Expr
    slope: Expr

    @property
    def step(self) -> int | None:
        """The slope where it is a number."""
        return int(self.slope.value) if isinstance(self.slope, Const) else None


class Addressing:
    """Index analysis of one kernel, memoised."""

    def __init__(self, kernel: Kernel, simplifier: Simplifier) -> None:
        self.kernel = kernel
        self.simplifier = simplifier
        self._flat: dict[tuple[Buffer, tuple[Expr, ...]], Expr] = {}
        self._lines: dict[tuple[Expr, Axis], Line | None] = {}
        self._safe: dict[tuple[Buffer, tuple[Expr, ...]], bool] = {}
        self._checked: dict[tuple[Expr, ...], tuple[CheckedIndex, ...]] = {}

    def flat(self, buffer: Buffer, index: tuple[Expr, ...]) -> Expr:
        """The element offset of an access."""
        key = (buffer, index)
        hit = self._flat.get(key)
        if hit is None:
            total: Expr = const(0)
            for i, s in zip(index, buffer.strides, strict=True):
                total = total + i * s
            hit = self._flat[key] = self.simplifier(total)
        return hit

    def line(self, flat: Expr, axis: Axis) -> Line | None:
        """The address as a line along ``axis``, or None when it is not one."""
        key = (flat, axis)
        if key not in self._lines:
            self._lines[key] = self._line(flat, axis)
        return self._lines[key]

    def _line(self, flat: Expr, axis: Axis) -> Line | None:
        slope: Poly = {}
        rest: Poly = {}
        for m, c in self.simplifier.poly(flat).items():
            if not any(axis in atom.free_axes for atom in m):
                rest[m] = c
                continue
            others = [a for a in m if a is not axis]
            if len(others) != len(m) - 1 or any(axis in a.free_axes for a in others):
                return None
            slope[tuple(others)] = c
        return Line(self.simplifier.expr(rest), self.simplifier.expr(slope))

    def limit(self, guard: Expr, axis: Axis) -> Expr | None:
        """For a guard ``p < q`` that says ``axis < bound``: the bound, an expression without the axis."""
        if not isinstance(guard, Binary) or guard.op != "lt" or not guard.pure_index or guard.a.dtype is not DType.i64:
            return None
        line = self.line(self.simplifier(guard.b - guard.a), axis)
        return line.rest if line is not None and line.step == -1 else None

    def safe(self, buffer: Buffer, index: tuple[Expr, ...]) -> bool:
        """Whether every index is provably inside the shape, whenever the enclosing loops run."""
        key = (buffer, index)
        if key not in self._safe:
            self._safe[key] = all(self._inside(i, d) for i, d in zip(index, buffer.shape, strict=True))
        return self._safe[key]

    def _inside(self, i: Expr, size: Expr) -> bool:
        s = self.simplifier
        if isinstance(i, CheckedIndex):  # it is clamped, so it lies where there is something
            return s.proves_less(const(0), i.bound) and s.proves_less_equal(i.bound, size)
        return i.pure_index and s.proves_nonneg(i) and s.proves_less(i, size)

    def checked(self, index: tuple[Expr, ...]) -> tuple[CheckedIndex, ...]:
        """Checked indices inside whose bound may be zero: their access must be skipped then."""
        if index not in self._checked:
            found: list[CheckedIndex] = []
            if any(i.checked for i in index):
                seen: set[Expr] = set()
                for i in index:
                    for n in walk(i, seen):
                        if isinstance(n, CheckedIndex) and not self.simplifier.proves_less(const(0), n.bound):
                            found.append(n)
            self._checked[index] = tuple(found)
        return self._checked[index]


@dataclass(frozen=True)
class Condition:
    """When an access happens: a scalar condition, lane conditions, or both; None is always."""

    scalar: Val | None = None
    lanes: Val | None = None


class Memory:
    """Emits loads and stores on base pointers."""

    def __init__(self, ops: Ops, pointers: dict[Buffer, str], addressing: Addressing) -> None:
        self.ops = ops
        self.w = ops.w
        self.pointers = pointers
        self.addressing = addressing

    def pointer(self, buffer: Buffer, offset: Val, condition: Val | None = None) -> str:
        """The address of an element, or of the zeros when the scalar condition is false."""
        base = self.pointers[buffer]
        p = base if offset.literal == 0 else self.w.op(f"getelementptr {memory_type(buffer.dtype)}, ptr {base}, i64 {offset.text}")
        if condition is None or condition.literal == 1:
            return p
        return self.w.op(f"select i1 {condition.text}, ptr {p}, ptr @{ZEROS}")

    def _from_memory(self, text: str, dtype: DType, lanes: int) -> Val:
        if dtype is DType.bool:
            zero = "zeroinitializer" if lanes else "0"
            text = self.w.op(f"icmp ne {vector_of('i8', lanes)} {text}, {zero}")
        return Val(text, dtype, lanes)

    def _to_memory(self, x: Val) -> tuple[str, str]:
        """(type, text) of a value as it lies in memory."""
        if x.dtype is DType.bool:
            t = vector_of("i8", x.lanes)
            return t, self.w.op(f"zext {x.typed} to {t}")
        return x.type, x.text

    def load_scalar(self, b: Buffer, offset: Val, when: Condition) -> Val:
        """One element."""
        p = self.pointer(b, offset, when.scalar)
        text = self.w.op(f"load {memory_type(b.dtype)}, ptr {p}, align {b.dtype.itemsize}")
        return self._from_memory(text, b.dtype, 0)

    def load_vector(self, b: Buffer, offset: Val, lanes: int, when: Condition) -> Val:
        """Neighbouring elements."""
        t, align = vector_of(memory_type(b.dtype), lanes), b.dtype.itemsize
        p = self.pointer(b, offset, when.scalar)
        if when.lanes is None:
            return self._from_memory(self.w.op(f"load {t}, ptr {p}, align {align}"), b.dtype, lanes)
        name = f"llvm.masked.load.{suffix(memory_type(b.dtype), lanes)}.p0"
        text = self.masked(name, t, [f"ptr align {align} {p}", f"<{lanes} x i1> {when.lanes.text}", f"{t} zeroinitializer"])
        return self._from_memory(text, b.dtype, lanes)

    def fetch_early(self, b: Buffer, offset: Val) -> None:
        """Asks for the cache line ``offset`` bytes into the buffer; nothing happens where no memory is."""
        name = "llvm.prefetch.p0"
        self.w.declare(name, f"void @{name}(ptr, i32, i32, i32)")
        q = self.w.op(f"getelementptr i8, ptr {self.pointers[b]}, i64 {offset.text}")
        self.w.line(f"call void @{name}(ptr {q}, i32 0, i32 2, i32 1)")  # for reading, into L2, data

    def load_reversed(self, b: Buffer, offset: Val, lanes: int, when: Condition) -> Val:
        """Neighbouring elements, the last lane lying lowest at ``offset``."""
        x = self.load_vector(b, offset, lanes, when)
        order = ", ".join(f"i32 {n}" for n in reversed(range(lanes)))
        return x.named(self.w.op(f"shufflevector {x.typed}, {x.type} poison, <{lanes} x i32> <{order}>"))

    def _addresses(self, b: Buffer, offset: Val, steps: Val) -> str:
        p = self.pointer(b, offset)
        return self.w.op(f"getelementptr {memory_type(b.dtype)}, ptr {p}, {steps.typed}")

    def _lane_condition(self, when: Condition, lanes: int) -> Val:
        parts = [c for c in (when.scalar, when.lanes) if c is not None]
        mask = literal(1, DType.bool)
        for c in parts:
            mask = self.ops.logic("and", mask, c)
        return self.ops.splat(mask, lanes)

    def gather(self, b: Buffer, offset: Val, steps: Val, when: Condition) -> Val:
        """Elements at ``offset + steps``."""
        lanes = steps.lanes
        t, align = vector_of(memory_type(b.dtype), lanes), b.dtype.itemsize
        mask = self._lane_condition(when, lanes)
        p = self._addresses(b, offset, steps)
        name = f"llvm.masked.gather.{suffix(memory_type(b.dtype), lanes)}.v{lanes}p0"
        text = self.masked(name, t, [f"<{lanes} x ptr> align {align} {p}", f"<{lanes} x i1> {mask.text}", f"{t} zeroinitializer"])
        return self._from_memory(text, b.dtype, lanes)

    def masked(self, name: str, result: str, args: list[str]) -> str:
        """Calls a masked memory intrinsic; each argument is ``type [align n] text``."""
        types = []
        for a in args:
            cut = a.index(">") + 1 if a.startswith("<") else a.index(" ")
            types.append(a[:cut])
        self.w.declare(name, f"{result} @{name}({', '.join(types)})")
        text = f"call {result} @{name}({', '.join(args)})"
        if result == "void":
            self.w.line(text)
            return ""
        return self.w.op(text)

    def store_scalar(self, b: Buffer, offset: Val, x: Val) -> None:
        """One element."""
        t, text = self._to_memory(x)
        self.w.line(f"store {t} {text}, ptr {self.pointer(b, offset)}, align {b.dtype.itemsize}")

    def store_vector(self, b: Buffer, offset: Val, x: Val, mask: Val | None) -> None:
        """Neighbouring elements."""
        t, text = self._to_memory(x)
        p, align = self.pointer(b, offset), b.dtype.itemsize
        if mask is None:
            self.w.line(f"store {t} {text}, ptr {p}, align {align}")
            return
        name = f"llvm.masked.store.{suffix(memory_type(b.dtype), x.lanes)}.p0"
        self.masked(name, "void", [f"{t} {text}", f"ptr align {align} {p}", f"<{x.lanes} x i1> {mask.text}"])

    def scatter(self, b: Buffer, offset: Val, steps: Val, x: Val, mask: Val | None) -> None:
        """Elements at ``offset + steps``, in lane order."""
        t, text = self._to_memory(x)
        name = f"llvm.masked.scatter.{suffix(memory_type(b.dtype), x.lanes)}.v{x.lanes}p0"
        m = self.ops.splat(literal(1, DType.bool), x.lanes) if mask is None else mask
        p = self._addresses(b, offset, steps)
        self.masked(name, "void", [f"{t} {text}", f"<{x.lanes} x ptr> align {b.dtype.itemsize} {p}", f"<{x.lanes} x i1> {m.text}"])
