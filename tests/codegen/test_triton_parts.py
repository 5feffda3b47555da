"""Products whose sums are cut into parts: the result is that of the reference whatever the parts, they are added up in their order, and the heuristic
cuts where cores would have nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
from accuracy import check_case, differs, ulp
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="pip install triton")

from test_triton_grouped import module_of
from test_triton_grouped import product as grouped
from test_triton_products import drawn, of_bytes
from triton_harness import holds, interpret_modules

import trustformers_ir as tfir
from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.kernel_ir.kernel import Kernel, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, Axis, Buffer, Reduce, Sym, unary
from trustformers_ir.codegen.lower.block_products import BlockProduct, whole
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.grouped import GroupedProduct
from trustformers_ir.codegen.lower.part_sums import Cut, PartSums
from trustformers_ir.codegen.program import Program
from trustformers_ir.codegen.triton.build import machine_of
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.conformance import make_case
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.region import RegionKind
from trustformers_ir.ir.schedule_table import BlockChoice, Choice, ScheduleKey
from trustformers_ir.passes.fuse import outline

bf16, f32, i8, u8 = DType.bf16, DType.f32, DType.i8, DType.u8
M = symbol("m")
N = 40
KINDS = ("linear f32", "linear bf16", "linear f16", "matmul bf16", "matmul f32")


def traced(kind: str, k: int) -> Module:
    """A product with something before and something behind it, in one region."""
    op, name = kind.split()
    dtype = DType[name]

    def f(x: tfir.Tensor, w: tfir.Tensor, b: tfir.Tensor) -> tfir.Tensor:
        x = F.relu(x) * 0.5
        return F.silu(F.matmul(x, w) + b if op == "matmul" else F.linear(x, w, b)) + 1.0

    return tfir.trace(f, dtype["m", k], dtype[k, N] if op == "matmul" else dtype[N, k], dtype[N])


def in_one_region(module: Module) -> Module:
    outline({o for o in module.main.body if not o.op.terminator}, RegionKind.CONTRACTION)
    return module


def tables(template: str, dtype: DType, k: int, choice: BlockChoice) -> dict[ScheduleKey, Choice]:
    """That choice for every number of rows."""
    return {ScheduleKey(template, dtype, N, k, rows): choice for rows in (1, 32, 128, 8448, None)}


def called(program: Program, rows: int) -> list[int]:
    """The numbers of the kernels that are launched, of which each part of a table's choice has one."""
    return [n for n, c in enumerate(program.calls) if holds(c.when, {"m": rows})]


# --- results ---------------------------------------------------------------------------------------------------------------------------------

