"""Products, convolutions, norms and rotary embeddings in StableHLO."""

from __future__ import annotations

import re

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, X, rule
from trustformers_ir.codegen.export.stablehlo.rules_index import taken
from trustformers_ir.codegen.export.stablehlo.rules_shape import mean
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.contract import ConvOp
from trustformers_ir.ir.ops.nn import normalised_axes


@rule(ops.MatMul)
def _matmul(e: Emitter, o: Operation) -> X:
    """Leading axes run together; where b has none, those of a are rows."""
    a, b = e.operand(o, 0), e.operand(o, 1)
    if b.rank == 2:
        return e.dot(a, b, [], [(a.rank - 1, 0)], o.result.type.dtype)
    lead = o.result.type.shape[:-2]
    a, b = (e.spread(x, (*lead, *x.shape[-2:])) for x in (a, b))
    n = len(lead)
    return e.dot(a, b, [(i, i) for i in range(n)], [(n + 1, n)], o.result.type.dtype)


@rule(ops.Linear)
def _linear(e: Emitter, o: Operation) -> X:
    """``x @ weight.T + bias``; no weight is transposed, a product says which axes it sums over. The sum is rounded with its bias."""
    x, weight = e.operand(o, 0), e.operand(o, 1)
    y = e.dot(x, e.cast(weight, x.dtype), [], [(x.rank - 1, 1)])
    if o.operands[2] is not None:
        y = e("add", y, e.spread(e.wide(o, 2), y.shape))
    return e.narrow(y, o)


@rule(ops.ExpertMatMul)
def _expert_matmul(e: Emitter, o: Operation) -> X:
    """The matrix of each row is gathered: right, but a matrix for each row is in memory then."""
    x, weight, experts = (e.operand(o, n) for n in range(3))
    n = experts.rank
    chosen = taken(e, weight, experts, 0)  # [..., k, n]
    return e.dot(e.spread(x, (*experts.shape, x.shape[-1])), chosen, [(i, i) for i in range(n)], [(n, n)], o.result.type.dtype)


# --- einsum ----------------------------------------------------------------------------------------------------------------


@rule(ops.Einsum)
def _einsum(e: Emitter, o: Operation) -> X:
    """Operands are multiplied from the left to the right; a letter is summed over as soon as nothing that comes later has it. An axis of ``...``
    is a letter of its own, by its place from the right; where it is of size 1 it is left out, as it repeats."""
    op = o.op
    assert isinstance(op, ops.Einsum)
    output = re.findall(r"\.\.\.|[A-Za-z]", op.output)
    spread = o.result.type.rank - len([p for p in output if p != "..."])
    wanted = [name for p in output for name in ([f".{spread - n}" for n in range(spread)] if p == "..." else [p])]
    terms = [_term(e, e.widened(e.value(v)), term) for v, term in zip(o.inputs, op.terms, strict=True)]
    y, names = terms[0]
    for number, (x, theirs) in enumerate(terms):
        later = {*wanted, *(name for _, names in terms[number + 1 :] for name in names)}
        y, names = (y, names) if number == 0 else _times(e, y, names, x, theirs, later)
        y, names = _summed(e, y, names, later)
    y = e.transpose(y, [names.index(n) for n in wanted if n in names])
    kept = [n for n in wanted if n in names]
    return e.narrow(e.spread(y, o.result.type.shape, [wanted.index(n) for n in kept]), o)


def _term(e: Emitter, x: X, term: str) -> tuple[X, list[str]]:
    """An operand without repeated letters (the diagonal is taken), and what its axes are called."""
    before, dots, after = term.partition("...")
    free = x.rank - len(before) - len(after)
    names = [*before, *(f".{free - n}" for n in range(free if dots else 0)), *after]
    for axis in reversed(range(x.rank)):
        if names[axis].startswith(".") and x.shape[axis] == 1:
            x = e.reshape(x, (*x.shape[:axis], *x.shape[axis + 1 :]))
            del names[axis]
    for axis in reversed(range(x.rank)):
        first = names.index(names[axis])
        if first < axis:
            same = e.compare("EQ", e.iota(x.shape, first), e.iota(x.shape, axis))
            x = e.reduce("add", e.select(same, x, 0), [axis])
            del names[axis]
    return x, names


def _times(e: Emitter, a: X, ours: list[str], b: X, theirs: list[str], later: set[str]) -> tuple[X, list[str]]:
    """The product of two; what nothing needs later is summed over."""
    both = [n for n in ours if n in theirs]
    batch, terms = [n for n in both if n in later], [n for n in both if n not in later]
    y = e.dot(a, b, [(ours.index(n), theirs.index(n)) for n in batch], [(ours.index(n), theirs.index(n)) for n in terms])
    return y, [*batch, *(n for n in ours if n not in both), *(n for n in theirs if n not in both)]


