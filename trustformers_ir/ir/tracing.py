"""The trace that is going on: where operations are put, what line they come from, and how Python values become tensors.

Dtype promotion
---------------
Python and numpy scalars and dims are *weak*: they take the dtype of the tensor they meet, except that a float turns an integer tensor
into f32, an int turns a bool tensor into i64, and a complex number turns a real tensor into a complex one. Two tensors (or arrays) meet
in the smallest dtype that holds both kinds: the wider of two integers or two floats, f16 and bf16 in f32, signed and unsigned in the next
wider signed dtype, and a float wins over any integer, whatever their widths (as in torch). The conversions are ``cast`` operations in the
graph.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Union

import numpy as np

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Location, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import Dim, SymExpr, UndecidedDim
from trustformers_ir.ir.dtypes import DType, Kind
from trustformers_ir.ir.ops.data import Constant, DimSize, Literal, WeightOp
from trustformers_ir.ir.ops.elementwise import Cast
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.schema import ConstraintError, Op
from trustformers_ir.ir.types import TensorType

INLINE = 64  # arrays of at most this many elements are written into the graph; larger ones become weights

Scalar = Union[bool, int, float, complex]  # noqa: UP007  (used at run time on Python 3.10)

_PACKAGE = Path(__file__).resolve().parents[1]
_DOORS = ("api.py", "reader.py", "compiler.py", "exporter.py")
_SKIPPED = (*(str(_PACKAGE / room) + os.sep for room in ("ir", "frontend")), *(str(_PACKAGE / name) for name in _DOORS))


class Trace:
    """One running trace: operations go to the end of ``block``, each with the line of user code that asked for it."""

    def __init__(self, module: Module, block: Block, weights: Mapping[str, Weight] | None = None) -> None:
        self.module = module
        self.builder = Builder(module, block)
        self.available: Mapping[str, Weight] = weights or {}
        self.site: Site | None = None  # of all that is put in next, where it is no frame of Python that asks for it
        self._weights: dict[str, Value] = {}

    def emit(self, op: Op, *operands: Value | None) -> Value:
        """The result of an operation with one result."""
        return self.emit_all(op, *operands).result

    def emit_all(self, op: Op, *operands: Value | None) -> Operation:
        """The operation. A constraint that does not hold is an error at the user's line."""
        site = user_site()
        try:
            return self.builder.create(op, *operands, loc=site.location)
        except ConstraintError as error:
            types = ", ".join("absent" if v is None else _described(v) for v in operands) or "no operands"
            raise site.error(Code.TRACE_SHAPE, f"{error}\nthe operands are {types}", op=op.mnemonic) from None

    def cast(self, value: Value, dtype: DType) -> Value:
        return value if value.type.dtype is dtype else self.emit(Cast(dtype), value)

    def constant(self, value: Any, dtype: DType | None = None) -> Value:
        """A Python or numpy value as a tensor: written into the graph when it is small, a weight named by its digest otherwise."""
        try:
            array = np.asarray(value, None if dtype is None else dtype.numpy)
            found = DType.from_numpy(array.dtype)
        except OverflowError:
            raise trace_error(Code.TRACE_UNSUPPORTED, f"{value} is not a number of dtype {dtype}", "cast the tensor first") from None
        except (KeyError, TypeError, ValueError):
            message = f"{_short(value)} is neither a tensor nor an array of numbers"
            raise trace_error(Code.TRACE_UNSUPPORTED, message, "give a tensor, a number or a numpy array") from None
        if array.size <= INLINE:
            return self.emit(Constant(Literal.of(array, found)))
        array = np.ascontiguousarray(array, found.numpy)
        weight = Weight("", TensorType(array.shape, found), array)
        weight.name = f"constant_{weight.digest.partition(':')[2][:12]}"
        return self.stored(weight)

    def weight(self, parameter: Parameter) -> Value:
        """The weight that ``parameter`` stands for, converted to the parameter's dtype."""
        weight = self.available.get(parameter.name)
        if weight is None:
            message = f"the model asks for the weight '{parameter.name}', which was not given"
            raise trace_error(Code.WEIGHT_MISSING, message, "give it: trace(…, weights={name: array})")
        if weight.type.shape != parameter.shape:
            message = f"the weight '{parameter.name}' has shape {list(weight.type.shape)}, the model asks for {list(parameter.shape)}"
            raise trace_error(Code.WEIGHT_SHAPE, message)
        return self.cast(self.stored(weight), parameter.dtype)

    def stored(self, weight: Weight) -> Value:
        """One operation per weight, whatever the number of its uses."""
        if weight.name not in self._weights:
            if weight.name not in self.module.weights:
                self.module.add_weight(weight)
            self._weights[weight.name] = self.emit(WeightOp(weight.name))
        return self._weights[weight.name]

    def dim(self, dim: Dim, dtype: DType) -> Value:
        """The value of a dim as a scalar tensor."""
        if isinstance(dim, int):
            return self.constant(dim, dtype)
        if dtype.is_integer:
            return self.emit(DimSize(dim, dtype))
        return self.cast(self.emit(DimSize(dim, DType.i64)), dtype)


