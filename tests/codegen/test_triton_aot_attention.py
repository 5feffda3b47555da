"""What compilers make of attention: heads of 64 and 128 features, many queries and one, on chips that need not be here, in a golden table. After a
change that was meant: ``pytest tests/codegen/test_triton_aot_attention.py --refresh``."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="pip install triton")

from golden_table import check_golden

import trustformers_ir as tfir
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.build import lower
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import attention
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

NAMES = ("cuda:sm_80", "cuda:sm_90", "rocm:gfx942")
#: features, queries, causal
FORMS: dict[str, tuple[int, int | str, bool]] = {
    "64": (64, "s", False),
    "64 causal": (64, "s", True),
    "64 decode": (64, 1, False),
    "128": (128, "s", False),
    "128 causal": (128, "s", True),
    "128 decode": (128, 1, False),
}


def module(features: int, queries: int | str, causal: bool) -> Module:
    """32 heads, 8 of keys, in bf16, as in LLaMA."""

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=causal)

    bf16 = DType.bf16
    keys = "s" if causal else "t"
    traced = tfir.trace(f, bf16["b", 32, queries, features], bf16["b", 8, keys, features], bf16["b", 8, keys, features])
    PassManager(pipelines.gpu()).run(traced)
    return traced


def count(pattern: str, assembly: str) -> int:
    return len(re.findall(rf"^\s*(?:@\S+\s+)?{pattern}", assembly, re.MULTILINE))


def row(b: Binary) -> dict[str, Any]:
    """``exp``: exponentials, as many per loop as a thread has scores; ``ahead``: loads into shared memory that run ahead."""
    ahead, exp = count(r"cp\.async\.c[ag]", b.assembly), count(r"(ex2\.approx|v_exp_f32)", b.assembly)
    return {"registers": b.registers, "shared": b.shared, "spilled": b.spilled, "exp": exp, "ahead": ahead, "matrix": b.matrix_instructions}


@pytest.mark.parametrize("target", NAMES)
def test_attention_compiles_to_matrix_instructions(target: str, pytestconfig: pytest.Config) -> None:
    """Both products take matrix instructions, wgmma where there is one; k and v run ahead of them on NVIDIA; nothing is spilled."""
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        code = lower(module(*form), TARGETS[target])
        first, *rest = code.binaries()
        assert len(rest) == ("decode" in name)
        for n, binary in enumerate((first, *rest)):
            assert binary.spilled == 0 and binary.shared <= TARGETS[target].shared, name
            found[f"{target}: {name}{', join' if n else ''}"] = row(binary)
        assert first.matrix_instructions
        if "cuda" in target:
            assert "ld.global" in first.assembly and count(r"cp\.async\.cg", first.assembly) >= 8, name
        if target == "cuda:sm_90" and "decode" not in name:
            assert all(k.startswith("wgmma") for k in first.matrix_instructions), name
    check_golden("triton_attention.json", f"{target}: ", found, pytestconfig)
