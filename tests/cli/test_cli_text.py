"""``tfc run --text``: sentences in, hidden states and sentence vectors out, whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import trustformers_ir as tfir
from trustformers_ir.frontend.tokenizer import TextTokenizer, load_tokenizer
from trustformers_ir.ir.abi import Manifest, Port, TargetInfo
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.tools.cli import main
from trustformers_ir.tools.commands import run as run_command

TEXTS = ["a b c", "a", "a b c d e", "b c", "c", "d e f g"]


def words() -> TextTokenizer:
    """One token per word, numbered by its letter."""
    vocabulary = {"[PAD]": 0} | {letter: i for i, letter in enumerate("abcdefg", 1)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[PAD]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return load_tokenizer(made.to_str().encode())


class Model:
    """Hidden states that depend on the token, its place, and how many real tokens the text has."""

    inputs = (Port("input_ids", DType.i32["batch", "seq"]), Port("attention_mask", DType.i64["batch", "seq"]))
    outputs = (Port("last_hidden_state", DType.f32["batch", "seq", 4]), Port("pooled", DType.f32["batch", 4]))
    manifest = Manifest("m", TargetInfo("cpu", "", "", ()), (("batch", SymbolFact()), ("seq", SymbolFact(1, 5))), (), (), (), "0")

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, *, input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert input_ids.dtype == np.int32 and input_ids.flags.c_contiguous
        self.shapes.append(input_ids.shape)
        places = np.arange(input_ids.shape[1])
        hidden = np.stack([input_ids, input_ids * places, places + 0 * input_ids, input_ids * 0 + attention_mask.sum(1, keepdims=True)], -1)
        hidden = (hidden * attention_mask[..., None]).astype(np.float32)
        return hidden, hidden[:, 0]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Model:
    monkeypatch.chdir(tmp_path)
    toy = Model()
    monkeypatch.setitem(vars(tfir), "load", lambda path, threads=None, target=None: toy)
    monkeypatch.setattr(run_command, "tokenizer_of", lambda model, metadata: words())
    return toy


def run(*words: str) -> dict[str, Any]:
    assert main(["run", "m.tfc", *(w for t in TEXTS for w in ("--text", t)), "-o", "e.npz", *words]) == 0
    return dict(np.load("e.npz"))


def test_batches_and_padding_change_nothing(model: Model) -> None:
    whole = run()
    assert model.shapes == [(6, 5)]
    assert sorted(whole) == ["attention_mask", "input_ids", "last_hidden_state", "pooled", "sentence_embedding"]
    for words, shapes in (
        (("--batch", "1"), [(1, 1), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]),
        (("--batch", "4"), [(4, 3), (2, 5)]),
        (("--no-pad",), [(2, 1), (1, 2), (1, 3), (1, 4), (1, 5)]),
    ):
        model.shapes.clear()
        again = run(*words)
        assert model.shapes == shapes
        for name, array in whole.items():
            np.testing.assert_array_equal(again[name], array)


def test_sentence_vectors_are_means_of_real_tokens(model: Model) -> None:
    outputs = run()
    mean = outputs["last_hidden_state"][0, :3].mean(axis=0)
    np.testing.assert_allclose(outputs["sentence_embedding"][0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(outputs["sentence_embedding"], axis=1), 1, rtol=1e-6)


def test_texts_that_are_too_long_are_all_named(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "m.tfc", "--text", "a b c d e f", "--text", "a", "--text", "g f e d c b a", "-o", "e.npz"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("error[TFC6009]") == 2 and "text 1 ('a b c d e f')" in error and "text 3" in error
    assert not model.shapes and not Path("e.npz").exists()
    assert main([*command, "--truncate"]) == 0
    assert np.load("e.npz")["attention_mask"].sum(axis=1).tolist() == [5, 1, 5]


def test_texts_from_a_file(model: Model) -> None:
    Path("texts.txt").write_text("a b\n\nc\n")
    assert main(["run", "m.tfc", "--text-file", "texts.txt", "-o", "e.npz"]) == 0
    assert np.load("e.npz")["input_ids"].tolist() == [[1, 2], [3, 0]]


def test_text_needs_a_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(tfir), "load", lambda path, threads=None, target=None: Model())
    assert main(["run", "m.tfc", "--text", "a"]) == 2
    assert "error[TFC2030]" in capsys.readouterr().err
