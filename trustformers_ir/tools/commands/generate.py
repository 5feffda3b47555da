"""What ``tfc run --prompt`` does: the continuation of a prompt as text."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir.abi import PREFILL
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools import console
from trustformers_ir.tools.text import Detokenizer, tokenizer_of

LENGTH = 64  # tokens, where nobody says how many


@dataclass(frozen=True)
class Wish:
    """What is asked for beside the prompt; None: not asked for. Names are those of ``Runnable.generate``."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return self != Wish()

    @property
    def options(self) -> dict[str, Any]:
        """What ``generate`` is told."""
        given = {name: value for name, value in vars(self).items() if value is not None and name not in ("stop", "stream")}
        return {"max_new_tokens": LENGTH, **given}


def continue_prompt(executable: Runnable, model: str, prompt: str, wish: Wish, json: bool) -> None:
    """Writes the continuation to stdout, with ``stream`` as it comes, and how fast it came to stderr; with ``json`` both as one object."""
    tokenizer = tokenizer_of(model, executable.manifest.metadata)
    ids, _ = tokenizer.encode_batch([prompt])
    texts = Detokenizer(tokenizer.decode)
    started = time.perf_counter()
    if wish.num_beams is not None and wish.num_beams > 1:
        tokens = executable.generate(ids[0], **wish.options).tolist()
        first = None
    else:
        tokens, first = [], None
        for token in executable.generate(ids[0], stop=wish.stop, decode=tokenizer.decode, stream=True, **wish.options):
            first = time.perf_counter() - started if first is None else first
            tokens.append(int(token))
            if wish.stream and not json:
                sys.stdout.write(texts.add(token))
                sys.stdout.flush()
    seconds = time.perf_counter() - started
    text = tokenizer.decode(tokens)
    told: dict[str, object] = {"prompt_tokens": int(ids.size), "tokens": len(tokens), "seconds": seconds, "first_token_seconds": first}
    rest = len(tokens) - 1
    told["tokens_per_second"] = rest / (seconds - first) if first is not None and rest and seconds > first else None
    if json:
        console.print_json({"text": text, "ids": tokens, **told})
        return
    sys.stdout.write(texts.rest() + "\n" if wish.stream and first is not None else text + "\n")
    sys.stdout.flush()
    speed = f", then {told['tokens_per_second']:.1f} tokens/s" if told["tokens_per_second"] else ""
    begun = f"; the first after {first * 1e3:.0f} ms{speed}" if first is not None else f" in {seconds * 1e3:.0f} ms"
    console.say(f"{ids.size} tokens read, {len(tokens)} written{begun}")


def check_can_write(executable: Runnable, model: str) -> None:
    """``USAGE`` for a model that has no entries to write with."""
    if PREFILL not in executable.entries:
        help = "give a language model, compiled for a CPU; texts that are only read: --text"
        raise console.usage(f"'{model}' is no language model, so it cannot continue a prompt", help)