def _summed(e: Emitter, x: X, names: list[str], later: set[str]) -> tuple[X, list[str]]:
    done = [axis for axis, n in enumerate(names) if n not in later]
    return e.reduce("add", x, done), [n for n in names if n in later]


# --- convolutions ----------------------------------------------------------------------------------------------------------


@rule(ops.Conv1d, ops.Conv2d, ops.Conv)
def _conv(e: Emitter, o: Operation) -> X:
    op = o.op
    assert isinstance(op, ConvOp)
    x, weight, shape = e.wide(o, 0), e.wide(o, 1), o.result.type.shape
    windows = op.geometry()
    space = ", ".join(map(str, range(len(windows))))
    window = (
        f"stride = {[w[0] for w in windows]}, pad = {[[w[1], w[2]] for w in windows]}, "
        f"lhs_dilate = {[1] * len(windows)}, rhs_dilate = {[w[3] for w in windows]}"
    )
    more = (
        f" dim_numbers = [b, f, {space}]x[o, i, {space}]->[b, f, {space}], window = {{{window}}} "
        f"{{batch_group_count = 1 : i64, feature_group_count = {op.group_count} : i64"
    )
    highest = "#stablehlo<precision HIGHEST>"
    more += f", precision_config = [{highest}, {highest}]}}" if x.dtype is DType.f32 else "}"
    y = e.op("convolution", [x, weight], x.dtype, shape, more)
    if o.operands[2] is not None:
        y = e("add", y, e.spread(e.wide(o, 2), shape, [1]))
    return e.narrow(y, o)


# --- norms -----------------------------------------------------------------------------------------------------------------


def _last(count: int, x: X) -> tuple[int, ...]:
    return tuple(range(x.rank - count, x.rank))


@rule(ops.LayerNorm)
def _layer_norm(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.LayerNorm)
    x = e.wide(o, 0)
    axes = _last(normalised_axes(*o.operand_types[1:]), x)
    off = e("subtract", x, e.spread(mean(e, x, axes, True), x.shape))
    variance = mean(e, e("multiply", off, off), axes, True)
    y = e("multiply", off, e.spread(e("rsqrt", e("add", variance, o.op.eps)), x.shape))
    if o.operands[1] is not None:
        y = e("multiply", y, e.spread(e.wide(o, 1), x.shape))
    if o.operands[2] is not None:
        y = e("add", y, e.spread(e.wide(o, 2), x.shape))
    return e.narrow(y, o)


@rule(ops.RmsNorm)
def _rms_norm(e: Emitter, o: Operation) -> X:
    """Zhang and Sennrich 2019."""
    assert isinstance(o.op, ops.RmsNorm)
    x = e.wide(o, 0)
    square = mean(e, e("multiply", x, x), _last(normalised_axes(o.operand_types[1]), x), True)
    y = e("multiply", x, e.spread(e("rsqrt", e("add", square, o.op.eps)), x.shape))
    if o.operands[1] is not None:
        scale = e.wide(o, 1)
        y = e("multiply", y, e.spread(e("add", scale, o.op.offset) if o.op.offset else scale, x.shape))
    return e.narrow(y, o)


# --- rotary embeddings -----------------------------------------------------------------------------------------------------


@rule(ops.Rope)
def _rope(e: Emitter, o: Operation) -> X:
    """Su et al. 2021: ``(a, b)`` to ``(a cos - b sin, b cos + a sin)``, for neighbours or for the halves of what turns."""
    assert isinstance(o.op, ops.Rope)
    x, cos, sin = (e.wide(o, n) for n in range(3))
    half = cos.shape[-1]
    if not isinstance(half, int):
        raise Unsupported("the number of features is not known")
    lead: tuple[Dim, ...] = (*x.shape[:-1], half)
    if o.op.interleaved:
        a, b = e.part(x, -1, 0, 2 * half, 2), e.part(x, -1, 1, 2 * half, 2)
    else:
        a, b = e.part(x, -1, 0, half), e.part(x, -1, half, 2 * half)
    c, s = e.spread(cos, lead), e.spread(sin, lead)
    turned = [e("subtract", e("multiply", a, c), e("multiply", b, s)), e("add", e("multiply", b, c), e("multiply", a, s))]
    if o.op.interleaved:
        pairs = e.concat([e.reshape(t, (*lead, 1)) for t in turned], -1)
        turned = [e.reshape(pairs, (*lead[:-1], 2 * half))]
    rest = [] if x.shape[-1] == 2 * half else [e.part(x, -1, 2 * half, x.shape[-1])]
    return e.narrow(e.concat([*turned, *rest], -1), o)
