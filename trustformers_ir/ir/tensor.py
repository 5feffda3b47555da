"""The symbolic tensor: what model code computes with while it is traced. Every method puts operations into the running trace.

Operators and method names are those of numpy and torch. Where the two disagree, the name of the argument decides: ``dim=`` (and positional)
means what torch means, ``axis=`` what numpy means: ``x.max(dim=1)`` gives values and indices, ``x.max(axis=1)`` values; ``x.std(dim=1)``
divides by n - 1, ``x.std(axis=1)`` by n; ``x.repeat(2)`` tiles, ``x.repeat(2, axis=0)`` repeats elements. Sizes in ``.shape`` are ints or
symbolic dims.
Sums of bools and narrow integers are i64; functions of real numbers turn integers into f32. :mod:`.tracing` states how dtypes meet.

A tensor has no value before the run, so Python can neither branch on it nor convert it: such uses raise ``TFC3001`` at the user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Value
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import Dim, SymExpr, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.subscript import inferred_shape, slice_axis, subscript
from trustformers_ir.ir.tracing import (
    Trace,
    as_dims,
    as_dtype,
    current_trace,
    default_dtype,
    promote,
    promote_scalar,
    static,
    trace_error,
    weak_scalar,
)
from trustformers_ir.ir.types import TensorType

# The class below has methods of the builtin names.
Flag: TypeAlias = bool
Whole: TypeAlias = int
Real: TypeAlias = float

_REDUCES = {
    None: ops.ScatterReduce.NONE,
    "add": ops.ScatterReduce.ADD,
    "sum": ops.ScatterReduce.ADD,
    "multiply": ops.ScatterReduce.MUL,
    "prod": ops.ScatterReduce.MUL,
    "amax": ops.ScatterReduce.MAX,
    "amin": ops.ScatterReduce.MIN,
}


class Ranked(NamedTuple):
    """Values together with their positions along the reduced or sorted axis."""

    values: Tensor
    indices: Tensor


def as_tensor(value: Any, dtype: DType | None = None) -> Tensor:
    """A tensor, parameter, array or number as a tensor of the running trace."""
    if isinstance(value, Tensor):
        value._checked()
        return value if dtype is None else value.to(dtype)
    trace = current_trace()
    if isinstance(value, Parameter):
        found = trace.weight(value)
        return Tensor(trace, found if dtype is None else trace.cast(found, dtype))
    if isinstance(value, SymExpr):
        return Tensor(trace, trace.dim(value, dtype or DType.i64))
    scalar = weak_scalar(value)
    if scalar is not None:
        return Tensor(trace, trace.constant(scalar, dtype or default_dtype(scalar)))
    made = trace.constant(value)
    return Tensor(trace, made if dtype is None else trace.cast(made, dtype))


def aligned(*operands: Any, floating: bool = False) -> list[Tensor]:
    """The operands as tensors of the dtype in which they meet; of a floating one if ``floating``."""
    weak = [x if isinstance(x, SymExpr) else weak_scalar(x) for x in operands]
    strong = [as_tensor(x) if w is None else None for x, w in zip(operands, weak, strict=True)]
    dtypes = [t.dtype for t in strong if t is not None]
    dtype = promote(*dtypes) if dtypes else DType.bool
    for w in weak:
        if w is not None:
            dtype = promote_scalar(dtype, w)
    if floating and not (dtype.is_float or dtype.is_complex):
        dtype = DType.f32
    return [_weak(w, dtype) if t is None else t.to(dtype) for t, w in zip(strong, weak, strict=True)]


def _weak(number: Any, dtype: DType) -> Tensor:
    trace = current_trace()
    return Tensor(trace, trace.dim(number, dtype) if isinstance(number, SymExpr) else trace.constant(number, dtype))


def is_operand(x: Any) -> bool:
    return isinstance(x, (Tensor, Parameter, SymExpr, np.ndarray)) or weak_scalar(x) is not None or hasattr(x, "__array__")


def _unary(op: Op) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return self.apply(op)

    method.__doc__ = type(op).__doc__
    return method


def _binary(op: Op, floating: bool = False) -> Callable[[Tensor, Any], Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        a, b = aligned(self, other, floating=floating)
        return a._emit(op, b)

    method.__doc__ = type(op).__doc__
    return method


def _operator(method: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    def forward(self: Tensor, other: Any) -> Tensor:
        return method(self, other) if is_operand(other) else NotImplemented

    return forward


def _reflected(method: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    def backward(self: Tensor, other: Any) -> Tensor:
        return method(as_tensor_like(other, self), self) if is_operand(other) else NotImplemented

    return backward


def as_tensor_like(value: Any, like: Tensor) -> Tensor:
    """``value`` as a tensor; a number in the dtype in which it meets ``like``."""
    scalar = value if isinstance(value, SymExpr) else weak_scalar(value)
    return as_tensor(value) if scalar is None else _weak(scalar, promote_scalar(like.dtype, scalar))


class Tensor:
    """A value of the graph that is being traced."""

    __slots__ = ("trace", "value")
    __array_ufunc__ = None  # numpy hands `array + tensor` to us
    __hash__ = object.__hash__

    def __init__(self, trace: Trace, value: Value) -> None:
        self.trace = trace
        self.value = value

    # --- what is known ----------------------------------------------------------------------------------------------------------

    @property
    def type(self) -> TensorType:
        return self.value.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.value.type.shape

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def ndim(self) -> Whole:
        return len(self.shape)

    def dim(self) -> Whole:
        return self.ndim

    def size(self, dim: Whole | None = None) -> Any:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[self._axis(dim)]

    def numel(self) -> Dim:
        return product(self.shape)

    def __len__(self) -> Whole:
        return static(self.shape[self._axis(0)], "the len() of a tensor")

    def __repr__(self) -> str:
        return f"Tensor({self.type})"

    # --- what only the run knows ------------------------------------------------------------------------------------------------

    def _unknown(self, what: str, help: str) -> NoReturn:
        message = f"{what} of a symbolic tensor ({self.type}) is data-dependent: it is not known before the run"
        raise trace_error(Code.TRACE_CONTROL_FLOW, message, help)

    def __bool__(self) -> Flag:
        self._unknown("the truth value", "choose by elements with where(cond, a, b); branch in Python only on shapes and configs")

    def __int__(self) -> Whole:
        self._unknown("the int()", "compute on with the tensor, or use a size from .shape")

    def __index__(self) -> Whole:
        self._unknown("the index value", "use index_select, gather or a slice of dims from .shape")

    def __float__(self) -> Real:
        self._unknown("the float()", "compute on with the tensor")

    def __complex__(self) -> complex:
        self._unknown("the complex()", "compute on with the tensor")

    def item(self) -> NoReturn:
        self._unknown("the item()", "compute on with the tensor")

    def tolist(self) -> NoReturn:
        self._unknown("the tolist()", "compute on with the tensor")

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        self._unknown("the numpy array", "use methods of the tensor instead of numpy functions")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._unknown("the numpy array", "use methods of the tensor instead of numpy functions")

    def __contains__(self, item: Any) -> Flag:
        self._unknown("membership ('in')", "use (x == item).any()")

    def nonzero(self, *_: Any, **__: Any) -> NoReturn:
        self._unknown("the positions of nonzero elements", "keep the size: where(x != 0, …, …)")

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        help = "make a new tensor: where(mask, value, x), x.scatter(…) or concat([…])"
        raise trace_error(Code.TRACE_UNSUPPORTED, "a symbolic tensor cannot be written to", help)

    def __iter__(self) -> Iterator[Tensor]:
        """The rows along the first axis, when their number is a constant."""
        if self.ndim == 0 or isinstance(self.shape[0], SymExpr):
            self._unknown("the iteration over the first axis", "write the loop as one operation on the whole tensor")
        return iter([self[i] for i in range(self.shape[0])])

    # --- making operations ------------------------------------------------------------------------------------------------------

    def _checked(self) -> Trace:
        if current_trace() is not self.trace:
            help = "return tensors from the traced function; do not keep them in globals or objects"
            raise trace_error(Code.TRACE_FOREIGN, f"a tensor ({self.type}) of another trace is used", help)
        return self.trace

    def _of(self, value: Value) -> Tensor:
        return self if value is self.value else Tensor(self.trace, value)

    def _emit(self, op: Op, *others: Tensor | None) -> Tensor:
        return Tensor(self._checked(), self.trace.emit(op, self.value, *(None if t is None else t.value for t in others)))

    def apply(self, op: Op) -> Tensor:
        """An op of one operand; integers and bools become f32 when it takes floats only."""
        allowed = op.operands[0].dtypes
        whole = self.dtype.is_integer or self.dtype is DType.bool
        return (self.to(DType.f32) if whole and self.dtype not in allowed and DType.f32 in allowed else self)._emit(op)

    def _axis(self, dim: Any, extra: Whole = 0) -> Whole:
        axis, rank = static(dim, "an axis"), self.ndim + extra
        if not -rank <= axis < rank:
            message = f"axis {axis} of a tensor of rank {self.ndim}, {self.type}"
            raise trace_error(Code.TRACE_SHAPE, message, f"axes are {-rank} .. {rank - 1}")
        return axis % rank

    def _axes(self, dim: Any, axis: Any = None) -> tuple[Whole, ...]:
        chosen = axis if dim is None else dim
        if chosen is None:
            return tuple(range(self.ndim))
        axes = sorted(self._axis(d) for d in (chosen if isinstance(chosen, (tuple, list)) else [chosen]))
        if len(set(axes)) != len(axes):
            raise trace_error(Code.TRACE_SHAPE, f"an axis is named twice in {chosen}")
        return tuple(axes)

    # --- dtypes -----------------------------------------------------------------------------------------------------------------

    def to(self, dtype: Any) -> Tensor:
        """The same numbers in another dtype (that of a tensor, if one is given)."""
        self._checked()
        return self._of(self.trace.cast(self.value, dtype.dtype if isinstance(dtype, Tensor) else as_dtype(dtype)))

    def astype(self, dtype: Any) -> Tensor:
        return self.to(dtype)

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other.dtype)

    def float(self) -> Tensor:
        return self.to(DType.f32)

    def double(self) -> Tensor:
        return self.to(DType.f64)

    def half(self) -> Tensor:
        return self.to(DType.f16)

    def bfloat16(self) -> Tensor:
        return self.to(DType.bf16)

    def int(self) -> Tensor:
        return self.to(DType.i32)

    def long(self) -> Tensor:
        return self.to(DType.i64)

    def bool(self) -> Tensor:
        return self.to(DType.bool)

    def contiguous(self) -> Tensor:
        return self

    def clone(self) -> Tensor:
        return self

    def detach(self) -> Tensor:
        return self

    # --- elementwise ------------------------------------------------------------------------------------------------------------

    neg, abs, sign = _unary(ops.Neg()), _unary(ops.Abs()), _unary(ops.Sign())
    floor, ceil, round, trunc = _unary(ops.Floor()), _unary(ops.Ceil()), _unary(ops.Round()), _unary(ops.Trunc())
    sqrt, rsqrt, reciprocal = _unary(ops.Sqrt()), _unary(ops.Rsqrt()), _unary(ops.Reciprocal())
    exp, exp2, expm1 = _unary(ops.Exp()), _unary(ops.Exp2()), _unary(ops.Expm1())
    log, log1p, log2, log10 = _unary(ops.Log()), _unary(ops.Log1p()), _unary(ops.Log2()), _unary(ops.Log10())
    sin, cos, tan = _unary(ops.Sin()), _unary(ops.Cos()), _unary(ops.Tan())
    asin, acos, atan = _unary(ops.Asin()), _unary(ops.Acos()), _unary(ops.Atan())
    sinh, cosh, tanh = _unary(ops.Sinh()), _unary(ops.Cosh()), _unary(ops.Tanh())
    asinh, acosh, atanh = _unary(ops.Asinh()), _unary(ops.Acosh()), _unary(ops.Atanh())
    erf, sigmoid, relu, silu = _unary(ops.Erf()), _unary(ops.Sigmoid()), _unary(ops.Relu()), _unary(ops.Silu())
    isnan, isinf, isfinite = _unary(ops.IsNan()), _unary(ops.IsInf()), _unary(ops.IsFinite())
    real, imag = property(_unary(ops.Real())), property(_unary(ops.Imag()))
    conj = _unary(ops.Conj())
    bitwise_not = _unary(ops.BitwiseNot())

    add, sub, mul = _binary(ops.Add()), _binary(ops.Sub()), _binary(ops.Mul())
    div = divide = true_divide = _binary(ops.Div(), floating=True)
    floor_divide, remainder = _binary(ops.FloorDiv()), _binary(ops.Mod())
    maximum, minimum, atan2 = _binary(ops.Maximum()), _binary(ops.Minimum()), _binary(ops.Atan2(), floating=True)
    bitwise_and, bitwise_or, bitwise_xor = _binary(ops.And()), _binary(ops.Or()), _binary(ops.Xor())
    bitwise_left_shift, bitwise_right_shift = _binary(ops.ShiftLeft()), _binary(ops.ShiftRight())
    eq, ne, lt, le, gt, ge = (_binary(c()) for c in (ops.Eq, ops.Ne, ops.Lt, ops.Le, ops.Gt, ops.Ge))

    __add__, __radd__ = _operator(add), _reflected(add)
    __sub__, __rsub__ = _operator(sub), _reflected(sub)
    __mul__, __rmul__ = _operator(mul), _reflected(mul)
    __truediv__, __rtruediv__ = _operator(div), _reflected(div)
    __floordiv__, __rfloordiv__ = _operator(floor_divide), _reflected(floor_divide)
    __mod__, __rmod__ = _operator(remainder), _reflected(remainder)
    __and__, __rand__ = _operator(bitwise_and), _reflected(bitwise_and)
    __or__, __ror__ = _operator(bitwise_or), _reflected(bitwise_or)
    __xor__, __rxor__ = _operator(bitwise_xor), _reflected(bitwise_xor)
    __lshift__, __rlshift__ = _operator(bitwise_left_shift), _reflected(bitwise_left_shift)
    __rshift__, __rrshift__ = _operator(bitwise_right_shift), _reflected(bitwise_right_shift)
    __lt__, __le__, __gt__, __ge__ = _operator(lt), _operator(le), _operator(gt), _operator(ge)
    __eq__, __ne__ = _operator(eq), _operator(ne)  # type: ignore[assignment]
    __neg__, __abs__ = neg, abs

    def __pos__(self) -> Tensor:
        return self

    def __invert__(self) -> Tensor:
        return self.logical_not() if self.dtype is DType.bool else self.bitwise_not()

    def __round__(self, digits: Any = None) -> Tensor:
        return self.round()

    def logical_not(self) -> Tensor:
        return self.bool()._emit(ops.LogicalNot())

    def logical_and(self, other: Any) -> Tensor:
        return self.bool()._emit(ops.And(), as_tensor(other, DType.bool))

    def logical_or(self, other: Any) -> Tensor:
        return self.bool()._emit(ops.Or(), as_tensor(other, DType.bool))

    def logical_xor(self, other: Any) -> Tensor:
        return self.bool()._emit(ops.Xor(), as_tensor(other, DType.bool))

    def square(self) -> Tensor:
        return self * self

    def pow(self, exponent: Any) -> Tensor:
        """``self ** exponent``; the exponents 2, 3, 1/2, -1/2 and -1 become products, roots and reciprocals."""
        special = weak_scalar(exponent)
        if special == 2 or special == 3:
            return self * self if special == 2 else self * self * self
        if special == 0.5 or special == -0.5:
            return self.sqrt() if special == 0.5 else self.rsqrt()
        if special == -1 and self.dtype.is_float:
            return self.reciprocal()
        a, b = aligned(self, exponent)
        return a._emit(ops.Pow(), b)

    __pow__, __rpow__ = _operator(pow), _reflected(pow)

    def gelu(self, approximate: str = "none") -> Tensor:
        return self.apply(ops.Gelu(ops.Approximate(approximate)))

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        """Elements limited to ``min .. max``, which are numbers or tensors; None is no bound."""
        low, high = weak_scalar(min), weak_scalar(max)
        if (low is None) != (min is None) or (high is None) != (max is None):
            bounded = self if min is None else self.maximum(min)
            return bounded if max is None else bounded.minimum(max)
        x = self
        for bound in (low, high):
            if isinstance(bound, complex):
                raise trace_error(Code.TRACE_UNSUPPORTED, "a bound of clamp is a real number")
            if bound is not None:
                whole = isinstance(bound, (bool, int)) or bound != bound or bound in (np.inf, -np.inf) or bound == np.trunc(bound)
                x = x if whole and x.dtype.is_integer else x.to(promote_scalar(x.dtype, float(bound) if not whole else bound))
        return x._emit(ops.Clamp(None if low is None else float(low), None if high is None else float(high)))  # type: ignore[arg-type]

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        return self.clamp(min, max)

    def where(self, condition: Any, other: Any) -> Tensor:
        """``self`` where the condition holds, ``other`` elsewhere."""
        a, b = aligned(self, other)
        return as_tensor(condition, DType.bool)._emit(ops.Select(), a, b)

    def masked_fill(self, mask: Any, value: Any) -> Tensor:
        """``value`` where the mask is true; a number takes the tensor's dtype."""
        filler = as_tensor(value, self.dtype)
        return as_tensor(mask, DType.bool)._emit(ops.Select(), filler, self)

    # --- movement ---------------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Tensor:
        def plain(k: Any) -> Any:
            if isinstance(k, (Tensor, Parameter)):
                return as_tensor(k).value
            return slice(plain(k.start), plain(k.stop), plain(k.step)) if isinstance(k, slice) else k

        self._checked()
        return self._of(subscript(self.trace, self.value, tuple(plain(k) for k in (key if isinstance(key, tuple) else (key,)))))

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one size may be -1."""
        wanted = inferred_shape(self._checked(), self.value, as_dims(shape))
        return self if wanted == self.shape else self._emit(ops.Reshape(wanted))

    def view(self, *shape: Any) -> Tensor:
        return self.reshape(*shape)

    def flatten(self, start_dim: Any = 0, end_dim: Any = -1) -> Tensor:
        if self.ndim == 0:
            return self.reshape(1)
        first, last = self._axis(start_dim), self._axis(end_dim)
        return self.reshape(*self.shape[:first], product(self.shape[first : last + 1]), *self.shape[last + 1 :])

    def ravel(self) -> Tensor:
        return self.flatten()

    def unflatten(self, dim: Any, sizes: Sequence[Any]) -> Tensor:
        axis = self._axis(dim)
        inner = list(as_dims((tuple(sizes),)))
        if -1 in [d for d in inner if not isinstance(d, SymExpr)]:
            at = next(i for i, d in enumerate(inner) if not isinstance(d, SymExpr) and d == -1)
            inner[at] = self.shape[axis] // product([d for i, d in enumerate(inner) if i != at])
        return self.reshape(*self.shape[:axis], *inner, *self.shape[axis + 1 :])

    def permute(self, *dims: Any) -> Tensor:
        chosen = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        perm = tuple(self._axis(d) for d in chosen)
        return self if perm == tuple(range(self.ndim)) else self._emit(ops.Transpose(perm))

    def transpose(self, *dims: Any) -> Tensor:
        """torch's ``transpose(a, b)``, which swaps two axes; numpy's ``transpose()`` and ``transpose(axes)``."""
        if not dims:
            return self.permute(*range(self.ndim)[::-1])
        if len(dims) != 2:
            return self.permute(*dims)
        a, b = self._axis(dims[0]), self._axis(dims[1])
        perm = list(range(self.ndim))
        perm[a], perm[b] = b, a
        return self.permute(*perm)

    swapaxes = transpose

    def movedim(self, source: Any, destination: Any) -> Tensor:
        perm = list(range(self.ndim))
        perm.insert(self._axis(destination), perm.pop(self._axis(source)))
        return self.permute(*perm)

    @property
    def T(self) -> Tensor:
        return self.transpose()

    @property
    def mT(self) -> Tensor:
        return self.transpose(-1, -2)

    def expand(self, *shape: Any) -> Tensor:
        """Axes of size 1 repeated up to ``shape``; -1 keeps a size."""
        dims = as_dims(shape)
        lead = len(dims) - self.ndim
        kept = [self.shape[i - lead] if not isinstance(d, SymExpr) and d == -1 and i >= lead else d for i, d in enumerate(dims)]
        return self if tuple(kept) == self.shape else self._emit(ops.Expand(tuple(kept)))

    def expand_as(self, other: Tensor) -> Tensor:
        return self.expand(*other.shape)

    def broadcast_to(self, *shape: Any) -> Tensor:
        return self.expand(*shape)

    def unsqueeze(self, dim: Any) -> Tensor:
        axis = self._axis(dim, extra=1)
        return self.reshape(*self.shape[:axis], 1, *self.shape[axis:])

    def squeeze(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        """Without axes of size 1: those named, or all whose size is surely 1."""
        axes = self._axes(dim, axis)
        facts = self._checked().module.facts
        return self.reshape(*(d for i, d in enumerate(self.shape) if i not in axes or not facts.is_equal(d, 1)))

    def split(self, split_size: Any, dim: Any = 0) -> tuple[Tensor, ...]:
        """Pieces of one size (the last may be smaller), or of the given sizes."""
        axis = self._axis(dim)
        if isinstance(split_size, (tuple, list)):
            sizes = list(as_dims((tuple(split_size),)))
        else:
            total = static(self.shape[axis], "the axis that is split into pieces of one size")
            step = static(split_size, "the size of a piece")
            if step < 1:
                raise trace_error(Code.TRACE_UNSUPPORTED, f"pieces of size {step}")
            sizes = [min(step, total - at) for at in range(0, max(total, 1), step)]
        pieces: list[Tensor] = []
        start: Dim = 0
        for size in sizes:
            pieces.append(self.narrow(axis, start, size))
            start = start + size
        if not self._checked().module.facts.is_equal(start, self.shape[axis]):
            message = f"pieces of sizes {list(sizes)} do not make up axis {axis} of {self.type}"
            raise trace_error(Code.TRACE_SHAPE, message, "their sum is the size of the axis")
        return tuple(pieces)

    def chunk(self, chunks: Any, dim: Any = 0) -> tuple[Tensor, ...]:
        """``chunks`` pieces of one size; of a constant axis the last may be smaller."""
        axis, count = self._axis(dim), static(chunks, "the number of chunks")
        size = self.shape[axis]
        if isinstance(size, SymExpr):
            return self.split([size // count] * count, axis)
        return self.split(max(1, -(-size // count)), axis)

    def narrow(self, dim: Any, start: Any, length: Any) -> Tensor:
        axis = self._axis(dim)
        return self._of(slice_axis(self._checked(), self.value, axis, start, start + length))

    def select(self, dim: Any, index: Any) -> Tensor:
        return self[(slice(None),) * self._axis(dim) + (index,)]

    def unbind(self, dim: Any = 0) -> tuple[Tensor, ...]:
        count = static(self.shape[self._axis(dim)], "the axis that is taken apart")
        return tuple(self.select(dim, i) for i in range(count))

    def tile(self, *reps: Any) -> Tensor:
        """The whole tensor, repeated along every axis."""
        counts = list(as_dims(reps))
        ones: list[Dim] = [1]
        shape = ones * (len(counts) - self.ndim) + list(self.shape)
        counts = ones * (len(shape) - len(counts)) + counts
        if all(not isinstance(c, SymExpr) and c == 1 for c in counts):
            return self.reshape(*shape)
        x = self.reshape(*(d for s in shape for d in (1, s))).expand(*(d for c, s in zip(counts, shape, strict=True) for d in (c, s)))
        return x.reshape(*(c * s for c, s in zip(counts, shape, strict=True)))

    def repeat(self, *reps: Any, axis: Any = None) -> Tensor:
        return self.tile(*reps) if axis is None else self.repeat_interleave(reps[0], axis)

    def repeat_interleave(self, repeats: Any, dim: Any = None) -> Tensor:
        """Every element along an axis ``repeats`` times in a row."""
        x, axis = (self.flatten(), 0) if dim is None else (self, self._axis(dim))
        (count,) = as_dims((repeats,))
        before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        return x.unsqueeze(axis + 1).expand(*before, size, count, *after).reshape(*before, size * count, *after)

    def flip(self, *dims: Any) -> Tensor:
        x = self
        for axis in self._axes(dims[0] if len(dims) == 1 else dims or None):
            x = x._emit(ops.Flip(axis))
        return x

    def roll(self, shifts: Any, dims: Any = None, *, axis: Any = None) -> Tensor:
        """Elements moved along, those that leave an axis entering at its other end."""
        chosen = axis if dims is None else dims
        if chosen is None:
            return self.flatten().roll(shifts, 0).reshape(*self.shape)
        x = self
        every = shifts if isinstance(shifts, (tuple, list)) else [shifts]
        for shift, d in zip(every, chosen if isinstance(chosen, (tuple, list)) else [chosen], strict=True):
            at, size, k = self._axis(d), x.shape[self._axis(d)], static(shift, "a shift")
            k = k if isinstance(size, SymExpr) else k % max(size, 1)
            if k:
                cut = size - k if k > 0 else -k
                x = x.narrow(at, cut, size - cut)._emit(ops.Concat(at), x.narrow(at, 0, cut))
        return x

    def tril(self, diagonal: Any = 0) -> Tensor:
        return self._triangle(ops.Le(), diagonal)

    def triu(self, diagonal: Any = 0) -> Tensor:
        return self._triangle(ops.Ge(), diagonal)

    def _triangle(self, compare: Op, diagonal: Any) -> Tensor:
        trace = self._checked()
        rows, columns = (Tensor(trace, trace.emit(ops.Iota(d))) for d in self.shape[-2:])
        keep = columns._emit(compare, (rows + diagonal).unsqueeze(1))
        return keep._emit(ops.Select(), self, as_tensor(0, self.dtype))

    # --- indices ----------------------------------------------------------------------------------------------------------------

    def index_select(self, dim: Any, index: Any) -> Tensor:
        return self._emit(ops.Gather(self._axis(dim)), as_tensor(index))

    def take(self, indices: Any, axis: Any = None) -> Tensor:
        return (self.flatten() if axis is None else self)._emit(ops.Gather(0 if axis is None else self._axis(axis)), as_tensor(indices))

    def gather(self, dim: Any, index: Any) -> Tensor:
        return self._emit(ops.GatherElements(self._axis(dim)), as_tensor(index))

    def take_along_dim(self, indices: Any, dim: Any) -> Tensor:
        return self.gather(dim, indices)

    def scatter(self, dim: Any, index: Any, src: Any, *, reduce: str | None = None) -> Tensor:
        """A copy with ``src`` (a tensor or a number) written where ``index`` says; the later write wins."""
        if reduce not in _REDUCES:
            raise trace_error(Code.TRACE_UNSUPPORTED, f"scatter with reduce={reduce!r}", "one of sum, prod, amax, amin, or None")
        where = as_tensor(index)
        updates = as_tensor(src, self.dtype) if weak_scalar(src) is None else as_tensor(src, self.dtype).expand(*where.shape)
        return self._emit(ops.ScatterElements(self._axis(dim), _REDUCES[reduce]), where, updates)

    def scatter_add(self, dim: Any, index: Any, src: Any) -> Tensor:
        return self.scatter(dim, index, src, reduce="add")

    def scatter_reduce(self, dim: Any, index: Any, src: Any, reduce: str) -> Tensor:
        return self.scatter(dim, index, src, reduce=reduce)

    def topk(self, k: Any, dim: Any = -1, largest: Flag = True, sorted: Flag = True) -> Ranked:
        return self._ranked(as_dims((k,))[0], self._axis(dim), largest)

    def sort(self, dim: Any = -1, descending: Flag = False) -> Ranked:
        axis = self._axis(dim)
        return self._ranked(self.shape[axis], axis, descending)

    def argsort(self, dim: Any = -1, descending: Flag = False) -> Tensor:
        return self.sort(dim, descending).indices

    def _ranked(self, k: Dim, axis: Whole, largest: Flag) -> Ranked:
        trace = self._checked()
        values, indices = trace.emit_all(ops.TopK(k, axis, largest), self.value).results
        return Ranked(Tensor(trace, values), Tensor(trace, indices))

    # --- reductions -------------------------------------------------------------------------------------------------------------

    def _summable(self, dtype: Any) -> Tensor:
        if dtype is not None:
            return self.to(dtype)
        return self.long() if self.dtype is DType.bool or (self.dtype.is_integer and self.dtype.bits < 64) else self

    def sum(self, dim: Any = None, keepdim: Flag = False, *, dtype: Any = None, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self._summable(dtype).apply(ops.ReduceSum(self._axes(dim, axis), keepdim or keepdims))

    def prod(self, dim: Any = None, keepdim: Flag = False, *, dtype: Any = None, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self._summable(dtype).apply(ops.ReduceProd(self._axes(dim, axis), keepdim or keepdims))

    def mean(self, dim: Any = None, keepdim: Flag = False, *, dtype: Any = None, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return (self if dtype is None else self.to(dtype)).apply(ops.ReduceMean(self._axes(dim, axis), keepdim or keepdims))

    def var(self, dim: Any = None, keepdim: Flag = False, *, correction: Any = None, axis: Any = None, keepdims: Flag = False) -> Tensor:
        """The variance; divides by ``n - correction``, which is 1 unless ``axis`` names the axes as in numpy."""
        by = (0 if axis is not None else 1) if correction is None else static(correction, "the correction")
        return self.apply(ops.ReduceVar(self._axes(dim, axis), keepdim or keepdims, by))

    def std(self, dim: Any = None, keepdim: Flag = False, *, correction: Any = None, axis: Any = None, keepdims: Flag = False) -> Tensor:
        """The square root of ``var``."""
        by = (0 if axis is not None else 1) if correction is None else static(correction, "the correction")
        return self.apply(ops.ReduceStd(self._axes(dim, axis), keepdim or keepdims, by))

    def amax(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self.apply(ops.ReduceMax(self._axes(dim, axis), keepdim or keepdims))

    def amin(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self.apply(ops.ReduceMin(self._axes(dim, axis), keepdim or keepdims))

    def max(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Any:
        """``max()`` and ``max(axis=)``: the largest element; ``max(dim)``: values and indices; ``max(other)``: elementwise."""
        if isinstance(dim, (Tensor, Parameter, np.ndarray)):
            return self.maximum(dim)
        if dim is None:
            return self.amax(axis=axis, keepdims=keepdim or keepdims)
        return Ranked(self.amax(dim, keepdim), self.argmax(dim, keepdim))

    def min(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Any:
        """Like ``max``."""
        if isinstance(dim, (Tensor, Parameter, np.ndarray)):
            return self.minimum(dim)
        if dim is None:
            return self.amin(axis=axis, keepdims=keepdim or keepdims)
        return Ranked(self.amin(dim, keepdim), self.argmin(dim, keepdim))

    def argmax(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self._arg(ops.ArgMax, axis if dim is None else dim, keepdim or keepdims)

    def argmin(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self._arg(ops.ArgMin, axis if dim is None else dim, keepdim or keepdims)

    def _arg(self, op: Callable[[Whole, Flag], Op], dim: Any, keepdim: Flag) -> Tensor:
        return self.flatten()._emit(op(0, False)) if dim is None else self._emit(op(self._axis(dim), keepdim))

    def any(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self.bool()._emit(ops.ReduceAny(self._axes(dim, axis), keepdim or keepdims))

    def all(self, dim: Any = None, keepdim: Flag = False, *, axis: Any = None, keepdims: Flag = False) -> Tensor:
        return self.bool()._emit(ops.ReduceAll(self._axes(dim, axis), keepdim or keepdims))

    def logsumexp(self, dim: Any, keepdim: Flag = False) -> Tensor:
        return self.apply(ops.ReduceLogSumExp(self._axes(dim), keepdim))

    def norm(self, p: Any = 2, dim: Any = None, keepdim: Flag = False) -> Tensor:
        """The Euclidean norm (p = 2) or the sum of magnitudes (p = 1)."""
        if p == 2:
            return self.square().sum(dim, keepdim).sqrt()
        if p == 1:
            return self.abs().sum(dim, keepdim)
        raise trace_error(Code.TRACE_UNSUPPORTED, f"the norm with p={p}", "p is 1 or 2")

    def cumsum(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        return self._summable(None)._emit(ops.CumSum(self._axis(axis if dim is None else dim)))

    def cumprod(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        return self._summable(None)._emit(ops.CumProd(self._axis(axis if dim is None else dim)))

    def softmax(self, dim: Any = None, *, axis: Any = None, dtype: Any = None) -> Tensor:
        chosen = -1 if dim is None and axis is None else axis if dim is None else dim
        return (self if dtype is None else self.to(dtype)).apply(ops.Softmax(self._axis(chosen)))

    def log_softmax(self, dim: Any = None, *, axis: Any = None, dtype: Any = None) -> Tensor:
        chosen = -1 if dim is None and axis is None else axis if dim is None else dim
        return (self if dtype is None else self.to(dtype)).apply(ops.LogSoftmax(self._axis(chosen)))

    # --- products ---------------------------------------------------------------------------------------------------------------

    def matmul(self, other: Any) -> Tensor:
        """``numpy.matmul``: matrix product over the last two axes, with vectors allowed."""
        a, b = aligned(self, other)
        if a.ndim == 0 or b.ndim == 0:
            raise trace_error(Code.TRACE_SHAPE, f"the matrix product of {a.type} and {b.type}", "a product with a scalar is written *")
        if a.ndim == 1 and b.ndim == 1:
            return (a * b)._emit(ops.ReduceSum((0,)))
        row, column = a.ndim == 1, b.ndim == 1
        y = (a.unsqueeze(0) if row else a)._emit(ops.MatMul(), b.unsqueeze(1) if column else b)
        if row:
            y = y.reshape(*y.shape[:-2], y.shape[-1])
        return y.reshape(*y.shape[:-1]) if column else y

    mm = bmm = matmul
    __matmul__, __rmatmul__ = _operator(matmul), _reflected(matmul)

    def dot(self, other: Any) -> Tensor:
        return self.matmul(other)