_CURRENT: ContextVar[Trace | None] = ContextVar("trustformers_ir_trace", default=None)


def current_trace() -> Trace:
    """The running trace; ``TRACE_FOREIGN`` when there is none."""
    trace = _CURRENT.get()
    if trace is None:
        message = "a tensor is made outside of a trace"
        raise trace_error(Code.TRACE_FOREIGN, message, "call this inside of the function given to trace(); outside, use numpy")
    return trace


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Makes ``trace`` the running one."""
    token = _CURRENT.set(trace)
    try:
        yield trace
    finally:
        _CURRENT.reset(token)


# --- the user's line ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A line of user code: its location, and the text of the line (the location's path may be relative to another folder)."""

    location: Location | None
    source: str = ""

    def error(self, code: Code, message: str, help: str = "", op: str | None = None) -> CompilerError:
        where = Where(op=op) if self.location is None else Where(self.location.file, self.location.line, op=op)
        return CompilerError.of(code, message, where, help, self.source)


def user_site() -> Site:
    """The innermost frame outside of the tracing machinery, or what the running trace was told."""
    trace = _CURRENT.get()
    if trace is not None and trace.site is not None:
        return trace.site
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not is_internal(code.co_filename):
            return site_of(code, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Site(None)


def site_of(code: CodeType, line: int) -> Site:
    """The site of a line of a code object."""
    function = getattr(code, "co_qualname", code.co_name).replace("<locals>.", "")
    location = Location(shown_path(code.co_filename), line, "" if function == "<module>" else function)
    return Site(location, linecache.getline(code.co_filename, line).strip())


@functools.lru_cache(maxsize=4096)
def is_internal(file: str) -> bool:
    """Whether a source file belongs to the tracing machinery."""
    return os.path.abspath(file).startswith(_SKIPPED)


def shown_path(file: str) -> str:
    """How a source file is named in a graph: never by where this machine keeps it.

    Files of this package as ``trustformers_ir/…``, others relative to the working directory, or by their base name when outside of it.
    """
    if file.startswith("<"):
        return file
    path = Path(os.path.abspath(file))
    for base in (_PACKAGE.parent if path.is_relative_to(_PACKAGE) else None, _working_directory()):
        if base is not None and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def trace_error(code: Code, message: str, help: str = "") -> CompilerError:
    """An error at the user's line."""
    return user_site().error(code, message, help)


# --- Python values -----------------------------------------------------------------------------------------------------------------


def as_dtype(dtype: Any) -> DType:
    """The dtype that a user names: one of ours, of numpy's, of torch's, a Python number type, or its name."""
    if isinstance(dtype, DType):
        return dtype
    plain: dict[Any, DType] = {bool: DType.bool, int: DType.i64, float: DType.f32, complex: DType.c64}
    if isinstance(dtype, type) and dtype in plain:
        return plain[dtype]
    try:
        if isinstance(dtype, str):
            return DType.parse(dtype.removeprefix("torch."))
        if str(dtype).startswith("torch."):
            return DType.parse(str(dtype).removeprefix("torch."))
        return DType.from_numpy(dtype)
    except (KeyError, TypeError):
        known = ", ".join(d.name for d in DType)
        raise trace_error(Code.TRACE_UNSUPPORTED, f"{_short(dtype)} is not a dtype", f"the dtypes are {known}") from None


def weak_scalar(value: Any) -> Scalar | None:
    """The Python number that ``value`` is, when it is a Python or numpy scalar."""
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind in "biufc" else float(value) if value.dtype.name == "bfloat16" else None
    return value if isinstance(value, (bool, int, float, complex)) else None


def promote(first: DType, *others: DType) -> DType:
    """The dtype in which tensors of these dtypes meet."""
    out = first
    for other in others:
        out = _promote(out, other)
    return out


def _promote(a: DType, b: DType) -> DType:
    if a is b:
        return a
    low, high = sorted((a, b), key=lambda d: (_RANK[d.kind], d.bits))
    if low.kind is Kind.BOOL:
        return high
    if high.is_complex:
        return DType.c128 if DType.f64 in (low, high) or DType.c128 in (low, high) else DType.c64
    if high.is_float:
        return DType.f32 if low.is_float and low.bits == high.bits else high
    if low.is_signed == high.is_signed:
        return high
    signed, unsigned = (low, high) if low.is_signed else (high, low)
    if signed.bits > unsigned.bits:
        return signed
    if unsigned.bits == 64:
        raise trace_error(Code.TRACE_UNSUPPORTED, f"no integer dtype holds both {a} and {b}", "cast one of them: x.to(i64)")
    return DType.parse(f"i{2 * unsigned.bits}")


_RANK = {Kind.BOOL: 0, Kind.UINT: 1, Kind.INT: 1, Kind.FLOAT: 2, Kind.COMPLEX: 3}


def promote_scalar(dtype: DType, value: Scalar | Dim) -> DType:
    """The dtype in which a tensor of ``dtype`` meets a weak number."""
    if isinstance(value, bool):
        return dtype
    if isinstance(value, (int, SymExpr)):
        return DType.i64 if dtype is DType.bool else dtype
    if isinstance(value, float):
        return dtype if dtype.is_float or dtype.is_complex else DType.f32
    return dtype if dtype.is_complex else DType.c128 if dtype is DType.f64 else DType.c64


def default_dtype(value: Scalar | Dim) -> DType:
    """The dtype of a number that meets no tensor."""
    return promote_scalar(DType.bool, value)


def static(dim: Any, what: str) -> int:
    """A dim that has to be a constant here."""
    if isinstance(dim, SymExpr):
        message = f"{what} has to be a constant, not the symbolic dim '{dim}'"
        raise trace_error(Code.TRACE_UNSUPPORTED, message, "give that axis a fixed size")
    if isinstance(dim, (bool, np.bool_)) or not isinstance(dim, (int, np.integer)):
        raise trace_error(Code.TRACE_UNSUPPORTED, f"{what} is a whole number, not {_short(dim)}")
    return int(dim)


def as_dims(shape: Sequence[Any]) -> tuple[Dim, ...]:
    """Dims from what users write as a shape: ``(2, 3)`` or ``((2, 3),)``; -1 may occur."""
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = shape[0]
    out: list[Dim] = []
    for d in shape:
        if isinstance(d, SymExpr):
            out.append(d)
        elif isinstance(d, (int, np.integer)) and not isinstance(d, bool):
            out.append(int(d))
        else:
            raise trace_error(Code.TRACE_UNSUPPORTED, f"a shape is made of sizes, not of {_short(d)}", "sizes are ints or dims from .shape")
    return tuple(out)


def decided(site: Site, error: UndecidedDim) -> CompilerError:
    """The error of a question about dims without an answer."""
    return site.error(Code.UNDECIDED_DIM, str(error), "declare what is known: trace(…, facts={'name': (low, high)})")


def _described(value: Value) -> str:
    return f"{value.name}: {value.type}" if value.name else str(value.type)


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"
