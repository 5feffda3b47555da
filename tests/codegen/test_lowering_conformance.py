"""The conformance suite: every case of every op and dtype through native code of every kind of machine that this one can be.

Results are within the bounds of ``accuracy.py`` of the reference, and have the same bits whatever the workers and the machine. A failure names its
case, ``linear#3 on cpu:avx2``; to run that one alone::

    pytest tests/codegen/test_lowering_conformance.py --case "linear#3 on cpu:avx2"
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from accuracy import check_case, same_bytes
from lowering_harness import Runner, compile_modules
from native_cases import INDEXED, NATIVE, STRUCTURE, is_complex, native, with_a_wrong_index

from trustformers_ir.codegen.llvm.target import Target, parse
from trustformers_ir.codegen.lower.definer import RULES
from trustformers_ir.ir import ops
from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.conformance import Case, cases, edge_values, named
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Facts, SymbolFact, evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import OPS, FusionKind, Op
from trustformers_ir.ir.types import TensorType
from trustformers_ir.runtime.targets import check_target


def executes(target: Target) -> bool:
    try:
        check_target(TargetInfo(target.name, target.triple, target.cpu, target.features))
    except CompilerError:
        return False
    return True


#: kinds of machines whose code is tried, as far as this one executes it; the first is this machine itself
ISAS = [isa for isa in ("host", "cpu:avx2", "cpu:avxvnni", "cpu:avx512", "cpu:avx512vnni") if executes(parse(isa))]


@functools.cache
def compiled(mnemonic: str, target: str) -> tuple[list[Case], list[Runner]]:
    """All cases of an op in one LLVM module."""
    mine = native(mnemonic)
    return mine, compile_modules([c.module() for c in mine], target)


@pytest.fixture
def chosen(pytestconfig: pytest.Config) -> Callable[[Case, str], bool]:
    """Whether a case on a kind of machine is to run: all, or the one of ``--case``."""
    wanted = str(pytestconfig.getoption("--case") or "")
    return lambda case, isa: wanted in ("", case.name, f"{case.name} on {isa}")


@pytest.mark.parametrize("mnemonic", NATIVE)
def test_cases_agree_with_the_reference(mnemonic: str, chosen: Callable[[Case, str], bool]) -> None:
    """The bits of the other machines are the same: that is the next test."""
    for case, run in zip(*compiled(mnemonic, "host"), strict=True):
        if chosen(case, "host"):
            check_case(case, run(case.inputs, case.dims))


@pytest.mark.parametrize("mnemonic", NATIVE)
def test_bits_do_not_depend_on_workers_or_machine(mnemonic: str, chosen: Callable[[Case, str], bool]) -> None:
    """Tiles have another shape on each machine, and every worker its own share; results do not show it."""
    for isa in ISAS:
        for case, run, other in zip(*compiled(mnemonic, "host"), compiled(mnemonic, isa)[1], strict=True):
            if chosen(case, isa):
                alone = run(case.inputs, case.dims)
                for workers in (1, 2, 3):
                    results = other(case.inputs, case.dims, workers)
                    same = all(same_bytes(a, b) for a, b in zip(alone, results, strict=True))
                    assert same, f"other bits with {workers} workers: {case.name} on {isa}: {case}"


def test_a_case_is_made_again_from_its_name() -> None:
    for case in [c for m in ("linear", "gather", "cast") for c in native(m)]:
        again = named(case.name)
        assert str(again) == str(case) and all(same_bytes(a, b) for a, b in zip(again.inputs, case.inputs, strict=True))
    with pytest.raises(KeyError):
        named("linear#1000")


def test_every_op_is_accounted_for() -> None:
    complex_only = {m for m in OPS if m not in STRUCTURE and all(map(is_complex, cases([OPS[m]])))}
    assert set(NATIVE) | STRUCTURE | complex_only == set(OPS)
    assert complex_only == {"real", "imag", "conj", "make_complex", "nonzero"}  # the last has no samples: test_computed_dims.py


# --- edges -------------------------------------------------------------------------------------------------------------------------------

EDGE_OPS = [m for m in NATIVE if OPS[m].fusion is FusionKind.ELEMENTWISE]
MOST_EDGES = 2000  # combinations tried at once, of a grid that three operands may make large

#: finite magnitudes beyond which results are not compared
REACH = {
    **{(m, d): 2.0**50 for m in ("sin", "cos", "tan") for d in (DType.f32, DType.bf16)},  # the reduction by multiples of pi is inexact there
    ("hard_swish", DType.f64): 1e300,  # the reference itself overflows in x * 6
}


def at_edges(case: Case) -> Case:
    """The op on every combination of the edge values of its operands' dtypes, or on so many at random."""
    values = [edge_values(t.dtype) for t in case.types if t is not None]
    reach = REACH.get((case.op.mnemonic, DType.from_numpy(values[0].dtype)))
    if reach is not None:
        values = [v[~(np.abs(v.astype(np.float64)) > reach) | np.isinf(v)] for v in values]
    grid = [g.reshape(-1) for g in np.meshgrid(*values, indexing="ij")]
    picked = np.sort(np.random.default_rng(0).permutation(len(grid[0]))[:MOST_EDGES])
    arrays = [g[picked] for g in grid]
    types = tuple(DType.from_numpy(a.dtype)[len(a)] for a in arrays)
    return Case(case.op, types, Facts({}), {}, tuple(arrays))


