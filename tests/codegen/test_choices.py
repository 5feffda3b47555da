"""Schedules as data: whatever a table chooses, the code has the bits of the heuristic's; what a machine cannot follow is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_harness import Runner, compile_modules
from test_lowering_conformance import ISAS

import trustformers_ir as tfir
from trustformers_ir.codegen.build import build, find_target, machine_shape
from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.lower.schedules import MachineShape, heuristic, misfit, panel_bytes
from trustformers_ir.codegen.program import Storage
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.schedule_table import (
    TABLE,
    TEMPLATES,
    AttentionChoice,
    Choice,
    ScheduleKey,
    ScheduleTable,
    TileChoice,
    TunedEntry,
    row_choice,
    row_key,
)
from trustformers_ir.ir.types import Panels, TensorType
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.passes.recipes import find_recipe
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tuner import neighbours

f32, bf16, i8, i32, u8 = DType.f32, DType.bf16, DType.i8, DType.i32, DType.u8
BOTH = [isa for isa in ISAS if isa in ("cpu:avx2", "cpu:avx512vnni")]
SIZES = (1, 2, 7, 17, 35)  # of the rows: fewer than a tile, and more than two
N, K = 100, 38  # a last panel that is not full, a number of terms that is no multiple of four

# --- the products and the attention that are tried ---------------------------------------------------------------------------------------


def _module(types: list[TensorType], make: Any) -> Module:
    module = Module("m", Facts({"m": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    builder = Builder(module, block)
    builder.create(ops.Return(), make(builder, *(block.add_arg(t, f"x{i}") for i, t in enumerate(types))))
    PassManager([Fuse()]).run(module)
    return module


def _kinds(panel: int) -> dict[str, tuple[list[TensorType], Any]]:
    def attention(b: Builder, q: Any, k: Any, v: Any) -> Any:
        return b(ops.Attention(), q, k, v, None, None)

    codes = [u8["m", K], f32["m", 1], i32["m", 1], TensorType((N, K), i8, Panels(panel, 4)), f32[N], i32[N], f32[N]]
    return {
        "linear": ([f32["m", K], TensorType((N, K), f32, Panels(panel)), f32[N]], lambda b, *x: b(ops.Linear(), *x)),
        "linear bf16 + gelu": ([bf16["m", K], TensorType((N, K), bf16, Panels(panel)), bf16[N]], lambda b, *x: b(ops.Gelu(), b(ops.Linear(), *x))),
        "linear_int8": (codes, lambda b, *x: b(ops.LinearInt8(), *x)),
        "matmul": ([f32[2, "m", K], f32[2, K, N]], lambda b, *x: b(ops.MatMul(), *x)),
        "attention": ([f32[1, 2, "m", 20], f32[1, 2, 70, 20], f32[1, 2, 70, 24]], attention),
    }


def module(kind: str, panel: int) -> Module:
    types, make = _kinds(panel)[kind]
    return _module(types, make)


@functools.cache
def inputs(kind: str, panel: int, m: int) -> list[np.ndarray]:
    rng = np.random.default_rng(m)
    arrays = []
    for t in _kinds(panel)[kind][0]:
        shape = [m if d == SYMBOL else int(d) for d in t.shape]  # type: ignore[call-overload]
        numbers = rng.integers(-100, 100, shape) if t.dtype.is_integer else rng.normal(size=shape)
        array = np.asarray(np.abs(numbers) if t.dtype is u8 else numbers).astype(t.dtype.numpy)
        arrays.append(pack_panels(array, t.layout.width, t.layout.depth) if isinstance(t.layout, Panels) else array)
    return arrays


SYMBOL = f32["m"].shape[0]


@functools.cache
def expected(kind: str, isa: str, panel: int) -> tuple[ScheduleKey, list[bytes]]:
    """The key of the kernel, and its results with the heuristic's choice at every size."""
    (runner,) = compile_modules([module(kind, panel)], isa)
    key = chosen(runner).key
    return key, [runner(inputs(kind, panel, m), {"m": m})[0].tobytes() for m in SIZES]


def chosen(runner: Runner) -> Any:
    (found,) = [c.schedule for c in runner.program.calls if c.schedule is not None]
    return found


