"""Kernels of whole models compiled for GPUs that need not be there, and what became of them: a golden table of registers, shared memory, spilled
values and matrix instructions. After a change that was meant: ``pytest tests/codegen/test_triton_aot.py --refresh``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton", reason="pip install triton")

from golden_table import check_golden

from trustformers_ir.codegen.program import Launch
from trustformers_ir.codegen.triton.aot import compile_kernels
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.build import GpuCode, lower
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.compiler import to_module
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.block_formats import Format
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import BlockChoice
from trustformers_ir.models.cached import CONTIGUOUS
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import Pass, PassManager
from trustformers_ir.passes.quantize_blocks import QuantizeBlocks
from trustformers_ir.passes.quantize_f8 import QuantizeF8
from trustformers_ir.passes.quantize_int8 import QuantizeInt8

NAMES = ("cuda:sm_80", "cuda:sm_90", "rocm:gfx942")

#: one layer of each: all layers of a model have the same kernels
BERT = "random:bert?num_hidden_layers=1&hidden_size=384&num_attention_heads=12&intermediate_size=1536"
VIT = "random:vit?num_hidden_layers=1"
GPT2 = "random:gpt2?n_layer=1&vocab_size=1024"
LLAMA = "random:llama?num_hidden_layers=1&hidden_size=1024&intermediate_size=2816&num_attention_heads=16&num_key_value_heads=4&vocab_size=1024"
MODELS: dict[str, tuple[str, DType | None, Pass | None]] = {
    "minilm bf16": (BERT, DType.bf16, None),
    "minilm int8": (BERT, None, QuantizeInt8()),
    "minilm q4_0": (BERT, DType.f16, QuantizeBlocks(Format.Q4_0)),
    "vit-b f16": (VIT, DType.f16, None),
    "vit-b int8": (VIT, None, QuantizeInt8()),
    "gpt-2 f16": (GPT2, DType.f16, None),
    "gpt-2 int4": (GPT2, DType.f16, QuantizeBlocks(Format.INT4, 128)),
    "llama bf16": (LLAMA, DType.bf16, None),
    "llama int8": (LLAMA, None, QuantizeInt8()),
    "llama fp8": (LLAMA, DType.bf16, QuantizeF8()),
    "llama int4": (LLAMA, DType.bf16, QuantizeBlocks(Format.INT4, 128)),
    "llama q4_0": (LLAMA, DType.bf16, QuantizeBlocks(Format.Q4_0)),
}


#: what was compiled so far, by kernel, launch and target: models of one family share all but their products
BINARIES: dict[tuple[str, Launch, str], Binary] = {}


def compiled(code: GpuCode, target: str) -> list[Binary]:
    """The machine code of every kernel, in order."""
    keys = [(w.emitted.kernel.key(), w.launch, target) for w in code.wanted]
    new = {key: w for key, w in zip(keys, code.wanted, strict=True) if key not in BINARIES}
    if new:
        made = compile_kernels(list(new.values()), TARGETS[target])
        BINARIES.update(zip(new, made, strict=True))
    return [replace(BINARIES[key], name=e.name) for key, e in zip(keys, code.emitted, strict=True)]


def row(b: Binary) -> dict[str, Any]:
    return {"registers": b.registers, "shared": b.shared, "spilled": b.spilled, "matrix": b.matrix_instructions}


def lowered(name: str, target: str, many: bool) -> GpuCode:
    """``many``: there are at least 8192 rows, so that each product has one kernel, not one for each range of rows."""
    source, dtype, quantize = MODELS[name]
    module = random_model(source, dtype)
    if many:
        facts = module.facts.symbols
        facts.update({s: replace(facts[s], low=low) for s, low in (("batch", 8192), ("seq", 128)) if s in facts})
    PassManager(pipelines.gpu(quantize)).run(module)
    return lower(module, TARGETS[target])


def checked(name: str, target: str, many: bool) -> dict[str, Any]:
    """The kernels of a model on a target: what can be said of every one is checked, the rest is for the golden table."""
    code = lowered(name, target, many)
    found: dict[str, Any] = {}
    for call, binary in zip(code.calls.values(), compiled(code, target), strict=True):
        place = f"{call.label} on {target}"
        assert binary.code and binary.spilled == 0, place
        assert binary.shared <= TARGETS[target].shared, place
        assert binary.warps == call.launch.warps, place
        vector = call.schedule is not None and isinstance(call.schedule.choice, BlockChoice) and call.schedule.choice.rows == 1
        if ("linear" in call.label or "attention" in call.label) and not vector and "parts added up" not in call.label:
            narrow = MODELS[name][1] is not None or "linear_int8" in call.label
            assert binary.matrix_instructions or (not narrow and "cuda" in target), place
        found[f"{name}: {binary.name} {call.label} on {target}"] = row(binary)
    return found


#: what other rows show already: the same products in another model
AGAIN = ("minilm bf16", "minilm q4_0", "vit-b f16", "vit-b int8", "gpt-2 f16", "gpt-2 int4", "llama int8", "llama q4_0", "llama int4", "llama fp8")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in AGAIN)) for n in MODELS])
def test_kernels_compile_for_gpus_that_are_not_here(name: str, pytestconfig: pytest.Config) -> None:
    found = {k: v for target in NAMES for k, v in checked(name, target, many=True).items()}
    check_golden("triton.json", f"{name}: ", found, pytestconfig)


def test_kernels_that_keep_what_was_read_compile(pytestconfig: pytest.Config) -> None:
    """A piece of text and a token, after others: writes into caches, and attention to them."""
    found: dict[str, Any] = {}
    for target in NAMES:
        module = to_module(f"{LLAMA}&architecture=LlamaForCausalLM", None, "bf16", CONTIGUOUS)
        facts = module.facts.symbols
        facts.update({s: replace(facts[s], low=128) for s in ("seq", "capacity")})
        PassManager(pipelines.gpu()).run(module)
        code = lower(module, TARGETS[target])
        assert [p.states for p in code.programs] == [0, 2, 2]
        mine = {e.name: (w, c) for e, w, c in zip(code.emitted, code.wanted, code.calls.values(), strict=True) if "cache" in c.label}
        made = compile_kernels([w for w, _ in mine.values()], TARGETS[target])
        assert sum(bool(b.matrix_instructions) for b in made) == 2  # of a piece, and of a token; another kernel joins the parts of the latter
        for binary in made:
            place = f"cached: {binary.name} {mine[binary.name][1].label} on {target}"
            assert binary.spilled == 0 and binary.shared <= TARGETS[target].shared, place
            found[place] = row(binary)
    check_golden("triton.json", "cached: ", found, pytestconfig)


@pytest.mark.long
@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_kernels_for_every_number_of_rows_compile(name: str, target: str) -> None:
    assert checked(name, target, many=False)
