"""The small real encoder against ``transformers``: 200 texts of 1 to 256 tokens, whatever the batches, the padding and the threads.

    tfc compile .cache/models/minilm -o m.tfc        # once, for all shapes
    tfc run m.tfc --text-file texts.txt --batch 7 --no-pad --output e.npz

The figures are printed: ``pytest -s tests/models/test_minilm_accuracy.py``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import trustformers_ir as tfir
from trustformers_ir.tools.cli import main

MAX_ABS = 2e-5
MIN_COSINE = 0.999999
SPECIAL = 2  # [CLS] and [SEP] stand around every text
MODES = [(batch, pad) for batch in (1, 7, 32) for pad in ("--pad", "--no-pad")]

PIECES = """the a of and to in it was for on with as by at from that this is not are be or an have has had but they we you he she
compiler transformer attention matrix kernel embedding sentence language understanding antidisestablishmentarianism electroencephalographically
Paris London Tokyo O'Neill McDonald's naïve café façade Ångström Zürich señor Đorđević Москва Санкт-Петербург Αθήνα 東京 日本語 한국어
مرحبا שלום नमस्ते 3.14159 -273.15 1,000,000 2^10 0x7fff 12:30 50% $9.99 №5 ½ x² H₂O E=mc² C++ @user a@b.org https://example.org/a?b=c&d=e#f /usr/bin/env
don't can't we'll it's state-of-the-art e.g. i.e. U.S.A. Ph.D. “quoted” ‘single’ (parenthesis) [brackets] {braces} <tag/> … — – ?! !!! ;) :-/
🙂 👩‍💻 🇫🇷 ❤️ ﬁne ＦＵＬＬ ǅ ß ı İ e\u0301 a\u200bb 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 \u00adsoft zzzzzzzzzzzzzzzzzzzzzzzzzzzz qwertyuiop aaaaaaaaaabbbbbbbbbb""".split()
"""What texts are made of: common and rare words, scripts, numbers, punctuation, marks that the tokenizer drops or does not know."""


def numbers_of_tokens() -> list[int]:
    """200 of them: 100 numbers from 1 to 256, and four numbers that 25 texts have each, so that unpadded batches can be large.

    The special ones come on top: 254 makes 256 for the model.
    """
    return [1 + i * 255 // 99 for i in range(100)] + [12, 33, 64, 254] * 25


def write_texts(lengths: list[int], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Texts of so many tokens, not counting the special ones; always the same."""
    draw = random.Random(2018)
    tokens = {piece: len(tokenizer.encode(piece, add_special_tokens=False)) for piece in PIECES}
    texts = []
    for length in lengths:
        words: list[str] = []
        while length:
            piece = PIECES[int(draw.random() * len(PIECES))]
            if tokens[piece] <= length:
                words.append(piece)
                length -= tokens[piece]
        draw.shuffle(words)
        texts.append(" ".join(words))
    return texts


@dataclass(frozen=True)
class Corpus:
    """The texts in a file, an artifact, and what ``transformers`` says of each text by itself."""

    file: Path
    artifact: Path
    hidden: list[np.ndarray]
    vectors: np.ndarray


@pytest.fixture(scope="module", params=[pytest.param(4, id="fifty"), pytest.param(1, id="two hundred", marks=pytest.mark.long)])
def corpus(minilm: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Corpus:
    """Writes the texts, each or every fourth of them, compiles the model and runs the reference."""
    import torch
    import transformers

    where = tmp_path_factory.mktemp("accuracy")
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = [1, 256, *numbers_of_tokens()[:: request.param]]
    texts = write_texts(lengths, tokenizer)
    file, artifact = where / "texts.txt", where / "m.tfc"
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    assert main(["compile", str(minilm), "-o", str(artifact)]) == 0
    model = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    hidden = []
    for text, length in zip(texts, lengths, strict=True):
        ids = tokenizer.encode(text).ids
        assert len(ids) == length + SPECIAL
        with torch.inference_mode():
            hidden.append(model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy())
    means = np.stack([h.mean(axis=0, dtype=np.float64) for h in hidden])
    return Corpus(file, artifact, hidden, means / np.linalg.norm(means, axis=1, keepdims=True))


def run(corpus: Corpus, *words: str) -> dict[str, np.ndarray]:
    """What ``tfc run`` writes."""
    output = corpus.artifact.with_name("e.npz")
    assert main(["run", str(corpus.artifact), "--text-file", str(corpus.file), "--output", str(output), *words]) == 0
    return dict(np.load(output))


def assert_same_bits(want: dict[str, np.ndarray], have: dict[str, np.ndarray]) -> None:
    assert sorted(want) == sorted(have) == ["attention_mask", "input_ids", "last_hidden_state", "pooler_output", "sentence_embedding"]
    for name, array in want.items():
        different = int((array.view(np.uint8) != have[name].view(np.uint8)).sum())
        assert not different, f"{name}: {different} bytes of {array.nbytes} differ"


def test_texts_agree_with_transformers(corpus: Corpus) -> None:
    """All ways of batching agree with the reference, and with each other to the last bit."""
    assert len(corpus.hidden) in (52, 202) and {len(h) for h in corpus.hidden} >= {1 + SPECIAL, 256 + SPECIAL}
    first: dict[str, np.ndarray] = {}
    for batch, pad in MODES:
        found = run(corpus, "--batch", str(batch), pad)
        assert found["last_hidden_state"].shape[:2] == (len(corpus.hidden), 256 + SPECIAL)
        assert [len(h) for h in corpus.hidden] == found["attention_mask"].sum(axis=1).tolist()
        error = max(float(np.abs(found["last_hidden_state"][i, : len(h)] - h).max()) for i, h in enumerate(corpus.hidden))
        vectors = found["sentence_embedding"].astype(np.float64)
        cosine = float(((vectors * corpus.vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)).min())
        print(f"batch {batch:2} {pad:8}  max abs error {error:.3g}, min cosine 1 - {1 - cosine:.2g}")
        assert error <= MAX_ABS
        assert cosine >= MIN_COSINE
        assert_same_bits(first or found, found)
        first = first or found
    for threads in ("1", "2"):
        assert_same_bits(first, run(corpus, "--batch", "7", "--threads", threads))


def test_a_short_text_beside_a_long_one(corpus: Corpus) -> None:
    """`tfc run` puts texts of like length together; here nearly a whole row is padding."""
    model = tfir.load(str(corpus.artifact))
    ids = np.zeros((2, 258), np.int64)
    ids[0, :3], ids[1] = [101, 7592, 102], 2003
    mask = (ids != 0).astype(np.int64)
    types = np.zeros_like(ids)
    hidden, _, vectors = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
    for i, width in enumerate((3, 258)):
        alone, _, vector = model(input_ids=ids[i : i + 1, :width], attention_mask=mask[i : i + 1, :width], token_type_ids=types[i : i + 1, :width])
        np.testing.assert_array_equal(hidden[i, :width], alone[0])
        np.testing.assert_array_equal(vectors[i], vector[0])