def choices(machine: MachineShape, key: ScheduleKey) -> st.SearchStrategy[Choice]:
    """Any choice that the machine can follow."""
    most = machine.registers
    if TEMPLATES[key.template] is AttentionChoice:
        free: st.SearchStrategy[Choice] = st.builds(AttentionChoice, st.integers(1, 4), st.integers(1, min(most, 16)))
    else:
        rows, block = st.integers(1, min(most, 32)), st.integers(1, 300)

        def tiles(columns: int) -> st.SearchStrategy[Choice]:
            ahead = st.one_of(st.just(0), st.integers(4, 1 << 20), st.just(panel_bytes(key, columns))) if key.panel else st.just(0)
            return st.builds(TileChoice, rows, st.just(columns), block, ahead)

        free = st.sampled_from([16, 32, 48, 64]).flatmap(tiles)
    return free.filter(lambda c: misfit(machine, key, c) is None)


# --- the proof -----------------------------------------------------------------------------------------------------------------------------


def try_choice(kind: str, isa: str, data: st.DataObject) -> None:
    panel = data.draw(st.sampled_from([16, 32, 48]), "panel")
    key, wanted = expected(kind, isa, panel)
    choice = data.draw(choices(machine_shape(find_target(isa)), key), "choice")
    (runner,) = compile_modules([module(kind, panel)], isa, tables=[{key: choice}])
    assert (chosen(runner).choice, chosen(runner).origin) == (choice, TABLE)
    for m, bits in zip(SIZES, wanted, strict=True):
        for workers in (1, 3):
            assert runner(inputs(kind, panel, m), {"m": m}, workers)[0].tobytes() == bits, f"{m} rows by {workers} workers"


@pytest.mark.parametrize("isa", BOTH)
@pytest.mark.parametrize("kind", _kinds(16))
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_choice_gives_the_bits_of_the_heuristic(kind: str, isa: str, data: st.DataObject) -> None:
    try_choice(kind, isa, data)


@pytest.mark.long
@pytest.mark.parametrize("isa", BOTH)
@pytest.mark.parametrize("kind", _kinds(16))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_many_choices_give_the_bits_of_the_heuristic(kind: str, isa: str, data: st.DataObject) -> None:
    try_choice(kind, isa, data)


@pytest.mark.parametrize("kind", ["linear", "linear_int8", "matmul"])
def test_scheduled_loops_mean_the_same(kind: str) -> None:
    """By the interpreter of kernel IR: the loops themselves, before any code is made of them."""
    m = SIZES[1]
    key, wanted = expected(kind, BOTH[0], 16)
    for choice in (TileChoice(5, 32, 7, 640 if key.panel else 0), TileChoice(9, 48, 300)):
        (runner,) = compile_modules([module(kind, 16)], "cpu:avx512", tables=[{key: choice}])
        (call,) = runner.program.calls
        assert call.schedule is not None and call.schedule.choice == choice
        given = inputs(kind, 16, m)
        result = np.zeros([2, m, N][kind != "matmul" :], np.float32)
        interpret(call.kernel, [given[int(r.key)] if r.storage is Storage.INPUT else result for r in call.arguments], {"m": m})
        assert result.tobytes() == wanted[1]


@pytest.mark.parametrize("isa", BOTH)
@pytest.mark.parametrize("recipe", [None, "int8"])
def test_a_whole_model_under_random_tables(isa: str, recipe: str | None) -> None:
    """Through passes, fusion and runtime: every product and attention of a small BERT gets another schedule."""
    target = find_target(isa)
    machine = machine_shape(target)
    found = find_recipe(recipe, None)
    base = random_model("random:bert?hidden_size=64&num_hidden_layers=1&num_attention_heads=2&intermediate_size=112&vocab_size=50")
    PassManager(pipelines.cpu(machine.panel, None if found is None else found.quantizer())).run(base)
    ids = np.arange(51).reshape(3, 17) % 50
    plain = build(clone_module(base), target)
    kernels = plain.report["schedules"]["kernels"]  # type: ignore[index]
    keys = {row_key(row): row_choice(row) for row in kernels.values()}
    assert {k.template for k in keys} == {"linear", "attention"} | ({"linear_int8"} if recipe else set())
    rng = np.random.default_rng(0)
    wanted = run(plain, ids)
    for _ in range(2):
        entries = []
        for key, first in keys.items():
            near = neighbours(machine, key, first)
            entries.append(TunedEntry(key, near[rng.integers(len(near))]))
        tuned = build(clone_module(base), target, table=ScheduleTable(target.kind, tuple(entries)))
        rows = tuned.report["schedules"]["kernels"].values()  # type: ignore[index]
        assert {row["from"] for row in rows} == {"table"} and {row_key(r): row_choice(r) for r in rows} == {e.key: e.choice for e in entries}
        assert all(a.tobytes() == b.tobytes() for a, b in zip(run(tuned, ids), wanted, strict=True))


