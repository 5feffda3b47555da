"""Products by chosen matrices in blocks: rows of one matrix together give the bits of each row by itself, on every kind of machine."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_harness import Runner, compile_modules
from test_blocks_int8 import GROUPS, SIZES, planes_of
from test_lowering_conformance import ISAS

import trustformers_ir as tfir
from trustformers_ir.codegen.llvm.compile import compile_assembly
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import parse
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.schedules import MachineShape
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import FORMATS, PLANES, Format
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.types import Panels, TensorType

f32, i64, u8 = DType.f32, DType.i64, DType.u8
COUNT = 5


@functools.cache
def product(format: Format, n: int, k: int, chosen: int = 2, residual: bool = True) -> Module:
    """What a model has: codes of tokens, a product of each by several matrices, a sum. ``chosen`` = 0: one matrix, without an axis."""
    row, group = FORMATS[format], FORMATS[format].group or GROUPS[format]
    module = Module("product", Facts({"m": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    several: tuple[str | int, ...] = ("m", chosen) if chosen else ("m",)
    x = block.add_arg(f32[("m", 1, k) if chosen else ("m", k)], "x")
    planes = {}
    for name, shape in row.shapes(n, k, group).items():
        dtype = u8 if name == "codes" else row.planes[name].dtype
        planes[name] = block.add_arg(TensorType((COUNT, *shape), dtype, Panels(16, 4 if name == "codes" else 1)), name)
    experts = block.add_arg(i64[several], "experts")
    about = build.create(ops.QuantizeGroups(group), x).results
    y = build(ops.ExpertBlocksInt8(format, group), *about, *(planes.get(name) for name in PLANES), experts)
    build.create(ops.Return(), build(ops.Add(), y, block.add_arg(f32[(*several, n)], "r")) if residual else y)
    return module


@functools.cache
def runner(isa: str, format: Format, chosen: int) -> Runner:
    return compile_modules([product(format, *SIZES.get(format, (37, 96)), chosen)], isa)[0]


def stored(format: Format, n: int, k: int, seed: int) -> list[np.ndarray]:
    each = [planes_of(format, n, k, seed + e) for e in range(COUNT)]
    several = [np.stack([p for p in plane if p is not None]) for plane in zip(*each, strict=True) if plane[0] is not None]
    return [pack_panels(p, 16, 1 if i else 4) for i, p in enumerate(several)]


@pytest.mark.parametrize("format", [Format.Q4_0, Format.Q4_1, Format.Q8_0, Format.Q4_K, Format.Q6_K, Format.INT4_ZERO])
@settings(max_examples=6, deadline=None)
@given(
    m=st.integers(1, 40),
    chosen=st.sampled_from([0, 2]),
    kinds=st.integers(1, COUNT),
    seed=st.integers(0, 999),
    workers=st.integers(1, 3),
)
def test_any_rows_of_any_experts(format: Format, m: int, chosen: int, kinds: int, seed: int, workers: int) -> None:
    """Experts with no rows, with a few, with full tiles; all rows of one; columns that fill no vector; numbers of experts from the end."""
    n, k = SIZES.get(format, (37, 96))
    rng = np.random.default_rng(seed)
    several = (m, chosen) if chosen else (m,)
    x = rng.standard_normal((m, 1, k) if chosen else (m, k)).astype(np.float32)
    experts = rng.choice(COUNT, kinds, replace=False)[rng.integers(0, kinds, several)]
    experts = np.where(rng.random(several) < 0.3, experts - COUNT, experts)
    arrays = [x, *stored(format, n, k, seed), experts, rng.standard_normal((*several, n)).astype(np.float32)]
    with np.errstate(all="ignore"):
        want = evaluate(product(format, n, k, chosen), *arrays)
    for isa in ISAS:
        (got,) = runner(isa, format, chosen)(arrays, {"m": m}, workers)
        np.testing.assert_array_equal(got, want, err_msg=isa)


def test_a_row_has_the_same_bits_alone() -> None:
    n, k = 37, 96
    rng = np.random.default_rng(0)
    x, planes = rng.standard_normal((50, 1, k)).astype(np.float32), stored(Format.Q4_0, n, k, 3)
    experts, r = rng.integers(0, COUNT, (50, 2)), np.zeros((50, 2, n), np.float32)
    (together,) = runner("host", Format.Q4_0, 2)([x, *planes, experts, r], {"m": 50})
    for i in range(0, 50, 7):
        (alone,) = runner("host", Format.Q4_0, 2)([x[i : i + 1], *planes, experts[i : i + 1], r[:1]], {"m": 1})
        np.testing.assert_array_equal(together[i], alone[0])


@pytest.mark.parametrize(("isa", "instruction", "times"), [("cpu:avx512vnni", "vpdpbusd\t", 1), ("cpu:avx2", "vpmaddwd\t", 4)])
@pytest.mark.parametrize("format", [Format.Q4_0, Format.Q8_0])
def test_tiles_are_those_of_other_products_in_blocks(format: Format, isa: str, instruction: str, times: int) -> None:
    """For a tile of rows, and for a row alone: 8 of them for the 32 terms of a group. Rows are looked up in front of the loop over groups."""
    target = parse(isa)
    module = product(format, 64, 96, residual=False)
    calls = lower_function(module, module.main, MachineShape(registers=target.registers)).calls
    chosen = calls[-1].schedule
    assert chosen is not None and chosen.key.template == "linear_blocks_int8" and "rows by expert" in calls[-2].label
    assert calls[-2].flops == 0 != calls[-1].flops and not calls[-2].parallel and calls[-1].parallel
    text = module_text([emit_kernel(calls[-1].kernel, ["m"], "k", {"m": (1, None, 1)}, target.features)])
    found = [line for line in compile_assembly(text, target).splitlines() if instruction in line]
    rows = chosen.choice.rows  # type: ignore[union-attr]
    assert len(found) == 8 * times * (rows + 1)
    assert text.count("cmpxchg") <= 3 * 2 * (rows + 1)  # of token, choice and matrix: in a tile, and for a row; none of them for each group


def test_a_matrix_that_is_not_there_is_an_error() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((COUNT, 64, 32)).astype(np.float32), rng.standard_normal((9, 1, 64)).astype(np.float32)
    module = tfir.trace(lambda x, e: F.expert_matmul(x, F.tensor(w), e), f32["m", 1, 64], i64["m", 2])
    exe = tfir.compile(module, quantize="q4_0{heads=true}")
    assert "expert_blocks_int8" in str(exe.module)
    experts = np.full((9, 2), 1)
    exe(x, experts)
    experts[4, 1] = COUNT
    with pytest.raises(CompilerError, match=f"expert is {COUNT}, out of range of a size of {COUNT}"):
        exe(x, experts)
