"""Tokenizers out of GGUF files: the ids are those of llama.cpp, which defines the format, and of the libraries that trained them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import LlamaCpp, served
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trustformers_ir.frontend.gguf.container import open_gguf
from trustformers_ir.frontend.gguf.vocabulary import CUTS, tokenizer_json
from trustformers_ir.frontend.tokenizer import TextTokenizer, load_tokenizer
from trustformers_ir.ir.diagnostics import Code, CompilerError

TEXTS = [
    "The capital of France is",
    "Hello, world! It's 12345 o'clock; they'LL say \"don't\" (x=3.14) -- #1.",
    "  two   spaces\tand tabs\n\n\nlines \r\n  end  ",
    "Café déjà vu, naïve façade, Straße",
    "東京 2024年, привет мир! 12,345.67",
    "if (x >= 10) { return a[i] + b->c; } // `code` ~ $5 ^ | <tag/>",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 and \u00a0 odd\u2003spaces",
    "CamelCase snake_case SHOUTING mIxEd 007 1st 2nd",
    " ",
    "\n",
    "a",
]
CORPUS = [*TEXTS, "the quick brown fox jumps over the lazy dog " * 3, "tokens and merges, words and numbers 1 22 333 4444 don't we'll"] * 4


def write(path: Path, keys: dict[str, Any], tokens: int) -> Path:
    """A LLaMA of one tiny layer with a tokenizer, as llama.cpp wants it."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"context_length": 128, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32}
    for name, value in (*sizes.items(), ("attention.head_count", 2), ("attention.head_count_kv", 2), ("rope.dimension_count", 16)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, value in keys.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    shapes = {"token_embd": (tokens, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{n}": (32, 32) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def of_file(path: Path) -> TextTokenizer:
    text = tokenizer_json(open_gguf(path))
    assert text is not None
    return load_tokenizer(text.encode(), str(path))


def ids_of(tokenizer: TextTokenizer, text: str) -> list[int]:
    return list(tokenizer.encode_batch([text])[0][0])


# --- bytes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bytes_keys() -> dict[str, Any]:
    """The vocabulary of a byte-level BPE trained here, with two control tokens in front."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet))
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    kinds = [3, 3, *[1] * (len(tokens) - 2)]
    return {"model": "gpt2", "tokens": tokens, "token_type": kinds, "merges": merges, "bos_token_id": 0, "eos_token_id": 1}


#: rules that llama.cpp has with capitals of ASCII alone, and which here are those of the tokenizers they come from
APPROXIMATE = {"tekken", "gpt-4o", "llama4"}


@pytest.mark.parametrize("rule", list(CUTS))
def test_text_is_cut_as_llama_cpp_cuts_it(rule: str, bytes_keys: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", bytes_keys | {"pre": rule}, len(bytes_keys["tokens"]))
    mine = of_file(path)
    with served(path) as theirs:
        for text in TEXTS:
            if rule in APPROXIMATE and not text.isascii():
                continue
            assert ids_of(mine, text) == theirs.tokens(text), text


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_eos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_tokens_around_a_text(flags: dict[str, bool], bytes_keys: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", bytes_keys | {"pre": "gpt-2", **flags}, len(bytes_keys["tokens"]))
    mine = of_file(path)
    with served(path) as theirs:
        for text in ("a b", "<s>a</s>b", "x </s> y"):
            assert ids_of(mine, text) == theirs.tokens(text)
    assert mine.decode(ids_of(mine, "a b")) == "a b"


# --- SentencePiece -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    stream = io.BytesIO()
    lines = iter([line for text in CORPUS for line in text.splitlines() if line.strip()])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=stream, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


@pytest.fixture(scope="session")
def pieces_keys(pieces: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    n = pieces.get_piece_size()
    kinds = [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1 for i in range(n)]
    tokens, scores = [pieces.id_to_piece(i) for i in range(n)], [float(pieces.get_score(i)) for i in range(n)]
    special = {"bos_token_id": pieces.bos_id(), "eos_token_id": pieces.eos_id(), "unknown_token_id": pieces.unk_id()}
    return {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds, **special}


@pytest.mark.parametrize("flags", [{}, {"add_space_prefix": False}, {"add_bos_token": False, "add_eos_token": True}])
def test_sentence_pieces_are_those_of_llama_cpp(flags: dict[str, bool], pieces_keys: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", pieces_keys | flags, len(pieces_keys["tokens"]))
    mine = of_file(path)
    with served(path) as theirs:
        for text in TEXTS:
            assert ids_of(mine, text) == theirs.tokens(text), text


def test_sentence_pieces_are_those_of_sentencepiece(
    pieces: sentencepiece.SentencePieceProcessor, pieces_keys: dict[str, Any], tmp_path: Path
) -> None:
    mine = of_file(write(tmp_path / "x.gguf", pieces_keys, len(pieces_keys["tokens"])))
    for text in TEXTS:
        ids = ids_of(mine, text)
        assert ids == [pieces.bos_id(), *pieces.encode(text)], text
        assert mine.decode(ids) == text


# --- the real one --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[tuple[TextTokenizer, LlamaCpp]]:
    with served(smollm2) as theirs:
        yield of_file(smollm2), theirs


def test_the_real_tokenizer(real: tuple[TextTokenizer, LlamaCpp]) -> None:
    mine, theirs = real
    assert mine.vocab_size == 49152 and mine.pad_id == 2
    assert ids_of(mine, "The capital of France is") == [504, 3575, 282, 4649, 314]
    for text in (*TEXTS, "<|im_start|>user\nHi<|im_end|>\n"):
        assert ids_of(mine, text) == theirs.tokens(text), text
        assert mine.decode(ids_of(mine, text)) == text.replace("<|im_start|>", "").replace("<|im_end|>", "")


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="\0"), min_size=1, max_size=40))
def test_any_text_with_the_real_tokenizer(real: tuple[TextTokenizer, LlamaCpp], text: str) -> None:
    """Of assigned characters: next to a symbol, others are no symbols to llama.cpp, unlike to the rule that it follows (``[^\\s\\p{L}\\p{N}]+``)."""
    mine, theirs = real
    assert ids_of(mine, text) == theirs.tokens(text)


# --- what is broken ------------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model": "t5"}, "model is 't5'"),
    "unknown rule": ({"pre": "mine"}, "is 'mine'"),
    "tokens that are numbers": ({"tokens": [1, 2]}, "tokens is no array of texts"),
    "a token twice": ({"tokens": ["a", "b", "a", "ab"]}, "'a' is there twice"),
    "kinds of too few tokens": ({"token_type": [1, 1]}, "one for each token"),
    "a merge of no tokens": ({"merges": ["a zz"]}, "the merge 'a zz'"),
    "a merge to no token": ({"merges": ["b a"]}, "the merge 'b a'"),
    "an id beyond the tokens": ({"bos_token_id": 77}, "is 77"),
    "a flag that is a number": ({"add_bos_token": 1}, "neither true nor false"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tokenizers_are_refused(name: str, tmp_path: Path) -> None:
    keys, message = BROKEN[name]
    good = {"model": "gpt2", "tokens": ["a", "b", "ab", "</s>"], "token_type": [1, 1, 1, 3], "merges": ["a b"], "eos_token_id": 3}
    path = write(tmp_path / "x.gguf", good | keys, 4)
    with pytest.raises(CompilerError, match=message) as caught:
        tokenizer_json(open_gguf(path))
    first = caught.value.diagnostics[0]
    assert first.code is Code.TOKENIZER_INVALID and first.where.file == str(path) and first.help


def test_pieces_without_scores_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"model": "llama", "tokens": ["a", "b"]}, 2)
    with pytest.raises(CompilerError, match="scores is missing"):
        tokenizer_json(open_gguf(path))


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    assert tokenizer_json(open_gguf(write(tmp_path / "x.gguf", {}, 4))) is None
