"""Kernels that wait for memory: several short rows in a program, whole rows, parts of long ones, columns side by side, and loads of 16 bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("triton", reason="pip install triton")

from accuracy import differs, ulp, wide
from triton_harness import interpret_modules

import trustformers_ir as tfir
from trustformers_ir.codegen.lower.blocks import SHORT, BlockMachine
from trustformers_ir.codegen.triton.build import lower
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

KINDS: Mapping[str, Callable[..., Any]] = {
    "layer norm": lambda x, w: F.layer_norm(x, w, w),
    "rms norm": F.rms_norm,
    "softmax of sums": lambda x, w: F.softmax(x + w),
    "log softmax": lambda x, w: F.log_softmax(x * w),
    "sum and largest": lambda x, w: ((x * w).sum(-1), x.max(-1)),
    "first largest": lambda x, w: (x + w).argmax(-1),
    "sum and its norm": lambda x, w: (s := x + w, F.rms_norm(s, w)),
    "mean, kept": lambda x, w: x * w - x.mean(-1, keepdim=True),
}


def fused(module: Module) -> Module:
    PassManager(pipelines.gpu()).run(module)
    return module


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    lead=st.sampled_from([(1,), (5,), (33,), (70,), (2, 3), (3, 37), (2, 1, 9)]),
    length=st.sampled_from([1, 2, 7, 16, 31, 64, 100, 129, 384, 700, 1025, 2049]),
    dtype=st.sampled_from([DType.bf16, DType.f16, DType.f32, DType.f64]),
    known=st.booleans(),
)
def test_rows_of_any_number_and_length(kind: str, lead: tuple[int, ...], length: int, dtype: DType, known: bool) -> None:
    """As the reference has it, whether the number of rows is known or not. With one core no number of rows is too small to share a program."""
    compare(KINDS[kind], (*lead, length), (length,), dtype, range(0 if known else len(lead)))


COLUMNS: Mapping[str, Callable[..., Any]] = {
    "mean": lambda x, w: (x + w).mean(1),
    "largest": lambda x, w: x.max(1),
    "where the largest is": lambda x, w: (x + w).argmax(1),
    "softmax": lambda x, w: F.softmax(x * w, 1),
    "variance": lambda x, w: x.var(1) + w,
    "product": lambda x, w: x.prod(0),
    "of the first": lambda x, w: x.sum(0) * w,
    "of two": lambda x, w: x.sum((0, 1)) - w,
    "distance": lambda x, w: x - x.mean(1, keepdim=True),
}


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(sorted(COLUMNS)),
    batch=st.sampled_from([1, 3]),
    height=st.sampled_from([1, 2, 31, 70, 128, 129, 300]),
    width=st.sampled_from([1, 3, 16, 63, 130, 1030]),
    dtype=st.sampled_from([DType.bf16, DType.f32, DType.f64]),
    open_dims=st.sampled_from([(), (0,), (1,), (2,), (0, 1, 2)]),
)
def test_columns_of_any_number_and_height(kind: str, batch: int, height: int, width: int, dtype: DType, open_dims: tuple[int, ...]) -> None:
    """What is folded along another axis than the last: neighbouring columns share a program, parts of their height are added up."""
    compare(COLUMNS[kind], (batch, height, width), (1,) if 2 in open_dims else (width,), dtype, open_dims)


def compare(network: Callable[..., Any], shape: tuple[int, ...], other: tuple[int, ...], dtype: DType, open_dims: Iterable[int]) -> None:
    """The network of an array of that shape and of another, on blocks, against the reference; sizes of ``open_dims`` are known at the call alone."""
    dims = {f"d{n}": shape[n] for n in open_dims}
    module = tfir.trace(network, dtype[tuple(f"d{n}" if f"d{n}" in dims else size for n, size in enumerate(shape))], dtype[other])
    rng = np.random.default_rng(math.prod(shape))
    arrays = [(rng.standard_normal(s) * 0.5 + 1).astype(dtype.numpy) for s in (shape, other)]
    wanted = tfir.evaluate(module, *arrays)
    (run,) = interpret_modules([fused(module)], BlockMachine(cores=1))
    got = run(arrays, dims)
    for g, w in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        if g.dtype.kind == "i":
            assert (g == w).all()
            continue
        working = 2.0 ** (-52 if dtype is DType.f64 else -23)
        steps = 2.0 * ulp(wide(w), dtype) + 8 * working * (1 + np.abs(np.where(np.isfinite(w), wide(w), 0)).max())
        assert not differs(g, w, steps).any()


def launched(length: Any, machine: BlockMachine, rows: Any = "rows", dtype: DType = DType.bf16) -> tuple[int, int]:
    """Rows of a program and its warps, for a softmax."""
    code = lower(fused(tfir.trace(F.softmax, dtype[rows, length])), TARGETS["cuda:sm_90"], machine)
    (call,) = code.calls.values()
    found = re.search(r"pid = .*\n\s+(\w+) = pid\n\s+r(\d+) = .*\n\s+t = \1 \*", code.text("triton"))
    return int(found[2]) if found else 1, call.launch.warps


def test_how_many_rows_a_program_takes() -> None:
    """As many as make 2048 elements; a row of 4096 and more has 16 elements in each thread, up to 16 warps."""
    machine = BlockMachine()
    found = {length: launched(length, machine) for length in (16, 128, 384, 1024, 2048, 4096, 8192, 14336, 128256)}
    several = {length: (SHORT // block, 4) for length, block in ((16, 16), (128, 128), (384, 512), (1024, 1024), (2048, 2048))}
    assert found == several | {4096: (1, 8), 8192: (1, 16), 14336: (1, 16), 128256: (1, 8)}
    assert launched("length", machine) == (1, 4)
    assert launched(128, machine, rows=8192) == (16, 4) and launched(128, machine, rows=1024) == (8, 4) and launched(128, machine, rows=100) == (1, 4)
    assert launched(16384, machine, dtype=DType.f64) == (1, 8)  # in parts: two registers for each number


def test_a_long_row_is_read_once() -> None:
    for length, reads in ((14336, 1), (16384, 1), (16385, 3)):
        text = lower(fused(tfir.trace(F.softmax, DType.bf16["rows", length])), TARGETS["cuda:sm_90"]).text("triton")
        assert text.count("tl.load(") == reads


def test_both_sides_of_a_condition_load_once() -> None:
    module = fused(tfir.trace(lambda x, y: F.where(x > 0, y * 2, y - 1), DType.f32["n"], DType.f32["n"]))
    text = lower(module, TARGETS["cuda:sm_90"]).text("triton")
    assert text.count("tl.load(in1") == 1


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f32], ids=str)
def test_loads_and_stores_take_16_bytes(dtype: DType) -> None:
    """Every access to what is as large as the result: elementwise, rows that share a program, a row of many warps, rotary positions."""
    x, w, angles = dtype["rows", 1024], dtype[1024,], dtype["rows", 64]
    works = {
        "elementwise": tfir.trace(lambda x, w: F.gelu(x + w), x, w),
        "rows": tfir.trace(F.layer_norm, x, w, w),
        "long row": tfir.trace(F.softmax, dtype["rows", 8192]),
        "rope": tfir.trace(F.rope, dtype["batch", 8, "rows", 128], angles, angles),
    }
    for name, module in works.items():
        (binary,) = lower(fused(module), TARGETS["cuda:sm_90"]).binaries()
        accesses = re.findall(r"\b(?:ld|st)\.global\.(?:\w+\.)*?(v\d\.)?[bf](\d+)", binary.assembly)
        assert accesses and {(v, bits) for v, bits in accesses} <= {("v4.", "32"), ("v2.", "32")}, name
        assert ("v4.", "32") in accesses and not binary.spilled, name
