"""The interpreter of StableHLO that comes with jaxlib, in a process of its own, which this module is too (``python -m … FOLDER``): what it does not
know makes it abort, and with it the process that it is in. The two exchange files in a folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_CODE, _GIVEN, _MADE = "module.mlirbc", "given.npz", "made.npz"


def interpret(code: bytes, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the function ``main`` of a module in bytecode, whose shapes are known, makes of arrays. ``ValueError`` with what it said if it failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _CODE).write_bytes(code)
        np.savez(folder / _GIVEN, *given)
        process = subprocess.run([sys.executable, "-m", __name__, name], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if process.returncode:
            told = [line for line in process.stderr.splitlines() if "error" in line.lower()] or [f"its process ended with {process.returncode}"]
            raise ValueError(told[0].strip())
        return _saved(folder / _MADE)


def _saved(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[f"arr_{n}"] for n in range(len(arrays.files))]


def _execute(folder: Path) -> None:
    """In the process that may abort."""
    from jax._src.interpreters import mlir
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo
    from jaxlib.mlir.passmanager import PassManager

    with mlir.make_ir_context():
        module = ir.Module.parse((folder / _CODE).read_bytes())
        stablehlo.register_stablehlo_passes()
        PassManager.parse("builtin.module(func.func(chlo-legalize-to-stablehlo))").run(module.operation)
        (main,) = module.body.operations
        attributes = [ir.DenseElementsAttr.get(a, type=t) for a, t in zip(_saved(folder / _GIVEN), main.type.inputs, strict=True)]
        found = stablehlo.eval_module(module, attributes)
        np.savez(folder / _MADE, *(np.array(a).reshape(a.type.shape) for a in found))


if __name__ == "__main__":
    _execute(Path(sys.argv[1]))