@pytest.mark.parametrize("mnemonic", EDGE_OPS)
def test_edge_values(mnemonic: str) -> None:
    """Zeros of both signs, infinities, NaN, the largest, the smallest, halves: every combination at every dtype."""
    found = {(c.op, tuple(t.dtype for t in c.types if t is not None)): at_edges(c) for c in native(mnemonic)}
    mine = list(found.values())
    for case, run in zip(mine, compile_modules([c.module() for c in mine]), strict=True):
        check_case(case, run(case.inputs, case.dims))


# --- what must be refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mnemonic", [m for m in OPS if m not in STRUCTURE])
def test_complex_numbers_are_refused(mnemonic: str) -> None:
    for case in cases([OPS[mnemonic]]):
        if is_complex(case):
            with pytest.raises(CompilerError) as caught:
                compile_modules([case.module()])
            (problem,) = caught.value.diagnostics
            assert problem.code is Code.UNSUPPORTED_DTYPE
            assert problem.where.op == mnemonic
            return


def test_an_op_without_native_code_says_where_to_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, ops.Gelu)
    with pytest.raises(CompilerError) as caught:
        compile_modules([native("gelu")[0].module()])
    (problem,) = caught.value.diagnostics
    assert problem.code is Code.UNSUPPORTED_OP
    assert problem.message == "'gelu' has no native code"
    assert "codegen/lower/definitions/" in problem.help and "tfir.evaluate" in problem.help


# --- indices out of range ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mnemonic", INDEXED)
@pytest.mark.parametrize("how", ["too large", "too small", "largest of the dtype"])
def test_an_index_out_of_range_is_reported(mnemonic: str, how: str) -> None:
    """Once per array of indices: its last entry goes wrong, the memory behind it is a forbidden page."""
    tried = 0
    for case, run in zip(*compiled(mnemonic, "host"), strict=True):
        for bad in with_a_wrong_index(case, how == "too small", how == "largest of the dtype"):
            with pytest.raises(IndexError):
                bad.expected()
            with pytest.raises(IndexError, match=mnemonic):
                run(bad.inputs, bad.dims)
            tried += 1
    assert tried


INTO_NOTHING: list[tuple[Op, tuple[TensorType, ...]]] = [
    (ops.Gather(0), (DType.f32["z", 4], DType.i64["n"])),
    (ops.GatherElements(0), (DType.f32["z", 4], DType.i64["n", 4])),
    (ops.GatherNd(), (DType.f32["z", 4], DType.i64["n", 1])),
    (ops.Embedding(), (DType.f32["z", 4], DType.i64["n"])),
    *((ops.ScatterElements(0, r), (DType.f32["z", 4], DType.i64["n", 4], DType.f32["n", 4])) for r in ops.ScatterReduce),
    *((ops.ScatterNd(r), (DType.f32["z", 4], DType.i64["n", 1], DType.f32["n", 4])) for r in ops.ScatterReduce),
]


@pytest.mark.parametrize("target", ISAS)
def test_an_index_into_nothing_is_reported(target: str) -> None:
    """Index 0 of an axis of size 0 is out of range too, and the empty table is not touched: it ends at a forbidden page."""
    facts = Facts({"z": SymbolFact(0, None), "n": SymbolFact(0, None)})
    found = [Case(op, types, facts, {}, ()) for op, types in INTO_NOTHING]
    for case, run in zip(found, compile_modules([c.module() for c in found], target), strict=True):
        for n in (0, 1, 37):
            dims = {"z": 0, "n": n}
            arrays = tuple(np.zeros([d if isinstance(d, int) else evaluate(d, dims) for d in t.shape], t.dtype.numpy) for t in case.types if t)
            bad = dataclasses.replace(case, dims=dims, arrays=arrays)
            if n == 0:
                check_case(bad, run(bad.inputs, dims))
                continue
            with pytest.raises(IndexError):
                bad.expected()
            with pytest.raises(IndexError, match=case.op.mnemonic):
                run(bad.inputs, dims)
