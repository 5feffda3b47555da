"""Which operation brings an error in, and how much of what comes out is its doing.

A file is wrong where an operation, fed *what the file itself feeds it*, gives something else than the definition does on the same operands: whatever
lies before it has no part in that, and what lies behind it only hands it on. So each result that the file shows is compared with the reference
semantics of the operation on the file's own values, in float64 (what the file does not show is computed so from what it does). That difference is the
operation's own error.

Its share in the end: the source runs in float64 with that one error added where it arises (a result that is no float is replaced), and what this
does to the outputs, d, is compared with what is wrong with them, e: share = 1 - |e - d|² / |e|², 1 where the operation explains all of it, and to
first order the shares of independent errors add up to 1. Outputs are scaled by their largest magnitudes. Operations are ranked by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.interpreter import run_operation
from trustformers_ir.ir.ops.data import WeightOp
from trustformers_ir.ir.ops.quantized import QuantizeDynamic, QuantizeStatic
from trustformers_ir.ir.schema import widen
from trustformers_ir.tools.agreement.values import all_values, result_ids

SUSPECTS = 16  # operations with the largest errors of their own, whose shares are computed


@dataclass(frozen=True)
class Culprit:
    """An operation of the source. ``number``: its place in the canonical graph. ``source``: its line. ``error``: its own, relative to the largest
    magnitude of what it should give. ``share``: of the squared error of the outputs; may be negative where it makes up for others; None where there
    are no outputs."""

    operation: str
    number: int
    source: str
    error: float
    share: float | None


def blame(
    module: Module, arrays: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray] | None, tolerance: float
) -> list[Culprit]:
    """The operations of ``module`` (canonical) with a share in the error of ``outputs``, the largest share first.

    ``known``: results of operations that a file shows, by their names (``12:linear.0``). ``outputs``: None where the file could not be executed to
    its end; then operations have no share, and the largest error of its own comes first. ``tolerance``: own errors far below it are roundings.
    """
    true, dims = all_values(module, arrays)
    own = {
        v: (shown.error, _changed(true[v], true[v] if shown.wanted is None else shown.wanted, shown.found))
        for v, shown in _shown(module, true, dims, known).items()
    }
    wrong = None if outputs is None else _scaled(module, true, [_as(x, true[v])[0] for x, v in zip(outputs, module.main.outputs, strict=True)])
    ranked = sorted((v for v, (error, _) in own.items() if error > tolerance * 1e-3), key=lambda v: -own[v][0])[:SUSPECTS]
    numbers = {o: n for n, o in enumerate(module.main.body)}
    found = []
    for v in ranked:
        producer = v.producer
        assert producer is not None
        share = None
        if wrong is not None and wrong.any():
            left = wrong - _scaled(module, true, _rerun(module, true, dims, v, own[v][1]))
            share = 1 - float(left @ left) / float(wrong @ wrong)
        found.append(Culprit(producer.op.mnemonic, numbers[producer], _place(producer), own[v][0], share))
    return sorted(found, key=lambda c: (-(c.share or 0.0), -c.error))


def strays(module: Module, arrays: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray], allowed: float) -> list[Culprit]:
    """The operations of ``module`` (canonical) that give something else than the definition does on the file's own operands, in their order. That is
    sharp where rounding to codes makes the outputs of a right file drift: no error is handed on. ``allowed``: the own error of a right operation.
    Codes may be one off, and their zero points, where their numbers lie in the middle between two: in one row, or in one of a hundred."""
    true, dims = all_values(module, arrays)
    numbers = {o: n for n, o in enumerate(module.main.body)}
    found = []
    for v, shown in _shown(module, true, dims, known).items():
        o = v.producer
        assert o is not None
        if isinstance(o.op, QuantizeDynamic | QuantizeStatic) and v.type.dtype.is_integer and shown.wanted is not None:
            off = np.abs(shown.wanted.astype(np.int64) - shown.found.astype(np.int64))
            wrong = off.max(initial=0) > 1 or np.count_nonzero(off) > max(off.shape[-1] if off.ndim else 1, off.size // 100)
        else:
            wrong = shown.error > allowed
        if wrong:
            found.append(Culprit(o.op.mnemonic, numbers[o], _place(o), shown.error, None))
    return found


@dataclass(frozen=True)
class _Shown:
    """A value of a file, what the definition gives on the own operands of the file (None where it gives nothing), and the difference of the two."""

    found: np.ndarray
    wanted: np.ndarray | None
    error: float


def _shown(module: Module, true: Mapping[Value, np.ndarray], dims: dict[str, int], known: Mapping[str, np.ndarray]) -> dict[Value, _Shown]:
    """In the order of the operations."""
    shown = {v: known[name] for name, v in result_ids(module).items() if name in known}
    theirs: dict[Value, np.ndarray] = {a: true[a] for a in module.main.args}
    own: dict[Value, _Shown] = {}
    for o in module.main.body:
        if o.op.terminator:
            break
        operands = [None if v is None else theirs[v] for v in o.operands]
        try:
            wanted: list[np.ndarray | None] = [*run_operation(o, operands, dims, module.weights, True)]
        except CompilerError:  # an index out of range, by the fault of another
            wanted = [None] * len(o.results)
        for v, want in zip(o.results, wanted, strict=True):
            theirs[v] = true[v] if want is None else want
            if v in shown and not isinstance(o.op, WeightOp):
                have, misshapen = _as(shown[v], true[v])
                if have is not None:
                    theirs[v] = have
                    own[v] = _Shown(have, want, float("inf") if misshapen or want is None else _relative(want, have))
    return own


def _place(o: Operation) -> str:
    return "" if o.loc is None else str(o.loc)


def _as(found: np.ndarray, like: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """A value of a file as one of the source: in float64, and in its shape where it has as many elements in another one; whether it had."""
    wide = widen(np.asarray(found))
    if wide.shape == like.shape:
        return wide, False
    return (wide.reshape(like.shape), True) if wide.size == like.size else (None, True)


def _relative(want: np.ndarray, have: np.ndarray) -> float:
    """The largest difference by the largest magnitude; where no numbers are added up, the part of the elements that differ."""
    if want.dtype.kind in "biu":
        return float(np.mean(want != have)) if want.size else 0.0
    difference, scale = _difference(want, have)
    return float(np.abs(difference).max(initial=0.0)) / scale


def _difference(want: np.ndarray, have: np.ndarray) -> tuple[np.ndarray, float]:
    """``have - want``, and the largest magnitude; where either is no number and the other is not the same, twice that magnitude."""
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=0.0)) or 1.0
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    with np.errstate(all="ignore"):
        away = have - want
    return np.where(same, 0.0, np.where(np.isfinite(away), away, 2 * scale)), scale


def _changed(true: np.ndarray, want: np.ndarray, have: np.ndarray) -> np.ndarray:
    """The true value with the error of an operation alone."""
    if true.dtype.kind in "biu":
        return np.where(want != have, have, true).astype(true.dtype)
    with np.errstate(all="ignore"):
        moved = true + (have - want)
    plain = np.isfinite(want) & np.isfinite(have)
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    found: np.ndarray = np.where(same, true, np.where(plain, moved, have))
    return found


def _rerun(module: Module, true: Mapping[Value, np.ndarray], dims: dict[str, int], changed: Value, to: np.ndarray) -> list[np.ndarray | None]:
    """The outputs when one value is another one: only what reads it is computed again."""
    values = {changed: to}
    for o in module.main.body:
        if o.op.terminator or changed in o.results or not any(v in values for v in o.inputs):
            continue
        try:
            results = run_operation(o, [None if v is None else values.get(v, true[v]) for v in o.operands], dims, module.weights, True)
        except CompilerError:
            return [None for _ in module.main.outputs]
        values |= dict(zip(o.results, results, strict=True))
    return [values.get(v, true[v]) for v in module.main.outputs]


def _scaled(module: Module, true: Mapping[Value, np.ndarray], outputs: Sequence[np.ndarray | None]) -> np.ndarray:
    """What is wrong with the outputs, in one row, by the largest magnitude of each."""
    parts = []
    for v, have in zip(module.main.outputs, outputs, strict=True):
        want = true[v]
        if have is None:
            parts.append(np.full(want.size, 2.0))
        elif want.dtype.kind in "biu":
            parts.append((want != have).astype(np.float64).reshape(-1))
        else:
            difference, scale = _difference(want, have)
            parts.append(np.abs(difference).reshape(-1) / scale if np.iscomplexobj(difference) else difference.reshape(-1) / scale)
    return np.concatenate(parts) if parts else np.zeros(0)
