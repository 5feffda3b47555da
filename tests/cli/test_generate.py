"""``tfc run --prompt``: the real small decoder from its GGUF file, texts as they are written, and requests that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_harness import RANDOM, tfc
from hypothesis import given, settings
from hypothesis import strategies as st

import trustformers_ir as tfir
from trustformers_ir.frontend.gguf.container import open_gguf
from trustformers_ir.frontend.gguf.vocabulary import tokenizer_json
from trustformers_ir.frontend.tokenizer import TextTokenizer, load_tokenizer
from trustformers_ir.tools.text import Detokenizer

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real model, compiled."""
    path = str(tmp_path_factory.mktemp("smollm2") / "m.tfc")
    tfir.compile(str(smollm2)).save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> TextTokenizer:
    return load_tokenizer((tokenizer_json(open_gguf(smollm2)) or "").encode())


def test_it_knows_the_capital(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, told = tfc(capsys, "run", model, "--prompt", PROMPT, "-n", "12")
    assert code == 0 and text.startswith(" Paris")
    assert "5 tokens read, 12 written; the first after" in told and "tokens/s" in told
    code, streamed, _ = tfc(capsys, "run", model, "--prompt", PROMPT, "-n", "12", "--stream")
    assert (code, streamed) == (0, text)
    code, out, _ = tfc(capsys, "run", model, "--prompt", PROMPT, "-n", "12", "--json")
    found = json.loads(out)
    assert code == 0 and found["text"] + "\n" == text and found["tokens"] == len(found["ids"]) == 12 and found["prompt_tokens"] == 5


def test_stops_where_it_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tfc(capsys, "run", model, "--prompt", PROMPT, "--stop", "Paris", "--json")
    assert code == 0 and json.loads(out)["text"] == " Paris"


def test_what_is_drawn_can_be_repeated(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", model, "--prompt", PROMPT, "-n", "8", "--temperature", "1", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "--seed")
    texts = [tfc(capsys, *words, seed)[1] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_beams(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, told = tfc(capsys, "run", model, "--prompt", PROMPT, "-n", "4", "--beams", "3")
    assert code == 0 and "Paris" in text and "4 written in" in told


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--prompt", "a"), "no language model"),
        (("-n", "3"), "without a prompt"),
        (("--stream",), "without a prompt"),
        (("--prompt", "a", "--text", "b"), "excludes --text"),
        (("--prompt", "a", "--output", "x.npz"), "--output"),
    ],
)
def test_requests_that_do_not_fit(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str) -> None:
    code, out, told = tfc(capsys, "run", RANDOM, *words)
    assert code == 2 and not out and what in told and "help:" in told


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.sampled_from(["naïve — 日本語 🙂🙃", " a  b\n\n c", "é🙂"]))
def test_texts_come_whole_from_tokens_one_by_one(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode_batch([text or "a"])[0][0].tolist()
    shown = Detokenizer(tokenizer.decode)
    assert "".join(map(shown.add, ids)) + shown.rest() == tokenizer.decode(ids)
