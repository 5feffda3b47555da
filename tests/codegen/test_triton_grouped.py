"""Products by weights in blocks on GPUs: one result whatever kernel serves a number of rows, codes that are never rounded, four of them taken apart
at a time on NVIDIA's, and machine code for every format without spilled registers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from accuracy import check_case
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="pip install triton")

from triton_harness import holds, interpret_modules

from trustformers_ir.codegen.kernel_ir.nodes import Const
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.triton.build import lower
from trustformers_ir.codegen.triton.optable import NVIDIA
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import FORMATS, PLANES, Format
from trustformers_ir.ir.conformance import Case, make_case
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import BlockChoice, Choice, ScheduleKey
from trustformers_ir.ir.schema import Sample
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

f32, f16, bf16 = DType.f32, DType.f16, DType.bf16
ROWS = (1, 5, 16, 17, 33, 65, 130)
KINDS = {
    "int4 bf16": (Format.INT4, bf16, 40, 384, 128),
    "int4_zero f16": (Format.INT4_ZERO, f16, 24, 256, 64),
    "q4_0 bf16": (Format.Q4_0, bf16, 20, 160, 0),
    "q4_k f16": (Format.Q4_K, f16, 20, 512, 0),
    "q6_k bf16": (Format.Q6_K, bf16, 20, 256, 0),
    "q8_0 f16": (Format.Q8_0, f16, 33, 96, 0),
    "int4 f32": (Format.INT4, f32, 20, 128, 32),
}


def product(kind: str, rows: int | str, columns: int = 0, terms: int = 0) -> Sample:
    format, dtype, n, k, group = KINDS[kind]
    n, k = columns or n, terms or k
    row = FORMATS[format]
    shapes = row.shapes(n, k, group)
    planes = [TensorType(shapes[p], row.planes[p].dtype) if p in shapes else None for p in PLANES]
    low = {"codes": -32 if format is Format.Q6_K else -128, "low": 0 if format is Format.INT4_ZERO else -2, "steps": -3, "low_steps": 0}
    high = {"codes": 31 if format is Format.Q6_K else 255, "low": 15 if format is Format.INT4_ZERO else 2, "steps": 3, "low_steps": 3}
    return Sample(ops.LinearBlocks(format, row.group or group), (dtype[rows, k], *planes, dtype[n]), low, high)


def module_of(case: Case) -> Module:
    module = case.module()
    PassManager(pipelines.gpu()).run(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_one_kernel_serves_each_number_of_rows(kind: str) -> None:
    sample = product(kind, "m")
    (run,) = interpret_modules([module_of(make_case(sample))])
    seen = set()
    for rows in ROWS:
        case = make_case(sample, dims={"m": rows})
        (called,) = (n for n, c in enumerate(run.program.calls) if holds(c.when, {"m": rows}))
        seen.add(called)
        check_case(case, run(case.inputs, case.dims), blocks=True)
    assert seen == set(range(len(run.program.calls))) and len(seen) == (1 if "f32" in kind else 4)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_tile_gives_the_same_product(data: st.DataObject) -> None:
    """A table may choose whatever it likes."""
    sizes = st.sampled_from([16, 32, 64, 128])
    terms, programs = data.draw(st.sampled_from([16, 128, 256, 1024])), data.draw(st.integers(0, 3))
    choice = BlockChoice(data.draw(sizes), data.draw(sizes), terms, 4, 2, 1, programs=programs)
    kind, rows = data.draw(st.sampled_from(sorted(KINDS))), data.draw(st.integers(1, 70))
    case = make_case(product(kind, rows))
    module = module_of(case)
    (call,) = lower_function(module, module.main, BlockMachine()).calls
    assert call.schedule is not None
    table: dict[ScheduleKey, Choice] = {call.schedule.key: choice}
    (run,) = interpret_modules([module_of(case)], table=table)
    check_case(case, run(case.inputs, case.dims), blocks=True)


# --- codes -----------------------------------------------------------------------------------------------------------------------------------


def text_of(kind: str, target: str = "cuda:sm_90", rows: int | str = "m") -> str:
    return lower(module_of(make_case(product(kind, rows, 4096, 4096))), TARGETS[target]).text("triton")


@pytest.mark.parametrize("kind", [k for k in KINDS if "f32" not in k])
def test_matrix_instructions_take_codes_as_they_are(kind: str) -> None:
    """Both factors have 16 bits, and no weight was multiplied by a scale before."""
    text = text_of(kind)
    dots = re.findall(r"tl\.dot\((.*)", text)
    assert dots and not any("ieee" in d for d in dots)
    assert all(re.match(r"(low_bits|high_bits|small|tl\.cast)\(", d) for d in dots)
    row = FORMATS[KINDS[kind][0]]
    assert ("low_bits(" in text) == (row.paired and row.group != 16)


def test_other_gpus_take_codes_apart_one_by_one() -> None:
    assert "inline_asm" in text_of("int4 bf16") and "inline_asm" not in text_of("int4 bf16", "rocm:gfx942")


def emulated(asm: str, word: int) -> list[int]:
    """What PTX computes of a word (PTX ISA: and, shr, prmt), as two words of 32 bits."""
    known = {"$2": word}

    def number(text: str) -> int:
        return known[text] if text in known else int(text, 0)

    for name, target, *operands in re.findall(r"(and|shr|prmt)\.b32 (\S+), (\S+), (\S+?)(?:, (\S+?))?;", asm):
        a, b, *rest = (number(o) for o in operands if o)
        if name == "prmt":
            bytes = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
            known[target] = int.from_bytes(bytearray(bytes[rest[0] >> 4 * i & 7] for i in range(4)), "little")
        else:
            known[target] = a & b if name == "and" else a >> b
    return [known["$0"], known["$1"]]


@pytest.mark.parametrize("name", ["low_bits", "high_bits"])
@pytest.mark.parametrize("dtype", [bf16, f16])
def test_four_codes_at_a_time(name: str, dtype: DType) -> None:
    """Each byte gives 128 (bf16) or 1024 (f16) and its half, in order."""
    asm = next(line for line in NVIDIA[name].splitlines() if f"dtype=tl.{'bfloat16' if dtype is bf16 else 'float16'}" in line)
    rng = np.random.default_rng(0)
    for word in (0, 0xFFFFFFFF, 0x01234567, 0x89ABCDEF, *map(int, rng.integers(0, 2**32, 200))):
        made = np.array(emulated(asm, word), np.uint32).view(np.uint16).view(dtype.numpy).astype(np.float64)
        bytes = np.array([word], np.uint32).view(np.uint8)
        assert made.tolist() == [(128 if dtype is bf16 else 1024) + int(b & 15 if name == "low_bits" else b >> 4) for b in bytes]


# --- machine code ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "rocm:gfx942"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_compiles_for_every_number_of_rows(kind: str, target: str) -> None:
    code = lower(module_of(make_case(product(kind, "m", 4096, 4096))), TARGETS[target])
    for call, binary in zip(code.calls.values(), code.binaries(), strict=True):
        assert binary.spilled == 0 and binary.shared <= TARGETS[target].shared, call.when
        assert binary.matrix_instructions or KINDS[kind][1] is f32 or "parts added up" in call.label, call.when


def test_few_rows_have_a_program_for_sixteen_columns() -> None:
    """There are programs enough for all cores where columns are few, and each warp has terms of its own."""
    for columns, wanted in ((4096, 16), (28672, 32)):
        code = lower(module_of(make_case(product("int4 bf16", 1, columns, 4096))), TARGETS["cuda:sm_90"])
        (call,) = code.calls.values()
        assert call.schedule is not None and isinstance(call.schedule.choice, BlockChoice)
        assert call.schedule.choice.columns == wanted
        (e,) = code.emitted
        assert isinstance(e.programs, Const) and e.programs.value == columns // wanted
