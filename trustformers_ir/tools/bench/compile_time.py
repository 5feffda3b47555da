"""From a checkpoint to the first result: ``python -m trustformers_ir.tools.bench.compile_time``.

A BERT with random weights is written to a folder once per number of layers. Then processes of their own import the package, compile the folder
and run it on one text, with an empty compile cache (cold) and with what the first has left there (warm). The clock starts before the interpreter
does. Memory is what the process holds besides mapped files (``RssAnon`` and ``RssShmem``, in MiB, at its highest), with the bytes of the weights
beside it. The files of the checkpoint are in the page cache: the disk is not what is measured. Python keeps the package's bytecode, as of any that is
installed, even where ``PYTHONDONTWRITEBYTECODE`` is set: parsing our own sources anew in every process would be 0.4 s of a cold compile.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", default="1,6,12,24", help="numbers of layers, with commas")
    parser.add_argument("--hidden", type=int, default=768, help="features of a token")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the text")
    parser.add_argument("--repeat", type=int, default=3, help="processes per figure; the median counts")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written and kept")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for layers in map(int, options.layers.split(",")):
            checkpoint = bert(options.folder or Path(scratch), layers, options.hidden)
            for label in ("cold", "warm"):
                runs = []
                for n in range(options.repeat):
                    cache = Path(scratch) / f"cache-{layers}-{n if label == 'cold' else 0}"
                    runs.append(run(checkpoint, cache, options.tokens))
                middle = sorted(runs, key=lambda r: r.seconds["total"])[len(runs) // 2]
                phases = ", ".join(f"{k} {v:.2f}" for k, v in middle.phases.items()) if label == "cold" else ""
                best = min(r.seconds["total"] for r in runs)
                memory = statistics.median(r.anonymous for r in runs)
                columns = [f"{middle.seconds[k]:.2f}" for k in ("numpy", "compile", "first call", "total")]
                rows.append([f"{layers} layers, {label}", *columns, f"{best:.2f}", f"{memory / 2**20:.0f}", f"{middle.weights / 2**20:.0f}", phases])
    console.print_table(rows, ("BERT", "numpy s", "compile s", "first call s", "total s", "best s", "memory MiB", "weights MiB", "of compile"))


if __name__ == "__main__":
    main()