def run(compiled: Any, ids: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(y) for y in Executable(compiled, 2)(ids))


# --- the heuristic, its neighbours, and what does not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [MachineShape(), MachineShape(8)])
@pytest.mark.parametrize(
    "key",
    [
        ScheduleKey("linear", f32, 768, 768, None, 48),
        ScheduleKey("linear", bf16, 20, 7, 3, 16),
        ScheduleKey("linear_int8", i8, 3072, 768, None, 16),
        ScheduleKey("matmul", f32, None, None),
        ScheduleKey("attention", f32, 64, 64, 197),
    ],
)
def test_the_heuristic_and_its_neighbours_fit(machine: MachineShape, key: ScheduleKey) -> None:
    assume_fits = key.panel in (0, machine.panel) or machine.panel % key.panel == 0
    first = heuristic(machine, key)
    assert not assume_fits or misfit(machine, key, first) is None
    near = neighbours(machine, key, first)
    assert near and first not in near and len(set(near)) == len(near)
    assert not [c for c in near if misfit(machine, key, c)]


@pytest.mark.parametrize(
    ("key", "choice", "reason"),
    [
        (ScheduleKey("linear", f32, 96, 8, None, 48), TileChoice(10, 48, 128), "holds 34 vector registers at once, and the target has 32"),
        (ScheduleKey("linear", f32, 96, 8, None, 48), TileChoice(4, 32, 128), "tiles of 32 columns do not fit panels of 48"),
        (ScheduleKey("matmul", f32, 96, 8), TileChoice(4, 32, 128, 64), "only packed weights are fetched ahead"),
        (ScheduleKey("linear", f32, 96, 8, None, 48), TileChoice(4, 48, 128, 3), "3 bytes ahead are less than an element"),
        (ScheduleKey("attention", f32, 32, 32), AttentionChoice(4, 7), "holds 33 vector registers at once"),
    ],
)
def test_what_does_not_fit_is_refused(key: ScheduleKey, choice: Choice, reason: str) -> None:
    target = find_target("cpu:avx512")
    module = tfir.trace(lambda x: x + 1, f32["n"])
    entries = (TunedEntry(key, choice), TunedEntry(ScheduleKey("attention", f32, 1, 1), AttentionChoice(1, 1)), TunedEntry(key, choice))
    with pytest.raises(CompilerError) as raised:
        build(module, target, table=ScheduleTable(target.kind, entries, "t.json"))
    assert [d.code for d in raised.value.diagnostics] == [Code.SCHEDULE_TABLE] * 2
    assert reason in str(raised.value) and "t.json" in str(raised.value)


@pytest.mark.parametrize("wrong", [(0, 16, 1), (33, 16, 1), (4, 24, 1), (4, 80, 1), (4, 16, 0), (4, 16, 1, -1)])
def test_no_tile_of_any_machine(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rows|columns|block|ahead"):
        TileChoice(*wrong)


def test_other_columns_keep_fetching_a_panel() -> None:
    """A distance of one panel means that the tiles share the fetching of the next one; among the neighbours of such a choice it stays one."""
    key = ScheduleKey("linear", f32, 768, 768, None, 16)
    first = heuristic(MachineShape(), key)
    assert isinstance(first, TileChoice) and first.ahead == panel_bytes(key, first.columns)
    near = [c for c in neighbours(MachineShape(), key, first) if isinstance(c, TileChoice) and c.columns != first.columns]
    assert {c.columns for c in near} == {16, 32, 64} and all(c.ahead == panel_bytes(key, c.columns) for c in near)
