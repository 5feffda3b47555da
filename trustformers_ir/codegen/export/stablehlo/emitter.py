"""From operations to those of StableHLO: values, constants, and sizes that are known only when the model runs.

What each op becomes is a rule in ``rules_*.py``. A rule gets an :class:`Emitter` and returns its result, or several; it makes operations by calling
the emitter with the name of one, or its methods for those that have attributes::

    @rule(ops.Silu)
    def _silu(e: Emitter, o: Operation) -> X:
        x = e.wide(o, 0)
        return e.narrow(e("multiply", x, e("logistic", x)), o)

Operations of the dialect take operands of one shape: :meth:`Emitter.spread` repeats what is to be. Where a shape holds a size that is not known, the
dynamic form of an operation is taken, whose sizes are operands (``dynamic_reshape``, ``dynamic_broadcast_in_dim``, ``real_dynamic_slice``, …).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.emitting import GraphEmitter, Stored, Unsupported
from trustformers_ir.codegen.export.stablehlo.text import WORDS, identifier, tensor
from trustformers_ir.codegen.op_rules import OpRules
from trustformers_ir.ir.core import Function, Module, Operation, Value
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.types import ROW_MAJOR

Rule = Callable[["Emitter", Operation], "X | Sequence[X]"]
RULES: OpRules[Rule] = OpRules()
rule = RULES.register


@dataclass(frozen=True)
class X:
    """A value of the file."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def type(self) -> str:
        return tensor(self.dtype, self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True)
class Region:
    """What a loop or a sort repeats. The last line hands out ``results``."""

    arguments: tuple[X, ...]
    lines: tuple[Line, ...]
    results: tuple[X, ...]


@dataclass(frozen=True)
class Line:
    """An operation as it will be written: its results and operands by their names, ``head``, regions, ``tail``. ``operation``: the one of the graph
    that it is a part of, as :func:`operation_id` names it; ``file`` and ``line``: where in the source that is."""

    results: tuple[str, ...]
    operands: tuple[str, ...]
    head: str
    tail: str
    regions: tuple[Region, ...] = ()
    operation: str = ""
    file: str = ""
    line: int = 0


