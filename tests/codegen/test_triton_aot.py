"""Kernels of whole models compiled for GPUs that need not be there, and what became of them: a golden table of registers, shared memory, spilled
values and matrix instructions. After a change that was meant: ``pytest tests/codegen/test_triton_aot.py --refresh``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="pip install triton")

from trustformers_ir.codegen.triton.aot import Binary, compile_kernels
from trustformers_ir.codegen.triton.build import lower
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import Pass, PassManager
from trustformers_ir.passes.quantize_int8 import QuantizeInt8

GOLDEN = Path(__file__).parent / "golden" / "triton.json"
NAMES = ("cuda:sm_80", "cuda:sm_90", "rocm:gfx942")

#: one layer of each: all layers of a model have the same kernels
MODELS: dict[str, tuple[str, DType | None, Callable[[], Pass | None]]] = {
    "minilm bf16": ("random:bert?num_hidden_layers=1&hidden_size=384&num_attention_heads=12&intermediate_size=1536", DType.bf16, lambda: None),
    "minilm int8": ("random:bert?num_hidden_layers=1&hidden_size=384&num_attention_heads=12&intermediate_size=1536", None, QuantizeInt8),
    "vit-b f16": ("random:vit?num_hidden_layers=1", DType.f16, lambda: None),
    "gpt-2 f16": ("random:gpt2?n_layer=1&vocab_size=1024", DType.f16, lambda: None),
    "llama bf16": (
        "random:llama?num_hidden_layers=1&hidden_size=1024&intermediate_size=2816&num_attention_heads=16&num_key_value_heads=4&vocab_size=1024",
        DType.bf16,
        lambda: None,
    ),
}


def row(b: Binary) -> dict[str, Any]:
    return {"registers": b.registers, "shared": b.shared, "spilled": b.spilled, "matrix": b.matrix_instructions}


@pytest.mark.parametrize("name", MODELS)
def test_kernels_compile_for_gpus_that_are_not_here(name: str, pytestconfig: pytest.Config) -> None:
    source, dtype, quantize = MODELS[name]
    module = random_model(source, dtype)
    PassManager(pipelines.gpu(quantize())).run(module)
    code = lower(module, TARGETS[NAMES[0]])
    found: dict[str, Any] = {}
    for target in NAMES:
        for (label, _), binary in zip(code.kernels.values(), compile_kernels(code.emitted, TARGETS[target], code.launches), strict=True):
            place = f"{label} on {target}"
            assert binary.code and binary.spilled == 0, place
            assert binary.shared <= TARGETS[target].shared, place
            if "linear" in label or "attention" in label:
                narrow = dtype is not None or "linear_int8" in label
                assert binary.matrix_instructions or (not narrow and "cuda" in target), place
            found[f"{name}: {binary.name} {label} on {target}"] = row(binary)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if pytestconfig.getoption("--refresh"):
        kept = {k: v for k, v in golden.items() if not k.startswith(f"{name}: ")}
        text = json.dumps(dict(sorted({**kept, **found, "triton": triton.__version__}.items())), indent=1)
        GOLDEN.write_text(text + "\n")
    elif golden["triton"] == triton.__version__:
        assert {k: v for k, v in golden.items() if k.startswith(f"{name}: ")} == found
