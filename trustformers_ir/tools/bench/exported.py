"""ONNX files of one checkpoint in ONNX Runtime, ours next to those of torch: ``python -m trustformers_ir.tools.bench.exported [MODEL] [THREADS]``.

Each file has batch and length left open, takes all inputs of the model and hands out both its results. ``dynamo`` is torch's exporter of today,
``torchscript`` the one before. All sessions live in one process, with all of ONNX Runtime's graph optimizations, and take turns in every round;
the first call of a turn is not counted. A cell is the median over rounds, and in brackets the median of a round's own ratio: torch's time over ours,
so more than 1 is in our favour. ``differs``: the largest difference of an output from that of torch itself, over the batches.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.machine import cpu_model
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.models import checkpoint

NAMES = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("last_hidden_state", "pooler_output")  # ours has the embedding of the text as well where the folder says how it is made
SIZES = ((1, 8), (1, 32), (1, 128), (8, 128))  # batch and tokens
ROUNDS, SECONDS = 15, 0.25  # of one file in one round
OURS = "trustformers_ir"
Inputs = Mapping[str, np.ndarray]


def main(model: str = "minilm", threads: int = 2) -> None:
    """Write the files, measure, print."""
    folder = model if Path(model).is_dir() else str(checkpoint(model))
    batches = {size: drawn(*size) for size in SIZES}
    with tempfile.TemporaryDirectory() as work:
        torch_model = _model(folder)
        sessions = {OURS: _session(_ours(folder, Path(work)), threads)}
        for way, dynamo in (("dynamo", True), ("torchscript", False)):
            sessions[way] = _session(_torch(torch_model, Path(work), way, dynamo), threads)
        worst = dict.fromkeys(sessions, 0.0)
        for inputs in batches.values():
            wanted = _computed(torch_model, inputs)
            for way, session in sessions.items():
                made = session.run(OUTPUTS, inputs)
                worst[way] = max(worst[way], *(float(np.abs(a - b).max()) for a, b in zip(made, wanted, strict=True)))
        times = {size: _times(sessions, inputs) for size, inputs in batches.items()}
    console.say(f"{cpu_model()}, {threads} threads, {ROUNDS} rounds")
    rows = []
    for way in sessions:
        cells = []
        for size in SIZES:
            mine, base = times[size][way], times[size][OURS]
            ratio = "" if way == OURS else f" ({statistics.median(m / b for m, b in zip(mine, base, strict=True)):.2f})"
            cells.append(f"{statistics.median(mine) * 1e3:.2f}{ratio}")
        rows.append([way, *cells, f"{worst[way]:.1e}"])
    console.print_table(rows, ("file of", *(f"{b} x {n}, ms" for b, n in SIZES), "differs"))


def drawn(batch: int, tokens: int) -> dict[str, np.ndarray]:
    """Token ids; all but the first text have padding at the end."""
    random = np.random.default_rng(tokens)
    ids = random.integers(1000, 20_000, (batch, tokens))
    mask = (np.arange(tokens) < np.linspace(tokens, tokens / 2, batch)[:, None]).astype(np.int64)
    return dict(zip(NAMES, (ids, mask, np.zeros_like(ids)), strict=True))


def _model(folder: str) -> Any:
    """The model of torch from tensors in order to its outputs."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()

    class Both(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModel.from_pretrained(folder)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return found.last_hidden_state, found.pooler_output

    return Both().eval()


def _computed(model: Any, inputs: Inputs) -> list[np.ndarray]:
    import torch

    with torch.inference_mode():
        return [np.asarray(x) for x in model(**{name: torch.from_numpy(a) for name, a in inputs.items()})]


def _ours(folder: str, work: Path) -> Path:
    path = work / "ours.onnx"
    tfir.export(folder, str(path))
    return path


def _torch(model: Any, work: Path, way: str, dynamo: bool) -> Path:
    import torch

    path = work / f"{way}.onnx"
    example = tuple(torch.from_numpy(a) for a in drawn(2, 16).values())
    axes: dict[str, Any] = {"dynamic_axes": {name: {0: "batch", 1: "seq"} for name in NAMES}}
    if dynamo:
        batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", max=512)
        axes = {"dynamic_shapes": {name: {0: batch, 1: seq} for name in NAMES}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every Python branch in the model
        names = {"input_names": list(NAMES), "output_names": list(OUTPUTS)}
        torch.onnx.export(model, example, str(path), dynamo=dynamo, verbose=False, **names, **axes)
    return path


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _times(sessions: Mapping[str, Any], inputs: Inputs) -> dict[str, list[float]]:
    """Seconds of a call: of every file one number a round."""
    times: dict[str, list[float]] = {way: [] for way in sessions}
    for _ in range(ROUNDS):
        for way, session in sessions.items():
            session.run(OUTPUTS, inputs)
            started, calls = time.perf_counter(), 0
            while (passed := time.perf_counter() - started) < SECONDS:
                session.run(OUTPUTS, inputs)
                calls += 1
            times[way].append(passed / calls)
    return times


if __name__ == "__main__":
    named, asked = sys.argv[1:2], sys.argv[2:3]
    main(named[0] if named else "minilm", int(asked[0]) if asked else 2)
