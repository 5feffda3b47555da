"""Whole models in fewer bits give one and the same result on every machine, with every number of threads, for every cut of the batch and padding."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.codegen.llvm.target import parse
from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.runtime.targets import check_target

BERT = "random:bert?hidden_size=64&num_hidden_layers=2&num_attention_heads=4&intermediate_size=144&vocab_size=100&max_position_embeddings=64"
VIT = "random:vit?hidden_size=64&num_hidden_layers=2&num_attention_heads=4&intermediate_size=144&image_size=32&patch_size=8"
STATIC = "int8{activations=static}"
ROWS = 8
SEQ = 21  # of no tile a multiple


def runs_here(name: str) -> bool:
    target = parse(name)
    try:
        check_target(TargetInfo(target.name, target.triple, target.cpu, target.features))
    except tfir.CompilerError:
        return False
    return True


TARGETS = [name for name in ("cpu:avx2", "cpu:avxvnni", "cpu:avx512", "cpu:avx512vnni") if runs_here(name)]
FLOAT_TARGETS = [name for name in ("cpu:avx2", "cpu:avx512") if name in TARGETS]  # nothing else differs in their code


@functools.cache
def inputs(model: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    if model == VIT:
        return {"pixel_values": rng.standard_normal((ROWS, 3, 32, 32)).astype(np.float32)}
    mask = (np.arange(SEQ) < rng.integers(3, SEQ + 1, (ROWS, 1))).astype(np.int64)
    mask[0] = 1
    return {"input_ids": rng.integers(0, 100, (ROWS, SEQ)), "attention_mask": mask, "token_type_ids": np.zeros((ROWS, SEQ), np.int64)}


def results(exe: Any, fed: dict[str, np.ndarray], rows: int) -> bytes:
    """The first result of all rows, so many at a time; of tokens that are not padding."""
    parts = []
    for start in range(0, ROWS, rows):
        piece = {name: a[start : start + rows] for name, a in fed.items()}
        out = exe(**piece)
        first = np.asarray(out[0] if isinstance(out, tuple) else out)
        parts.append(first[piece["attention_mask"] != 0].tobytes() if "attention_mask" in piece else first.tobytes())
    return b"".join(parts)


@pytest.mark.parametrize("model", [BERT, VIT], ids=["bert", "vit"])
@pytest.mark.parametrize("options", [{"quantize": q} for q in ("int8", STATIC, "bf16", "f16")] + [{"dtype": d} for d in ("bf16", "f16")], ids=str)
def test_one_result(model: str, options: dict[str, str], tmp_path: Path) -> None:
    fed = inputs(model)
    given: dict[str, Any] = {"calibration": fed} if options.get("quantize") == STATIC else {}
    wider = {name: np.pad(a, ((0, 0), (0, 11))) for name, a in fed.items()} if model == BERT else fed
    found: dict[str, bytes] = {}
    for target in TARGETS if "int8" in options.get("quantize", "") else FLOAT_TARGETS:
        tfir.compile(model, target=target, **options, **given).save(tmp_path / "m.tfc")
        for threads in (1, 2):
            exe = tfir.load(str(tmp_path / "m.tfc"), threads=threads)
            for rows in (1, 3, ROWS):
                found[f"{target}, {threads} threads, {rows} at a time"] = results(exe, fed, rows)
            found[f"{target}, {threads} threads, padded"] = results(exe, wider, ROWS)
            exe.close()
    assert len(found) >= 8 and len({len(b) for b in found.values()}) == 1
    first, *others = found
    assert [name for name in others if found[name] != found[first]] == [], f"other bits than {first}"
