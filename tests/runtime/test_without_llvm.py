"""Programs that load and run what was compiled before have no LLVM in them: it costs memory, and time at the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from runtime_harness import add, encoder
from test_linker import pytestmark  # noqa: F401

import trustformers_ir as tfir
from trustformers_ir.runtime import artifact
from trustformers_ir.tools.bench.compile_time import bert

AFTER = """
import json, sys
maps = open("/proc/self/maps").read()
heavy = ("llvmlite", "torch", "tokenizers", "importlib.metadata", "trustformers_ir.codegen", "trustformers_ir.passes", "trustformers_ir.compiler")
print(json.dumps({"modules": [m for m in heavy if m in sys.modules], "mapped": "llvm" in maps.lower(), "found": found}))
"""


def said(program: str, *arguments: object, **variables: str) -> dict[str, Any]:
    """What a program says that runs in a process of its own."""
    command = [sys.executable, "-c", program + AFTER, *map(str, arguments)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **variables})
    assert run.returncode == 0, run.stderr
    out: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return out


def test_artifacts_are_loaded_and_run(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
import trustformers_ir as tfir
exe = tfir.load(sys.argv[1])
found = exe(np.zeros((2, 3), np.int64), np.float32(1))[1].shape
"""
    artifact.save(encoder(), tmp_path / "m.tfc")
    assert said(program, tmp_path / "m.tfc") == {"modules": [], "mapped": False, "found": [2, 40]}


def test_what_the_compile_cache_has_is_run(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
import trustformers_ir as tfir
exe = tfir.compile(sys.argv[1])
exe(np.zeros((2, 3), np.int64))
found = exe.report()["cache"]["state"]
"""
    checkpoint = bert(tmp_path / "models", 1, 64)
    kept = {"TFIR_CACHE": "1", "TFIR_CACHE_DIR": str(tmp_path / "cache")}
    first = said(program, checkpoint, **kept)
    assert first["found"] in ("being stored", "stored") and "llvmlite" in first["modules"] and first["mapped"]
    assert said(program, checkpoint, **kept) == {"modules": [], "mapped": False, "found": "used"}


def test_text_is_written(tmp_path: Path) -> None:
    program = """
import sys
import trustformers_ir as tfir
found = len(tfir.load(sys.argv[1]).generate([1, 2, 3], max_new_tokens=4))
"""
    sizes = "hidden_size=64&intermediate_size=96&num_hidden_layers=1&num_attention_heads=2&num_key_value_heads=1&vocab_size=64"
    tfir.compile(f"random:llama?architecture=LlamaForCausalLM&max_position_embeddings=64&{sizes}").save(str(tmp_path / "m.tfc"))
    assert said(program, tmp_path / "m.tfc") == {"modules": [], "mapped": False, "found": 4}


def test_the_tool_runs_artifacts(tmp_path: Path) -> None:
    program = """
import sys
from trustformers_ir.tools.cli import main
found = main(["run", sys.argv[1], "--input", f"x={sys.argv[2]}", "--input", f"y={sys.argv[2]}", "-o", sys.argv[3]])
"""
    artifact.save(add(), tmp_path / "m.tfc")
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    done = said(program, tmp_path / "m.tfc", tmp_path / "x.npy", tmp_path / "out.npz")
    assert "llvmlite" not in done["modules"] and not done["mapped"] and done["found"] == 0
    assert (tmp_path / "out.npz").exists()
