"""Expressions as Python text: blocks with dimensions, operators, names; and the functions that expanded operators become."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import walk
from trustformers_ir.codegen.kernel_ir.nodes import Axis, Binary, Buffer, Cast, Const, Expr, Fma, Load, Select, Unary
from trustformers_ir.codegen.math import expand
from trustformers_ir.codegen.triton.optable import BINARY, FUNCTIONS, TYPES, UNARY, text_of
from trustformers_ir.ir.dtypes import DType, Kind

LONGEST = 72  # characters of an expression that is written where it is used
INDENT = "    "
#: how strongly Python's operators bind
LEVELS = {
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), 1),
    "|": 2,
    "^": 3,
    "&": 4,
    "<<": 5,
    ">>": 5,
    **dict.fromkeys("+-", 6),
    **dict.fromkeys(("*", "/", "//", "%"), 7),
}
SIGN, ATOM = 8, 9


@dataclass(frozen=True)
class Val:
    """A text that stands for a block with those dimensions, in rising order; none for a single value. ``level`` is how strongly its outermost
    operator binds."""

    text: str
    dims: tuple[int, ...] = ()
    level: int = ATOM

    def over(self, dims: Sequence[int], level: int = 0) -> str:
        """As an operand of something that has these dimensions and whose operator binds that strongly."""
        if not self.dims or self.dims == tuple(dims):
            return self.text if self.level >= level else f"({self.text})"
        text = self.text if self.level == ATOM else f"({self.text})"
        return f"{text}[{', '.join(':' if d in self.dims else 'None' for d in dims)}]"


def joined(*values: Val) -> tuple[int, ...]:
    """The dimensions of what is made of these values."""
    return tuple(sorted({d for v in values for d in v.dims}))


@dataclass(eq=False)
class Scope:
    """The lines inside one loop, and the values that are known there."""

    parent: Scope | None
    axis: Axis | None
    indent: str
    lines: list[str] = field(default_factory=list)
    values: dict[Expr, list[tuple[frozenset[Expr], Val]]] = field(default_factory=dict)  # by the conditions under which they were loaded
    named: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)

    def line(self, text: str) -> None:
        """One more line at the end."""
        self.lines.append(f"{self.indent}{text}")

    def chain(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


def identifier(name: str) -> str:
    """A name as Python allows it."""
    text = re.sub(r"\W", "_", name)
    return text if text[:1].isalpha() else f"v{text}"


class Writer:
    """Expressions without memory, axes or folds: what kernels and the functions that they call share."""

    def __init__(self) -> None:
        self.functions: dict[tuple[str, DType], None] = {}
        self.uses: dict[Expr, int] = {}
        self.taken: set[str] = {"tl", "triton", "libdevice", "pid", "INDEX", "status", *dir(builtins), *FUNCTIONS, *keyword.kwlist}
        self.scope = Scope(None, None, INDENT)

    # -- names ---------------------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        base = identifier(hint)
        name, n = base, 1
        while name in self.taken:
            name, n = f"{base}_{n}", n + 1
        self.taken.add(name)
        return name

    def count(self, roots: Sequence[Expr]) -> None:
        """How often each expression is read: what is read once is written where it is read."""
        seen: set[Expr] = set()
        for root in roots:
            self.uses[root] = self.uses.get(root, 0) + 1
            for node in walk(root, seen):
                for child in node.children:
                    self.uses[child] = self.uses.get(child, 0) + 1

    def name(self, value: Val, hint: str, scope: Scope) -> Val:
        """The value under a name; the same text is computed once."""
        key = (value.text, value.dims)
        for s in scope.chain():
            if key in s.named:
                return Val(s.named[key], value.dims)
        name = self.fresh(hint)
        scope.line(f"{name} = {value.text}")
        scope.named[key] = name
        return Val(name, value.dims)

    # -- operators -----------------------------------------------------------------------------------------------------

    def const(self, e: Const, alone: bool = False) -> Val:
        """A literal; ``alone``: nothing beside it tells its dtype."""
        if e.dtype is DType.bool:
            text = str(bool(e.value))
        elif e.dtype.is_float and e.value != e.value:
            text = 'float("nan")'
        elif e.dtype.is_float and abs(e.value) == float("inf"):
            text = 'float("inf")' if e.value > 0 else '-float("inf")'
        else:
            text = repr(e.value)
        if e.dtype is DType.f8e4m3:
            bits = int(np.float32(e.value).astype(e.dtype.numpy).view(np.uint8))
            return self.apply("eighth_of_bits({0})", Val(f"tl.full([], {bits}, tl.uint8)"))
        return Val(f"tl.full([], {text}, {TYPES[e.dtype]})") if alone else Val(text, level=SIGN if text.startswith("-") else ATOM)

    def apply(self, text: str, *values: Val) -> Val:
        """The text, a call or an operator between operands, with the values as operands."""
        dims = joined(*values)
        infix = re.fullmatch(r"[^\s(]+ (\S+) [^\s)]+", text)
        if infix is not None:
            level = LEVELS[infix[1]]
            needed = [level + (level == 1), level + 1]  # a < b < c means something else
        else:
            level, needed = (ATOM, [0] * len(values)) if text.endswith(")") else (SIGN, [SIGN])
        return Val(text.format(*(v.over(dims, n) for v, n in zip(values, needed, strict=False))), dims, level)

    def expanded(self, e: Unary | Binary, *values: Val) -> Val:
        """A call of the function that an operator becomes."""
        dtype = e.children[0].dtype
        arguments = ", ".join(f"{{{i}}}" for i in range(len(values)))
        if expand(e) is None:
            return self.apply(f"libdevice.{e.op}({arguments})", *values)
        self.functions[e.op, dtype] = None
        return self.apply(f"{function_name(e.op, dtype)}({arguments})", *values)

    def operation(self, e: Expr, values: Sequence[Val]) -> Val:
        """An operator on values that are there."""
        if isinstance(e, Unary):
            if e.op in ("bits", "from_bits"):
                return self.apply(f"tl.cast({{0}}, {TYPES[e.dtype]}, bitcast=True)", *values)
            text = text_of(UNARY, e.op, e.x.dtype)
            return self.expanded(e, *values) if text is None else self.apply(text, *values)
        if isinstance(e, Binary):
            text = text_of(BINARY, e.op, e.a.dtype)
            if e.op in ("shl", "shr") and isinstance(e.b, Const) and 0 <= e.b.value < e.a.dtype.bits:
                text = "{0} << {1}" if e.op == "shl" else "{0} >> {1}"
            if e.op in ("floordiv", "mod", "div") and e.pure_index and self.is_positive(e.a) and self.is_positive(e.b - 1):
                text = "{0} % {1}" if e.op == "mod" else "{0} // {1}"
            return self.expanded(e, *values) if text is None else self.apply(text, *values)
        if isinstance(e, Fma):
            return self.apply("tl.fma({0}, {1}, {2})", *values)
        if isinstance(e, Select):
            return self.apply("tl.where({0}, {1}, {2})", *values)
        assert isinstance(e, Cast)
        return self.cast(e.x.dtype, e.dtype, values[0])

    def is_positive(self, e: Expr) -> bool:
        """Whether a number is known not to be negative."""
        return isinstance(e, Const) and e.value >= 0

    def cast(self, old: DType, new: DType, x: Val) -> Val:
        """By the rules of ``Cast``."""
        if old is DType.f8e4m3:
            x = self.apply("float_of_eighth({0})", x)
            return x if new is DType.f32 else self.cast(DType.f32, new, x)
        if new is DType.bool:
            return self.apply("{0} != 0", x)
        if new is DType.f8e4m3:
            return self.apply("eighth_of_float({0})", x if old is DType.f32 else self.cast(old, DType.f32, x))
        if old.is_float and not new.is_float:
            below = 2.0 ** (new.bits - (new.kind is Kind.INT))
            x = self.cast(old, DType.f32, x) if old in (DType.f16, DType.bf16) else x
            return self.apply(f"to_integer({{0}}, {new.min}, {new.max}, {below!r}, {TYPES[new]})", x)
        if new in (DType.f16, DType.bf16) and old is not DType.f32 and (old.bits > 16 or (old.is_float and old.bits != 16)):
            if old.bits == 64 and not old.is_float:
                x = self.apply("squeeze({0})" if old.kind is Kind.INT else "squeeze_unsigned({0})", x)
            wide = x if old is DType.f64 else self.apply("tl.cast({0}, tl.float64)", x)
            return self.apply(f"narrow({{0}}, {TYPES[new]})", wide)
        if new in (DType.f16, DType.bf16) and old is not DType.f32:
            x = self.apply("tl.cast({0}, tl.float32)", x)
        return self.apply(f"tl.cast({{0}}, {TYPES[new]})", x)

    def operands(self, e: Expr, values: Sequence[Val]) -> list[Val]:
        """Constants get a dtype of their own where no other operand tells it, and in f64, where Triton takes them for f32."""
        wide = any(c.dtype is DType.f64 for c in e.children)
        rest = [c for c in e.children if not isinstance(c, Const)]
        typed = rest[1:] if isinstance(e, Select) and not isinstance(e.c, Const) else rest
        if (typed or isinstance(e, Cast)) and not wide:
            return list(values)
        return [
            self.const(c, alone=True) if isinstance(c, Const) and c.dtype is not DType.bool else v for c, v in zip(e.children, values, strict=True)
        ]


def function_name(op: str, dtype: DType) -> str:
    """The function that an operator becomes in a generated file."""
    return f"{op}_{dtype.name}"


@deep
def function_text(op: str, dtype: DType) -> tuple[str, tuple[tuple[str, DType], ...]]:
    """The function of an operator that is expanded, and the others that it calls."""
    names = ("x",) if op in optable.UNARY else ("a", "b")
    loads = [Load(Buffer(n, dtype, ()), ()) for n in names]
    root = Unary(op, loads[0]) if len(loads) == 1 else Binary(op, *loads)
    body = expand(root)
    assert body is not None
    w = _Function({e: Val(e.buffer.name) for e in loads})
    w.count([body])
    result = w.value(body)
    lines = [f"def {function_name(op, dtype)}({', '.join(names)}):", *w.scope.lines, f"{INDENT}return {result.text}"]
    return "\n".join(lines), tuple(w.functions)


class _Function(Writer):
    """The body of a function on its parameters."""

    def __init__(self, known: Mapping[Expr, Val]) -> None:
        super().__init__()
        self.known: dict[Expr, Val] = dict(known)
        self.taken |= {v.text for v in known.values()}

    def value(self, root: Expr) -> Val:
        for e in walk(root):
            if e in self.known:
                continue
            if isinstance(e, Const):
                self.known[e] = self.const(e)
                continue
            made = self.operation(e, self.operands(e, [self.known[c] for c in e.children]))
            if e is not root and (self.uses.get(e, 0) > 1 or len(made.text) > LONGEST):
                made = self.name(made, "t", self.scope)
            self.known[e] = made
        return self.known[root]
