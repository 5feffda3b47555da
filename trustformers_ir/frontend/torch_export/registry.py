"""The table of ATen ops: the name of an overload -> the function that writes it with our ops.

::

    @aten("mul.Tensor", "mul.Scalar")
    def mul(c: Call, a: Any, b: Any) -> Tensor:
        x, y = c.alike(a, b)
        return x * y

A function gets the arguments of the op as ATen declares them: tensors as symbolic tensors, sizes as dims, dtypes as ours; devices, layouts and memory
formats are left out. What torch inferred of the results (shapes, dtypes) is in the :class:`Call`, so that promotion is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, Facts, SymExpr
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.tensor import Tensor, as_tensor
from trustformers_ir.ir.tracing import Trace
from trustformers_ir.ir.types import TensorType


class Refused(Exception):
    """What keeps an op, or this form of it, from being compiled; ``help`` names the nearest form that is. ``dynamic``: a size that only the run
    knows is at fault."""

    def __init__(self, message: str, help: str = "", dynamic: bool = False) -> None:
        super().__init__(message)
        self.help = help
        self.dynamic = dynamic


@dataclass(frozen=True)
class Call:
    """One call of an ATen op: its name, and what torch inferred of its results (None for what is no tensor)."""

    trace: Trace
    name: str
    results: tuple[TensorType | None, ...]

    @property
    def type(self) -> TensorType:
        found = self.results[0]
        assert found is not None, self.name
        return found

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def facts(self) -> Facts:
        return self.trace.module.facts

    def emit(self, op: Op, *operands: Tensor | None) -> Tensor:
        return Tensor(self.trace, self.trace.emit(op, *(None if t is None else t.value for t in operands)))

    def emit_all(self, op: Op, *operands: Tensor | None) -> tuple[Tensor, ...]:
        made = self.trace.emit_all(op, *(None if t is None else t.value for t in operands))
        return tuple(Tensor(self.trace, r) for r in made.results)

    def alike(self, *operands: Any, dtype: DType | None = None) -> list[Tensor]:
        """The operands as tensors of one dtype, that of the result unless given."""
        return [as_tensor(x, dtype or self.dtype) for x in operands]

    def compared(self, *operands: Any) -> list[Tensor]:
        """The operands as tensors of the dtype in which torch makes them meet."""
        dtype = promoted(operands)
        return [as_tensor(x, dtype) for x in operands]

    def is_one(self, dim: Dim) -> bool:
        return self.facts.is_equal(dim, 1)


def promoted(operands: Sequence[Any]) -> DType:
    """torch's promotion: tensors with axes before those without, those before numbers, unless a later one is of a higher kind."""
    best: DType | None = None
    for group in _groups(operands):
        dtype = group[0]
        for other in group[1:]:
            dtype = _meet(dtype, other)
        if best is None:
            best = dtype
        elif _rank(dtype) > _rank(best):
            best = dtype if best is not DType.f64 or not dtype.is_complex else DType.c128
    assert best is not None
    return best


def _groups(operands: Sequence[Any]) -> list[list[DType]]:
    tensors = [x for x in operands if isinstance(x, Tensor)]
    numbers = [x for x in operands if not isinstance(x, Tensor)]
    found = [[t.dtype for t in tensors if t.ndim], [t.dtype for t in tensors if not t.ndim], [_number(x) for x in numbers]]
    return [g for g in found if g]


def _number(x: Any) -> DType:
    if isinstance(x, bool):
        return DType.bool
    if isinstance(x, (int, SymExpr)):
        return DType.i64
    return DType.c64 if isinstance(x, complex) else DType.f32


def _rank(dtype: DType) -> int:
    return 3 if dtype.is_complex else 2 if dtype.is_float else 1 if dtype.is_integer else 0


def _meet(a: DType, b: DType) -> DType:
    if a is b:
        return a
    low, high = sorted((a, b), key=lambda d: (_rank(d), d.bits))
    if _rank(low) < _rank(high):
        return DType.c128 if low is DType.f64 else high
    if high.is_float and low.bits == high.bits:
        return DType.f32  # f16 and bf16
    if high.is_integer and low.is_signed != high.is_signed and not high.is_signed:
        return {8: DType.i16, 16: DType.i32}.get(high.bits, DType.i64)
    if high.is_integer and low.is_signed != high.is_signed and low.bits == high.bits:
        return {8: DType.i16, 16: DType.i32}.get(high.bits, DType.i64)
    return high


Build = Callable[..., Any]
B = TypeVar("B", bound=Build)
ATEN: dict[str, Build] = {}
"""The function of each overload, by its name without ``aten.``; names of other namespaces are whole (``prims.convert_element_type.default``)."""


def aten(*names: str) -> Callable[[B], B]:
    """Puts a function into the table under the names of its overloads; a name without a dot is the overload ``default``."""

    def put(build: B) -> B:
        for name in names:
            whole = name if "." in name else f"{name}.default"
            if whole in ATEN:
                raise TypeError(f"'{whole}' is in the table twice")
            ATEN[whole] = build
        return build

    return put


REFUSED: dict[str, tuple[str, str, bool]] = {}
"""Ops that cannot be compiled whatever their arguments: why not, what to write instead, and whether a size of the data is the reason."""


def refuse(why: str, help: str, *names: str, dynamic: bool = False) -> None:
    for name in names:
        REFUSED[name if "." in name else f"{name}.default"] = (why, help, dynamic)


def constant(c: Call, value: Any, dtype: DType) -> Tensor:
    """A number as a scalar tensor."""
    return as_tensor(value, dtype)


def filled(c: Call, value: Any, shape: Sequence[Dim], dtype: DType) -> Tensor:
    """A tensor of one value."""
    x = as_tensor(value, dtype)
    return x if not shape else c.emit(ops.Expand(tuple(shape)), x)
