"""Examples for calibration and error reports: what people have, as batches of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import trustformers_ir as tfir
from trustformers_ir.frontend.examples import TEXTS_AT_ONCE, Batch, read_examples
from trustformers_ir.frontend.tokenizer import TextTokenizer, load_tokenizer
from trustformers_ir.ir.diagnostics import Code

TOKENS = {"input_ids": tfir.i64["b", "s"], "attention_mask": tfir.i64["b", "s"]}
VECTOR = {"x": tfir.f32["n", 4]}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"one two three".split()]


def tokenizer() -> TextTokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return load_tokenizer(made.to_str().encode())


def read(data: Any, types: Any = TOKENS, longest: int | None = 8) -> list[Batch]:
    return read_examples(data, types, longest, tokenizer)


def test_texts_of_one_length_run_together_without_padding() -> None:
    batches = read(["one two", "three", "two one", "one " * 50])
    assert [b["input_ids"].shape for b in batches] == [(1, 3), (2, 4), (1, 8)]
    assert all((b["attention_mask"] == 1).all() and b["input_ids"].dtype == np.int64 for b in batches)
    assert batches[1]["input_ids"].tolist() == [[2, 4, 5, 3], [2, 5, 4, 3]]
    assert [len(b["input_ids"]) for b in read(["one"] * (TEXTS_AT_ONCE + 3))] == [TEXTS_AT_ONCE, 3]


def test_files_hold_texts_or_arrays(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    np.savez(tmp_path / "a.npz", input_ids=np.ones((2, 5), np.int32))
    (texts,) = read(str(tmp_path / "t.txt"))
    assert texts["input_ids"].shape == (2, 3)
    arrays, *_ = read([tmp_path / "a.npz", tmp_path / "t.txt", "three"])
    assert arrays["input_ids"].shape == (2, 5) and arrays["input_ids"].dtype == np.int64


def test_arrays_by_name_or_of_the_only_input() -> None:
    x = np.ones((2, 4), np.float32)
    assert [b["x"].shape for b in read([x, {"x": x[:1]}], VECTOR)] == [(2, 4), (1, 4)]
    assert read({"input_ids": np.ones((1, 3), np.int32)})[0]["input_ids"].dtype == np.int64


def test_every_wrong_example_is_named() -> None:
    with pytest.raises(tfir.CompilerError) as info:
        read([{"input_ids": np.ones((1, 3))}, 5, np.ones(3), None])
    assert info.value.codes == (Code.CALIBRATION,) * 3
    for message in ("example 2 is int", "example 3 is ndarray", "example 4 is NoneType"):
        assert message in str(info.value)


WRONG: list[tuple[Any, Any, Code, str]] = [
    ([], TOKENS, Code.CALIBRATION, "there are no examples"),
    (["a text"], VECTOR, Code.CALIBRATION, "does not read text: its inputs are x"),
    ("missing.txt", TOKENS, Code.FILE_NOT_FOUND, "does not exist"),
    ("missing.npz", TOKENS, Code.FILE_NOT_FOUND, "does not exist"),
    ("empty.txt", TOKENS, Code.CALIBRATION, "holds no text"),
    ("latin.txt", TOKENS, Code.UNREADABLE, "cannot read"),
    ("broken.npz", TOKENS, Code.BAD_ARRAY, "is not a .npz file"),
    ("pickled.npz", TOKENS, Code.BAD_ARRAY, "is not a .npz file"),
]


@pytest.mark.parametrize(("data", "types", "code", "says"), WRONG)
def test_what_is_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any, types: Any, code: Code, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("broken.npz").write_bytes(b"PK\x03\x04 nothing")
    np.savez("pickled.npz", input_ids=np.array([object()], object))
    with pytest.raises(tfir.CompilerError, match=says) as info:
        read(data, types)
    assert info.value.codes == (code,)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(tfir.CompilerError) as info:
        read_examples(["one"], TOKENS, None, lambda: None)
    assert info.value.codes == (Code.TOKENIZER_MISSING,)
