"""Products whose sums are cut into parts, compiled for chips that need not be here: sums take matrix instructions, nothing is spilled; a golden
table. After a change that was meant: ``pytest tests/codegen/test_triton_aot_parts.py --refresh``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="pip install triton")

from golden_table import check_golden
from test_triton_grouped import product as grouped
from test_triton_products import of_bytes

import trustformers_ir as tfir
from trustformers_ir.codegen.triton.build import lower
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.conformance import make_case
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
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
            adds_up = call.schedule is None
            assert adds_up or (kind == "f32" and "cuda" in target) or binary.matrix_instructions, place
            found[place] = {"registers": binary.registers, "shared": binary.shared, "matrix": binary.matrix_instructions}
        assert sum("parts added up" in name and target in name for name in found) == len(code.calls) // 2, target
    check_golden("triton_parts.json", f"{kind}: ", found, pytestconfig)
