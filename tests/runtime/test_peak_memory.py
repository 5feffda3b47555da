"""What loading and running an artifact takes besides its weights: they are mapped from the file, and never copied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runtime_harness import compiled, f32

from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.runtime import artifact

COPIES, SIDE = 16, 1024  # 64 MiB of weights
PROGRAM = """
import json, sys
import numpy as np
import trustformers_ir as tfir

def own():
    lines = [l.split() for l in open("/proc/self/smaps_rollup")]
    return {l[0][:-1]: int(l[1]) << 10 for l in lines if l[-1] == "kB"}

x = np.ones((1024, 1024), np.float32)
before = own()
exe = tfir.load(sys.argv[1], threads=2)
exe(x)
after = own()
print(json.dumps({k: after[k] - before[k] for k in ("Rss", "Private_Dirty", "Anonymous")}))
"""


def total(x: Tensor) -> Tensor:
    for n in range(COPIES):
        x = x + Parameter(f"w{n}", (SIDE, SIDE))
    return x


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="what is mapped and what is owned is read from Linux")
def test_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    weights = {f"w{n}": np.full((SIDE, SIDE), n, np.float32) for n in range(COPIES)}
    artifact.save(compiled(total, f32[SIDE, SIDE], weights=weights), tmp_path / "m.tfc")
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "m.tfc")], check=True, capture_output=True, text=True)
    grown = json.loads(run.stdout)
    size = COPIES * SIDE * SIDE * 4
    assert grown["Rss"] < size + (40 << 20)  # the weights once, and what runs them; no LLVM
    assert grown["Anonymous"] < 32 << 20, "the weights, or some of them, are in memory of the process's own"
