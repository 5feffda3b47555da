"""What fewer bits cost and gain: ``python -m trustformers_ir.tools.bench.precision MODEL [TEXTS]``.

A row for each way to compile a model that reads token ids: the bytes of its weights, its error against f32, and its time for some lengths. ``TEXTS``
has a text on each line; without it ids are drawn. Errors are of the first result over all examples; times are medians of calls on 1 x so many tokens,
every way in every round, and in brackets how many times as fast as f32 in the same round.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.frontend.examples import Batch, read_examples
from trustformers_ir.passes.int8_error import Deviation
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.models import first_output
from trustformers_ir.tools.text import tokenizer_of

WAYS: dict[str, dict[str, Any]] = {
    "f32": {},
    "quantize=bf16": {"quantize": "bf16"},
    "quantize=f16": {"quantize": "f16"},
    "dtype=bf16": {"dtype": "bf16"},
    "dtype=f16": {"dtype": "f16"},
    "quantize=int8": {"quantize": "int8"},
    "quantize=fp8": {"quantize": "fp8"},
}
LENGTHS = (1, 2, 4, 8, 32, 128)
EXAMPLES = (1, 5, 17, 40, 77, 128)  # tokens of drawn ids
ROUNDS, SECONDS = 7, 0.05  # of one way in one round
VOCABULARY = 20_000
LONGEST = 256  # tokens of a text


def first(result: object) -> np.ndarray:
    """The first result, as f32."""
    return first_output(result).astype(np.float32)


def examples(model: str, executable: Runnable, texts: str | None) -> Sequence[Batch]:
    """Batches of texts, or of ids."""
    types = {p.name: p.type for p in executable.inputs}
    if texts is not None:
        return read_examples(texts, types, LONGEST, lambda: tokenizer_of(model, executable.manifest.metadata))
    rng = np.random.default_rng(0)
    return [{next(iter(types)): rng.integers(1, VOCABULARY, (1, n))} for n in EXAMPLES]


def seconds(executable: Runnable, ids: Batch) -> float:
    """Of one call, over ``SECONDS`` of them."""
    executable(**ids)
    started, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < SECONDS:
        executable(**ids)
        calls += 1
    return passed / calls


def main(model: str, texts: str | None = None) -> None:
    """Measure and print."""
    made = {way: tfir.compile(model, **options) for way, options in WAYS.items()}
    exact = made["f32"]
    fed = examples(model, exact, texts)
    errors = {way: Deviation() for way in made}
    for batch in fed:
        want = first(exact(**batch))
        for way, executable in made.items():
            errors[way].see(want, first(executable(**batch)))
    times: dict[str, dict[int, list[float]]] = {way: {n: [] for n in LENGTHS} for way in made}
    name = exact.inputs[0].name
    for length in LENGTHS:
        ids = {name: np.random.default_rng(length).integers(1, VOCABULARY, (1, length))}
        for _ in range(ROUNDS):
            for way, executable in made.items():
                times[way][length].append(seconds(executable, ids))
    rows = []
    for way, executable in made.items():
        cells = []
        for length in LENGTHS:
            mine, base = times[way][length], times["f32"][length]
            gain = statistics.median(b / m for b, m in zip(base, mine, strict=True))
            cells.append(f"{statistics.median(mine) * 1e3:.2f} ({gain:.2f}x)")
        size = sum(w.bytes for w in executable.manifest.weights) / 1e6
        rows.append((way, f"{size:.0f}", f"{errors[way].relative:.2g}", f"{errors[way].cosine:.6f}", *cells))
    console.print_table(rows, ("way", "weights, MB", "error", "cosine", *(f"{n} tokens, ms" for n in LENGTHS)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
