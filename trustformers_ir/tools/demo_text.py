"""``make demo``, its second part: the small real decoder, compiled here from its GGUF file, answers a question. Needs no torch."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Code, CompilerError, DiagnosticError, Where
from trustformers_ir.tools import console
from trustformers_ir.tools.text import Detokenizer, tokenizer_of

QUESTION = "What is the capital of France, and what is it known for?"
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the model was trained on: its chat template."""
MOST = 96  # tokens of the answer


def main(arguments: list[str] | None = None) -> int:
    """Compile, ask, show the answer as it is written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".cache/models/smollm2"))
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    try:
        answer(options.folder, options.question, options.threads)
    except DiagnosticError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def answer(folder: Path, question: str, threads: int | None) -> None:
    """The whole of it."""
    file = next(iter(sorted(folder.glob("*.gguf"))), None)
    if file is None:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"there is no .gguf file in '{folder}'", Where(file=str(folder)), "make models")
    started = time.perf_counter()
    with console.progress("compiling"):
        model = tfir.compile(str(file), threads=threads)
        model.prepare()
    compiled = time.perf_counter()
    tokenizer = tokenizer_of(str(file), model.manifest.metadata)
    ids, _ = tokenizer.encode_batch([CHAT.format(question)])
    print(f"\nA question for {file.stem}:\n\n  {question}\n\n  ", end="", flush=True)
    text, count, first = Detokenizer(tokenizer.decode), 0, 0.0
    asked = time.perf_counter()
    for token in model.generate(ids[0], max_new_tokens=MOST, stream=True):
        first = first or time.perf_counter() - asked
        count += 1
        print(text.add(token).replace("\n", "\n  "), end="", flush=True)
    seconds = time.perf_counter() - asked
    print(text.rest())
    speed = f", then {(count - 1) / (seconds - first):.0f} tokens per second" if count > 1 else ""
    how = model.report().get("cache")
    kept = isinstance(how, dict) and how.get("state") == "used"
    print(f"\n  file to machine code        {compiled - started:8.2f} s{'   (kept from the last time)' if kept else ''}")
    print(f"  {ids.size} tokens read              {first * 1e3:8.1f} ms, {ids.size / first:,.0f} tokens per second")
    print(f"  {count} tokens written{speed}; {model.threads} threads, one native call per token")
    print(f'\nTry it:  tfc run {file} --prompt "The capital of France is" -n 64 --stream\n')


if __name__ == "__main__":
    sys.exit(main())
