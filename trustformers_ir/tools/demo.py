"""``make demo``: the small real model, compiled here, on real sentences. Needs no torch.

The sentences are grouped by meaning and share few words across a group, so the table shows whether the model understood them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import DiagnosticError
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools import console
from trustformers_ir.tools.text import tokenizer_of

SENTENCES = (
    "A cat is sleeping on the warm windowsill.",
    "The kitten naps in the sunshine by the glass.",
    "My dog dozed off on the sofa after lunch.",
    "The central bank raised interest rates again.",
    "Borrowing money just became more expensive.",
    "Shares fell after the inflation report.",
    "How do I reset my password?",
    "I can't log in to my account any more.",
    "The telescope photographed a distant galaxy.",
    "Astronomers spotted light from the early universe.",
)
SHAPES = ((1, 16), (1, 128), (8, 32), (32, 128))
SHADES = " ░▒▓█"


def main(arguments: list[str] | None = None) -> int:
    """Compile, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".cache/models/minilm"))
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    try:
        show(options.folder, options.threads)
    except DiagnosticError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def show(folder: Path, threads: int | None) -> None:
    """The whole demonstration."""
    artifact = Path(".cache") / "demo" / "minilm.tfc"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with console.progress("compiling"):
        built = tfir.compile(folder, threads=threads)
        compiled = time.perf_counter()
        built.save(artifact)
    saved = time.perf_counter()
    model = tfir.load(str(artifact), threads=threads)
    loaded = time.perf_counter()
    vectors = embed(model, folder)
    first = time.perf_counter()

    print("\nWhich of these sentences mean the same?  (cosine similarity of their embeddings, in percent)\n")
    print_similarities(vectors @ vectors.T)
    print_neighbours(vectors @ vectors.T)

    entry = model.manifest.entries[0]
    size = console.quantity(os.stat(artifact).st_size)
    kernels = f"{len(entry.kernels)} kernel calls of {len({k.symbol for k in entry.kernels})} kernels, {entry.barriers} barriers"
    print(f"\n{folder.name}: {len(model.manifest.weights)} weights, {kernels}; {model.threads} threads, one native call per batch")
    print(f"  checkpoint to machine code  {compiled - started:8.2f} s")
    print(f"  write the artifact          {saved - compiled:8.2f} s   ({artifact}, {size})")
    print(f"  load it again               {loaded - saved:8.2f} s   (what a user of the artifact waits for)")
    print(f"  tokenize and embed          {(first - loaded) * 1e3:8.1f} ms  ({len(SENTENCES)} sentences, the first call)")
    print("\nOne compile serves every shape:\n")
    print_timings(model)
    print(f"\nTry it:  tfc run {artifact} --text 'any sentence' --text 'another one' -o e.npz\n")


def embed(model: Runnable, folder: Path) -> np.ndarray:
    """Sentence vectors of length 1, ``f32[sentences, width]``."""
    ids, mask = tokenizer_of(str(folder), model.manifest.metadata).encode_batch(SENTENCES)
    outputs = model(input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    named = dict(zip((p.name for p in model.outputs), outputs, strict=True))
    return np.asarray(named["sentence_embedding"])


def print_similarities(table: np.ndarray) -> None:
    """A shaded triangle: the darker, the closer."""
    width = max(map(len, SENTENCES))
    print(" " * (width + 6) + "".join(f"{chr(65 + i):>5}" for i in range(len(SENTENCES))))
    for i, sentence in enumerate(SENTENCES):
        cells = "".join(f" {_shade(v)}{v * 100:3.0f}" if j < i else "    ·" for j, v in enumerate(table[i]) if j <= i)
        print(f"  {chr(65 + i)}  {sentence:<{width}} {cells}")


def _shade(value: float) -> str:
    return SHADES[int(np.clip(value * len(SHADES), 0, len(SHADES) - 1))]


def print_neighbours(table: np.ndarray) -> None:
    """For each sentence the one that is nearest."""
    print("\nNearest neighbours:")
    closest = table - 2 * np.eye(len(table))
    for i in range(len(SENTENCES)):
        j = int(closest[i].argmax())
        print(f"  {chr(65 + i)} → {chr(65 + j)}  {table[i, j] * 100:3.0f} %")


def print_timings(model: Runnable) -> None:
    """Median times of made-up batches."""
    rows = []
    rng = np.random.default_rng(0)
    for batch, length in SHAPES:
        ids = rng.integers(1000, 20000, (batch, length))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        times = []
        for _ in range(3 if batch * length > 1024 else 15):
            started = time.perf_counter()
            model(**inputs)
            times.append(time.perf_counter() - started)
        median = statistics.median(times)
        rows.append((f"{batch} x {length}", f"{median * 1e3:.2f} ms", f"{batch / median:,.0f} texts/s", f"{batch * length / median:,.0f} tokens/s"))
    console.print_table([("  ", *row) for row in rows], ("  ", "batch x tokens", "time", "", ""))


if __name__ == "__main__":
    sys.exit(main())
