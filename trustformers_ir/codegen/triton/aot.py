"""Machine code for GPUs, made by Triton on a machine that need not have one.

Triton reads functions from source files and keeps global state, so it works in a process of its own: ``compile_kernels`` hands it a file of kernels
(``module.py``) and gets binaries with what they need.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trustformers_ir.codegen.program import Launch
from trustformers_ir.codegen.triton.emit import Emitted
from trustformers_ir.codegen.triton.module import module_text
from trustformers_ir.codegen.triton.target import GpuTarget
from trustformers_ir.ir.dtypes import DType

LEAST_OF_A_PROCESS = 3  # kernels: to start a process takes as long as two

#: Triton's names of the dtypes in signatures
SIGNATURE = {DType.bool: "i1", DType.f16: "fp16", DType.bf16: "bf16", DType.f32: "fp32", DType.f64: "fp64"}


@dataclass(frozen=True)
class Binary:
    """A kernel's machine code, its assembly, and what a launch has to ask for: bytes of shared memory. ``registers`` of a thread, and how many of its
    values went to memory for want of one. ``reserved``: pointers that the code takes besides the function's own, the first one to ``work`` bytes for
    each program."""

    name: str
    code: bytes
    assembly: str
    shared: int
    warps: int
    registers: int
    spilled: int
    reserved: int = 0
    work: int = 0
    work_alignment: int = 1

    @property
    def matrix_instructions(self) -> dict[str, int]:
        """How often each instruction occurs that multiplies matrices (PTX ISA, sections on mma and wgmma; CDNA3 ISA, section on MFMA)."""
        words = re.findall(r"^\s*(?:@\S+\s+)?((?:wgmma\.mma_async|mma\.sync|v_mfma)[\w.]*)", self.assembly, re.MULTILINE)
        return dict(sorted(Counter(words).items()))


def signature(e: Emitted, wide: bool = False) -> dict[str, str]:
    """Triton's types of the parameters, in order. ``wide``: indices and dims have 64 bits."""
    names = parameters(e)
    buffers = [*e.kernel.params, *(b for b, _ in e.memory)]
    types = [f"*{SIGNATURE.get(b.dtype) or b.dtype.name}" for b in buffers]
    rest = ["i64" if wide else "i32"] * len(e.kernel.symbols) + ["*i64"] * e.checks
    return dict(zip(names, [*types, *rest, "constexpr"], strict=True))


def parameters(e: Emitted) -> list[str]:
    """The names of a function's parameters."""
    head = e.text.partition("\n")[0]
    return [p.partition(":")[0].strip() for p in head[head.index("(") + 1 : head.rindex(")")].split(",")]


def compile_kernels(
    kernels: Sequence[Emitted], target: GpuTarget, launches: Sequence[Launch] | None = None, wide: bool = False
) -> list[Binary]:
    """The machine code of each kernel, by several processes at once. ``wide``: for indices of 64 bits. ``RuntimeError`` with Triton's words when it
    takes a kernel for wrong."""
    about = list(zip(kernels, launches or [Launch()] * len(kernels), strict=True))
    workers = max(min(_cpus(), len(about) // LEAST_OF_A_PROCESS), 1)
    with ThreadPoolExecutor(workers) as pool:
        shares = [pool.submit(_compile_share, about[n::workers], target, wide) for n in range(workers)]
        made = {b.name: b for share in shares for b in share.result()}
    return [made[e.name] for e in kernels]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile_share(about: Sequence[tuple[Emitted, Launch]], target: GpuTarget, wide: bool) -> list[Binary]:
    """Some of the kernels, in a process of their own."""
    job = {
        "text": module_text([e for e, _ in about], target.backend),
        "target": asdict(target) | {"native": target.native, "assembly": target.assembly},
        "index": "int64" if wide else "int32",
        "kernels": [
            {"name": e.name, "signature": signature(e, wide), "pointers": len(e.kernel.params) + len(e.memory), **asdict(launch)}
            for e, launch in about
        ],
    }
    with tempfile.TemporaryDirectory(prefix="tfir-triton-") as work:
        environment = ["env", "-u", "TRITON_INTERPRET", "TRITON_DEFAULT_FP_FUSION=0", "TRITON_DISABLE_LINE_INFO=1", f"TRITON_CACHE_DIR={work}"]
        command = [*environment, sys.executable, "-m", "trustformers_ir.codegen.triton.aot"]
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Triton could not compile the kernels: {done.stderr[-4000:]}")
    return [Binary(**(row | {"code": base64.b64decode(row["code"])})) for row in json.loads(done.stdout)]


def _work(job: dict[str, Any]) -> list[dict[str, Any]]:
    """In the process of its own."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with tempfile.TemporaryDirectory(prefix="tfir-triton-") as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(job["text"])
        spec = importlib.util.spec_from_file_location("kernels", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["kernels"] = module
        spec.loader.exec_module(module)
        target = job["target"]
        rows = []
        for k in job["kernels"]:
            source = ASTSource(
                fn=getattr(module, k["name"]),
                signature=k["signature"],
                constexprs={(len(k["signature"]) - 1,): getattr(triton.language, job["index"])},
                attrs={(i,): [["tt.divisibility", 16]] for i in range(k["pointers"])},
            )
            options = {"num_warps": k["warps"], "num_stages": k["stages"], "enable_fp_fusion": False}
            made = triton.compile(source, target=GPUTarget(target["backend"], target["arch"], target["warp"]), options=options)
            rows.append(
                {
                    "name": made.metadata.name,
                    "code": base64.b64encode(made.asm[target["native"]]).decode(),
                    "assembly": made.asm[target["assembly"]],
                    "shared": made.metadata.shared,
                    "warps": made.metadata.num_warps,
                    "reserved": _parameters_in(made.asm[target["assembly"]]) - len(k["signature"]) + 1,
                    "work": getattr(made.metadata, "global_scratch_size", 0) or 0,
                    "work_alignment": getattr(made.metadata, "global_scratch_align", 1) or 1,
                    **_resources(target, made.asm[target["native"]], made.asm[target["assembly"]], Path(folder)),
                }
            )
    return rows


def _parameters_in(assembly: str) -> int:
    """How many parameters the code takes: Triton adds pointers of its own, how many depends on its version."""
    entry = re.search(r"\.visible \.entry \w+\((.*?)\)", assembly, re.DOTALL)
    if entry is not None:
        return entry[1].count(".param")
    return len(re.findall(r"\.value_kind:\s+(?:global_buffer|by_value)", assembly))


def _resources(target: dict[str, Any], code: bytes, assembly: str, folder: Path) -> dict[str, int]:
    """Registers of a thread and values that were spilled: from the tool that comes with Triton, or from what LLVM wrote below the code."""
    if target["backend"] == "cuda":
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
    json.dump(_work(json.load(sys.stdin)), sys.stdout)
