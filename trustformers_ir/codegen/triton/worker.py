"""Triton in a process of its own, which ``aot.py`` starts: it reads functions from source files and keeps global state.

    python -m trustformers_ir.codegen.triton.worker FOLDER

Its files lie in the folder. Each line on stdin is a job, one kernel as JSON; each line on stdout the answer: ``{"binary": …}``, or
``{"error": Triton's words}``. It ends when stdin does.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    for number, line in enumerate(sys.stdin):
        try:
            answer: dict[str, Any] = {"binary": compiled(json.loads(line), Path(sys.argv[1]), number)}
        except Exception as error:  # whatever Triton raises
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def compiled(job: dict[str, Any], folder: Path, number: int) -> dict[str, Any]:
    """The fields of a :class:`~trustformers_ir.codegen.triton.aot.Binary`, code in base64."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target, symbol, signature = job["target"], job["symbol"], job["signature"]
    source = ASTSource(
        fn=getattr(_loaded(job["text"], folder / f"kernel_{number}.py"), symbol),
        signature=signature,
        constexprs={(len(signature) - 1,): getattr(triton.language, job["index"])},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(job["pointers"])},
    )
    options = {"num_warps": job["warps"], "num_stages": job["stages"], "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget(target["backend"], target["arch"], target["warp"]), options=options)
    code, assembly = made.asm[target["native"]], made.asm[target["assembly"]]
    return {
        "symbol": made.metadata.name,
        "code": base64.b64encode(code).decode(),
        "assembly": assembly,
        "shared": made.metadata.shared,
        "warps": made.metadata.num_warps,
        "reserved": _parameters_in(assembly) - len(signature) + 1,
        "work": getattr(made.metadata, "global_scratch_size", 0) or 0,
        "work_alignment": getattr(made.metadata, "global_scratch_align", 1) or 1,
        **_resources(target["backend"], code, assembly, folder),
    }


def _loaded(text: str, path: Path) -> ModuleType:
    """The module of a text."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _parameters_in(assembly: str) -> int:
    """How many parameters the code takes: Triton adds pointers of its own, how many depends on its version."""
    entry = re.search(r"\.visible \.entry \w+\((.*?)\)", assembly, re.DOTALL)
    if entry is not None:
        return entry[1].count(".param")
    return len(re.findall(r"\.value_kind:\s+(?:global_buffer|by_value)", assembly))


def _resources(backend: str, code: bytes, assembly: str, folder: Path) -> dict[str, int]:
    """Registers of a thread and values that were spilled: from the tool that comes with Triton, or from what LLVM wrote below the code."""
    if backend == "cuda":
        from triton import backends

        tool = Path(backends.__path__[0]) / "nvidia" / "bin" / "cuobjdump"
        path = folder / "kernel.cubin"
        path.write_bytes(code)
        told = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
        found = {name: max(map(int, re.findall(rf"{name}:(\d+)", told))) for name in ("REG", "STACK", "LOCAL")}
        return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}
    counts = {name: int(value) for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", assembly)}
    return {"registers": counts["vgpr_count"], "spilled": counts["vgpr_spill_count"]}


if __name__ == "__main__":
    main()