SIDES = st.sampled_from([16, 32, 64])


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 300), st.sampled_from([1, 16, 32, 64]), SIDES, SIDES, st.integers(2, 9), st.integers(1, 70))
def test_any_number_of_parts_gives_the_same_product(kind: str, k: int, height: int, width: int, terms: int, parts: int, rows: int) -> None:
    reference, module = traced(kind, k), in_one_region(traced(kind, k))
    dtype = reference.main.outputs[0].type.dtype
    table = tables(f"gpu_{kind.split()[0]}", dtype, k, BlockChoice(height, width, terms, 4, 2, parts=parts, programs=rows % 3))
    (run,) = interpret_modules([module], table=table)
    assert len(called(run.program, rows)) == (1 if k <= terms else 2)
    given = drawn(reference, rows)
    (got,), want = run(given, {"m": rows}), tfir.evaluate(reference, *given)
    # half a rounding of the factor before the product for each of the terms, one of the sum and one behind it
    size = np.sqrt(k) * float(np.finfo(dtype.numpy).eps if dtype is not bf16 else 2.0**-8)
    allowed = 2 * ulp(np.asarray(want, np.float64), dtype) + 2 * size + 2.0**-20 * k
    assert not differs(got, want, allowed).any()


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 400), SIDES, SIDES, st.sampled_from([32, 64, 128]), st.integers(2, 9), st.integers(2, 70))
def test_parts_of_bytes_are_exact(k: int, height: int, width: int, terms: int, parts: int, rows: int) -> None:
    """Not one bit tells how the sums were cut."""
    choice = BlockChoice(height, width, terms, 4, 2)
    runs = []
    for n in (1, parts):
        table = tables("gpu_linear_int8", u8, k, BlockChoice(height, width, terms, 4, 2, parts=n))
        runs += interpret_modules([in_one_region(of_bytes("m", N, k, gelu=True))], table=table)
    given = drawn(of_bytes("m", N, k, gelu=True), rows)
    whole, cut = (run(given, {"m": rows})[0] for run in runs)
    assert whole.tobytes() == cut.tobytes()
    assert len(called(runs[1].program, rows)) == (1 if k <= max(choice.terms, 32) else 2)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_parts_of_groups(data: st.DataObject) -> None:
    kind, rows = data.draw(st.sampled_from(["int4 bf16", "int4_zero f16", "q4_k f16", "q8_0 f16", "int4 f32"])), data.draw(st.integers(1, 40))
    case = make_case(grouped(kind, rows, terms=512))
    module = module_of(case)
    (call,) = lower_function(module, module.main, BlockMachine()).calls
    assert call.schedule is not None
    parts = data.draw(st.integers(2, 5))
    choice = BlockChoice(data.draw(SIDES), data.draw(SIDES), data.draw(st.sampled_from([32, 128, 256])), 4, 2, 1, parts)
    (run,) = interpret_modules([module_of(case)], table={call.schedule.key: choice})
    group = call.schedule.key.panel
    turns = -(-512 // (group * max(choice.terms // group, 1)))
    assert len(run.program.calls) == (2 if whole(parts, turns) > 1 else 1)
    check_case(case, run(case.inputs, case.dims), blocks=True)


def cut(rows: int | None = None) -> PartSums:
    """A product of rows by 8 columns and 100 terms, then exp, in 4 parts of turns of 16 terms."""
    x, w = Buffer("x", f32, (Sym("m"), 100), readonly=True), Buffer("w", f32, (8, 100), readonly=True)
    out = Buffer("out", f32, (Sym("m"), 8))
    m, n, k = Axis("m", Sym("m"), PARALLEL), Axis("n", 8, PARALLEL), Axis("k", 100, SEQ)
    kernel = Kernel("product", (x, w, out), nest([m, n], store(out, (m, n), unary("abs", Reduce("sum", (k,), x[m, k] * w[n, k])))))
    found = PartSums.of(kernel, Cut("k", 16, 4), rows, None)
    assert found is not None
    return found


def test_parts_are_whole_turns_and_are_added_up_in_order() -> None:
    """7 turns of 16 terms make parts of 2, 2, 2 and 1; 1e8 + 1 is 1e8 in f32, so the order of additions shows."""
    rng = np.random.default_rng(0)
    parts = cut()
    x, w = rng.normal(size=(3, 100)).astype(np.float32), rng.normal(size=(8, 100)).astype(np.float32)
    sums = np.full((4, 3, 8), np.nan, np.float32)
    interpret(parts.first, [x, w, sums], {"m": 3})
    wide = x.astype(np.float64), w.astype(np.float64)
    for p, (low, high) in enumerate(((0, 32), (32, 64), (64, 96), (96, 100))):
        np.testing.assert_allclose(sums[p], wide[0][:, low:high] @ wide[1][:, low:high].T, atol=1e-5)
    sums[:, 0, 0], sums[:, 1, 0], sums[:, 2, 0] = (1e8, 1, 1, -1e8), (1, 1, 1e8, -1e8), (-1e8, 1e8, 1, 1)
    out = np.full((3, 8), np.nan, np.float32)
    interpret(parts.second, [out, sums], {"m": 3})
    assert out[:, 0].tolist() == [0, 0, 2]


def test_parts_of_a_range_of_rows_have_a_fixed_place() -> None:
    """Their memory does not grow with rows for which other kernels are there."""
    assert [repr(s) for s in cut(32).sums.type.shape] == ["4", "32", "8"]
    assert cut().sums.type.shape == (4, M, 8)


def test_what_is_no_single_sum_is_not_cut() -> None:
    x, out = Buffer("x", f32, (8, 100), readonly=True), Buffer("out", f32, (8,))
    n, k, other = Axis("n", 8, PARALLEL), Axis("k", 100, SEQ), Axis("k", 100, SEQ)
    for value in (x[n, 0], Reduce("max", (k,), x[n, k]), Reduce("sum", (k,), x[n, k]) + Reduce("sum", (other,), x[n, other] * x[n, 0])):
        kernel = Kernel("other", (x, out), nest([n], store(out, n, value)))
        assert PartSums.of(kernel, Cut("k", 16, 4), None, None) is None


# --- the heuristic -----------------------------------------------------------------------------------------------------------------------------


def parts(product: BlockProduct, target: str, rows: int | None) -> int:
    choice = product.choose(machine_of(TARGETS[target]), {}, rows).choice
    assert isinstance(choice, BlockChoice)
    return choice.parts


def test_sums_are_cut_where_cores_would_have_nothing_to_do() -> None:
    def of(n: int, k: int, dtype: DType = bf16) -> BlockProduct:
        return BlockProduct((), (M,), n, k, dtype, "gpu_linear")

    h100 = "cuda:sm_90"
    assert parts(of(1024, 4096), h100, 32) == 8  # 16 tiles, 132 cores
    assert parts(of(1024, 4096, i8), h100, 32) == 4  # half the bytes
    assert parts(of(1024, 4096, f32), h100, 32) == 8
    assert parts(of(14336, 4096), h100, 32) == 1  # 224 tiles
    assert parts(of(4096, 4096), h100, 32) == 1  # 64 of them draw what memory gives
    assert parts(of(4096, 4096), "rocm:gfx942", 32) == 4  # 304 cores
    assert parts(of(1024, 512), h100, 32) == 1  # too short
    assert parts(of(1024, 4096), h100, None) == 1
    assert parts(BlockProduct((symbol("b"),), (M,), 1024, 4096, bf16, "gpu_matmul"), h100, 32) == 1  # batches fill the cores
    assert parts(GroupedProduct((), (M,), 512, 8192, bf16, "gpu_linear_blocks", 128), h100, 16) == 4


@pytest.mark.parametrize(("n", "ranges"), [(1024, [1, 32, 128, 2112]), (4096, [1, 32, 512]), (14336, [1, 32, 128])])
def test_columns_that_are_few_have_kernels_in_parts_for_more_rows(n: int, ranges: list[int]) -> None:
    assert BlockProduct((), (M,), n, 4096, bf16, "gpu_linear").limits(machine_of(TARGETS["cuda:sm_90"])) == ranges


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 64), st.integers(1, 1000))
def test_no_part_is_left_without_a_turn(wanted: int, turns: int) -> None:
    found = whole(wanted, turns)
    share = -(-turns // found)
    assert 1 <= found <= min(wanted, turns) and (found - 1) * share < turns <= found * share


def test_the_heuristic_serves_each_number_of_rows_with_one_kernel_or_two() -> None:
    """Rows have the same bits whatever other rows of their range are computed with them."""
    k = 2048
    reference, module = traced("linear bf16", k), in_one_region(traced("linear bf16", k))
    (run,) = interpret_modules([module])
    first = [c.schedule for c in run.program.calls if c.schedule is not None and "parts added up" not in c.label]
    schedules = [s.choice.parts for s in first if isinstance(s.choice, BlockChoice)]
    assert schedules == [1, 4, 4, 1, 1]
    given = drawn(reference, 129)
    wanted = np.asarray(tfir.evaluate(reference, *given), np.float64)
    for low, high, count in ((1, 1, 1), (2, 32, 2), (33, 128, 2), (129, 129, 1)):
        results = []
        for rows in (low, high):
            assert len(called(run.program, rows)) == count
            (got,) = run([given[0][:rows], *given[1:]], {"m": rows})
            assert not differs(got, wanted[:rows], 2 * ulp(wanted[:rows], bf16) + 2 * np.sqrt(k) * 2.0**-8).any(), rows
            results.append(got)
        assert results[0].tobytes() == results[1][:low].tobytes()
