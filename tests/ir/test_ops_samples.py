"""Every sample of every op: inference, reference semantics and the interpreter agree with each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trustformers_ir.ir import ops
from trustformers_ir.ir.conformance import Case, cases, edge_values
from trustformers_ir.ir.dims import SymExpr, evaluate
from trustformers_ir.ir.dtypes import EIGHTHS, DType
from trustformers_ir.ir.interpreter import evaluate as run
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.schema import OPS, FusionKind, Op, widen

# they need a module around them: see test_interpreter.py, and for the last one tests/runtime/test_computed_dims.py
WITHOUT_SAMPLES = {"weight", "return", "yield", "fused", "nonzero"}
KINDS = sorted(set(OPS) - WITHOUT_SAMPLES)


def cases_of(mnemonic: str) -> list[Case]:
    return list(cases([OPS[mnemonic]]))


def test_every_op_has_samples_and_is_exported() -> None:
    assert {m for m, kind in OPS.items() if not list(kind.samples())} == WITHOUT_SAMPLES
    assert {kind.__name__ for kind in OPS.values()} <= set(ops.__all__)


@pytest.mark.parametrize("mnemonic", KINDS)
def test_results_have_the_inferred_types(mnemonic: str) -> None:
    for case in cases_of(mnemonic):
        for array, type in zip(case.expected(), case.results, strict=True):
            assert array.dtype == type.dtype.numpy, str(case)
            assert array.shape == tuple(evaluate(d, case.dims) for d in type.stored.shape), str(case)


@pytest.mark.parametrize("mnemonic", KINDS)
def test_a_narrow_result_is_the_wide_one_rounded_once(mnemonic: str) -> None:
    for case in cases_of(mnemonic):
        if isinstance(case.op, ops.Iota | ops.OneHot | ops.BitCast):
            continue
        wide = [None if a is None else widen(a) for a in case.arrays]
        wide_case = dataclasses.replace(case, arrays=tuple(wide))
        for narrow, full, type in zip(case.expected(), wide_case.expected(wide=True), case.results, strict=True):
            np.testing.assert_array_equal(narrow, round_to(full, type.dtype), err_msg=str(case))


@pytest.mark.parametrize("mnemonic", KINDS)
def test_the_interpreter_runs_the_op_in_a_module(mnemonic: str) -> None:
    for case in cases_of(mnemonic):
        results = run(case.module(), *case.inputs, dims=case.dims)
        for got, wanted in zip(results if isinstance(results, tuple) else (results,), case.expected(), strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=str(case))


@pytest.mark.parametrize("mnemonic", KINDS)
def test_declarations_are_complete(mnemonic: str) -> None:
    kind = OPS[mnemonic]
    assert kind.__doc__
    assert "__dataclass_params__" in kind.__dict__, "each op is its own dataclass"
    assert sorted(kind.constraints) == list(range(1, len(kind.constraints) + 1))
    assert all(text and not text.endswith(".") for text in kind.constraints.values())
    for case in cases_of(mnemonic):
        assert hash(case.op) == hash(dataclasses.replace(case.op))
        assert case.op == dataclasses.replace(case.op)
        flops = case.op.flops(case.types, case.results)
        assert isinstance(flops, int | SymExpr)
        assert evaluate(flops, case.dims) >= 0
        free = kind.fusion in (FusionKind.INJECTIVE, FusionKind.CONSTANT) or mnemonic in ("dropout", "pack")
        assert free or evaluate(flops, case.dims) > 0 or not all(a.size for a in case.inputs), str(case)


@pytest.mark.parametrize("mnemonic", KINDS)
def test_commutative_ops_commute(mnemonic: str) -> None:
    if OPS[mnemonic].commutative:
        for case in cases_of(mnemonic):
            turned = dataclasses.replace(case, types=case.types[::-1], arrays=case.arrays[::-1])
            tolerance = 1e-14 if case.results[0].dtype.is_complex else 0  # numpy's complex product may use a fused multiply-add
            np.testing.assert_allclose(case.expected()[0], turned.expected()[0], rtol=tolerance, err_msg=str(case))


def test_some_samples_of_each_family_are_symbolic() -> None:
    symbolic = {type(case.op) for case in cases() if case.dims}
    families: list[type[Op]] = [
        ops.Add, ops.Exp, ops.Select, ops.Reshape, ops.Concat, ops.Slice, ops.Pad, ops.ReduceSum, ops.Softmax, ops.TopK, ops.Gather,
        ops.ScatterElements, ops.MatMul, ops.Linear, ops.Conv2d, ops.Einsum, ops.LayerNorm, ops.Rope, ops.Attention,
    ]  # fmt: skip
    assert set(families) <= symbolic


@pytest.mark.parametrize("dtype", list(DType))
def test_edge_values_are_of_the_dtype(dtype: DType) -> None:
    values = edge_values(dtype)
    assert values.dtype == dtype.numpy
    if dtype.is_float:
        wide = values.astype(np.float64)
        assert np.isnan(wide).any()
        assert np.isinf(wide).any() == (dtype not in EIGHTHS)
        assert np.signbit(wide[wide == 0]).any()
        assert len(np.unique(wide[np.isfinite(wide)])) >= (16 if dtype in EIGHTHS else 18)
    elif dtype.is_integer:
        assert {dtype.min, dtype.max} <= set(values.tolist())
