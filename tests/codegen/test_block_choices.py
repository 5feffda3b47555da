"""Choices for GPUs: what a chip cannot follow is refused, what lies next to a choice can be followed, and attention is right whatever is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="pip install triton")

from accuracy import differs
from test_triton_attention import BOUND, Form
from triton_harness import interpret_modules

from trustformers_ir.codegen.lower import block_products, grouped
from trustformers_ir.codegen.lower.block_choices import misfit, neighbours
from trustformers_ir.codegen.lower.block_products import fitted
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.flash_tiles import TILES
from trustformers_ir.codegen.triton.build import machine_of
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.schedule_table import TABLE, BlockChoice, Choice, FlashChoice, ScheduleKey, TileChoice

bf16, f16, f32, f64, i8 = DType.bf16, DType.f16, DType.f32, DType.f64, DType.i8
HOPPER = BlockMachine()
MACHINES = [pytest.param(machine_of(t), id=name) for name, t in TARGETS.items()]
MANY = ScheduleKey("gpu_linear", bf16, 4096, 4096, None)
ONE = replace(MANY, rows=1)
HEADS = ScheduleKey("gpu_attention", bf16, 128, 128)


@pytest.mark.parametrize(
    ("key", "choice", "reason"),
    [
        (MANY, TileChoice(8, 48, 64), "it is a choice for CPUs"),
        (MANY, FlashChoice(64, 64, 4, 2), "no choice for gpu_linear"),
        (HEADS, BlockChoice(64, 64, 64, 4, 2), "no choice for gpu_attention"),
        (MANY, BlockChoice(64, 64, 64, 32, 2), "64 threads are more than the 1024"),
        (MANY, BlockChoice(1, 4, 1024, 4, 2), "for products of one row"),
        (MANY, BlockChoice(8, 64, 64, 4, 2), "at least"),
        (MANY, BlockChoice(256, 256, 64, 4, 2), "sums, and has 255 registers"),
        (ONE, BlockChoice(1, 128, 1024, 4, 2), "products, and has 255 registers"),
        (MANY, BlockChoice(128, 256, 128, 16, 8), "bytes, and a program has 65536 of shared memory"),
        (replace(MANY, dtype=f64), BlockChoice(32, 16, 16, 4, 2), "without matrix instructions"),
        (HEADS, FlashChoice(8, 64, 4, 2), "16 queries and keys"),
        (HEADS, FlashChoice(512, 512, 4, 2), "scores or results"),
        (HEADS, FlashChoice(64, 128, 4, 5), "shared memory"),
        (MANY, BlockChoice(64, 64, 64, 4, 2), None),
        (ONE, BlockChoice(1, 4, 1024, 4, 2), None),
        (HEADS, FlashChoice(64, 64, 4, 2), None),
    ],
)
def test_what_a_chip_cannot_follow(key: ScheduleKey, choice: Choice, reason: str | None) -> None:
    found = misfit(machine_of(TARGETS["rocm:gfx942"]), key, choice)
    assert found is None if reason is None else found is not None and reason in found


def keys() -> list[ScheduleKey]:
    sizes = [(n, k) for n in (64, 384, 4096, 14336, None) for k in (48, 1024, 14336, None)]
    products = [ScheduleKey("gpu_linear", d, n, k, rows) for d in (f16, f32, f64, i8) for n, k in sizes for rows in (1, 32, 320, None)]
    return products + [ScheduleKey("gpu_linear_blocks", d, 4096, 4096, rows, 32) for d in (bf16, f32) for rows in (1, 16, 32, 64, None)]


def heuristic(machine: BlockMachine, key: ScheduleKey) -> BlockChoice:
    make = grouped.heuristic if key.panel else block_products.heuristic
    return fitted(make(machine, key), key)


@pytest.mark.parametrize("machine", MACHINES)
def test_neighbours(machine: BlockMachine) -> None:
    """The choice of the heuristic is one that its chip can follow; so are those beside it, and there are some wherever a choice is free."""
    for key in keys():
        first = heuristic(machine, key)
        assert misfit(machine, key, first) is None, key
        found = neighbours(machine, key, first)
        assert first not in found and len(set(found)) == len(found)
        assert len(found) >= (1 if key.dtype is f64 or (key.n or 0) < 16 else 4), key
        for c in found:
            assert isinstance(c, BlockChoice) and misfit(machine, key, c) is None and fitted(c, key) == c
            assert (c.parts > 1) <= (key.rows is not None)
    for most, *tiles in TILES[machine.kind]:
        for panel, tile in zip((0, 8), tiles, strict=True):
            key = ScheduleKey("gpu_attention", bf16, most, most, None, panel)
            flash = FlashChoice(tile.queries, tile.keys, tile.launch.warps, tile.launch.stages)
            assert misfit(machine, key, flash) is None, key
            around = [c for c in neighbours(machine, key, flash) if isinstance(c, FlashChoice)]
            assert len(around) >= 3 and (not panel or {c.queries for c in around} == {flash.queries})


FORMS = {
    "causal": Form(causal=True),
    "padding": Form(mask="padding", features=(16, 32)),
    "window": Form(causal=True, window=20),
    "few": Form(heads=(4, 2), lengths=(3, "t")),
    "f32": Form(dtype=f32, causal=True),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("tile", [(16, 64), (64, 16), (32, 128), (128, 32)])
def test_attention_is_right_whatever_is_chosen(name: str, tile: tuple[int, int]) -> None:
    form = FORMS[name]
    few = form.lengths[0] == 3
    key = ScheduleKey("gpu_attention", form.dtype, *form.features, 16 if few else None, 2 if few else 0)
    choice = FlashChoice(*tile, 4, 2)
    (run,) = interpret_modules([form.module()], HOPPER, {key: choice})
    chosen = [c.schedule for c in run.program.calls if c.schedule is not None]
    assert {(c.key, c.choice, c.origin) for c in chosen} == {(key, replace(choice, queries=16) if few else choice, TABLE)}
    batch, s, t = 1, 3 if few else 70, 300 if few else 77 if not form.causal else 70
    arrays = form.inputs(batch, s, t)
    dims = {"b": batch, "s": s, "t": t}
    (found,) = run(arrays, dims)
    assert not differs(found, evaluate(form.module(), *arrays, dims=dims), BOUND[form.dtype]).any()
