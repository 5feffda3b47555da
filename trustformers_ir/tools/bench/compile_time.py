"""From a checkpoint to the first result: ``python -m trustformers_ir.tools.bench.compile_time``.

A BERT with random weights is written to a folder once per number of layers. Then processes of their own import the package, compile the folder
and run it on one text, with an empty compile cache (cold) and with what the first has left there (warm). The clock starts before the interpreter
does. Memory is what the process holds besides mapped files (``RssAnon`` and ``RssShmem``, in MiB, at its highest), with the bytes of the weights
beside it. The files of the checkpoint are in the page cache: the disk is not what is measured. Python keeps the package's bytecode, as of any that is
installed, even where ``PYTHONDONTWRITEBYTECODE`` is set: parsing our own sources anew in every process would be 0.4 s of a cold compile.

With ``--target cuda:sm_90`` (or any other GPU, which need not be here) it is an LLaMA of the shape of the one with 8 billion parameters in bf16,
whose weights nobody asks for: from the start of the interpreter to an executable that could be saved. "Warm" has the machine code of its kernels
on the disk.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trustformers_ir.tools import console
from trustformers_ir.tools.bench.models import write_random

_CHILD = """
import json, sys, time
started = float(sys.argv[1])
import numpy as np
numpy = time.monotonic()
import trustformers_ir as tfir
exe = tfir.compile(sys.argv[2])
compiled = time.monotonic()
exe(np.ones((1, int(sys.argv[3])), np.int64))
done = time.monotonic()
report = exe.report()
print(json.dumps({"numpy": numpy - started, "compile": compiled - numpy, "first call": done - compiled, "total": done - started,
                  "phases": report.get("seconds", {}), "cache": report.get("cache"), "weights": report["weight_bytes"]}), flush=True)
"""

_GPU_CHILD = """
import json, sys, time
started = float(sys.argv[1])
import trustformers_ir as tfir
exe = tfir.compile(sys.argv[2], target=sys.argv[3], dtype="bf16")
done = time.monotonic()
device = exe.device
codes = sum(code is not None for k in device.kernels for code in (k.narrow, k.wide))
print(json.dumps({"total": done - started, "phases": exe.report()["seconds"], "kernels": len(device.kernels), "codes": codes,
                  "launches": sum(len(f.launches) for f in device.functions)}), flush=True)
"""
EIGHT_B = (
    "random:llama?architecture=LlamaForCausalLM&num_hidden_layers={layers}&hidden_size=4096&intermediate_size=14336"
    "&num_attention_heads=32&num_key_value_heads=8&vocab_size=128256&max_position_embeddings=8192"
)


@dataclass(frozen=True)
class Run:
    """One process: seconds by phase, the highest anonymous memory and the weights in bytes, and what the cache did."""

    seconds: Mapping[str, float]
    phases: Mapping[str, float]
    anonymous: int
    weights: int
    cache: object


def bert(folder: Path, layers: int, hidden: int = 768) -> Path:
    """A BERT-base of so many layers in a folder, written unless it is there."""
    path = folder / f"bert-{hidden}-{layers}"
    if not (path / "config.json").is_file():
        fields = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // 64, "intermediate_size": 4 * hidden}
        write_random(path, "bert", fields)
    return path


def run(checkpoint: Path, cache: Path, tokens: int = 128, environment: Mapping[str, str] | None = None) -> Run:
    """Compiles the folder and runs it once, in a process of its own."""
    settings = {"TFIR_CACHE_DIR": str(cache), "TFIR_CACHE": "1", "PYTHONDONTWRITEBYTECODE": "", **(environment or {})}
    words = ["env", *(f"{name}={value}" for name, value in settings.items())]
    words += [sys.executable, "-c", _CHILD, repr(time.monotonic()), str(checkpoint), str(tokens)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        highest = 0
        while child.poll() is None:
            highest = max(highest, anonymous(child.pid))
            time.sleep(0.005)
        assert child.stdout is not None
        text = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"the process ended with {child.returncode}")
    found = json.loads(text)
    seconds = {name: found[name] for name in ("numpy", "compile", "first call", "total")}
    return Run(seconds, found["phases"], highest, found["weights"], found["cache"])


def anonymous(pid: int) -> int:
    """The bytes of a process that no file holds; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(n) << 10 for n in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.M))


def gpu_rows(target: str, layers: Sequence[int], repeat: int) -> list[list[str]]:
    """Compiles the large model for a GPU, in processes of their own, cold and warm."""
    rows = []
    for count in layers:
        for label in ("cold", "warm"):
            runs = []
            with tempfile.TemporaryDirectory() as scratch:
                for n in range(repeat + (label == "warm")):  # the first one fills the cache
                    cache = Path(scratch) / (f"cache-{n}" if label == "cold" else "cache")
                    words = ["env", f"TFIR_CACHE_DIR={cache}", "TFIR_CACHE=1", "PYTHONDONTWRITEBYTECODE="]
                    words += [sys.executable, "-c", _GPU_CHILD, repr(time.monotonic()), EIGHT_B.format(layers=count), target]
                    before = _children()
                    run = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                    runs.append(run | {"cpu": _children() - before})
            runs = sorted(runs[-repeat:], key=lambda r: float(r["total"]))
            middle, best = runs[len(runs) // 2], runs[0]
            phases = ", ".join(f"{k} {v:.2f}" for k, v in middle["phases"].items())
            counts = [str(middle[k]) for k in ("launches", "kernels", "codes")]
            times = [f"{run[k]:.2f}" for run, k in ((middle, "total"), (best, "total"), (middle, "cpu"))]
            rows.append([f"{count} layers, {label}", *times, *counts, phases])
    return rows


def _children() -> float:
    """Seconds of processor time of the processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="cpu", help="cpu, or a GPU: then the model is an LLaMA of 8 billion parameters")
    parser.add_argument("--layers", help="numbers of layers, with commas (1,6,12,24; on a GPU 32)")
    parser.add_argument("--hidden", type=int, default=768, help="features of a token")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the text")
    parser.add_argument("--repeat", type=int, default=3, help="processes per figure; the median counts")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written and kept")
    options = parser.parse_args()
    layers = [int(n) for n in (options.layers or ("1,6,12,24" if options.target == "cpu" else "32")).split(",")]
    if options.target != "cpu":
        head = (f"LLaMA 8B, {options.target}", "total s", "best s", "processor s", "launches", "kernels", "codes", "of compile")
        console.print_table(gpu_rows(options.target, layers, options.repeat), head)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in layers:
            checkpoint = bert(options.folder or Path(scratch), count, options.hidden)
            for label in ("cold", "warm"):
                runs = []
                for n in range(options.repeat):
                    cache = Path(scratch) / f"cache-{count}-{n if label == 'cold' else 0}"
                    runs.append(run(checkpoint, cache, options.tokens))
                middle = sorted(runs, key=lambda r: r.seconds["total"])[len(runs) // 2]
                phases = ", ".join(f"{k} {v:.2f}" for k, v in middle.phases.items()) if label == "cold" else ""
                best = min(r.seconds["total"] for r in runs)
                memory = statistics.median(r.anonymous for r in runs)
                columns = [f"{middle.seconds[k]:.2f}" for k in ("numpy", "compile", "first call", "total")]
                rows.append([f"{count} layers, {label}", *columns, f"{best:.2f}", f"{memory / 2**20:.0f}", f"{middle.weights / 2**20:.0f}", phases])
    console.print_table(rows, ("BERT", "numpy s", "compile s", "first call s", "total s", "best s", "memory MiB", "weights MiB", "of compile"))


if __name__ == "__main__":
    main()
