"""Codes of rows: one kernel, alone or behind the norm that makes the rows; the bits of the reference on every kind of machine."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from codegen_harness import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lowering_harness import Runner, compile_modules
from test_lowering_conformance import ISAS

from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.llvm.emit import emit_kernel
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import PassManager

f32 = DType.f32
WIDTHS = (1, 3, 16, 37, 100, 128)  # 128: four parts of a row side by side


def codes(columns: int, norm: Any = None, residual: bool = False, fuse: bool = True, rank: int = 2) -> Module:
    """Codes of rows of that many columns, of their norm, or of the norm of a sum; the normed rows are results as well."""
    module = Module("codes", Facts({"n": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    shape = f32[(*("n", 2)[: rank - 1], columns)]
    y = block.add_arg(shape, "x")
    if residual:
        y = build(ops.Add(), y, block.add_arg(shape, "r"))
    if norm is not None:
        y = build(norm, y, block.add_arg(f32[columns], "w"), *([block.add_arg(f32[columns], "b")] if isinstance(norm, ops.LayerNorm) else []))
    results = build.create(ops.QuantizeDynamic(), y).results
    build.create(ops.Return(), *results, *([] if norm is None else [y]))
    if fuse:
        PassManager([Fuse()], verify=True).run(module)
    return module


@functools.cache
def runner(isa: str, columns: int, norm: Any = None, residual: bool = False, fuse: bool = True) -> Runner:
    return compile_modules([codes(columns, norm, residual, fuse)], isa)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", WIDTHS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_rows(isa: str, columns: int, data: st.DataObject) -> None:
    """All floats there are: zeros of both signs, subnormals, the largest, infinities, NaN."""
    x = data.draw(arrays(np.float32, (data.draw(st.integers(1, 4)), columns), elements=st.floats(width=32)))
    got = runner(isa, columns)([x], {"n": len(x)}, workers=data.draw(st.integers(1, 3)))
    for a, b in zip(got, evaluate(codes(columns), x), strict=True):
        assert same_bits(a, b), f"{a} is not {b}"


def test_the_kernel_by_the_interpreter() -> None:
    x = np.random.default_rng(0).standard_normal((3, 37)).astype(np.float32)
    (call,) = runner("host", 37).program.calls
    found = [np.zeros_like(a) for a in evaluate(codes(37), x)]
    arrays_of = {"in0": x, **{f"out{i}": a for i, a in enumerate(found)}}
    interpret(call.kernel, [arrays_of[b.name] for b in call.kernel.params], {"n": 3})
    for a, b in zip(found, evaluate(codes(37), x), strict=True):
        assert same_bits(a, b)


NORMS = [ops.LayerNorm(1e-12), ops.RmsNorm()]


@pytest.mark.parametrize("norm", NORMS, ids=["layer", "rms"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("columns", [16, 37, 128])
def test_codes_of_a_norm(norm: Any, residual: bool, columns: int) -> None:
    """One kernel makes norm and codes; its results have the bits of two kernels, whatever the machine and the workers."""
    rng = np.random.default_rng(columns)
    given = [rng.standard_normal((5, columns)).astype(np.float32) for _ in range(1 + residual)]
    given += [rng.standard_normal(columns).astype(np.float32) for _ in range(2 if isinstance(norm, ops.LayerNorm) else 1)]
    given[0][3] = np.nan
    apart = runner("host", columns, norm, residual, fuse=False)(given, {"n": 5})
    for isa in ISAS:
        together = runner(isa, columns, norm, residual)
        assert len(together.program.calls) == 1
        for workers in (1, 2, 3):
            for a, b in zip(together(given, {"n": 5}, workers), apart, strict=True):
                assert same_bits(a, b), f"on {isa}"


@pytest.mark.parametrize(("columns", "parts"), [(100, 1), (128, 4)])
def test_both_ends_of_a_row_are_found_in_one_loop(columns: int, parts: int) -> None:
    (call,) = runner("host", columns).program.calls
    text = emit_kernel(call.kernel, ["n"], "k", {"n": (1, None, 1)}).text
    assert text.count("phi <16 x float>") == 2 * 2 * parts  # two rows side by side
    assert text.count("call <16 x float> @llvm.fma") == (4 if columns % 16 else 2)  # of the codes: whole vectors and the rest
    assert sum(line.startswith("loop") for line in text.splitlines()) == 3  # pairs of rows; their ends; their codes


@pytest.mark.parametrize("rank", [1, 3])
def test_ranks(rank: int) -> None:
    """A single row, and rows of rows."""
    module = codes(20, rank=rank)
    x = np.random.default_rng(rank).standard_normal((3, 2, 20)[3 - rank :] if rank > 1 else 20).astype(np.float32)
    (run,) = compile_modules([codes(20, rank=rank)])
    for a, b in zip(run([x], {"n": 3}), evaluate(module, x), strict=True):
        assert same_bits(a, b)
