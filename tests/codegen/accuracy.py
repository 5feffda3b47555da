"""How far compiled code may be from the reference, as data.

The reference computes in f64 and rounds once. Compiled code computes f16 and bf16 in f32, f32 and f64 in themselves, so

* everything that is no float, and every op that moves data, has the same bits;
* ops that IEEE 754 rounds correctly have the same bits;
* other pointwise functions are off by a few units in the last place (``POINTWISE``);
* ops that add up terms of either sign (``SUMS``) are off, besides, by a few roundings *of the largest partial result*, since cancellation
  leaves the error of what was cancelled. That magnitude is the larger of the biggest result and the biggest result on absolute values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trustformers_ir.ir.conformance import Case
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.schema import Op

#: (explicit bits of the significand, smallest normal exponent)
FORMATS = {DType.f8e4m3: (3, -6), DType.f16: (10, -14), DType.bf16: (7, -126), DType.f32: (23, -126), DType.f64: (52, -1022)}

#: units in the last place by which a pointwise result may be off
POINTWISE = {DType.f64: 2.0, DType.f32: 2.0, DType.f16: 1.0, DType.bf16: 1.0}

#: ops that are rounded correctly, whatever the dtype: not one bit may differ
ROUNDED = frozenset(
    {
        *("add", "sub", "mul", "div", "mod", "floor_div", "neg", "abs", "sign", "floor", "ceil", "trunc", "round", "sqrt", "reciprocal"),
        *("minimum", "maximum", "relu", "clamp", "reduce_max", "reduce_min"),
        *("scatter_elements", "scatter_nd"),  # in f64, in the order of the updates, as the reference
    }
)

#: sums of terms of either sign; how many roundings of the largest partial result they may be off. The samples add at most 80 terms; a chain
#: of n roundings is off by n / 2 at worst and by about sqrt(n) / 2 in practice.
SUMS = {
    **dict.fromkeys(["matmul", "einsum", "linear", "linear_f8", "linear_blocks", "linear_blocks_int8", "expert_matmul"], 4.0),
    **dict.fromkeys(["conv1d", "conv2d", "conv"], 4.0),
    **dict.fromkeys(["attention", "cached_attention", "packed_attention"], 4.0),
    **dict.fromkeys(["layer_norm", "rms_norm", "rope", "softmax", "log_softmax"], 4.0),
    **dict.fromkeys(["reduce_sum", "reduce_mean", "reduce_prod", "reduce_log_sum_exp", "reduce_var", "reduce_std", "cumsum", "cumprod"], 4.0),
    "gelu": 1.0,  # x (1/2 + F(x)) cancels for negative x, as every common implementation does
}


def ulp(x: np.ndarray, dtype: DType) -> np.ndarray:
    """The distance between neighbouring numbers of ``dtype`` around ``x``, as f64."""
    digits, lowest = FORMATS[dtype]
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
    exponent = np.frexp(magnitude)[1] - 1
    return np.ldexp(1.0, np.maximum(np.where(magnitude == 0, lowest, exponent), lowest) - digits)


def wide(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def differs(got: np.ndarray, want: np.ndarray, allowed: np.ndarray | float) -> np.ndarray:
    """Where two float arrays differ by more than ``allowed``; NaN equals NaN, infinities equal themselves, zeros each other."""
    g, w = wide(got), wide(want)
    with np.errstate(invalid="ignore"):
        same = (g == w) | (np.isnan(g) & np.isnan(w))
        return ~(same | (np.abs(g - w) <= allowed))


#: ops defined by one chain of multiply-adds, which the passes choose on CPUs alone: GPUs add up in another order
CHAINS = frozenset({"linear_blocks_int8"})
#: what matrix instructions of GPUs add, in roundings of the narrow dtype: the weights of attention are rounded to that of v before they multiply it
NARROWED = {"attention": 1.0, "cached_attention": 1.0, "packed_attention": 1.0}


def allowed_error(op: Op, dtype: DType, want: np.ndarray, magnitude: float, blocks: bool = False) -> np.ndarray:
    """The bound for each element of a float result. ``blocks``: products are those of matrix instructions."""
    if (op.exact and not (blocks and op.mnemonic in CHAINS)) or op.mnemonic in ROUNDED:
        return np.zeros(want.shape)
    narrow = dtype in (DType.f16, DType.bf16)
    working = DType.f32 if narrow else dtype
    narrowed = NARROWED.get(op.mnemonic, 0.0) * 2.0 ** -FORMATS[dtype][0] if narrow and blocks else 0.0
    return POINTWISE[dtype] * ulp(wide(want), dtype) + (SUMS.get(op.mnemonic, 0.0) * 2.0 ** -FORMATS[working][0] + narrowed) * magnitude


def magnitude_of(case: Case, want: Sequence[np.ndarray]) -> float:
    """The size of partial results: the largest finite number among the results and the results on absolute values."""
    if case.op.mnemonic not in SUMS:
        return 0.0
    plain = [a if a is None or a.dtype.kind in "biu" else np.abs(a) for a in case.arrays]
    also = evaluate_operation(case.op, plain, case.results, case.dims, case.types)
    return max((float(a[np.isfinite(a)].max(initial=0.0)) for a in (np.abs(wide(x)) for x in (*want, *also))), default=0.0)


def check_case(case: Case, got: Sequence[np.ndarray], blocks: bool = False) -> None:
    """The results of compiled code are within the bounds of the reference. ``blocks``: it is code for a GPU."""
    want = case.expected()
    magnitude = magnitude_of(case, want)
    for g, w, type in zip(got, want, case.results, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype, f"{case}: {g.dtype}{g.shape} is not {w.dtype}{w.shape}"
        if type.dtype.is_float:
            allowed = allowed_error(case.op, type.dtype, w, magnitude, blocks)
            bad = differs(g, w, allowed)
        else:
            allowed, bad = np.zeros(w.shape), g != w
        if bad.any():
            at = tuple(np.argwhere(bad)[0])
            operands = [a[at] for a in case.arrays if a is not None and a.shape == w.shape]
            first = f"first at {at}: {g[at]!r} != {w[at]!r} +- {allowed[at]:.3g}, operands {operands}"
            raise AssertionError(f"{case}: {bad.sum()} of {bad.size} differ, {first}")


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal shape, dtype and every bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
