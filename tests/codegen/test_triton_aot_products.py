"""Products whose sums are cut into parts, and those whose programs make one tile after the other, compiled for chips that need not be here: sums take
matrix instructions, nothing is spilled; a golden table. After a change that was meant:
``pytest tests/codegen/test_triton_aot_products.py --refresh``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton", reason="pip install triton")

from golden_table import check_golden
from test_triton_grouped import product as grouped
from test_triton_products import of_bytes

import trustformers_ir as tfir
from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.triton.aot import Wanted, compile_kernels
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.build import lower, machine_of
from trustformers_ir.codegen.triton.emit import emit
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.conformance import make_case
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import BlockChoice, ScheduleKey
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

NAMES = ("cuda:sm_80", "cuda:sm_90", "rocm:gfx942")


def of_floats(dtype: DType) -> Module:
    return tfir.trace(lambda x, w, b: F.gelu(F.linear(x, w, b)), dtype["m", 4096], dtype[1024, 4096], dtype[1024])


KINDS: dict[str, Callable[[], Module]] = {
    "bf16": lambda: of_floats(DType.bf16),
    "f32": lambda: of_floats(DType.f32),
    "int8": lambda: of_bytes("m", 1024, 4096),
    "int4": lambda: make_case(grouped("int4 bf16", "m", 512, 8192)).module(),  # of which 128 share a scale
}


def row(b: Binary) -> dict[str, Any]:
    return {"registers": b.registers, "shared": b.shared, "matrix": b.matrix_instructions}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.long] * (k != "bf16")) for k in KINDS])
def test_parts_compile_to_matrix_instructions(kind: str, pytestconfig: pytest.Config) -> None:
    found: dict[str, Any] = {}
    for target in NAMES:
        module = KINDS[kind]()
        module.facts.symbols["m"] = SymbolFact(low=2, high=64 if kind == "int4" else 128)
        PassManager(pipelines.gpu()).run(module)
        code = lower(module, TARGETS[target])
        for call, binary in zip(code.calls.values(), code.binaries(), strict=True):
            place = f"{kind}: {binary.name} {call.label} on {target}"
            assert binary.spilled == 0 and binary.shared <= TARGETS[target].shared, place
            adds_up = "parts added up" in call.label
            assert adds_up or (kind == "f32" and "cuda" in target) or binary.matrix_instructions, place
            found[place] = row(binary)
        assert sum("parts added up" in name and target in name for name in found) == len(code.calls) // 2, target
    check_golden("triton_products.json", f"{kind}: ", found, pytestconfig)


# --- one tile after the other --------------------------------------------------------------------------------------------------------------------


BF16 = DType.bf16
#: what stands behind the product, columns, terms
WALKS: dict[str, tuple[Callable[..., tfir.Tensor], int, int]] = {
    "plain": (F.linear, 4096, 4096),
    "gelu": (lambda x, w, b: F.gelu(F.linear(x, w, b)), 8192, 2048),
    "relu": (lambda x, w, b: F.relu(F.linear(x, w, b)) * 0.5, 6144, 4096),
}


def walking(kind: str) -> Module:
    f, n, k = WALKS[kind]
    module = tfir.trace(f, BF16["m", k], BF16[n, k], BF16[n])
    module.facts.symbols["m"] = SymbolFact(low=8192)
    PassManager(pipelines.gpu()).run(module)
    return module


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.long] * (k != "gelu")) for k in WALKS])
def test_loads_for_the_next_tile_run_while_this_one_is_stored(kind: str, pytestconfig: pytest.Config) -> None:
    """132 programs, one for each core of an H100: inside their one loop nothing waits for all loads."""
    code = lower(walking(kind), TARGETS["cuda:sm_90"])
    (call,) = code.calls.values()
    assert call.schedule is not None and isinstance(call.schedule.choice, BlockChoice)
    assert (call.schedule.choice.columns, call.schedule.choice.programs) == (256, 132)
    found = {}
    for wide in (False, True):
        (binary,) = compile_kernels([replace(w, wide=wide) for w in code.wanted], TARGETS["cuda:sm_90"])
        assert binary.spilled <= (64 if wide else 0) and binary.shared <= TARGETS["cuda:sm_90"].shared  # long indices take the last registers
        assert set(binary.matrix_instructions) == {"wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"}
        text = binary.assembly
        assert text.rindex("st.global") < text.index("cp.async.wait_group \t0") and "cp.async.wait_group \t4" in text
        found[f"walk: {kind}{', long indices' if wide else ''} on cuda:sm_90"] = row(binary) | {"spilled": binary.spilled}
    check_golden("triton_products.json", f"walk: {kind}", found, pytestconfig)


@pytest.mark.long
@pytest.mark.parametrize("target", NAMES)
def test_tables_may_ask_for_few_programs_anywhere(target: str) -> None:
    module, machine = walking("gelu"), machine_of(TARGETS[target])
    choice = BlockChoice(128, 128, 32, 8, 2, programs=machine.cores)
    program = lower_function(module, module.main, machine, table={ScheduleKey("gpu_linear", BF16, 8192, 2048, None): choice})
    (call,) = program.calls
    (binary,) = compile_kernels([Wanted(emit(call.kernel, "kernel", symbol_facts(module.facts)), call.launch)], TARGETS[target])
    assert binary.spilled == 0 and binary.matrix_instructions
