"""The real small decoder next to llama.cpp, token by token: 20 prompts of up to 1,000 tokens, 24 tokens of each, all of it real text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import served

import trustformers_ir as tfir
from trustformers_ir.frontend.gguf.container import open_gguf
from trustformers_ir.frontend.gguf.vocabulary import tokenizer_json
from trustformers_ir.frontend.tokenizer import load_tokenizer
from trustformers_ir.runtime.generation.session import Session

DOCS = Path(__file__).resolve().parents[2] / "docs"
LENGTHS = (5, 8, 13, 20, 31, 47, 64, 65, 90, 128, 129, 180, 250, 333, 420, 512, 600, 750, 900, 1000)
NEW = 24
#: by how much logarithms of probabilities may differ: both round activations to 8 bits, each in its own blocks, and llama.cpp keys and values to 16
NOISE = 0.35


def prompts(count: int) -> list[str]:
    """Pieces of this project's own pages, each from another place."""
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted(DOCS.glob("*.md")) if p.name not in ("ops.md", "errors.md"))
    words = text.split(" ")
    return [" ".join(words[n * len(words) // count :][:1500]) for n in range(count)]


@pytest.mark.long
def test_twenty_prompts(smollm2: Path) -> None:
    tokenizer = load_tokenizer((tokenizer_json(open_gguf(smollm2)) or "").encode())
    exe = tfir.compile(str(smollm2))
    worst, decided = 0.0, 0
    with served(smollm2, context=1100) as theirs:
        for text, length in zip(prompts(len(LENGTHS)), LENGTHS, strict=True):
            ids = tokenizer.encode_batch([text])[0][0][:length]
            assert len(ids) == length
            told = theirs.ask("completion", prompt=ids.tolist(), n_predict=NEW, n_probs=2, temperature=0, ignore_eos=True)
            session = Session(exe, 1, length + NEW)
            scores = session.read([ids])[0]
            for row in told["completion_probabilities"]:
                wide = scores.astype(np.float64)
                mine = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
                first, second = row["top_logprobs"][:2]
                worst = max(worst, abs(mine[first["id"]] - first["logprob"]))
                if first["logprob"] - second["logprob"] > 2 * NOISE:
                    decided += 1
                    assert int(mine.argmax()) == first["id"], f"after {length} tokens: {mine[first['id']]}, {row}"
                scores = session.step([row["id"]])[0]
    assert decided > len(LENGTHS) * NEW // 3
    assert worst < NOISE
