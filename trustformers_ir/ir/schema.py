"""What an op is: one declaration gives operands, typed attributes, type inference, numbered constraints, reference semantics and costs.

Every op is a frozen dataclass derived from :class:`Op`. Its *fields are its attributes*; its class variables say the rest::

    @dataclass(frozen=True)
    class Softmax(Op):
        '''softmax(x)[i] = exp(x[i] - max x) / sum exp(x - max x) along ``axis``.'''

        axis: int = -1

        mnemonic = "softmax"
        operands = (Operand("x", FLOATS),)
        constraints = {1: "axis is one of x's"}
        fusion = FusionKind.REDUCTION

        def infer(self, ctx, x):
            self.require(1, -x.rank <= self.axis < x.rank, f"axis {self.axis} of a rank {x.rank} tensor")
            return (x,)

        def reference(self, ctx, x):
            e = np.exp(x - x.max(axis=self.axis, keepdims=True))
            return e / e.sum(axis=self.axis, keepdims=True)

The printer, the parser, the docs page, the conformance cases and the fuzz generators read these declarations.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir.dims import Dim, Facts, SymbolFact, as_symbol, evaluate, product
from trustformers_ir.ir.dtypes import ANY, DType
from trustformers_ir.ir.types import ROW_MAJOR, TensorType


class FusionKind(enum.Enum):
    """How an op may take part in a fused region (after TVM's pattern kinds)."""

    CONSTANT = "constant"  # no tensor operands: weight, constant, iota
    ELEMENTWISE = "elementwise"  # output element i needs input element i (after broadcasting)
    INJECTIVE = "injective"  # output element i needs one input element f(i): views, gathers, concat
    REDUCTION = "reduction"  # rows are folded: reductions, norms, softmax
    CONTRACTION = "contraction"  # matmul-like: a template anchor
    ATTENTION = "attention"  # a template anchor
    WRITE = "write"  # writes into memory that outlives the call; what it writes may be computed on the way
    OPAQUE = "opaque"  # its own kernel: ordered or data-dependent writes
    STRUCTURE = "structure"  # regions and terminators


@dataclass(frozen=True)
class Operand:
    """One formal operand. At most one operand of an op is variadic, and it is the last. Without ``any_layout`` it is row-major."""

    name: str
    dtypes: frozenset[DType] = ANY
    optional: bool = False
    variadic: bool = False
    any_layout: bool = False


class ConstraintError(Exception):
    """A numbered constraint of an op does not hold, cited as ``softmax.C1``."""

    def __init__(self, rule: str, statement: str, detail: str = "") -> None:
        self.rule = rule
        self.statement = statement
        self.detail = detail
        super().__init__(f"{rule} ({statement}) does not hold" + (f": {detail}" if detail else ""))


@dataclass(frozen=True)
class InferContext:
    """What type inference may ask: facts of the module's symbols and the types of its weights."""

    facts: Facts
    weights: Mapping[str, Any]


@dataclass(frozen=True)
class EvalContext:
    """What reference semantics may ask: the values of the symbols, the result types and the operand types (None for an absent one)."""

    dims: Mapping[str, int]
    results: tuple[TensorType, ...]
    operands: tuple[TensorType | None, ...] = ()

    def size(self, dim: Dim) -> int:
        return evaluate(dim, self.dims)

    def shape(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        return tuple(evaluate(d, self.dims) for d in dims)

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.shape(self.results[0].shape)


@dataclass(frozen=True)
class Sample:
    """One valid use of an op, for conformance tests, docs and fuzzing: operand types, and what their values must be like.

    ``low``/``high`` bound the random values per operand name (default: small numbers around zero); ``facts`` says what is known of the
    symbols (default: nothing but that they are at least 1).
    """

    op: Op
    types: tuple[TensorType | None, ...]
    low: Mapping[str, float] = dataclasses.field(default_factory=dict)
    high: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, SymbolFact] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """Base of all op declarations. An instance is an operation's kind together with its attributes; it is hashable."""

    mnemonic: ClassVar[str] = ""
    operands: ClassVar[tuple[Operand, ...]] = ()
    constraints: ClassVar[Mapping[int, str]] = {}
    fusion: ClassVar[FusionKind] = FusionKind.OPAQUE
    exact: ClassVar[bool] = False  # reference works on the stored dtypes: data movement, integer and boolean results
    has_body: ClassVar[bool] = False
    terminator: ClassVar[bool] = False
    commutative: ClassVar[bool] = False
    defines_dim: ClassVar[bool] = False  # gives a symbol its value at the run: needed even where nothing reads its results

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mnemonic = cls.__dict__.get("mnemonic")
        if mnemonic:
            if mnemonic in OPS:
                raise TypeError(f"two ops are called '{mnemonic}'")
            OPS[mnemonic] = cls

    def infer(self, ctx: InferContext, *types: Any, **_: Any) -> tuple[TensorType, ...]:
        """Result types from operand types (None for an absent optional operand). Raises :class:`ConstraintError`."""
        raise NotImplementedError(self.mnemonic)

    def reference(self, ctx: EvalContext, *arrays: Any, **_: Any) -> Any:
        """The meaning, in numpy. Floating arrays arrive widened to float64 (complex128) unless ``exact``; results are rounded once after."""
        raise NotImplementedError(self.mnemonic)

    def flops(self, types: Sequence[TensorType | None], results: Sequence[TensorType]) -> Dim:
        """Arithmetic operations of one execution, as a dim expression (a fused multiply-add counts two)."""
        if self.fusion in (FusionKind.CONSTANT, FusionKind.INJECTIVE, FusionKind.STRUCTURE):
            return 0
        if self.fusion is FusionKind.REDUCTION:
            return product([t.elements for t in types[:1] if t is not None])
        return results[0].elements if results else 0

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        """Valid uses of the op; every op has at least one."""
        return iter(())

    @classmethod
    def rule(cls, number: int) -> str:
        return f"{cls.mnemonic}.C{number}"

    def require(self, number: int, condition: bool, detail: str = "") -> None:
        """Raise the numbered constraint unless ``condition`` holds."""
        if not condition:
            self.fail(number, detail)

    def fail(self, number: int, detail: str = "") -> typing.NoReturn:
        raise ConstraintError(self.rule(number), self.constraints[number], detail)

    @classmethod
    @functools.cache
    def attributes(cls) -> tuple[Attribute, ...]:
        """The op's attributes in declaration order."""
        hints = typing.get_type_hints(cls)
        out = []
        for f in dataclasses.fields(cls):
            default = f.default
            if default is dataclasses.MISSING and f.default_factory is not dataclasses.MISSING:
                default = f.default_factory()
            out.append(Attribute(f.name, hints[f.name], default))
        return tuple(out)


@dataclass(frozen=True)
class Attribute:
    """A typed attribute: ``hint`` is one of bool, int, float, str, DType, Dim, an Enum, ``X | None``, ``tuple[X, ...]`` or a value class."""

    name: str
    hint: Any
    default: Any = dataclasses.MISSING

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


OPS: dict[str, type[Op]] = {}
"""Every declared op by mnemonic; complete once ``trustformers_ir.ir.ops`` is imported."""


def check_operands(op: Op, types: Sequence[TensorType | None]) -> None:
    """Arity and dtype check of an operand list against the declaration (rules ``<op>.O1`` arity, ``O2`` dtype, ``O3`` presence, ``O4`` layout)."""
    formals = op.operands
    variadic = bool(formals) and formals[-1].variadic
    if len(types) < len(formals) - variadic or (len(types) > len(formals) and not variadic):
        wanted = f"at least {len(formals) - 1}" if variadic else str(len(formals))
        raise ConstraintError(f"{op.mnemonic}.O1", f"takes {wanted} operands", f"got {len(types)}")
    for i, t in enumerate(types):
        formal = formals[min(i, len(formals) - 1)]
        if t is None:
            if not formal.optional:
                raise ConstraintError(f"{op.mnemonic}.O3", f"operand '{formal.name}' is required")
        elif t.dtype not in formal.dtypes:
            allowed = " ".join(d.name for d in DType if d in formal.dtypes)
            raise ConstraintError(f"{op.mnemonic}.O2", f"operand '{formal.name}' is one of {allowed}", f"got {t.dtype}")
        elif t.layout != ROW_MAJOR and not formal.any_layout:
            raise ConstraintError(f"{op.mnemonic}.O4", f"operand '{formal.name}' is row-major", f"got {t}")


def infer_types(op: Op, types: Sequence[TensorType | None], ctx: InferContext) -> tuple[TensorType, ...]:
    """Checked type inference: operand declarations first, then the op's own ``infer``. A dim that can be one number alone is written as that
    number: what is broadcast is decided by reading a 1."""
    check_operands(op, types)
    return tuple(settled(t, ctx.facts) for t in op.infer(ctx, *types))


def settled(type: TensorType, facts: Facts) -> TensorType:
    """The type with every dim that can be one number alone written as that number."""
    if all(isinstance(d, int) for d in type.shape):
        return type
    shape = tuple(_number(d, facts) for d in type.shape)
    return type if shape == type.shape else TensorType(shape, type.dtype, type.layout)


def _number(dim: Dim, facts: Facts) -> Dim:
    if isinstance(dim, int):
        return dim
    name = as_symbol(dim)
    if name is not None:
        fact = facts.symbols.get(name)
        return fact.low if fact is not None and fact.low == fact.high else dim
    low, high = facts.bounds(dim)
    return int(low) if low == high else dim


Reference = Callable[..., Any]


def widen(array: np.ndarray) -> np.ndarray:
    """Floating arrays to float64, complex ones to complex128; everything else as it is."""
    kind = DType.from_numpy(array.dtype)
    if kind.is_complex:
        return array.astype(np.complex128, copy=False)
    return array.astype(np.float64, copy=False) if kind.is_float else array
