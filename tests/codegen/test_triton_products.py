"""Products on GPUs: whatever tile is chosen, for however many rows, the result is that of the reference; choices fit the chips; programs go by in
groups, and may make one tile after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from accuracy import differs, ulp
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="pip install triton")

from triton_harness import holds, interpret_modules

import trustformers_ir as tfir
from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, Axis, Buffer, Sym, const
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution
from trustformers_ir.codegen.kernel_ir.schedule import Group, ScheduleError, Walk, apply
from trustformers_ir.codegen.lower.block_products import Behind, BlockProduct, fitted, heuristic
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.triton.build import machine_of
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dims import Facts, SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import BlockChoice, Choice, ScheduleKey
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

SMALL = BlockMachine(cores=2)  # so few cores that 129 rows are many
ROWS = (1, 2, 32, 33, 128, 129, 300)
N, K = 200, 72

f16, bf16, f32, i8, u8, i32 = DType.f16, DType.bf16, DType.f32, DType.i8, DType.u8, DType.i32


def traced(kind: str, rows: object = "m") -> Module:
    dtype = DType[kind.split()[-1]]
    if kind.startswith("linear_int8"):
        return of_bytes(rows, N, K)
    right = dtype[K, N] if kind.startswith("matmul") else dtype[N, K]

    def product(x: tfir.Tensor, w: tfir.Tensor, b: tfir.Tensor) -> tfir.Tensor:
        y = F.matmul(x, w) + b if kind.startswith("matmul") else F.linear(x, w, b)
        return F.gelu(y) + 1.0 if "gelu" in kind else y

    return tfir.trace(product, dtype[rows, K], right, dtype[N])


def of_bytes(rows: object, n: int, k: int, gelu: bool = False) -> Module:
    """A product of u8 and i8 with ``n`` columns and ``k`` terms."""
    module = Module("m", Facts({"m": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    builder = Builder(module, block)
    types = [u8[rows, k], f32[rows, 1], i32[rows, 1], i8[n, k], f32[n], i32[n], f32[n]]
    product = builder(ops.LinearInt8(), *(block.add_arg(t, f"x{i}") for i, t in enumerate(types)))
    builder.create(ops.Return(), builder(ops.Gelu(), product) if gelu else product)
    return module


def drawn(module: Module, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rows)
    arrays = []
    for a in module.main.args:
        shape = [d if isinstance(d, int) else rows for d in a.type.shape]
        numbers = rng.integers(0 if a.type.dtype is u8 else -100, 100, shape) if a.type.dtype.is_integer else rng.normal(size=shape)
        arrays.append(np.asarray(numbers).astype(a.type.dtype.numpy))
    return arrays


KINDS = ("linear f32", "linear bf16", "linear gelu f16", "matmul bf16", "matmul gelu f32", "linear_int8 u8")


@pytest.mark.parametrize("kind", KINDS)
def test_one_kernel_serves_each_number_of_rows(kind: str) -> None:
    reference = traced(kind)
    module = traced(kind)
    PassManager(pipelines.gpu()).run(module)
    (run,) = interpret_modules([module], SMALL)
    seen = set()
    for rows in ROWS:
        called = [n for n, c in enumerate(run.program.calls) if holds(c.when, {"m": rows})]
        assert len(called) == 1
        seen |= set(called)
        given = drawn(reference, rows)
        (got,), want = run(given, {"m": rows}), tfir.evaluate(reference, *given)
        dtype = reference.main.outputs[0].type.dtype
        # two roundings of the sum in the result's dtype (gelu of it), and some of partial sums
        allowed = 2 * ulp(np.asarray(want, np.float64), dtype) + 2.0**-20 * float(np.abs(want.astype(np.float64)).max(initial=0.0))
        assert not differs(got, want, allowed).any(), rows
    assert seen == set(range(len(run.program.calls)))
    assert len(run.program.calls) == (3 if "f32" in kind else 4)


def test_a_known_number_of_rows_has_one_kernel() -> None:
    for rows, wanted in ((1, 1), (5, 16), (100, 64), (4096, 128)):
        module = traced("linear bf16", rows)
        PassManager(pipelines.gpu()).run(module)
        (call,) = lower_function(module, module.main, SMALL).calls
        assert call.when is None and call.schedule is not None
        assert isinstance(call.schedule.choice, BlockChoice) and call.schedule.choice.rows == wanted


def test_facts_leave_out_kernels_that_are_never_called() -> None:
    module = traced("linear bf16")
    module.facts.symbols["m"] = SymbolFact(low=40, high=128)
    PassManager(pipelines.gpu()).run(module)
    (call,) = lower_function(module, module.main, SMALL).calls
    assert call.when is None and call.schedule is not None and call.schedule.key.rows == 128


# --- choices -------------------------------------------------------------------------------------------------------------------------------

SIZES = st.sampled_from([None, 1, 5, 16, 64, 100, 384, 1024, 4096, 50257])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), st.sampled_from(["gpu_linear", "gpu_matmul"]), st.sampled_from([f16, f32, i8]), SIZES, SIZES, SIZES)
def test_tiles_fit_the_chip(target: str, template: str, dtype: DType, n: int | None, k: int | None, rows: int | None) -> None:
    key = ScheduleKey(template, dtype, n, k, rows)
    choice = fitted(heuristic(machine_of(TARGETS[target]), key), key)
    if choice.rows > 1 and choice.rows * choice.columns > 16 * 16:
        assert (choice.rows + choice.columns) * choice.terms * dtype.itemsize * choice.stages <= TARGETS[target].shared
    assert choice.rows * choice.columns <= choice.warps * 32 * 128  # a thread holds at most 128 sums


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_tile_gives_the_same_product(data: st.DataObject) -> None:
    """A table may choose whatever it likes."""
    sizes = st.sampled_from([16, 32, 64, 128])
    rows = data.draw(st.one_of(st.just(1), sizes))
    choice = BlockChoice(rows, data.draw(sizes), data.draw(sizes), 4, 2, data.draw(st.integers(1, 9)))
    m = data.draw(st.integers(1, 150))
    reference, module = traced("linear f32"), traced("linear f32")
    PassManager(pipelines.gpu()).run(module)
    table: dict[ScheduleKey, Choice] = {ScheduleKey("gpu_linear", f32, N, K, most): choice for most in (1, 32, 128, None)}
    (run,) = interpret_modules([module], SMALL, table)
    given = drawn(reference, m)
    np.testing.assert_allclose(run(given, {"m": m})[0], tfir.evaluate(reference, *given), rtol=1e-5, atol=1e-4)


# --- groups --------------------------------------------------------------------------------------------------------------------------------


def visited(rows: int, columns: int, size: int, known: bool) -> list[tuple[int, int]]:
    """The places of a grid in the order in which turns come to them."""
    count = Buffer("count", DType.i64, (Sym("m"), columns))
    m, n = Axis("m", rows if known else Sym("m"), PARALLEL), Axis("n", columns, PARALLEL)
    kernel = Kernel("grid", (count,), nest([m, n], store(count, (m, n), m * 1000 + n)))
    grouped = apply(kernel, (Group("m", "n", size),))
    out = np.full((rows, columns), -1, np.int64)
    interpret(grouped, [out], {"m": rows})
    assert (out == np.arange(rows)[:, None] * 1000 + np.arange(columns)).all()
    (loop,) = grouped.body
    order = []
    for turn in range(rows * columns):
        one = np.full((rows, columns), -1, np.int64)
        interpret(Kernel("turn", (count,), _at(loop, turn)), [one], {"m": rows})
        ((i, j),) = np.argwhere(one >= 0)
        order.append((int(i), int(j)))
    return order


def _at(loop: Stmt, turn: int) -> tuple[Stmt, ...]:
    assert isinstance(loop, For)
    return tuple(Substitution({loop.axis: const(turn)}).stmt(s) for s in loop.body)


@pytest.mark.parametrize("known", [False, True])
def test_groups_go_through_some_rows_column_after_column(known: bool) -> None:
    order = visited(5, 4, 2, known)
    assert order[:8] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    assert order[16:] == [(4, 0), (4, 1), (4, 2), (4, 3)]
    assert sorted(order) == [(i, j) for i in range(5) for j in range(4)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_groups_visit_every_place_once(rows: int, columns: int, size: int, known: bool) -> None:
    assert sorted(visited(rows, columns, size, known)) == [(i, j) for i in range(rows) for j in range(columns)]


def test_groups_of_nothing_are_refused() -> None:
    with pytest.raises(ScheduleError, match="cannot take 0 turns of m"):
        visited(3, 3, 0, True)


# --- one tile after the other --------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.booleans())
def test_each_program_takes_its_share_of_the_turns(turns: int, programs: int, known: bool) -> None:
    count = Buffer("count", DType.i64, (turns if known else Sym("m"),))
    i = Axis("i", turns if known else Sym("m"), PARALLEL)
    kernel = apply(Kernel("turns", (count,), nest([i], store(count, i, i * 1000 + 7))), (Walk("i", programs),))
    out = np.full(turns, -1, np.int64)
    interpret(kernel, [out], {"m": turns})
    assert (out == np.arange(turns) * 1000 + 7).all()
    if known and turns <= programs:
        return
    (loop,) = kernel.body
    for program in range(min(turns, programs)):
        mine = np.full(turns, -1, np.int64)
        interpret(Kernel("program", (count,), _at(loop, program)), [mine], {"m": turns})
        assert np.flatnonzero(mine >= 0).tolist() == list(range(program, turns, programs))


WALKED = ("linear gelu bf16", "matmul f32", "linear_int8 u8")


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(WALKED), st.sampled_from([1, 16, 32]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 150))
def test_few_programs_give_the_very_bits_of_many(kind: str, height: int, group: int, programs: int, m: int) -> None:
    results = []
    for most in (0, programs):
        module = traced(kind)
        PassManager(pipelines.gpu()).run(module)
        choice = BlockChoice(height, 64, 32, 4, 2, group, programs=most)
        key = f"gpu_{kind.split()[0]}", DType[kind.split()[-1]], N, K
        table: dict[ScheduleKey, Choice] = {ScheduleKey(*key, rows): choice for rows in (1, 32, 128, None)}
        (run,) = interpret_modules([module], SMALL, table)
        assert any("tl.range(" in e.text for e in run.emitted) == bool(most)
        results.append(run(drawn(traced(kind), m), {"m": m})[0])
    assert results[0].tobytes() == results[1].tobytes()


def test_large_tiles_of_a_hopper_are_made_by_a_program_for_each_core() -> None:
    def programs(target: str, n: int, k: int, rows: int | None, light: bool = True) -> int:
        product = BlockProduct((), (symbol("m"),), n, k, bf16, "gpu_linear")
        choice = product.choose(machine_of(TARGETS[target]), {}, rows, Behind(light=light)).choice
        assert isinstance(choice, BlockChoice)
        return choice.programs

    assert programs("cuda:sm_90", 4096, 4096, None) == 132
    assert programs("cuda:sm_90", 4096, 4096, 16384) == 132
    assert programs("cuda:sm_90", 4096, 4096, None, light=False) == 0  # no registers left
    assert programs("cuda:sm_90", 4100, 4096, None) == programs("cuda:sm_90", 4096, 4100, None) == 0  # masks
    assert programs("cuda:sm_90", 4096, 1024, None) == 0  # there are two programs on a core
    assert programs("cuda:sm_90", 4096, 4096, 32) == programs("cuda:sm_80", 4096, 4096, None) == programs("rocm:gfx942", 4096, 4096, None) == 0


def test_what_stands_behind_a_product_is_light_or_not() -> None:
    def light(f: Callable[..., tfir.Tensor], *more: tfir.TensorType) -> bool:
        module = tfir.trace(f, bf16["m", 2048], bf16[256, 2048], bf16[256], *more)
        PassManager(pipelines.gpu()).run(module)
        chosen = lower_function(module, module.main, BlockMachine()).calls[-1].schedule
        assert chosen is not None and isinstance(chosen.choice, BlockChoice)
        return chosen.choice.programs > 0

    assert light(F.linear) and light(lambda x, w, b: F.relu(F.linear(x, w, b)) * 0.5)
    assert light(lambda x, w, b: F.gelu(F.linear(x, w, b)))
    assert not light(lambda x, w, b, r: F.linear(x, w, b) + r, bf16["m", 256])
    assert not light(lambda x, w, b: F.linear(x, w, b).reshape(x.shape[0], 4, -1).transpose(1, 0, 2))
