"""The kinds of files that are made wrong, and how each is read."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import Kind


def _folder(model: Path) -> None:
    """What lies in the model's folder and beside it: weights, links that lead out, a pipe, an empty file."""
    (model / "sub").mkdir(exist_ok=True)
    (model.parent / "outside.bin").write_bytes(bytes(512))
    for name, size in (("w.bin", 512), ("sub/w.bin", 512), ("empty.bin", 0)):
        (model / name).write_bytes(bytes(range(256)) * (size // 256))
    for name, target in (("link.bin", model.parent / "outside.bin"), ("up", model.parent)):
        if not (model / name).is_symlink():
            os.symlink(target, model / name)
    if not (model / "pipe").exists():
        os.mkfifo(model / "pipe")


def _onnx_kind() -> Kind:
    import onnx_seeds
    from onnx_mutations import Maker

    from trustformers_ir.frontend.onnx.model import load_onnx_model
    from trustformers_ir.ir.verifier import verify_module

    turn = [0]

    def read(path: Path, how: str) -> Any:
        turn[0] += 1
        module = load_onnx_model(path, onnx_seeds.EXAMPLES if turn[0] % 4 and b"\x05shape" in path.read_bytes() else None)
        violations = verify_module(module)
        if violations:
            raise RuntimeError(f"what was read does not verify: {violations[0]}")
        return module

    return Kind(".onnx", _folder, Maker(), read, _compiled, 200)


def _compiled(module: Any) -> None:
    """Native code for it, run on small inputs: what it gives has the shapes that it promises."""
    import trustformers_ir as tfir

    values = [v for op in module.main.body.operations for v in op.results]
    if any(v.type.is_static and v.type.elements > 1 << 16 for v in values) or len(values) > 300:
        return
    exe = tfir.compile(module)
    sizes = {s: max(fact.low, 2) for s, fact in module.facts.symbols.items()}
    inputs = [np.zeros([d if isinstance(d, int) else sizes.get(str(d), 2) for d in p.type.shape], p.type.dtype.numpy) for p in exe.inputs]
    if all(i.size < 1 << 16 for i in inputs):
        exe(*inputs)


def _safetensors_kind() -> Kind:
    from safetensors_mutations import make

    from trustformers_ir.frontend.safetensors import open_safetensors
    from trustformers_ir.ir.diagnostics import CompilerError

    def read(path: Path, how: str) -> Any:
        try:
            file = open_safetensors(path)
        except CompilerError as error:
            if any(d.where.offset is None or d.where.file != str(path) for d in error.diagnostics):
                raise RuntimeError(f"a problem without its place: {error}") from None
            raise
        for name, entry in file.items():
            array = file.array(name)
            assert array.nbytes == entry.end - entry.begin and 8 <= entry.begin <= entry.end <= path.stat().st_size
        return file

    return Kind(".safetensors", _folder, make, read)


def _bombs(few: bool) -> Kind:
    """Models that promise much, one after the other."""
    from onnx_bombs import BOMBS, HUGE

    names = [name for name in BOMBS if not few or str(HUGE) in name]
    turns = itertools.cycle(names)

    def make(rng: random.Random) -> tuple[bytes, str]:
        name = next(turns)
        return BOMBS[name]().SerializeToString(), name

    known = _onnx_kind()
    return Kind(".onnx", _folder, make, known.read, warm=known.make)


MAKERS = {
    "bombs": lambda: _bombs(False),
    "few bombs": lambda: _bombs(True),
    "onnx": _onnx_kind,
    "safetensors": _safetensors_kind,
}
