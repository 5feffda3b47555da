"""``tfc eval ppl``: against the loss of transformers, and requests that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from cli_harness import RANDOM, tfc

WORDS = [f"w{n}" for n in range(60)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaMA with a token for each word."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=60, max_position_embeddings=64
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_perplexity_is_that_of_transformers(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.random.default_rng(0).integers(0, 60, 70)
    (tmp_path / "t.txt").write_text(" ".join(WORDS[i] for i in ids))
    code, out, _ = tfc(capsys, "eval", "ppl", str(checkpoint), str(tmp_path / "t.txt"), "--context", "20", "--json")
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint)
    losses = []
    for n in range(3):
        window = torch.from_numpy(ids[n * 20 : n * 20 + 20])
        with torch.no_grad():
            logits = model(window[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[9:-1], window[10:], reduction="none"))
    found = json.loads(out)
    assert code == 0 and found["tokens"] == 30
    assert found["perplexity"] == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=1e-5)
    code, text, _ = tfc(capsys, "eval", "ppl", str(checkpoint), str(tmp_path / "t.txt"), "--context", "20", "--windows", "1")
    assert code == 0 and "of 10 tokens, in pieces of 20" in text


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("bleu", "MODEL", "TEXT"), "'bleu' cannot be measured"),
        (("ppl", "MODEL", "TEXT", "--context", "65"), "more than the 64"),
        (("ppl", "MODEL", "SHORT"), "less than one context"),
        (("ppl", "MODEL", "BYTES"), "not UTF-8"),
        (("ppl", "MODEL", "missing.txt"), "TFC6002"),
        (("ppl", RANDOM, "TEXT"), "no tokenizer"),
    ],
)
def test_requests_that_do_not_fit(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str
) -> None:
    (tmp_path / "TEXT").write_text("w1 " * 100)
    (tmp_path / "SHORT").write_text("w1 w2")
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe\xff")
    places = {"MODEL": str(checkpoint), **{name: str(tmp_path / name) for name in ("TEXT", "SHORT", "BYTES")}}
    code, out, told = tfc(capsys, "eval", *(places.get(w, w) for w in words), *(["--context", "20"] if "--context" not in words else []))
    assert code == 2 and not out and what in told and "help:" in told
