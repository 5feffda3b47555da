"""``tfc eval``: how well a language model predicts a text."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import trustformers_ir as tfir
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.mapped import read_most
from trustformers_ir.ir.progress import note
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Dtype, Json, Quantize, Threads, check_options_of_artifact
from trustformers_ir.tools.text import tokenizer_of

MOST_TEXT = 64 << 20  # bytes


def evaluate(
    measure: Annotated[str, typer.Argument(metavar="ppl", help="What is measured: ppl, the perplexity of a text.", show_default=False)],
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE.tfc", help="A language model, or its artifact.", show_default=False)],
    text_file: Annotated[str, typer.Argument(metavar="TEXT.txt", help="A file of UTF-8 text.", show_default=False)],
    context: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens that are read together; the second half of them counts.")] = 512,
    windows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Read no more than so many pieces of the text.")] = None,
    quantize: Quantize = None,
    dtype: Dtype = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure how well MODEL predicts a text."""
    if measure != "ppl":
        raise console.usage(f"'{measure}' cannot be measured", "tfc eval ppl MODEL TEXT.txt")
    with open(text_file, "rb") as stream:
        raw = read_most(stream, MOST_TEXT)
    if len(raw) > MOST_TEXT:
        raise console.usage(f"'{text_file}' has more than {MOST_TEXT} bytes", "give a part of it")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise console.usage(f"'{text_file}' is not UTF-8 text: {error}", "convert it first") from None
    if model.endswith(".tfc"):
        check_options_of_artifact(model, quantize, dtype)
    with console.progress("loading" if model.endswith(".tfc") else "compiling"):
        if model.endswith(".tfc"):
            executable = tfir.load(model, threads=threads)
        else:
            executable = tfir.compile(model, dtype=dtype, quantize=quantize, threads=threads)
    ids = tokenizer_of(model, executable.manifest.metadata).encode_batch([text])[0][0]
    started = time.perf_counter()
    losses = window_losses(executable, ids, context, windows, str(Path(text_file)))
    mean, seconds = float(losses.mean()), time.perf_counter() - started
    spread = math.exp(mean) * float(losses.std()) / math.sqrt(losses.size)
    told = {"perplexity": math.exp(mean), "error": spread, "tokens": int(losses.size), "context": context, "seconds": seconds}
    if json:
        console.print_json(told)
    else:
        print(f"perplexity {math.exp(mean):.4f} +- {spread:.4f} of {losses.size} tokens, in pieces of {context}; {seconds:.1f} s")


def window_losses(executable: Runnable, ids: np.ndarray, context: int, windows: int | None, shown: str) -> np.ndarray:
    """The negative logarithm of the probability of each token in the second half of each whole window of the text, as llama.cpp counts."""
    ports = {p.name: p.type for p in executable.inputs}
    if "input_ids" not in ports or [p.name for p in executable.outputs] != ["logits"]:
        raise console.usage("the model is no language model: it gives no logits", "give one with a head for the next token")
    longest = Facts(dict(executable.manifest.symbols)).bounds(ports["input_ids"].shape[-1])[1]
    if context > longest:
        raise console.usage(f"a context of {context} tokens is more than the {int(longest)} that the model has positions for", "--context")
    count = min(len(ids) // context, windows or len(ids))
    if not count:
        raise console.usage(f"'{shown}' has {len(ids)} tokens, less than one context of {context}", "give more text, or a smaller --context")
    out = []
    for n in range(count):
        note("reading", n, count)
        window = np.ascontiguousarray(ids[n * context : (n + 1) * context])
        logits = executable(window[None], np.ones((1, context), np.int64))[0].astype(np.float32)
        first = context // 2
        scores, wanted = logits[first - 1 : -1].astype(np.float64), window[first:]
        top = scores.max(axis=1, keepdims=True)
        out.append(np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0] - scores[np.arange(len(wanted)), wanted])
    return np.concatenate(out)


eval = evaluate  # the name of the command
