"""How far roundings alone may carry an output from the truth.

Let u be the unit roundoff of a dtype (f32: 2^-24), and look at the path from the inputs to an output on which the most is rounded. An operation on it
rounds its result once, to its own dtype: a variance of u(dtype)². A sum of k terms rounds k times besides, in f32 or what is wider: k u(f32)². A
product by a weight that a file holds in blocks of b bits sees each element of the weight off by about 0.8 * 2^(1 - b) of its root mean square, at
random; so is then its sum, however long. Roundings are independent and go either way: variances add up, errors do not (Higham & Mary, "A new approach
to probabilistic rounding error analysis", 2019, whose bound has the same sqrt(k) u). What is allowed is

    FACTOR * sqrt(sum over the path of  k u(f32)² + u(dtype)² + u(blocks)²)

relative to the largest magnitude of the output. FACTOR = 4: one for the quantile that the largest of many elements is, the rest for what norms and
softmax do to an error. The number of terms is what an operation says of its flops, for the sizes of the probe. Integers and bools are exact.

Codes of activations are a step off, u(u8) = 2^-7. Where the truth rounds to codes as well, only those are that lie near the middle between two: the
part p = min(1, max(1/k, sqrt(variance so far) / 2^-8)) of a row of k, which is a variance of p u(u8)².
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from trustformers_ir.ir.block_formats import FORMATS, Format
from trustformers_ir.ir.core import Block, Module, Operation, Value
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.data import WeightOp
from trustformers_ir.ir.ops.shape import MovementOp

FACTOR = 4.0
YARDSTICK = 1e-12  # the truth is a float64 run, which is rounded too
UNITS: Mapping[DType, float] = {
    DType.f64: 2.0**-53, DType.c128: 2.0**-53, DType.f32: 2.0**-24, DType.c64: 2.0**-24, DType.f16: 2.0**-11, DType.bf16: 2.0**-8,
    DType.f8e4m3: 2.0**-4, DType.i8: 2.0**-7, DType.u8: 2.0**-7,
}  # fmt: skip


def blocks_unit(format: Format, group: int = 0) -> float:
    """Of an element of a weight in blocks, by its root mean square."""
    bits = FORMATS[format].bits_per_weight(group or 32) if FORMATS[format].block or group else 4.5
    return 0.8 * 2.0 ** (1 - math.floor(bits))


class Codes(enum.Enum):
    """Codes of activations where the truth makes such as well: those alone differ that lie near the middle between two; or none does, which is so of
    an operation on the operands of the file itself. Where the truth makes none, each is off by a step."""

    SAME_BUT_TIES = "ties"
    SAME = "same"


@dataclass(frozen=True)
class Rounding:
    """How a file rounds. ``least``: a unit that no operation is more exact than: that of a file which computes in a narrower dtype than its source.
    ``codes``: what becomes of codes of activations next to those of the truth."""

    dims: Mapping[str, int]
    least: float = 0.0
    codes: Codes | None = None


def tolerances(module: Module, dims: Mapping[str, int], least: float = 0.0, codes: Codes | None = None) -> list[float]:
    """What is allowed for each output of ``main``, with these sizes. ``least`` and ``codes``: of :class:`Rounding`."""
    paths = _walk(module, module.main.body, [0.0] * len(module.main.args), Rounding(dims, least, codes))
    found = []
    for v, variance in zip(module.main.outputs, paths, strict=True):
        exact = not (v.type.dtype.is_float or v.type.dtype.is_complex)
        found.append(0.0 if exact else max(YARDSTICK, FACTOR * math.sqrt(variance)))
    return found


def _walk(module: Module, block: Block, given: list[float], how: Rounding) -> list[float]:
    """The variance of what the block hands out, each on its worst path. What is made of weights alone comes on top at each place that reads it."""
    variance: dict[Value, float] = dict(zip(block.args, given, strict=True))
    still: set[Value] = set()
    for o in block:
        static = [variance[v] for v in o.inputs if v in still]
        before = max((variance[v] for v in o.inputs if v not in still), default=0.0) + max(static, default=0.0)
        if o.op.terminator:
            return [variance[v] for v in o.inputs]
        if o.body is not None:
            after = _walk(module, o.body, [variance[v] for v in o.inputs], how)
        else:
            after = [before + _own(module, o, r, how, before) for r in o.results]
        variance |= dict(zip(o.results, after, strict=True))
        if isinstance(o.op, WeightOp) or (o.inputs and len(static) == len(o.inputs)):
            still |= set(o.results)
    return []


def _own(module: Module, o: Operation, result: Value, how: Rounding, before: float) -> float:
    if isinstance(o.op, WeightOp):
        blocks = module.weights[o.op.name].blocks if o.op.name in module.weights else None
        return 0.0 if blocks is None else blocks_unit(blocks.format, blocks.group) ** 2
    dtype = result.type.dtype
    narrow = dtype.is_float or dtype.is_complex
    codes = dtype in (DType.i8, DType.u8) and any(v.type.dtype.is_float for v in o.inputs)
    if isinstance(o.op, MovementOp) or not (narrow or codes):
        return 0.0
    unit = max(UNITS[dtype], how.least)
    if codes and how.codes is not None:
        return unit**2 * _flips(result, before, how) if how.codes is Codes.SAME_BUT_TIES else 0.0
    inner = min(max(UNITS[dtype], UNITS[DType.f64]), UNITS[DType.f32])
    return _terms(o, result, how.dims) * max(inner, min(how.least, UNITS[DType.f32])) ** 2 + unit**2


def _flips(result: Value, before: float, how: Rounding) -> float:
    """The part of the codes that are one off, where the numbers they are made of are off by a variance: as large as that by half a step; and one code
    of a row at the least, for in one of all rows there will be one."""
    *_, features = result.type.concrete(how.dims) or (1,)
    return min(1.0, max(1 / max(features, 1), math.sqrt(before) / (UNITS[DType.u8] / 2)))


def _terms(o: Operation, result: Value, dims: Mapping[str, int]) -> float:
    """How many terms the sums have of which an element is made: half of the flops of an element."""
    size = math.prod(result.type.concrete(dims)) or 1
    flops = o.op.flops(o.operand_types, [r.type for r in o.results])
    return max(0.0, evaluate(flops, dims) / (2 * size))