class Emitter(GraphEmitter[X]):
    """The operations of a function, in order. Sizes are ``i64[1]``."""

    system, page, rules = "as StableHLO", "docs/stablehlo.md", RULES

    def __init__(self, module: Module, function: Function) -> None:
        super().__init__(module, function)
        self.lines: list[Line] = []
        self.stored: dict[str, Stored] = {}
        self._lines = self.lines  # of the function, or of the region that is being written
        self._constants: dict[tuple[object, ...], X] = {}
        self._weights: dict[tuple[str, DType], X] = {}
        self._shapes: dict[tuple[Dim, ...], X] = {}
        self.inputs = [X(self.fresh(v.name or f"arg{i}"), v.type.dtype, v.type.shape) for i, v in enumerate(function.args)]
        self._values |= dict(zip(function.args, self.inputs, strict=True))

    # -- the function ------------------------------------------------------------------------------------------------------

    def run(self) -> list[X]:
        """Writes every operation; the outputs. ``CompilerError`` with all that cannot be written."""
        self.write()
        return [self.value(v) for v in self.function.outputs]

    def check(self, o: Operation) -> None:
        if any(t is not None and t.layout != ROW_MAJOR for t in (*o.operand_types, *(r.type for r in o.results))):
            raise Unsupported("a matrix is packed")

    def stand_ins(self, o: Operation) -> list[X]:
        self._lines = self.lines  # no region is being written any more
        return [X(self.fresh(o.op.mnemonic), r.type.dtype, r.type.shape) for r in o.results]

    def name(self, x: X) -> str:
        return x.name

    def stem(self, like: str) -> str:
        return identifier(like)

    # -- lines -------------------------------------------------------------------------------------------------------------

    def emit(
        self, op: str, given: Sequence[X], made: Sequence[tuple[DType, Sequence[Dim]]], more: str = "", regions: Sequence[Region] = (),
        short: bool = False,
    ) -> list[X]:  # fmt: skip
        """An operation: its name (quoted in the generic form), operands, what stands behind those, types. ``short``: one type may stand for all."""
        o = self._now
        name = self.fresh(o.op.mnemonic if o is not None else op.rpartition(".")[2])
        names = [name] if len(made) == 1 else [f"{name}#{n}" for n in range(len(made))]
        results = [X(n, dtype, tuple(shape)) for n, (dtype, shape) in zip(names, made, strict=True)]
        listed = ", ".join(map(str, given))
        if op == "stablehlo.reduce":  # written with a word between its operands
            listed = f"({given[0]} init: {given[1]})"
        elif op == "stablehlo.convolution":
            listed = f"({listed})"
        types = ", ".join(r.type for r in results)
        tail = f" : ({', '.join(x.type for x in given)}) -> {types if len(results) == 1 else f'({types})'}"
        if not given or (short and len({*(x.type for x in given), types}) == 1):
            tail = f" : {types}"
        head = f"{op}({listed}){more}" if op.startswith('"') else f"{op}{'' if listed.startswith('(') else ' '}{listed}{more}"
        place = (o.loc.file, o.loc.line) if o is not None and o.loc is not None else ("", 0)
        self._lines.append(Line(tuple(names), tuple(x.name for x in given), head, tail, tuple(regions), self._id, *place))
        return results

    def op(self, op: str, given: Sequence[X], dtype: DType, shape: Sequence[Dim], more: str = "") -> X:
        """An operation of the dialect with one result."""
        return self.emit(f"stablehlo.{op}", given, [(dtype, shape)], more)[0]

    def __call__(self, op: str, *given: X | float) -> X:
        """An operation by element: operands of one shape and dtype, numbers among them, give such a result."""
        like = next(x for x in given if isinstance(x, X))
        xs = [x if isinstance(x, X) else self.full(x, like.dtype, like.shape) for x in given]
        return self.emit(f"stablehlo.{op}", xs, [(like.dtype, like.shape)], short=True)[0]

    def region(self, types: Sequence[tuple[DType, Sequence[Dim]]], body: Callable[..., Sequence[X]]) -> Region:
        """What ``body`` makes of arguments of these types."""
        arguments = [X(self.fresh("arg"), dtype, tuple(shape)) for dtype, shape in types]
        before, self._lines = self._lines, []
        results = body(*arguments)
        made, self._lines = self._lines, before
        return Region(tuple(arguments), tuple(made), tuple(results))

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        """Before the outermost region that is being written: what is made there may be used everywhere from now on."""
        before, self._lines = self._lines, self.lines
        yield
        self._lines = before

    # -- constants ---------------------------------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: DType) -> X:
        """A constant, each once."""
        array = np.asarray(value, dtype.numpy)
        return self._stored((dtype, array.shape, array.tobytes()), dtype, array.shape, lambda: array)

    def full(self, value: float, dtype: DType, shape: Sequence[Dim]) -> X:
        """A number for every element."""
        sizes = [d for d in shape if isinstance(d, int)]
        if len(sizes) < len(shape):
            return self.spread(self.constant(value, dtype), shape)
        one = np.asarray(value, dtype.numpy)
        return self._stored((dtype, tuple(sizes), one.tobytes(), "full"), dtype, tuple(sizes), lambda: np.broadcast_to(one, sizes))

    def _stored(self, key: tuple[object, ...], dtype: DType, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> X:
        if key not in self._constants:
            x = self._constants[key] = X(self.fresh("constant"), dtype, shape)
            self.stored[x.name] = Stored(x.name, dtype, shape, make)
        return self._constants[key]

    def weight(self, name: str, dtype: DType | None = None) -> X:
        """The constant of a weight. ``dtype``: rounded to it on its way to the file."""
        w = self.module.weights[name]
        made = w.type.dtype if dtype is None else dtype
        if (name, made) not in self._weights:
            if w.type.layout != ROW_MAJOR:
                raise Unsupported("its weight is packed")
            shape = tuple(int(d) for d in w.type.shape)  # type: ignore[arg-type]
            x = self._weights[name, made] = X(self.fresh(name), made, shape)
            self.stored[x.name] = Stored(x.name, made, shape, lambda: round_to(w.data, made), name)
        return self._weights[name, made]

    # -- sizes -------------------------------------------------------------------------------------------------------------

    def dim(self, d: Dim) -> X:
        with self._outside():
            return super().dim(d)

    def size(self, v: Value, axis: int) -> X:
        found = self.op("get_dimension_size", [self._values[v]], DType.i32, (), f", dim = {axis}")
        return self.op("reshape", [self.cast(found, DType.i64)], DType.i64, (1,))

    def number(self, value: int) -> X:
        return self.constant([value], DType.i64)

    def arithmetic(self, kind: str, a: X, b: X) -> X:
        plain = {"add": "add", "sub": "subtract", "mul": "multiply", "min": "minimum", "max": "maximum"}
        if kind in plain:
            return self(plain[kind], a, b)
        rest = self("remainder", a, b)  # of the sign of a
        other = self("and", self.compare("NE", rest, 0), self.compare("LT", self("multiply", rest, b), 0))  # XLA refines no shape through xor
        rest = self.select(other, self("add", rest, b), rest)
        return rest if kind == "mod" else self("divide", self("subtract", a, rest), b)

    def scalar(self, d: Dim, dtype: DType = DType.i64) -> X:
        """The value of a dim as a number."""
        if isinstance(d, int):
            return self.constant(d, dtype)
        found = self.dim(d)
        with self._outside():
            return self.cast(self.op("reshape", [found], DType.i64, ()), dtype)

    def sizes(self, dims: Sequence[Dim]) -> X:
        """``i64[rank]``: a shape."""
        if all(isinstance(d, int) for d in dims):
            return self.constant(np.array(dims, np.int64), DType.i64)
        key = tuple(dims)
        if key not in self._shapes:
            parts = [self.dim(d) for d in dims]
            with self._outside():
                self._shapes[key] = parts[0] if len(parts) == 1 else self.op("concatenate", parts, DType.i64, (len(parts),), ", dim = 0")
        return self._shapes[key]

    # -- by element --------------------------------------------------------------------------------------------------------

    def cast(self, x: X, dtype: DType) -> X:
        """The same numbers in another dtype."""
        return x if x.dtype is dtype else self.op("convert", [x], dtype, x.shape)

    def wide(self, o: Operation, number: int) -> X:
        """An operand in a dtype whose sums and roundings in between keep the digits of the result."""
        return self.widened(self.operand(o, number))

    def widened(self, x: X) -> X:
        return self.cast(x, DType.f32) if x.dtype in HALVES else x

    def narrow(self, x: X, o: Operation) -> X:
        """A result in the dtype that it should have."""
        return self.cast(x, o.result.type.dtype)

    def compare(self, how: str, a: X, b: X | float) -> X:
        """``EQ``, ``NE``, ``LT``, ``LE``, ``GT`` or ``GE``."""
        b = b if isinstance(b, X) else self.full(b, a.dtype, a.shape)
        return self.emit(f"stablehlo.compare {how},", [a, b], [(DType.bool, a.shape)])[0]

    def select(self, where: X, a: X | float, b: X | float) -> X:
        """``a`` where it is true, ``b`` elsewhere."""
        like = next(x for x in (a, b) if isinstance(x, X))
        a, b = (x if isinstance(x, X) else self.full(x, like.dtype, like.shape) for x in (a, b))
        return self.op("select", [where, a, b], like.dtype, like.shape)

    # -- shapes ------------------------------------------------------------------------------------------------------------

    def same(self, a: Dim, b: Dim) -> bool:
        return a == b or self.facts.is_equal(a, b)

    def spread(self, x: X, shape: Sequence[Dim], dims: Sequence[int] | None = None) -> X:
        """``x`` repeated to a shape. ``dims``: which of its axes those of x are; the last ones if not given."""
        shape = tuple(shape)
        axes = list(range(len(shape) - x.rank, len(shape))) if dims is None else list(dims)
        if axes == list(range(len(shape))) and all(self.same(a, b) for a, b in zip(x.shape, shape, strict=True)):
            return x
        listed = f", dims = [{', '.join(map(str, axes))}]"
        if all(isinstance(d, int) for d in (*shape, *x.shape)):
            return self.op("broadcast_in_dim", [x], x.dtype, shape, listed)
        return self.op("dynamic_broadcast_in_dim", [x, self.sizes(shape)], x.dtype, shape, listed)

    def reshape(self, x: X, shape: Sequence[Dim]) -> X:
        """The same elements under another shape."""
        shape = tuple(shape)
        if len(shape) == x.rank and all(self.same(a, b) for a, b in zip(x.shape, shape, strict=True)):
            return x
        if all(isinstance(d, int) for d in (*shape, *x.shape)):
            return self.op("reshape", [x], x.dtype, shape)
        return self.op("dynamic_reshape", [x, self.sizes(shape)], x.dtype, shape)

    def transpose(self, x: X, perm: Sequence[int]) -> X:
        """Axes in another order."""
        if list(perm) == list(range(x.rank)):
            return x
        return self.op("transpose", [x], x.dtype, [x.shape[p] for p in perm], f", dims = [{', '.join(map(str, perm))}]")

    def concat(self, xs: Sequence[X], axis: int) -> X:
        """One after another."""
        if len(xs) == 1:
            return xs[0]
        axis %= xs[0].rank
        total: Dim = 0
        for x in xs:
            total = total + x.shape[axis]
        shape = (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :])
        return self.op("concatenate", xs, xs[0].dtype, shape, f", dim = {axis}")

    def part(self, x: X, axis: int, start: Dim, stop: Dim, step: int = 1) -> X:
        """What is between two positions of an axis."""
        axis %= x.rank
        shape = (*x.shape[:axis], (stop - start + (step - 1)) // step, *x.shape[axis + 1 :])
        starts = [start if a == axis else 0 for a in range(x.rank)]
        stops = [stop if a == axis else d for a, d in enumerate(x.shape)]
        steps = [step if a == axis else 1 for a in range(x.rank)]
        if all(isinstance(d, int) for d in (*starts, *stops, *x.shape)):
            ranges = ", ".join(f"{a}:{b}" + (f":{c}" if c > 1 else "") for a, b, c in zip(starts, stops, steps, strict=True))
            return self.op("slice", [x], x.dtype, shape, f" [{ranges}]")
        return self.op("real_dynamic_slice", [x, self.sizes(starts), self.sizes(stops), self.sizes(steps)], x.dtype, shape)

    def pad(self, x: X, value: X, low: Sequence[Dim], high: Sequence[Dim]) -> X:
        """With a number before and behind each axis."""
        shape = tuple(a + d + b for a, d, b in zip(low, x.shape, high, strict=True))
        none = [0] * x.rank
        if all(isinstance(d, int) for d in (*shape, *low, *high, *x.shape)):
            return self.op("pad", [x, value], x.dtype, shape, f", low = {list(low)}, high = {list(high)}, interior = {none}")
        return self.op("dynamic_pad", [x, value, self.sizes(low), self.sizes(high), self.sizes(none)], x.dtype, shape)

    def iota(self, shape: Sequence[Dim], axis: int, dtype: DType = DType.i64) -> X:
        """Positions along an axis."""
        made = dtype if dtype in (DType.i32, DType.i64) else DType.i64
        if all(isinstance(d, int) for d in shape):
            return self.cast(self.op("iota dim =", [], made, shape, f"{axis}"), dtype)
        return self.cast(self.op("dynamic_iota", [self.sizes(shape)], made, shape, f", dim = {axis}"), dtype)

    # -- folds and products ------------------------------------------------------------------------------------------------

    def reduce(self, kind: str, x: X, axes: Sequence[int], keep: bool = False) -> X:
        """``add``, ``multiply``, ``maximum``, ``minimum``, ``and`` or ``or`` along axes."""
        axes = [a % x.rank for a in axes]
        if not axes:
            return x
        shape = [d for a, d in enumerate(x.shape) if a not in axes]
        first = self.constant(neutral(kind, x.dtype), x.dtype)
        (made,) = self.emit("stablehlo.reduce", [x, first], [(x.dtype, shape)], f" applies stablehlo.{kind} across dimensions = {axes}")
        return self.reshape(made, [1 if a in axes else d for a, d in enumerate(x.shape)]) if keep else made

    def dot(self, a: X, b: X, batch: Sequence[tuple[int, int]], terms: Sequence[tuple[int, int]], dtype: DType | None = None) -> X:
        """A product of tensors: pairs of axes that run together, which come first, then pairs that are summed over. Sums of 16-bit numbers are of
        f32, and are returned so unless a dtype is given."""
        made = DType.f32 if a.dtype in HALVES else a.dtype
        taken = [{p[n] for p in (*batch, *terms)} for n in (0, 1)]
        free = [[d for axis, d in enumerate(x.shape) if axis not in taken[n]] for n, x in enumerate((a, b))]
        shape = [*(a.shape[p] for p, _ in batch), *free[0], *free[1]]
        more = "".join(
            f", {what} = {[p for p, _ in pairs]} x {[q for _, q in pairs]}"
            for what, pairs in (("batching_dims", batch), ("contracting_dims", terms))
            if pairs or what == "contracting_dims"
        )
        more += ", precision = [HIGHEST, HIGHEST]" if a.dtype is DType.f32 else ""
        y = self.op("dot_general", [a, b], made, shape, more)
        return y if dtype is None else self.cast(y, dtype)

    # -- computed positions ------------------------------------------------------------------------------------------------

    def gather(self, x: X, indices: X, axes: Sequence[int], at: int | None = None) -> X:
        """``x`` at positions, ``i64[…, m]``, along m axes, which disappear; what the positions make stands first, or behind ``at`` of the others."""
        kept = [a for a in range(x.rank) if a not in axes]
        before = 0 if at is None else at
        if any(x.shape[a] == 0 for a in axes):  # nothing is read
            return self.full(0, x.dtype, [*(x.shape[a] for a in kept[:before]), *indices.shape[:-1], *(x.shape[a] for a in kept[before:])])
        spare = [int(a in axes and self.facts.bounds(d)[0] < 1) for a, d in enumerate(x.shape)]
        if any(spare):  # the dialect reads from no axis that is empty
            x = self.pad(x, self.constant(0, x.dtype), [0] * x.rank, spare)
        lead = indices.shape[:-1]
        shape = [*(x.shape[a] for a in kept[:before]), *lead, *(x.shape[a] for a in kept[before:])]
        offset = [*range(before), *range(before + len(lead), len(shape))]
        sizes = [1 if a in axes else d for a, d in enumerate(x.shape)]
        numbers = (
            f"#stablehlo.gather<offset_dims = {offset}, collapsed_slice_dims = {sorted(axes)}, start_index_map = {list(axes)}, "
            f"index_vector_dim = {indices.rank - 1}>"
        )
        if all(isinstance(d, int) for d in sizes):
            static = f" <{{dimension_numbers = {numbers}, indices_are_sorted = false, slice_sizes = array<i64: {', '.join(map(str, sizes))}>}}>"
            return self.emit('"stablehlo.gather"', [x, indices], [(x.dtype, shape)], static)[0]
        more = f" <{{dimension_numbers = {numbers}, indices_are_sorted = false}}>"
        return self.emit('"stablehlo.dynamic_gather"', [x, indices, self.sizes(sizes)], [(x.dtype, shape)], more)[0]

    def scatter(self, x: X, indices: X, updates: X, axes: Sequence[int], kind: str | None) -> X:
        """``x`` with updates at positions, ``i64[…, m]``, along m axes; the other axes of x stand at the end of the updates. ``kind``: how two
        numbers become one; None: the later one counts."""
        window = list(range(indices.rank - 1, updates.rank))
        more = (
            f" <{{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = {window}, "
            f"inserted_window_dims = {sorted(axes)}, scatter_dims_to_operand_dims = {list(axes)}, index_vector_dim = {indices.rank - 1}>, "
            "unique_indices = false}>"
        )
        both = [(x.dtype, ())] * 2
        body = self.region(both, lambda old, new: [new if kind is None else self(kind, old, new)])
        return self.emit('"stablehlo.scatter"', [x, indices, updates], [(x.dtype, x.shape)], more, [body])[0]

    def loop(self, count: Dim, carried: Sequence[X], body: Callable[..., Sequence[X]], step: str = "add", first: int = 0) -> list[X]:
        """``body(i, *carried)`` for i = first, first step 1 (or 2, where ``step`` is multiply), … below ``count``; what it carries in the end."""
        end, start = self.scalar(count), self.constant(first, DType.i64)
        by = self.constant(1 if step == "add" else 2, DType.i64)
        types = [(x.dtype, x.shape) for x in (start, *carried)]
        condition = self.region(types, lambda i, *_: [self.compare("LT", i, end)])
        inside = self.region(types, lambda i, *xs: [self(step, i, by), *body(i, *xs)])
        return self.emit('"stablehlo.while"', [start, *carried], types, regions=[condition, inside])[1:]


def neutral(kind: str, dtype: DType) -> Any:
    """What a fold begins with."""
    if kind in ("add", "or"):
        return 0
    if kind in ("multiply", "and"):
        return 1
    if dtype.is_float:
        return -np.inf if kind == "maximum" else np.inf
    return dtype.min if kind == "maximum" else dtype.max


assert set(WORDS) == set(DType)
